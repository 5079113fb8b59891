//! Several processes train what one does, bit for bit: steps, validations, checkpoints, traces, in
//! one go or with other numbers of processes after a stop. Here they are threads of one process.

mod common;

use std::path::Path;
use std::sync::Arc;

use checkpoint::RealDisk;
use common::folders::{data, small};
use common::members::{all, files, same_files};
use common::{batches, recipe, weights};
use model::adapters::{Relaxation, lora};
use model::{KvMode, MlpConfig, Model, RouterConfig, RouterState};
use processes::{Alone, Member, ProcessError, Processes};
use testkit::{MODES, mlps, routers, with_auxiliary_router};
use train::{
    DistillConfig, Event, Recipe, Resume, Run, StepReport, Stop, Stored, TrainError, Trainer,
};

/// What a trainer is left with.
type Left = (Vec<StepReport>, Vec<Vec<f32>>, RouterState);

/// Three steps of twelve passes.
fn train(recipe: &Recipe, processes: Arc<dyn Processes>, teacher: Option<&Arc<Stored>>) -> Left {
    recipe.check().expect("a legal recipe");
    let mut trainer = Trainer::new(recipe).expect("a legal recipe");
    trainer.teacher = teacher.cloned();
    trainer.join(processes).expect("joins");
    let batches = batches(1, 12, 1);
    let reports = (0..3).map(|_| trainer.step_on(&batches).expect("finite")).collect();
    (reports, weights(&trainer), trainer.router.clone())
}

fn cut(mut recipe: Recipe, shards: usize) -> Recipe {
    (recipe.train.batch, recipe.train.micro_batch, recipe.train.shards) = (12, 1, shards);
    recipe
}

fn any_number_gives_the_same(recipe: &Recipe, teacher: Option<&Arc<Stored>>, sizes: &[usize]) {
    let alone = train(recipe, Arc::new(Alone), teacher);
    assert!(alone.0.iter().all(|report| report.gradient_norm > 0.0));
    for &size in sizes {
        for found in all(size, |member| train(recipe, Arc::new(member), teacher)) {
            assert!(found == alone, "{size} processes, {recipe:?}");
        }
    }
}

#[test]
fn the_number_of_processes_changes_no_bit() {
    for router in routers().into_iter().chain([with_auxiliary_router()]) {
        for (shards, sizes) in [(3, &[2, 3][..]), (8, &[3, 4, 8])] {
            let recipe = cut(recipe(router.clone(), KvMode::RecursionWise), shards);
            any_number_gives_the_same(&recipe, None, sizes);
        }
    }
}

#[test]
fn nor_with_experts() {
    for mlp in mlps().into_iter().filter(|mlp| matches!(mlp, MlpConfig::Experts(_))) {
        let mut recipe = cut(recipe(RouterConfig::default(), KvMode::RecursionWise), 4);
        recipe.model.mlp = mlp;
        any_number_gives_the_same(&recipe, None, &[3]);
    }
}

#[test]
fn nor_with_other_ways_through_a_step() {
    let base = || cut(recipe(RouterConfig::default(), KvMode::RecursionWise), 5);
    for kv in MODES {
        let mut shared = base();
        shared.model.kv = kv;
        if shared.check().is_ok() {
            any_number_gives_the_same(&shared, None, &[2]);
        }
    }
    let mut again = base();
    again.train.recompute = true;
    any_number_gives_the_same(&again, None, &[2]);
    let dice = routers().into_iter().find(|router| router.kind() == "random").expect("listed");
    let mut twice = cut(recipe(dice, KvMode::RecursionWise), 5);
    twice.train.consistency_weight = 1.0;
    any_number_gives_the_same(&twice, None, &[3]);
    let mut frozen = base();
    frozen.model.relax = Relaxation::Lora(lora::Config::default());
    frozen.train.freeze = vec!["layers.*.query".into(), "embed".into()];
    any_number_gives_the_same(&frozen, None, &[4]);
    let mut taught = base();
    taught.distill = DistillConfig { checkpoint: "a teacher".into(), ..DistillConfig::default() };
    let teacher = Model::fresh(&taught.model, 9).expect("legal");
    any_number_gives_the_same(&taught, Some(&Arc::new(Stored::of(Arc::new(teacher)))), &[3]);
}

