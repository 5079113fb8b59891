//! Every dense class of Hugging Face folders: settings as the library writes them and tensors under
//! its names, read as the formulas say. What is expected is written here once more, by hand: the
//! config of ours that a class means, and which tensors stand in which of our parameters.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use checkpoint::{RealDisk, open_safetensors};
use common::{fixture, logits};
use convert::{GgufWeightType, HfWeightType, export_gguf, export_hugging_face, import};
use model::Rule;
use reference::{Decide, Decision, Matrix, Settings, forward};
use serde_json::{Map, Value, json};
use train::load_model;

const LAYERS: usize = 3;
const WIDTH: usize = 24;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 6;
const FFN: usize = 20;
const VOCAB: usize = 262;

/// What tensors a class has beside Llama's.
#[derive(Clone, Copy, Default)]
struct Tensors {
    qkv_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
    /// Width of the norms of queries and keys, in heads; 0 for none, 1 for one a head.
    head_norms: (usize, usize),
    /// Norms on what joins the stream, in place of those ahead, or with them.
    after: bool,
    before: bool,
    fused: bool,
    tied: bool,
}

const LLAMA: Tensors = Tensors {
    qkv_bias: false,
    output_bias: false,
    mlp_bias: false,
    head_norms: (0, 0),
    after: false,
    before: true,
    fused: false,
    tied: false,
};

struct Class {
    model_type: &'static str,
    class: &'static str,
    /// Beside the sizes that all have.
    config: Value,
    /// What it means in a config of ours, beside the sizes.
    means: Value,
    tensors: Tensors,
}

fn class(model_type: &'static str, class: &'static str, config: Value, means: Value) -> Class {
    Class { model_type, class, config, means, tensors: LLAMA }
}

/// One folder or more of every class.
fn classes() -> Vec<Class> {
    [llamas(), qwens(), others(), gemmas()].into_iter().flatten().collect()
}

/// A group of our config with `settings` over its defaults.
fn over(mut defaults: Value, settings: Value) -> Value {
    merge(&mut defaults, &settings);
    defaults
}

fn attention(settings: Value) -> Value {
    let defaults = json!({
        "bias": false, "output_bias": false, "query_key_norm": "none", "clip": 0.0, "sinks": false,
        "window": 0,
        "window_layers": "all", "scale": 0.0, "soft_cap": 0.0,
        "kv_rank": 0, "query_rank": 0, "rope_dim": 0, "value_dim": 0, "latent_scale": 1.0,
    });
    over(defaults, settings)
}

fn rotary(settings: Value) -> Value {
    let defaults = json!({
        "share": 1.0, "layers": "all", "scaling": { "kind": "none" }, "window_theta": 0.0,
    });
    over(defaults, settings)
}

fn multipliers(settings: Value) -> Value {
    let defaults =
        json!({ "embedding": 1.0, "residual": 1.0, "logits_divisor": 1.0, "logit_cap": 0.0 });
    over(defaults, settings)
}

/// Llama and Mistral: biases, rescaled frequencies, a window everywhere.
fn llamas() -> Vec<Class> {
    let biased = Tensors { qkv_bias: true, output_bias: true, mlp_bias: true, ..LLAMA };
    vec![
        Class {
            tensors: biased,
            ..class(
                "llama",
                "LlamaForCausalLM",
                json!({
                    "attention_bias": true, "mlp_bias": true, "hidden_act": "gelu",
                    "rope_parameters": {
                        "rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0,
                        "original_max_position_embeddings": 8, "mscale": 0.5,
                        "mscale_all_dim": 0.9,
                    },
                }),
                json!({
                    "rope_theta": 500.0,
                    "attention": attention(json!({ "bias": true, "output_bias": true })),
                    "rotary": rotary(json!({ "scaling": {
                        "kind": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                        "original_context": 8, "attention_factor": 0.0, "mscale": 0.5,
                        "mscale_all_dim": 0.9, "truncate": true,
                    } })),
                    "mlp": { "kind": "dense", "activation": "gelu", "bias": true },
                }),
            )
        },
        class(
            "llama",
            "LlamaForCausalLM",
            json!({
                "rope_theta": 1000.0,
                "rope_scaling": {
                    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 3.0, "original_max_position_embeddings": 12,
                },
            }),
            json!({
                "rope_theta": 1000.0,
                "rotary": rotary(json!({ "scaling": {
                    "kind": "llama3", "factor": 4.0, "low": 1.0, "high": 3.0,
                    "original_context": 12,
                } })),
            }),
        ),
        class(
            "mistral",
            "MistralForCausalLM",
            json!({ "sliding_window": 5, "rope_scaling": { "type": "linear", "factor": 3.0 } }),
            json!({
                "attention": attention(json!({ "window": 5 })),
                "rotary": rotary(json!({ "scaling": { "kind": "linear", "factor": 3.0 } })),
            }),
        ),
    ]
}

