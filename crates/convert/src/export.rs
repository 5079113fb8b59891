//! From a dense checkpoint of ours to a Hugging Face folder or a GGUF file.

use std::ops::Range;
use std::path::Path;

use checkpoint::Disk;
use data::SpecialTokens;
use formats::gguf::{self, GgufOptions, GgufWeightType};
use formats::hf::{self, FolderOptions, HfWeightType};
use formats::{
    ArchConfig, Architecture, FormatError, LayerRole, RoundedRows, Rounding, TensorRole,
    TensorSource,
};
use half::f16;
use model::params::ParamSpec;
use model::{Model, ModelConfig, RotaryScaling, RouterConfig, RouterState, Sharing};
use ops::{Element, Weight};
use serde_json::Value;
use train::Stored;

use crate::error::{must_be_free, refused};
use crate::experts::{biased_layers, experts_of};
use crate::roles::{roles, settings_of};
use crate::words::mlp_in_words;
use crate::{ConvertError, tokenizer};

/// Writes the folder `out` that Hugging Face's library loads: as a model of the class that it was
/// imported from, or of the first known one that computes the same. Matrices of layers that are
/// rounded go out in their codes, as compressed-tensors packs them.
///
/// # Errors
/// A model that is not dense, a checkpoint without tokenizer, `out` holds files, or what the file
/// system refuses.
pub fn export_hugging_face(
    stored: &Stored,
    out: &Path,
    weights: HfWeightType,
    disk: &dyn Disk,
) -> Result<(), ConvertError> {
    let dense = Dense::of(stored, false)?;
    let special = special_of(stored)?;
    let options = FolderOptions { architecture: dense.architecture, weights, special: &special };
    Ok(hf::write(out, &dense.settings, &dense, tokenizer_of(stored)?, &options, disk)?)
}

/// Whether a class of Hugging Face's library holds the model.
pub fn has_class(stored: &Stored) -> bool {
    Dense::of(stored, false).is_ok()
}

/// The architecture as which a GGUF file holds the model, if one does.
pub(crate) fn gguf_form(stored: &Stored) -> Option<(ArchConfig, &'static Architecture)> {
    let dense = Dense::of(stored, true).ok()?;
    Some((dense.settings, dense.architecture))
}

/// Writes the GGUF file `out` that llama.cpp loads, under the model's `name`.
///
/// # Errors
/// As [`export_hugging_face`]; a tokenizer that the form cannot hold.
pub fn export_gguf(
    stored: &Stored,
    out: &Path,
    weights: GgufWeightType,
    name: &str,
) -> Result<(), ConvertError> {
    let dense = Dense::of(stored, true)?;
    must_be_free(out)?;
    let special = special_of(stored)?;
    let options = GgufOptions {
        architecture: dense.architecture,
        name,
        weights,
        tokenizer: tokenizer_of(stored)?,
        special: &special,
    };
    Ok(gguf::export(out, &dense.settings, &dense, &options)?)
}

pub(crate) fn tokenizer_of(stored: &Stored) -> Result<&[u8], ConvertError> {
    match &stored.tokenizer {
        Some(bytes) => Ok(bytes),
        None => {
            let expected = "a tokenizer, which the exported form needs";
            let next = "train or import with a tokenizer";
            refused("the checkpoint: tokenizer.json", expected, "no such file", next)
        }
    }
}

/// What the model says about text. A run that began here ends its documents with the tokenizer's
/// end of text, which other programs are told as an id.
pub(crate) fn special_of(stored: &Stored) -> Result<SpecialTokens, ConvertError> {
    if let Some(text) = &stored.text {
        return Ok(text.clone());
    }
    let path = Path::new("the checkpoint");
    Ok(SpecialTokens::of(None, &tokenizer::built(path, tokenizer_of(stored)?)?))
}

/// The architecture as which the model was imported, or that which it was converted from.
fn read_as(origin: &Value) -> Option<&str> {
    let own = origin.get("architecture").and_then(Value::as_str);
    own.or_else(|| origin.get("source").and_then(read_as))
}

/// A dense model as weights by role.
struct Dense<'a> {
    model: &'a Model,
    state: &'a RouterState,
    settings: ArchConfig,
    architecture: &'static Architecture,
}

