//! Folders of models with experts, each with one lie: counts and groups that no model has, experts
//! that are missing or too many, banks that disagree, and settings that change the routing of
//! another class.

use super::common::{byte_tokenizer, medium, special};
use super::memory::scratch;
use checkpoint::open_safetensors;
use formats::architectures::ALL;
use formats::hf::{Folder, FolderOptions, HfWeightType, write};
use formats::{
    Additions, ArchConfig, ClampedProduct, ExpertScores, Experts, HeadNorm, LatentAttention,
    SlidingWindow, TensorRole, TensorSource,
};
use serde_json::{Map, Value, json};
use std::path::Path;

fn plain() -> Experts {
    Experts { count: 6, top_k: 2, width: 8, ..Experts::default() }
}

const DEEP: &str = "DeepSeek-V3";
const CAT: &str = "LongCat-Flash";
const LATENT: LatentAttention = LatentAttention {
    query: 6,
    key_value: 5,
    turned: 4,
    value: 3,
    scale: 1.0,
    neighbours_turn: true,
};

/// The classes of the cases below, by their names in messages.
fn settings(class: &str) -> ArchConfig {
    let base = ArchConfig { tied: false, vocab: 270, width: 16, ffn: 8, ..medium() };
    let none = Additions::default();
    let (experts, additions) = match class {
        "Mixtral" => (plain(), none),
        "Qwen3-MoE" => {
            let dense = vec![0];
            let additions = Additions { query_key_norm: HeadNorm::Head, ..none };
            (Experts { dense, normalize: false, ..plain() }, additions)
        }
        "dots.llm1" => {
            let of = Experts {
                dense: vec![0],
                shared: 16,
                scoring: ExpertScores::Sigmoid,
                choice_bias: true,
                groups: 3,
                top_groups: 2,
                scale: 2.0,
                ..plain()
            };
            (of, Additions { query_key_norm: HeadNorm::Head, ..none })
        }
        "GPT-OSS" => {
            let of = Experts {
                logit_bias: true,
                biases: true,
                clamp: Some(ClampedProduct { limit: 7.0, alpha: 1.7 }),
                ..plain()
            };
            let window = Some(SlidingWindow { size: 5, blocks: vec![0] });
            let additions =
                Additions { qkv_bias: true, output_bias: true, sinks: true, window, ..none };
            (of, additions)
        }
        "Phi-3.5-MoE" => {
            let scoring = ExpertScores::SparseMixer { jitter: 0.01 };
            let biases = Additions { qkv_bias: true, output_bias: true, ..none };
            let additions = Additions { layer_norm: true, head_bias: true, ..biases };
            (Experts { scoring, ..plain() }, additions)
        }
        "ERNIE 4.5" => {
            let of = Experts { shared: 16, choice_bias: true, least: 1e-12, ..plain() };
            let biases = Additions { qkv_bias: true, output_bias: true, mlp_bias: true, ..none };
            (Experts { dense: vec![0], ..of }, Additions { head_bias: true, ..biases })
        }
        "Granite-MoE with a shared expert" => {
            let additions = Additions { score_scale: Some(0.2), ..none };
            (Experts { shared: 12, ..plain() }, additions)
        }
        DEEP => {
            let of = Experts {
                dense: vec![0],
                shared: 16,
                scoring: ExpertScores::Sigmoid,
                choice_bias: true,
                groups: 3,
                top_groups: 2,
                scale: 2.0,
                ..plain()
            };
            (of, Additions { latent: Some(LATENT), ..none })
        }
        CAT => {
            let of = Experts {
                dense: vec![0],
                identity: 2,
                shortcut: true,
                choice_bias: true,
                normalize: false,
                ..plain()
            };
            let scale = (16.0 / 5.0f64).sqrt();
            let score_scale = Some(1.0 / 8f64.sqrt() * 2.0);
            let latent = Some(LatentAttention { query: 4, scale, ..LATENT });
            (of, Additions { latent, score_scale, ..none })
        }
        other => panic!("no settings of {other}"),
    };
    let kv_heads = if additions.latent.is_some() { base.heads } else { base.kv_heads };
    ArchConfig { experts: Some(experts), additions, kv_heads, ..base }
}

