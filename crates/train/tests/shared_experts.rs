//! Processes that share out the experts of a model train what one does, bit for bit, whatever
//! travels between them and whoever holds what. Here they are threads of one process.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use checkpoint::RealDisk;
use common::folders::{data, small};
use common::members::{all, files, same_files};
use common::{batches, recipe};
use model::mlp::experts;
use model::{KvMode, MlpConfig, RouterConfig};
use processes::{Alone, ProcessError, Processes, share};
use testkit::{mlps, routers};
use trace::Recorder;
use train::{
    Among, Event, ExpertSharing, ExpertTraffic, Moved, Recipe, Resume, Run, StepReport, Stop,
    TrainError, Trainer,
};

const MOVED: [Moved; 3] = [Moved::Rows, Moved::Weights, Moved::Fewest];

fn cut(mut recipe: Recipe, (batch, micro_batch, shards): (usize, usize, usize)) -> Recipe {
    let train = &mut recipe.train;
    (train.batch, train.micro_batch, train.shards) = (batch, micro_batch, shards);
    recipe
}

/// Experts of their own weights in every layer, the shared block of the recursions included.
fn with_experts(mlp: MlpConfig, shards: usize) -> Recipe {
    let mut recipe = cut(recipe(RouterConfig::default(), KvMode::RecursionWise), (12, 1, shards));
    recipe.model.mlp = mlp;
    recipe
}

/// Reports of three steps, and the weights that are held then, by name.
type Left = (Vec<StepReport>, Vec<(String, Vec<f32>)>);

fn train(recipe: &Recipe, processes: Arc<dyn Processes>, sharing: Option<&ExpertSharing>) -> Left {
    recipe.check().expect("a legal recipe");
    let mut trainer = Trainer::new(recipe).expect("a legal recipe");
    trainer.join_as(processes, sharing).expect("joins");
    let batches = batches(1, 12, 1);
    let reports = (0..3).map(|_| trainer.step_on(&batches).expect("finite")).collect();
    let weights = trainer.model.weights().iter().map(|(spec, w)| (spec.name.clone(), w.read()));
    (reports, weights.collect())
}

/// Whether `found` are the reports of `alone`, and its weights, of banks the part of `rank` among
/// `size`. Returns how many values are held less.
fn same_but_for_shares(found: &Left, alone: &Left, recipe: &Recipe, at: (usize, usize)) -> usize {
    assert_eq!(found.0, alone.0);
    let mut less = 0;
    for ((name, found), (_, whole)) in found.1.iter().zip(&alone.1) {
        if found.len() == whole.len() {
            assert!(found == whole, "{name}");
            continue;
        }
        let stored: usize = name.split('.').nth(1).and_then(|n| n.parse().ok()).expect("a layer");
        let count = recipe.model.mlp.settings().computing_experts(stored);
        let held = share(count, at.0, at.1);
        let length = whole.len() / count;
        assert!(*found == whole[held.start * length..held.end * length], "{name}");
        less += whole.len() - found.len();
    }
    less
}

fn any_number_gives_the_same(recipe: &Recipe, sizes: &[usize], moved: &[Moved]) {
    let alone = train(recipe, Arc::new(Alone), None);
    for &size in sizes {
        for &moved in moved {
            let sharing = ExpertSharing { moved, placement: None };
            let found = all(size, |member| train(recipe, Arc::new(member), Some(&sharing)));
            for (rank, found) in found.iter().enumerate() {
                let less = same_but_for_shares(found, &alone, recipe, (rank, size));
                assert!(less > 0, "{size} processes hold parts, {recipe:?}");
            }
        }
    }
}

fn banks() -> Vec<MlpConfig> {
    let mut all = mlps();
    all.retain(|mlp| matches!(mlp, MlpConfig::Experts(experts) if !experts.modulated));
    all
}

#[test]
fn experts_may_be_shared_out_among_any_number() {
    for mlp in banks() {
        any_number_gives_the_same(&with_experts(mlp, 4), &[3], &[Moved::Rows]);
    }
}

