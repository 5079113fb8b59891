//! A trainer as a checkpoint, and back; models without a run as checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Disk, Loaded, NamedTensor, Snapshot, TensorFile};
use model::params::{BufferSpec, Group};
use model::{CausalThresholds, Model, ModelConfig, RouterState, Rule, WeightFormats};
use ops::{Moments, Values};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rounded::{self, Rounded};
use crate::start::steps_of;
use crate::{Recipe, SpecialTokens, TrainError, Trainer};

/// The counters of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) step: u64,
    pub(crate) position: u64,
    pub(crate) tokens: u64,
    pub(crate) updates: u64,
    pub(crate) skipped: u64,
    pub(crate) skipped_in_a_row: u64,
    pub(crate) router: RouterState,
    /// Fingerprint of the training text: a position means nothing in another one.
    pub(crate) data: String,
}

/// A checkpoint for use: the model, how it decides, its tokenizer.
pub struct Stored {
    /// The model; gradients are not collected.
    pub model: Arc<Model>,
    /// What routers learned outside of gradients, such as biases and running thresholds.
    pub state: RouterState,
    /// The causal rule, if the checkpoint has one.
    pub rule: Option<Rule>,
    /// The text of its tokenizer.json.
    pub tokenizer: Option<Vec<u8>>,
    /// Special ids and chat template, where the model came with them.
    pub text: Option<SpecialTokens>,
    /// How it was made, if not by training: the report of an import or a conversion.
    pub origin: Option<Value>,
    /// The recipe that made it.
    pub recipe: Option<Recipe>,
    /// Optimizer steps that made these weights; 0 for an import.
    pub step: u64,
    /// Predictions that the weights were trained on in all those steps.
    pub tokens: u64,
    /// What the stored weights were rounded to, if they were: such a model runs, but nothing is
    /// made from it.
    pub rounded: Option<WeightFormats>,
}

impl Stored {
    /// A model that no checkpoint holds: without rule, tokenizer and history.
    pub fn of(model: Arc<Model>) -> Self {
        Self {
            model,
            state: RouterState::default(),
            rule: None,
            tokenizer: None,
            text: None,
            origin: None,
            recipe: None,
            step: 0,
            tokens: 0,
            rounded: None,
        }
    }

    /// Refuses a checkpoint of rounded weights.
    fn whole(self, path: &Path) -> Result<Self, TrainError> {
        match &self.rounded {
            None => Ok(self),
            Some(format) => rounded::only_runs(path, &format.to_string()),
        }
    }
}

/// A checkpoint of `trainer`, over its own moments and the `values` of its weights in the order of
/// the parameter table: nothing of either is copied.
pub(crate) fn snapshot<'a>(
    trainer: &'a Trainer,
    values: &'a [Values],
    data: &str,
    rule: Option<&Rule>,
    tokenizer: &[u8],
) -> Result<Snapshot<'a>, TrainError> {
    let (mut weights, mut optimizer) = (Vec::new(), Vec::new());
    let table = trainer.model.weights().iter().map(|(spec, _)| spec);
    for ((spec, values), moments) in table.zip(values).zip(trainer.optimizer.moments()) {
        weights.push(matrix(spec.name.clone(), spec.shape, values));
        let Some(Moments { first, second }) = moments else { continue };
        optimizer.push(matrix(format!("first.{}", spec.name), spec.shape, first));
        optimizer.push(matrix(format!("second.{}", spec.name), spec.shape, second));
    }
    let state = State {
        step: trainer.step,
        position: trainer.position,
        tokens: trainer.tokens,
        updates: trainer.optimizer.updates(),
        skipped: trainer.skipped,
        skipped_in_a_row: trainer.skipped_in_a_row,
        router: trainer.router.clone(),
        data: data.to_owned(),
    };
    let mut documents = BTreeMap::from([
        ("config".to_owned(), json(trainer.model.config())),
        ("recipe".to_owned(), json(&trainer.recipe)),
        ("state".to_owned(), json(&state)),
    ]);
    if let Some(Rule::Causal(decision)) = rule {
        documents.insert("routing".to_owned(), json(decision));
    }
    if let Some(text) = &trainer.text {
        documents.insert("text".to_owned(), json(text));
    }
    Ok(Snapshot {
        tensors: BTreeMap::from([
            ("weights".to_owned(), weights),
            ("optimizer".to_owned(), optimizer),
        ]),
        json: documents,
        files: BTreeMap::from([("tokenizer.json".to_owned(), tokenizer.to_vec())]),
    })
}

