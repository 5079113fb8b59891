//! A trainer as a checkpoint, and back.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::{Loaded, NamedTensor, Snapshot, TensorFile};
use model::{Decision, Model, ModelConfig, RouterState, Rule};
use ops::Moments;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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

/// A checkpoint for use: the model, how it decides, its tokenizer.
pub struct Stored {
    /// The model; gradients are not collected.
    pub model: Model,
    /// Router state.
    pub state: RouterState,
    /// The causal rule, if the checkpoint has one.
    pub rule: Option<Rule>,
    /// The text of its tokenizer.json.
    pub tokenizer: Option<Vec<u8>>,
    /// The recipe that made it.
    pub recipe: Option<Recipe>,
    /// Steps done.
    pub step: u64,
    /// Predictions trained on.
    pub tokens: u64,
}

pub(crate) fn snapshot<'a>(
    trainer: &Trainer,
    data: &str,
    rule: Option<&Rule>,
    tokenizer: &[u8],
) -> Result<Snapshot<'a>, TrainError> {
    let tensor = |name: &str, shape: (usize, usize), data: Vec<f32>| NamedTensor {
        name: name.to_owned(),
        shape: vec![shape.0, shape.1],
        data: Cow::Owned(data),
    };
    let (mut weights, mut optimizer) = (Vec::new(), Vec::new());
    for ((spec, weight), moments) in trainer.model.weights().iter().zip(trainer.optimizer.moments()) {
        weights.push(tensor(&spec.name, spec.shape, weight.read()));
        optimizer.push(tensor(&format!("first.{}", spec.name), spec.shape, moments.first.clone()));
        optimizer.push(tensor(&format!("second.{}", spec.name), spec.shape, moments.second.clone()));
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
    let json =
        |value: Result<Value, serde_json::Error>| value.expect("our own types have string keys and finite numbers");
    let mut documents = BTreeMap::from([
        ("config".to_owned(), json(serde_json::to_value(trainer.model.config()))),
        ("recipe".to_owned(), json(serde_json::to_value(&trainer.recipe))),
        ("state".to_owned(), json(serde_json::to_value(&state))),
    ]);
    if let Some(Rule::Causal(decision)) = rule {
        documents.insert("routing".to_owned(), json(serde_json::to_value(decision)));
    }
    Ok(Snapshot {
        tensors: BTreeMap::from([("weights".to_owned(), weights), ("optimizer".to_owned(), optimizer)]),
        json: documents,
        files: BTreeMap::from([("tokenizer.json".to_owned(), tokenizer.to_vec())]),
    })
}

/// Puts a checkpoint back into a trainer made from the same recipe.
pub(crate) fn restore(trainer: &mut Trainer, loaded: &Loaded, data: &str) -> Result<(), TrainError> {
    let state: State = document(loaded, "state")?;
    let config: ModelConfig = document(loaded, "config")?;
    if config != trainer.recipe.model {
        return refuse(
            loaded,
            "config.json",
            "another model".into(),
            "the model of the recipe; choose another --out".into(),
        );
    }
    if state.data != data {
        return refuse(loaded, "state.data", state.data, format!("{data}, the fingerprint of data.dir"));
    }
    check_router(loaded, &state.router, config.recursions)?;
    let weights = loaded.tensors("weights")?;
    let optimizer = loaded.tensors("optimizer")?;
    let mut expected = Vec::new();
    for (spec, _) in trainer.model.weights() {
        for part in ["first", "second"] {
            expected.push((format!("{part}.{}", spec.name), vec![spec.shape.0, spec.shape.1]));
        }
    }
    optimizer.expect(&expected)?;
    expect_weights(&trainer.model, &weights)?;
    let mut moments = Vec::new();
    for (spec, weight) in trainer.model.weights() {
        weight.write(weights.read_f32(&spec.name)?);
        moments.push(Moments {
            first: optimizer.read_f32(&format!("first.{}", spec.name))?,
            second: optimizer.read_f32(&format!("second.{}", spec.name))?,
        });
    }
    trainer.optimizer.restore(moments, state.updates);
    (trainer.step, trainer.position, trainer.tokens) = (state.step, state.position, state.tokens);
    (trainer.skipped, trainer.skipped_in_a_row, trainer.router) = (state.skipped, state.skipped_in_a_row, state.router);
    Ok(())
}

fn expect_weights(model: &Model, file: &TensorFile) -> Result<(), TrainError> {
    let expected: Vec<_> = model.weights().iter().map(|(s, _)| (s.name.clone(), vec![s.shape.0, s.shape.1])).collect();
    Ok(file.expect(&expected)?)
}

