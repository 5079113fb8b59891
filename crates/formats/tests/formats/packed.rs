//! GPT-OSS with its banks in MXFP4: every number is code times power of two, read as one bank.

use super::common::{byte_tokenizer, medium, special};
use formats::architectures::ALL;
use formats::hf::{Folder, FolderOptions, HfWeightType, write};
use formats::{
    Additions, ArchConfig, ClampedProduct, Experts, LayerRole, SlidingWindow, TensorRole,
    TensorSource,
};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Experts, width of the model, width of an expert.
const SIZES: (usize, usize, usize) = (3, 64, 32);

fn settings() -> ArchConfig {
    let (count, width, inner) = SIZES;
    let of = Experts {
        count,
        top_k: 2,
        width: inner,
        logit_bias: true,
        biases: true,
        clamp: Some(ClampedProduct { limit: 7.0, alpha: 1.7 }),
        ..Experts::default()
    };
    let window = Some(SlidingWindow { size: 5, blocks: vec![0] });
    let additions = Additions {
        qkv_bias: true,
        output_bias: true,
        sinks: true,
        window,
        ..Additions::default()
    };
    let base = ArchConfig { tied: false, vocab: 270, width, ffn: inner, ..medium() };
    ArchConfig { experts: Some(of), additions, ..base }
}

/// Code and scale at a place of a bank `[E, rows, columns]` in codes.
fn code(seed: usize, e: usize, row: usize, column: usize) -> (u8, u8) {
    let dice = (e * 31 + row * 7 + column * 13 + seed) * 2_654_435_761 % 4_294_967_296;
    ((dice >> 13) as u8 & 15, 120 + ((e + row + column / 32) % 9) as u8)
}

/// What they are: sign, `2^(exponent - 1) (1 + mantissa / 2)`, or half the mantissa without one.
fn value((code, scale): (u8, u8)) -> f32 {
    let (sign, exponent, mantissa) = (code >> 3, code >> 1 & 3, f32::from(code & 1));
    let size = match exponent {
        0 => 0.5 * mantissa,
        _ => 2f32.powi(i32::from(exponent) - 1) * (1.0 + 0.5 * mantissa),
    };
    (if sign == 1 { -size } else { size }) * 2f32.powi(i32::from(scale) - 127)
}

type Tensors = Vec<(String, &'static str, Vec<usize>, Vec<u8>)>;

/// The tensors of a folder's file, and the file written anew.
fn edit(path: &Path, change: impl FnOnce(Tensors) -> Tensors) {
    let file = path.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensors = header.iter().filter(|(name, _)| *name != "__metadata__").map(|(name, of)| {
        let at = |i: usize| 8 + length + of["data_offsets"][i].as_u64().unwrap() as usize;
        let shape = of["shape"].as_array().unwrap().iter();
        let shape = shape.map(|n| n.as_u64().unwrap() as usize).collect();
        (name.clone(), "F32", shape, bytes[at(0)..at(1)].to_vec())
    });
    write_file(&file, change(tensors.collect()));
}

fn write_file(file: &Path, tensors: Tensors) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let (first, last) = (data.len(), data.len() + bytes.len());
        let of = json!({ "dtype": dtype, "shape": shape, "data_offsets": [first, last] });
        header.insert(name, of);
        data.extend(bytes);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(file, [&length[..], &header, &data].concat()).unwrap();
}

/// Every bank in codes.
fn packed(tensors: Tensors, spoil: impl Fn(&str, &mut Vec<usize>, &mut Vec<u8>)) -> Tensors {
    let (count, width, inner) = SIZES;
    let mut all = Tensors::new();
    for (name, dtype, shape, bytes) in tensors {
        let (rows, columns, seed) = match name.rsplit('.').next().unwrap() {
            "gate_up_proj" => (2 * inner, width, 1),
            "down_proj" => (width, inner, 2),
            _ => {
                all.push((name, dtype, shape, bytes));
                continue;
            }
        };
        let (mut blocks, mut scales) = (Vec::new(), Vec::new());
        for e in 0..count {
            for row in 0..rows {
                for first in (0..columns).step_by(32) {
                    scales.push(code(seed, e, row, first).1);
                    for pair in (first..first + 32).step_by(2) {
                        let [low, high] = [pair, pair + 1].map(|c| code(seed, e, row, c).0);
                        blocks.push(low | high << 4);
                    }
                }
            }
        }
        let shape = vec![count, rows, columns / 32];
        for (end, mut shape, mut bytes) in
            [("blocks", [&shape[..], &[16]].concat(), blocks), ("scales", shape, scales)]
        {
            let name = format!("{name}_{end}");
            spoil(&name, &mut shape, &mut bytes);
            all.push((name, "U8", shape, bytes));
        }
    }
    all
}

fn folder(path: &Path, method: &str, spoil: impl Fn(&str, &mut Vec<usize>, &mut Vec<u8>)) {
    let (settings, special) = (settings(), special());
    let architecture = ALL.iter().find(|member| member.name == "GPT-OSS").unwrap();
    let options = FolderOptions { architecture, weights: HfWeightType::F32, special: &special };
    let values = |role: TensorRole| Ok(vec![0.5; role.shape(&settings).iter().product()]);
    write(path, &settings, &values, &byte_tokenizer(), &options, &checkpoint::RealDisk).unwrap();
    edit(path, |tensors| packed(tensors, spoil));
    let config = path.join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let modules = ["model.layers.*.self_attn"];
    json["quantization_config"] =
        json!({ "quant_method": method, "modules_to_not_convert": modules });
    std::fs::write(config, json.to_string()).unwrap();
}

