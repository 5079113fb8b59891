//! What a forecast says against a real run: operations as the kernels count them, memory as the
//! system saw it. Each run is a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use checkpoint::RealDisk;
use data::build::{BuildOptions, build_documents};
use data::documents::Document;
use data::{Corpus, Split, Tokenizer, TrainOptions, Windows};
use model::adapters::Relaxation;
use model::adapters::lora::{self, AdaptedLayers};
use model::expert_routers::top_k;
use model::mlp::experts;
use model::routers::expert_choice::Config as Expert;
use model::{ExpertRouterConfig, MlpConfig, ModelConfig, RouterConfig, Sharing};
use serde_json::json;
use train::{
    CheckpointConfig, DataConfig, DistillConfig, Forecast, LogConfig, Recipe, Resume, Run, Stop,
    TrainConfig,
};

/// What tells the child its case, and its folder.
const CASE: &str = "LATHE_TEST_FORECAST_CASE";
const PLACE: &str = "LATHE_TEST_FORECAST_PLACE";
/// The file in which it says what it took.
const FOUND: &str = "found";
const LENGTH: usize = 128;

/// Sentences whose words differ with `i`.
fn text(i: u64) -> String {
    let words = ["router", "token", "depth", "layer", "weight", "model", "opens", "reads"];
    (0..60u64).map(|k| words[((i * 31 + k * k * 7 + k) % 8) as usize].to_owned() + " ").collect()
}

/// A data folder whose vocabulary has `vocab` ids, most of them never met.
fn data(dir: &Path, vocab: usize) {
    let options = TrainOptions::new(300);
    let learned = Tokenizer::train((0..50).map(text), &options).expect("learns");
    let mut json: serde_json::Value = serde_json::from_str(learned.to_json()).expect("JSON");
    let known = json["model"]["vocab"].as_object_mut().expect("a vocabulary");
    for id in learned.vocab_size()..vocab {
        known.insert(format!("unused{id}"), id.into());
    }
    let tokenizer = Tokenizer::from_json(&json.to_string()).expect("reads");
    let documents = (0..900).map(|i| {
        let split = if i % 6 == 0 { Split::Validation } else { Split::Train };
        (Document { text: text(i), source: "words".into(), license: None }, split)
    });
    build_documents(documents, &tokenizer, dir, &BuildOptions::default()).expect("builds");
}

fn base(dir: &Path) -> Recipe {
    let model = ModelConfig {
        width: 256,
        layers: 8,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        ffn: 704,
        context: LENGTH,
        sharing: Sharing::None,
        recursions: 1,
        router: RouterConfig::FIXED,
        vocab_size: 0,
        ..ModelConfig::default()
    };
    let train = TrainConfig { steps: 2, batch: 8, micro_batch: 4, ..TrainConfig::default() };
    Recipe {
        model,
        data: DataConfig {
            dir: dir.join("data").display().to_string(),
            sequence_length: LENGTH,
            ..DataConfig::default()
        },
        train,
        checkpoint: CheckpointConfig { every: 2, ..CheckpointConfig::default() },
        log: LogConfig {
            validate_every: 1,
            validate_windows: 6,
            calibrate_windows: 4,
            ..LogConfig::default()
        },
        ..Recipe::default()
    }
}

fn routed(base: Recipe, router: Expert) -> Recipe {
    let model = ModelConfig {
        sharing: Sharing::MiddleCycle,
        recursions: 3,
        router: RouterConfig::ExpertChoice(router),
        ..base.model
    };
    Recipe { model, ..base }
}

/// Recipes of different kinds, each with a name and the size of its vocabulary.
fn cases(dir: &Path) -> Vec<(&'static str, usize, Recipe)> {
    let dense = base(dir);
    let wide = TrainConfig { batch: 16, micro_batch: 16, ..dense.train.clone() };
    let again = TrainConfig { recompute: true, ..wide.clone() };
    let frozen = TrainConfig { freeze: vec!["layers.*".into(), "embed".into()], ..wide.clone() };
    let lora = lora::Config { rank: 8, layers: AdaptedLayers::All, ..lora::Config::default() };
    let mor = |train: &TrainConfig, router| {
        let recipe = routed(dense.clone(), router);
        Recipe { train: train.clone(), ..recipe }
    };
    let warm = Expert { capacity_warmup_steps: 2, ..Expert::default() };
    vec![
        ("dense", 1000, Recipe { train: wide.clone(), ..dense.clone() }),
        ("a routed model", 1000, mor(&wide, Expert::default())),
        ("capacities that fall", 1000, mor(&dense.train, warm)),
        ("routed layers run again", 1000, mor(&again, Expert::default())),
        ("experts", 1000, {
            let router = top_k::Config { top_k: 6, ..top_k::Config::default() };
            let mlp = experts::Config {
                count: 24,
                width: 128,
                shared: 128,
                dense_first: 1,
                router: ExpertRouterConfig::TopK(router),
                ..experts::Config::default()
            };
            let model =
                ModelConfig { mlp: MlpConfig::Experts(mlp), layers: 4, ..dense.model.clone() };
            Recipe { model, train: wide.clone(), ..dense.clone() }
        }),
        ("layers run again", 1000, Recipe { train: again, ..dense.clone() }),
        ("a large vocabulary", 25_000, dense.clone()),
        (
            "adapters on frozen layers",
            1000,
            Recipe {
                model: ModelConfig { relax: Relaxation::Lora(lora), ..dense.model.clone() },
                train: frozen,
                ..dense.clone()
            },
        ),
        ("a teacher", 4000, mor(&dense.train, Expert::default())),
    ]
}