fn matrix(name: String, (rows, columns): (usize, usize), data: &[f32]) -> NamedTensor<'_> {
    NamedTensor { name, shape: vec![rows, columns], data: data.into() }
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("our own types have string keys and finite numbers")
}

/// A model that no run of ours made, to be written as a checkpoint.
pub struct Made<'a> {
    /// Sizes, sharing and routing, from which the parameter table follows.
    pub config: &'a ModelConfig,
    /// Its weights: the parameter table's names and shapes, in its order, or what
    /// [`tensors`](crate::tensors) gave.
    pub weights: Vec<NamedTensor<'a>>,
    /// What they were rounded to, if they were.
    pub rounded: Option<Rounded>,
    /// The recipe that made it, for defaults of evaluation.
    pub recipe: Option<&'a Recipe>,
    /// The causal rule, for routers that need one.
    pub rule: Option<&'a Rule>,
    /// What routers learned outside of gradients; left out of the checkpoint where it is empty.
    pub state: &'a RouterState,
    /// The text of its tokenizer.json, copied as it is.
    pub tokenizer: Option<&'a [u8]>,
    /// Special ids and chat template.
    pub text: Option<&'a SpecialTokens>,
    /// How it was made.
    pub origin: Value,
}

/// Writes the checkpoint folder `path`: it can be evaluated, run and started from, but holds no run
/// to continue.
///
/// # Errors
/// A `path` that is taken, weights that are not the table's, or what the disk refuses.
pub fn write_model(path: &Path, made: Made<'_>, disk: &dyn Disk) -> Result<PathBuf, TrainError> {
    if is_taken(path) {
        let expected = "a path where nothing is; remove it or choose another";
        return refuse(path, "folder", "taken".into(), expected.into());
    }
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        let expected = "a path that ends in a name";
        return refuse(path, "folder", "no name in UTF-8".into(), expected.into());
    };
    let table = model::table::specs(made.config, &made.config.check()?);
    let slots = match made.rounded.as_ref().map(Rounded::formats).transpose() {
        Ok(formats) => rounded::slots(&table, &formats.unwrap_or_default()),
        Err(error) => Err(error),
    };
    let slots = match slots {
        Ok(slots) => slots,
        Err(error) => return refuse(path, "weights", error.to_string(), "formats that fit".into()),
    };
    let given = made.weights.iter().map(|tensor| (&tensor.name, &tensor.shape));
    if !given.eq(slots.iter().map(|slot| (&slot.name, &slot.shape))) {
        let expected = "those of the model's parameter table, in its order";
        return refuse(path, "weights", "other tensors".into(), expected.into());
    }
    let mut documents = BTreeMap::from([
        ("config".to_owned(), json(made.config)),
        ("origin".to_owned(), made.origin),
    ]);
    if let Some(Rule::Causal(decision)) = made.rule {
        documents.insert("routing".to_owned(), json(decision));
    }
    if *made.state != RouterState::default() {
        documents.insert("router".to_owned(), json(made.state));
    }
    if let Some(text) = made.text {
        documents.insert("text".to_owned(), json(text));
    }
    if let Some(recipe) = made.recipe {
        documents.insert("recipe".to_owned(), json(recipe));
    }
    if let Some(rounded) = &made.rounded {
        documents.insert(rounded::DOCUMENT.to_owned(), json(rounded));
    }
    let tokenizer = made.tokenizer.map(|bytes| ("tokenizer.json".to_owned(), bytes.to_vec()));
    let snapshot = Snapshot {
        tensors: BTreeMap::from([("weights".to_owned(), made.weights)]),
        json: documents,
        files: tokenizer.into_iter().collect(),
    };
    let parent =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(checkpoint::save(parent, name, &snapshot, disk)?)
}

/// Whether `path` is a file, or a folder with something in it.
fn is_taken(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    }
}