/// Qwen2, Qwen3 and SmolLM3: windows in some blocks, norms of heads, blocks without positions.
fn qwens() -> Vec<Class> {
    vec![
        Class {
            tensors: Tensors { qkv_bias: true, ..LLAMA },
            ..class(
                "qwen2",
                "Qwen2ForCausalLM",
                json!({
                    "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1,
                    "attention_bias": false,
                }),
                json!({
                    "attention": attention(json!({
                        "bias": true, "window": 4, "window_layers": [1, 2],
                    })),
                }),
            )
        },
        Class {
            tensors: Tensors { head_norms: (1, 1), qkv_bias: true, output_bias: true, ..LLAMA },
            ..class(
                "qwen3",
                "Qwen3ForCausalLM",
                json!({
                    "attention_bias": true, "use_sliding_window": true, "sliding_window": 3,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                }),
                json!({
                    "attention": attention(json!({
                        "bias": true, "output_bias": true, "query_key_norm": "head", "window": 3,
                        "window_layers": [0, 2],
                    })),
                }),
            )
        },
        Class {
            tensors: Tensors { tied: true, ..LLAMA },
            ..class(
                "smollm3",
                "SmolLM3ForCausalLM",
                json!({ "no_rope_layer_interval": 2, "use_sliding_window": true,
                        "sliding_window": 4, "tie_word_embeddings": true }),
                json!({
                    "rope_theta": 2e6,
                    "attention": attention(json!({ "window": 4, "window_layers": [1] })),
                    "rotary": rotary(json!({ "layers": [0, 2] })),
                }),
            )
        },
    ]
}

/// Granite, OLMo 2 and Phi-3: factors, norms in another place, fused tensors.
fn others() -> Vec<Class> {
    vec![
        class(
            "granite",
            "GraniteForCausalLM",
            json!({
                "attention_multiplier": 0.3, "embedding_multiplier": 5.0, "logits_scaling": 7.0,
                "residual_multiplier": 0.6,
            }),
            json!({
                "attention": attention(json!({ "scale": 0.3 })),
                "multipliers": multipliers(json!({
                    "embedding": 5.0, "residual": 0.6, "logits_divisor": 7.0,
                })),
            }),
        ),
        Class {
            tensors: Tensors { head_norms: (HEADS, KV_HEADS), after: true, before: false, ..LLAMA },
            ..class(
                "olmo2",
                "Olmo2ForCausalLM",
                json!({ "rms_norm_eps": 1e-3 }),
                json!({
                    "norm_eps": 1e-3,
                    "attention": attention(json!({ "query_key_norm": "width" })),
                    "norms": { "place": "after", "plus_one": false },
                }),
            )
        },
        Class {
            tensors: Tensors { fused: true, ..LLAMA },
            ..class(
                "phi3",
                "Phi3ForCausalLM",
                json!({ "partial_rotary_factor": 0.7, "sliding_window": 6 }),
                json!({
                    "attention": attention(json!({ "window": 6 })),
                    "rotary": rotary(json!({ "share": 0.7 })),
                }),
            )
        },
        Class {
            tensors: Tensors { fused: true, ..LLAMA },
            ..class(
                "phi3",
                "Phi3ForCausalLM",
                json!({
                    "max_position_embeddings": 640, "original_max_position_embeddings": 48,
                    "rope_scaling": {
                        "type": "su", "short_factor": [1.0, 1.25, 1.5],
                        "long_factor": [1.0, 9.5, 20.0],
                    },
                }),
                json!({
                    "context": 48,
                    "rotary": rotary(json!({ "scaling": {
                        "kind": "longrope", "short_factor": [1.0, 1.25, 1.5],
                        "long_factor": [1.0, 9.5, 20.0],
                        "original_context": 48, "long_context": 640,
                        "attention_factor": 0.0,
                    } })),
                }),
            )
        },
        Class {
            tensors: Tensors { head_norms: (1, 1), ..LLAMA },
            ..class(
                "qwen3",
                "Qwen3ForCausalLM",
                json!({ "rope_scaling": { "rope_type": "dynamic", "factor": 4.0 } }),
                json!({
                    "attention": attention(json!({ "query_key_norm": "head" })),
                    "rotary": rotary(json!({ "scaling": {
                        "kind": "dynamic", "factor": 4.0, "original_context": 64,
                    } })),
                }),
            )
        },
    ]
}

