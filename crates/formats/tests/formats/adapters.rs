//! Every kind of adapter that is read: gradients are central differences of what merging makes, and
//! a whole file passes.

use std::collections::BTreeMap;
use std::path::Path;

use formats::hf::AllTensors;
use formats::peft::{AdapterFolder, Affine, PlacedAdapters, kinds};
use formats::{Additions, ArchConfig, Architecture};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common;

/// A kind, its config, and the shapes of its tensors.
type Case = (&'static str, Value, Vec<(String, Vec<usize>)>);
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Queries `[8, 6]`, keys and values `[4, 6]`, an output matrix `[6, 8]`; biases ahead.
fn settings() -> ArchConfig {
    let additions =
        Additions { qkv_bias: true, output_bias: true, mlp_bias: true, ..Additions::default() };
    ArchConfig {
        width: 6,
        heads: 2,
        head_dim: 4,
        kv_heads: 1,
        ffn: 10,
        additions,
        ..common::small()
    }
}

fn base() -> AllTensors {
    let (settings, path) = (settings(), Path::new("base"));
    let llama = Architecture::that_holds(&settings, false, None).expect("Llama");
    AllTensors::of(llama, &settings, path).expect("names").expect("folders")
}

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";
const DOWN: &str = "base_model.model.model.layers.0.mlp.down_proj";

/// A config beside `peft_type`, and the shapes of tensors: of every kind its forms.
fn cases() -> Vec<Case> {
    let on = |module: &str, leaves: &[(&str, &[usize])]| {
        let named = |(leaf, shape): &(&str, &[usize])| (format!("{module}.{leaf}"), shape.to_vec());
        leaves.iter().map(named).collect::<Vec<_>>()
    };
    let lora: &[(&str, &[usize])] = &[("lora_A.weight", &[3, 6]), ("lora_B.weight", &[8, 3])];
    let with = |leaf: &'static str, shape: &'static [usize]| [lora, &[(leaf, shape)]].concat();
    let q = json!(["q_proj"]);
    let lora_config = |more: Value| {
        let mut config = json!({"target_modules": q, "r": 3, "lora_alpha": 5});
        let more = more.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(more);
        config
    };
    let embedding = "base_model.model.model.embed_tokens";
    vec![
        ("LORA", lora_config(json!({})), on(Q, lora)),
        ("LORA", lora_config(json!({"use_rslora": true})), on(Q, lora)),
        (
            "LORA",
            lora_config(json!({"use_dora": true})),
            on(Q, &with("lora_magnitude_vector", &[8])),
        ),
        ("LORA", lora_config(json!({"lora_bias": true})), on(Q, &with("lora_B.bias", &[8]))),
        (
            "LORA",
            json!({"target_modules": ["embed_tokens"], "r": 2, "lora_alpha": 3}),
            on(embedding, &[("lora_embedding_A", &[2, 8]), ("lora_embedding_B", &[6, 2])]),
        ),
        (
            "VERA",
            json!({"target_modules": q, "r": 4, "save_projection": true}),
            [
                on(Q, &[("vera_lambda_b", &[8]), ("vera_lambda_d", &[4])]),
                on("base_model", &[("vera_A", &[4, 7]), ("vera_B", &[9, 4])]),
            ]
            .concat(),
        ),
        (
            "LOHA",
            json!({"target_modules": q, "r": 2, "alpha": 3}),
            on(
                Q,
                &[
                    ("hada_w1_a", &[8, 2]),
                    ("hada_w1_b", &[2, 6]),
                    ("hada_w2_a", &[8, 2]),
                    ("hada_w2_b", &[2, 6]),
                ],
            ),
        ),
        (
            "LOKR",
            json!({"target_modules": q, "r": 2, "alpha": 3}),
            on(Q, &[("lokr_w1", &[2, 3]), ("lokr_w2_a", &[4, 2]), ("lokr_w2_b", &[2, 2])]),
        ),
        (
            "LOKR",
            json!({"target_modules": q, "r": 2, "alpha": 3}),
            on(Q, &[("lokr_w1_a", &[4, 2]), ("lokr_w1_b", &[2, 2]), ("lokr_w2", &[2, 3])]),
        ),
        (
            "IA3",
            json!({"target_modules": q, "feedforward_modules": []}),
            on(Q, &[("ia3_l", &[8, 1])]),
        ),
        (
            "IA3",
            json!({"target_modules": ["down_proj"], "feedforward_modules": ["down_proj"]}),
            on(DOWN, &[("ia3_l", &[1, 10])]),
        ),
        ("MISS", json!({"target_modules": q, "r": 4}), on(Q, &[("miss_block", &[4, 8])])),
        (
            "MISS",
            json!({"target_modules": q, "r": 2, "init_weights": "bat"}),
            on(Q, &[("miss_block", &[4, 2, 2])]),
        ),
        (
            "MISS",
            json!({"target_modules": q, "r": 3, "init_weights": "mini", "mini_r": 4}),
            on(Q, &[("miss_block", &[3, 4])]),
        ),
        (
            "HIRA",
            json!({"target_modules": q, "r": 2}),
            on(Q, &[("hira_A", &[2, 6]), ("hira_B", &[8, 2])]),
        ),
        (
            "OFT",
            json!({"target_modules": q, "use_cayley_neumann": false}),
            on(Q, &[("oft_R.weight", &[2, 3])]),
        ),
        (
            "OFT",
            json!({"target_modules": q, "num_cayley_neumann_terms": 6}),
            on(Q, &[("oft_R.weight", &[2, 3])]),
        ),
        (
            "FOURIERFT",
            json!({"target_modules": q, "n_frequency": 7, "random_loc_seed": 3, "scaling": 40.0}),
            on(Q, &[("fourierft_spectrum", &[7])]),
        ),
        (
            "WAVEFT",
            json!({"target_modules": q, "n_frequency": 7, "random_loc_seed": 3, "scaling": 2.0}),
            on(Q, &[("waveft_spectrum", &[7])]),
        ),
        (
            "WAVEFT",
            json!({"target_modules": q, "n_frequency": 7, "random_loc_seed": 3, "scaling": 2.0,
                "use_idwt": false}),
            on(Q, &[("waveft_spectrum", &[7])]),
        ),
    ]
}

/// Numbers between -1 and 1 that `seed` names.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn tensors(shapes: &[(String, Vec<usize>)]) -> Tensors {
    let mut tensors = Tensors::new();
    for (i, (name, shape)) in shapes.iter().enumerate() {
        let values = numbers(shape.iter().product(), i as u64 + 1);
        tensors.insert(name.clone(), (shape.clone(), values));
    }
    tensors
}

