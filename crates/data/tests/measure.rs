//! Speed of training and encoding on the packages this checkout depends on; run with `--ignored
//! --nocapture`.
#![allow(clippy::print_stdout)]

use data::build::{BuildOptions, build_documents};
use data::packages::collect;
use data::{Corpus, Split, Tokenizer, TrainOptions, Windows};
use std::path::Path;
use std::time::Instant;

#[test]
#[ignore = "a measurement of about a minute"]
fn speed_on_the_packages_of_this_checkout() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let start = Instant::now();
    let corpus = collect(&root, 40 << 20).unwrap();
    let bytes: u64 = corpus.files.iter().map(|f| f.bytes).sum();
    println!(
        "collect: {} files, {:.1} MB in {:.1?}",
        corpus.files.len(),
        bytes as f64 / 1e6,
        start.elapsed()
    );
    let dir = tempfile::tempdir().unwrap();
    for (vocab_size, max_bytes) in [(4096, None), (4096, Some(10 << 20)), (8192, None)] {
        let start = Instant::now();
        let options = TrainOptions { max_bytes, ..TrainOptions::new(vocab_size) };
        let tokenizer = Tokenizer::train(corpus.train_texts(), &options).unwrap();
        println!("train {vocab_size} ids, at most {max_bytes:?} bytes: {:.1?}", start.elapsed());
        let out = dir.path().join(format!("{vocab_size}-{max_bytes:?}"));
        let start = Instant::now();
        let manifest =
            build_documents(corpus.documents(), &tokenizer, &out, &BuildOptions::default())
                .unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let tokens = manifest.train.total.tokens + manifest.validation.total.tokens;
        println!(
            "build: {tokens} tokens in {seconds:.2} s, {:.2} M tokens/s, {:.1} MB/s, \
             {:.2} bytes per token, {} validation tokens",
            tokens as f64 / seconds / 1e6,
            bytes as f64 / seconds / 1e6,
            bytes as f64 / tokens as f64,
            manifest.validation.total.tokens
        );
        let start = Instant::now();
        let read = Corpus::open(&out, Split::Train).unwrap();
        println!("open and verify: {:.1?}", start.elapsed());
        let windows = Windows::new(&read, 512, 1).unwrap();
        let start = Instant::now();
        let count = windows.len().min(20_000);
        let sum: u64 = (0..count).map(|p| u64::from(windows.at(p).unwrap().targets[0])).sum();
        println!("windows: {count} of 512 in {:.1?} (sum {sum})", start.elapsed());
    }
}