#[test]
fn whatever_travels() {
    let simple = experts::Config { count: 5, width: 16, shared: 8, ..experts::Config::default() };
    for (shards, sizes) in [(4, &[1, 2, 3, 4][1..]), (3, &[2]), (5, &[2, 4])] {
        let recipe = with_experts(MlpConfig::Experts(simple.clone()), shards);
        any_number_gives_the_same(&recipe, sizes, &MOVED);
    }
}

#[test]
fn in_other_ways_through_a_step_too() {
    let simple = experts::Config { count: 4, width: 16, ..experts::Config::default() };
    let base = || with_experts(MlpConfig::Experts(simple.clone()), 4);
    let mut again = base();
    again.train.recompute = true;
    any_number_gives_the_same(&again, &[2, 3], &MOVED);
    let mut frozen = base();
    frozen.train.freeze = vec!["layers.0.experts_down".into(), "layers.1.experts_*".into()];
    any_number_gives_the_same(&frozen, &[3], &MOVED);
    // A stretch of squares that lies in one expert, one over two processes, and one over all.
    let wide = experts::Config { count: 5, width: 400, ..experts::Config::default() };
    any_number_gives_the_same(&with_experts(MlpConfig::Experts(wide), 3), &[2, 3], &[Moved::Rows]);
    // More processes than experts: some hold none.
    let few = experts::Config { count: 2, width: 16, ..experts::Config::default() };
    any_number_gives_the_same(&with_experts(MlpConfig::Experts(few), 4), &[4], &MOVED);
}

/// Who holds what, in a file for two layers of experts and any of these numbers of processes.
fn placement(dir: &Path, lists: &str) -> PathBuf {
    let path = dir.join("placement.json");
    let text = format!("{{\"physical_to_logical_map\": {lists}, \"logical_count\": null}}");
    std::fs::write(&path, text).expect("writes");
    path
}

fn run(recipe: &Recipe, out: &Path, among: Among) -> Result<bool, TrainError> {
    stopped(recipe, out, among, u64::MAX)
}

/// A run that stops behind step `last`.
fn stopped(recipe: &Recipe, out: &Path, among: Among, last: u64) -> Result<bool, TrainError> {
    let mut run = Run::open_among(recipe, out, Resume::Auto, 0.0, among)?;
    let ended = run.go(&RealDisk, &|| 0.0, &mut |event| match event {
        Event::Step { report, .. } if report.step == last => Stop::Save,
        _ => Stop::No,
    });
    Ok(ended?.is_some())
}

fn sharing(member: impl Processes + 'static, moved: Moved, placement: Option<&Path>) -> Among {
    let placement = placement.map(Path::to_path_buf);
    Among { processes: Arc::new(member), experts: Some(ExpertSharing { moved, placement }) }
}

/// A run of six steps of eight passes, in four shards, with experts in all layers but the first.
fn sharded(data: &Path, router: RouterConfig) -> Recipe {
    let mut recipe = cut(small(data, router), (8, 1, 4));
    recipe.train.steps = 6;
    recipe.log.validate_every = 3;
    recipe.log.trace_every = 2;
    let experts = experts::Config { count: 5, width: 16, dense_first: 1, ..Default::default() };
    recipe.model.mlp = MlpConfig::Experts(experts);
    recipe
}

#[test]
fn runs_in_folders_leave_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path(), 0);
    for (name, router) in routers().into_iter().enumerate() {
        let recipe = sharded(&data, router);
        let at = |what: &str| dir.path().join(format!("{name}-{what}"));
        let alone = at("alone");
        assert!(run(&recipe, &alone, Among::alone()).expect("runs"));
        for (size, moved) in [(2, Moved::Fewest), (3, Moved::Rows), (4, Moved::Weights)] {
            let out = at(&size.to_string());
            let go = |member| run(&recipe, &out, sharing(member, moved, None));
            assert!(all(size, go).into_iter().all(|ended| ended.expect("runs")));
            same_files(&out, &alone);
        }
    }
}

