//! Every architecture of the list: out and back, names, and what it holds.

use std::collections::BTreeMap;
use std::path::Path;

use data::SpecialTokens;

use super::*;
use crate::gguf::{self, GgufOptions, GgufWeightType};
use crate::hf::{self, FolderOptions, HfWeightType};
use crate::layout;
use crate::{
    Additions, ClampedProduct, ExpertScores, Experts, HeadNorm, HiddenActivation, LatentAttention,
    ModelFile, NormPosition, RopeScaling, SlidingWindow, TensorRole, TensorSource,
};

/// Heads times head_dim is not the width, and no two sizes are equal.
fn config() -> ArchConfig {
    ArchConfig {
        vocab: 8,
        width: 12,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        ffn: 10,
        rope_theta: 1e4,
        norm_eps: 1e-5,
        context: 16,
        tied: false,
        rope_scaling: None,
        additions: Additions::default(),
        experts: None,
    }
}

/// The same with experts, for an architecture that has some, or with what else it has beside
/// plain Llama in a Hugging Face folder.
fn config_of(member: &Architecture) -> ArchConfig {
    let (experts, additions) = (experts_of(member), additions_of(member));
    let ffn = if member.name == "Hunyuan" { 7 } else { config().ffn };
    let layers = if member.name == "LongCat-Flash" { 4 } else { config().layers };
    let kv_heads = if additions.latent.is_some() { 4 } else { config().kv_heads };
    let held = ArchConfig { experts, additions, ffn, layers, kv_heads, ..config() };
    assert!((member.holds)(&held) || member.gguf.is_some(), "{}", member.name);
    held
}

/// What of it a GGUF file says, for an architecture that has some. Nothing there is of
/// training.
fn config_in_gguf(member: &Architecture) -> ArchConfig {
    let mut config = config_of(member);
    if let Some(form) = &member.gguf {
        config.additions = (form.held)(&config);
    }
    if let Some(experts) = &mut config.experts {
        experts.dense.clear();
        experts.balance_weight = if member.name == "OLMoE" { 0.01 } else { 0.001 };
    }
    config
}

/// Experts with what the architecture leaves free, for one that has some.
fn experts_of(member: &Architecture) -> Option<Experts> {
    let plain = Experts { count: 6, top_k: 3, width: 7, ..Experts::default() };
    let (dense, weight) = (vec![1], 0.25);
    let grouped = Experts {
        dense: vec![0, 1],
        shared: 14,
        scoring: ExpertScores::Sigmoid,
        choice_bias: true,
        groups: 3,
        top_groups: 2,
        normalize: false,
        scale: 1.5,
        ..plain.clone()
    };
    Some(match member.name {
        "Mixtral" => Experts { width: 10, balance_weight: weight, ..plain },
        "OLMoE" | "FlexOlmo" => {
            Experts { width: 10, normalize: false, balance_weight: weight, ..plain }
        }
        "Qwen3-MoE" => Experts { dense, balance_weight: weight, ..plain },
        "Qwen2-MoE" => {
            let normalize = false;
            Experts { dense, shared: 5, shared_gate: true, normalize, ..plain }
        }
        "dots.llm1" | "GLM-4.5" | "DeepSeek-V3" => grouped,
        "DeepSeek-V2" => Experts {
            scoring: ExpertScores::Softmax,
            choice_bias: false,
            best_of_group: true,
            ..grouped
        },
        "LongCat-Flash" => Experts {
            dense: vec![0, 2],
            identity: 2,
            shortcut: true,
            choice_bias: true,
            normalize: false,
            scale: 1.5,
            ..plain
        },
        "Granite-MoE" => Experts { width: 10, balance_weight: weight, ..plain },
        "Granite-MoE with a shared expert" => Experts { width: 10, shared: 9, ..plain },
        "ERNIE 4.5" => Experts {
            dense: vec![0, 2],
            shared: 21,
            choice_bias: true,
            least: 0.5,
            balance_weight: weight,
            ..plain
        },
        "Hunyuan" => Experts { shared: 7, ..plain },
        "MiniMax-M2" => {
            let (scoring, choice_bias) = (ExpertScores::Sigmoid, true);
            Experts { width: 10, scoring, choice_bias, balance_weight: weight, ..plain }
        }
        "Phi-3.5-MoE" => {
            let scoring = ExpertScores::SparseMixer { jitter: 0.125 };
            Experts { width: 10, top_k: 2, scoring, balance_weight: weight, ..plain }
        }
        "GPT-OSS" => Experts {
            width: 10,
            logit_bias: true,
            biases: true,
            clamp: Some(ClampedProduct { limit: 3.0, alpha: 1.5 }),
            balance_weight: weight,
            ..plain
        },
        _ => return None,
    })
}

