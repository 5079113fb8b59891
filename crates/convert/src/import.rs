//! From a Hugging Face folder, a GGUF file or a folder written by [`crate::export_own`] to a
//! checkpoint of ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Disk, NamedTensor};
use formats::hf::Folder;
use formats::{ArchConfig, LayerRole, ModelFile, SpecialIds, TensorRole, TensorSource};
use model::params::ParamSpec;
use model::table::{buffers, specs};
use model::{Model, ModelConfig, RouterState};
use serde_json::json;
use train::{Made, SpecialTokens, write_model};

use crate::error::{name_of, refused_in};
use crate::experts::biased_layers;
use crate::roles::{config_of, roles};
use crate::{ConvertError, Costs, native};

/// What an import made.
#[derive(Debug)]
pub struct Imported {
    /// The folder of the checkpoint that was written.
    pub path: PathBuf,
    /// The model of that checkpoint.
    pub config: ModelConfig,
    /// Special ids and chat template.
    pub text: SpecialTokens,
    /// What it holds and costs.
    pub costs: Costs,
}

/// Writes the checkpoint folder `out` from what is at `path`: a Hugging Face folder or a GGUF file
/// of a known architecture, or a folder in our own export form. Weights are
/// kept as f32, dequantised where they were not.
///
/// # Errors
/// A file that is damaged, lies or asks for what the model family does not compute; no tokenizer;
/// `out` is taken.
pub fn import(path: &Path, out: &Path, disk: &dyn Disk) -> Result<Imported, ConvertError> {
    if native::is_own(path) {
        return native::import(path, out, disk);
    }
    let source = ModelFile::open(path)?;
    let config = config_of(source.settings(), path)?;
    let (tokenizer, special) = (source.tokenizer_json()?, source.special()?);
    let text = text_of(special);
    let mut weights = Vec::new();
    for spec in specs(&config, &config.check()?) {
        weights.push(weight(&source, path, spec)?);
    }
    let costs = Costs::of(&config)?;
    let form = match &source {
        ModelFile::HuggingFace(_) => "hugging_face",
        ModelFile::Gguf(_) => "gguf",
    };
    let made = Made {
        config: &config,
        weights,
        rounded: None,
        recipe: None,
        rule: None,
        state: &state_of(&source, source.settings(), &config)?,
        tokenizer: Some(&tokenizer),
        text: Some(&text),
        origin: json!({
            "made_by": "import", "form": form, "from": name_of(path),
            "architecture": source.architecture().name,
        }),
    };
    let path = write_model(out, made, disk)?;
    Ok(Imported { path, config, text, costs })
}

/// A model of others in memory, with the names that its own files give the weights.
#[derive(Debug)]
pub struct ImportedModel {
    /// Its settings and weights as ours.
    pub model: Arc<Model>,
    /// What its routers have learned outside of gradients.
    pub state: RouterState,
    /// What messages call its architecture.
    pub architecture: &'static str,
    names: BTreeMap<String, Vec<Piece>>,
}

/// Numbers of a parameter of ours that stand in a tensor of the file.
#[derive(Debug)]
pub struct Piece {
    /// The name of the tensor.
    pub tensor: String,
    /// Which of its numbers, in the order of ours.
    pub places: Vec<usize>,
}

impl ImportedModel {
    /// Where the numbers of a parameter stand in the file, one stretch behind the other.
    pub fn pieces(&self, parameter: &str) -> &[Piece] {
        self.names.get(parameter).map_or(&[], Vec::as_slice)
    }
}

/// Reads the Hugging Face folder at `path` into memory, without a tokenizer.
///
/// # Errors
/// As [`import()`], but for the tokenizer.
pub fn imported_model(path: &Path) -> Result<ImportedModel, ConvertError> {
    let source = Folder::open(path)?;
    let config = config_of(source.settings(), path)?;
    let architecture = source.architecture();
    let mut names = BTreeMap::new();
    let model = Model::build(&config, |spec| {
        let mut pieces = Vec::new();
        for role in roles(spec, source.settings()).unwrap_or_default() {
            if let Some((tensor, places)) = source.places(role) {
                pieces.push(Piece { tensor, places });
            }
        }
        names.insert(spec.name.clone(), pieces);
        values(&source, source.settings(), path, spec)
    })?;
    let state = state_of(&source, source.settings(), &config)?;
    Ok(ImportedModel { model: Arc::new(model), state, architecture: architecture.name, names })
}

/// What routers add to scores for the choice: buffers of ours, tensors of the file.
fn state_of(
    source: &dyn TensorSource,
    settings: &ArchConfig,
    config: &ModelConfig,
) -> Result<RouterState, ConvertError> {
    let mut state = RouterState::default();
    for (layer, buffer) in biased_layers(settings).into_iter().zip(buffers(config)) {
        let role = TensorRole::Layer(layer, LayerRole::ChoiceBias);
        state.set(&buffer.name, source.tensor(role)?);
    }
    Ok(state)
}

/// A parameter of ours out of the tensors that stand in it.
fn weight(
    source: &ModelFile,
    path: &Path,
    spec: ParamSpec,
) -> Result<NamedTensor<'static>, ConvertError> {
    let data = values(source, source.settings(), path, &spec)?;
    let shape = vec![spec.shape.0, spec.shape.1];
    Ok(NamedTensor { name: spec.name, shape, data: data.into() })
}

/// Its numbers, row after row.
fn values(
    source: &dyn TensorSource,
    settings: &ArchConfig,
    path: &Path,
    spec: &ParamSpec,
) -> Result<Vec<f32>, ConvertError> {
    let mut data = Vec::with_capacity(spec.count());
    for role in roles(spec, settings).unwrap_or_default() {
        data.extend(source.tensor(role)?);
    }
    if data.len() != spec.count() {
        let expected = format!("{} numbers as {:?}", spec.count(), spec.shape);
        let next = "choose a model whose architecture has it";
        return refused_in(path, &spec.name, expected, format!("{} numbers", data.len()), next);
    }
    Ok(data)
}

fn text_of(special: SpecialIds) -> SpecialTokens {
    SpecialTokens {
        bos: special.bos,
        eos: special.eos,
        pad: special.pad,
        add_bos: special.add_bos,
        chat_template: special.chat_template,
    }
}