fn honest(path: &Path, class: &str) {
    let settings = settings(class);
    let architecture = ALL.iter().find(|member| member.name == class).unwrap();
    let special = special();
    let options = FolderOptions { architecture, weights: HfWeightType::F32, special: &special };
    let values = |role: TensorRole| Ok(vec![0.5; role.shape(&settings).iter().product()]);
    write(path, &settings, &values, &byte_tokenizer(), &options, &checkpoint::RealDisk).unwrap();
}

fn read_all(path: &Path) -> formats::Result<()> {
    let folder = Folder::open(path)?;
    for role in TensorRole::all(folder.settings()) {
        folder.tensor(role)?;
    }
    Ok(())
}

type Lie = Box<dyn Fn(&Path)>;

/// Sets a field of config.json; null takes it out.
fn set(key: &'static str, value: Value) -> Lie {
    Box::new(move |folder| {
        let path = folder.join("config.json");
        let mut root: Map<String, Value> =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        match value.is_null() {
            true => drop(root.remove(key)),
            false => drop(root.insert(key.into(), value.clone())),
        }
        std::fs::write(&path, Value::from(root).to_string()).unwrap();
    })
}

/// One lie behind another.
fn both(first: Lie, second: Lie) -> Lie {
    Box::new(move |folder| {
        first(folder);
        second(folder);
    })
}

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// Changes the list of tensors.
fn tensors(change: impl Fn(&mut Tensors) + 'static) -> Lie {
    Box::new(move |folder| {
        let path = folder.join("model.safetensors");
        let file = open_safetensors(&path).unwrap();
        let mut all: Tensors = file
            .names()
            .map(|name| {
                let shape = file.shape(name).unwrap().to_vec();
                (name.to_owned(), shape, file.read_f32(name).unwrap())
            })
            .collect();
        change(&mut all);
        let (mut header, mut bytes) = (Map::new(), Vec::new());
        for (name, shape, values) in all {
            let begin = bytes.len();
            bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            let offsets = [begin, bytes.len()];
            header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
        }
        let header = Value::from(header).to_string();
        let mut whole = (header.len() as u64).to_le_bytes().to_vec();
        whole.extend(header.as_bytes());
        whole.extend(bytes);
        std::fs::write(&path, whole).unwrap();
    })
}

fn without(end: &'static str) -> Lie {
    tensors(move |all| all.retain(|(name, ..)| !name.ends_with(end)))
}

fn with(name: &'static str, shape: &'static [usize]) -> Lie {
    tensors(move |all| {
        all.push((name.into(), shape.to_vec(), vec![1.0; shape.iter().product()]));
    })
}

fn reshaped(end: &'static str, shape: &'static [usize]) -> Lie {
    tensors(move |all| {
        let found = all.iter_mut().find(|(name, ..)| name.ends_with(end)).unwrap();
        found.1 = shape.to_vec();
        found.2 = vec![1.0; shape.iter().product()];
    })
}

fn not_a_number(end: &'static str) -> Lie {
    tensors(move |all| {
        let found = all.iter_mut().find(|(name, ..)| name.ends_with(end)).unwrap();
        found.2[3] = f32::NAN;
    })
}

