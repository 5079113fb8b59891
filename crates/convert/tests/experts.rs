//! Folders of every class with experts: read as a model, written again as the same class with the
//! same bytes, and computing the same where the library stores experts in banks.

mod common;

use std::fs;
use std::path::Path;

use checkpoint::{RealDisk, open_safetensors};
use common::{fixture, logits};
use convert::{
    GgufWeightType, HfWeightType, export_gguf, export_hugging_face, import, imported_model,
};
use data::SpecialTokens;
use formats::architectures::ALL;
use formats::hf::{FolderOptions, write};
use formats::{
    Additions, ArchConfig, ClampedProduct, ExpertScores, Experts, HeadNorm, LatentAttention,
    NormPosition, RopeScaling, SlidingWindow, TensorRole,
};
use model::Rule;
use model::rng::{Purpose, Stream, name_place};
use serde_json::Value;
use train::load_model;

/// The settings of a class with most of what it leaves free.
fn settings(class: &str) -> ArchConfig {
    let none = Additions::default();
    let biased = Additions { qkv_bias: true, output_bias: true, ..none.clone() };
    let window = |blocks| Some(SlidingWindow { size: 3, blocks });
    let head = Additions { query_key_norm: HeadNorm::Head, ..none.clone() };
    let width = Additions { query_key_norm: HeadNorm::Width, ..none.clone() };
    let of = Experts { count: 4, top_k: 2, width: 6, balance_weight: 0.25, ..Experts::default() };
    let unweighted = Experts { balance_weight: 0.0, ..of.clone() };
    let grouped = Experts {
        dense: vec![0],
        shared: 12,
        scoring: ExpertScores::Sigmoid,
        choice_bias: true,
        groups: 2,
        scale: 1.5,
        ..unweighted.clone()
    };
    let granite = Additions {
        score_scale: Some(0.2),
        embedding_multiplier: Some(3.0),
        residual_multiplier: Some(0.4),
        logits_divisor: Some(7.0),
        ..none.clone()
    };
    let (experts, additions) = match class {
        "mixtral" => (of, Additions { window: window(vec![0, 1, 2]), ..none }),
        "olmoe" => (Experts { normalize: false, ..of }, Additions { clip: Some(0.4), ..width }),
        "flex_olmo" => (of, Additions { norm_place: NormPosition::After, ..width }),
        "qwen3_moe" => (Experts { dense: vec![1], ..of }, head),
        "qwen2_moe" => {
            let additions = Additions { qkv_bias: true, window: window(vec![0, 2]), ..none };
            (Experts { shared: 5, shared_gate: true, normalize: false, ..of }, additions)
        }
        "dots1" => (grouped, head),
        "glm4_moe" => {
            let (qkv_bias, rotary_share) = (true, Some(0.5));
            (grouped, Additions { qkv_bias, rotary_share, ..head })
        }
        "granitemoe" => (of, granite),
        "granitemoeshared" => (Experts { shared: 5, ..of }, granite),
        "ernie4_5_moe" => {
            let dense = vec![0, 2];
            let additions = Additions { mlp_bias: true, head_bias: true, ..biased };
            (Experts { dense, shared: 12, choice_bias: true, least: 0.75, ..of }, additions)
        }
        "hunyuan_v1_moe" => {
            let query_key_norm = HeadNorm::HeadTurned;
            (Experts { shared: 6, ..unweighted }, Additions { query_key_norm, ..none })
        }
        "minimax_m2" => {
            let (scoring, choice_bias) = (ExpertScores::Sigmoid, true);
            (Experts { scoring, choice_bias, ..of }, Additions { rotary_share: Some(0.5), ..width })
        }
        "phimoe" => {
            let scoring = ExpertScores::SparseMixer { jitter: 0.125 };
            let additions = Additions { layer_norm: true, head_bias: true, ..biased };
            (Experts { scoring, ..of }, Additions { window: window(vec![0, 1, 2]), ..additions })
        }
        "gpt_oss" => {
            let clamp = Some(ClampedProduct { limit: 0.4, alpha: 1.5 });
            let additions = Additions { sinks: true, window: window(vec![0, 2]), ..biased };
            (Experts { logit_bias: true, biases: true, clamp, ..of }, additions)
        }
        "deepseek_v2" => {
            let of = Experts {
                scoring: ExpertScores::Softmax,
                choice_bias: false,
                best_of_group: true,
                normalize: false,
                ..grouped
            };
            (of, Additions { latent: Some(LatentAttention { query: 0, ..LATENT }), ..none })
        }
        "deepseek_v3" => {
            let growth = (0.1 * 0.7 * 4f64.ln() + 1.0).powi(2);
            let score_scale = Some(1.0 / 8f64.sqrt() * growth);
            (grouped, Additions { latent: Some(LATENT), score_scale, ..none })
        }
        "longcat_flash" => {
            let of = Experts {
                dense: vec![0, 2],
                identity: 3,
                shortcut: true,
                choice_bias: true,
                normalize: false,
                scale: 1.5,
                ..unweighted
            };
            let latent = Some(LatentAttention { scale: (12.0 / 5.0f64).sqrt(), ..LATENT });
            let score_scale = Some(1.0 / 8f64.sqrt() * (12.0 / 7.0f64).sqrt());
            (of, Additions { latent, score_scale, ..none })
        }
        other => panic!("no settings of {other}"),
    };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_context: 8,
        attention_factor: None,
        mscale: Some(0.5),
        mscale_all_dim: Some(0.7),
        truncate: true,
    };
    ArchConfig {
        vocab: 131,
        width: 12,
        layers: if class == "longcat_flash" { 4 } else { 3 },
        heads: 4,
        kv_heads: if additions.latent.is_some() { 4 } else { 2 },
        head_dim: 8,
        // Classes whose experts have this width say so under the same key.
        ffn: 6,
        rope_theta: 1e4,
        norm_eps: 1e-5,
        context: 32,
        tied: false,
        rope_scaling: (class == "deepseek_v3").then_some(yarn),
        additions,
        experts: Some(experts),
    }
}

