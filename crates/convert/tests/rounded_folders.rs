//! Rounded models go out as compressed-tensors packs them: what stands in the folder is the weights
//! that the checkpoint computes with, and what that form cannot hold is refused by name.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use checkpoint::RealDisk;
use common::{fixture, ids, logits, stored, tiny};
use convert::{ConvertError, HfWeightType, export_hugging_face, import, quantize};
use model::mlp::experts;
use model::{ConfigError, MlpConfig, Model, ModelConfig, Rule, Sharing};
use ops::Weight;
use serde_json::{Value, json};
use train::load_for_use;

/// Rows of whole groups of 32 and of 64, but for those of `down`.
fn wide() -> ModelConfig {
    ModelConfig { vocab_size: 300, width: 128, heads: 4, head_dim: 32, ffn: 96, ..dense() }
}

fn dense() -> ModelConfig {
    tiny(Sharing::None, 2, 1)
}

/// The formats as the name of a folder.
fn plain(formats: &str) -> String {
    formats.replace(['*', ',', '='], "-")
}

/// A model in these formats, and what came of its folder `out`.
fn exported(
    folder: &Path,
    config: &ModelConfig,
    formats: &str,
) -> (train::Stored, Result<(), ConvertError>) {
    let name = plain(formats);
    let mut from = stored(&folder.join(format!("{name}-source")), config, 5);
    from.tokenizer = fs::read(fixture("tied").join("tokenizer.json")).ok();
    let formats = formats.parse().expect("formats");
    let rounded = folder.join(format!("{name}-rounded"));
    let (path, _) = quantize(from, &formats, None, &rounded, &RealDisk).expect("rounds");
    let rounded = load_for_use(&path).expect("opens");
    let out = folder.join(format!("{name}-out"));
    let done = export_hugging_face(&rounded, &out, HfWeightType::F32, &RealDisk);
    assert_eq!(done.is_ok(), out.exists(), "{name}");
    (rounded, done)
}

/// The tensors of a safetensors file: type, shape, bytes.
fn tensors(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(path).expect("a file");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    let entries = header.into_iter().filter(|(name, _)| name != "__metadata__");
    entries
        .map(|(name, entry)| {
            let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone()).expect("sizes");
            let at: [usize; 2] =
                serde_json::from_value(entry["data_offsets"].clone()).expect("offsets");
            let data = bytes[8 + length..][at[0]..at[1]].to_vec();
            (name, (entry["dtype"].as_str().expect("a type").to_owned(), shape, data))
        })
        .collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().expect("four"))).collect()
}

/// The numbers of a packed matrix, by the formula of its form.
fn unpacked(
    all: &BTreeMap<String, (String, Vec<usize>, Vec<u8>)>,
    module: &str,
    bits: usize,
) -> Vec<f32> {
    let part = |suffix: &str| &all[&format!("{module}.{suffix}")];
    let (kind, shape, sizes) = part("weight_shape");
    assert_eq!((kind.as_str(), shape.as_slice()), ("I64", &[2][..]));
    let size = |at: usize| i64::from_le_bytes(sizes[8 * at..][..8].try_into().expect("eight"));
    let (n, d) = (size(0) as usize, size(1) as usize);
    let (kind, shape, packed) = part("weight_packed");
    assert_eq!((kind.as_str(), shape.as_slice()), ("I32", &[n, (d * bits).div_ceil(32)][..]));
    let (kind, shape, scales) = part("weight_scale");
    assert_eq!((kind.as_str(), shape[0]), ("F32", n));
    let (scales, groups, row) = (floats(scales), shape[1], packed.len() / n);
    let number = |i: usize, j: usize| {
        let bit = |at: usize| i32::from(packed[i * row + at / 8] >> (at % 8) & 1);
        let code: i32 = (0..bits).map(|k| bit(j * bits + k) << k).sum();
        (code - (1 << (bits - 1))) as f32 * scales[i * groups + j * groups / d]
    };
    (0..n * d).map(|at| number(at / d, at % d)).collect()
}