/// Trains `recipe` to its end in `dir`.
fn train(recipe: &Recipe, dir: &Path) {
    let mut run = Run::open(recipe, dir, Resume::Never, 0.0).expect("opens");
    run.go(&RealDisk, &|| 0.0, &mut |_| Stop::No).expect("ends");
}

/// The run whose model is learned from.
fn teacher(dir: &Path) -> Recipe {
    let base = base(dir);
    let train = TrainConfig { steps: 1, batch: 1, micro_batch: 1, ..base.train };
    Recipe { train, ..base }
}

/// This test as a process that does `case` in `dir`.
fn child(case: &str, dir: &Path) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "one_run", "--nocapture"]).env(CASE, case).env(PLACE, dir);
    command.env("RAYON_NUM_THREADS", "2").output().expect("starts")
}

/// The most memory that this process had so far, in kB, where the system tells.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The child: runs its case and says what it took.
#[test]
fn one_run() {
    let Ok(case) = std::env::var(CASE) else { return };
    let dir = PathBuf::from(std::env::var(PLACE).expect("given with the case"));
    if case == "teacher" {
        return train(&teacher(&dir), &dir.join("teacher"));
    }
    // As the program does.
    ops::keep_freed_pages();
    let (name, vocab, mut recipe) = cases(&dir).swap_remove(case.parse().expect("a number"));
    let corpus = Corpus::open(Path::new(&recipe.data.dir), Split::Validation).expect("opens");
    let windows = Windows::new(&corpus, LENGTH, 0).expect("long enough").len();
    let mut taught = None;
    if name == "a teacher" {
        // In a process of its own, so that this one holds nothing of it.
        assert!(child("teacher", &dir).status.success());
        let checkpoint = dir.join("teacher").display().to_string();
        recipe.distill = DistillConfig { checkpoint, ..DistillConfig::default() };
        taught = Some(ModelConfig { vocab_size: vocab, ..teacher(&dir).model });
    }
    let before = ops::timing::multiply_adds();
    train(&recipe, &dir.join("run"));
    let done = 2.0 * (ops::timing::multiply_adds() - before) as f64;
    recipe.model.vocab_size = vocab;
    let forecast =
        Forecast { recipe: &recipe, teacher: taught.as_ref(), valid_windows: Some(windows) };
    let (work, memory) = (forecast.work().expect("legal"), forecast.memory().expect("legal"));
    let peak = peak_memory();
    let numbers = [done, work.total(), peak.map_or(0.0, |kb| 1024.0 * kb), memory.peak() as f64];
    let found = format!("{}\n{work:?} {memory:?}", json!(numbers));
    std::fs::write(dir.join(FOUND), found).expect("writes");
}

#[test]
fn runs_take_what_the_forecast_says() {
    for (case, (name, vocab, _)) in cases(Path::new("")).iter().enumerate() {
        let dir = tempfile::tempdir().expect("a folder");
        data(&dir.path().join("data"), *vocab);
        let child = child(&case.to_string(), dir.path());
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{name}: {said}");
        let found = std::fs::read_to_string(dir.path().join(FOUND)).expect("its numbers");
        let (numbers, parts) = found.split_once('\n').expect("two lines");
        let numbers: Vec<f64> = serde_json::from_str(numbers).expect("numbers");
        let (flops, peak) = (numbers[1] / numbers[0], numbers[3] / numbers[2]);
        let told = format!("{name}: forecast over real: operations {flops:.3}, memory {peak:.3}");
        assert!((0.95..1.05).contains(&flops), "{told}\n{parts}");
        assert!(numbers[2] == 0.0 || (0.85..1.15).contains(&peak), "{told}\n{parts}");
    }
}