#[test]
fn other_numbers_go_on_with_or_without_shares() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = sharded(&data(dir.path(), 0), RouterConfig::default());
    let (alone, out) = (dir.path().join("alone"), dir.path().join("out"));
    assert!(run(&recipe, &alone, Among::alone()).expect("runs"));
    let steps = [(3, Moved::Rows, 1), (2, Moved::Weights, 2), (4, Moved::Fewest, 4)];
    for (size, moved, last) in steps {
        let go = |member| stopped(&recipe, &out, sharing(member, moved, None), last);
        assert!(all(size, go).into_iter().all(|ended| !ended.expect("stops")));
    }
    let whole = |member| {
        let processes: Arc<dyn Processes> = Arc::new(member);
        stopped(&recipe, &out, processes.into(), 5)
    };
    assert!(all(2, whole).into_iter().all(|ended| !ended.expect("stops")));
    assert!(run(&recipe, &out, sharing(Alone, Moved::Fewest, None)).expect("ends"));
    let newest = "checkpoints/step-00000006";
    same_files(&out.join(newest), &alone.join(newest));
    assert!(files(&out)["log.jsonl"] == files(&alone)["log.jsonl"]);
}

#[test]
fn a_file_says_who_holds_what() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = data(dir.path(), 0);
    let recipe = sharded(&data, RouterConfig::default());
    let alone = dir.path().join("alone");
    assert!(run(&recipe, &alone, Among::alone()).expect("runs"));
    // Replicas, in the second layer of every expert, and for three a process that owns none.
    let lists = "[[4, 0, 2, 1, 3, 0], [0, 1, 2, 3, 4, 4, 1, 0, 2, 3, 0, 4]]";
    let path = placement(dir.path(), lists);
    for (size, moved) in [(2, Moved::Rows), (3, Moved::Rows), (3, Moved::Fewest)] {
        let out = dir.path().join(format!("{size}-{moved:?}"));
        let go = |member| run(&recipe, &out, sharing(member, moved, Some(&path)));
        assert!(all(size, go).into_iter().all(|ended| ended.expect("runs")));
        same_files(&out, &alone);
    }
}

#[test]
fn what_cannot_be_shared_out_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = sharded(&data(dir.path(), 0), RouterConfig::default());
    let out = dir.path().join("out");
    let refused = |recipe: &Recipe, size: usize, lists: &str| {
        let path = placement(dir.path(), lists);
        let go = |member| run(recipe, &out, sharing(member, Moved::Rows, Some(&path)));
        let said = all(size, go).into_iter().map(|ended| ended.expect_err(lists).to_string());
        said.collect::<Vec<_>>()
    };
    for (size, lists, expected) in [
        (2, "[[0, 1, 2, 3, 4, 0]]", "of 1 lists, expected one for each of the model's 2 layers"),
        (2, "[[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]", "of 5 slots, expected a multiple of the 2"),
        (1, "[[0, 1, 2, 3], [0, 1, 2, 3, 4]]", "[0] is without expert 4"),
        (2, "[[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 4]]", "[0][5] is 5, expected experts below 5"),
        (1, "7", "the file is"),
    ] {
        for said in refused(&recipe, size, lists) {
            assert!(said.contains(expected) && said.contains("placement.json"), "{said}");
        }
    }
    let mut dense = recipe.clone();
    dense.model.mlp = MlpConfig::default();
    let mut one = recipe;
    one.model.mlp = MlpConfig::Experts(experts::Config {
        count: 1,
        router: model::ExpertRouterConfig::TopK(model::expert_routers::top_k::Config {
            top_k: 1,
            ..Default::default()
        }),
        ..Default::default()
    });
    for recipe in [&dense, &one] {
        for said in refused(recipe, 1, "[]") {
            assert!(said.contains("model.mlp is one without experts to share out"), "{said}");
        }
    }
    assert!(!out.exists());
}