const LATENT: LatentAttention = LatentAttention {
    query: 7,
    key_value: 5,
    turned: 4,
    value: 3,
    scale: 1.0,
    neighbours_turn: true,
};

const CLASSES: [&str; 17] = [
    "mixtral",
    "olmoe",
    "flex_olmo",
    "qwen3_moe",
    "qwen2_moe",
    "dots1",
    "glm4_moe",
    "granitemoe",
    "granitemoeshared",
    "ernie4_5_moe",
    "hunyuan_v1_moe",
    "minimax_m2",
    "gpt_oss",
    "phimoe",
    "deepseek_v2",
    "deepseek_v3",
    "longcat_flash",
];

fn numbers(role: TensorRole, settings: &ArchConfig) -> Vec<f32> {
    let mut dice = Stream::at(5, Purpose::Init, 0, name_place(&role.to_string()));
    let count = role.shape(settings).iter().product();
    if matches!(role, TensorRole::Layer(_, role) if role.is_unused()) {
        // What nothing reads is written as zeros.
        return vec![0.0; count];
    }
    (0..count).map(|_| (0.3 * dice.normal()) as f32 + 0.1).collect()
}

/// Writes a folder of a class, as the library would.
fn written(path: &Path, class: &str) {
    written_as(path, class, settings(class));
}

fn written_as(path: &Path, class: &str, settings: ArchConfig) {
    let names = |name: &str| name == class_name(class);
    let architecture = ALL.iter().find(|member| names(member.name)).expect(class);
    let special = SpecialTokens::default();
    let options = FolderOptions { architecture, weights: HfWeightType::F32, special: &special };
    let source = |role| Ok(numbers(role, &settings));
    let tokenizer = fs::read(fixture("mixtral").join("tokenizer.json")).expect("there");
    write(path, &settings, &source, &tokenizer, &options, &RealDisk).expect(class);
}