#[test]
fn banks_in_codes_of_four_bits_are_their_numbers() {
    let place = tempfile::tempdir().unwrap();
    folder(place.path(), "mxfp4", |_, _, _| {});
    let opened = Folder::open(place.path()).unwrap();
    let (count, width, inner) = SIZES;
    for layer in 0..settings().layers {
        for e in 0..count {
            for (role, seed, (rows, columns), at) in [
                (LayerRole::ExpertGate(e), 1, (inner, width), 0),
                (LayerRole::ExpertUp(e), 1, (inner, width), 1),
                (LayerRole::ExpertDown(e), 2, (width, inner), 2),
            ] {
                let found = opened.tensor(TensorRole::Layer(layer, role)).unwrap();
                let row_of = |row: usize| if at == 2 { row } else { 2 * row + at };
                let expected: Vec<f32> = (0..rows * columns)
                    .map(|i| value(code(seed, e, row_of(i / columns), i % columns)))
                    .collect();
                assert_eq!(found, expected, "layer {layer} {role:?}");
            }
        }
    }
    let router = opened.tensor(TensorRole::Layer(0, LayerRole::Router)).unwrap();
    assert!(router.iter().all(|x| *x == 0.5), "others are as they were");
}

#[test]
fn codes_and_scales_may_be_in_two_shards() {
    let (place, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for place in [&place, &whole] {
        folder(place.path(), "mxfp4", |_, _, _| {});
    }
    let (mut first, mut second) = (Tensors::new(), Tensors::new());
    edit(place.path(), |tensors| {
        (second, first) = retyped(tensors).into_iter().partition(|t| t.0.ends_with("_scales"));
        assert_eq!(second.len(), 2 * settings().layers);
        Tensors::new()
    });
    std::fs::remove_file(place.path().join("model.safetensors")).unwrap();
    let mut map = Map::new();
    for (shard, tensors) in [("a.safetensors", first), ("b.safetensors", second)] {
        map.extend(tensors.iter().map(|tensor| (tensor.0.clone(), json!(shard))));
        write_file(&place.path().join(shard), tensors);
    }
    let index = json!({ "weight_map": map }).to_string();
    std::fs::write(place.path().join("model.safetensors.index.json"), index).unwrap();
    let [opened, whole] = [&place, &whole].map(|place| Folder::open(place.path()).unwrap());
    for role in TensorRole::all(whole.settings()) {
        assert!(opened.tensor(role).unwrap() == whole.tensor(role).unwrap(), "{role:?}");
    }
}

#[test]
fn a_bank_in_numbers_beside_its_codes_is_refused() {
    let place = tempfile::tempdir().unwrap();
    folder(place.path(), "mxfp4", |_, _, _| {});
    let name = "model.layers.1.mlp.experts.down_proj";
    edit(place.path(), |tensors| {
        let (count, width, inner) = SIZES;
        let (shape, bytes) = (vec![count, inner, width], vec![0; 4 * count * inner * width]);
        let bank = (name.to_owned(), "F32", shape, bytes);
        retyped(tensors).into_iter().chain([bank]).collect()
    });
    let error = Folder::open(place.path()).expect_err("twice").to_string();
    assert!(error.contains(&format!("{name}\"")) && error.contains("_blocks"), "{error}");
}

/// Tensors of a packed folder as they are: [`edit`] takes all for numbers.
fn retyped(mut tensors: Tensors) -> Tensors {
    for tensor in &mut tensors {
        if tensor.0.ends_with("_blocks") || tensor.0.ends_with("_scales") {
            tensor.1 = "U8";
        }
    }
    tensors
}

#[test]
fn codes_that_are_none_are_refused_by_name() {
    let no_number = |name: &str, _: &mut Vec<usize>, bytes: &mut Vec<u8>| {
        if name.ends_with("1.mlp.experts.down_proj_scales") {
            bytes[3] = 255;
        }
    };
    let too_few = |name: &str, shape: &mut Vec<usize>, bytes: &mut Vec<u8>| {
        if name.ends_with("0.mlp.experts.down_proj_scales") {
            shape[0] -= 1;
            bytes.truncate(shape.iter().product());
        }
    };
    let narrow = |name: &str, shape: &mut Vec<usize>, bytes: &mut Vec<u8>| {
        if name.contains("0.mlp.experts.gate_up_proj_") {
            shape[2] -= 1;
            bytes.truncate(shape.iter().product());
        }
    };
    type Spoil = fn(&str, &mut Vec<usize>, &mut Vec<u8>);
    for (what, method, spoil, needles) in [
        ("another method", "fp8", (|_, _, _| {}) as Spoil, ["quantization_config", "mxfp4"]),
        ("no number", "mxfp4", no_number as Spoil, ["down_proj_scales", "255"]),
        ("too few scales", "mxfp4", too_few as Spoil, ["down_proj_blocks", "scales"]),
        ("too narrow", "mxfp4", narrow as Spoil, ["gate_up_proj", "[3, 32, 64]"]),
    ] {
        let place = tempfile::tempdir().unwrap();
        folder(place.path(), method, spoil);
        let read = Folder::open(place.path()).and_then(|opened| {
            TensorRole::all(opened.settings())
                .into_iter()
                .try_for_each(|role| opened.tensor(role).map(drop))
        });
        let error = read.expect_err(what).to_string();
        assert!(needles.iter().all(|needle| error.contains(needle)), "{what}: {error}");
    }
}
