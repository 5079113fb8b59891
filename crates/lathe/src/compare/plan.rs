//! What is compared, before anything runs: each family fitted to what is equal, with its costs and
//! how long it takes here.

use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use data::{Corpus, Manifest, Split};
use indicatif::ProgressBar;
use model::ModelConfig;
use rayon::ThreadPoolBuilder;
use report::{Table, human_bytes, human_count, human_duration};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use study::{Comparison, Equal, Setting, nearest_size};
use train::{
    CheckpointConfig, DataConfig, Forecast, LogConfig, OptimizerConfig, Recipe, ScheduleConfig,
    Timing, TrainConfig,
};

use super::families;
use crate::costs::{Costs, training_flops};
use crate::memory::teacher;
use crate::recipe;
use crate::sweep::{Job, different};

/// The most bytes of a plan's record.
const LONGEST: u64 = 1 << 26;
/// The most steps of a run.
const MOST_STEPS: usize = 1 << 32;
/// MLPs are fitted in multiples of this, so that experts of an eighth are whole.
const WIDTH_STEP: usize = 16;
/// How far a fitted number may be from what it should equal.
const TOLERANCE: f64 = 0.05;
/// Fields that the budget and the seeds decide.
const DECIDED: [&str; 4] = ["train.steps", "train.seed", "data.dir", "model.vocab_size"];
/// FLOPs of training between two checkpoints, about a minute or two: each validates, which a short
/// run would notice.
const BETWEEN_SAVES: f64 = 1e13;
/// Seconds that a run takes beside its steps, validations and saves: its process, its data.
const BESIDE: f64 = 0.4;

/// A family at a budget.
pub(crate) struct Entry {
    /// What it is called.
    pub(crate) family: String,
    /// FLOPs of training that a run may cost.
    pub(crate) budget: f64,
    /// What its model and training cost.
    pub(crate) costs: Costs,
    /// Memory of a run at its peak, forecast, in bytes.
    pub(crate) memory: u64,
    /// Seconds of a run here, forecast.
    pub(crate) seconds: f64,
    /// Bytes on disk that a run keeps, forecast.
    pub(crate) disk: u64,
    /// Runs, one a seed, in the order of the seeds.
    pub(crate) jobs: Vec<Job>,
    /// What was timed, by which a plan that is made again is the same.
    timed: Timed,
}

/// Seconds of steps of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Timed {
    /// The key of the recipe of one step.
    recipe: String,
    /// The numbers of [`Timing`], by their names there.
    pass: f64,
    once: f64,
    pass_flops: f64,
}

impl Timed {
    fn timing(&self) -> Timing {
        Timing { pass: self.pass, once: self.once, pass_flops: self.pass_flops }
    }
}

/// All that is to run.
pub(crate) struct Plan {
    /// What was asked for.
    pub(crate) comparison: Comparison,
    /// Families with their controls, at each budget.
    pub(crate) entries: Vec<Entry>,
    /// Runs at a time.
    pub(crate) jobs: usize,
    /// Threads of a run.
    pub(crate) threads: usize,
}

/// Where runs take their text from and stand.
pub(crate) struct Places<'a> {
    /// Folder of token shards.
    pub(crate) data: &'a Path,
    /// Folder of runs that studies share.
    pub(crate) runs: &'a Path,
    /// The record of the plan, of which timings are taken where it is there.
    pub(crate) plan: &'a Path,
}