/// Puts the tensors into two shards; `change` may lie about the map of names to shards, and cut the
/// second file to so many bytes, at most half of it.
fn in_shards(change: impl Fn(&mut Map<String, Value>) -> Option<usize> + 'static) -> Lie {
    Box::new(move |folder| {
        let whole = folder.join("model.safetensors");
        let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let mut map = Map::new();
        for (shard, name) in names.iter().enumerate() {
            std::fs::copy(&whole, folder.join("all.safetensors")).unwrap();
            tensors(move |all| {
                let mut i = 0;
                all.retain(|_| {
                    i += 1;
                    i % 2 == shard
                });
            })(folder);
            let file = open_safetensors(&whole).unwrap();
            map.extend(file.names().map(|tensor| (tensor.to_owned(), json!(name))));
            std::fs::rename(&whole, folder.join(name)).unwrap();
            std::fs::rename(folder.join("all.safetensors"), &whole).unwrap();
        }
        std::fs::remove_file(&whole).unwrap();
        if let Some(length) = change(&mut map) {
            let path = folder.join(names[1]);
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..length.min(bytes.len() / 2)]).unwrap();
        }
        let index = json!({ "metadata": {}, "weight_map": map });
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    })
}

/// A class, what is wrong, the lie, and what the message must name: file, field, value.
type Case = (&'static str, &'static str, Lie, &'static [&'static str]);

