//! GGUF files written and read again.

use super::common::{
    Raw, byte_tokenizer, export_to, gguf_name, gguf_options, medium, small, special, string,
    weights,
};
use formats::gguf::{
    GgmlType, Gguf, GgufModel, GgufValue, GgufWeightType, TensorToWrite, dequantise, quantise_q4_0,
    quantise_q8_0, write,
};
use formats::{ArchConfig, LayerRole, ModelFile, RopeScaling, TensorRole, TensorSource};
use std::path::Path;

fn open(path: &Path) -> GgufModel {
    GgufModel::new(Gguf::open(path).unwrap()).unwrap()
}

#[test]
fn a_model_comes_back_bit_by_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (name, settings) in [
        ("tied", medium()),
        (
            "untied",
            ArchConfig { tied: false, kv_heads: 4, head_dim: 16, norm_eps: 1e-6, ..medium() },
        ),
        (
            "linear",
            ArchConfig { rope_scaling: Some(RopeScaling::Linear { factor: 2.5 }), ..medium() },
        ),
    ] {
        let path = folder.path().join(name);
        export_to(&path, &settings, GgufWeightType::F32, &byte_tokenizer()).unwrap();
        let model = ModelFile::open(&path).unwrap();
        assert!(matches!(model, ModelFile::Gguf(_)));
        assert_eq!(model.settings(), &settings);
        assert_eq!(model.special().unwrap(), special());
        assert_eq!(model.path(), path);
        for role in TensorRole::all(&settings) {
            assert_eq!(model.tensor(role).unwrap(), weights(&settings)(role).unwrap(), "{role}");
        }
        assert!(!folder.path().join(format!(".tmp-{name}")).exists());
    }
}

#[test]
fn query_rows_lie_interleaved_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, settings) = (folder.path().join("m.gguf"), medium());
    export_to(&path, &settings, GgufWeightType::F32, &byte_tokenizer()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    for (role, heads) in [(LayerRole::Query, 4), (LayerRole::Key, 2)] {
        let role = TensorRole::Layer(1, role);
        let (stored, ours) =
            (gguf.read_f32(&gguf_name(role)).unwrap(), weights(&settings)(role).unwrap());
        let row = |values: &[f32], i: usize| values[i * 64..(i + 1) * 64].to_vec();
        for head in 0..heads {
            for i in 0..4 {
                assert_eq!(row(&stored, head * 8 + 2 * i), row(&ours, head * 8 + i));
                assert_eq!(row(&stored, head * 8 + 2 * i + 1), row(&ours, head * 8 + i + 4));
            }
        }
    }
    let value = TensorRole::Layer(1, LayerRole::Value);
    assert_eq!(gguf.read_f32(&gguf_name(value)).unwrap(), weights(&settings)(value).unwrap());
}

#[test]
fn rounded_weights_are_those_of_their_type() {
    let folder = tempfile::tempdir().unwrap();
    let settings = medium();
    for (kind, stored) in [
        (GgufWeightType::F16, GgmlType::F16),
        (GgufWeightType::Q8_0, GgmlType::Q8_0),
        (GgufWeightType::Q4_0, GgmlType::Q4_0),
    ] {
        let path = folder.path().join(stored.to_string());
        export_to(&path, &settings, kind, &byte_tokenizer()).unwrap();
        let llama = open(&path);
        for role in TensorRole::all(&settings) {
            let exact = weights(&settings)(role).unwrap();
            let (found, bytes) = llama.gguf().raw(&gguf_name(role)).unwrap();
            if role.shape(&settings).len() == 1 {
                assert_eq!((found, llama.tensor(role).unwrap()), (GgmlType::F32, exact));
                continue;
            }
            assert_eq!(found, stored);
            let mut expected = Vec::new();
            match stored {
                GgmlType::Q8_0 => quantise_q8_0(&exact, &mut expected),
                GgmlType::Q4_0 => quantise_q4_0(&exact, &mut expected),
                _ => expected
                    .extend(exact.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes())),
            }
            assert_eq!(bytes.len(), expected.len(), "{role}");
            if !matches!(role, TensorRole::Layer(_, LayerRole::Query | LayerRole::Key)) {
                assert_eq!(bytes, expected, "{role}");
            }
            let mut values = Vec::new();
            dequantise(stored, &expected, &mut values);
            assert_eq!(llama.tensor(role).unwrap(), values, "{role}");
        }
    }
}

