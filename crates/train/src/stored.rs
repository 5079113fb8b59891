//! A trainer as a checkpoint, and back; models without a run as checkpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Damaged, Disk, Loaded, NamedTensor, Snapshot};
use data::SpecialTokens;
use model::params::{BufferSpec, Group, ParamSpec};
use model::{CausalThresholds, Model, ModelConfig, RouterState, Rule, WeightFormats};
use ops::Moments;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::changes::{Change, changes, same_model};
use crate::error::refuse;
use crate::experts::{Origin, is_of_shared_experts};
use crate::freeze::{self, F32};
use crate::given_config::{json, model_config};
use crate::rounded::{self, Rounded};
use crate::{Recipe, TrainError, Trainer};

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

impl State {
    /// Those of a run on the text of the fingerprint `data`.
    pub(crate) fn of(trainer: &Trainer, data: &str) -> Self {
        Self {
            step: trainer.step,
            position: trainer.position,
            tokens: trainer.tokens,
            updates: trainer.optimizer.updates(),
            skipped: trainer.skipped,
            skipped_in_a_row: trainer.skipped_in_a_row,
            router: trainer.router.clone(),
            data: data.to_owned(),
        }
    }

    /// Lets `trainer` go on from here, with the moments that it has.
    pub(crate) fn put(self, trainer: &mut Trainer) {
        trainer.optimizer.count(self.updates);
        trainer.step = self.step;
        trainer.position = self.position;
        trainer.tokens = self.tokens;
        trainer.skipped = self.skipped;
        trainer.skipped_in_a_row = self.skipped_in_a_row;
        trainer.router = self.router;
    }
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
    /// The folder that was opened; empty for a model that no checkpoint holds.
    pub folder: PathBuf,
    /// Newer checkpoints of the same run that could not be read, newest first.
    pub passed_over: Vec<Damaged>,
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
            folder: PathBuf::new(),
            passed_over: Vec::new(),
            rounded: None,
        }
    }

    /// Refuses a checkpoint of rounded weights.
    pub(crate) fn whole(self, path: &Path) -> Result<Self, TrainError> {
        match &self.rounded {
            None => Ok(self),
            Some(_) if self.froze_in_few_bits() => Err(TrainError::Checkpoint {
                path: path.to_path_buf(),
                field: "the format of its weights".into(),
                found: "frozen matrices in few bits, as train.frozen_format has it".into(),
                expected: "f32: export the adapters that it learned by `lathe export --format \
                           peft`, and put them on a base in f32"
                    .into(),
            }),
            Some(format) => rounded::only_runs(path, &format.to_string()),
        }
    }

    /// Whether a run keeps the matrices that it froze in fewer bits than it trains in.
    pub(crate) fn froze_in_few_bits(&self) -> bool {
        let recipe = self.recipe.as_ref();
        recipe.is_some_and(|recipe| recipe.train.frozen_format != F32 && self.rounded.is_some())
    }
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
    check_free(path)?;
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
    Ok(checkpoint::save_new(path, &snapshot, disk)?)
}

/// Refuses a `path` that [`write_model`] cannot make, for those that work long before they write.
///
/// # Errors
/// A file, or a folder with something in it.
pub fn check_free(path: &Path) -> Result<(), TrainError> {
    if is_taken(path) {
        let expected = "a path where nothing is; remove it or choose another";
        return refuse(path, "folder", "taken".into(), expected.into());
    }
    Ok(())
}

/// Whether `path` is a file, or a folder with something in it.
fn is_taken(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    }
}

