//! What a class of dense folders cannot say, or says and is not computed: refused by the name of
//! its field.

use super::common::{byte_tokenizer, medium};
use super::folders::{edit, honest};
use super::memory::scratch;
use formats::ArchConfig;
use formats::hf::Folder;
use serde_json::{Value, json};

/// `model_type`, what is set, and what the message names.
type Case = (&'static str, Value, &'static str);

const CLASSES: [(&str, &str); 11] = [
    ("llama", "LlamaForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("smollm3", "SmolLM3ForCausalLM"),
    ("granite", "GraniteForCausalLM"),
    ("olmo2", "Olmo2ForCausalLM"),
    ("phi3", "Phi3ForCausalLM"),
    ("gemma", "GemmaForCausalLM"),
    ("gemma2", "Gemma2ForCausalLM"),
    ("gemma3_text", "Gemma3ForCausalLM"),
];

fn cases() -> Vec<Case> {
    let sliding = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 1e4 });
    vec![
        ("llama", json!({ "sliding_window": 8 }), "sliding_window"),
        ("mistral", json!({ "sliding_window": -1 }), "sliding_window"),
        ("mistral", json!({ "layer_types": ["full_attention", "full_attention"] }), "layer_types"),
        ("qwen2", json!({ "layer_types": ["full_attention"] }), "layer_types"),
        ("qwen2", json!({ "layer_types": ["full_attention", "chunked"] }), "layer_types[1]"),
        ("qwen2", json!({ "layer_types": ["full_attention", 1] }), "layer_types[1]"),
        (
            "qwen2",
            json!({ "layer_types": ["full_attention", "sliding_attention"] }),
            "sliding_window",
        ),
        ("qwen2", json!({ "use_sliding_window": "yes" }), "use_sliding_window"),
        ("qwen3", json!({ "head_dim": 7 }), "head_dim"),
        ("qwen3", json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor"),
        ("smollm3", json!({ "no_rope_layers": [1] }), "no_rope_layers"),
        ("smollm3", json!({ "no_rope_layers": [1, 2] }), "no_rope_layers"),
        ("smollm3", json!({ "no_rope_layer_interval": 0 }), "no_rope_layer_interval"),
        ("granite", json!({ "attention_multiplier": 0 }), "attention_multiplier"),
        ("granite", json!({ "logits_scaling": 0 }), "logits_scaling"),
        ("granite", json!({ "residual_multiplier": -0.5 }), "residual_multiplier"),
        ("granite", json!({ "embedding_multiplier": "3" }), "embedding_multiplier"),
        ("olmo2", json!({ "rope_scaling": { "rope_type": "static" } }), "rope_scaling.rope_type"),
        (
            "phi3",
            json!({ "rope_scaling": { "type": "longrope", "short_factor": [1.0] } }),
            "original_max_position_embeddings",
        ),
        (
            "phi3",
            json!({
                "original_max_position_embeddings": 8,
                "rope_scaling": {
                    "type": "longrope", "short_factor": [1.0], "long_factor": [1.0],
                },
            }),
            "rope_scaling.short_factor",
        ),
        (
            "olmo2",
            json!({
                "rope_scaling": {
                    "rope_type": "longrope", "short_factor": [1.0], "long_factor": "x",
                },
            }),
            "rope_scaling.long_factor",
        ),
        (
            "olmo2",
            json!({
                "rope_scaling": {
                    "rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 3,
                },
            }),
            "rope_scaling.original_max_position_embeddings",
        ),
        (
            "phi3",
            json!({ "rope_parameters": { "rope_type": "yarn" } }),
            "rope_parameters.rope_type",
        ),
        ("phi3", json!({ "partial_rotary_factor": 0.01 }), "partial_rotary_factor"),
        ("phi3", json!({ "layer_types": ["full_attention", "sliding_attention"] }), "layer_types"),
        (
            "gemma",
            json!({ "hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh" }),
            "hidden_activation",
        ),
        ("gemma", json!({ "hidden_activation": "gelu" }), "hidden_activation"),
        (
            "gemma3_text",
            json!({
                "rope_parameters": { "full_attention": { "rope_type": "linear", "factor": 2.0 } },
                "rope_scaling": { "rope_type": "linear", "factor": 4.0 },
            }),
            "rope_scaling",
        ),
        (
            "qwen2",
            json!({ "rope_theta": 100.0, "rope_scaling": { "rope_theta": 50.0 } }),
            "rope_theta",
        ),
        ("gemma", json!({ "use_bidirectional_attention": true }), "use_bidirectional_attention"),
        ("gemma2", json!({ "query_pre_attn_scalar": 0 }), "query_pre_attn_scalar"),
        ("gemma2", json!({ "attn_logit_softcapping": -1 }), "attn_logit_softcapping"),
        ("gemma2", json!({ "final_logit_softcapping": "30" }), "final_logit_softcapping"),
        ("gemma2", json!({ "sliding_window": null }), "sliding_window"),
        ("gemma3_text", json!({ "attn_logit_softcapping": 30 }), "attn_logit_softcapping"),
        ("gemma3_text", json!({ "sliding_window_pattern": 0 }), "sliding_window_pattern"),
        (
            "gemma3_text",
            json!({ "rope_parameters": { "sliding_attention": sliding } }),
            "rope_type",
        ),
    ]
}

#[test]
fn classes_refuse_what_they_cannot_say_by_name() {
    let of = |model_type: &str| CLASSES.iter().find(|class| class.0 == model_type);
    for (model_type, settings, field) in cases() {
        let folder = scratch();
        let plain = ArchConfig { tied: false, vocab: 270, ..medium() };
        honest(folder.path(), &plain, &byte_tokenizer());
        let (_, class) = of(model_type).expect("a class");
        let config = folder.path().join("config.json");
        edit(&config, &[("model_type", json!(model_type)), ("architectures", json!([class]))]);
        // Fields of the plain model that are another class's.
        edit(&config, &[("hidden_act", Value::Null)]);
        for (key, value) in settings.as_object().expect("fields") {
            edit(&config, &[(key.as_str(), value.clone())]);
        }
        let message = match Folder::open(folder.path()) {
            Ok(_) => panic!("{model_type} {settings}: accepted"),
            Err(error) => error.to_string(),
        };
        assert!(
            message.contains("config.json") && message.contains(field),
            "{model_type} {settings}: {message}"
        );
    }
}