/// Puts a checkpoint back into a trainer made from the same recipe.
pub(crate) fn restore(
    trainer: &mut Trainer,
    loaded: &Loaded,
    data: &str,
) -> Result<(), TrainError> {
    if loaded.json.contains_key(rounded::DOCUMENT) {
        return rounded::only_runs(
            &loaded.path,
            &document::<Rounded>(loaded, rounded::DOCUMENT)?.weights,
        );
    }
    if !loaded.json.contains_key("state") {
        let expected = "that of a run; a model that was imported or converted is where a run \
                        starts: name it in the recipe as start.checkpoint, \
                        and choose another --out";
        return refuse(&loaded.path, "state.json", "missing".into(), expected.into());
    }
    let state: State = document(loaded, "state")?;
    let config = model_of(loaded)?;
    same_run(loaded, &config, &trainer.recipe)?;
    if state.data != data {
        return refuse(
            &loaded.path,
            "state.data",
            state.data,
            format!("{data}, the fingerprint of data.dir"),
        );
    }
    check_router(loaded, &state.router, &config)?;
    check_learned(loaded, &state, &config)?;
    trainer.text = text(loaded, &config)?;
    let weights = loaded.tensors("weights")?;
    let optimizer = loaded.tensors("optimizer")?;
    let mut expected = Vec::new();
    for ((spec, _), moments) in trainer.model.weights().iter().zip(trainer.optimizer.moments()) {
        for part in ["first", "second"].into_iter().filter(|_| moments.is_some()) {
            expected.push((format!("{part}.{}", spec.name), vec![spec.shape.0, spec.shape.1]));
        }
    }
    optimizer.expect(&expected)?;
    expect_weights(&trainer.model, &weights)?;
    let mut moments = Vec::new();
    for ((spec, weight), trained) in trainer.model.weights().iter().zip(trainer.optimizer.moments())
    {
        weight.write(weights.read_f32(&spec.name)?);
        moments.push(match trained {
            None => None,
            Some(_) => Some(Moments {
                first: optimizer.read_f32(&format!("first.{}", spec.name))?,
                second: optimizer.read_f32(&format!("second.{}", spec.name))?,
            }),
        });
    }
    trainer.optimizer.restore(moments, state.updates);
    trainer.step = state.step;
    trainer.position = state.position;
    trainer.tokens = state.tokens;
    trainer.skipped = state.skipped;
    trainer.skipped_in_a_row = state.skipped_in_a_row;
    trainer.router = state.router;
    Ok(())
}

/// Refuses a checkpoint whose run is not the one of the recipe `wanted`: another model, other
/// frozen weights, another start or teacher.
fn same_run(loaded: &Loaded, config: &ModelConfig, wanted: &Recipe) -> Result<(), TrainError> {
    if *config != wanted.model {
        let fields = differing(&json(config), &json(&wanted.model)).join(", ");
        let found = format!("another model: its {fields} is not the recipe's");
        let expected = "the model of the recipe; choose another --out".into();
        return refuse(&loaded.path, "config.json", found, expected);
    }
    let made_by: Recipe = document(loaded, "recipe")?;
    if made_by.train.freeze != wanted.train.freeze {
        let found = format!("{:?}", made_by.train.freeze);
        let expected = format!(
            "{:?}, the recipe's: which weights have moments is fixed when a run begins; go on \
             with these patterns, or choose another --out and name this run as start.checkpoint",
            wanted.train.freeze
        );
        return refuse(&loaded.path, "train.freeze", found, expected);
    }
    if made_by.start.fingerprint != wanted.start.fingerprint
        || made_by.distill.fingerprint != wanted.distill.fingerprint
    {
        let expected = "those of the recipe (start and distill); choose another --out";
        return refuse(
            &loaded.path,
            "recipe.json",
            "another start or teacher".into(),
            expected.into(),
        );
    }
    Ok(())
}

fn model_of(loaded: &Loaded) -> Result<ModelConfig, TrainError> {
    let given: Value = document(loaded, "config")?;
    model_config(&given).or_else(|found| {
        let expected = "what this version of Lathe writes".into();
        refuse(&loaded.path, "config.json", found, expected)
    })
}

/// The model that `given` describes. A field that this program does not know may change what the
/// model computes, so that it is refused.
///
/// # Errors
/// What is wrong with it.
pub fn model_config(given: &Value) -> Result<ModelConfig, String> {
    let config = ModelConfig::deserialize(given).map_err(|error| error.to_string())?;
    match unknown(given, &json(&config)) {
        None => Ok(config),
        Some(field) => Err(format!("the unknown field {field:?}")),
    }
}

/// A key of `given`, at any depth, that `known` does not have.
fn unknown(given: &Value, known: &Value) -> Option<String> {
    let (given, known) = (given.as_object()?, known.as_object()?);
    given.iter().find_map(|(key, value)| match known.get(key) {
        None => Some(key.clone()),
        Some(known) => unknown(value, known),
    })
}

/// The fields in which two tables differ.
fn differing(one: &Value, other: &Value) -> Vec<String> {
    let (Some(one), Some(other)) = (one.as_object(), other.as_object()) else { return Vec::new() };
    one.iter()
        .filter(|(key, value)| other.get(*key) != Some(value))
        .map(|(k, _)| k.clone())
        .collect()
}