impl<'a> Dense<'a> {
    /// The model in a form of file: GGUF or a Hugging Face folder.
    fn of(stored: &'a Stored, gguf: bool) -> Result<Self, ConvertError> {
        let config = stored.model.config();
        if config.sharing != Sharing::None || config.router != RouterConfig::FIXED {
            let found = format!("\"{}\" with router \"{}\"", config.sharing, config.router.kind());
            let next = "unroll a recursive one with `lathe convert --sharing none`, or export it \
                        in the form of its own (--format lathe)";
            return refused("the checkpoint: sharing", "a dense model", found, next);
        }
        constant_rates(config)?;
        let settings = settings_of(config);
        // An MLP whose matrices have known names may still compute something else with them.
        if experts_of(config) == Some(None) {
            let next = "export the model in the form of its own (--format lathe)";
            let found = mlp_in_words(&config.mlp);
            let expected = "a dense MLP, or experts that a router by scores chooses, one router \
                            for all uses, a linear one, whose groups count their two best";
            return refused("the checkpoint: mlp", expected, found, next);
        }
        for (spec, _) in stored.model.weights() {
            must_have_role(spec, &settings)?;
        }
        let origin = stored.origin.as_ref().and_then(read_as);
        match Architecture::that_holds(&settings, gguf, origin) {
            Some(architecture) => {
                let (model, state) = (&*stored.model, &stored.state);
                Ok(Self { model, state, settings, architecture })
            }
            None => {
                let form = if gguf { "GGUF files" } else { "Hugging Face folders" };
                let expected = format!("a model that one of the architectures of {form} holds");
                let other = Architecture::that_holds(&settings, !gguf, origin);
                let lacking = other.and_then(|other| other.beyond_gguf(&settings));
                let lacking =
                    lacking.or_else(|| settings.additions.beyond(&formats::Additions::default()));
                let found = match lacking {
                    Some(addition) => addition,
                    None => other.map_or("a combination that none has", |other| other.name),
                };
                let next = "export it in the form of its own (--format lathe)";
                refused("the checkpoint: architecture", expected, found, next)
            }
        }
    }
}

/// Refuses rates of a context beyond the original one: in files of others the length of a text
/// decides on them, and short texts would be given others.
fn constant_rates(config: &ModelConfig) -> Result<(), ConvertError> {
    let original = match &config.rotary.scaling {
        RotaryScaling::Dynamic(of) => of.original_context,
        RotaryScaling::LongRope(of) => of.original_context,
        _ => return Ok(()),
    };
    if config.context <= original {
        return Ok(());
    }
    let kind = config.rotary.scaling.kind();
    let expected = format!("at most its original_context = {original} with \"{kind}\"");
    let next = "export it in the form of its own (--format lathe)";
    refused("the checkpoint: context", expected, config.context, next)
}

/// Refuses a parameter that would be left out, as no tensor of the exported form is made of it.
fn must_have_role(spec: &ParamSpec, settings: &ArchConfig) -> Result<(), ConvertError> {
    if roles(spec, settings).is_some() {
        return Ok(());
    }
    let what = format!("the checkpoint: parameter \"{}\"", spec.name);
    let found = format!("one of {} x {} numbers", spec.shape.0, spec.shape.1);
    let next = "export the model in the form of its own (--format lathe)";
    refused(what, "a weight that a plain Llama model has", found, next)
}

impl Dense<'_> {
    /// What a router has learned to add to the scores for the choice; zeros before it has.
    fn choice_bias(&self, layer: usize) -> Vec<f32> {
        let buffers = model::table::buffers(self.model.config());
        let mut of_layers = biased_layers(&self.settings).into_iter().zip(buffers);
        let found = of_layers.find(|(of, _)| *of == layer);
        found.map_or(Vec::new(), |(_, buffer)| match self.state.get(&buffer.name) {
            Some(bias) => bias.to_vec(),
            None => vec![0.0; buffer.length],
        })
    }
}