/// What `bench/reference/packed_folders.py` compares: logits with the numbers of the codes.
fn keep(model: &train::Stored, out: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(out).expect("a folder") {
        let entry = entry.expect("a file");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
    let numbers = Model::over(model.model.config(), |spec| -> Result<Weight, ConfigError> {
        let known = model.model.weights().iter().find(|(known, _)| known.place == spec.place);
        let values = known.expect("the same table").1.read();
        Ok(Weight::new(values, spec.shape.0, spec.shape.1))
    });
    let found = logits(&numbers.expect("a model"), &Rule::NonCausal, &ids());
    let expected = json!({ "ids": ids(), "logits": found });
    fs::write(to.join("expected.json"), expected.to_string()).expect("writes");
}

/// With `LATHE_WRITE_MODELS`, a folder, the models stay there with what they must give.
#[test]
fn what_is_packed_is_what_the_model_computes_with() {
    let kept = std::env::var_os("LATHE_WRITE_MODELS");
    let folder = tempfile::tempdir().expect("a folder");
    for (formats, kinds) in [
        ("int8", vec![(8, json!(32))]),
        ("int8-row", vec![(8, Value::Null)]),
        ("int4-sym", vec![(4, json!(32))]),
        ("int4-sym-g64,*.down=int8", vec![(4, json!(64)), (8, json!(32))]),
        ("f32,*.gate_up=int4-sym", vec![(4, json!(32))]),
    ] {
        let (model, done) = exported(folder.path(), &wide(), formats);
        done.expect("writes");
        let out = folder.path().join(format!("{}-out", plain(formats)));
        if let Some(root) = &kept {
            keep(&model, &out, &Path::new(root).join(plain(formats)));
        }
        let config: Value =
            serde_json::from_slice(&fs::read(out.join("config.json")).expect("there"))
                .expect("JSON");
        let said = &config["quantization_config"];
        assert_eq!(
            (&said["quant_method"], &said["format"]),
            (&json!("compressed-tensors"), &json!("pack-quantized"))
        );
        let groups = said["config_groups"].as_object().expect("groups");
        assert_eq!(groups.len(), kinds.len(), "{formats}: {said}");
        let all = tensors(&out.join("model.safetensors"));
        let mut named = 0;
        for group in groups.values() {
            let weights = &group["weights"];
            let kind = (weights["num_bits"].as_u64().expect("bits"), weights["group_size"].clone());
            assert!(kinds.contains(&kind) && weights["symmetric"] == true, "{formats}: {said}");
            let strategy = if kind.1.is_null() { "channel" } else { "group" };
            assert_eq!(weights["strategy"], strategy);
            let targets = group["targets"].as_array().expect("targets");
            if targets == &[json!("Linear")] {
                assert!(kinds.len() == 1 && !formats.starts_with("f32"), "{formats}");
                continue;
            }
            for target in targets {
                let target = target.as_str().expect("a name");
                unpacked(&all, target, kind.0 as usize);
                named += 1;
            }
        }
        let expected = match formats {
            "f32,*.gate_up=int4-sym" => 4,
            _ if kinds.len() > 1 => 14,
            _ => 0,
        };
        assert_eq!(named, expected, "{formats}");
        let weight = |name: &str| {
            let all = model.model.weights();
            all.iter().find(|(spec, _)| spec.name == name).expect(name).1.read()
        };
        let (gate_up, down) = (weight("layers.1.gate_up"), weight("layers.1.down"));
        let of = |name: &str, bits: usize| unpacked(&all, &format!("model.layers.1.{name}"), bits);
        let bits = if formats.starts_with("int8") { 8 } else { 4 };
        assert_eq!(of("mlp.up_proj", bits), gate_up[gate_up.len() / 2..], "{formats}");
        if !formats.starts_with("f32") {
            assert_eq!(
                of("mlp.down_proj", if kinds.len() > 1 { 8 } else { bits }),
                down,
                "{formats}"
            );
            let key_value = weight("layers.1.key_value");
            assert_eq!(of("self_attn.k_proj", bits), key_value[..key_value.len() / 2], "{formats}");
        }
        // Embedding and norms are the numbers that the model computes with.
        assert_eq!(floats(&all["model.embed_tokens.weight"].2), weight("embed"), "{formats}");
        assert!(all.contains_key("model.norm.weight"));
        let back = folder.path().join("back");
        let said = import(&out, &back, &RealDisk).expect_err("packed").to_string();
        assert!(said.contains("quantization_config"), "{said}");
    }
}

/// A head of its own goes out as numbers, and rows that are one group have a scale a row.
#[test]
fn heads_are_numbers_and_short_rows_one_group() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = ModelConfig { tie_embeddings: false, vocab_size: 300, ..dense() };
    let (model, done) = exported(folder.path(), &config, "int8");
    done.expect("writes");
    let out = folder.path().join("int8-out");
    let all = tensors(&out.join("model.safetensors"));
    let head = model.model.weights().iter().find(|(spec, _)| spec.name == "head").expect("a head");
    assert_eq!(floats(&all["lm_head.weight"].2), head.1.read());
    assert_eq!(all["model.layers.0.mlp.up_proj.weight_scale"].1, [32, 1]);
    let config: Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).expect("there")).expect("JSON");
    let weights = &config["quantization_config"]["config_groups"]["group_0"]["weights"];
    assert_eq!(weights["strategy"], "channel", "{weights}");
}