fn class_name(class: &str) -> &'static str {
    match class {
        "mixtral" => "Mixtral",
        "olmoe" => "OLMoE",
        "flex_olmo" => "FlexOlmo",
        "qwen3_moe" => "Qwen3-MoE",
        "qwen2_moe" => "Qwen2-MoE",
        "dots1" => "dots.llm1",
        "glm4_moe" => "GLM-4.5",
        "granitemoe" => "Granite-MoE",
        "granitemoeshared" => "Granite-MoE with a shared expert",
        "ernie4_5_moe" => "ERNIE 4.5",
        "hunyuan_v1_moe" => "Hunyuan",
        "minimax_m2" => "MiniMax-M2",
        "gpt_oss" => "GPT-OSS",
        "phimoe" => "Phi-3.5-MoE",
        "deepseek_v2" => "DeepSeek-V2",
        "deepseek_v3" => "DeepSeek-V3",
        "longcat_flash" => "LongCat-Flash",
        other => panic!("no name of {other}"),
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON")
}

#[test]
fn every_class_goes_in_and_comes_out_as_it_was() {
    for class in CLASSES {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        written(&at("theirs"), class);
        let made = import(&at("theirs"), &at("ours"), &RealDisk)
            .unwrap_or_else(|error| panic!("{class}: {error}"));
        let stored = load_model(&made.path).expect(class);
        let ids = [3, 9, 20, 4, 7, 7, 41];
        let found = logits(&stored.model, &Rule::NonCausal, &ids);
        assert!(found.iter().all(|x| x.is_finite()), "{class}");
        // In memory it is the same model.
        let again = imported_model(&at("theirs")).expect(class);
        assert_eq!(again.model.config(), stored.model.config(), "{class}");
        assert_eq!(again.state, stored.state, "{class}");
        export_hugging_face(&stored, &at("back"), HfWeightType::F32, &RealDisk)
            .unwrap_or_else(|error| panic!("{class}: {error}"));
        let (theirs, back) = (json(&at("theirs/config.json")), json(&at("back/config.json")));
        assert_eq!(back, theirs, "{class}");
        assert_eq!(theirs["model_type"], class);
        let read = |name: &str| fs::read(at(name).join("model.safetensors")).expect("there");
        assert!(read("theirs") == read("back"), "{class}: other bytes");
    }
}

/// No GGUF file holds latents; what a file says in another way than the library's is read as well.
#[test]
fn latents_are_refused_in_files_of_llama_cpp_and_read_in_halves() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    written(&at("theirs"), "deepseek_v3");
    let ours = import(&at("theirs"), &at("ours"), &RealDisk).expect("reads");
    let stored = load_model(&ours.path).expect("opens");
    let error = export_gguf(&stored, &at("x.gguf"), GgufWeightType::F32, "x");
    let error = error.expect_err("no such file").to_string();
    assert!(error.contains("latent attention") && error.contains("--format lathe"), "{error}");
    // The same tensors, said to turn in halves: queries and keys stand in another order.
    let config = at("theirs/config.json");
    let mut said = json(&config);
    said["rope_interleave"] = false.into();
    fs::write(&config, said.to_string()).expect("writes");
    let other = import(&at("theirs"), &at("halves"), &RealDisk).expect("reads");
    let other = load_model(&other.path).expect("opens");
    assert_eq!(other.model.config(), stored.model.config());
    let find = |stored: &train::Stored, name: &str| {
        let weights = stored.model.weights();
        weights.iter().find(|(spec, _)| spec.name == name).expect("there").1.read()
    };
    for (name, row, first) in [("layers.0.query", 7, 0), ("layers.0.key_value_latent", 12, 5)] {
        let (a, b) = (find(&stored, name), find(&other, name));
        let of = |all: &[f32], i: usize| all[(first + i) * row..(first + i + 1) * row].to_vec();
        // Neighbours 0 1 2 3 are rows 0 2 1 3 in halves.
        for (i, j) in [(0, 0), (1, 2), (2, 1), (3, 3)] {
            assert_eq!(of(&a, i), of(&b, j), "{name} {i}");
        }
    }
}

