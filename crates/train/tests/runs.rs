//! Runs in folders: what a start takes over and refuses, what a run is pinned to, what validation
//! counts, and what is on the disk before a checkpoint is.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::RealDisk;
use common::folders::{data, finish, open, small};
use data::{Corpus, SpecialTokens, Split, Windows};
use engine::Scoring;
use model::adapters::{Relaxation, lora};
use model::expert_routers::top_k;
use model::mlp::experts;
use model::routers::expert_choice::{Causal, Config as Expert, SamplingLoss};
use model::routers::token_choice::{Balance, Config as Token};
use model::{ExpertRouterConfig, KvMode, MlpConfig, Model, RouterConfig, RouterState, Rule};
use train::{
    CheckpointConfig, DistillConfig, Made, Recipe, Resume, Run, StartConfig, Stop, Trainer,
    score_rule,
};

fn refusal(recipe: &Recipe, out: &Path) -> String {
    open(recipe, out).err().expect("refused").to_string()
}

fn from(recipe: &Recipe, checkpoint: &Path) -> Recipe {
    let checkpoint = checkpoint.display().to_string();
    Recipe { start: StartConfig { checkpoint, ..StartConfig::default() }, ..recipe.clone() }
}

fn loss_free() -> RouterConfig {
    let balance = Balance::LossFree;
    RouterConfig::TokenChoice(Token { balance, balance_weight: 0.01, ..Token::default() })
}

fn running(capacities: Option<Vec<f64>>) -> RouterConfig {
    let causal = Causal::Running;
    RouterConfig::ExpertChoice(Expert { causal, capacities, ..Expert::default() })
}

fn known_vocabulary(recipe: &Recipe, run: &Run) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.model.vocab_size = run.trainer.recipe.model.vocab_size;
    recipe
}

#[test]
fn a_start_takes_over_what_the_router_learned() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path(), 0);
    for (name, router) in [("bias", loss_free()), ("running", running(None))] {
        let mut recipe = small(&data, router);
        // An odd number of steps of a bias does not come back to 0.
        recipe.train.steps = 3;
        let first = dir.path().join(name);
        let old = finish(&recipe, &first);
        assert!(
            old.trainer.router.get(name).is_some_and(|b| b.iter().any(|x| *x != 0.0)),
            "{name}"
        );
        let recipe = from(&known_vocabulary(&recipe, &old), &first);
        let new = open(&recipe, &dir.path().join(format!("{name}-again"))).expect("starts");
        assert_eq!(new.trainer.router, old.trainer.router, "{name}");
        assert_eq!(common::weights(&new.trainer), common::weights(&old.trainer), "{name}");
        assert!(new.remarks.is_empty() && new.trainer.step == 0, "{:?}", new.remarks);
    }
}

/// Thresholds of other capacities, or buffers and weights of another router, begin fresh, and that
/// is said.
#[test]
fn what_a_start_cannot_take_over_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = small(&data(dir.path(), 0), running(None));
    let first = dir.path().join("first");
    let old = finish(&recipe, &first);
    let recipe = from(&known_vocabulary(&recipe, &old), &first);
    let others = [running(Some(vec![1.0, 0.5, 0.2])), loss_free(), RouterConfig::FIXED];
    for (i, router) in others.into_iter().enumerate() {
        let mut recipe = recipe.clone();
        recipe.model.router = router;
        let new = open(&recipe, &dir.path().join(format!("other{i}"))).expect("starts");
        assert_eq!(new.trainer.router, RouterState::default(), "{i}");
        let said = new.remarks.join("; ");
        assert!(said.contains("running") && said.contains("left behind"), "{i}: {said}");
        assert_eq!(said.contains("router.score begin fresh"), i == 1, "{i}: {said}");
        assert_eq!(said.contains("router.0.score"), i > 0, "{i}: {said}");
    }
}