#[test]
fn processes_that_share_out_otherwise_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = sharded(&data(dir.path(), 0), RouterConfig::default());
    let out = dir.path().join("out");
    let found = all(2, |member| {
        let moved = MOVED[member.rank()];
        run(&recipe, &out, sharing(member, moved, None))
    });
    for error in found {
        let said = error.expect_err("they differ").to_string();
        assert!(said.contains("experts shared out as process 0 has them"), "{said}");
    }
}

/// One ends in the middle of a run: the others end with an error that says so, none waits for ever,
/// and nothing of what they went on with is kept.
#[test]
fn one_that_ends_ends_all() {
    let dir = tempfile::tempdir().expect("a folder");
    let recipe = sharded(&data(dir.path(), 0), RouterConfig::default());
    let alone = dir.path().join("alone");
    assert!(run(&recipe, &alone, Among::alone()).expect("runs"));
    for (ends, after) in [(0, 401), (1, 250), (2, 60), (0, 300), (1, 345), (2, 350), (1, 355)] {
        let out = dir.path().join(format!("lost-{ends}-{after}"));
        let found = all(3, |member| {
            let rank = member.rank();
            // A process that is gone in the middle of a step, while others are at experts.
            if rank == ends {
                let Among { processes, experts } = sharing(member, Moved::Rows, None);
                let among =
                    Among { processes: Arc::new(Leaving::after(after, processes)), experts };
                return run(&recipe, &out, among);
            }
            run(&recipe, &out, sharing(member, Moved::Rows, None))
        });
        for ended in found {
            let error = ended.expect_err("all are told");
            let gone = matches!(&error, TrainError::Processes(ProcessError::Ended { .. }));
            assert!(gone, "{error}");
        }
        let go = |member| run(&recipe, &out, sharing(member, Moved::Rows, None));
        assert!(all(2, go).into_iter().all(|ended| ended.expect("runs")));
        same_files(&out, &alone);
    }
}

/// A process that fails after it has met the others so often.
struct Leaving {
    processes: Arc<dyn Processes>,
    left: AtomicUsize,
}

impl Leaving {
    fn after(meetings: usize, processes: Arc<dyn Processes>) -> Self {
        Self { processes, left: AtomicUsize::new(meetings) }
    }

    fn meets(&self) -> Result<&dyn Processes, ProcessError> {
        let left = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        let (rank, size) = (self.rank(), self.size());
        left.map(|_| &*self.processes).map_err(|_| ProcessError::Ended { rank, size, from: rank })
    }
}

impl Processes for Leaving {
    fn rank(&self) -> usize {
        self.processes.rank()
    }

    fn size(&self) -> usize {
        self.processes.size()
    }

    fn exchange(
        &self,
        sent: Vec<Vec<f32>>,
        expected: &[usize],
    ) -> Result<Vec<Vec<f32>>, ProcessError> {
        self.meets()?.exchange(sent, expected)
    }

    fn gather(&self, mine: Vec<f32>, expected: &[usize]) -> Result<Vec<Vec<f32>>, ProcessError> {
        self.meets()?.gather(mine, expected)
    }

