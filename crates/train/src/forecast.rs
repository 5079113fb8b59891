//! What a run will take, before it takes it: memory at its peak, and operations.
//!
//! Memory is counted in the numbers that the operations keep for the backward pass (`ops`), the
//! buffers they fill on the way, and what stays from step to step. The allocator keeps what it has,
//! so buffers of one size are used again, and those of another size come on top. A save copies
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Batch, BatchSequence};
use model::cost::{Convention, forward_flops, head_flops, nominal_capacities, prelude_flops};
use model::layout::LayerPlan;
use model::params::{ParamPlace, ParamSpec};
use model::routers::ThresholdsFrom;
use model::table::specs;
use model::{Causality, KvMode, Model, ModelConfig, QueryKeyNorm};

use crate::validate::ROWS_OF_A_PASS;
use crate::{Recipe, Stored, TrainError, Trainer, WindowChoice};

/// Bytes that a process of this program holds without a model: code, threads, tables.
const PROGRAM: u64 = 20 << 20;

/// What the allocator takes for a buffer, over what was asked for: measured, since large blocks
/// share segments of 32 MiB (`measurements/2026-11-29-xeon-2c/forecasts.md`).
const ALLOCATED: f64 = 1.2;

/// Memory of a run at its peak, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Weights, gradients and moments; of frozen weights only the weights.
    pub state: u64,
    /// Weights of the model that is learned from.
    pub teacher: u64,
    /// What the backward pass of one micro-batch keeps and fills.
    pub activations: u64,
    /// Logits of the head and, beside a teacher, of both models, with the gradient of the head.
    pub head: u64,
    /// The program without a model.
    pub program: u64,
}

impl Memory {
    /// What the machine must have free, and what the system counts for the process at its peak.
    pub fn peak(&self) -> u64 {
        self.state + self.teacher + self.activations + self.head + self.program
    }
}

/// Operations of a run, full count: two for a multiply-add.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Forward and backward of all steps.
    pub steps: f64,
    /// Of `steps`: layers that run once more, in the backward pass, or to count the loads of a
    /// router whose loss is over several passes.
    pub again: f64,
    /// The teacher's forward passes, and the student's logits that are compared with its.
    pub teacher: f64,
    /// Calibration and scoring, at every validation and before every save.
    pub validation: f64,
    /// Validations, those before saves among them.
    pub validations: u64,
    /// Checkpoints that are written.
    pub saves: u64,
}

impl Work {
    /// All operations of the run.
    pub fn total(&self) -> f64 {
        self.steps + self.teacher + self.validation
    }
}

/// Operations of one row of a step, as in [`Work`].
#[derive(Default)]
struct RowWork {
    step: f64,
    again: f64,
    teacher: f64,
}

impl RowWork {
    fn add(&mut self, other: &Self, times: f64) {
        self.step += times * other.step;
        self.again += times * other.again;
        self.teacher += times * other.teacher;
    }
}

/// What a run of a recipe takes. The vocabulary must be known.
#[derive(Clone, Copy, Debug)]
pub struct Forecast<'a> {
    /// The recipe with its vocabulary filled in.
    pub recipe: &'a Recipe,
    /// The model that is learned from, if any.
    pub teacher: Option<&'a ModelConfig>,
    /// Windows of the validation text; as many as the recipe asks for where it is not known.
    pub valid_windows: Option<u64>,
}