/// What only training reads of a router over experts may be another; what else differs is named.
#[test]
fn a_start_may_train_its_experts_otherwise() {
    let dir = tempfile::tempdir().expect("a folder");
    let of = |top_k: top_k::Config| {
        let router = ExpertRouterConfig::TopK(top_k);
        MlpConfig::Experts(experts::Config { count: 4, router, ..experts::Config::default() })
    };
    let mut recipe = small(&data(dir.path(), 0), RouterConfig::FIXED);
    recipe.model.mlp = of(top_k::Config::default());
    let first = dir.path().join("first");
    let old = finish(&recipe, &first);
    let mut recipe = from(&known_vocabulary(&recipe, &old), &first);
    let others = top_k::Config {
        balance_weight: 0.5,
        z_weight: 0.1,
        pooled_weight: 0.2,
        capacity: 1.25,
        warmup_steps: 3,
        ..top_k::Config::default()
    };
    recipe.model.mlp = of(others);
    let new = open(&recipe, &dir.path().join("trained otherwise")).expect("the same model");
    assert_eq!(common::weights(&new.trainer), common::weights(&old.trainer));
    assert!(new.remarks.is_empty(), "{:?}", new.remarks);
    assert_eq!(new.trainer.recipe.model.mlp, recipe.model.mlp, "the recipe's settings count");
    recipe.model.mlp = of(top_k::Config { scale: 2.0, z_weight: 0.1, ..top_k::Config::default() });
    let said = refusal(&recipe, &dir.path().join("another"));
    assert!(said.contains("model.mlp.router.scale") && !said.contains("z_weight"), "{said}");
}

/// Trained adapters that the recipe's model has no place for do not vanish without a word.
#[test]
fn adapters_that_a_start_leaves_behind_are_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut recipe = small(&data(dir.path(), 0), RouterConfig::FIXED);
    recipe.model.relax = Relaxation::Lora(lora::Config { rank: 2, ..lora::Config::default() });
    let first = dir.path().join("first");
    let old = finish(&recipe, &first);
    let mut recipe = from(&known_vocabulary(&recipe, &old), &first);
    let new = open(&recipe, &dir.path().join("same")).expect("starts");
    assert!(new.remarks.is_empty(), "{:?}", new.remarks);
    recipe.model.relax = Relaxation::NONE;
    let new = open(&recipe, &dir.path().join("without")).expect("starts");
    let said = new.remarks.join("; ");
    assert!(said.contains("relax.") && said.contains("left behind"), "{said}");
    assert!(said.contains("more of"), "a long list is cut: {said}");
}

#[test]
fn start_and_teacher_are_pinned() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = small(&data(dir.path(), 0), RouterConfig::FIXED);
    let first = dir.path().join("first");
    let recipe = known_vocabulary(&recipe, &finish(&recipe, &first));
    let mut start = from(&recipe, &first);
    let known = open(&start, &dir.path().join("known")).expect("starts").trainer.recipe.start;
    assert_eq!(known.fingerprint.len(), 64);
    start.start = known;
    assert!(open(&start, &dir.path().join("same")).is_ok());
    start.start.fingerprint = "0".repeat(64);
    let said = refusal(&start, &dir.path().join("changed"));
    assert!(said.contains("start.checkpoint") && said.contains("has changed"), "{said}");
    let checkpoint = first.display().to_string();
    let fingerprint = "0".repeat(64);
    let distill = DistillConfig { checkpoint, fingerprint, ..DistillConfig::default() };
    let said = refusal(&Recipe { distill, ..recipe }, &dir.path().join("taught"));
    assert!(said.contains("distill.checkpoint") && said.contains("has changed"), "{said}");
}