fn cases() -> Vec<Case> {
    let (mixtral, qwen, dots, oss) = ("Mixtral", "Qwen3-MoE", "dots.llm1", "GPT-OSS");
    let granite = "Granite-MoE with a shared expert";
    vec![
        (mixtral, "no experts", set("num_local_experts", json!(0)), &["experts", "found 0"]),
        (mixtral, "no count", set("num_local_experts", Value::Null), &["num_experts"]),
        (mixtral, "a count of words", set("num_local_experts", json!("six")), &["six"]),
        (mixtral, "too many", set("num_local_experts", json!(1 << 20)), &["1048576"]),
        (mixtral, "one fewer", set("num_local_experts", json!(5)), &["experts.5"]),
        (mixtral, "one more", set("num_local_experts", json!(7)), &["experts.6.w1", "missing"]),
        (mixtral, "two counts", set("num_experts", json!(4)), &["num_local_experts", "found 6"]),
        (mixtral, "k of 0", set("num_experts_per_tok", json!(0)), &["takes", "found 0"]),
        (mixtral, "k above", set("num_experts_per_tok", json!(7)), &["takes", "1 to 6", "7"]),
        (mixtral, "half a k", set("num_experts_per_tok", json!(1.5)), &["num_experts_per_tok"]),
        (mixtral, "raw weights", set("norm_topk_prob", json!(false)), &["norm_topk_prob", "false"]),
        (mixtral, "noise", set("router_jitter_noise", json!(0.1)), &["router_jitter_noise"]),
        (mixtral, "sigmoid", set("scoring_func", json!("sigmoid")), &["scoring_func", "sigmoid"]),
        (mixtral, "groups", set("n_group", json!(2)), &["n_group", "found 2"]),
        (mixtral, "a scale", set("routed_scaling_factor", json!(2.5)), &["routed_scaling_factor"]),
        (mixtral, "a shared one", set("n_shared_experts", json!(1)), &["n_shared_experts"]),
        (mixtral, "a capacity", set("expert_capacity", json!(64)), &["expert_capacity"]),
        (mixtral, "a soft cap", set("moe_router_logit_softcapping", json!(30.0)), &["softcapping"]),
        (mixtral, "zero experts", set("zero_expert_num", json!(2)), &["zero_expert_num"]),
        (mixtral, "dense first", set("first_k_dense_replace", json!(1)), &["first_k_dense"]),
        (mixtral, "a clamp", set("swiglu_limit", json!(7.0)), &["swiglu_limit"]),
        (mixtral, "another product", set("hidden_act", json!("gelu")), &["hidden_act", "gelu"]),
        (mixtral, "minus loss", set("router_aux_loss_coef", json!(-1.0)), &["balance loss", "-1"]),
        (mixtral, "an expert less", without("0.block_sparse_moe.experts.3.w2.weight"), &["3.w2"]),
        (
            mixtral,
            "an expert more",
            with("model.layers.0.block_sparse_moe.experts.6.w1.weight", &[8, 16]),
            &["experts.6.w1", "not of a plain Mixtral"],
        ),
        (
            mixtral,
            "a scale of each expert",
            with("model.layers.0.block_sparse_moe.per_expert_scale", &[6]),
            &["per_expert_scale"],
        ),
        (mixtral, "no router", without("1.block_sparse_moe.gate.weight"), &["1.block", "gate"]),
        (mixtral, "NaN", not_a_number("0.block_sparse_moe.gate.weight"), &["gate.weight", "NaN"]),
        (
            mixtral,
            "a wide expert",
            reshaped("0.block_sparse_moe.experts.1.w3.weight", &[9, 16]),
            &["experts.1.w3", "[9, 16]"],
        ),
        (qwen, "a list of words", set("mlp_only_layers", json!(["a"])), &["mlp_only_layers"]),
        (qwen, "no step", set("decoder_sparse_step", json!(0)), &["decoder_sparse_step"]),
        (qwen, "no block", set("decoder_sparse_step", json!(9)), &["blocks", "every block"]),
        (qwen, "another block", set("mlp_only_layers", json!([1])), &["missing", "layers.0.mlp"]),
        (qwen, "no width", set("moe_intermediate_size", Value::Null), &["moe_intermediate_size"]),
        (
            qwen,
            "a shared one",
            set("shared_expert_intermediate_size", json!(8)),
            &["shared_expert"],
        ),
        (
            qwen,
            "a bias",
            with("model.layers.1.mlp.gate.e_score_correction_bias", &[6]),
            &["correction_bias"],
        ),
        (dots, "groups of 4", set("n_group", json!(4)), &["groups", "divisor of 6", "found 4"]),
        (dots, "no group", set("n_group", json!(0)), &["groups", "found 0"]),
        (dots, "more groups", set("topk_group", json!(4)), &["groups", "1 to 3", "found 4"]),
        (dots, "k above groups", set("num_experts_per_tok", json!(5)), &["at most 4", "found 5"]),
        (dots, "softmax", set("scoring_func", json!("softmax")), &["scoring_func", "sigmoid"]),
        (dots, "scale of 0", set("routed_scaling_factor", json!(0.0)), &["factor", "found 0"]),
        (dots, "all dense", set("first_k_dense_replace", json!(2)), &["blocks", "every block"]),
        (dots, "no bias", without("gate.e_score_correction_bias"), &["correction_bias"]),
        (dots, "NaN in it", not_a_number("gate.e_score_correction_bias"), &["correction", "NaN"]),
        (dots, "a wide shared one", set("n_shared_experts", json!(3)), &["shared_experts", "[24"]),
        (oss, "k above", set("num_experts_per_tok", json!(7)), &["takes", "found 7"]),
        (oss, "no limit", set("swiglu_limit", json!(0.0)), &["limit", "found 0"]),
        (oss, "no bias", without("0.mlp.experts.gate_up_proj_bias"), &["gate_up_proj_bias"]),
        (
            oss,
            "a turned bank",
            reshaped("0.mlp.experts.gate_up_proj", &[6, 17, 16]),
            &["gate_up_proj", "[6, 16, 16]"],
        ),
        (oss, "a bank of 5", reshaped("1.mlp.experts.down_proj", &[5, 8, 16]), &["[5, 8, 16]"]),
        (oss, "NaN", not_a_number("mlp.router.weight"), &["mlp.router.weight", "NaN"]),
        (oss, "codes", with("model.layers.0.mlp.experts.down_proj_blocks", &[4]), &["_blocks"]),
        (oss, "no sinks", without("1.self_attn.sinks"), &["sinks"]),
        (
            granite,
            "banks apart",
            reshaped("0.block_sparse_moe.output_linear.weight", &[5, 16, 8]),
            &["output_linear", "[5, 16, 8]"],
        ),
        (granite, "no shared", set("shared_intermediate_size", json!(0)), &["shared_mlp"]),
        (granite, "NaN", not_a_number("block_sparse_moe.input_linear.weight"), &["input_linear"]),
    ]
}