impl TensorSource for Dense<'_> {
    fn tensor(&self, wanted: TensorRole) -> formats::Result<Vec<f32>> {
        if let TensorRole::Layer(layer, LayerRole::ChoiceBias) = wanted {
            return Ok(self.choice_bias(layer));
        }
        if matches!(wanted, TensorRole::Layer(_, role) if role.is_unused()) {
            return Ok(vec![0.0; wanted.shape(&self.settings).iter().product()]);
        }
        for (spec, weight) in self.model.weights() {
            let mut begin = 0;
            for role in roles(spec, &self.settings).unwrap_or_default() {
                let count: usize = role.shape(&self.settings).iter().product();
                if role == wanted {
                    return Ok(weight.read()[begin..begin + count].to_vec());
                }
                begin += count;
            }
        }
        let source = format!("the model has no {wanted}").into();
        Err(FormatError::Weights { role: wanted, source })
    }

    fn rounded(&self, wanted: TensorRole) -> formats::Result<Option<RoundedRows>> {
        // Embedding and head are numbers in the files, those that their codes stand for.
        if matches!(wanted, TensorRole::Embed | TensorRole::Head) {
            return Ok(None);
        }
        for (spec, weight) in self.model.weights().iter().filter(|(_, w)| w.format().is_some()) {
            let mut begin = 0;
            for role in roles(spec, &self.settings).unwrap_or_default() {
                let count: usize = role.shape(&self.settings).iter().product();
                if role == wanted && self.settings.experts.is_some() {
                    let source = "rounded weights of a model with experts: only those of dense \
                                  models are packed; export the f32 checkpoint"
                        .into();
                    return Err(FormatError::Weights { role, source });
                }
                if role == wanted {
                    let d = spec.shape.1;
                    let rows = begin / d..(begin + count) / d;
                    return rounded_rows(weight, d, rows)
                        .map_err(|source| FormatError::Weights { role, source: source.into() });
                }
                begin += count;
            }
        }
        Ok(None)
    }
}

/// Rows of a rounded matrix of `d` columns as codes around zero with their scales; `None` for one
/// whose values are its codes. Otherwise says what other programs do not hold.
fn rounded_rows(
    weight: &Weight,
    d: usize,
    rows: Range<usize>,
) -> Result<Option<RoundedRows>, String> {
    let (Some(format), Some(bytes)) = (weight.format(), weight.parts()) else { return Ok(None) };
    let listed = format.stored_parts(weight.shape().0, d).map_err(|error| error.to_string())?;
    let part = |suffix: &str| {
        let at = listed.iter().position(|part| part.suffix == suffix)?;
        Some((&listed[at], bytes.get(at)?))
    };
    let Some((scales, halves)) = part(".scales") else { return Ok(None) };
    let (Some((codes, of_codes)), None) = (part(""), part(".mins")) else {
        return Err(format!(
            "rounded to {format}, whose groups have minima: compressed-tensors holds int8, \
             int8-g64, int8-row, int4-sym and int4-sym-g64; round the f32 checkpoint so"
        ));
    };
    let unit = part(".unit").and_then(|(_, bytes)| bytes.first_chunk()).copied();
    let unit = unit.map_or(1.0, f32::from_le_bytes);
    let (groups, width) = (scales.shape[1], codes.shape[1]);
    let bits = if codes.element == Element::I8 { 8 } else { 4 };
    let size = [32, 64].into_iter().find(|size| groups > 1 && d.div_ceil(*size) == groups);
    let mut made = RoundedRows {
        rounding: Rounding { bits, group: size },
        codes: Vec::with_capacity(rows.len() * d),
        scales: Vec::with_capacity(rows.len() * groups),
    };
    for row in rows {
        let of_row = &of_codes[row * width..(row + 1) * width];
        made.codes.extend((0..d).map(|j| match bits {
            8 => of_row[j] as i8,
            _ => (of_row[j / 2] >> (j % 2 * 4) & 15) as i8 - 8,
        }));
        let of_row = &halves[2 * row * groups..2 * (row + 1) * groups];
        let halves = of_row.as_chunks().0.iter();
        made.scales.extend(halves.map(|half| f16::from_le_bytes(*half).to_f32() * unit));
    }
    Ok(Some(made))
}

#[cfg(test)]
mod tests {
    use model::ModelConfig;
    use model::params::{ParamPlace, Part};
    use model::table::specs;

    use super::*;

    #[test]
    fn what_would_be_left_out_is_refused_by_name() {
        let config = ModelConfig {
            vocab_size: 10,
            sharing: Sharing::None,
            recursions: 1,
            layers: 2,
            router: RouterConfig::FIXED,
            ..ModelConfig::default()
        };
        let table = specs(&config, &config.check().expect("legal"));
        let settings = settings_of(&config);
        for spec in &table {
            must_have_role(spec, &settings).unwrap_or_else(|error| panic!("{error}"));
        }
        for name in ["experts", "memory"] {
            let place = ParamPlace::Layer { stored: 1, part: Part::new(name) };
            let spec = ParamSpec { name: place.to_string(), place, ..table[0].clone() };
            let error = must_have_role(&spec, &settings).expect_err(name).to_string();
            assert!(error.contains(&format!("\"layers.1.{name}\"")), "{error}");
        }
    }
}