/// As much as the architecture has.
fn additions_of(member: &Architecture) -> Additions {
    let (of, none) = (|blocks| Some(SlidingWindow { size: 5, blocks }), Additions::default());
    let (query, key_value, turned, value) = (7, 5, 4, 3);
    let (scale, neighbours_turn) = (1.0, true);
    let latent = LatentAttention { query, key_value, turned, value, scale, neighbours_turn };
    let biased = Additions { qkv_bias: true, output_bias: true, mlp_bias: true, ..none.clone() };
    let gemma = Additions {
        norm_plus_one: true,
        activation: HiddenActivation::GeluTanh,
        embedding_multiplier: Some(12f64.sqrt()),
        ..none.clone()
    };
    let both = Additions {
        score_scale: Some(1.0 / 20f64.sqrt()),
        logit_cap: Some(30.0),
        window: of(vec![0, 2]),
        norm_place: NormPosition::Both,
        ..gemma.clone()
    };
    match member.name {
        "Mistral" => Additions { window: of(vec![0, 1, 2]), ..none },
        "Qwen2" => Additions { qkv_bias: true, window: of(vec![1, 2]), ..none },
        "Qwen3" => Additions {
            query_key_norm: HeadNorm::Head,
            window: of(vec![0, 2]),
            mlp_bias: false,
            ..biased
        },
        "SmolLM3" => Additions { without_rotary: vec![1], window: of(vec![0, 1]), ..biased },
        "Granite" => Additions {
            score_scale: Some(0.2),
            embedding_multiplier: Some(3.0),
            residual_multiplier: Some(0.4),
            logits_divisor: Some(7.0),
            ..biased
        },
        "OLMo 2" => Additions {
            query_key_norm: HeadNorm::Width,
            norm_place: NormPosition::After,
            mlp_bias: false,
            ..biased
        },
        "Phi-3" => Additions { rotary_share: Some(2.0 / 3.0), window: of(vec![0, 1, 2]), ..none },
        "Gemma" => Additions { qkv_bias: true, output_bias: true, ..gemma },
        "Gemma 2" => Additions { score_cap: Some(50.0), ..both },
        "Gemma 3" => {
            Additions { query_key_norm: HeadNorm::Head, window_theta: Some(100.0), ..both }
        }
        "Mixtral" => Additions { window: of(vec![0, 1, 2]), ..none },
        "OLMoE" => {
            let query_key_norm = HeadNorm::Width;
            Additions { query_key_norm, clip: Some(1.5), mlp_bias: false, ..biased }
        }
        "FlexOlmo" => {
            Additions { query_key_norm: HeadNorm::Width, norm_place: NormPosition::After, ..none }
        }
        "Qwen3-MoE" => Additions {
            query_key_norm: HeadNorm::Head,
            window: of(vec![0, 1, 2]),
            mlp_bias: false,
            ..biased
        },
        "Qwen2-MoE" => Additions { qkv_bias: true, window: of(vec![0, 2]), ..none },
        "dots.llm1" => Additions {
            query_key_norm: HeadNorm::Head,
            window: of(vec![1, 2]),
            mlp_bias: false,
            ..biased
        },
        "GLM-4.5" => Additions {
            qkv_bias: true,
            query_key_norm: HeadNorm::Head,
            rotary_share: Some(1.0 / 3.0),
            ..none
        },
        "Granite-MoE" | "Granite-MoE with a shared expert" => Additions {
            score_scale: Some(0.2),
            embedding_multiplier: Some(3.0),
            residual_multiplier: Some(0.4),
            logits_divisor: Some(7.0),
            mlp_bias: false,
            ..biased
        },
        "Hunyuan" => {
            let query_key_norm = HeadNorm::HeadTurned;
            Additions { query_key_norm, mlp_bias: false, ..biased }
        }
        "MiniMax-M2" => {
            Additions { query_key_norm: HeadNorm::Width, rotary_share: Some(2.0 / 3.0), ..none }
        }
        "Phi-3.5-MoE" => Additions {
            layer_norm: true,
            head_bias: true,
            window: of(vec![0, 1, 2]),
            mlp_bias: false,
            ..biased
        },
        "ERNIE 4.5" => Additions { head_bias: true, ..biased },
        "GPT-OSS" => Additions { sinks: true, window: of(vec![0, 2]), mlp_bias: false, ..biased },
        "DeepSeek-V2" => Additions { latent: Some(LatentAttention { query: 0, ..latent }), ..none },
        "DeepSeek-V3" => Additions { latent: Some(latent), ..none },
        "LongCat-Flash" => Additions {
            latent: Some(LatentAttention { scale: (12.0 / 5.0f64).sqrt(), ..latent }),
            score_scale: Some(1.0 / 6f64.sqrt() * (12.0 / 7.0f64).sqrt()),
            ..none
        },
        _ => none,
    }
}