    fn tell(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, ProcessError> {
        self.meets()?.tell(mine)
    }
}

/// What the processes sent in each of three steps, and rows that experts of other processes than
/// the row's computed in each by what routers decided.
fn sent(recipe: &Recipe, size: usize, moved: Moved) -> Vec<(ExpertTraffic, u64)> {
    let sharing = ExpertSharing { moved, placement: None };
    let shards = recipe.train.shards;
    let of_member = |member: processes::Member| {
        let rank = member.rank();
        let mut trainer = Trainer::new(recipe).expect("legal");
        trainer.join_as(Arc::new(member), Some(&sharing)).expect("joins");
        let batches = batches(1, 12, 1);
        let step = |_| {
            trainer.recorder = Some(Recorder::of(&trainer.model));
            trainer.step_on(&batches).expect("finite");
            let trace = trainer.recorder.take().expect("recorded").take();
            let mut rows = 0;
            for decision in trace.iter() {
                let Some(stored) = decision.layer else { continue };
                let count = recipe.model.mlp.settings().computing_experts(stored as usize);
                for &target in decision.targets.iter().filter(|t| (**t as usize) < count) {
                    let owns = |r: &usize| share(count, *r, size).contains(&(target as usize));
                    let owner = (0..size).find(owns).expect("one");
                    rows += u64::from(owner != rank);
                }
            }
            (trainer.expert_traffic().expect("shared out").clone(), rows)
        };
        (0..3).map(step).collect::<Vec<_>>()
    };
    assert!(shards >= size);
    let all = all(size, of_member);
    let of_step = |step: usize| {
        let rows = all.iter().map(|steps| steps[step].1).sum();
        assert!(all.iter().all(|steps| steps[step].0 == all[0][step].0), "all know the same");
        (all[0][step].0.clone(), rows)
    };
    (0..3).map(of_step).collect()
}

/// `8 (d_in + d_out)` bytes a row of another process, `12 (d_in + d_out)` where layers run again;
/// `4 P` a copy of an expert of `P` values, and `4 P` for each partial sum that comes back.
#[test]
fn bytes_are_those_of_the_formula() {
    let simple = experts::Config { count: 5, width: 16, ..experts::Config::default() };
    let latent = experts::Config { latent: 8, ..simple.clone() };
    for (config, read, again) in [(&simple, 24, false), (&latent, 8, false), (&simple, 24, true)] {
        let mut recipe = with_experts(MlpConfig::Experts(config.clone()), 5);
        recipe.train.recompute = again;
        let values = 2 * 16 * read + 24 * 16;
        let layers = recipe.model.check().map(|plan| plan.stored).expect("legal");
        for size in [2, 3] {
            for (traffic, rows) in sent(&recipe, size, Moved::Rows) {
                let ways = if again { 3 } else { 2 };
                assert!(rows > 0);
                assert_eq!(traffic.rows, ways * 4 * rows * (read + 24));
                assert_eq!((traffic.weights, traffic.gradients), (0, 0));
                assert!(traffic.agreement > 0 && traffic.copies == vec![0; layers]);
            }
            // Shards 0 to 4 of two processes: 0 and 1; 2 and 3, 4. Of three: 0; 1, 2; 3, 4.
            let sums: [u64; 3] = if size == 2 { [1, 2, 0] } else { [1, 2, 2] };
            let mut back = 0;
            for e in 0..5 {
                let away = (0..size).filter(|r| !share(5, *r, size).contains(&e));
                back += away.map(|rank| sums[rank]).sum::<u64>();
            }
            for (traffic, _) in sent(&recipe, size, Moved::Weights) {
                let copies = 5 * (size - 1);
                assert_eq!(traffic.rows, 0);
                assert_eq!(traffic.weights, (layers * copies) as u64 * 4 * values);
                assert_eq!(traffic.gradients, layers as u64 * back * 4 * values);
                assert_eq!(traffic.copies, vec![copies; layers]);
            }
        }
    }
}

/// Once a step has been counted, what travels takes no more bytes than either way would.
#[test]
fn fewest_bytes_are_chosen_by_count() {
    let bytes = |t: &ExpertTraffic| t.rows + t.weights + t.gradients;
    let mut mixed = 0;
    for width in [4, 24, 32, 64] {
        let config = experts::Config { count: 5, width, ..experts::Config::default() };
        let recipe = with_experts(MlpConfig::Experts(config), 4);
        let [rows, weights, fewest] = MOVED.map(|moved| sent(&recipe, 2, moved));
        assert_eq!(fewest[0].0.copies.iter().sum::<usize>(), 0, "nothing is known yet");
        // The same rows in every step, by routers that have hardly learned.
        let last = fewest[2].0.copies.iter().sum::<usize>();
        let [rows, weights, fewest] = [&rows, &weights, &fewest].map(|sent| bytes(&sent[2].0));
        assert!(fewest <= rows.min(weights) * 21 / 20, "{width}: {rows} {weights} {fewest}");
        mixed += usize::from(last > 0 && fewest < rows.min(weights));
    }
    assert!(mixed > 0, "some experts travel and others do not");
}