/// Biases for the choice stay whole where weights are rounded, as the library keeps them.
#[test]
fn what_decides_is_not_rounded() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    written(&at("theirs"), "dots1");
    let made = import(&at("theirs"), &at("ours"), &RealDisk).expect("reads");
    let stored = load_model(&made.path).expect("opens");
    export_hugging_face(&stored, &at("back"), HfWeightType::Bf16, &RealDisk).expect("writes");
    let open = |name: &str| open_safetensors(&at(name).join("model.safetensors")).expect("opens");
    let (theirs, back) = (open("theirs"), open("back"));
    let bias = "model.layers.1.mlp.gate.e_score_correction_bias";
    assert_eq!(back.read_f32(bias).expect("there"), theirs.read_f32(bias).expect("there"));
    let router = "model.layers.1.mlp.gate.weight";
    assert_ne!(back.read_f32(router).expect("there"), theirs.read_f32(router).expect("there"));
}

/// GGUF files of the classes that llama.cpp knows: the same model in f32, and in fewer bits one
/// that is near to it.
#[test]
fn classes_with_files_of_llama_cpp_go_there_and_back() {
    for class in ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"] {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let mut settings = settings(class);
        // What their files cannot say is refused by name.
        written_as(&at("theirs"), class, settings.clone());
        let made = import(&at("theirs"), &at("ours"), &RealDisk).expect(class);
        let stored = load_model(&made.path).expect(class);
        let out = at("x.gguf");
        if let Err(error) = export_gguf(&stored, &out, GgufWeightType::F32, "x") {
            let error = error.to_string();
            assert!(error.contains("architecture") || error.contains("experts"), "{error}");
        }
        let additions = &mut settings.additions;
        (additions.window, additions.clip, additions.output_bias) = (None, None, false);
        additions.qkv_bias = class == "qwen2_moe";
        // Rows of whole blocks.
        (settings.width, settings.ffn) = (64, 96);
        let experts = settings.experts.as_mut().expect("some");
        experts.dense.clear();
        experts.width = if ["mixtral", "olmoe"].contains(&class) { 96 } else { 32 };
        experts.shared = if experts.shared > 0 { 64 } else { 0 };
        experts.normalize = ["mixtral", "qwen3_moe"].contains(&class);
        (settings.heads, settings.kv_heads, settings.head_dim) = (4, 2, 16);
        written_as(&at("plain"), class, settings);
        let made = import(&at("plain"), &at("source"), &RealDisk).expect(class);
        let stored = load_model(&made.path).expect(class);
        let ids = [3, 9, 20, 4, 7, 7, 41];
        let expected = logits(&stored.model, &Rule::NonCausal, &ids);
        let spread = expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        for (kind, most) in
            [(GgufWeightType::F32, 0.0), (GgufWeightType::Q8_0, 0.2), (GgufWeightType::Q4_0, 0.9)]
        {
            let (file, back) = (at(&format!("{kind:?}.gguf")), at(&format!("{kind:?}")));
            export_gguf(&stored, &file, kind, "x").unwrap_or_else(|e| panic!("{class}: {e}"));
            let made = import(&file, &back, &RealDisk).unwrap_or_else(|e| panic!("{class}: {e}"));
            let found = logits(&load_model(&made.path).expect(class).model, &Rule::NonCausal, &ids);
            let apart = found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2));
            let apart = (apart.sum::<f64>() / spread).sqrt();
            assert!(apart <= most && (apart > 0.0) == (most > 0.0), "{class} {kind:?}: {apart}");
        }
    }
}
