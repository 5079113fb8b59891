//! Writes a Hugging Face folder that `transformers` loads.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::bf16;
use serde_json::{Value, json};

use super::folder::CONFIG;
use super::special::TOKENIZER;
use crate::error::{check_finite, quote};
use crate::gguf::{beside, check_count, too_large};
use crate::{ArchConfig, FormatError, Result, RopeScaling, Special, TensorRole, TensorSource};

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// Exact.
    F32,
    /// Rounded to the upper half of a binary32, ties to even.
    Bf16,
}

impl Dtype {
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
pub struct Extras<'a> {
    /// How weights are stored.
    pub dtype: Dtype,
    /// Special ids and chat template.
    pub special: &'a Special,
}

/// Writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
/// generation_config.json into a folder that is new or empty; config.json last, so that a folder
/// that has one is complete.
///
/// # Errors
/// A folder with files in it, settings that no model has, special ids that are not in the
/// vocabulary or the tokenizer, weights of another count than their shape or not finite, or what
/// the file system refuses.
pub fn write(
    folder: &Path,
    settings: &ArchConfig,
    parts: &dyn TensorSource,
    tokenizer: &[u8],
    extras: &Extras<'_>,
) -> Result<()> {
    settings.check(folder)?;
    extras.special.check(folder, settings.vocab)?;
    let tokenizer_config = tokenizer_config(folder, settings, tokenizer, extras.special)?;
    std::fs::create_dir_all(folder).map_err(|e| FormatError::io(folder, "create", e))?;
    let mut entries = std::fs::read_dir(folder).map_err(|e| FormatError::io(folder, "list", e))?;
    if entries.next().is_some() {
        return Err(FormatError::unwritable(folder, "folder", "a new or empty one", "files in it"));
    }
    write_weights(&folder.join("model.safetensors"), settings, parts, extras.dtype)?;
    write_file(&folder.join(TOKENIZER), tokenizer)?;
    write_json(&folder.join("tokenizer_config.json"), &tokenizer_config)?;
    write_json(&folder.join("generation_config.json"), &generation_config(extras.special))?;
    write_json(&folder.join(CONFIG), &config(settings, extras))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(|e| FormatError::io(path, "create", e))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| FormatError::io(path, "write", e))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_file(path, format!("{value:#}\n").as_bytes())
}

fn config(s: &ArchConfig, extras: &Extras<'_>) -> Value {
    let scaling = match s.rope_scaling {
        None => Value::Null,
        Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
        Some(RopeScaling::Llama3 { factor, low, high, original_context }) => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original_context,
        }),
    };
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": extras.special.bos,
        "eos_token_id": eos(extras.special),
        "pad_token_id": extras.special.pad,
        "head_dim": s.head_dim,
        "hidden_act": "silu",
        "hidden_size": s.width,
        "initializer_range": 0.02,
        "intermediate_size": s.ffn,
        "max_position_embeddings": s.context,
        "mlp_bias": false,
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "rms_norm_eps": s.norm_eps,
        "rope_scaling": scaling,
        "rope_theta": s.rope_theta,
        "tie_word_embeddings": s.tied,
        "torch_dtype": extras.dtype.names().1,
        "use_cache": true,
        "vocab_size": s.vocab,
    })
}

/// One id, a list of them, or null.
fn eos(special: &Special) -> Value {
    match special.eos.as_slice() {
        [] => Value::Null,
        [id] => (*id).into(),
        ids => ids.into(),
    }
}

fn generation_config(special: &Special) -> Value {
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

fn tokenizer_config(
    folder: &Path,
    settings: &ArchConfig,
    tokenizer: &[u8],
    special: &Special,
) -> Result<Value> {
    let bad = |field: &str, expected: &str, found: String| {
        Err(FormatError::unwritable(folder, format!("tokenizer.json: {field}"), expected, found))
    };
    let root: Value = match serde_json::from_slice(tokenizer) {
        Ok(root) => root,
        Err(e) => return bad("JSON", "a tokenizer", e.to_string()),
    };
    let text = |id: u32| {
        let added =
            root["added_tokens"].as_array().into_iter().flatten().find(|token| token["id"] == id);
        let words = || {
            root["model"]["vocab"]
                .as_object()?
                .iter()
                .find(|(_, found)| **found == id)
                .map(|(token, _)| token.as_str())
        };
        added.and_then(|token| token["content"].as_str()).or_else(words).map(str::to_owned)
    };
    let mut out = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "model_max_length": settings.context,
        "add_bos_token": special.add_bos,
    });
    let named = [
        ("bos_token", special.bos),
        ("eos_token", special.eos.first().copied()),
        ("pad_token", special.pad),
    ];
    for (key, id) in named.into_iter().filter_map(|(key, id)| Some((key, id?))) {
        match text(id) {
            Some(text) => out[key] = text.into(),
            None => return bad(key, "a token of that id", id.to_string()),
        }
    }
    if let Some(template) = &special.chat_template {
        out["chat_template"] = template.as_str().into();
    }
    Ok(out)
}

/// One safetensors file, a tensor at a time in memory, written beside its place.
fn write_weights(
    path: &Path,
    settings: &ArchConfig,
    parts: &dyn TensorSource,
    dtype: Dtype,
) -> Result<()> {
    let beside = beside(path)?;
    let io = |e| FormatError::io(&beside, "write", e);
    let mut file = BufWriter::new(File::create(&beside).map_err(io)?);
    file.write_all(&header(path, settings, dtype)?).map_err(io)?;
    for role in TensorRole::all(settings) {
        let (name, values) = (role.hf_name(), parts.part(role)?);
        check_count(path, &name, values.len(), &role.shape(settings))?;
        check_finite(path, &name, &values)?;
        let mut bytes = Vec::with_capacity(values.len() * dtype.bytes() as usize);
        match dtype {
            Dtype::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            Dtype::Bf16 => {
                for (index, &x) in values.iter().enumerate() {
                    let rounded = bf16::from_f32(x);
                    if !rounded.is_finite() {
                        return Err(too_large(path, &name, index, x, "BF16"));
                    }
                    bytes.extend(rounded.to_le_bytes());
                }
            }
        }
        file.write_all(&bytes).map_err(io)?;
    }
    file.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)?;
    std::fs::rename(&beside, path).map_err(|e| FormatError::io(path, "rename", e))
}

/// Length prefix and header, padded with blanks to a multiple of 8 bytes.
fn header(path: &Path, settings: &ArchConfig, dtype: Dtype) -> Result<Vec<u8>> {
    // Readers refuse a file whose metadata does not name the layout "pt".
    let mut header = String::from("{\"__metadata__\":{\"format\":\"pt\"}");
    let mut begin = 0_u64;
    for role in TensorRole::all(settings) {
        let (name, shape) = (role.hf_name(), role.shape(settings));
        let size = shape.iter().try_fold(dtype.bytes(), |size, &n| size.checked_mul(n as u64));
        let Some(end) = size.and_then(|size| begin.checked_add(size)) else {
            let field = format!("tensor {}", quote(&name));
            return Err(FormatError::unwritable(
                path,
                field,
                "less than 2^64 bytes in all",
                format!("{shape:?}"),
            ));
        };
        let entry = json!({"dtype": dtype.names().0, "shape": shape, "data_offsets": [begin, end]});
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