impl Plan {
    /// Fits every family to every budget; `bar` is of those that are fitted.
    ///
    /// # Errors
    /// A family that cannot be fitted, or a run that cannot run here.
    pub(crate) fn new(
        comparison: Comparison,
        places: &Places<'_>,
        jobs: usize,
        bar: &ProgressBar,
    ) -> Result<Self> {
        let threads = (rayon::current_num_threads() / jobs.max(1)).max(1);
        let vocab = Corpus::open(places.data, Split::Train)?.vocab_size();
        let lists = comparison
            .variants
            .iter()
            .map(|variant| (format!("variants.{}.set", variant.name), variant.settings.as_slice()));
        let parameters = ("parameters".to_owned(), comparison.settings.as_slice());
        for (place, list) in lists.chain([parameters]) {
            undecided(&place, list)?;
        }
        let names = match comparison.controls {
            true => families::with_controls(&comparison.families),
            false => comparison.families.clone(),
        };
        let known = known_timings(places.plan, jobs, threads);
        let fitter = Fitter { comparison: &comparison, places, vocab, threads, jobs, known };
        let mut entries: Vec<Entry> = Vec::new();
        bar.set_length((comparison.budgets.len() * names.len()) as u64);
        for &budget in &comparison.budgets {
            let mut first = None;
            for name in &names {
                bar.set_message(name.clone());
                let entry = fitter.entry(name, budget, first.as_ref(), &entries);
                let entry = entry.with_context(|| format!("family {name}"))?;
                let first = first.get_or_insert_with(|| entry.0.clone());
                ensure!(
                    entry.0.window == first.window,
                    "family {name} is validated on windows of {} tokens, the first family on \
                     windows of {}, which cannot be compared: set parameters.data.sequence_length \
                     in the study",
                    entry.0.window,
                    first.window
                );
                entries.push(entry.1);
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(Self { comparison, entries, jobs, threads })
    }

    /// Every run, those of one seed side by side, so that a comparison that is stopped early has
    /// whole seeds.
    pub(crate) fn runs(&self) -> Vec<&Job> {
        self.planned().into_iter().map(|(_, job)| job).collect()
    }

    /// Each run once, with the first family and budget that ask for it.
    fn planned(&self) -> Vec<(&Entry, &Job)> {
        let mut found = Vec::new();
        for seed in 0..self.comparison.seeds.len() {
            found.extend(self.entries.iter().filter_map(|one| Some((one, one.jobs.get(seed)?))));
        }
        different(found, |planned| planned.1)
    }

    /// Seconds of all runs: each takes the first place that is free.
    pub(crate) fn seconds(&self) -> f64 {
        let mut lanes = vec![0.0_f64; self.jobs.max(1)];
        for (entry, _) in self.planned() {
            lanes.sort_by(f64::total_cmp);
            lanes[0] += entry.seconds;
        }
        lanes.into_iter().fold(0.0, f64::max)
    }

    /// Bytes on disk that all runs keep.
    pub(crate) fn disk(&self) -> u64 {
        self.planned().into_iter().map(|(entry, _)| entry.disk).sum()
    }

    /// The plan as `plan.json` has it.
    pub(crate) fn record(&self) -> Value {
        let comparison = &self.comparison;
        let mut points = Vec::new();
        for entry in &self.entries {
            for (seed, job) in comparison.seeds.iter().zip(&entry.jobs) {
                points.push(json!({
                    "family": entry.family, "budget": entry.budget, "seed": seed, "run": job.key,
                    "steps": job.recipe.train.steps, "mlp_width": job.recipe.model.ffn,
                    "costs": entry.costs, "memory": entry.memory, "seconds": entry.seconds,
                    "disk": entry.disk, "timed": entry.timed,
                }));
            }
        }
        json!({
            "name": comparison.name, "equal": comparison.equal.name(),
            "budgets": comparison.budgets, "seeds": comparison.seeds, "shape": comparison.shape,
            "machine": ops::machine(), "threads": self.threads, "jobs": self.jobs,
            "seconds": self.seconds(), "disk": self.disk(), "points": points,
        })
    }

    /// The plan for people.
    pub(crate) fn table(&self) -> Table {
        let mut rows = Vec::new();
        for entry in &self.entries {
            let costs = &entry.costs;
            rows.push(vec![
                entry.family.clone(),
                human_count(entry.budget),
                human_count(costs.stored_parameters as f64),
                human_count(costs.active_parameters as f64),
                human_count(costs.tokens as f64),
                human_count(costs.training_flops),
                human_count(costs.forward_flops),
                human_count(costs.decode_flops),
                human_bytes(costs.kv_bytes as u64),
                human_bytes(entry.memory),
                human_duration(entry.seconds),
            ]);
        }
        let columns = [
            "family",
            "budget",
            "stored",
            "active",
            "tokens",
            "training FLOPs",
            "forward FLOPs/token",
            "decode FLOPs/token",
            "KV bytes/token",
            "memory",
            "a run takes",
        ];
        let caption = format!(
            "{} runs on {} seeds, equal in {}: about {} and {} on disk with {} at a time",
            self.runs().len(),
            self.comparison.seeds.len(),
            self.comparison.equal.name(),
            human_duration(self.seconds()),
            human_bytes(self.disk()),
            self.jobs
        );
        Table { columns: columns.map(str::to_owned).to_vec(), rows, caption, best: None }
    }
}

/// What the first family of a budget is, to which the others are equal.
#[derive(Clone)]
struct Measure {
    costs: Costs,
    seconds: f64,
    /// Tokens of a window of training and validation.
    window: usize,
}

/// What a family's recipe says before the comparison does.
struct Said {
    /// What the recipe of the family says, as TOML.
    text: String,
    /// Fields that it sets over those of all runs.
    own: Vec<Setting>,
}

/// Fits families to what is equal.
struct Fitter<'a> {
    comparison: &'a Comparison,
    places: &'a Places<'a>,
    vocab: usize,
    threads: usize,
    jobs: usize,
    /// Timings of an earlier plan of the same machine.
    known: Vec<Timed>,
}

impl Fitter<'_> {
    fn entry(
        &self,
        name: &str,
        budget: f64,
        first: Option<&Measure>,
        before: &[Entry],
    ) -> Result<(Measure, Entry)> {
        let said = self.said(name, first)?;
        let one = self.recipe(&said, 1, self.comparison.seeds[0], budget)?;
        let recipe = study::key(&json!([one.model, one.data, one.train, one.distill]));
        let mut known = before.iter().map(|entry| &entry.timed).chain(&self.known);
        let timed = match known.find(|timed| timed.recipe == recipe) {
            Some(timed) => timed.clone(),
            None => {
                let Timing { pass, once, pass_flops } = self.time(&one)?;
                Timed { recipe, pass, once, pass_flops }
            }
        };
        let timing = timed.timing();
        let steps = self.steps((&said, &one), budget, first, &timing)?;
        let mut jobs = Vec::new();
        for &seed in &self.comparison.seeds {
            let recipe = self.recipe(&said, steps, seed, budget)?;
            let label = format!("{name} {} seed={seed}", report::human_count(budget));
            jobs.push(Job::new(&label, &recipe, self.places.runs)?);
        }
        let job = &jobs[0];
        let teacher = teacher(&job.recipe)?;
        let forecast = forecast(&job.recipe, teacher.as_ref(), job.valid_windows);
        let (memory, work) = (forecast.memory()?, forecast.work()?);
        let seconds = timing.run(&job.recipe, &work) + BESIDE;
        // Weights and two moments, and a line of each log for a step.
        let disk = memory.state / 4 * 3 + 600 * job.recipe.train.steps + (1 << 20);
        let costs = Costs::of(&job.recipe)?;
        let measure = Measure { costs, seconds, window: job.recipe.data.sequence_length };
        let (family, memory) = (name.to_owned(), memory.peak());
        Ok((measure, Entry { family, budget, costs, memory, seconds, disk, jobs, timed }))
    }

