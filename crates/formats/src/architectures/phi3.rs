//! Phi-3 (Abdin et al. 2024, arXiv:2404.14219): Llama whose queries, keys and values are one
//! matrix, as are gate and up, with heads that may turn in part and a sliding window in every block
//! or none.

use std::path::Path;

use serde_json::{Map, Value};

use crate::hf::rope;
use crate::json::JsonObject;
use crate::{Additions, ArchConfig, LayerRole, Result, RopeScaling, TensorRole};

use super::architecture::{Architecture, HuggingFaceForm};
use super::dense::{self, Defaults};
use super::ggufs;

pub(super) static PHI3: Architecture = Architecture {
    name: "Phi-3",
    holds: |config| {
        let scaling = &config.rope_scaling;
        let known = matches!(scaling, None | Some(RopeScaling::LongRope { .. }));
        dense::holds(config, held(config)) && known
    },
    hugging_face: Some(HuggingFaceForm {
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        read: read_hugging_face,
        write: write_hugging_face,
        tensor,
        banks: None,
        others: &[],
        neighbours_turn: false,
    }),
    gguf: Some(ggufs::form!(GGUF, tensor: gguf_tensor)),
};

/// What GGUF files of it say.
const GGUF: ggufs::Settings = ggufs::Settings {
    prefix: "phi3",
    additions: |_| Additions::default(),
    factors: &[],
    partial_and_window: true,
    experts: None,
};

fn held(config: &ArchConfig) -> Additions {
    let Additions { rotary_share, activation, .. } = config.additions;
    let window = config.additions.window.clone().filter(|w| w.is_everywhere(config.layers));
    Additions { window, rotary_share, activation, ..Additions::default() }
}

/// Roles of one name stand in one tensor, one below the other.
fn tensor(role: TensorRole) -> Option<String> {
    let TensorRole::Layer(layer, of_layer) = role else { return dense::tensor(role) };
    let name = match of_layer {
        LayerRole::Query | LayerRole::Key | LayerRole::Value => "self_attn.qkv_proj",
        LayerRole::Gate | LayerRole::Up => "mlp.gate_up_proj",
        _ => return dense::tensor(role),
    };
    Some(format!("model.layers.{layer}.{name}.weight"))
}

/// The same in GGUF files, where gate and up stand under the name of up.
fn gguf_tensor(role: TensorRole) -> Option<String> {
    let TensorRole::Layer(layer, of_layer) = role else { return ggufs::tensor(role) };
    let name = match of_layer {
        LayerRole::Query | LayerRole::Key | LayerRole::Value => "attn_qkv",
        LayerRole::Gate | LayerRole::Up => "ffn_up",
        _ => return ggufs::tensor(role),
    };
    Some(format!("blk.{layer}.{name}.weight"))
}

/// The class knows one change of the frequencies, whatever of its names it has.
fn read_hugging_face(config: &JsonObject<'_>) -> Result<ArchConfig> {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(inner) = config.inner(key)? else { continue };
        let kind_key = if inner.get("rope_type").is_some() { "rope_type" } else { "type" };
        match inner.string(kind_key)? {
            None | Some("default") => {}
            Some("longrope" | "su") => {
                let original = "original_max_position_embeddings";
                if inner.size(original)?.is_none() {
                    config.must(original, config.size(original)?)?;
                }
            }
            Some(_) => return Err(inner.unsupported(kind_key, "\"default\" or \"longrope\"")),
        }
    }
    // The class has one window for all blocks.
    dense::must_be_null(config, "layer_types")?;
    let share = rope::share(config)?;
    let defaults = Defaults { norm_eps: 1e-5, context: 4096, ..Defaults::LLAMA };
    let mut found = dense::read(config, &defaults, "hidden_act")?;
    found.additions.rotary_share = Some(share).filter(|share| *share != 1.0);
    let size = config.size("sliding_window")?;
    found.additions.window = dense::window(config, size, found.layers, |_| size.is_some())?;
    Ok(found)
}

fn write_hugging_face(_: &Path, config: &ArchConfig) -> Result<Map<String, Value>> {
    let original = match &config.rope_scaling {
        Some(RopeScaling::LongRope { original_context, .. }) => *original_context,
        _ => config.context,
    };
    let own = vec![
        ("embd_pdrop", 0.0.into()),
        ("original_max_position_embeddings", original.into()),
        ("partial_rotary_factor", config.additions.rotary_share.unwrap_or(1.0).into()),
        ("resid_pdrop", 0.0.into()),
        ("sliding_window", dense::window_size(config)),
    ];
    Ok(dense::fields(config, own))
}