impl Forecast<'_> {
    /// Memory at the peak.
    ///
    /// # Errors
    /// An impossible model.
    pub fn memory(&self) -> Result<Memory, TrainError> {
        let (recipe, config) = (self.recipe, &self.recipe.model);
        let rows = recipe.runs() * recipe.train.micro_batch * recipe.data.sequence_length;
        let scored = self.scored_rows();
        let (v, d) = (config.vocab_size, config.width);
        // Logits of as many rows as the head takes at a time, with rows and gradients beside them.
        // Where a validation has more, it takes a second buffer.
        let [taken, larger] = [rows, scored].map(|rows| ops::head_rows(v).min(rows));
        let both = taken + if larger > taken { larger } else { 0 };
        let logits = 4 * both * (v + 2 * d + 1);
        let (mut head, mut teacher) = (logits + 4 * v * d, 0);
        let mut backward = self.kept_values(rows)? + rows as f64 * in_flight(config);
        if recipe.runs() == 2 {
            // Logits of both runs, and the gradients by rows and by the head.
            head += 4 * (2 * ops::distill_rows(v).min(rows) * v + v * d);
            backward += (rows * d) as f64;
        }
        if let Some(taught) = self.teacher {
            let table = specs(taught, &taught.check()?);
            teacher = 4 * table.iter().map(|spec| spec.count()).sum::<usize>();
            head += 4 * (2 * ops::distill_rows(v).min(rows) * v + v * d);
            backward += (rows * (taught.width + d)) as f64;
            backward += rows as f64 * in_flight(taught);
        }
        // Passes of validation have other sizes than those of training, unless by chance.
        if scored != rows {
            let shares = nominal_capacities(config);
            backward += scored as f64 * in_flight(config) * sizes_of(&shares);
        }
        Ok(Memory {
            state: recipe.state_bytes()?,
            teacher: teacher as u64,
            activations: (ALLOCATED * 4.0 * backward) as u64,
            head: head as u64,
            program: PROGRAM,
        })
    }

    /// Rows of the largest pass of a validation.
    fn scored_rows(&self) -> usize {
        let log = &self.recipe.log;
        let windows = log.validate_windows.max(log.calibrate_windows).max(1);
        let windows = windows.min(self.valid_windows.unwrap_or(windows)).max(1) as usize;
        let length = self.recipe.data.sequence_length;
        (windows * length).min((ROWS_OF_A_PASS / length.max(1)).max(1) * length)
    }

    /// Numbers that one pass keeps for its backward pass.
    fn kept_values(&self, rows: usize) -> Result<f64, TrainError> {
        let config = &self.recipe.model;
        let plan = config.check()?;
        let table = specs(config, &plan);
        // The widest pass counts, which is the first where capacities fall.
        let shares = config.router.capacities(config.recursions, 0);
        let recurs = plan.recursions.len();
        let inner: BTreeSet<usize> = plan.recursions.iter().flatten().map(|at| at.layer).collect();
        let adapters = adapter_values(config, &table);
        let d = config.width as f64;
        let mut values = 0.0;
        for at in plan.unrolled() {
            let share = if inner.contains(&at.layer) { shares[at.recursion] } else { 1.0 };
            let adapted = adapters.get(&(at.stored, at.recursion)).copied().unwrap_or(0.0);
            values += share
                * match self.recipe.train.recompute {
                    true => d,
                    false => layer_values(config, at.stored) + adapted,
                };
        }
        if self.recipe.train.recompute {
            // One layer at a time runs again and keeps everything.
            values += widest(&plan, |stored| layer_values(config, stored));
        }
        for (r, share) in shares.iter().enumerate().take(recurs) {
            // The rows that the router scores, and the results that it weighs.
            let candidates = if r == 0 { 1.0 } else { shares[r - 1] };
            if config.router.settings().chooses() {
                values += d * (candidates + share);
            }
        }
        // The last norm's rows, and the gradient that the head leaves for them.
        Ok(rows as f64 * (values + 2.0 * d))
    }

    /// Operations of the whole run.
    ///
    /// # Errors
    /// An impossible model.
    pub fn work(&self) -> Result<Work, TrainError> {
        let recipe = self.recipe;
        let (config, train) = (&recipe.model, &recipe.train);
        let plan = config.check()?;
        let n = recipe.data.sequence_length;
        let rows = (recipe.runs() * train.batch * n) as f64;
        // Shares change until the capacities have fallen, then stay.
        let last = nominal_capacities(config);
        let falling = first_at(config, &last, train.steps);
        let sampled = falling.min(SAMPLED_STEPS);
        let mut sum = RowWork::default();
        sum.add(&self.row_work(&last)?, (train.steps - falling) as f64);
        for i in 0..sampled {
            let step = (u128::from(i) * u128::from(falling) / u128::from(sampled)) as u64;
            let shares = config.router.capacities(config.recursions, step);
            sum.add(&self.row_work(&shares)?, falling as f64 / sampled as f64);
        }
        let (validations, saves) = moments(recipe);
        let scored = forward_flops(config, &plan, n, &last, Convention::Full);
        Ok(Work {
            steps: rows * sum.step,
            again: rows * sum.again,
            teacher: rows * sum.teacher,
            validation: validations as f64 * self.validation_rows(config) * scored,
            validations,
            saves,
        })
    }

    /// Operations of a row of a step whose recursions take these shares.
    fn row_work(&self, shares: &[f64]) -> Result<RowWork, TrainError> {
        let recipe = self.recipe;
        let (config, train) = (&recipe.model, &recipe.train);
        let plan = config.check()?;
        let n = recipe.data.sequence_length;
        let head = head_flops(config, &plan);
        let forward = forward_flops(config, &plan, n, shares, Convention::Full);
        let mut again = if train.recompute { forward - head } else { 0.0 };
        if train.batch > train.micro_batch && config.router.settings().wants_loads() {
            again += prelude_flops(config, &plan, n);
        }
        let mut teacher = 0.0;
        if let Some(taught) = self.teacher {
            let shares = nominal_capacities(taught);
            let there = forward_flops(taught, &taught.check()?, n, &shares, Convention::Full);
            teacher = there + 3.0 * head;
        }
        // Both runs have logits once more, and these their gradients.
        let compared = if recipe.runs() == 2 { 3.0 * head } else { 0.0 };
        let step = forward * (3.0 - frozen_share(recipe)?) + again + compared;
        Ok(RowWork { step, again, teacher })
    }

    /// Rows that run in one validation: each scored one twice, each calibrating one once for every
    /// recursion whose capacity is below 1, as far as that recursion.
    fn validation_rows(&self, config: &ModelConfig) -> f64 {
        let log = &self.recipe.log;
        let asked = log.validate_windows + log.calibrate_windows.max(1);
        let windows = self.valid_windows.unwrap_or(2 * asked);
        let choice = WindowChoice::new(windows, log.validate_windows, log.calibrate_windows.max(1));
        let calibrates = matches!(
            config.router.settings().causality(),
            Causality::Thresholds(ThresholdsFrom::Calibration { .. })
        );
        let below = nominal_capacities(config).iter().filter(|c| **c < 1.0).count();
        let passes = if calibrates { below } else { 0 };
        let scored = 2 * choice.scored.len() + passes * choice.calibrated.len();
        (scored * self.recipe.data.sequence_length) as f64
    }
}

