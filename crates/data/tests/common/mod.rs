//! Small texts, a small vocabulary and a built folder for the tests of the room.

use data::build::{BuildOptions, build};
use data::documents::Input;
use data::{Manifest, Tokenizer, TrainOptions};
use std::path::Path;

/// A sentence that differs with `i`.
pub(crate) fn sentence(i: usize) -> String {
    let names = ["fox", "dog", "cat", "owl", "crab"];
    let verbs = ["sees", "likes", "hears"];
    let count = 1 + i % 7;
    (0..count)
        .map(|k| {
            format!(
                "The {} {} the {} number {}. ",
                names[(i + k) % 5],
                verbs[(i * k) % 3],
                names[(i / 5) % 5],
                i + k
            )
        })
        .collect()
}

/// A vocabulary of 320 ids, learned from the first 100 sentences.
pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::train((0..100).map(sentence), &TrainOptions::new(320)).unwrap()
}

/// Two JSONL files, one packed, with sources and licences.
pub(crate) fn write_inputs(dir: &Path) {
    std::fs::create_dir_all(dir.join("deep")).unwrap();
    let rows = |range: std::ops::Range<usize>, source: &str| -> String {
        range
            .map(|i| {
                format!(
                    "{}\n",
                    serde_json::json!({"text": sentence(i), "source": source, "license": "MIT"})
                )
            })
            .collect()
    };
    std::fs::write(dir.join("a.jsonl"), rows(0..150, "one") + &rows(150..160, "two")).unwrap();
    let file = std::fs::File::create(dir.join("deep/b.jsonl.gz")).unwrap();
    let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, rows(160..220, "three").as_bytes()).unwrap();
    packed.finish().unwrap();
    std::fs::write(dir.join("c.md"), sentence(3)).unwrap();
}

/// Builds `out` from `inputs` in small shards, one document in five for validation.
pub(crate) fn build_small(inputs: &Path, out: &Path) -> Manifest {
    let options =
        BuildOptions { valid_per_mille: 200, shard_tokens: 700, ..BuildOptions::default() };
    build(&[Input::from(inputs)], &tokenizer(), out, &options).unwrap()
}
