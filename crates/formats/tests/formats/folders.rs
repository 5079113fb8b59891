//! Hugging Face folders written and read again, whole and in shards.

use data::SpecialTokens;

use super::common::{byte_tokenizer, folder_options, medium, special, weights};
use checkpoint::RealDisk;
use formats::hf::{HfWeightType, write};
use formats::{ArchConfig, ModelFile, RopeScaling, TensorRole, TensorSource};
use serde_json::{Value, json};
use std::path::Path;

pub(crate) fn write_medium(
    folder: &Path,
    settings: &ArchConfig,
    dtype: HfWeightType,
    special: &SpecialTokens,
) {
    let extras = folder_options(dtype, special);
    write(folder, settings, &weights(settings), &byte_tokenizer(), &extras, &RealDisk).unwrap();
}

#[test]
fn a_model_comes_back_bit_by_bit() {
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192 };
    for settings in [
        medium(),
        ArchConfig { tied: false, rope_scaling: Some(llama3), ..medium() },
        ArchConfig {
            rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
            norm_eps: 1e-6,
            ..medium()
        },
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_medium(folder.path(), &settings, HfWeightType::F32, &special());
        let model = ModelFile::open(folder.path()).unwrap();
        assert!(matches!(model, ModelFile::HuggingFace(_)));
        assert_eq!(model.settings(), &settings);
        assert_eq!(model.special().unwrap(), special());
        assert_eq!(model.tokenizer_json().unwrap(), byte_tokenizer());
        for role in TensorRole::all(&settings) {
            assert_eq!(model.tensor(role).unwrap(), weights(&settings)(role).unwrap(), "{role}");
        }
    }
}

#[test]
fn bf16_weights_are_rounded_to_even() {
    let folder = tempfile::tempdir().unwrap();
    write_medium(folder.path(), &medium(), HfWeightType::Bf16, &special());
    let model = ModelFile::open(folder.path()).unwrap();
    for role in TensorRole::all(&medium()) {
        let rounded: Vec<f32> = weights(&medium())(role)
            .unwrap()
            .iter()
            .map(|&x| half::bf16::from_f32(x).to_f32())
            .collect();
        assert_eq!(model.tensor(role).unwrap(), rounded, "{role}");
    }
}

#[test]
fn one_form_becomes_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let (gguf, hf) = (folder.path().join("m.gguf"), folder.path().join("m"));
    let settings = ArchConfig { tied: false, ..medium() };
    super::common::export_to(
        &gguf,
        &settings,
        formats::gguf::GgufWeightType::F32,
        &byte_tokenizer(),
    )
    .unwrap();
    let first = ModelFile::open(&gguf).unwrap();
    let special = first.special().unwrap();
    let extras = folder_options(HfWeightType::F32, &special);
    write(&hf, first.settings(), &first, &first.tokenizer_json().unwrap(), &extras, &RealDisk)
        .unwrap();
    let second = ModelFile::open(&hf).unwrap();
    assert_eq!(
        (first.settings(), first.special().unwrap()),
        (second.settings(), second.special().unwrap())
    );
    for role in TensorRole::all(&settings) {
        assert_eq!(first.tensor(role).unwrap(), second.tensor(role).unwrap(), "{role}");
    }
}

