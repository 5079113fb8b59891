//! Hugging Face folders with one lie each.

use super::common::{byte_tokenizer, folder_options, hf_name, medium, special, weights};
use super::memory::{Meter, scratch};
use formats::hf::{Folder, HfWeightType, write};
use formats::{ArchConfig, ModelFile, TensorRole, TensorSource};
use serde_json::{Value, json};
use std::path::Path;

pub(crate) fn read_all(path: &Path) -> formats::Result<()> {
    let folder = Folder::open(path)?;
    for role in TensorRole::all(folder.settings()) {
        folder.tensor(role)?;
    }
    folder.special()?;
    folder.tokenizer_json()?;
    Ok(())
}

pub(crate) fn honest(path: &Path, settings: &ArchConfig, tokenizer: &[u8]) {
    let special = special();
    let extras = folder_options(HfWeightType::F32, &special);
    write(path, settings, &weights(settings), tokenizer, &extras, &checkpoint::RealDisk).unwrap();
}

fn untied() -> ArchConfig {
    ArchConfig { tied: false, vocab: 270, ..medium() }
}

type Lie = Box<dyn Fn(&Path)>;

/// Each case begins with an honest folder; the message must name the file and the field.
fn check(cases: Vec<(&str, Lie, &str, &str)>) {
    let meter = Meter::start();
    for (what, lie, file, field) in cases {
        let folder = scratch();
        honest(folder.path(), &untied(), &byte_tokenizer());
        lie(folder.path());
        let message = match read_all(folder.path()) {
            Ok(()) => panic!("{what}: accepted"),
            Err(error) => error.to_string(),
        };
        assert!(message.contains(file) && message.contains(field), "{what}: {message}");
    }
    meter.check();
}