#[test]
fn a_teacher_of_a_shorter_context_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut recipe = small(&data(dir.path(), 0), RouterConfig::FIXED);
    recipe.model.context = 12;
    let first = dir.path().join("first");
    finish(&recipe, &first);
    let checkpoint = first.display().to_string();
    recipe.distill = DistillConfig { checkpoint, ..DistillConfig::default() };
    recipe.model.context = 16;
    assert!(open(&recipe, &dir.path().join("fits")).is_ok(), "12 rows fit");
    recipe.data.sequence_length = 13;
    let said = refusal(&recipe, &dir.path().join("long"));
    assert!(said.contains("context") && said.contains("13"), "{said}");
}

#[test]
fn a_run_goes_on_with_its_own_data_and_model_only() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = small(&data(dir.path(), 0), RouterConfig::default());
    let out = dir.path().join("run");
    finish(&recipe, &out);
    assert_eq!(open(&recipe, &out).expect("resumes").resumed.step, Some(4));
    let other = small(&data(dir.path(), 100), RouterConfig::default());
    let said = refusal(&other, &out);
    assert!(said.contains("state.data"), "{said}");
    let mut other = recipe.clone();
    other.model.router = loss_free();
    let said = refusal(&other, &out);
    assert!(said.contains("another model") && said.contains("router"), "{said}");
    let mut other = recipe.clone();
    other.train.freeze = vec!["embed".into()];
    let said = refusal(&other, &out);
    assert!(said.contains("train.freeze"), "{said}");
    let said = Run::open(&recipe, &out, Resume::Never, 0.0).err().expect("refused").to_string();
    assert!(said.contains("step 4"), "{said}");
}

/// Both moments of every weight that is trained.
fn moments(trainer: &Trainer) -> Vec<(Vec<f32>, Vec<f32>)> {
    let all = trainer.optimizer.moments().iter().flatten();
    all.map(|moments| (moments.first.clone(), moments.second.clone())).collect()
}

/// A run that is stopped and continued ends as one that was not: everything of its state comes
/// back.
#[test]
fn a_continued_run_ends_as_an_unbroken_one() {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, router) in [
        ("running", running(None)),
        ("bias", loss_free()),
        ("experts", loss_free()),
        ("rounded", RouterConfig::FIXED),
    ] {
        let mut recipe = small(&data(&dir.path().join(name), 0), router);
        if name == "rounded" {
            let relax = lora::Config { rank: 2, ..lora::Config::default() };
            recipe.model.relax = Relaxation::Lora(relax);
            recipe.train.freeze = vec!["layers.*".into()];
            recipe.train.frozen_format = "int4".into();
        }
        if name == "experts" {
            let balance = model::expert_routers::Balance::LossFree;
            let router = model::expert_routers::top_k::Config { balance, ..Default::default() };
            let router = model::ExpertRouterConfig::TopK(router);
            let experts = model::mlp::experts::Config { router, ..Default::default() };
            recipe.model.mlp = model::MlpConfig::Experts(experts);
        }
        let whole = finish(&recipe, &dir.path().join(name).join("whole"));
        let out = dir.path().join(name).join("broken");
        let mut run = open(&recipe, &out).expect("opens");
        let mut steps = 0;
        run.go(&RealDisk, &|| 0.0, &mut |event| {
            steps += u64::from(matches!(event, train::Event::Step { .. }));
            if steps == 3 { Stop::Save } else { Stop::No }
        })
        .expect("stops");
        drop(run);
        let continued = finish(&recipe, &out);
        assert_eq!(continued.resumed.step, Some(3));
        let (a, b) = (&whole.trainer, &continued.trainer);
        assert_eq!(common::weights(a), common::weights(b));
        assert_eq!(a.router, b.router);
        assert_eq!((a.step, a.position, a.tokens), (b.step, b.position, b.tokens));
        assert_eq!(a.position, 4 * 2, "windows of four steps");
        assert_eq!(moments(a), moments(b));
        let log = |folder: &str| {
            std::fs::read(dir.path().join(name).join(folder).join("log.jsonl")).expect("a log")
        };
        assert!(log("whole") == log("broken"), "{name}: logs");
        if name == "rounded" {
            drop(continued);
            let mut other = recipe.clone();
            other.train.frozen_format = "int8".into();
            let said = refusal(&other, &out);
            assert!(said.contains("train.frozen_format"), "{said}");
        }
    }
}