/// Seconds of a step here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// One micro-batch, forward and backward.
    pub pass: f64,
    /// What a step does once: norms and the update.
    pub once: f64,
    /// Operations of that micro-batch, the teacher's among them.
    pub pass_flops: f64,
}

impl Timing {
    /// From seconds of a step of one pass and of a step of two, both on a `shrunk`-th of a
    /// micro-batch. Clocks are noisy: a pass is at least a fifth of the step, and nothing takes
    /// less than no time.
    fn of_steps(one: f64, two: f64, shrunk: f64, pass_flops: f64) -> Self {
        let pass = (two - one).max(0.2 * one);
        Self { pass: pass * shrunk, once: (one - pass).max(0.0), pass_flops }
    }

    /// Seconds of a whole run of `recipe` that does `work`, without its saves.
    pub fn run(&self, recipe: &Recipe, work: &Work) -> f64 {
        recipe.train.steps as f64 * self.once + work.total() / self.pass_flops * self.pass
    }
}

/// The longest that a pass may take by the forecast to be timed at all.
const LONGEST_PASS: f64 = 6.0;
/// How long steps are timed.
const TIMED: Duration = Duration::from_millis(1500);

impl Forecast<'_> {
    /// Times steps of the recipe on random tokens; `rate` is a guess of this machine's FLOP/s, by
    /// which long passes are timed on fewer sequences. `None` where one sequence takes too long.
    ///
    /// # Errors
    /// An impossible recipe, or a step that is not finite.
    pub fn time(&self, rate: f64) -> Result<Option<Timing>, TrainError> {
        let recipe = self.recipe;
        let (model, train) = (&recipe.model, &recipe.train);
        // Where capacities fall, the middle of the run has shares between the first and the last,
        // and gathers rows as most steps do.
        let step = train.steps / 2;
        let row = self.row_work(&model.router.capacities(model.recursions, step))?;
        let rows = (recipe.runs() * train.micro_batch * recipe.data.sequence_length) as f64;
        let pass_flops = rows * (row.step + row.teacher);
        let Some(sequences) = sequences_timed(pass_flops / rate, train.micro_batch) else {
            return Ok(None);
        };
        let mut trainer = Trainer::new(recipe)?;
        // Fewer passes than a step has; what adding up shards takes is not a pass.
        trainer.recipe.train.shards = 1;
        if let Some(taught) = self.teacher {
            let fresh = Model::fresh(taught, 0)?;
            trainer.teacher = Some(Arc::new(Stored::of(Arc::new(fresh))));
        }
        let batch = noise(model, sequences, recipe.data.sequence_length);
        let one = median_step(&mut trainer, step, std::slice::from_ref(&batch))?;
        let two = median_step(&mut trainer, step, &[batch.clone(), batch])?;
        let shrunk = train.micro_batch as f64 / sequences as f64;
        Ok(Some(Timing::of_steps(one, two, shrunk, pass_flops)))
    }
}