/// Lies about shards, and of classes with biases beside experts.
fn more_cases() -> Vec<Case> {
    let (mixtral, phi, ernie) = ("Mixtral", "Phi-3.5-MoE", "ERNIE 4.5");
    let router = "model.layers.0.block_sparse_moe.gate.weight";
    let expert = "model.layers.1.block_sparse_moe.experts.5.w2.weight";
    let moved = move |to: &'static str| {
        in_shards(move |map| {
            map.insert(expert.into(), json!(to));
            None
        })
    };
    let dropped = move |name: &'static str| {
        in_shards(move |map| {
            map.remove(name);
            None
        })
    };
    vec![
        (
            mixtral,
            "a shard that is missing",
            moved("model-3.safetensors"),
            &["w2.weight", "elsewhere"],
        ),
        (mixtral, "a shard elsewhere", moved("../model.safetensors"), &["weight_map", ".."]),
        (mixtral, "a shard of no name", moved(""), &["weight_map"]),
        (mixtral, "an expert not listed", dropped(expert), &["experts.5.w2"]),
        (mixtral, "a router not listed", dropped(router), &["gate.weight"]),
        (
            mixtral,
            "an expert that no shard has",
            in_shards(|map| {
                let name = "model.layers.0.block_sparse_moe.experts.6.w1.weight";
                map.insert(name.into(), json!("model-00001-of-00002.safetensors"));
                None
            }),
            &["experts.6.w1"],
        ),
        (mixtral, "an empty shard", in_shards(|_| Some(0)), &["00002-of-00002"]),
        (mixtral, "a shard cut in its header", in_shards(|_| Some(100)), &["00002-of-00002"]),
        (mixtral, "a shard cut in its data", in_shards(|_| Some(usize::MAX)), &["00002-of-00002"]),
        (mixtral, "a count beside it", set("n_routed_experts", json!(8)), &["n_routed", "found 8"]),
        (mixtral, "k twice", set("moe_topk", json!(3)), &["moe_topk", "3"]),
        (mixtral, "a count of 1e300", set("num_local_experts", json!(1e300)), &["num_local"]),
        (mixtral, "a count below 0", set("num_local_experts", json!(-6)), &["num_local", "-6"]),
        (mixtral, "a list of counts", set("num_local_experts", json!([6])), &["num_local"]),
        (mixtral, "width of 0", set("intermediate_size", json!(0)), &["ffn", "found 0"]),
        (mixtral, "codes", set("quantization_config", json!({})), &["quantization_config"]),
        (
            mixtral,
            "a bank beside experts",
            with("model.layers.0.mlp.experts.gate_up_proj", &[6, 16, 16]),
            &["gate_up_proj"],
        ),
        (
            mixtral,
            "a gate of a shared expert",
            with("model.layers.0.mlp.shared_expert_gate.weight", &[1, 16]),
            &["shared_expert_gate"],
        ),
        (phi, "three of a token", set("num_experts_per_tok", json!(3)), &["takes", "2", "found 3"]),
        (phi, "one of a token", set("num_experts_per_tok", json!(1)), &["takes", "2", "found 1"]),
        (phi, "jitter below 0", set("router_jitter_noise", json!(-0.1)), &["jitter", "-0.1"]),
        (phi, "no bias of a norm", without("0.input_layernorm.bias"), &["input_layernorm.bias"]),
        (phi, "no bias of the last", without("model.norm.bias"), &["model.norm.bias"]),
        (phi, "no bias of the head", without("lm_head.bias"), &["lm_head.bias"]),
        (phi, "a bias not stated", set("lm_head_bias", json!(false)), &["lm_head.bias"]),
        (phi, "a short bias", reshaped("lm_head.bias", &[269]), &["lm_head.bias", "269"]),
        (phi, "NaN in a bias", not_a_number("model.norm.bias"), &["model.norm.bias", "NaN"]),
        (phi, "sigmoid", set("scoring_func", json!("sigmoid")), &["scoring_func"]),
        (
            phi,
            "two factors",
            set(
                "rope_scaling",
                json!({"type": "longrope", "short_factor": [1, 1, 1, 1], "short_mscale": 1.2,
                       "long_factor": [2, 2, 2, 2], "long_mscale": 1.3,
                       "original_max_position_embeddings": 64}),
            ),
            &["long_mscale", "1.3"],
        ),
        (
            phi,
            "yarn",
            set("rope_scaling", json!({"type": "yarn", "factor": 2.0})),
            &["rope_scaling.type", "longrope", "yarn"],
        ),
        (ernie, "no step", set("moe_layer_interval", json!(0)), &["moe_layer_interval"]),
        (ernie, "all dense", set("moe_layer_start_index", json!(2)), &["blocks"]),
        (ernie, "a vector", reshaped("e_score_correction_bias", &[6]), &["correction", "[1, 6]"]),
        (ernie, "no biases", set("use_bias", json!(false)), &["q_proj.bias"]),
        (ernie, "no bias of a head", without("lm_head.bias"), &["lm_head.bias"]),
        (
            ernie,
            "no bias of the shared expert",
            without("shared_experts.up_proj.bias"),
            &["shared_experts.up_proj.bias"],
        ),
        (
            ernie,
            "biases of experts",
            with("model.layers.1.mlp.experts.0.up_proj.bias", &[8]),
            &["experts.0.up_proj.bias"],
        ),
        (ernie, "least below 0", set("moe_norm_min", json!(-1.0)), &["least", "-1"]),
        (ernie, "two shared", set("moe_num_shared_experts", json!(1)), &["shared_experts"]),
    ]
}