/// Predictions, bytes and losses of each source, counted once more: the bytes are those of the
/// token that is predicted, and the source is the one that it stands in.
#[test]
fn validation_counts_what_is_predicted() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path(), 0);
    let corpus = Corpus::open(&data, Split::Validation).expect("opens");
    let windows = Windows::new(&corpus, 12, 1).expect("windows");
    let mut config = common::recipe(RouterConfig::FIXED, KvMode::RecursionWise).model;
    (config.vocab_size, config.init_std) = (corpus.vocab_size(), 0.2);
    let model = Model::fresh(&config, 3).expect("legal");
    let chosen: Vec<_> = (0..6).map(|i| windows.unshuffled(i).expect("reads")).collect();
    // The token behind a window's last row is no row of it.
    let texts: Vec<Vec<u32>> = chosen.iter().map(|w| [&w.ids[..], &[0]].concat()).collect();
    let logits = common::Plain::of(&model, &texts, &common::Asked::default()).logits;
    let mut sums: BTreeMap<&str, (u64, u64, f64)> = BTreeMap::new();
    for (i, logits) in logits.iter().enumerate() {
        let (window, t) = (&chosen[i / 12], i % 12);
        let target = window.targets[t] as usize;
        let bytes = u64::from(corpus.token_bytes()[target]);
        let sum = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
        for name in ["all", &corpus.sources()[window.source[t] as usize]] {
            let of = sums.entry(name).or_default();
            *of = (of.0 + 1, of.1 + bytes, of.2 + sum - logits[target]);
        }
    }
    let (state, rule) = (RouterState::default(), Rule::NonCausal);
    let how = Scoring::by(&rule, &state);
    // Without a mask every prediction counts, and rows see the whole window.
    let chunks: Vec<_> = chosen.chunks(2).map(<[_]>::to_vec).collect();
    let (found, _) = score_rule(&model, &windows, &chunks, false, &how);
    assert!(found.sources.len() == 2, "{:?}", found.sources);
    for (name, (predictions, bytes, nll)) in sums {
        let of = if name == "all" { found.all } else { found.sources[name] };
        assert_eq!((of.predictions, of.bytes), (predictions, bytes), "{name}");
        let mean = nll / predictions as f64;
        assert!((of.nll - mean).abs() < 1e-4 * mean, "{name}: {} {mean}", of.nll);
        let bits = nll / std::f64::consts::LN_2 / bytes as f64;
        assert!((of.bits_per_byte - bits).abs() < 1e-4 * bits, "{name}: {bits}");
    }
    assert_eq!(found.depths, [0, 0, 0, 72]);
    let (masked, _) = score_rule(&model, &windows, &chunks, true, &how);
    let same = chosen.iter().flat_map(|w| w.target_same_document.iter());
    let within = same.filter(|same| **same).count() as u64;
    assert!(within < 72 && masked.all.predictions == within, "{within}");
}

/// A checkpoint says that its log is there, so the log is on the disk first. The log here is a
/// device that takes every line and cannot be synced.
#[cfg(target_os = "linux")]
#[test]
fn no_checkpoint_is_written_before_the_log_is_on_the_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = small(&data(dir.path(), 0), RouterConfig::FIXED);
    let out = dir.path().join("run");
    std::fs::create_dir(&out).expect("a folder");
    std::os::unix::fs::symlink("/dev/null", out.join("log.jsonl")).expect("a link");
    let mut run = open(&recipe, &out).expect("opens");
    let error = run.go(&RealDisk, &|| 0.0, &mut |_| Stop::No).expect_err("cannot sync");
    assert!(error.to_string().contains("sync"), "{error}");
    assert!(checkpoint::list(&out.join("checkpoints")).is_empty(), "no checkpoint");
}