fn expect_weights(model: &Model, file: &TensorFile) -> Result<(), TrainError> {
    let expected: Vec<_> =
        model.weights().iter().map(|(s, _)| (s.name.clone(), vec![s.shape.0, s.shape.1])).collect();
    Ok(file.expect(&expected)?)
}

/// Reads the checkpoint at `path`: a step's folder, or the folder of a run, of which the newest
/// undamaged one is taken.
///
/// # Errors
/// Nothing there, damage, contents that do not fit, or rounded weights, from which nothing is made.
pub fn load_model(path: &Path) -> Result<Stored, TrainError> {
    load_for_use(path)?.whole(path)
}

/// The same for a model that is only to run: its weights may be rounded.
///
/// # Errors
/// Nothing there, damage, or contents that do not fit.
pub fn load_for_use(path: &Path) -> Result<Stored, TrainError> {
    let loaded = if path.join("manifest.json").is_file() {
        checkpoint::load(path)?
    } else {
        match checkpoint::newest_valid(&steps_of(path))? {
            (Some(loaded), _) => loaded,
            (None, damaged) => {
                let found = damaged
                    .first()
                    .map_or("no checkpoint".into(), |d| format!("only damaged ones: {}", d.reason));
                return Err(TrainError::Checkpoint {
                    path: path.to_path_buf(),
                    field: "folder".into(),
                    found,
                    expected:
                        "a folder written by `lathe train`, `lathe import` or `lathe convert`"
                            .into(),
                });
            }
        }
    };
    load(&loaded)
}

/// Builds the model of an opened checkpoint.
///
/// # Errors
/// Contents that do not fit together.
pub fn load(loaded: &Loaded) -> Result<Stored, TrainError> {
    let config = model_of(loaded)?;
    let plan = config.check()?;
    let weights = loaded.tensors("weights")?;
    // Shapes are compared with the table before anything of the model is allocated.
    let rounded: Option<Rounded> = optional(loaded, rounded::DOCUMENT)?;
    let formats = rounded.as_ref().map(Rounded::formats).transpose();
    let formats = formats.or_else(|e| {
        refuse(&loaded.path, "quantized.weights", e.to_string(), "known formats".into())
    })?;
    if let Some(formats) = formats.as_ref().filter(|formats| formats.is_f32()) {
        let expected = "a format of fewer bits than f32".into();
        return refuse(&loaded.path, "quantized.weights", formats.to_string(), expected);
    }
    let kept = formats.clone().unwrap_or_default();
    let slots = rounded::slots(&model::table::specs(&config, &plan), &kept);
    let slots = slots.or_else(|e| {
        refuse(&loaded.path, "config.json", e.to_string(), "matrices that fit the formats".into())
    })?;
    weights.expect(&slots.into_iter().map(|slot| (slot.name, slot.shape)).collect::<Vec<_>>())?;
    let model = Model::over(&config, |spec| rounded::read(&weights, spec, &kept))?;
    let rule = match loaded.json.contains_key("routing") {
        true => Some(Rule::Causal(decision(loaded, &config)?)),
        false => None,
    };
    let recipe = optional(loaded, "recipe")?;
    let counters: Option<State> = optional(loaded, "state")?;
    let tokenizer = loaded.files.get("tokenizer.json").cloned();
    let before = rounded.map_or((0, 0), |r| (r.step, r.tokens));
    let (step, tokens) = counters.as_ref().map_or(before, |s| (s.step, s.tokens));
    if let Some(counters) = &counters {
        check_learned(loaded, counters, &config)?;
    }
    let state = match counters {
        Some(counters) => counters.router,
        None => optional(loaded, "router")?.unwrap_or_default(),
    };
    check_router(loaded, &state, &config)?;
    let (text, origin) = (text(loaded, &config)?, loaded.json.get("origin").cloned());
    Ok(Stored {
        model: Arc::new(model),
        state,
        rule,
        tokenizer,
        text,
        origin,
        recipe,
        step,
        tokens,
        rounded: formats,
    })
}

fn text(loaded: &Loaded, config: &ModelConfig) -> Result<Option<SpecialTokens>, TrainError> {
    if !loaded.json.contains_key("text") {
        return Ok(None);
    }
    let text: SpecialTokens = document(loaded, "text")?;
    if let Some((field, id)) = text.outside(config.vocab_size) {
        let expected = format!("below the vocabulary's {}", config.vocab_size);
        return refuse(&loaded.path, &format!("text.{field}"), id.to_string(), expected);
    }
    if text.add_bos && text.bos.is_none() {
        return refuse(
            &loaded.path,
            "text.bos",
            "null".into(),
            "an id, as add_bos asks for it".into(),
        );
    }
    Ok(Some(text))
}