/// Reads the checkpoint at `path`: a step's folder, or the folder of a run, of which the newest undamaged one is taken.
///
/// # Errors
/// Nothing there, damage, or contents that do not fit.
pub fn load_model(path: &Path) -> Result<Stored, TrainError> {
    let loaded = if path.join("manifest.json").is_file() {
        checkpoint::load(path)?
    } else {
        let parent = if path.join("checkpoints").is_dir() { path.join("checkpoints") } else { path.to_path_buf() };
        match checkpoint::newest_valid(&parent)? {
            (Some(loaded), _) => loaded,
            (None, damaged) => {
                let found =
                    damaged.first().map_or("no checkpoint".into(), |d| format!("only damaged ones: {}", d.reason));
                return Err(TrainError::Checkpoint {
                    path: path.to_path_buf(),
                    field: "folder".into(),
                    found,
                    expected: "a folder written by `lathe train`".into(),
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
    let config: ModelConfig = document(loaded, "config")?;
    let plan = config.check()?;
    let weights = loaded.tensors("weights")?;
    // Shapes are compared with the table before anything of the model is allocated.
    let expected: Vec<_> =
        model::spec::specs(&config, &plan).into_iter().map(|s| (s.name, vec![s.shape.0, s.shape.1])).collect();
    weights.expect(&expected)?;
    let model = Model::build(&config, |spec| Ok::<_, TrainError>(weights.read_f32(&spec.name)?))?;
    let rule = match loaded.json.contains_key("routing") {
        true => Some(Rule::Causal(decision(loaded, &config)?)),
        false => None,
    };
    let recipe = if loaded.json.contains_key("recipe") { Some(document(loaded, "recipe")?) } else { None };
    let counters: Option<State> =
        if loaded.json.contains_key("state") { Some(document(loaded, "state")?) } else { None };
    let tokenizer = loaded.files.get("tokenizer.json").cloned();
    let (step, tokens) = counters.as_ref().map_or((0, 0), |s| (s.step, s.tokens));
    let state = counters.map_or_else(RouterState::default, |s| s.router);
    check_router(loaded, &state, config.recursions)?;
    Ok(Stored { model, state, rule, tokenizer, recipe, step, tokens })
}

fn decision(loaded: &Loaded, config: &ModelConfig) -> Result<Decision, TrainError> {
    let decision: Decision = document(loaded, "routing")?;
    let auxiliary = matches!(&config.router, model::RouterConfig::ExpertChoice(c)
        if c.sampling == model::routing::expert_choice::Sampling::AuxRouter);
    if decision.thresholds.len() != config.recursions {
        let found = decision.thresholds.len().to_string();
        return refuse(loaded, "routing.thresholds", found, format!("{} entries", config.recursions));
    }
    if let Some(found) = decision.thresholds.iter().flatten().find(|t| !t.is_finite()) {
        return refuse(loaded, "routing.thresholds", found.to_string(), "finite numbers".into());
    }
    if decision.auxiliary && !auxiliary {
        return refuse(loaded, "routing.auxiliary", "true".into(), "false in a model without auxiliary router".into());
    }
    Ok(decision)
}

/// A list that was never written to is empty, any other has an entry for each recursion.
fn check_router(loaded: &Loaded, state: &RouterState, recursions: usize) -> Result<(), TrainError> {
    for (field, list) in [("state.router.running", &state.running), ("state.router.bias", &state.bias)] {
        if !list.is_empty() && list.len() != recursions {
            return refuse(loaded, field, format!("{} numbers", list.len()), format!("none or {recursions}"));
        }
        if let Some(found) = list.iter().find(|x| !x.is_finite()) {
            return refuse(loaded, field, found.to_string(), "finite numbers".into());
        }
    }
    Ok(())
}

fn document<T: serde::de::DeserializeOwned>(loaded: &Loaded, name: &str) -> Result<T, TrainError> {
    let Some(value) = loaded.json.get(name) else {
        return refuse(loaded, &format!("{name}.json"), "missing".into(), "there".into());
    };
    T::deserialize(value).or_else(|error| {
        refuse(loaded, &format!("{name}.json"), error.to_string(), "what this version of Lathe writes".into())
    })
}

fn refuse<T>(loaded: &Loaded, field: &str, found: String, expected: String) -> Result<T, TrainError> {
    Err(TrainError::Checkpoint { path: loaded.path.clone(), field: field.into(), found, expected })
}