/// Saved are every second step and the last; kept are the two newest and multiples of four.
/// Validated is after every third step and after the last.
#[test]
fn checkpoints_and_validations_come_as_the_recipe_says() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut recipe = small(&data(dir.path(), 0), RouterConfig::FIXED);
    recipe.train.steps = 11;
    recipe.checkpoint = CheckpointConfig { every: 2, keep_last: 2, keep_every: 4 };
    recipe.log.validate_every = 3;
    let out = dir.path().join("run");
    let mut run = open(&recipe, &out).expect("opens");
    let (mut saved, mut validated) = (Vec::new(), Vec::new());
    run.go(&RealDisk, &|| 0.0, &mut |event| {
        match event {
            train::Event::TraceLost { error } => panic!("{error}"),
            train::Event::Saved { path } => saved.push(path.to_path_buf()),
            train::Event::Validated { step, .. } => validated.push(step),
            train::Event::Step { .. } => {}
        }
        Stop::No
    })
    .expect("runs");
    let named = |steps: &[u64]| -> Vec<PathBuf> {
        steps.iter().map(|&s| out.join("checkpoints").join(checkpoint::step_name(s))).collect()
    };
    assert_eq!(saved, named(&[2, 4, 6, 8, 10, 11]));
    let kept: Vec<PathBuf> =
        checkpoint::list(&out.join("checkpoints")).into_iter().map(|entry| entry.path).collect();
    assert_eq!(kept, named(&[4, 8, 10, 11]));
    assert_eq!(validated, [3, 6, 9, 11]);
}

/// A log of more steps than a run does before its first checkpoint, and no checkpoint: somebody
/// took them away, and beginning again would write over what the log tells.
#[test]
fn a_run_whose_checkpoints_are_gone_is_not_begun_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path(), 0);
    for (every, refused) in [(2, true), (3, true), (4, false), (0, false)] {
        let mut recipe = small(&data, RouterConfig::FIXED);
        let out = dir.path().join(format!("run{every}"));
        finish(&recipe, &out);
        std::fs::remove_dir_all(out.join("checkpoints")).expect("removes");
        recipe.checkpoint.every = every;
        let log = std::fs::read(out.join("log.jsonl")).expect("a log");
        match open(&recipe, &out) {
            Err(error) if refused => {
                let said = error.to_string();
                assert!(said.contains("4 steps") && said.contains("checkpoint"), "{said}");
                assert_eq!(std::fs::read(out.join("log.jsonl")).expect("a log"), log, "{every}");
            }
            opened => assert!(opened.is_ok() && !refused, "{every}"),
        }
    }
    let out = dir.path().join("other");
    std::fs::create_dir(&out).expect("a folder");
    std::fs::write(out.join("log.jsonl"), "{\"step\":1,\"accuracy\":0.5}\n").expect("writes");
    let said = refusal(&small(&data, RouterConfig::FIXED), &out);
    assert!(said.contains("no run of Lathe wrote"), "{said}");
}

/// A process that ended between a save and what follows it left more than the recipe keeps.
#[test]
fn a_run_that_goes_on_keeps_no_more_than_its_recipe_says() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut recipe = small(&data(dir.path(), 0), RouterConfig::FIXED);
    let out = dir.path().join("run");
    finish(&recipe, &out);
    let steps = || -> Vec<u64> {
        checkpoint::list(&out.join("checkpoints"))
            .into_iter()
            .filter_map(|entry| entry.step)
            .collect()
    };
    assert_eq!(steps(), [2, 4]);
    recipe.checkpoint.keep_last = 1;
    finish(&recipe, &out);
    assert_eq!(steps(), [4]);
}