/// Sums of f32 are rounded, so a tree over shards is not a chain over passes; both are gradients.
#[test]
fn shards_change_rounding_only() {
    // Dice go by the numbers of sequences in the step, whichever shard they are in.
    let dice = routers().into_iter().find(|router| router.kind() == "random").expect("listed");
    let one = cut(recipe(dice, KvMode::RecursionWise), 1);
    let many = cut(one.clone(), 8);
    let [a, b] = [&one, &many].map(|recipe| train(recipe, Arc::new(Alone), None));
    assert!(a.1 != b.1, "the tree is another sum");
    for (a, b) in a.0.iter().zip(&b.0) {
        assert!((a.loss - b.loss).abs() < 1e-5 && a.tokens == b.tokens && a.depths == b.depths);
        assert!((a.gradient_norm / b.gradient_norm - 1.0).abs() < 1e-4);
    }
}

#[test]
fn each_process_holds_its_share_of_the_moments() {
    let mut recipe = cut(recipe(RouterConfig::default(), KvMode::RecursionWise), 4);
    recipe.model.ffn = 3000;
    let held = |processes: Arc<dyn Processes>| {
        let mut trainer = Trainer::new(&recipe).expect("legal");
        trainer.join(processes).expect("joins");
        let held = trainer.optimizer.moments().iter().flatten();
        held.map(|held| held.first.len() + held.second.len()).sum::<usize>()
    };
    let whole = held(Arc::new(Alone));
    for size in [2, 3, 4] {
        let parts = all(size, |member| held(Arc::new(member)));
        assert_eq!(parts.iter().sum::<usize>(), whole);
        // At most a stretch of squares more than an equal share.
        let most = whole / size + 2 * ops::SQUARES_CHUNK;
        assert!(parts.iter().all(|&part| part <= most && part > 0), "{parts:?} of {whole}");
    }
}

fn run(
    recipe: &Recipe,
    out: &Path,
    processes: Arc<dyn Processes>,
    watch: &mut dyn FnMut(Event<'_>) -> Stop,
) -> Result<bool, TrainError> {
    let mut run = Run::open_among(recipe, out, Resume::Auto, 0.0, processes)?;
    Ok(run.go(&RealDisk, &|| 0.0, watch)?.is_some())
}

/// A run of six steps of eight passes, in four shards.
fn sharded(data: &Path, router: RouterConfig) -> Recipe {
    let mut recipe = small(data, router);
    (recipe.train.batch, recipe.train.micro_batch, recipe.train.shards) = (8, 1, 4);
    recipe.train.steps = 6;
    recipe.log.validate_every = 3;
    recipe.log.trace_every = 2;
    recipe
}

/// What a step spends on others is a part of its seconds, also behind steps that are traced, told
/// and saved.
fn exchanges_within_steps(out: &Path) {
    let text = std::fs::read_to_string(out.join("timing.jsonl")).expect("reads");
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("a row");
        let of = |name: &str| row[name].as_f64().expect(name);
        assert!((0.0..=of("seconds")).contains(&of("exchange_seconds")), "{line}");
    }
    assert_eq!(text.lines().count(), 6);
}

#[test]
fn runs_in_folders_leave_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path(), 0);
    for (name, router) in routers().into_iter().enumerate() {
        let recipe = sharded(&data, router);
        let at = |what: &str| dir.path().join(format!("{name}-{what}"));
        let alone = at("alone");
        assert!(run(&recipe, &alone, Arc::new(Alone), &mut |_| Stop::No).expect("runs"));
        let traces = files(&alone).into_keys().filter(|name| name.starts_with("traces")).count();
        assert_eq!(traces, 3);
        for size in [2, 3, 4] {
            let out = at(&size.to_string());
            let go = |member| run(&recipe, &out, Arc::new(member), &mut |_| Stop::No);
            assert!(all(size, go).into_iter().all(|ended| ended.expect("runs")));
            same_files(&out, &alone);
            exchanges_within_steps(&out);
        }
    }
}

/// One is asked to stop: all do, behind the same step, and any number of processes goes on.
#[test]
fn stopped_by_one_and_continued_by_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = sharded(&data(dir.path(), 0), RouterConfig::default());
    let alone = dir.path().join("alone");
    run(&recipe, &alone, Arc::new(Alone), &mut |_| Stop::No).expect("runs");
    let out = dir.path().join("stopped");
    for (size, asked, at) in [(3, 2, 1), (2, 1, 3), (4, 0, 4)] {
        let steps = all(size, |member| {
            let (rank, mut last) = (member.rank(), 0);
            let ended = run(&recipe, &out, Arc::new(member), &mut |event| {
                let Event::Step { report, .. } = event else { return Stop::No };
                last = report.step;
                if rank == asked && last == at { Stop::Save } else { Stop::No }
            });
            assert!(!ended.expect("stops"), "not at its end");
            last
        });
        assert_eq!(steps, vec![at; size]);
    }
    assert!(run(&recipe, &out, Arc::new(Alone), &mut |_| Stop::No).expect("runs"));
    let newest = "checkpoints/step-00000006";
    same_files(&out.join(newest), &alone.join(newest));
    let log = |run: &Path| std::fs::read(run.join("log.jsonl")).expect("reads");
    assert!(log(&out) == log(&alone));
}