    /// What the family's recipe says, whose model is fitted in size.
    fn said(&self, name: &str, first: Option<&Measure>) -> Result<Said> {
        let fits_size =
            matches!(self.comparison.equal, Equal::Active | Equal::Stored | Equal::Bytes);
        if name.ends_with(".toml") {
            ensure!(
                !fits_size || first.is_none(),
                "its model is taken as its recipe says, and cannot be made equal in {}: use \
                 --equal flops, tokens or time",
                self.comparison.equal.name()
            );
            let model = recipe::load(Path::new(name), &[])?.model;
            return Ok(Said { text: recipe::show(&self.around(model))?, own: Vec::new() });
        }
        let (true, Some(first)) = (fits_size, first) else { return self.of_width(name, None) };
        let own = families::model(self.kind(name), &self.comparison.shape, None)?;
        let target = self.size_of(&first.costs);
        let widest = 64 * own.ffn;
        let fitted = nearest_size(target, WIDTH_STEP..=widest, WIDTH_STEP, |ffn| {
            let recipe = self.recipe(&self.of_width(name, Some(ffn))?, 1, 1, 0.0)?;
            anyhow::Ok(self.size_of(&Costs::of(&recipe)?))
        })?;
        let fitted = fitted.context("no width of its MLPs is possible")?;
        ensure!(
            (fitted.cost / target - 1.0).abs() <= TOLERANCE,
            "made equal in {}, it comes no nearer than {:.3} times the first family's, with MLPs \
             of width {}, expected within {TOLERANCE}: choose another --shape, or other families",
            self.comparison.equal.name(),
            fitted.cost / target,
            fitted.size
        );
        self.of_width(name, Some(fitted.size))
    }