/// The three generations of Gemma.
fn gemmas() -> Vec<Class> {
    let both = Tensors { after: true, tied: true, ..LLAMA };
    let root = (WIDTH as f64).sqrt();
    vec![
        Class {
            tensors: Tensors { tied: true, ..LLAMA },
            ..class(
                "gemma",
                "GemmaForCausalLM",
                json!({ "hidden_activation": null, "hidden_act": "gelu_pytorch_tanh" }),
                json!({
                    "norms": { "place": "before", "plus_one": true },
                    "multipliers": multipliers(json!({ "embedding": root })),
                    "mlp": { "kind": "dense", "activation": "gelu_tanh" },
                }),
            )
        },
        // The first files: "gelu" there is the tanh form.
        Class {
            tensors: Tensors { tied: true, ..LLAMA },
            ..class(
                "gemma",
                "GemmaForCausalLM",
                json!({ "hidden_act": "gelu",
                        "rope_scaling": { "rope_type": "default", "rope_theta": 50.0 } }),
                json!({
                    "rope_theta": 50.0,
                    "norms": { "place": "before", "plus_one": true },
                    "multipliers": multipliers(json!({ "embedding": root })),
                    "mlp": { "kind": "dense", "activation": "gelu_tanh" },
                }),
            )
        },
        Class {
            tensors: both,
            ..class(
                "gemma2",
                "Gemma2ForCausalLM",
                json!({
                    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
                    "query_pre_attn_scalar": 16, "sliding_window": 4,
                }),
                json!({
                    "attention": attention(json!({
                        "window": 4, "window_layers": [0, 2], "scale": 0.25, "soft_cap": 2.0,
                    })),
                    "norms": { "place": "both", "plus_one": true },
                    "multipliers": multipliers(json!({ "embedding": root, "logit_cap": 3.0 })),
                    "mlp": { "kind": "dense", "activation": "gelu_tanh" },
                }),
            )
        },
        gemma3(json!({
            "rope_local_base_freq": 100.0, "rope_theta": 5000.0,
            "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
        })),
        // New and old fields beside each other: what the new ones leave out, the old ones say.
        gemma3(json!({
            "rope_theta": 5000.0, "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
            "rope_parameters": {
                "full_attention": { "rope_type": "default" },
                "sliding_attention": { "rope_type": "default", "rope_theta": 100.0 },
            },
        })),
    ]
}

/// Gemma 3 with these positions, all of one meaning.
fn gemma3(positions: Value) -> Class {
    let mut config = json!({
        "query_pre_attn_scalar": 4, "sliding_window": 4, "sliding_window_pattern": 3,
    });
    merge(&mut config, &positions);
    Class {
        tensors: Tensors { head_norms: (1, 1), after: true, tied: true, ..LLAMA },
        ..class(
            "gemma3_text",
            "Gemma3ForCausalLM",
            config,
            json!({
                "rope_theta": 5000.0,
                "attention": attention(json!({
                    "query_key_norm": "head", "window": 4, "window_layers": [0, 1],
                    "scale": 0.5,
                })),
                "rotary": rotary(json!({
                    "scaling": { "kind": "linear", "factor": 8.0 }, "window_theta": 100.0,
                })),
                "norms": { "place": "both", "plus_one": true },
                "multipliers": multipliers(json!({ "embedding": (WIDTH as f64).sqrt() })),
                "mlp": { "kind": "dense", "activation": "gelu_tanh" },
            }),
        )
    }
}

/// Writes `top` over `base`.
fn merge(base: &mut Value, top: &Value) {
    for (key, value) in top.as_object().expect("a table") {
        base[key] = value.clone();
    }
}

