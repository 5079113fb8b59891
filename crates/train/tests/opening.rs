//! Which checkpoint a path means: itself, or of a run the newest one that verifies.

mod common;

use std::path::{Path, PathBuf};

use checkpoint::RealDisk;
use model::{KvMode, Model, ModelConfig, RouterConfig, RouterState};
use train::{Made, config_of, load_model, run_folder};

/// A model that `width` tells from others.
fn config(width: usize) -> ModelConfig {
    ModelConfig { width, ..common::recipe(RouterConfig::FIXED, KvMode::RecursionWise).model }
}

/// Writes a fresh model of `width` as the checkpoint of step `step` of the run at `run`.
fn step(run: &Path, step: u64, width: usize) -> PathBuf {
    let path = run.join("checkpoints").join(checkpoint::step_name(step));
    write(&path, width);
    path
}

fn write(path: &Path, width: usize) {
    try_to_write(path, width).expect("written");
}

fn try_to_write(path: &Path, width: usize) -> Result<PathBuf, train::TrainError> {
    let model = Model::fresh(&config(width), 5).expect("legal");
    let made = Made {
        config: model.config(),
        weights: train::tensors(&model).expect("whole"),
        rounded: None,
        recipe: None,
        rule: None,
        state: &RouterState::default(),
        tokenizer: None,
        text: None,
        origin: serde_json::Value::Null,
    };
    train::write_model(path, made, &RealDisk)
}

/// The width of the model at `path`, by its config alone and by all of it.
fn width(path: &Path) -> usize {
    let stored = load_model(path).expect("loads");
    let config = config_of(path).expect("a config");
    assert_eq!(config, *stored.model.config(), "{}", path.display());
    config.width
}

#[test]
fn a_path_is_a_checkpoint_or_the_newest_of_a_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = dir.path().join("run");
    let (old, new) = (step(&run, 2, 16), step(&run, 10, 24));
    assert_eq!((width(&old), width(&new), width(&run)), (16, 24, 24));
    // What quickstart makes holds its run as `run`, and the folder of checkpoints is known too.
    assert_eq!((width(dir.path()), width(&run.join("checkpoints"))), (24, 24));
    assert_eq!((run_folder(dir.path()), run_folder(&run)), (run.clone(), run.clone()));
    // A run is itself, whatever lies in it.
    let inner = run.join("run");
    step(&inner, 20, 32);
    assert_eq!((run_folder(&run), width(&run), width(&inner)), (run.clone(), 24, 32));
    std::fs::remove_dir_all(&inner).expect("removes");
    // Damage of the newest one: all of it falls back, and a path of its own does not.
    let weights = new.join("weights.safetensors");
    let mut bytes = std::fs::read(&weights).expect("reads");
    *bytes.last_mut().expect("weights") ^= 1;
    std::fs::write(&weights, bytes).expect("writes");
    let stored = load_model(&run).expect("the older one");
    assert_eq!((stored.model.config().width, stored.passed_over.len()), (16, 1));
    assert_eq!((&stored.folder, &stored.passed_over[0].path), (&old, &new));
    assert!(load_model(&new).is_err());
    std::fs::remove_dir_all(&old).expect("removes");
    let said = load_model(&run).err().expect("only a damaged one").to_string();
    assert!(said.contains("only damaged ones"), "{said}");
}

#[test]
fn a_path_without_a_checkpoint_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    for path in [dir.path().to_path_buf(), dir.path().join("nothing")] {
        for error in [load_model(&path).err(), config_of(&path).err()] {
            let said = error.expect("nothing there").to_string();
            assert!(said.contains(&path.display().to_string()), "{said}");
        }
    }
    let said = load_model(dir.path()).err().expect("empty").to_string();
    assert!(said.contains("no checkpoint") && said.contains("lathe train"), "{said}");
}

/// What is there stays: a folder with something in it, or a file.
#[test]
fn a_model_is_written_where_nothing_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let (empty, full, file) =
        (dir.path().join("empty"), dir.path().join("full"), dir.path().join("file"));
    std::fs::create_dir(&empty).expect("a folder");
    write(&empty, 16);
    assert_eq!(width(&empty), 16);
    std::fs::create_dir(&full).expect("a folder");
    std::fs::write(full.join("note"), "mine").expect("writes");
    std::fs::write(&file, "mine").expect("writes");
    for path in [&empty, &full, &file] {
        let said = try_to_write(path, 24).expect_err("taken").to_string();
        assert!(said.contains("taken"), "{said}");
    }
    assert_eq!(std::fs::read_to_string(full.join("note")).expect("reads"), "mine");
    assert_eq!(std::fs::read_to_string(&file).expect("reads"), "mine");
}