fn decision(loaded: &Loaded, config: &ModelConfig) -> Result<CausalThresholds, TrainError> {
    let decision: CausalThresholds = document(loaded, "routing")?;
    let table = model::table::specs(config, &config.check()?);
    let auxiliary = table.iter().any(|spec| spec.group == Group::AuxiliaryRouter);
    if decision.thresholds.len() != config.recursions {
        let found = decision.thresholds.len().to_string();
        return refuse(
            &loaded.path,
            "routing.thresholds",
            found,
            format!("{} entries", config.recursions),
        );
    }
    if let Some(found) = decision.thresholds.iter().flatten().find(|t| !t.is_finite()) {
        return refuse(
            &loaded.path,
            "routing.thresholds",
            found.to_string(),
            "finite numbers".into(),
        );
    }
    if decision.auxiliary && !auxiliary {
        return refuse(
            &loaded.path,
            "routing.auxiliary",
            "true".into(),
            "false in a model without auxiliary router".into(),
        );
    }
    Ok(decision)
}

/// Refuses more updates than steps, and a run that has done steps without the buffers that a step
/// writes: the router would begin from another state than it had.
fn check_learned(loaded: &Loaded, state: &State, config: &ModelConfig) -> Result<(), TrainError> {
    if state.updates > state.step {
        let expected = format!("at most {}, the steps done", state.step);
        return refuse(&loaded.path, "state.updates", state.updates.to_string(), expected);
    }
    if state.updates == 0 {
        return Ok(());
    }
    let table = model::table::buffers(config);
    let missing = |spec: &&BufferSpec| spec.every_step && state.router.get(&spec.name).is_none();
    match table.iter().find(missing) {
        None => Ok(()),
        Some(spec) => {
            let expected = format!("{} numbers, as after every step", spec.length);
            let field = format!("state.router.{}", spec.name);
            refuse(&loaded.path, &field, "missing".into(), expected)
        }
    }
}

/// Refuses buffers that the model does not have, of another length than it says, or out of range.
fn check_router(
    loaded: &Loaded,
    state: &RouterState,
    config: &ModelConfig,
) -> Result<(), TrainError> {
    let table = model::table::buffers(config);
    for (name, value) in state.iter() {
        let field = format!("state.router.{name}");
        let Some(spec) = table.iter().find(|spec| spec.name == name) else {
            // Checkpoints of version 0.1 hold this counter at zero whatever the router.
            if name == "running_steps" && value == [0.0] {
                continue;
            }
            let known: Vec<&str> = table.iter().map(|spec| spec.name.as_str()).collect();
            let expected = format!("one of this model's buffers: {}", known.join(", "));
            return refuse(&loaded.path, &field, "a buffer".into(), expected);
        };
        if value.len() != spec.length {
            let found = format!("{} numbers", value.len());
            return refuse(&loaded.path, &field, found, format!("none or {}", spec.length));
        }
        let (least, most) = spec.range;
        let range = least..=most;
        if let Some(x) = value.iter().find(|x| !x.is_finite() || !range.contains(&f64::from(**x))) {
            let expected = match spec.range {
                (f64::NEG_INFINITY, f64::INFINITY) => "finite numbers".into(),
                (least, most) => format!("between {least} and {most}"),
            };
            return refuse(&loaded.path, &field, x.to_string(), expected);
        }
    }
    Ok(())
}

fn optional<T: serde::de::DeserializeOwned>(
    loaded: &Loaded,
    name: &str,
) -> Result<Option<T>, TrainError> {
    loaded.json.contains_key(name).then(|| document(loaded, name)).transpose()
}

fn document<T: serde::de::DeserializeOwned>(loaded: &Loaded, name: &str) -> Result<T, TrainError> {
    let Some(value) = loaded.json.get(name) else {
        return refuse(&loaded.path, &format!("{name}.json"), "missing".into(), "there".into());
    };
    T::deserialize(value).or_else(|error| {
        refuse(
            &loaded.path,
            &format!("{name}.json"),
            error.to_string(),
            "what this version of Lathe writes".into(),
        )
    })
}

fn refuse<T>(path: &Path, field: &str, found: String, expected: String) -> Result<T, TrainError> {
    Err(TrainError::Checkpoint { path: path.to_path_buf(), field: field.into(), found, expected })
}