/// Tensors of the file: name, shape, and the parameter of ours in which they stand, one behind the
/// other.
fn tensors(of: Tensors) -> Vec<(String, Vec<usize>, String)> {
    let (q, k) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut all: Vec<(String, Vec<usize>, String)> = Vec::new();
    let mut add =
        |name: String, shape: &[usize], ours: String| all.push((name, shape.to_vec(), ours));
    add("model.embed_tokens.weight".into(), &[VOCAB, WIDTH], "embed".into());
    for layer in 0..LAYERS {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let ours = |part: &str| format!("layers.{layer}.{part}");
        let ahead = match of.after {
            true => "pre_feedforward_layernorm.weight",
            false => "post_attention_layernorm.weight",
        };
        if of.before {
            add(at("input_layernorm.weight"), &[WIDTH], ours("attention_norm.0"));
            add(at(ahead), &[WIDTH], ours("ffn_norm.0"));
        }
        if of.after {
            let name = at("post_attention_layernorm.weight");
            add(name, &[WIDTH], ours("attention_after_norm.0"));
            let name = at("post_feedforward_layernorm.weight");
            add(name, &[WIDTH], ours("ffn_after_norm.0"));
        }
        if !of.fused {
            add(at("self_attn.q_proj.weight"), &[q, WIDTH], ours("query"));
            add(at("self_attn.k_proj.weight"), &[k, WIDTH], ours("key_value"));
            add(at("self_attn.v_proj.weight"), &[k, WIDTH], ours("key_value"));
            add(at("mlp.gate_proj.weight"), &[FFN, WIDTH], ours("gate_up"));
            add(at("mlp.up_proj.weight"), &[FFN, WIDTH], ours("gate_up"));
        } else {
            let two = format!("{}+{}", ours("query"), ours("key_value"));
            add(at("self_attn.qkv_proj.weight"), &[q + 2 * k, WIDTH], two);
            add(at("mlp.gate_up_proj.weight"), &[2 * FFN, WIDTH], ours("gate_up"));
        }
        add(at("self_attn.o_proj.weight"), &[WIDTH, q], ours("output"));
        add(at("mlp.down_proj.weight"), &[WIDTH, FFN], ours("down"));
        if of.qkv_bias {
            add(at("self_attn.q_proj.bias"), &[q], ours("query_bias"));
            add(at("self_attn.k_proj.bias"), &[k], ours("key_value_bias"));
            add(at("self_attn.v_proj.bias"), &[k], ours("key_value_bias"));
        }
        if of.output_bias {
            add(at("self_attn.o_proj.bias"), &[WIDTH], ours("output_bias"));
        }
        if of.mlp_bias {
            add(at("mlp.gate_proj.bias"), &[FFN], ours("gate_up_bias"));
            add(at("mlp.up_proj.bias"), &[FFN], ours("gate_up_bias"));
            add(at("mlp.down_proj.bias"), &[WIDTH], ours("down_bias"));
        }
        if of.head_norms.0 > 0 {
            let (queries, keys) = of.head_norms;
            add(at("self_attn.q_norm.weight"), &[queries * HEAD_DIM], ours("query_norm.0"));
            add(at("self_attn.k_norm.weight"), &[keys * HEAD_DIM], ours("key_norm.0"));
        }
    }
    add("model.norm.weight".into(), &[WIDTH], "norm".into());
    if !of.tied {
        add("lm_head.weight".into(), &[VOCAB, WIDTH], "head".into());
    }
    all
}

/// Numbers between -0.4 and 0.4, the same for the same name.
fn numbers(name: &str, count: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(11_u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.4
    };
    (0..count).map(|_| next()).collect()
}

/// Writes the folder of a class.
fn write(folder: &Path, class: &Class) {
    fs::create_dir_all(folder).expect("a folder");
    let mut config = json!({
        "architectures": [class.class], "model_type": class.model_type, "vocab_size": VOCAB,
        "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": FFN,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": class.tensors.tied,
    });
    merge(&mut config, &class.config);
    fs::write(folder.join("config.json"), config.to_string()).expect("writes");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(fixture("tied").join(name), folder.join(name)).expect("copies");
    }
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape, _) in tensors(class.tensors) {
        let begin = data.len();
        for x in numbers(&name, shape.iter().product()) {
            data.extend(x.to_le_bytes());
        }
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] });
        header.insert(name, entry);
    }
    let header = Value::from(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(folder.join("model.safetensors"), bytes).expect("writes");
}

/// The config of ours that a class means.
fn meant(class: &Class) -> Value {
    let mut config = json!(model::ModelConfig {
        vocab_size: VOCAB,
        width: WIDTH,
        layers: LAYERS,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        ffn: FFN,
        context: 64,
        tie_embeddings: class.tensors.tied,
        sharing: model::Sharing::None,
        recursions: 1,
        router: model::RouterConfig::FIXED,
        ..Default::default()
    });
    merge(&mut config, &class.means);
    config
}

