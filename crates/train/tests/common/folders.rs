//! Small runs in folders.

use std::path::{Path, PathBuf};

use checkpoint::RealDisk;
use data::build::{BuildOptions, build_documents};
use data::documents::Document;
use data::{Split, Tokenizer, TrainOptions};
use model::{KvMode, RouterConfig};
use train::{CheckpointConfig, LogConfig, Recipe, Resume, Run, Stop, TrainConfig};

/// A text that differs with `i`; every third one is written in letters of several bytes.
pub(crate) fn text(i: usize) -> String {
    let names = ["fox", "dog", "cat", "owl", "crab"];
    let wide = ["\u{e4}\u{f6}\u{fc}", "\u{4e16}\u{754c}", "\u{3b1}\u{3b2}"];
    let mut text = String::new();
    for k in 0..4 + i % 5 {
        let word = if i.is_multiple_of(3) { wide[(i + k) % 3] } else { names[(i + 2 * k) % 5] };
        text += &format!("{word} {} ", i * k % 17);
    }
    text
}

/// A data folder of two sources; another one for another `shift`.
pub(crate) fn data(dir: &Path, shift: usize) -> PathBuf {
    let tokenizer = Tokenizer::train((0..60).map(text), &TrainOptions::new(300)).expect("trained");
    let documents = (0..80).map(|i| {
        let split = if i % 2 == 0 { Split::Train } else { Split::Validation };
        let source = if i % 3 == 0 { "wide" } else { "plain" }.to_owned();
        (Document { source, license: None, text: text(i + shift) }, split)
    });
    let out = dir.join(format!("data{shift}"));
    build_documents(documents, &tokenizer, &out, &BuildOptions::default()).expect("built");
    out
}

/// A run of four steps that saves every second one.
pub(crate) fn small(data: &Path, router: RouterConfig) -> Recipe {
    let base = super::recipe(router, KvMode::RecursionWise);
    let train = TrainConfig { steps: 4, batch: 2, micro_batch: 2, ..base.train };
    let mut recipe = Recipe { train, ..base };
    recipe.model.vocab_size = 0;
    recipe.data.dir = data.display().to_string();
    recipe.checkpoint = CheckpointConfig { every: 2, keep_last: 5, keep_every: 0 };
    recipe.log = LogConfig {
        validate_every: 0,
        validate_windows: 4,
        calibrate_windows: 2,
        ..LogConfig::default()
    };
    recipe
}

pub(crate) fn open(recipe: &Recipe, out: &Path) -> Result<Run, train::TrainError> {
    Run::open(recipe, out, Resume::Auto, 0.0)
}

/// Opens a run and takes it to its end.
pub(crate) fn finish(recipe: &Recipe, out: &Path) -> Run {
    let mut run = open(recipe, out).expect("opens");
    run.go(&RealDisk, &|| 0.0, &mut |_| Stop::No).expect("runs");
    run
}