#[test]
fn every_stored_type_is_read_out_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("types.gguf");
    let kinds: Vec<GgmlType> = GgmlType::all().collect();
    let tensors: Vec<TensorToWrite> = kinds
        .iter()
        .map(|&kind| TensorToWrite { name: kind.to_string(), kind, shape: vec![3, 2, 256] })
        .collect();
    // Bytes below 0x3c, so that no scale is infinite whichever two bytes it is made of.
    let data = |i: usize| -> Vec<u8> {
        let len = 6 * 256 / kinds[i].block_len() * kinds[i].block_bytes();
        (0..len).map(|j| ((j * 31 + i * 7) % 0x3c) as u8).collect()
    };
    write(&path, &[], &tensors, |i| Ok(data(i))).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.tensors().len(), kinds.len());
    for (i, &kind) in kinds.iter().enumerate() {
        let name = kind.to_string();
        let mut expected = Vec::new();
        dequantise(kind, &data(i), &mut expected);
        assert_eq!(gguf.tensor(&name).unwrap().shape, [3, 2, 256]);
        assert_eq!(gguf.raw(&name).unwrap(), (kind, data(i)));
        assert_eq!(gguf.read_f32(&name).unwrap(), expected);
        assert_eq!(expected.len(), 3 * 2 * 256);
    }
    assert!(gguf.read_f32("none").unwrap_err().to_string().contains("tensor \"none\""));
}

#[test]
fn settings_of_every_type_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.gguf");
    let mut raw = Raw::small();
    for (key, code, bytes) in [
        ("u8", 0, vec![200]),
        ("i8", 1, vec![5]),
        ("u16", 2, 60_000_u16.to_le_bytes().to_vec()),
        ("i16", 3, 7_i16.to_le_bytes().to_vec()),
        ("i32", 5, (-7_i32).to_le_bytes().to_vec()),
        ("u64", 10, u64::MAX.to_le_bytes().to_vec()),
        ("i64", 11, 9_i64.to_le_bytes().to_vec()),
        ("f64", 12, 0.1_f64.to_le_bytes().to_vec()),
        ("f32", 6, 0.1_f32.to_le_bytes().to_vec()),
        ("bool", 7, vec![1]),
        ("floats", 9, super::common::array(6, &[0.5_f32.to_le_bytes().to_vec()])),
        (
            "nested",
            9,
            super::common::array(
                9,
                &[super::common::array(8, &[string("x")]), super::common::array(0, &[])],
            ),
        ),
    ] {
        raw.set(key, code, bytes);
    }
    std::fs::write(&path, raw.bytes()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let m = gguf.metadata();
    let unsigned = |key: &str| m.unsigned(key).unwrap().unwrap();
    let found = ["u8", "i8", "u16", "i16", "u64", "i64"].map(unsigned);
    assert_eq!(found, [200, 5, 60_000, 7, u64::MAX, 9]);
    assert_eq!((m.float("f32").unwrap(), m.float("f64").unwrap()), (Some(0.1), Some(0.1)));
    assert_eq!((m.bool("bool").unwrap(), m.unsigned("absent").unwrap()), (Some(true), None));
    assert_eq!(m.floats("floats").unwrap().unwrap(), [0.5]);
    assert_eq!(m.integers("tokenizer.ggml.token_type").unwrap().unwrap(), [3, 3, 1, 1, 1, 1, 1, 1]);
    assert_eq!(m.strings("tokenizer.ggml.merges").unwrap().unwrap(), ["a b", "\u{120} a"]);
    assert!(m.has("nested") && m.keys().any(|key| key == "nested"));
    for (error, parts) in [
        (m.unsigned("i32").unwrap_err(), ["i32", "negative"]),
        (m.unsigned("f32").unwrap_err(), ["f32", "an integer"]),
        (m.string("u8").unwrap_err(), ["u8", "a string"]),
        (m.strings("nested").unwrap_err(), ["nested", "an array of strings"]),
        (m.integers("floats").unwrap_err(), ["floats", "an array of 32-bit integers"]),
        (m.floats("bool").unwrap_err(), ["bool", "an array of f32"]),
    ] {
        let message = error.to_string();
        assert!(
            message.contains("settings.gguf") && parts.iter().all(|part| message.contains(part)),
            "{message}"
        );
    }
}

