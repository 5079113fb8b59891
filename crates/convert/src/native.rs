//! Our own exported form, for models that no other program knows: `config.json` with the recipe and
//! the sharing map, every weight once in `model.safetensors`, `tokenizer.json`. Where
//! `modeling_lathe.py` knows the model, it is there too, with what else transformers reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::{Disk, FileError, NamedTensor, Snapshot, TensorFile, open_safetensors};
use data::SpecialTokens;
use formats::hf;
use model::params::ParamSpec;
use model::table::specs;
use model::{CausalThresholds, ModelConfig, RouterState, Rule};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use train::{Made, Stored, write_model};

use crate::ConvertError;
use crate::error::{must_be_free, name_of, refused, refused_in};
use crate::export::{special_of, tokenizer_of};
use crate::modeling::{self, Card};

/// `model_type` of a config.json in this form.
const KIND: &str = "lathe";
const TOKENIZER: &str = "tokenizer.json";
const MAX_JSON_BYTES: u64 = 1 << 26;
const MAX_TOKENIZER_BYTES: u64 = 1 << 30;
const EXPORT_AGAIN: &str = "export the model again";

/// What stands in config.json beside the recipe's own fields.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    model_type: String,
    architectures: Vec<String>,
    /// The stored layer that each unrolled layer uses.
    sharing_map: Vec<usize>,
    model: ModelConfig,
    routing: Option<CausalThresholds>,
    #[serde(default)]
    router_state: RouterState,
    #[serde(default)]
    text: SpecialTokens,
    /// Sizes, ids and classes under the names that transformers looks for; empty where it cannot
    /// run the model. An import passes over them.
    #[serde(flatten)]
    of_others: Map<String, Value>,
}

