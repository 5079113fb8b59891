//! SmolLM3 (Bakouch et al. 2025): Llama with blocks that have no rotary positions, a sliding window
//! in some blocks, and biases if wanted.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, Result};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};

pub(super) static SMOLLM3: Architecture = Architecture {
    name: "SmolLM3",
    holds: |config| dense::holds(config, held(config)),
    hugging_face: Some(HuggingFaceForm {
        model_type: "smollm3",
        class: "SmolLM3ForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor: dense::tensor,
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: None,
};

fn held(config: &ArchConfig) -> Additions {
    let Additions { qkv_bias, mlp_bias, window, without_rotary, activation, .. } =
        config.additions.clone();
    let output_bias = qkv_bias;
    Additions {
        qkv_bias,
        output_bias,
        mlp_bias,
        window,
        without_rotary,
        activation,
        ..Additions::default()
    }
}

fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    dense::must_turn_whole(config)?;
    let defaults =
        Defaults { kv_heads: Some(4), context: 32_768, tied: true, theta: 2e6, ..Defaults::LLAMA };
    let mut found = dense::read(config, &defaults, "hidden_act")?;
    let without = without_rotary(config, found.layers)?;
    found.additions.qkv_bias = config.bool("attention_bias")?.unwrap_or(false);
    found.additions.output_bias = found.additions.qkv_bias;
    found.additions.mlp_bias = config.bool("mlp_bias")?.unwrap_or(false);
    let size = config.size("sliding_window")?;
    let size = size.filter(|_| config.get("use_sliding_window").is_some_and(|x| x == true));
    config.bool("use_sliding_window")?;
    let slides = |block| size.is_some() && without.contains(&block);
    found.additions.window = dense::window(config, size, found.layers, slides)?;
    found.additions.without_rotary = without;
    Ok(found)
}

/// The blocks without rotary positions: those with a 0 in `no_rope_layers`, or without such a list
/// one in `no_rope_layer_interval`.
fn without_rotary(config: &JsonObject<'_>, layers: usize) -> Result<Vec<usize>> {
    const LIST: &str = "no_rope_layers";
    let Some(list) = config.array(LIST)? else {
        let interval = config.size("no_rope_layer_interval")?.unwrap_or(4);
        if interval == 0 {
            return Err(config.wrong("no_rope_layer_interval", "at least 1"));
        }
        let layers = layers.min(1 << 16);
        return Ok((0..layers).filter(|block| (block + 1).is_multiple_of(interval)).collect());
    };
    let flags: Option<Vec<bool>> = list.iter().map(flag).collect();
    match flags {
        // The library asks for at least as many.
        Some(flags) if flags.len() >= layers => {
            Ok((0..layers).filter(|&block| !flags[block]).collect())
        }
        _ => Err(config.wrong(LIST, format!("0 or 1 for each of {layers} layers"))),
    }
}

fn flag(value: &Value) -> Option<bool> {
    value.as_bool().or(match value.as_u64()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    })
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let additions = &config.additions;
    let turns = |block| usize::from(!additions.without_rotary.contains(&block));
    let own = vec![
        ("attention_bias", additions.qkv_bias.into()),
        ("layer_types", dense::layer_types(config)),
        ("mlp_bias", additions.mlp_bias.into()),
        ("no_rope_layers", (0..config.layers).map(turns).collect()),
        ("sliding_window", dense::window_size(config)),
        ("use_sliding_window", additions.window.is_some().into()),
    ];
    Ok(dense::fields(config, own))
}