    /// The family by whose preset a family is made: its own, or that which it is a variant of.
    fn kind<'n>(&'n self, name: &'n str) -> &'n str {
        families::variant(self.comparison, name).map_or(name, |variant| variant.of.as_str())
    }

    /// What a family's recipe says; with `ffn`, with MLPs of this width.
    fn of_width(&self, name: &str, ffn: Option<usize>) -> Result<Said> {
        let model = families::model(self.kind(name), &self.comparison.shape, ffn)?;
        let variant = families::variant(self.comparison, name);
        let recipe = self.around(model);
        let own = families::own_settings(variant, &serde_json::to_value(&recipe)?);
        Ok(Said { text: recipe::show(&recipe)?, own })
    }

    fn size_of(&self, costs: &Costs) -> f64 {
        match self.comparison.equal {
            Equal::Active => costs.active_parameters as f64,
            Equal::Bytes => costs.decode_bytes,
            _ => costs.stored_parameters as f64,
        }
    }

    /// The recipe of a family's model.
    fn around(&self, model: ModelConfig) -> Recipe {
        let sequence_length = model.context.min(256);
        Recipe {
            model: ModelConfig { vocab_size: self.vocab, ..model },
            data: DataConfig { sequence_length, ..DataConfig::default() },
            train: TrainConfig { batch: 8, micro_batch: 8, ..TrainConfig::default() },
            optimizer: OptimizerConfig { learning_rate: 4e-3, ..OptimizerConfig::default() },
            log: LogConfig {
                validate_every: 0,
                validate_windows: 128,
                calibrate_windows: 32,
                ..LogConfig::default()
            },
            ..Recipe::default()
        }
    }

    /// The recipe of a run: what the family says, what the steps call for, what every run has.
    fn recipe(&self, said: &Said, steps: u64, seed: u64, budget: f64) -> Result<Recipe> {
        let schedule =
            ScheduleConfig::Trapezoid { warmup_steps: (steps / 20).max(1), decay_fraction: 0.3 };
        let parts = (budget / BETWEEN_SAVES) as u64;
        let every = if parts > 1 { (steps / parts).max(1) } else { 0 };
        let checkpoint = CheckpointConfig { every, keep_last: 1, keep_every: 0 };
        let mut settings: Vec<Setting> = vec![
            ("schedule".into(), serde_json::to_value(&schedule)?),
            ("checkpoint".into(), serde_json::to_value(&checkpoint)?),
        ];
        settings.extend(self.comparison.settings.iter().chain(&said.own).cloned());
        let data = self.places.data.display().to_string();
        let decided: [Value; 4] = [steps.into(), seed.into(), data.into(), self.vocab.into()];
        settings.extend(DECIDED.map(str::to_owned).into_iter().zip(decided));
        recipe::with(&said.text, &settings, "the comparison")
    }

