//! A second architecture, for tests alone: Llama's arithmetic under other names of settings and
//! tensors, with the other rotary order in GGUF files. That it is read and written by a line in the
//! list shows that nothing else knows an architecture.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::gguf::file::Gguf;
use crate::gguf::keys::{SettingKeys, u32_setting};
use crate::gguf::write::GgufSettings;
use crate::json::JsonObject;
use crate::{Additions, ArchConfig, Result, TensorRole};

use super::architecture::{Architecture, GgufForm, HuggingFaceForm};

pub(super) static RENAMED: Architecture = Architecture {
    name: "Renamed",
    holds: |_| false,
    hugging_face: Some(HuggingFaceForm {
        model_type: "renamed",
        class: "RenamedModel",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: |role| Some(tensor("decoder", role)),
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: Some(GgufForm {
        architecture: "renamed",
        read: read_gguf,
        write: write_gguf,
        tensor: |role| Some(tensor("d", role)),
        banks: None,
        neighbours_turn: false,
        gains_with_one: false,
        held: |_| Additions::default(),
        holds: |_| false,
    }),
};

fn tensor(prefix: &str, role: TensorRole) -> String {
    match role {
        TensorRole::Layer(layer, role) => format!("{prefix}/{layer}/{role:?}"),
        other => format!("{prefix}/{other:?}"),
    }
}

/// Our name of a size, and the key in both forms of file.
fn sizes(config: &mut ArchConfig) -> [(&'static str, &mut usize); 8] {
    [
        ("words", &mut config.vocab),
        ("columns", &mut config.width),
        ("blocks", &mut config.layers),
        ("queries", &mut config.heads),
        ("keys", &mut config.kv_heads),
        ("head", &mut config.head_dim),
        ("inner", &mut config.ffn),
        ("longest", &mut config.context),
    ]
}

fn empty() -> ArchConfig {
    ArchConfig {
        vocab: 0,
        width: 0,
        layers: 0,
        heads: 0,
        kv_heads: 0,
        head_dim: 0,
        ffn: 0,
        rope_theta: 1e4,
        norm_eps: 1e-5,
        context: 0,
        tied: false,
        rope_scaling: None,
        additions: Additions::default(),
        experts: None,
    }
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    let mut found = empty();
    for (key, size) in sizes(&mut found) {
        *size = config.must(key, config.size(key)?)?;
    }
    found.tied = config.must("one_matrix", config.bool("one_matrix")?)?;
    found.norm_eps = config.must("tiny", config.number("tiny")?)?;
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    for (key, size) in sizes(&mut config.clone()) {
        fields.insert(key.into(), json!(*size));
    }
    fields.insert("one_matrix".into(), config.tied.into());
    fields.insert("tiny".into(), config.norm_eps.into());
    Ok(fields)
}

fn read_gguf(gguf: &Gguf) -> Result<ArchConfig> {
    let keys = SettingKeys::new(gguf.metadata(), "renamed");
    let mut found = empty();
    for (key, size) in sizes(&mut found) {
        *size = keys.must_size(key)?;
    }
    found.tied = gguf.tensor(&tensor("d", TensorRole::Head)).is_err();
    Ok(found)
}

fn write_gguf(path: &Path, config: &ArchConfig) -> Result<GgufSettings> {
    sizes(&mut config.clone())
        .into_iter()
        .map(|(key, size)| u32_setting(path, "renamed", key, *size))
        .collect()
}