/// The files of a folder with their lengths.
pub(super) fn listed(folder: &Path) -> Vec<(std::ffi::OsString, u64)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut all: Vec<_> =
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().len())).collect();
    all.sort();
    all
}

/// Latents whose widths no model has, and what stands beside them.
fn of_latents() -> Vec<Case> {
    let turns = |turned: usize| {
        both(set("qk_rope_head_dim", json!(turned)), set("qk_head_dim", Value::Null))
    };
    vec![
        (DEEP, "rank 0", set("kv_lora_rank", json!(0)), &["kv_lora_rank", "at least 1", "found 0"]),
        (DEEP, "no rank", set("q_lora_rank", json!(0)), &["q_lora_rank", "null", "found 0"]),
        (DEEP, "an odd turn", turns(3), &["qk_rope_head_dim", "even number", "found 3"]),
        (DEEP, "no turn", turns(0), &["qk_rope_head_dim", "even number", "found 0"]),
        (DEEP, "a wide head", set("qk_head_dim", json!(9)), &["qk_head_dim", "8, qk_nope"]),
        (DEEP, "no values", set("v_head_dim", json!(0)), &["v_head_dim", "found 0"]),
        (DEEP, "few keys", set("num_key_value_heads", json!(2)), &["num_key_value_heads", "4, as"]),
        (DEEP, "biases", set("attention_bias", json!(true)), &["attention_bias", "false"]),
        (DEEP, "a part", set("partial_rotary_factor", json!(0.5)), &["partial_rotary_factor"]),
        (DEEP, "wide values", set("v_head_dim", json!(4)), &["kv_b_proj", "[32, 5]", "[28, 5]"]),
        (DEEP, "a wide rank", set("kv_lora_rank", json!(6)), &["kv_a_proj_with_mqa", "[10, 16]"]),
        (DEEP, "no norm", without("0.self_attn.kv_a_layernorm.weight"), &["missing", "kv_a_layer"]),
        (DEEP, "keys", with("model.layers.0.self_attn.k_proj.weight", &[2]), &["0.self_attn.k_"]),
        (DEEP, "a block more", with("model.layers.2.eh_proj.weight", &[2]), &["2.eh_proj"]),
        (DEEP, "NaN", not_a_number("1.self_attn.kv_b_proj.weight"), &["kv_b_proj", "NaN"]),
        (DEEP, "softmax", set("scoring_func", json!("softmax")), &["scoring_func", "sigmoid"]),
        (CAT, "no layers", set("num_layers", Value::Null), &["num_layers"]),
        (CAT, "3 blocks", set("num_hidden_layers", json!(3)), &["num_hidden_layers", "2, twice"]),
        (CAT, "zeros", set("zero_expert_type", json!("zero")), &["zero_expert_type", "identity"]),
        (CAT, "a bias", set("router_bias", json!(true)), &["router_bias", "false"]),
        (CAT, "3 of them", set("zero_expert_num", json!(3)), &["classifier", "[9, 16]"]),
        (CAT, "a down", with("model.layers.0.mlp.experts.6.down_proj.weight", &[2]), &["6.down_"]),
        (CAT, "a narrow one", reshaped("experts.7.up_proj.weight", &[7, 16]), &["7.up_proj"]),
        (CAT, "no expert", without("experts.5.up_proj.weight"), &["missing", "experts.5.up_proj"]),
    ]
}

