//! Importance goes to llama.cpp's files and back under the names of every family, rounds with less
//! error where it counts, and is refused where it belongs to another model.

mod common;

use std::collections::BTreeMap;
use std::fs;

use checkpoint::RealDisk;
use common::{stored, tiny};
use convert::{ColumnSums, Importance, ImportanceNames, bank_size, quantize};
use formats::gguf::{Imatrix, ImatrixEntry};
use model::mlp::experts;
use model::params::Group;
use model::table::specs;
use model::{MlpConfig, ModelConfig, Sharing};
use ops::Format;
use serde_json::json;
use train::load_model;

fn of_experts(config: ModelConfig) -> ModelConfig {
    let mlp = experts::Config { count: 3, width: 40, ..experts::Config::default() };
    ModelConfig { mlp: MlpConfig::Experts(mlp), ..config }
}

/// Dense and of experts, plain and recursive.
fn configs() -> [ModelConfig; 4] {
    let (dense, shared) = (tiny(Sharing::None, 2, 1), tiny(Sharing::Cycle, 4, 2));
    [dense.clone(), shared.clone(), of_experts(dense), of_experts(shared)]
}

/// Sums that f32 holds; the last matrix of a bank met no row, and every third column counts more.
fn some(config: &ModelConfig) -> Importance {
    let mut weights = BTreeMap::new();
    let table = specs(config, &config.check().expect("legal"));
    for spec in table.iter().filter(|spec| spec.group == Group::Block) {
        let count = bank_size(config, spec);
        let sums = |i: usize| match i {
            2 => ColumnSums::default(),
            _ => ColumnSums {
                rows: 8 + i as u64,
                squares: (0..spec.shape.1)
                    .map(|j| if j % 3 == 0 { 64.0 + i as f64 } else { 0.25 })
                    .collect(),
            },
        };
        weights.insert(spec.name.clone(), (0..count).map(sums).collect());
    }
    Importance { weights }
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    for (i, config) in configs().iter().enumerate() {
        let names = ImportanceNames::of(&stored(&folder.path().join(i.to_string()), config, 3));
        let (names, path) = (names.expect("names"), folder.path().join(format!("{i}.gguf")));
        let importance = some(config);
        let count = names.write(&importance, &path, "a text", (2, 4)).expect("writes");
        assert_eq!(names.read(&path).expect("reads"), importance, "config {i}");
        let file = Imatrix::read(&path).expect("a file");
        assert_eq!((file.entries.len(), file.chunk_count, file.chunk_size), (count, 2, 4));
        let is_plain = config.sharing == Sharing::None;
        assert!(file.entries.keys().all(|name| name.starts_with("blk.") == is_plain), "config {i}");
        if i == 2 {
            let bank = &file.entries["blk.1.ffn_down_exps.weight"];
            assert_eq!(bank.counts, [8.0, 9.0, 0.0]);
            assert_eq!((bank.sums[0], bank.sums[40], bank.sums[81]), (64.0, 65.0, 0.0));
        }
        let said = names.write(&importance, &path, "", (0, 0)).expect_err("taken").to_string();
        assert!(said.contains("taken"), "{said}");
    }
}

/// Query, key and value of Phi-3 are one tensor with one input, which counts for all of ours.
#[test]
fn matrices_of_one_tensor_share_its_importance() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tiny(Sharing::None, 2, 1);
    let mut from = stored(&folder.path().join("phi"), &config, 3);
    from.origin = Some(json!({ "architecture": "Phi-3" }));
    let names = ImportanceNames::of(&from).expect("names");
    let (importance, path) = (some(&config), folder.path().join("phi.gguf"));
    names.write(&importance, &path, "a text", (1, 8)).expect("writes");
    let file = Imatrix::read(&path).expect("a file");
    let of_layer = ["attn_output", "attn_qkv", "ffn_down", "ffn_up"];
    let expected: Vec<String> = (0..2)
        .flat_map(|layer| of_layer.map(|name| format!("blk.{layer}.{name}.weight")))
        .collect();
    assert_eq!(file.entries.keys().cloned().collect::<Vec<_>>(), expected);
    assert!(file.entries.values().all(|entry| entry.counts.len() == 1), "{:?}", file.entries);
    assert_eq!(names.read(&path).expect("reads"), importance);
    // What no row met is no entry.
    let (mut importance, path) = (importance, folder.path().join("few.gguf"));
    importance.weights.remove("layers.1.down");
    names.write(&importance, &path, "a text", (1, 8)).expect("writes");
    let file = Imatrix::read(&path).expect("a file");
    assert!(file.entries.len() == 7 && !file.entries.contains_key("blk.1.ffn_down.weight"));
    assert_eq!(names.read(&path).expect("reads"), importance);
}

