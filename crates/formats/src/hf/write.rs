//! Writes a Hugging Face folder that `transformers` loads.

use std::path::Path;

use checkpoint::{Disk, FolderWriter};
use data::SpecialTokens;
use half::bf16;
use serde_json::{Value, json};

use super::folder::CONFIG;
use super::rounded::{Packed, Targets, packed};
use super::special::TOKENIZER;
use crate::architectures::HuggingFaceForm;
use crate::error::{check_finite, quote};
use crate::layout::{self, StoredTensor};
use crate::writing::{check_count, too_large};
use crate::{
    ArchConfig, Architecture, FormatError, LayerRole, Result, TensorRole, TensorSource, rotary,
};

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HfWeightType {
    /// As the model has them.
    F32,
    /// Rounded to the upper half of a binary32, ties to even.
    Bf16,
}

impl HfWeightType {
    fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The name in safetensors, and the one in config.json.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::F32 => ("F32", "float32"),
            Self::Bf16 => ("BF16", "bfloat16"),
        }
    }
}

/// What goes into a folder beside settings, weights and tokenizer.
#[derive(Debug, Clone, Copy)]
pub struct FolderOptions<'a> {
    /// The architecture as which the model is written.
    pub architecture: &'static Architecture,
    /// How weights are stored.
    pub weights: HfWeightType,
    /// Special ids and chat template.
    pub special: &'a SpecialTokens,
}

const WEIGHTS: &str = "model.safetensors";

/// Writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
/// generation_config.json into a folder that is new or empty. It appears when it is complete.
///
/// # Errors
/// A folder with files in it, settings that no model has, special ids that are not in the
/// vocabulary or the tokenizer, weights of another count than their shape or not finite, or what
/// the file system refuses.
pub fn write(
    folder: &Path,
    settings: &ArchConfig,
    weights: &dyn TensorSource,
    tokenizer: &[u8],
    options: &FolderOptions<'_>,
    disk: &dyn Disk,
) -> Result<()> {
    let architecture = options.architecture;
    let Some(form) = &architecture.hugging_face else {
        let expected = "one that has Hugging Face folders";
        return Err(FormatError::unwritable(folder, "architecture", expected, architecture.name));
    };
    settings.check(folder)?;
    crate::special::check(options.special, folder, settings.vocab)?;
    let companions = companions(folder, settings.context, tokenizer, options.special)?;
    let named: Vec<StoredTensor> =
        layout::tensors(folder, architecture.name, settings, form.holding())
            .collect::<Result<_>>()?;
    let path = folder.join(WEIGHTS);
    let (mut entries, mut targets) = (Vec::new(), Targets::new());
    // Codes are packed once for what the header says and again when they are written, so that those
    // of one matrix are in memory at a time.
    for tensor in &named {
        let packed = packed(&path, tensor, weights, form.neighbours_turn)?;
        targets.add(tensor, packed.as_ref().map(|packed| packed.rounding));
        match packed {
            Some(Packed { entries: of_codes, .. }) => entries.extend(of_codes),
            None => {
                let kind = stored_as(tensor, options.weights).names().0;
                entries.push((tensor.name.clone(), kind, tensor.shape.clone()));
            }
        }
    }
    let config = config(folder, form, settings, options, &targets)?;
    let header = header(&path, &entries)?;
    let mut documents = vec![(TOKENIZER.to_owned(), tokenizer.to_vec())];
    documents.extend(companions);
    documents.push((CONFIG.to_owned(), json_bytes(&config)));
    let mut files = vec![WEIGHTS];
    files.extend(documents.iter().map(|(name, _)| name.as_str()));
    checkpoint::write_folder(folder, &files, disk, |out| {
        write_weights(out, &path, &header, (settings, form), &named, weights, options.weights)?;
        for (name, bytes) in &documents {
            let mut file = out.file(name)?;
            out.append(&mut file, bytes)?;
            out.close(file)?;
        }
        Ok(())
    })
}

/// tokenizer_config.json and generation_config.json, which say what the tokenizer.json of a model
/// with this context leaves open.
///
/// # Errors
/// A tokenizer that is not JSON, or has no token of a special id; `folder` is for the message.
pub fn companions(
    folder: &Path,
    context: usize,
    tokenizer: &[u8],
    special: &SpecialTokens,
) -> Result<[(String, Vec<u8>); 2]> {
    let of_tokenizer = tokenizer_config(folder, context, tokenizer, special)?;
    Ok([
        ("tokenizer_config.json".to_owned(), json_bytes(&of_tokenizer)),
        ("generation_config.json".to_owned(), json_bytes(&generation_config(special))),
    ])
}