/// Puts a checkpoint back into a trainer made from the same recipe, or from one with changes that a
/// run may have, or that are `accepted`; experts that are to be shared out stay where they are.
/// Returns the changes.
pub(crate) fn restore(
    trainer: &mut Trainer,
    loaded: &Loaded,
    data: &str,
    accepted: bool,
) -> Result<Vec<Change>, TrainError> {
    let rounded: Option<Rounded> = optional(loaded, rounded::DOCUMENT)?;
    if let (Some(rounded), false) = (&rounded, loaded.json.contains_key("state")) {
        return rounded::only_runs(&loaded.path, &rounded.weights);
    }
    if !loaded.json.contains_key("state") {
        let expected = "that of a run; a model that was imported or converted is where a run \
                        starts: name it in the recipe as start.checkpoint, \
                        and choose another --out";
        return refuse(&loaded.path, "state.json", "missing".into(), expected.into());
    }
    let state: State = document(loaded, "state")?;
    let config = model_of(loaded)?;
    same_model(&loaded.path, &config, &trainer.recipe.model)?;
    let made_by: Recipe = document(loaded, "recipe")?;
    let changes = changes(&loaded.path, state.step, &made_by, &trainer.recipe, accepted)?;
    if state.data != data {
        let expected = format!("{data}, the fingerprint of data.dir");
        return refuse(&loaded.path, "state.data", state.data, expected);
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
    let table: Vec<ParamSpec> =
        trainer.model.weights().iter().map(|(spec, _)| spec.clone()).collect();
    let formats = freeze::formats(&trainer.recipe, &table)?;
    let (said, wanted) = (rounded.map(|r| r.weights), formats.as_ref().map(ToString::to_string));
    if said != wanted {
        let (said, wanted) = (said.unwrap_or("f32".into()), wanted.unwrap_or("f32".into()));
        let expected = format!("{wanted}, as train.frozen_format of the recipe has it");
        return refuse(&loaded.path, "quantized.weights", said, expected);
    }
    let formats = formats.unwrap_or_default();
    let slots = rounded::slots(&table, &formats);
    let slots = slots.or_else(|e| {
        refuse(&loaded.path, "config.json", e.to_string(), "matrices that fit the formats".into())
    })?;
    weights.expect(&slots.into_iter().map(|slot| (slot.name, slot.shape)).collect::<Vec<_>>())?;
    let mut moments = Vec::new();
    for ((spec, weight), trained) in trainer.model.weights().iter().zip(trainer.optimizer.moments())
    {
        let left_out = trainer.origin.is_some() && is_of_shared_experts(&config, spec);
        match formats.of(spec) {
            _ if left_out => {}
            None => weight.write(weights.read_f32(&spec.name)?),
            Some(format) => rounded::freeze_read(&weights, spec, format, weight)?,
        }
        moments.push(match trained {
            None => None,
            Some(_) if left_out => Some(Moments::default()),
            Some(_) => Some(Moments {
                first: optimizer.read_f32(&format!("first.{}", spec.name))?,
                second: optimizer.read_f32(&format!("second.{}", spec.name))?,
            }),
        });
    }
    trainer.optimizer.restore(moments, state.updates);
    if let Some(origin) = &mut trainer.origin {
        *origin = Origin::Stored { weights, optimizer };
    }
    state.put(trainer);
    Ok(changes)
}

pub(crate) fn model_of(loaded: &Loaded) -> Result<ModelConfig, TrainError> {
    let given: Value = document(loaded, "config")?;
    model_config(&given).or_else(|found| {
        let expected = "what this version of Lathe writes".into();
        refuse(&loaded.path, "config.json", found, expected)
    })
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
    let recipe: Option<Recipe> = optional(loaded, "recipe")?;
    if let Some(recipe) = &recipe {
        let length = recipe.data.sequence_length;
        if length == 0 || length > config.context {
            let expected = format!("between 1 and the model's context {}", config.context);
            let field = "recipe.data.sequence_length";
            return refuse(&loaded.path, field, length.to_string(), expected);
        }
    }
    let counters: Option<State> = optional(loaded, "state")?;
    let tokenizer = loaded.files.get("tokenizer.json").cloned();
    let before = rounded.map_or((0, 0), |r| (r.step, r.tokens));
    at_most(loaded, "quantized.step", before.0, MOST_STEPS)?;
    at_most(loaded, "quantized.tokens", before.1, MOST_TOKENS)?;
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
        folder: loaded.path.clone(),
        passed_over: Vec::new(),
        rounded: formats,
    })
}

pub(crate) fn text(
    loaded: &Loaded,
    config: &ModelConfig,
) -> Result<Option<SpecialTokens>, TrainError> {
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

/// Refuses counters that no run reaches, and a run that has done steps without the buffers that a
/// step writes: the router would begin from another state than it had.
fn check_learned(loaded: &Loaded, state: &State, config: &ModelConfig) -> Result<(), TrainError> {
    for (field, found, most) in [
        ("state.step", state.step, MOST_STEPS),
        ("state.position", state.position, MOST_TOKENS),
        ("state.tokens", state.tokens, MOST_TOKENS),
        ("state.updates", state.updates, state.step),
        ("state.skipped", state.skipped, state.step),
        ("state.skipped_in_a_row", state.skipped_in_a_row, state.skipped),
    ] {
        at_most(loaded, field, found, most)?;
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

/// The most steps of a run, which recipes may ask for.
const MOST_STEPS: u64 = 1 << 40;
/// The most tokens of a run: every sum of two such counters is a number.
const MOST_TOKENS: u64 = 1 << 60;

fn at_most(loaded: &Loaded, field: &str, found: u64, most: u64) -> Result<(), TrainError> {
    if found <= most {
        return Ok(());
    }
    refuse(&loaded.path, field, found.to_string(), format!("at most {most}"))
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

pub(crate) fn document<T: serde::de::DeserializeOwned>(
    loaded: &Loaded,
    name: &str,
) -> Result<T, TrainError> {
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