/// Numbers that say where they belong.
fn weights(config: &ArchConfig, role: TensorRole) -> Vec<f32> {
    let number = TensorRole::all(config).position(|known| known == role).unwrap_or(99);
    let count = role.shape(config).iter().product();
    (0..count).map(|i: usize| (1000 * number + i) as f32).collect()
}

fn tokenizer() -> Vec<u8> {
    let vocab = BTreeMap::from(
        ["<s>", "</s>", "a", "b", "ab", "c", "d", "e"].map(str::to_owned).map(|t| (t, 0)),
    );
    let vocab: BTreeMap<String, usize> = vocab.into_keys().zip(0..).collect();
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true});
    let json = serde_json::json!({
        "added_tokens": [{"id": vocab["<s>"], "content": "<s>", "special": true}],
        "pre_tokenizer": bytes,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]},
    });
    json.to_string().into_bytes()
}

fn write(folder: &Path, member: &'static Architecture, config: &ArchConfig) {
    let special = SpecialTokens { eos: vec![0], ..SpecialTokens::default() };
    let source = |role| Ok(weights(config, role));
    if member.hugging_face.is_some() {
        let options =
            FolderOptions { architecture: member, weights: HfWeightType::F32, special: &special };
        let path = folder.join("hugging_face");
        hf::write(&path, config, &source, &tokenizer(), &options, &checkpoint::RealDisk)
            .expect(member.name);
    }
    if member.gguf.is_some() {
        let options = GgufOptions {
            architecture: member,
            name: "m",
            weights: GgufWeightType::F32,
            tokenizer: &tokenizer(),
            special: &special,
        };
        let config = &ArchConfig { tied: config.tied, ..config_in_gguf(member) };
        let source = |role| Ok(weights(config, role));
        let path = folder.join("gguf");
        gguf::export(&path, config, &source, &options).expect(member.name);
    }
}

#[test]
fn a_model_of_each_architecture_comes_back_from_each_form() {
    for &member in ALL {
        for tied in [true, false] {
            let folder = tempfile::tempdir().expect("a folder");
            let config = ArchConfig { tied, ..config_of(member) };
            write(folder.path(), member, &config);
            let mut forms = 0;
            let in_gguf = ArchConfig { tied, ..config_in_gguf(member) };
            for (form, config) in [("hugging_face", &config), ("gguf", &in_gguf)] {
                let path = folder.path().join(form);
                if !path.exists() {
                    continue;
                }
                forms += 1;
                let found = ModelFile::open(&path).expect(member.name);
                assert!(std::ptr::eq(found.architecture(), member), "{}", member.name);
                assert_eq!(found.settings(), config, "{}", member.name);
                for role in TensorRole::all(config) {
                    let values = found.tensor(role).expect(member.name);
                    assert_eq!(values, weights(config, role), "{} {form} {role}", member.name);
                }
            }
            let expected =
                usize::from(member.hugging_face.is_some()) + usize::from(member.gguf.is_some());
            assert_eq!(forms, expected, "{}", member.name);
        }
    }
}

#[test]
fn every_role_has_one_name_in_each_form_and_every_name_one_role() {
    for &member in ALL {
        let mut forms = Vec::new();
        let (config, in_gguf) = (config_of(member), config_in_gguf(member));
        forms.extend(member.gguf.iter().map(|form| (form.holding(), in_gguf.clone())));
        if let Some(form) = &member.hugging_face {
            let others = form.others.iter().copied().chain([form.holding()]);
            forms.extend(others.map(|holding| (holding, config.clone())));
        }
        for (holding, config) in forms {
            let path = Path::new("x");
            let (mut names, mut count) = (BTreeMap::new(), 0);
            for stored in layout::tensors(path, member.name, &config, holding) {
                let layout::StoredTensor { name, shape, pieces } = stored.expect(member.name);
                // What stands in one tensor fills it, each place once.
                let mut places = vec![0; shape.iter().product()];
                for (role, piece) in &pieces {
                    assert_eq!(piece.shape, shape, "{}: {role}", member.name);
                    let (rows, columns) = piece.size;
                    for i in 0..rows * columns {
                        let (row, column) = (i / columns, i % columns);
                        let of_row = piece.first + row * piece.row_step;
                        places[of_row + column * piece.column_step] += 1;
                    }
                }
                assert!(places.iter().all(|count| *count == 1), "{}: {name}", member.name);
                count += pieces.len();
                let roles: Vec<TensorRole> = pieces.iter().map(|(role, _)| *role).collect();
                let other = names.insert(name, roles[0]);
                assert_eq!(other, None, "{}: {:?}", member.name, roles[0]);
            }
            assert_eq!(count, TensorRole::all(&config).count(), "{}", member.name);
        }
    }
}