    /// Steps that make the run equal to the budget, or to the first family.
    fn steps(
        &self,
        (said, one): (&Said, &Recipe),
        budget: f64,
        first: Option<&Measure>,
        timing: &Timing,
    ) -> Result<u64> {
        let each = (one.train.batch * one.data.sequence_length) as u64;
        let fitted = match (self.comparison.equal, first) {
            (Equal::Tokens, Some(first)) => return Ok((first.costs.tokens / each).max(1)),
            (Equal::Time, Some(first)) => {
                let manifest = Manifest::load(self.places.data)?;
                let valid = manifest.windows(Split::Validation, one.data.sequence_length);
                let teacher = teacher(one)?;
                nearest_size(first.seconds - BESIDE, 1..=MOST_STEPS, 1, |steps| {
                    let recipe = self.recipe(said, steps as u64, one.train.seed, budget)?;
                    let work = forecast(&recipe, teacher.as_ref(), Some(valid)).work()?;
                    anyhow::Ok(timing.run(&recipe, &work))
                })?
            }
            _ => nearest_size(budget, 1..=MOST_STEPS, 1, |steps| {
                training_flops(&with_steps(one, steps))
            })?,
        };
        let fitted = fitted.context("no number of steps is possible")?;
        let pays = self.comparison.equal == Equal::Time || fitted.cost <= 1.5 * budget;
        ensure!(
            pays && fitted.size < MOST_STEPS,
            "budget is {budget:e} FLOPs, expected enough for a step, which costs {:e}, and at most \
             {MOST_STEPS} of them",
            training_flops(one)?
        );
        Ok(fitted.size as u64)
    }

    /// Seconds of a step here, beside as many others as run at a time.
    fn time(&self, recipe: &Recipe) -> Result<Timing> {
        let mut slowest: Option<Timing> = None;
        let found = thread::scope(|scope| {
            let lanes: Vec<_> = (0..self.jobs.max(1))
                .map(|_| scope.spawn(|| timed(recipe, self.threads)))
                .collect();
            lanes.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        for timing in found {
            let timing = timing.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            if slowest.is_none_or(|known| timing.pass + timing.once > known.pass + known.once) {
                slowest = Some(timing);
            }
        }
        slowest.context("nothing was timed")
    }
}

/// Refuses settings of fields that the comparison decides.
fn undecided(place: &str, settings: &[Setting]) -> Result<()> {
    let decided = DECIDED
        .iter()
        .find(|decided| settings.iter().any(|(field, value)| sets(field, value, decided)));
    match decided {
        Some(field) => anyhow::bail!(
            "{place}.{field} is set, but the comparison decides it: leave it out (budget, seeds \
             and --data say what it is)"
        ),
        None => Ok(()),
    }
}

/// Whether `field` of a recipe set to `value` sets the field `decided`: as itself, or within a
/// table.
fn sets(field: &str, value: &Value, decided: &str) -> bool {
    match decided.strip_prefix(field) {
        Some("") => true,
        Some(rest) => rest.strip_prefix('.').is_some_and(|rest| {
            let found = rest.split('.').try_fold(value, |value, key| value.get(key));
            found.is_some()
        }),
        None => false,
    }
}

/// Timings of an earlier plan that was made for as many runs and threads of this machine: made
/// again, it has the same runs even where time is what is equal.
fn known_timings(path: &Path, jobs: usize, threads: usize) -> Vec<Timed> {
    let text = files::read_text(path, LONGEST);
    let record = text.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let Some(record) = record else { return Vec::new() };
    let here = json!([ops::machine(), jobs, threads]);
    if json!([record["machine"], record["jobs"], record["threads"]]) != here {
        return Vec::new();
    }
    let points = record["points"].as_array().into_iter().flatten();
    points.filter_map(|point| Timed::deserialize(&point["timed"]).ok()).collect()
}

fn timed(recipe: &Recipe, threads: usize) -> Result<Timing> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build()?;
    let rate = 0.3 * ops::peak_flops();
    let teacher = teacher(recipe)?;
    let timing = pool.install(|| forecast(recipe, teacher.as_ref(), None).time(rate))?;
    timing.context("one sequence takes too long here to be timed: choose a smaller --shape")
}

fn forecast<'a>(
    recipe: &'a Recipe,
    teacher: Option<&'a ModelConfig>,
    valid_windows: Option<u64>,
) -> Forecast<'a> {
    Forecast { recipe, teacher, valid_windows }
}

fn with_steps(recipe: &Recipe, steps: usize) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.train.steps = steps as u64;
    recipe
}