/// Counters that no finished step changes back come from the checkpoint.
#[test]
fn skipped_steps_are_remembered() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = small(&data(dir.path(), 0), RouterConfig::FIXED);
    let out = dir.path().join("run");
    let mut run = open(&recipe, &out).expect("opens");
    // All steps of the recipe were skipped, the last two one after the other.
    (run.trainer.step, run.trainer.skipped, run.trainer.skipped_in_a_row) = (4, 4, 2);
    run.go(&RealDisk, &|| 0.0, &mut |_| Stop::No).expect("saves");
    drop(run);
    let again = open(&recipe, &out).expect("resumes").trainer;
    assert_eq!((again.step, again.skipped, again.skipped_in_a_row), (4, 4, 2));
}

/// A checkpoint whose state cannot be one that steps left.
#[test]
fn states_that_no_steps_leave_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = small(&data(dir.path(), 0), running(None));
    let out = dir.path().join("run");
    finish(&recipe, &out);
    let folder = out.join("checkpoints").join(checkpoint::step_name(4));
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 11] = [
        ("state.step", |state| state["step"] = ((1u64 << 40) + 1).into()),
        ("state.position", |state| state["position"] = ((1u64 << 60) + 1).into()),
        ("state.tokens", |state| state["tokens"] = ((1u64 << 60) + 1).into()),
        ("state.updates", |state| state["updates"] = 5.into()),
        ("state.skipped", |state| state["skipped"] = 5.into()),
        ("state.skipped_in_a_row", |state| state["skipped_in_a_row"] = 1.into()),
        ("state.router.running", |state| {
            state["router"].as_object_mut().expect("buffers").remove("running");
        }),
        ("state.router.bias", |state| state["router"]["bias"] = vec![0.0; 3].into()),
        ("state.router.running", |state| state["router"]["running"] = vec![0.0; 2].into()),
        ("state.router.running_steps", |state| {
            state["router"]["running_steps"] = vec![-1.0].into();
        }),
        ("state", |state| state["further"] = 1.into()),
    ];
    for (field, change) in changes {
        let mut loaded = checkpoint::load(&folder).expect("whole");
        change(loaded.json.get_mut("state").expect("a state"));
        let error = train::load(&loaded).err().expect(field).to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    // The largest counters that a run may have.
    let mut loaded = checkpoint::load(&folder).expect("whole");
    let state = loaded.json.get_mut("state").expect("a state");
    (state["step"], state["skipped"]) = ((1u64 << 40).into(), 7.into());
    (state["position"], state["tokens"]) = ((1u64 << 60).into(), (1u64 << 60).into());
    (state["updates"], state["skipped_in_a_row"]) = ((1u64 << 40).into(), 7.into());
    let largest = train::load(&loaded).expect("what a run may have");
    assert_eq!((largest.step, largest.tokens), (1 << 40, 1 << 60));
    // A run whose steps all were skipped wrote no buffer.
    let mut loaded = checkpoint::load(&folder).expect("whole");
    let state = loaded.json.get_mut("state").expect("a state");
    state["updates"] = 0.into();
    state["router"].as_object_mut().expect("buffers").clear();
    assert!(train::load(&loaded).is_ok());
    // Checkpoints of version 0.1 say nothing of counts.
    let mut loaded = checkpoint::load(&folder).expect("whole");
    let state = loaded.json.get_mut("state").expect("a state");
    state["router"].as_object_mut().expect("buffers").remove("running_counts");
    assert!(train::load(&loaded).is_ok());
}