/// What nothing reads need not be there.
#[test]
fn identity_experts_need_no_tensors() {
    let folder = scratch();
    honest(folder.path(), CAT);
    for end in ["experts.6.gate_proj.weight", "experts.7.gate_proj.weight", "7.up_proj.weight"] {
        without(end)(folder.path());
    }
    read_all(folder.path()).expect("reads");
}

#[test]
fn folders_of_experts_with_one_lie_are_refused_by_name() {
    for class in [
        "Mixtral",
        "Qwen3-MoE",
        "dots.llm1",
        "GPT-OSS",
        "Granite-MoE with a shared expert",
        "Phi-3.5-MoE",
        "ERNIE 4.5",
        DEEP,
        CAT,
    ] {
        let folder = scratch();
        honest(folder.path(), class);
        read_all(folder.path()).unwrap_or_else(|error| panic!("{class}: {error}"));
    }
    let folder = scratch();
    honest(folder.path(), "Mixtral");
    in_shards(|_| None)(folder.path());
    read_all(folder.path()).unwrap_or_else(|error| panic!("shards: {error}"));
    let cases: Vec<Case> = cases().into_iter().chain(more_cases()).chain(of_latents()).collect();
    assert!(cases.len() >= 110, "{}", cases.len());
    let mut wrong = Vec::new();
    for (class, what, lie, names) in cases {
        let folder = scratch();
        honest(folder.path(), class);
        lie(folder.path());
        let before = listed(folder.path());
        let read = read_all(folder.path());
        assert_eq!(listed(folder.path()), before, "{class}, {what}: something was written");
        match read {
            Ok(()) => wrong.push(format!("{class}, {what}: accepted")),
            Err(error) => {
                let message = error.to_string();
                let missing = names.iter().find(|name| !message.contains(**name));
                wrong.extend(missing.map(|name| format!("{class}, {what}: no {name}: {message}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Classes that are known and not computed say what they have beside those that are.
#[test]
fn classes_out_of_reach_are_refused_with_the_reason() {
    for (class, reason) in [
        ("deepseek_v32", "beside latent attention"),
        ("glm4_moe_lite", "beside latent attention"),
        ("mistral4", "scaled by their position"),
        ("llama4_text", "scaled"),
        ("switch_transformers", "capacity"),
    ] {
        let folder = scratch();
        honest(folder.path(), "Mixtral");
        set("model_type", json!(class))(folder.path());
        let message = read_all(folder.path()).unwrap_err().to_string();
        assert!(message.contains(class) && message.contains(reason), "{message}");
    }
}