/// Phi-3 has query, key and value in one matrix: their codes one below the other.
#[test]
fn matrices_of_one_tensor_are_packed_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let phi = |formats: &str| {
        let (mut model, _) = exported(folder.path(), &wide(), formats);
        model.origin = Some(json!({ "architecture": "Phi-3" }));
        let out = folder.path().join(format!("{}-phi", plain(formats)));
        let done = export_hugging_face(&model, &out, HfWeightType::F32, &RealDisk);
        (model, out, done)
    };
    let (model, out, done) = phi("int4-sym");
    done.expect("writes");
    let all = tensors(&out.join("model.safetensors"));
    let weight = |name: &str| {
        let all = model.model.weights();
        all.iter().find(|(spec, _)| spec.name == name).expect(name).1.read()
    };
    let expected = [weight("layers.1.query"), weight("layers.1.key_value")].concat();
    assert_eq!(unpacked(&all, "model.layers.1.self_attn.qkv_proj", 4), expected);
    let found = unpacked(&all, "model.layers.1.mlp.gate_up_proj", 4);
    assert_eq!(found, weight("layers.1.gate_up"));
    let said = phi("int4-sym,*.query=int8").2.expect_err("two formats").to_string();
    assert!(said.contains("qkv_proj") && said.contains("one format"), "{said}");
}

#[test]
fn what_the_form_cannot_hold_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let mlp = experts::Config { count: 2, width: 32, ..experts::Config::default() };
    let moe = ModelConfig { mlp: MlpConfig::Experts(mlp), ..wide() };
    for (config, formats, needles) in [
        (wide(), "int4", &["int4", "minima", "int4-sym"][..]),
        (wide(), "int3", &["int3", "minima"]),
        (wide(), "int8,layers.1.down=int2-g64", &["int2-g64", "minima"]),
        (wide(), "int4-sym-g64", &["down_proj", "whole groups of 64", "rows of 96"]),
        (moe, "int8", &["experts", "f32 checkpoint"]),
    ] {
        let said = exported(folder.path(), &config, formats).1.expect_err(formats).to_string();
        assert!(needles.iter().all(|needle| said.contains(needle)), "{formats}: {said}");
    }
}