/// Sets fields of a JSON file.
pub(crate) fn edit(path: &Path, fields: &[(&str, Value)]) {
    let text = std::fs::read(path).unwrap_or(b"{}".to_vec());
    let mut root: serde_json::Map<String, Value> = serde_json::from_slice(&text).unwrap();
    root.extend(fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    std::fs::write(path, Value::from(root).to_string()).unwrap();
}

fn config(key: &'static str, value: Value) -> Lie {
    Box::new(move |folder| edit(&folder.join("config.json"), &[(key, value.clone())]))
}

fn file(name: &'static str, bytes: impl Into<Vec<u8>>) -> Lie {
    let bytes = bytes.into();
    Box::new(move |folder| std::fs::write(folder.join(name), &bytes).unwrap())
}

fn without(name: &'static str) -> Lie {
    Box::new(move |folder| std::fs::remove_file(folder.join(name)).unwrap())
}

#[test]
fn configs_that_are_no_settings_are_refused() {
    let c = "config.json";
    check(vec![
        ("no config", without(c), c, "open"),
        ("an empty config", file(c, ""), c, "JSON"),
        ("a list", file(c, "[]"), c, "JSON"),
        ("deep nesting", file(c, "[".repeat(100_000)), c, "JSON"),
        ("deep objects", file(c, "{\"a\":".repeat(5_000)), c, "JSON"),
        (
            "very many values",
            file(c, format!("{{\"a\":[{}0]}}", "0,".repeat(1 << 19))),
            c,
            "values",
        ),
        ("no UTF-8", file(c, vec![b'{', b'"', 0xff, b'"', b':', b'1', b'}']), c, "JSON"),
        ("a number beyond f64", file(c, "{\"hidden_size\": 1e999}"), c, "JSON"),
        ("something after the object", file(c, "{} {}"), c, "JSON"),
        ("nothing in it", file(c, "{}"), c, "model_type"),
        (
            "a folder as config",
            Box::new(|folder| {
                std::fs::remove_file(folder.join("config.json")).unwrap();
                std::fs::create_dir(folder.join("config.json")).unwrap();
            }),
            c,
            "not a regular file",
        ),
    ]);
}

#[test]
fn configs_that_ask_for_more_are_refused() {
    let c = "config.json";
    check(vec![
        (
            "heads that do not divide",
            Box::new(|folder| {
                edit(
                    &folder.join("config.json"),
                    &[("head_dim", Value::Null), ("num_attention_heads", json!(7))],
                );
            }),
            c,
            "num_attention_heads",
        ),
        (
            "a Mistral with a window of nothing",
            Box::new(|folder| {
                edit(
                    &folder.join("config.json"),
                    &[
                        ("model_type", json!("mistral")),
                        ("architectures", json!(["MistralForCausalLM"])),
                        ("sliding_window", json!(0)),
                    ],
                );
            }),
            c,
            "sliding_window",
        ),
        (
            "two rotary bases",
            config("rope_parameters", json!({"rope_theta": 5.0})),
            c,
            "rope_theta",
        ),
        (
            "yarn upside down",
            config(
                "rope_scaling",
                json!({"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 32}),
            ),
            c,
            "rope_scaling.beta_fast",
        ),
        (
            "an unheard-of scaling",
            config("rope_scaling", json!({"type": "static", "factor": 2})),
            c,
            "rope_scaling.type",
        ),
        (
            "dynamic without a factor",
            config("rope_scaling", json!({"type": "dynamic"})),
            c,
            "rope_scaling.factor",
        ),
        (
            "linear without a factor",
            config("rope_scaling", json!({"type": "linear"})),
            c,
            "rope_scaling.factor",
        ),
        (
            "a factor without a type",
            config("rope_scaling", json!({"factor": 2})),
            c,
            "rope_scaling.factor",
        ),
        (
            "llama3 by halves",
            config("rope_scaling", json!({"rope_type": "llama3", "factor": 8})),
            c,
            "low_freq_factor",
        ),
        (
            "llama3 upside down",
            config(
                "rope_scaling",
                json!({
                    "rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                    "high_freq_factor": 1, "original_max_position_embeddings": 8192,
                }),
            ),
            c,
            "high_freq_factor",
        ),
    ]);
}

#[test]
fn settings_of_another_type_or_size_are_refused() {
    let c = "config.json";
    let one = |key, value| (key, config(key, value), c, key);
    let mut cases = vec![
        one("model_type", json!("unheard_of")),
        one("model_type", json!(7)),
        one("architectures", json!(["LlamaForSequenceClassification"])),
        one("architectures", json!([])),
        one("architectures", json!("LlamaForCausalLM")),
        one("hidden_act", json!("relu")),
        one("attention_bias", json!("no")),
        one("sliding_window", json!(4096)),
        one("quantization_config", json!({"bits": 4})),
        one("num_local_experts", json!(8)),
        one("partial_rotary_factor", json!(0.5)),
        one("hidden_size", json!("64")),
        one("hidden_size", json!(64.5)),
        one("hidden_size", json!(-64)),
        one("hidden_size", json!(1_u64 << 40)),
        one("hidden_size", Value::Null),
        one("intermediate_size", json!([96])),
        one("num_hidden_layers", json!(true)),
        one("vocab_size", Value::Null),
        one("rms_norm_eps", json!("1e-5")),
        one("rope_theta", json!([])),
        one("rope_scaling", json!("linear")),
        one("tie_word_embeddings", json!(0)),
        one("head_dim", json!({})),
    ];
    let size = |key, value: Value, field| (key, config(key, value), c, field);
    cases.extend([
        size("hidden_size", json!(0), "width"),
        size("num_hidden_layers", json!(0), "layers"),
        size("num_hidden_layers", json!(4_000_000_000_u32), "layers"),
        size("num_attention_heads", json!(0), "heads"),
        size("num_key_value_heads", json!(3), "kv_heads"),
        size("head_dim", json!(7), "head_dim"),
        size("max_position_embeddings", json!(0), "context"),
        size("rms_norm_eps", json!(0), "norm_eps"),
        size("rope_theta", json!(-1), "rope_theta"),
    ]);
    check(cases);
}

/// Rewrites the header of model.safetensors.
fn header(change: impl Fn(&mut serde_json::Map<String, Value>) + 'static) -> Lie {
    Box::new(move |folder| {
        let path = folder.join("model.safetensors");
        let whole = std::fs::read(&path).unwrap();
        let len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let mut header = serde_json::from_slice(&whole[8..8 + len]).unwrap();
        change(&mut header);
        let text = Value::from(header).to_string();
        let bytes =
            [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &whole[8 + len..]].concat();
        std::fs::write(path, bytes).unwrap();
    })
}

fn rename(from: &'static str, to: &'static str) -> Lie {
    header(move |header| {
        let entry = header.remove(from).unwrap();
        header.insert(to.into(), entry);
    })
}

/// Replaces the first value of the data.
fn first_value(value: f32) -> Lie {
    Box::new(move |folder| {
        let path = folder.join("model.safetensors");
        let mut whole = std::fs::read(&path).unwrap();
        let len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        whole[8 + len..12 + len].copy_from_slice(&value.to_le_bytes());
        std::fs::write(path, whole).unwrap();
    })
}

#[test]
fn weights_that_are_not_those_of_the_config_are_refused() {
    let (w, c) = ("model.safetensors", "");
    check(vec![
        ("no weights", without(w), c, "weights"),
        ("an empty file", file(w, ""), w, "header length"),
        ("a header beyond the file", file(w, vec![0xff; 8]), w, "header length"),
        (
            "a tensor missing",
            rename("model.layers.1.mlp.up_proj.weight", "x"),
            c,
            "missing: \"model.layers.1.mlp.up_proj.weight\"",
        ),
        (
            "an extra tensor",
            rename("model.layers.1.mlp.up_proj.weight", "x"),
            c,
            "not of a plain Llama model: \"x\"",
        ),
        (
            "a bias",
            rename("lm_head.weight", "model.layers.0.self_attn.q_proj.bias"),
            c,
            "q_proj.bias",
        ),
        ("no prefix", rename("model.norm.weight", "norm.weight"), c, "model.norm.weight"),
        (
            "another shape",
            header(|h| h["model.norm.weight"]["shape"] = json!([8, 8])),
            c,
            "model.norm.weight",
        ),
        ("another type", header(|h| h["model.norm.weight"]["dtype"] = json!("I32")), w, "dtype"),
        ("an unknown type", header(|h| h["model.norm.weight"]["dtype"] = json!("Q4")), w, "dtype"),
        (
            "a size that wraps",
            header(|h| h["model.norm.weight"]["shape"] = json!([1_u64 << 40, 1_u64 << 40])),
            w,
            "shape",
        ),
        (
            "an overlap",
            header(|h| h["model.norm.weight"]["data_offsets"] = json!([0, 256])),
            w,
            "data_offsets",
        ),
        (
            "an end beyond the data",
            header(|h| h["model.norm.weight"]["data_offsets"] = json!([0, 1_u64 << 40])),
            w,
            "data_offsets",
        ),
        ("NaN", first_value(f32::NAN), w, "model.embed_tokens.weight"),
        ("infinity", first_value(f32::INFINITY), w, "model.embed_tokens.weight"),
        (
            "more layers than tensors",
            config("num_hidden_layers", json!(60_000)),
            c,
            "model.layers.2.",
        ),
        ("fewer layers than tensors", config("num_hidden_layers", json!(1)), c, "model.layers.1."),
        ("another vocabulary", config("vocab_size", json!(271)), c, "model.embed_tokens.weight"),
        (
            "an output that is no copy",
            config("tie_word_embeddings", json!(true)),
            c,
            "lm_head.weight",
        ),
        (
            "an output that is missing",
            rename("lm_head.weight", "x.rotary_emb.inv_freq"),
            c,
            "lm_head.weight",
        ),
    ]);
}

/// Replaces the one file by an index.
fn index(map: Value) -> Lie {
    Box::new(move |folder| {
        std::fs::rename(folder.join("model.safetensors"), folder.join("a.safetensors")).unwrap();
        std::fs::copy(folder.join("a.safetensors"), folder.join("b.safetensors")).unwrap();
        std::fs::write(folder.join("model.safetensors.index.json"), map.to_string()).unwrap();
    })
}

#[test]
fn indices_that_lead_astray_are_refused() {
    let i = "model.safetensors.index.json";
    let to = |shard: Value| index(json!({"weight_map": {"model.norm.weight": shard}}));
    let field = "weight_map[\"model.norm.weight\"]";
    let every = |shard: &str| {
        let names: serde_json::Map<String, Value> =
            TensorRole::all(&untied()).map(|role| (hf_name(role), shard.into())).collect();
        names
    };
    let mut split = every("a.safetensors");
    split.insert("model.norm.weight".into(), "b.safetensors".into());
    let mut unlisted = every("a.safetensors");
    unlisted.remove("model.norm.weight");
    let mut phantom = every("a.safetensors");
    phantom.insert("x".into(), "a.safetensors".into());
    check(vec![
        (
            "no JSON",
            Box::new(|folder: &Path| {
                std::fs::remove_file(folder.join("model.safetensors")).unwrap();
                std::fs::write(folder.join("model.safetensors.index.json"), "{").unwrap();
            }),
            i,
            "JSON",
        ),
        ("no map", index(json!({})), i, "weight_map"),
        ("a map that is a list", index(json!({"weight_map": []})), i, "weight_map"),
        ("up and out", to("../a.safetensors".into()), i, field),
        ("an absolute path", to("/etc/x.safetensors".into()), i, field),
        ("a subfolder", to("x/a.safetensors".into()), i, field),
        ("backslashes", to("..\\a.safetensors".into()), i, field),
        ("the index itself", to("model.safetensors.index.json".into()), i, field),
        ("a hidden name", to(".safetensors".into()), i, field),
        ("dots", to("...safetensors".into()), i, field),
        ("a number", to(json!(1)), i, field),
        ("a list", to(json!(["a.safetensors"])), i, field),
        ("a shard that is missing", to("c.safetensors".into()), "c.safetensors", "open"),
        (
            "a tensor that the shard lacks",
            index(json!({"weight_map": phantom})),
            i,
            "weight_map[\"x\"]",
        ),
        ("a tensor in two shards", index(json!({"weight_map": split})), i, "model."),
        (
            "a tensor that the index lacks",
            index(json!({"weight_map": unlisted})),
            i,
            "tensor \"model.norm.weight\"",
        ),
        ("no tensors at all", index(json!({"weight_map": {}})), "", "missing"),
        (
            "a shard that is a link to itself",
            Box::new(|folder: &Path| {
                std::fs::remove_file(folder.join("model.safetensors")).unwrap();
                #[cfg(unix)]
                std::os::unix::fs::symlink("a.safetensors", folder.join("a.safetensors")).unwrap();
                let map = json!({"weight_map": {"model.norm.weight": "a.safetensors"}});
                std::fs::write(folder.join("model.safetensors.index.json"), map.to_string())
                    .unwrap();
            }),
            "a.safetensors",
            "open",
        ),
    ]);
}

#[test]
fn companions_that_lie_are_refused() {
    let (g, t, j) = ("generation_config.json", "tokenizer_config.json", "tokenizer.json");
    let set = |name: &'static str, key: &'static str, value: Value| -> Lie {
        Box::new(move |folder| edit(&folder.join(name), &[(key, value.clone())]))
    };
    let unnamed = || -> Lie {
        Box::new(|folder| {
            for name in ["config.json", "generation_config.json"] {
                edit(&folder.join(name), &[("eos_token_id", Value::Null)]);
            }
            edit(&folder.join("tokenizer_config.json"), &[("eos_token", json!("<none>"))]);
        })
    };
    check(vec![
        ("no tokenizer", without(j), j, "open"),
        ("a tokenizer that is no JSON", file(j, "{"), j, "JSON"),
        ("added tokens without ids", set(j, "added_tokens", json!([{"content": "x"}])), j, "JSON"),
        ("added tokens that are a number", set(j, "added_tokens", json!(1)), j, "JSON"),
        ("a processor without a type", set(j, "post_processor", json!({})), j, "JSON"),
        ("generation settings that are a list", file(g, "[]"), g, "JSON"),
        ("an end that is a string", set(g, "eos_token_id", json!("1")), g, "eos_token_id"),
        (
            "an end that is a list of strings",
            set(g, "eos_token_id", json!(["1"])),
            g,
            "eos_token_id",
        ),
        ("an end below zero", set(g, "eos_token_id", json!(-2)), g, "eos_token_id"),
        ("an end beyond 32 bits", set(g, "eos_token_id", json!(1_u64 << 32)), g, "eos_token_id"),
        (
            "an end beyond the vocabulary",
            set(g, "eos_token_id", json!([1, 270])),
            "config.json",
            "eos token id",
        ),
        (
            "a begin beyond the vocabulary",
            set(g, "bos_token_id", json!(270)),
            "config.json",
            "bos token id",
        ),
        ("an end that is no token", unnamed(), t, "eos_token"),
        ("a template that is a number", set(t, "chat_template", json!(1)), t, "chat_template"),
        (
            "a template that is no UTF-8",
            file("chat_template.jinja", vec![0xff]),
            "chat_template.jinja",
            "encoding",
        ),
        (
            "a template of 2 MB",
            file("chat_template.jinja", vec![b'x'; 2 << 20]),
            "chat_template.jinja",
            "file size",
        ),
        ("a begin asked for in words", set(t, "add_bos_token", json!("yes")), t, "add_bos_token"),
    ]);
}

#[test]
fn a_folder_without_a_model_is_refused() {
    let folder = scratch();
    let message = ModelFile::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("config.json"), "{message}");
}