/// Splits the one file into two, by the position of each tensor, with an index.
pub(crate) fn shard(folder: &Path) {
    let whole = std::fs::read(folder.join("model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> =
        serde_json::from_slice(&whole[8..8 + header_len]).unwrap();
    let mut map = serde_json::Map::new();
    let mut shards = [(serde_json::Map::new(), Vec::new()), (serde_json::Map::new(), Vec::new())];
    for (i, (name, entry)) in header.iter().filter(|(name, _)| *name != "__metadata__").enumerate()
    {
        let offsets = [&entry["data_offsets"][0], &entry["data_offsets"][1]]
            .map(|n| n.as_u64().unwrap() as usize);
        let (shard, data) = &mut shards[i % 2];
        let begin = data.len();
        data.extend(&whole[8 + header_len + offsets[0]..8 + header_len + offsets[1]]);
        shard.insert(
            name.clone(),
            json!({
                "dtype": entry["dtype"], "shape": entry["shape"],
                "data_offsets": [begin, data.len()],
            }),
        );
        map.insert(name.clone(), format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into());
    }
    for (i, (header, data)) in shards.iter().enumerate() {
        let header = Value::from(header.clone()).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
        std::fs::write(folder.join(format!("model-0000{}-of-00002.safetensors", i + 1)), bytes)
            .unwrap();
    }
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn shards_are_read_like_one_file() {
    let folder = tempfile::tempdir().unwrap();
    write_medium(folder.path(), &medium(), HfWeightType::F32, &special());
    shard(folder.path());
    let model = ModelFile::open(folder.path()).unwrap();
    for role in TensorRole::all(&medium()) {
        assert_eq!(model.tensor(role).unwrap(), weights(&medium())(role).unwrap(), "{role}");
    }
}

/// Replaces fields of a JSON file; null removes one.
pub(crate) fn edit(path: &Path, fields: &[(&str, Value)]) {
    let text = std::fs::read(path).unwrap_or(b"{}".to_vec());
    let mut root: serde_json::Map<String, Value> = serde_json::from_slice(&text).unwrap();
    for (key, value) in fields {
        match value {
            Value::Null => root.remove(*key),
            value => root.insert((*key).to_owned(), value.clone()),
        };
    }
    std::fs::write(path, Value::from(root).to_string()).unwrap();
}

#[test]
fn configs_of_other_writers_are_read() {
    let folder = tempfile::tempdir().unwrap();
    write_medium(folder.path(), &medium(), HfWeightType::F32, &special());
    let config = folder.path().join("config.json");
    let settings = || ModelFile::open(folder.path()).unwrap().settings().clone();
    edit(&config, &[("rope_theta", Value::Null), ("rope_scaling", Value::Null)]);
    assert_eq!(settings().rope_theta, 10_000.0);
    edit(&config, &[("rope_parameters", json!({"rope_type": "default", "rope_theta": 5e5}))]);
    assert_eq!((settings().rope_theta, settings().rope_scaling), (5e5, None));
    edit(
        &config,
        &[("rope_theta", json!(5e5)), ("rope_scaling", json!({"type": "linear", "factor": 4}))],
    );
    let message = ModelFile::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("config.json") && message.contains("rope_parameters"), "{message}");
    edit(
        &config,
        &[
            ("rope_parameters", Value::Null),
            ("rms_norm_eps", Value::Null),
            ("hidden_act", Value::Null),
        ],
    );
    assert_eq!(
        (settings().norm_eps, settings().rope_scaling),
        (1e-6, Some(RopeScaling::Linear { factor: 4.0 }))
    );
    let text = std::fs::read_to_string(&config).unwrap();
    let mistral = text
        .replace("LlamaForCausalLM", "MistralForCausalLM")
        .replace(r#""model_type":"llama""#, r#""model_type":"mistral","sliding_window":null"#);
    std::fs::write(&config, mistral).unwrap();
    assert_eq!(settings().width, medium().width);
}

/// A key that is null asks for as many as heads, one that is absent for the class's default.
#[test]
fn key_and_value_heads_may_be_null() {
    let folder = tempfile::tempdir().unwrap();
    let even = ArchConfig { kv_heads: medium().heads, ..medium() };
    write_medium(folder.path(), &even, HfWeightType::F32, &special());
    let config = folder.path().join("config.json");
    let given = format!(r#""num_key_value_heads":{}"#, even.heads);
    let text = std::fs::read_to_string(&config).unwrap();
    let text = Value::to_string(&serde_json::from_str(&text).unwrap());
    let mistral = text.replace("Llama", "Mistral").replace(r#""llama""#, r#""mistral""#);
    let mistral = mistral.replace(r#""vocab_size""#, r#""sliding_window":null,"vocab_size""#);
    assert!(mistral.contains(&given), "{mistral}");
    std::fs::write(&config, mistral.replace(&given, r#""num_key_value_heads":null"#)).unwrap();
    assert_eq!(ModelFile::open(folder.path()).unwrap().settings().kv_heads, even.heads);
    std::fs::write(&config, mistral.replace(&given, r#""x":0"#)).unwrap();
    let message = ModelFile::open(folder.path()).unwrap_err().to_string();
    assert!(message.contains("found 8") || message.contains("k_proj"), "{message}");
}

#[test]
fn special_tokens_come_from_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let plain = SpecialTokens { chat_template: None, ..special() };
    write_medium(folder.path(), &medium(), HfWeightType::F32, &plain);
    let file = |name: &str| folder.path().join(name);
    let found = || ModelFile::open(folder.path()).unwrap().special().unwrap();
    assert_eq!(found(), plain);
    edit(
        &file("generation_config.json"),
        &[("eos_token_id", json!([1, 0])), ("bos_token_id", Value::Null)],
    );
    edit(&file("config.json"), &[("pad_token_id", json!(-1)), ("bos_token_id", json!(1))]);
    edit(&file("generation_config.json"), &[("pad_token_id", json!(-1))]);
    edit(
        &file("tokenizer_config.json"),
        &[
            ("pad_token", json!({"content": "<s>", "lstrip": false})),
            ("add_bos_token", json!(true)),
        ],
    );
    assert_eq!(
        found(),
        SpecialTokens {
            // The tokenizer's files name `<s>`, whatever config.json counts as the begin.
            bos: Some(0),
            eos: vec![1, 0],
            pad: Some(0),
            chat_template: None,
            add_bos: true
        }
    );
    edit(
        &file("tokenizer_config.json"),
        &[("chat_template", json!([{"name": "default", "template": "A"}]))],
    );
    assert_eq!(found().chat_template.as_deref(), Some("A"));
    let others = json!([{"name": "tool_use", "template": "A"}]);
    edit(&file("tokenizer_config.json"), &[("chat_template", others)]);
    assert_eq!(found().chat_template, None, "nobody names the others");
    std::fs::write(file("chat_template.jinja"), "B").unwrap();
    assert_eq!(found().chat_template.as_deref(), Some("B"));
    edit(&file("tokenizer_config.json"), &[("add_bos_token", Value::Null)]);
    assert!(!found().add_bos);
    let processor = json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel", "trim_offsets": true},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]},
    ]});
    edit(&file("tokenizer.json"), &[("post_processor", processor)]);
    assert!(found().add_bos, "the template begins with the token of the begin-of-text id");
    // Nothing pads, so that any of these is no reason against the model.
    for pad in [json!({"content": "<none>"}), json!("<none>"), json!(7), json!({})] {
        edit(&file("tokenizer_config.json"), &[("pad_token", pad)]);
        assert_eq!(found().pad, None);
    }
    for pad in [json!(9999), json!(1_u64 << 40), json!("x")] {
        edit(&file("generation_config.json"), &[("pad_token_id", pad)]);
        assert_eq!(found().pad, None);
    }
    for name in ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::remove_file(file(name)).unwrap();
    }
    assert_eq!(found().eos, [1], "config.json speaks where nothing else does");
    assert_eq!(found().bos, Some(1));
}

#[test]
fn ends_are_those_of_all_files_and_the_tokenizer_names_the_main_one() {
    let folder = tempfile::tempdir().unwrap();
    let plain = SpecialTokens { chat_template: None, ..special() };
    write_medium(folder.path(), &medium(), HfWeightType::F32, &plain);
    let file = |name: &str| folder.path().join(name);
    let found = || ModelFile::open(folder.path()).unwrap().special().unwrap();
    edit(&file("config.json"), &[("eos_token_id", json!([5, 1]))]);
    edit(&file("generation_config.json"), &[("eos_token_id", json!([1, 4]))]);
    let names = json!({"eos_token": "<s>", "bos_token": null});
    std::fs::write(file("tokenizer_config.json"), names.to_string()).unwrap();
    assert_eq!(found().eos, [0, 1, 4, 5]);
    assert_eq!(found().bos, None, "the tokenizer has none, whatever id is counted as one");
    // Words of the vocabulary that are no added tokens, and a map beside the tokenizer.
    edit(&file("tokenizer_config.json"), &[("eos_token", json!("he"))]);
    let word = found().eos[0];
    assert!(word > 1 && found().eos[1..] == [1, 4, 5], "{word}");
    std::fs::remove_file(file("tokenizer_config.json")).unwrap();
    assert_eq!((found().eos, found().bos), (vec![1, 4, 5], Some(0)));
    let map = json!({"eos_token": {"content": "<s>"}, "bos_token": "</s>"});
    std::fs::write(file("special_tokens_map.json"), map.to_string()).unwrap();
    assert_eq!((found().eos, found().bos), (vec![0, 1, 4, 5], Some(1)));
    // A name that is no token is passed over where ids say what is meant.
    std::fs::write(file("special_tokens_map.json"), json!({"eos_token": "<x>"}).to_string())
        .unwrap();
    assert_eq!(found().eos, [1, 4, 5]);
}

#[test]
fn a_tied_copy_and_stored_frequencies_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let untied = ArchConfig { tied: false, ..medium() };
    let twin = |role: TensorRole| {
        weights(&untied)(if role == TensorRole::Head { TensorRole::Embed } else { role })
    };
    let special = special();
    let extras = folder_options(HfWeightType::F32, &special);
    write(folder.path(), &untied, &twin, &byte_tokenizer(), &extras, &RealDisk).unwrap();
    edit(&folder.path().join("config.json"), &[("tie_word_embeddings", json!(true))]);
    assert!(ModelFile::open(folder.path()).unwrap().settings().tied);
    rename_tensor(
        &folder.path().join("model.safetensors"),
        "lm_head.weight",
        "x.rotary_emb.inv_freq",
    );
    assert!(ModelFile::open(folder.path()).unwrap().settings().tied);
}

/// Renames a tensor in a safetensors header; its data stays.
pub(crate) fn rename_tensor(path: &Path, from: &str, to: &str) {
    let whole = std::fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&whole[8..8 + header_len]).unwrap();
    let renamed = header.replace(&format!("{from:?}"), &format!("{to:?}"));
    assert_ne!(header, renamed);
    let bytes =
        [&(renamed.len() as u64).to_le_bytes()[..], renamed.as_bytes(), &whole[8 + header_len..]]
            .concat();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn what_does_not_fit_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let (path, special) = (folder.path().join("m"), special());
    let extras = folder_options(HfWeightType::Bf16, &special);
    let huge =
        |role: TensorRole| weights(&medium())(role).map(|values| vec![f32::MAX; values.len()]);
    let message = write(&path, &medium(), &huge, &byte_tokenizer(), &extras, &RealDisk)
        .unwrap_err()
        .to_string();
    assert!(message.contains("model.embed_tokens.weight") && message.contains("BF16"), "{message}");
    assert!(!path.exists(), "nothing stays that a second try would meet");
    let try_again =
        || write(&path, &medium(), &weights(&medium()), &byte_tokenizer(), &extras, &RealDisk);
    try_again().unwrap();
    let again = try_again().unwrap_err().to_string();
    assert!(again.contains("there is a folder of that name"), "{again}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let far = SpecialTokens { bos: Some(299), ..special.clone() };
    let extras = folder_options(HfWeightType::F32, &far);
    let message =
        write(&folder.path().join("n"), &medium(), &huge, &byte_tokenizer(), &extras, &RealDisk)
            .unwrap_err()
            .to_string();
    assert!(message.contains("bos_token") && message.contains("299"), "{message}");
}
