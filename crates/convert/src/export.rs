//! From a dense checkpoint of ours to a Hugging Face folder or a GGUF file.

use std::path::Path;

use formats::gguf::{self, WeightType};
use formats::hf::{self, Dtype, Extras};
use formats::{ArchConfig, FormatError, Special, TensorRole, TensorSource};
use model::{Model, RouterConfig, Sharing};
use train::Stored;

use crate::error::refused;
use crate::roles::settings_of;
use crate::{ConvertError, roles};

/// Writes the folder `out` that Hugging Face's library loads as a Llama model.
///
/// # Errors
/// A model that is not dense, a checkpoint without tokenizer, `out` holds files, or what the file
/// system refuses.
pub fn export_hugging_face(stored: &Stored, out: &Path, dtype: Dtype) -> Result<(), ConvertError> {
    let dense = Dense::of(stored)?;
    let special = special_of(stored);
    Ok(hf::write(
        out,
        &dense.settings,
        &dense,
        tokenizer_of(stored)?,
        &Extras { dtype, special: &special },
    )?)
}

/// Writes the GGUF file `out` that llama.cpp loads, under the model's `name`.
///
/// # Errors
/// As [`export_hugging_face`]; a tokenizer that the form cannot hold.
pub fn export_gguf(
    stored: &Stored,
    out: &Path,
    weights: WeightType,
    name: &str,
) -> Result<(), ConvertError> {
    let dense = Dense::of(stored)?;
    if out.exists() {
        return refused(out.display().to_string(), "path", "taken", "one where nothing is");
    }
    let special = special_of(stored);
    let export =
        gguf::Export { name, weights, tokenizer: tokenizer_of(stored)?, special: &special };
    Ok(gguf::export(out, &dense.settings, &dense, &export)?)
}

pub(crate) fn tokenizer_of(stored: &Stored) -> Result<&[u8], ConvertError> {
    match &stored.tokenizer {
        Some(bytes) => Ok(bytes),
        None => refused(
            "the checkpoint",
            "tokenizer.json",
            "missing",
            "a tokenizer, which the exported form needs",
        ),
    }
}

/// A run of ours trains with the end-of-text token between documents: its tokenizer alone says
/// which id that is.
fn special_of(stored: &Stored) -> Special {
    let text = stored.text.clone().unwrap_or_default();
    Special {
        bos: text.bos,
        eos: text.eos,
        pad: text.pad,
        chat_template: text.chat_template,
        add_bos: text.add_bos,
    }
}

/// A dense model as weights by role.
struct Dense<'a> {
    model: &'a Model,
    settings: ArchConfig,
}

impl<'a> Dense<'a> {
    fn of(stored: &'a Stored) -> Result<Self, ConvertError> {
        let config = stored.model.config();
        if config.sharing != Sharing::None || config.router != RouterConfig::Fixed {
            let found = format!("{:?} with router \"{}\"", config.sharing, config.router.kind());
            let expected = "a dense model; unroll a recursive one with `lathe convert --sharing none`, or export it in \
                            the form of its own (--format lathe)";
            return refused("the checkpoint", "sharing", found, expected);
        }
        Ok(Self { model: &stored.model, settings: settings_of(config) })
    }
}

impl TensorSource for Dense<'_> {
    fn part(&self, wanted: TensorRole) -> formats::Result<Vec<f32>> {
        for (spec, weight) in self.model.weights() {
            let mut begin = 0;
            for role in roles(&spec.name).unwrap_or_default() {
                let count: usize = role.shape(&self.settings).iter().product();
                if role == wanted {
                    return Ok(weight.read()[begin..begin + count].to_vec());
                }
                begin += count;
            }
        }
        let source = format!("the model has no {wanted}").into();
        Err(FormatError::Part { role: wanted, source })
    }
}