/// Writes the folder `out`: any model of the family, every weight once as f32. Where the code in
/// Python knows the model, it is added, and transformers loads the folder.
///
/// # Errors
/// A checkpoint without tokenizer, a path that is taken, or what the file system refuses.
pub fn export_own(
    stored: &Stored,
    out: &Path,
    card: &Card,
    disk: &dyn Disk,
) -> Result<PathBuf, ConvertError> {
    must_be_free(out)?;
    let special = match modeling::unknown(stored) {
        None => Some(special_of(stored)?),
        Some(_) => None,
    };
    let model = &stored.model;
    let config = Config {
        model_type: KIND.into(),
        architectures: vec!["LatheForCausalLM".into()],
        sharing_map: model.plan().unrolled().map(|u| u.stored).collect(),
        model: model.config().clone(),
        routing: match &stored.rule {
            Some(Rule::Causal(decision)) => Some(decision.clone()),
            _ => None,
        },
        router_state: stored.state.clone(),
        text: stored.text.clone().unwrap_or_default(),
        of_others: special.as_ref().map_or_else(Map::new, |s| modeling::fields(stored, s)),
    };
    let mut files = BTreeMap::from([(TOKENIZER.to_owned(), tokenizer_of(stored)?.to_vec())]);
    if let Some(special) = &special {
        files.extend(modeling::files(stored, card));
        let context = model.config().context;
        files.extend(hf::companions(out, context, tokenizer_of(stored)?, special)?);
    }
    let weights = model.weights().iter().map(|(spec, weight)| NamedTensor {
        name: spec.name.clone(),
        shape: vec![spec.shape.0, spec.shape.1],
        data: weight.read().into(),
    });
    let snapshot = Snapshot {
        tensors: BTreeMap::from([("model".to_owned(), weights.collect())]),
        json: BTreeMap::from([(
            "config".to_owned(),
            serde_json::to_value(&config)
                .expect("our own types have string keys and finite numbers"),
        )]),
        files,
    };
    Ok(checkpoint::save_new(out, &snapshot, disk)?)
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, ConvertError> {
    files::read(path, most).map_err(|e| FileError::new(path, "read", e).into())
}

/// Writes the same folder, which must be one that transformers loads.
///
/// # Errors
/// As [`export_own`], and a model that the code in Python does not know.
pub fn export_with_code(
    stored: &Stored,
    out: &Path,
    card: &Card,
    disk: &dyn Disk,
) -> Result<PathBuf, ConvertError> {
    if let Some(found) = modeling::unknown(stored) {
        let expected = "a model that modeling_lathe.py knows";
        let next = "export it in the form of its own (--format lathe)";
        return refused("the checkpoint: model", expected, found, next);
    }
    export_own(stored, out, card, disk)
}

/// Whether `path` is a folder whose config.json says that it is of this form.
pub(crate) fn is_own(path: &Path) -> bool {
    read_json(&path.join("config.json")).is_ok_and(|value| value["model_type"] == KIND)
}

fn read_json(path: &Path) -> Result<Value, ConvertError> {
    serde_json::from_slice(&read(path, MAX_JSON_BYTES)?)
        .or_else(|e| refused_in(path, "JSON", "a JSON value", e, EXPORT_AGAIN))
}

/// Such a folder whose files agree; its weights are not read yet.
pub(crate) struct OwnFolder {
    path: PathBuf,
    found: Config,
    weights: TensorFile,
    table: Vec<ParamSpec>,
}

impl OwnFolder {
    pub(crate) fn open(path: &Path) -> Result<Self, ConvertError> {
        let file = path.join("config.json");
        let given = read_json(&file)?;
        if let Err(found) = train::model_config(&given["model"]) {
            let expected = "a model that this version of lathe knows";
            return refused_in(&file, "model", expected, found, EXPORT_AGAIN);
        }
        let found = match Config::deserialize(given) {
            Ok(config) => config,
            Err(error) => {
                let expected = "what `lathe export` writes";
                return refused_in(&file, "fields", expected, error, EXPORT_AGAIN);
            }
        };
        let plan = match found.model.check() {
            Ok(plan) => plan,
            Err(error) => {
                let field = format!("model.{}", error.field);
                return refused_in(&file, &field, error.expected, error.found, EXPORT_AGAIN);
            }
        };
        let map: Vec<usize> = plan.unrolled().map(|u| u.stored).collect();
        if map != found.sharing_map {
            let expected = format!("{map:?}, as \"{}\" lays it out", found.model.sharing);
            let map = format!("{:?}", found.sharing_map);
            return refused_in(&file, "sharing_map", expected, map, EXPORT_AGAIN);
        }
        let weights = open_safetensors(&path.join("model.safetensors"))?;
        let table = specs(&found.model, &plan);
        weights.expect(
            &table.iter().map(|s| (s.name.clone(), vec![s.shape.0, s.shape.1])).collect::<Vec<_>>(),
        )?;
        Ok(Self { path: path.to_path_buf(), found, weights, table })
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        &self.found.model
    }

    pub(crate) fn text(&self) -> SpecialTokens {
        self.found.text.clone()
    }

    /// The bytes of its tokenizer.json.
    pub(crate) fn tokenizer(&self) -> Result<Vec<u8>, ConvertError> {
        read(&self.path.join(TOKENIZER), MAX_TOKENIZER_BYTES)
    }

    /// The way back: a checkpoint `out`.
    pub(crate) fn write(
        self,
        out: &Path,
        tokenizer: &[u8],
        disk: &dyn Disk,
    ) -> Result<PathBuf, ConvertError> {
        let Self { path, found, weights, table } = self;
        let tensors: Result<Vec<_>, ConvertError> =
            table.iter().map(|spec| tensor(&weights, &spec.name, spec.shape)).collect();
        let rule = found.routing.map(Rule::Causal);
        let made = Made {
            config: &found.model,
            weights: tensors?,
            rounded: None,
            recipe: None,
            rule: rule.as_ref(),
            state: &found.router_state,
            tokenizer: Some(tokenizer),
            text: Some(&found.text),
            origin: json!({ "made_by": "import", "form": "lathe", "from": name_of(&path) }),
        };
        let path = write_model(out, made, disk)?;
        // What the loader refuses (thresholds, ids) is refused now, not at the first use, and does
        // not stand in the way of a second try.
        if let Err(error) = train::load_model(&path) {
            std::fs::remove_dir_all(&path).map_err(|e| FileError::new(&path, "remove", e))?;
            return Err(error.into());
        }
        Ok(path)
    }
}

fn tensor(
    file: &TensorFile,
    name: &str,
    shape: (usize, usize),
) -> Result<NamedTensor<'static>, ConvertError> {
    let data = file.read_f32(name)?.into();
    Ok(NamedTensor { name: name.to_owned(), shape: vec![shape.0, shape.1], data })
}
