//! From a Hugging Face folder, a GGUF file or a folder written by [`crate::export_own`] to a
//! checkpoint of ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Disk, NamedTensor};
use data::SpecialTokens;
use formats::hf::Folder;
use formats::{ArchConfig, LayerRole, ModelFile, TensorRole, TensorSource};
use model::params::ParamSpec;
use model::table::{buffers, specs};
use model::{Model, ModelConfig, RouterState};
use serde_json::json;
use train::{Made, write_model};

use crate::error::{name_of, refused_in};
use crate::experts::biased_layers;
use crate::roles::{config_of, roles};
use crate::{ConvertError, Costs, native, tokenizer};

/// What an import made.
#[derive(Debug)]
pub struct Imported {
    /// The folder of the checkpoint that was written.
    pub path: PathBuf,
    /// The model of that checkpoint.
    pub config: ModelConfig,
    /// Special ids and chat template.
    pub text: SpecialTokens,
    /// Added tokens that were left out of the tokenizer, as the model has no row for their ids.
    pub left_out: Vec<String>,
    /// What it holds and costs.
    pub costs: Costs,
}

/// Writes the checkpoint folder `out` from what is at `path`: a Hugging Face folder or a GGUF file
/// of a known architecture, or a folder in our own export form. Weights are
/// kept as f32, dequantised where they were not.
///
/// # Errors
/// As [`Foreign::open`] and [`Foreign::write`].
pub fn import(path: &Path, out: &Path, disk: &dyn Disk) -> Result<Imported, ConvertError> {
    Foreign::open(path)?.write(out, disk)
}

/// Whether what is at `path` is for [`import()`] and no checkpoint: a GGUF file, a folder in our
/// own export form, or one with the config.json of a Hugging Face model.
pub fn is_foreign(path: &Path) -> bool {
    if !path.is_dir() {
        return formats::gguf::has_magic(path).unwrap_or(false);
    }
    let has = |name: &str| path.join(name).symlink_metadata().is_ok();
    native::is_own(path)
        || has("config.json") && !has("manifest.json") && !has("weights.safetensors")
}

/// A model of others whose files agree with each other and with its tokenizer. Its weights are not
/// read yet.
pub struct Foreign {
    path: PathBuf,
    files: Files,
    config: ModelConfig,
    text: ForeignText,
}

/// Its files, by their form.
enum Files {
    Theirs(Box<ModelFile>),
    Ours(Box<native::OwnFolder>),
}

/// The text side of a model of others.
#[derive(Debug)]
pub struct ForeignText {
    /// The text of a tokenizer.json all of whose ids the model has.
    pub tokenizer: Vec<u8>,
    /// Special ids and chat template.
    pub special: SpecialTokens,
    /// Added tokens that were left out of the tokenizer, as the model has no row for their ids.
    pub left_out: Vec<String>,
}

impl Foreign {
    /// Opens what is at `path`; see [`import()`].
    ///
    /// # Errors
    /// A file that is damaged, lies or asks for what the model family does not compute; no
    /// tokenizer, or one that does not belong to the model.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        let (files, config, tokenizer, special) = if native::is_own(path) {
            let folder = native::OwnFolder::open(path)?;
            let (tokenizer, special) = (folder.tokenizer()?, folder.text());
            let config = folder.config().clone();
            (Files::Ours(Box::new(folder)), config, tokenizer, special)
        } else {
            let source = ModelFile::open(path)?;
            let config = config_of(source.settings(), path)?;
            let (tokenizer, special) = (source.tokenizer_json()?, source.special()?);
            (Files::Theirs(Box::new(source)), config, tokenizer, special)
        };
        let (tokenizer, left_out) = tokenizer::fitting(path, tokenizer, config.vocab_size)?;
        let text = ForeignText { tokenizer, special, left_out };
        Ok(Self { path: path.to_path_buf(), files, config, text })
    }

    /// The model's settings as ours.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tokenizer, special ids and chat template.
    pub fn text(&self) -> &ForeignText {
        &self.text
    }

    /// Writes the checkpoint folder `out`.
    ///
    /// # Errors
    /// Weights that cannot be read, or that no model has; `out` is taken, or the disk refuses.
    pub fn write(self, out: &Path, disk: &dyn Disk) -> Result<Imported, ConvertError> {
        let Self { path, files, config, text } = self;
        let path = match files {
            Files::Ours(folder) => folder.write(out, &text.tokenizer, disk)?,
            Files::Theirs(source) => write(&source, &path, &config, &text, out, disk)?,
        };
        let costs = Costs::of(&config)?;
        Ok(Imported { path, config, text: text.special, left_out: text.left_out, costs })
    }
}

fn write(
    source: &ModelFile,
    path: &Path,
    config: &ModelConfig,
    text: &ForeignText,
    out: &Path,
    disk: &dyn Disk,
) -> Result<PathBuf, ConvertError> {
    let mut weights = Vec::new();
    for spec in specs(config, &config.check()?) {
        weights.push(weight(source, path, spec)?);
    }
    let form = match source {
        ModelFile::HuggingFace(_) => "hugging_face",
        ModelFile::Gguf(_) => "gguf",
    };
    let made = Made {
        config,
        weights,
        rounded: None,
        recipe: None,
        rule: None,
        state: &state_of(source, source.settings(), config)?,
        tokenizer: Some(&text.tokenizer),
        text: Some(&text.special),
        origin: json!({
            "made_by": "import", "form": form, "from": name_of(path),
            "architecture": source.architecture().name,
        }),
    };
    Ok(write_model(out, made, disk)?)
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
        let expected = format!("{} x {} numbers", spec.shape.0, spec.shape.1);
        let next = "choose a model whose architecture has it";
        return refused_in(path, &spec.name, expected, format!("{} numbers", data.len()), next);
    }
    Ok(data)
}