/// Sequences of a pass that is timed, of `micro_batch` that take `seconds` by the guess: as many as
/// take a second, at least one. `None` where one alone takes too long.
fn sequences_timed(seconds: f64, micro_batch: usize) -> Option<usize> {
    let each = seconds / micro_batch as f64;
    (each <= LONGEST_PASS).then(|| ((1.0 / each) as usize).clamp(1, micro_batch))
}

/// Seconds of step `at` on `batches`, the median of some.
fn median_step(trainer: &mut Trainer, at: u64, batches: &[Batch]) -> Result<f64, TrainError> {
    let (begin, mut seconds) = (Instant::now(), Vec::new());
    // The first is not counted: it makes buffers.
    while seconds.len() < 4 || (begin.elapsed() < TIMED && seconds.len() < 26) {
        trainer.step = at;
        let clock = Instant::now();
        trainer.step_on(batches)?;
        seconds.push(clock.elapsed().as_secs_f64());
    }
    Ok(median(seconds.split_off(1)))
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Sequences of random tokens.
fn noise(config: &ModelConfig, sequences: usize, length: usize) -> Batch {
    let all = sequences * length;
    let ids: Vec<u32> = (0..=all as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u32 % config.vocab_size as u32)
        .collect();
    let (document, same) = (vec![0; length], vec![true; length]);
    let sequences: Vec<BatchSequence<'_>> = (0..all)
        .step_by(length)
        .map(|first| BatchSequence {
            ids: &ids[first..first + length],
            targets: &ids[first + 1..first + length + 1],
            document: &document,
            same_document: &same,
        })
        .collect();
    Batch::pack(&sequences, true)
}

/// Numbers that a layer keeps for each row: the stream ahead of attention and MLP, what each norm
/// gives or takes beside it, queries, keys and values (again where they are normed or clipped), the
/// result of attention with a sum for each head, and what the MLP keeps.
fn layer_values(config: &ModelConfig, stored: usize) -> f64 {
    let heads = config.heads();
    let (queries, results) = (heads.q_width(), heads.out_width());
    let norms = usize::from(config.norms.before()) + usize::from(config.norms.after());
    let normed = match config.attention.query_key_norm {
        QueryKeyNorm::None => 0,
        QueryKeyNorm::Head | QueryKeyNorm::HeadTurned | QueryKeyNorm::Width => {
            queries + config.kv_width() / 2
        }
    };
    let clipped = if config.attention.clip > 0.0 { queries + config.kv_width() } else { 0 };
    let latents = config.attention.latent().map_or(0, |latent| {
        // Each latent before and behind its norm (and its factor), the shared part of keys, and
        // what is expanded of each head.
        let copies = 2 + usize::from(config.attention.latent_scale != 1.0);
        let expanded = config.kv_width() - config.heads * latent.turned;
        2 * latent.query + (copies + 1) * latent.key_value + 2 * latent.turned + expanded
    });
    // A norm that takes away the mean keeps what is left beside its result.
    let norms = if config.norms.kind.is_rms() { norms } else { 2 * norms };
    let rows = 2 * (1 + norms) * config.width;
    let attention = rows + queries + results + config.kv_width() + config.heads;
    let attention = attention + normed + clipped + latents;
    let again = if config.kv == KvMode::SharedUpdate { config.kv_width() } else { 0 };
    (attention + again) as f64 + config.mlp.settings().kept_values(&config.sizes(), stored)
}

/// Values that the adapters of a use of a layer keep for a row, by stored layer and recursion: the
/// narrow side of each pair, before and after its scale.
fn adapter_values(config: &ModelConfig, table: &[ParamSpec]) -> BTreeMap<(usize, usize), f64> {
    let mut values = BTreeMap::new();
    // Those that are merged keep nothing of a row.
    if config.relax.settings().keeps_matrices() {
        return values;
    }
    for spec in table {
        if let ParamPlace::Adapter { stored, recursion, .. } = spec.place {
            let narrow = spec.shape.0.min(spec.shape.1) as f64;
            *values.entry((stored, recursion)).or_insert(0.0) += narrow;
        }
    }
    values
}

/// Steps of falling capacities that are counted one by one; of more, as many at equal distances.
const SAMPLED_STEPS: u64 = 256;

/// The first step at which capacities have fallen to `last`; `steps` if none has.
fn first_at(config: &ModelConfig, last: &[f64], steps: u64) -> u64 {
    let (mut low, mut high) = (0, steps);
    while low < high {
        let middle = low + (high - low) / 2;
        let fallen = config.router.capacities(config.recursions, middle) == last;
        if fallen { high = middle } else { low = middle + 1 }
    }
    low
}

/// Buffers of all sizes that passes of these shares fill, over the largest.
fn sizes_of(shares: &[f64]) -> f64 {
    1.0 + shares.iter().filter(|share| **share < 1.0).sum::<f64>()
}

/// Numbers a row that are in flight between two operations: the widest of them, which is the MLP's,
/// twice over, and the stream.
fn in_flight(config: &ModelConfig) -> f64 {
    let sizes = config.sizes();
    let mlp =
        |plan: LayerPlan| widest(&plan, |stored| config.mlp.settings().kept_values(&sizes, stored));
    (2 * config.width) as f64 + config.check().map_or(0.0, mlp)
}

/// The most of `values` of any stored layer.
fn widest(plan: &LayerPlan, values: impl Fn(usize) -> f64) -> f64 {
    (0..plan.stored).map(values).fold(0.0, f64::max)
}

/// The share of a forward pass that the backward pass saves on weights that collect no gradient.
fn frozen_share(recipe: &Recipe) -> Result<f64, TrainError> {
    let config = &recipe.model;
    let plan = config.check()?;
    let (mut all, mut frozen) = (0.0, 0.0);
    for spec in specs(config, &plan) {
        let uses = spec.place.layer().map_or(1, |stored| plan.uses_of(stored).len());
        let used = match spec.place {
            // Looked up, which is no product, and then the matrix of the head.
            ParamPlace::Embed if config.tie_embeddings => head_flops(config, &plan),
            _ => spec.flops() * uses as f64,
        };
        all += used;
        if crate::freeze::is_frozen(&recipe.train.freeze, &spec.name) {
            frozen += used;
        }
    }
    Ok(if all > 0.0 { frozen / all } else { 0.0 })
}

/// Validations and saves of a run that nobody stops: a save validates what is not validated yet.
fn moments(recipe: &Recipe) -> (u64, u64) {
    let (steps, checks) = (recipe.train.steps, recipe.log.validate_every);
    let saves = recipe.checkpoint.every;
    if checks == 0 && saves == 0 {
        return (1, 1);
    }
    let count = |every: u64| (steps - 1).checked_div(every).unwrap_or(0);
    let both = match (checks, saves) {
        (0, _) | (_, 0) => 0,
        _ => count(checks / gcd(checks, saves) * saves),
    };
    (count(checks) + count(saves) - both + 1, count(saves) + 1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