#[test]
fn experts_of_mixtral_are_files_of_llama() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config_in_gguf(&mixtral::MIXTRAL);
    let config = ArchConfig { additions: Additions::default(), ..config };
    let member = Architecture::that_holds(&config, true, Some("Mixtral")).expect("Llama");
    assert_eq!(member.name, "Llama");
    let special = SpecialTokens::default();
    let options = GgufOptions {
        architecture: member,
        name: "m",
        weights: GgufWeightType::F32,
        tokenizer: &tokenizer(),
        special: &special,
    };
    let path = folder.path().join("m.gguf");
    let source = |role| Ok(weights(&config, role));
    gguf::export(&path, &config, &source, &options).expect("writes");
    let found = ModelFile::open(&path).expect("opens");
    assert_eq!(found.settings(), &config);
    for role in TensorRole::all(&config) {
        assert_eq!(found.tensor(role).expect("reads"), weights(&config, role), "{role}");
    }
    // Banks as llama.cpp has them: experts, rows, columns.
    let ModelFile::Gguf(model) = &found else { panic!("a GGUF file") };
    let bank = model.gguf().tensor("blk.2.ffn_down_exps.weight").expect("there");
    assert_eq!(bank.shape, [6, 12, 10]);
    // Others of the same sizes are no experts that such a file could hold.
    let others = Experts { normalize: false, ..config.experts.clone().expect("some") };
    let other = ArchConfig { experts: Some(others), ..config.clone() };
    assert!(Architecture::that_holds(&other, true, None).is_none());
    let error = gguf::export(&path, &other, &source, &options).expect_err("others");
    assert!(error.to_string().contains("experts"), "{error}");
}

#[test]
fn no_two_architectures_answer_to_one_name() {
    let mut names = BTreeMap::new();
    for &member in ALL {
        let hugging_face = member.hugging_face.iter().map(|form| format!("hf {}", form.class));
        let types = member.hugging_face.iter().map(|form| format!("type {}", form.model_type));
        let gguf = member.gguf.iter().map(|form| format!("gguf {}", form.architecture));
        for name in hugging_face.chain(types).chain(gguf) {
            assert_eq!(names.insert(name, member.name), None, "{}", member.name);
        }
    }
}

#[test]
fn an_unknown_architecture_is_told_the_known_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, r#"{"model_type": "unheard_of"}"#).expect("writes");
    let message = ModelFile::open(folder.path()).expect_err("unknown").to_string();
    for member in ALL {
        let Some(form) = &member.hugging_face else { continue };
        assert!(message.contains(&format!("{:?}", form.model_type)), "{message}");
    }
    assert!(
        message.contains("found \"unheard_of\"") && message.contains("model_type"),
        "{message}"
    );
}

#[test]
fn what_an_architecture_cannot_state_is_refused_by_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let special = SpecialTokens::default();
    let options = GgufOptions {
        architecture: &mistral::MISTRAL,
        name: "m",
        weights: GgufWeightType::F32,
        tokenizer: &tokenizer(),
        special: &special,
    };
    let source = |role| Ok(weights(&config(), role));
    let path = folder.path().join("m.gguf");
    let message =
        gguf::export(&path, &config(), &source, &options).expect_err("no form").to_string();
    assert!(message.contains("architecture") && message.contains("Mistral"), "{message}");
    let scaled = ArchConfig { rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }), ..config() };
    let member = Architecture::that_holds(&scaled, true, None).expect("Llama");
    assert!(std::ptr::eq(member, &llama::LLAMA));
    // A plain model is what it was read as, where that has the form, and Llama otherwise.
    for (gguf, preferred, expected) in [
        (false, "Phi-3", "Phi-3"),
        (true, "Phi-3", "Phi-3"),
        (true, "Mistral", "Llama"),
        (false, "Qwen3", "Llama"),
    ] {
        let member = Architecture::that_holds(&config(), gguf, Some(preferred));
        assert_eq!(member.expect("some").name, expected);
    }
}

#[test]
fn a_model_with_additions_is_held_by_its_own_architecture_first() {
    for &member in ALL.iter().filter(|member| member.hugging_face.is_some()) {
        let config = config_of(member);
        if config.additions == Additions::default() {
            continue;
        }
        let found = Architecture::that_holds(&config, false, None).expect(member.name);
        assert!(std::ptr::eq(found, member), "{} as {}", member.name, found.name);
        assert!(Architecture::that_holds(&config, true, None).is_none(), "{}", member.name);
    }
}