/// One ends in the middle, as if it was killed: no other waits for it for ever, and the run goes on
/// with those that are left.
#[test]
fn one_that_ends_ends_all_and_those_left_go_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = sharded(&data(dir.path(), 0), RouterConfig::default());
    let alone = dir.path().join("alone");
    run(&recipe, &alone, Arc::new(Alone), &mut |_| Stop::No).expect("runs");
    for ends in 0..3 {
        let out = dir.path().join(format!("lost-{ends}"));
        let found = all(3, |member| {
            let rank = member.rank();
            let lost = std::panic::AssertUnwindSafe(|| {
                run(&recipe, &out, Arc::new(member), &mut |event| match event {
                    Event::Step { report, .. } if rank == ends && report.step == 3 => {
                        std::panic::resume_unwind(Box::new("gone"))
                    }
                    _ => Stop::No,
                })
            });
            std::panic::catch_unwind(lost)
        });
        for (rank, ended) in found.into_iter().enumerate() {
            match ended {
                Err(_) => assert_eq!(rank, ends),
                Ok(ended) => {
                    let error = ended.expect_err("the others are told");
                    assert!(
                        matches!(&error, TrainError::Processes(ProcessError::Ended { .. })),
                        "{error}"
                    );
                }
            }
        }
        let go = |member| run(&recipe, &out, Arc::new(member), &mut |_| Stop::No);
        assert!(all(2, go).into_iter().all(|ended| ended.expect("runs")));
        same_files(&out, &alone);
    }
}

/// Machines may keep a start and a teacher in other folders, but not another teacher.
#[test]
fn checkpoints_may_stand_elsewhere() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = sharded(&data(dir.path(), 0), RouterConfig::default());
    let [known, other] = [1, 2].map(|seed| {
        let (mut recipe, out) = (recipe.clone(), dir.path().join(format!("seed-{seed}")));
        recipe.train.seed = seed;
        assert!(run(&recipe, &out, Arc::new(Alone), &mut |_| Stop::No).expect("runs"));
        out.join("checkpoints/step-00000006")
    });
    let moved = dir.path().join("moved");
    std::fs::create_dir(&moved).expect("a folder");
    for file in std::fs::read_dir(&known).expect("a checkpoint") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), moved.join(file.file_name())).expect("a copy");
    }
    let from = |start: &Path, teacher: &Path| {
        let mut recipe = recipe.clone();
        recipe.start.checkpoint = start.display().to_string();
        recipe.distill.checkpoint = teacher.display().to_string();
        recipe
    };
    let run_as = |out: &str, second: &Recipe| {
        let (first, out) = (from(&known, &known), dir.path().join(out));
        let go = |member: Member| {
            let recipe = if member.rank() == 0 { &first } else { second };
            run(recipe, &out, Arc::new(member), &mut |_| Stop::No)
        };
        all(2, go)
    };
    for ended in run_as("same", &from(&moved, &moved)) {
        assert!(ended.expect("the same checkpoints"));
    }
    for error in run_as("other", &from(&known, &other)) {
        let said = error.expect_err("another teacher").to_string();
        assert!(said.contains("distill.fingerprint") && said.contains("process 1"), "{said}");
    }
}

#[test]
fn what_differs_between_processes_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let (text, other) = (data(dir.path(), 0), data(dir.path(), 7));
    let recipe = sharded(&text, RouterConfig::default());
    let mut longer = recipe.clone();
    longer.train.steps += 1;
    let moved = Recipe {
        data: train::DataConfig { dir: other.display().to_string(), ..recipe.data.clone() },
        ..recipe.clone()
    };
    for (k, (differs, named)) in
        [(longer, "train.steps = 6"), (moved, "data.dir")].iter().enumerate()
    {
        let out = dir.path().join(format!("differs-{k}"));
        let found = all(2, |member| {
            let recipe = if member.rank() == 1 { differs } else { &recipe };
            run(recipe, &out, Arc::new(member), &mut |_| Stop::No)
        });
        for error in found {
            let said = error.expect_err("they differ").to_string();
            assert!(said.contains(named) && said.contains("from process 1"), "{said}");
        }
    }
    let out = dir.path().join("many");
    let found =
        all(5, |member| run(&recipe, &out, Arc::new(member), &mut |_| Stop::No).expect_err("many"));
    for said in found.into_iter().map(|error| error.to_string()) {
        assert!(said.contains("train.shards") && said.contains("at least 5"), "{said}");
    }
}