#[test]
fn the_raw_small_file_equals_the_written_one_in_meaning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw.gguf");
    for version in [2, 3] {
        std::fs::write(&path, Raw { version, ..Raw::small() }.bytes()).unwrap();
        let llama = open(&path);
        assert_eq!(llama.settings(), &small());
        let embed = weights(&small())(TensorRole::Embed).unwrap();
        assert_eq!(llama.tensor(TensorRole::Embed).unwrap(), embed);
    }
    let mut wide = Raw::small();
    wide.set("general.alignment", 4, 64_u32.to_le_bytes().to_vec());
    wide.alignment = 64;
    wide.tensors.iter_mut().for_each(|tensor| tensor.offset *= 2);
    wide.data = wide.data.chunks(32).flat_map(|chunk| [chunk, &[0; 32]].concat()).collect();
    std::fs::write(&path, wide.bytes()).unwrap();
    // Rows longer than 32 bytes are torn apart by this spreading, so only the shapes are compared.
    assert_eq!(Gguf::open(&path).unwrap().tensors().len(), 12);
}

#[test]
fn what_the_form_cannot_hold_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let fails = |settings: &ArchConfig, kind, field: &str| {
        let message = export_to(&path, settings, kind, &byte_tokenizer()).unwrap_err().to_string();
        assert!(message.contains("m.gguf") && message.contains(field), "{message}");
        assert!(
            std::fs::read_dir(folder.path()).unwrap().next().is_none(),
            "nothing is left behind"
        );
    };
    fails(&ArchConfig { width: 48, ..medium() }, GgufWeightType::Q8_0, "token_embd.weight");
    fails(&ArchConfig { vocab: 200, ..medium() }, GgufWeightType::F32, "model.vocab");
    fails(&ArchConfig { layers: 0, ..medium() }, GgufWeightType::F32, "layers");
    fails(&ArchConfig { norm_eps: f64::NAN, ..medium() }, GgufWeightType::F32, "norm_eps");
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192 };
    fails(
        &ArchConfig { rope_scaling: Some(llama3), ..medium() },
        GgufWeightType::F32,
        "rope_scaling",
    );
    let tensor = |name: &str, shape: &[usize]| TensorToWrite {
        name: name.into(),
        kind: GgmlType::F32,
        shape: shape.to_vec(),
    };
    let write_fails = |settings: &[(String, GgufValue)], tensors: &[TensorToWrite], field: &str| {
        let message = write(&path, settings, tensors, |_| Ok(vec![0; 4])).unwrap_err().to_string();
        assert!(message.contains(field), "{message}");
    };
    write_fails(&[], &[tensor("a", &[2])], "tensor \"a\": data");
    write_fails(&[], &[tensor("a", &[1]), tensor("a", &[1])], "tensor \"a\"");
    write_fails(&[], &[tensor("a", &[1, 0])], "tensor \"a\"");
    write_fails(&[], &[tensor("a", &[])], "tensor \"a\"");
    write_fails(&[], &[tensor("a", &[usize::MAX, usize::MAX])], "tensor \"a\"");
    let twice = [("k".to_owned(), GgufValue::Bool(true)), ("k".to_owned(), GgufValue::U64(1))];
    write_fails(&twice, &[], "setting \"k\"");
    write_fails(&[("general.alignment".to_owned(), GgufValue::U32(8))], &[], "general.alignment");
}

#[test]
fn weights_that_are_not_finite_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let (path, settings, special) = (folder.path().join("m.gguf"), medium(), special());
    let tokenizer = byte_tokenizer();
    for (kind, value) in [
        (GgufWeightType::F32, f32::NAN),
        (GgufWeightType::F16, 70_000.0),
        (GgufWeightType::Q8_0, 1e30),
        (GgufWeightType::F32, f32::INFINITY),
    ] {
        let parts = |role: TensorRole| {
            let mut values = weights(&settings)(role)?;
            if role == TensorRole::Layer(1, LayerRole::Gate) {
                values[77] = value;
            }
            Ok(values)
        };
        let export = gguf_options(kind, &tokenizer, &special);
        let message =
            formats::gguf::export(&path, &settings, &parts, &export).unwrap_err().to_string();
        assert!(message.contains("blk.1.ffn_gate.weight") && message.contains("[77]"), "{message}");
    }
    let short = |_: TensorRole| Ok(vec![0.0; 3]);
    let export = gguf_options(GgufWeightType::F32, &tokenizer, &special);
    let message = formats::gguf::export(&path, &settings, &short, &export).unwrap_err().to_string();
    assert!(message.contains("token_embd.weight") && message.contains("19200 values"), "{message}");
}