fn write(folder: &Path, kind: &str, config: &Value, tensors: &Tensors) {
    let mut config = config.clone();
    config["peft_type"] = kind.into();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("writes");
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (shape, values)) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Value::from(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(data);
    std::fs::write(folder.join("adapter_model.safetensors"), bytes).expect("writes");
}

fn placed(folder: &Path) -> PlacedAdapters {
    let folder = AdapterFolder::open(folder).expect("a folder of adapters");
    folder.over(&base()).expect("adapters of the base")
}

/// A base with numbers, of the shape of the only adapter.
fn affine(placed: &PlacedAdapters, seed: u64) -> Affine {
    let (matrices, out, into) = placed.adapters[0].shape;
    let doubles = |count, seed| numbers(count, seed).into_iter().map(f64::from).collect();
    let weight = doubles(matrices * out * into, seed);
    let bias = placed.adapters[0].bias.as_ref().map(|_| doubles(out, seed + 1));
    Affine { matrices, out, into, weight, bias }
}

/// `sum g W'` with the bias.
fn value(placed: &PlacedAdapters, base: &Affine, gradient: &Affine) -> f64 {
    let mut merged = base.clone();
    placed.adapters[0].change.merge(&mut merged);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let of_bias = match (&merged.bias, &gradient.bias) {
        (Some(bias), Some(gradient)) => dot(bias, gradient),
        _ => 0.0,
    };
    dot(&merged.weight, &gradient.weight) + of_bias
}

/// Lengths of the rows of `W + s B A` count as constants where there are magnitudes.
fn is_constant_in_part(config: &Value, name: &str) -> bool {
    config["use_dora"] == true && !name.ends_with("lora_magnitude_vector")
}

#[test]
fn gradients_of_adapters_are_central_differences() {
    let place = TempDir::new().expect("a folder");
    let mut seen = Vec::new();
    for (kind, config, shapes) in cases() {
        seen.push(kind);
        let tensors = tensors(&shapes);
        write(place.path(), kind, &config, &tensors);
        let placed = self::placed(place.path());
        let (base, gradient) = (affine(&placed, 100), affine(&placed, 200));
        let found = placed.adapters[0].change.gradients(&base, &gradient);
        assert!(!found.is_empty(), "{kind} {config}");
        for (leaf, found) in found {
            let key = &placed.adapters[0].keys[leaf];
            for (i, found) in
                found.iter().enumerate().filter(|_| !is_constant_in_part(&config, key))
            {
                let moved = |by: f32| {
                    let mut tensors = tensors.clone();
                    tensors.get_mut(key).expect("the tensor").1[i] += by;
                    write(place.path(), kind, &config, &tensors);
                    let at = f64::from(tensors[key].1[i]);
                    (at, value(&self::placed(place.path()), &base, &gradient))
                };
                let ((after, high), (before, low)) = (moved(1e-3), moved(-1e-3));
                let expected = (high - low) / (after - before);
                let error = (found - expected).abs() / expected.abs().max(1.0);
                assert!(error < 1e-4, "{kind} {config} {key}[{i}]: {found}, slope {expected}");
            }
        }
    }
    for kind in kinds() {
        assert!(seen.contains(&kind), "{kind} has no case");
    }
}