/// The parameters that the file's tensors make up.
fn matrices(of: Tensors) -> BTreeMap<String, Matrix> {
    let mut stacked: BTreeMap<String, (Vec<f32>, usize)> = BTreeMap::new();
    for (name, shape, ours) in tensors(of) {
        let values = numbers(&name, shape.iter().product());
        // A vector is one row; queries stand ahead of keys and values in a tensor of both.
        let columns = if shape.len() == 1 { 0 } else { shape[1] };
        let queries = HEADS * HEAD_DIM * columns;
        let cut = if ours.contains('+') { queries } else { values.len() };
        let (first, second) = values.split_at(cut);
        for (part, values) in ours.split('+').zip([first, second]) {
            let entry = stacked.entry(part.to_owned()).or_insert((Vec::new(), columns));
            entry.0.extend_from_slice(values);
        }
    }
    let matrix = |(values, columns): (Vec<f32>, usize)| {
        let columns = if columns == 0 { values.len() } else { columns };
        Matrix::of(&values, values.len() / columns, columns)
    };
    stacked.into_iter().map(|(name, entry)| (name, matrix(entry))).collect()
}

#[test]
fn every_class_computes_what_its_formulas_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let ids = testkit::tokens(3, 0, VOCAB, 14);
    for (number, class) in classes().iter().enumerate() {
        let (from, to) =
            (folder.path().join(format!("{number}")), folder.path().join(format!("{number}-in")));
        write(&from, class);
        let made = import(&from, &to, &RealDisk).unwrap_or_else(|e| panic!("{}: {e}", class.class));
        let stored = load_model(&made.path).expect("opens");
        assert_eq!(json!(stored.model.config()), meant(class), "{}", class.class);
        let decision = Decision {
            decide: Decide::Training,
            step: 0,
            die: &|_, _| 0.0,
            bias: &[],
            expert_bias: &[],
        };
        let settings = Settings::of(meant(class));
        let expected = forward(&settings, &matrices(class.tensors), &ids, decision).logits;
        let found = logits(&stored.model, &Rule::NonCausal, &ids);
        let largest = expected.iter().flatten().fold(1.0f64, |most, z| most.max(z.abs()));
        for (found, expected) in found.iter().zip(expected.iter().flatten()) {
            let apart = (f64::from(*found) - expected).abs();
            assert!(apart < 1e-5 * largest, "{} {number}: {found} {expected}", class.class);
        }
    }
}

#[test]
fn every_class_goes_out_as_it_came() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut held = std::collections::BTreeSet::new();
    for (number, class) in classes().iter().enumerate() {
        let at = |name: &str| folder.path().join(format!("{number}-{name}"));
        write(&at("from"), class);
        let stored = load_model(&import(&at("from"), &at("in"), &RealDisk).expect("reads").path);
        let stored = stored.expect("opens");
        export_hugging_face(&stored, &at("out"), HfWeightType::F32, &RealDisk).expect(class.class);
        let config = fs::read_to_string(at("out").join("config.json")).expect("there");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        assert_eq!(config["model_type"], class.model_type);
        assert_eq!(config["architectures"], json!([class.class]));
        let files = ["from", "out"]
            .map(|name| open_safetensors(&at(name).join("model.safetensors")).expect("opens"));
        let [mut before, mut after] = files.each_ref().map(|file| file.names().collect::<Vec<_>>());
        before.sort_unstable();
        after.sort_unstable();
        assert_eq!(before, after, "{}", class.class);
        for name in before {
            assert_eq!(files[0].shape(name), files[1].shape(name), "{name}");
            let [a, b] = files.each_ref().map(|file| file.read_f32(name).expect("reads"));
            assert!(a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits())), "{name}");
        }
        let back = load_model(&import(&at("out"), &at("back"), &RealDisk).expect("reads").path);
        let back = back.expect("opens");
        assert_eq!(back.model.config(), stored.model.config(), "{}", class.class);
        // What a GGUF file says comes back as it was; of the rest one thing is named.
        if let Err(error) = export_gguf(&stored, &at("x.gguf"), GgufWeightType::F32, "x") {
            let error = error.to_string();
            assert!(error.contains("architecture") || error.contains("rope_scaling"), "{error}");
            continue;
        }
        held.insert(class.model_type);
        let back = load_model(&import(&at("x.gguf"), &at("gguf"), &RealDisk).expect("reads").path);
        let back = back.expect("opens");
        let ids = testkit::tokens(3, 0, VOCAB, 14);
        let [a, b] = [&stored, &back].map(|of| logits(&of.model, &Rule::NonCausal, &ids));
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "{} {number}: {a} {b}", class.class);
        }
    }
    // The others have windows or biases here, which no file says.
    assert!(held.iter().eq(&["gemma", "granite", "olmo2"]), "{held:?}");
}
