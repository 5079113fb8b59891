//! From a Hugging Face folder, a GGUF file or a folder written by [`crate::export_own`] to a
//! checkpoint of ours.

use std::path::{Path, PathBuf};

use checkpoint::{Disk, NamedTensor};
use formats::{ModelFile, SpecialIds, TensorSource};
use model::params::ParamSpec;
use model::table::specs;
use model::{ModelConfig, RouterState};
use serde_json::json;
use train::{Made, SpecialTokens, write_model};

use crate::error::{name_of, refused_in};
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

/// Writes the checkpoint folder `out` from what is at `path`: a Hugging Face folder of a Llama
/// model, a GGUF file of the llama architecture, or a folder in our own export form. Weights are
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
        state: &RouterState::default(),
        tokenizer: Some(&tokenizer),
        text: Some(&text),
        origin: json!({ "made_by": "import", "form": form, "from": name_of(path) }),
    };
    let path = write_model(out, made, disk)?;
    Ok(Imported { path, config, text, costs })
}

/// A parameter of ours out of the tensors that stand in it, row after row.
fn weight(
    source: &ModelFile,
    path: &Path,
    spec: ParamSpec,
) -> Result<NamedTensor<'static>, ConvertError> {
    let mut data = Vec::with_capacity(spec.count());
    for role in roles(&spec, source.settings()).unwrap_or_default() {
        data.extend(source.tensor(role)?);
    }
    if data.len() != spec.count() {
        let expected = format!("{} numbers as {:?}", spec.count(), spec.shape);
        let next = "choose a model whose architecture has it";
        return refused_in(path, &spec.name, expected, format!("{} numbers", data.len()), next);
    }
    let shape = vec![spec.shape.0, spec.shape.1];
    Ok(NamedTensor { name: spec.name, shape, data: data.into() })
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
