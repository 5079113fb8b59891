//! Classes of others that are known by name alone, so that they are refused with the reason.

/// Classes with experts that are known and not computed here, and what they have beside those that
/// are.
pub(super) const REFUSED: [(&str, &str); 23] = [
    ("deepseek_v32", SPARSE),
    ("glm_moe_dsa", SPARSE),
    ("glm4_moe_lite", "a list of dense blocks beside latent attention"),
    ("mistral4", "queries scaled by their position beside latent attention"),
    ("axk1", "a norm on what experts write beside latent attention"),
    ("afmoe", "gates on the results of attention"),
    ("laguna", "gates on the results of attention"),
    ("llama4", "experts whose input is scaled, and attention in chunks"),
    ("llama4_text", "experts whose input is scaled, and attention in chunks"),
    ("dbrx", "LayerNorm without biases, and weights of experts divided by a norm"),
    ("jetmoe", "attention whose heads are experts"),
    ("cohere2_moe", "attention and experts side by side"),
    ("minimax", "linear attention"),
    ("lfm2_moe", "convolutions in place of attention"),
    ("jamba", "state-space layers"),
    ("granitemoehybrid", "state-space layers"),
    ("nemotron_h", "state-space layers"),
    ("qwen3_next", "linear attention"),
    ("switch_transformers", "an encoder, and experts with a capacity"),
    ("nllb_moe", "an encoder, and experts with a capacity"),
    ("kolibri1", "a bias on the logits of experts for the choice"),
    ("flint", "rotary positions by kind of layer beside attention sinks"),
    ("mimo_v2_flash", "values of another width than keys"),
];

const SPARSE: &str = "an index that picks keys beside latent attention";