fn json_bytes(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// The architecture's fields, and among them those that every architecture has.
fn config(
    folder: &Path,
    form: &HuggingFaceForm,
    settings: &ArchConfig,
    options: &FolderOptions<'_>,
    targets: &Targets,
) -> Result<Value> {
    let mut fields = (form.write)(folder, settings)?;
    fields.insert("architectures".into(), json!([form.class]));
    fields.insert("model_type".into(), form.model_type.into());
    fields.insert("bos_token_id".into(), options.special.bos.into());
    fields.insert("eos_token_id".into(), eos(options.special));
    fields.insert("pad_token_id".into(), options.special.pad.into());
    fields.insert("torch_dtype".into(), options.weights.names().1.into());
    if let Some(quantization) = targets.config() {
        fields.insert("quantization_config".into(), quantization);
    }
    Ok(fields.into())
}

/// One id, a list of them, or null.
fn eos(special: &SpecialTokens) -> Value {
    match special.eos.as_slice() {
        [] => Value::Null,
        [id] => (*id).into(),
        ids => ids.into(),
    }
}

fn generation_config(special: &SpecialTokens) -> Value {
    let fields = [
        ("bos_token_id", special.bos.into()),
        ("eos_token_id", eos(special)),
        ("pad_token_id", special.pad.into()),
    ];
    fields
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// The text of a token: an added one, or one of the vocabulary.
fn token_text(tokenizer: &Value, id: u32) -> Option<String> {
    let mut added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    if let Some(text) = added.find(|token| token["id"] == id).and_then(|t| t["content"].as_str()) {
        return Some(text.to_owned());
    }
    let mut words = tokenizer["model"]["vocab"].as_object()?.iter();
    words.find(|(_, found)| **found == id).map(|(token, _)| token.clone())
}

fn tokenizer_config(
    folder: &Path,
    context: usize,
    tokenizer: &[u8],
    special: &SpecialTokens,
) -> Result<Value> {
    let root: Value = serde_json::from_slice(tokenizer).map_err(|e| {
        FormatError::unwritable(folder, "tokenizer.json: JSON", "a tokenizer", e.to_string())
    })?;
    let mut out = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        // Otherwise some versions add token types, which these models do not take.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
        "add_bos_token": special.add_bos,
    });
    let named = [
        ("bos_token", special.bos),
        ("eos_token", special.eos.first().copied()),
        ("pad_token", special.pad),
    ];
    for (key, id) in named.into_iter().filter_map(|(key, id)| Some((key, id?))) {
        match token_text(&root, id) {
            Some(text) => out[key] = text.into(),
            None => {
                let field = format!("tokenizer.json: {key}");
                let expected = "a token of that id";
                return Err(FormatError::unwritable(folder, field, expected, id.to_string()));
            }
        }
    }
    if let Some(template) = &special.chat_template {
        out["chat_template"] = template.as_str().into();
    }
    Ok(out)
}

/// One safetensors file, a tensor at a time in memory.
fn write_weights(
    out: &FolderWriter<'_>,
    path: &Path,
    header: &[u8],
    (settings, form): (&ArchConfig, &HuggingFaceForm),
    tensors: &[StoredTensor],
    weights: &dyn TensorSource,
    dtype: HfWeightType,
) -> Result<()> {
    let mut file = out.file(WEIGHTS)?;
    out.append(&mut file, header)?;
    for tensor in tensors {
        if let Some(Packed { parts, .. }) = packed(path, tensor, weights, form.neighbours_turn)? {
            for part in parts {
                out.append(&mut file, &part)?;
            }
            continue;
        }
        let StoredTensor { pieces, name, shape } = tensor;
        let dtype = stored_as(tensor, dtype);
        let mut values = vec![0.0; shape.iter().product()];
        for (role, piece) in pieces {
            let of_role = weights.tensor(*role)?;
            check_count(path, name, of_role.len(), &role.shape(settings))?;
            let of_role = rotary::written_order(form.neighbours_turn, *role, settings, of_role);
            piece.put_into(&mut values, &of_role);
        }
        check_finite(path, name, 0, &values)?;
        let mut bytes = Vec::with_capacity(values.len() * dtype.bytes() as usize);
        match dtype {
            HfWeightType::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            HfWeightType::Bf16 => {
                for (index, &x) in values.iter().enumerate() {
                    let rounded = bf16::from_f32(x);
                    if !rounded.is_finite() {
                        return Err(too_large(path, name, index, x, "BF16"));
                    }
                    bytes.extend(rounded.to_le_bytes());
                }
            }
        }
        out.append(&mut file, &bytes)?;
    }
    out.close(file)?;
    Ok(())
}

/// How a tensor is stored in a folder whose weights are of type `dtype`: what is added to the
/// scores of experts decides who is chosen, and the library keeps it whole.
fn stored_as(tensor: &StoredTensor, dtype: HfWeightType) -> HfWeightType {
    let chooses = |role: &TensorRole| matches!(role, TensorRole::Layer(_, LayerRole::ChoiceBias));
    if tensor.pieces.iter().any(|(role, _)| chooses(role)) { HfWeightType::F32 } else { dtype }
}

/// Length prefix and header, padded with blanks to a multiple of 8 bytes.
fn header(path: &Path, entries: &[(String, &'static str, Vec<usize>)]) -> Result<Vec<u8>> {
    // Readers refuse a file whose metadata does not name the layout "pt".
    let mut header = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
    let mut begin = 0_u64;
    for (name, kind, shape) in entries {
        let bytes = match *kind {
            "BF16" => 2,
            "I64" => 8,
            _ => 4,
        };
        let size = shape.iter().try_fold(bytes, |size: u64, &n| size.checked_mul(n as u64));
        let Some(end) = size.and_then(|size| begin.checked_add(size)) else {
            let field = format!("tensor {}", quote(name));
            return Err(FormatError::unwritable(
                path,
                field,
                "less than 2^64 bytes in all",
                format!("{shape:?}"),
            ));
        };
        let entry = json!({"dtype": kind, "shape": shape, "data_offsets": [begin, end]});
        header += &format!(",\"{name}\":{entry}");
        begin = end;
    }
    header.push('}');
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    Ok(bytes)
}