/// A causal rule that is not one of its model: too short, not a number, or of a router that the
/// model does not have.
#[test]
fn rules_of_another_model_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path(), 0);
    let settings = Expert { causal: Causal::Auxiliary, ..Expert::default() };
    let auxiliary = Expert { sampling: SamplingLoss::AuxRouter, ..settings };
    let folder = |name: &str, router| {
        let out = dir.path().join(name);
        finish(&small(&data, router), &out);
        out.join("checkpoints").join(checkpoint::step_name(4))
    };
    let plain = folder("plain", running(None));
    let with_auxiliary = folder("auxiliary", RouterConfig::ExpertChoice(auxiliary));
    assert!(train::load_model(&plain).is_ok() && train::load_model(&with_auxiliary).is_ok());
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 4] = [
        ("routing.thresholds", |rule| rule["thresholds"] = vec![0.0; 2].into()),
        ("routing.thresholds", |rule| rule["thresholds"] = vec![0.0; 4].into()),
        ("routing.thresholds", |rule| rule["thresholds"] = vec![1e300; 3].into()),
        ("routing.auxiliary", |rule| rule["auxiliary"] = true.into()),
    ];
    for (field, change) in changes {
        let mut loaded = checkpoint::load(&plain).expect("whole");
        change(loaded.json.get_mut("routing").expect("a rule"));
        let error = train::load(&loaded).err().expect(field).to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    let mut loaded = checkpoint::load(&with_auxiliary).expect("whole");
    let rule = loaded.json.get_mut("routing").expect("a rule");
    assert_eq!(rule["auxiliary"], true);
    rule["auxiliary"] = false.into();
    assert!(train::load(&loaded).is_ok(), "the router's own logit decides as well");
}

/// A checkpoint that no run made, with special ids and, if given, a tokenizer.
fn made(path: &Path, recipe: &Recipe, tokenizer: Option<&[u8]>) -> SpecialTokens {
    let model = Model::fresh(&recipe.model, 5).expect("legal");
    let text = SpecialTokens { bos: Some(1), eos: vec![0, 2], ..SpecialTokens::default() };
    let made = Made {
        config: &recipe.model,
        weights: train::tensors(&model).expect("whole"),
        rounded: None,
        recipe: None,
        rule: None,
        state: &RouterState::default(),
        tokenizer,
        text: Some(&text),
        origin: serde_json::Value::Null,
    };
    train::write_model(path, made, &RealDisk).expect("written");
    text
}

/// Special ids and chat template go with the weights, from a start and through every checkpoint.
#[test]
fn special_ids_go_with_the_weights() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path(), 0);
    let mut recipe = small(&data, RouterConfig::FIXED);
    let corpus = Corpus::open(&data, Split::Train).expect("opens");
    recipe.model.vocab_size = corpus.vocab_size();
    let start = dir.path().join("start");
    let tokenizer = std::fs::read(corpus.tokenizer_path()).expect("reads");
    let text = Some(made(&start, &recipe, Some(&tokenizer)));
    let recipe = from(&recipe, &start);
    let out = dir.path().join("run");
    assert_eq!(open(&recipe, &out).expect("starts").trainer.text, text);
    finish(&recipe, &out);
    assert_eq!(open(&recipe, &out).expect("resumes").trainer.text, text);
    assert_eq!(train::load_model(&out).expect("loads").text, text);
}

/// Ids mean nothing under another tokenizer, nor a teacher's logits over another vocabulary.
#[test]
fn starts_and_teachers_read_the_same_tokens() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path(), 0);
    let mut recipe = small(&data, RouterConfig::FIXED);
    recipe.model.vocab_size = Corpus::open(&data, Split::Train).expect("opens").vocab_size();
    let taught = |path: &Path| {
        let checkpoint = path.display().to_string();
        let distill = DistillConfig { checkpoint, ..DistillConfig::default() };
        Recipe { distill, ..recipe.clone() }
    };
    let other = dir.path().join("other");
    made(&other, &recipe, Some(b"{}"));
    for (i, recipe) in [from(&recipe, &other), taught(&other)].iter().enumerate() {
        let said = refusal(recipe, &dir.path().join(format!("out{i}")));
        assert!(said.contains("another tokenizer"), "{said}");
    }
    let mut larger = recipe.clone();
    larger.model.vocab_size += 1;
    let wide = dir.path().join("wide");
    made(&wide, &larger, None);
    let said = refusal(&taught(&wide), &dir.path().join("out"));
    assert!(said.contains("vocab_size"), "{said}");
}