#[test]
fn errors_are_smaller_where_they_count() {
    let folder = tempfile::tempdir().expect("a folder");
    for (i, config) in configs().iter().enumerate() {
        let source = folder.path().join(format!("source{i}"));
        drop(stored(&source, config, 3));
        let importance = some(config);
        for format in ["int4", "int3", "int2"] {
            let format: Format = format.parse().expect("known");
            let run = |out: &str, importance: Option<&Importance>| {
                let (before, from) = [(); 2].map(|()| load_model(&source).expect("opens")).into();
                let out = folder.path().join(format!("{i}{format}{out}"));
                let (path, done) =
                    quantize(from, &format.into(), importance, &out, &RealDisk).expect("writes");
                let after = train::load_for_use(&path).expect("opens");
                let mut loss = 0.0;
                for ((spec, old), (_, new)) in
                    before.model.weights().iter().zip(after.model.weights())
                {
                    let Some(sums) = some(config).weights.remove(&spec.name) else { continue };
                    let (old, new) = (old.read(), new.read());
                    let (d, each) = (spec.shape.1, old.len() / sums.len());
                    for (at, (w, q)) in old.iter().zip(&new).enumerate() {
                        let counts = sums[at / each].squares.get(at % d).copied().unwrap_or(0.0);
                        loss += f64::from(w - q).powi(2) * counts;
                    }
                }
                (loss, done)
            };
            let (even, plain) = run("even", None);
            let (by, done) = run("by", Some(&importance));
            assert!(by < 0.9 * even, "config {i} {format}: {by}, {even} where all count equally");
            assert_eq!(done.bytes_after, plain.bytes_after);
            let unmet = done.without_importance.iter().filter(|name| name.ends_with(" 2")).count();
            assert_eq!(unmet, done.without_importance.len(), "{done:?}");
            assert_eq!(unmet > 0, i >= 2, "{done:?}");
        }
    }
}

#[test]
fn importance_of_another_model_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let [dense, _, moe, _] = configs();
    let of = |name: &str, config: &ModelConfig| {
        ImportanceNames::of(&stored(&folder.path().join(name), config, 3)).expect("names")
    };
    let (dense, moe) = (of("dense", &dense), of("moe", &moe));
    let path = folder.path().join("bad.gguf");
    let entry = |m: usize, d: usize| ImatrixEntry { counts: vec![2.0; m], sums: vec![1.0; m * d] };
    for (names, tensor, entry, needle) in [
        (&dense, "blk.0.ffn_down_exps.weight", entry(3, 40), "tensors of this model"),
        (&dense, "blk.2.attn_q.weight", entry(1, 24), "blk.2"),
        (&dense, "layers.0.query", entry(1, 24), "layers.0.query"),
        (&dense, "blk.0.attn_q.weight", entry(1, 25), "24 columns"),
        (&dense, "blk.0.attn_q.weight", entry(2, 24), "1 matrices"),
        (&moe, "blk.0.ffn_down_exps.weight", entry(4, 40), "3 matrices"),
        (&moe, "blk.0.ffn_down_exps.weight", entry(3, 24), "40 columns"),
    ] {
        let entries = BTreeMap::from([(tensor.to_owned(), entry)]);
        Imatrix { entries, ..Imatrix::default() }.write(&path).expect("writes");
        let said = names.read(&path).expect_err(tensor).to_string();
        assert!(said.contains(needle) && said.contains("imatrix"), "{tensor}: {said}");
        fs::remove_file(&path).expect("removes");
    }
    // What llama-imatrix was asked for beside, and a file of one tensor.
    let entries = BTreeMap::from([
        ("output.weight".to_owned(), entry(1, 24)),
        ("blk.1.attn_q.weight".to_owned(), entry(1, 24)),
    ]);
    Imatrix { entries, ..Imatrix::default() }.write(&path).expect("writes");
    let found = dense.read(&path).expect("reads").weights;
    assert_eq!(found.keys().collect::<Vec<_>>(), ["layers.1.query"]);
}
