//! One optimizer step: windows in, gradients accumulated, weights moved.

use std::collections::BTreeMap;
use std::sync::Arc;

use data::{SpecialTokens, Window, Windows};
use engine::{Batch, BatchSequence, RoutingStats, add_each};
use model::cost::{Convention, forward_flops, shares_of};
use model::params::RouterSite;
use model::routers::StepRouting;
use model::{Address, Model, NoProbe, Pass, PassCache, Probe, RouterState, RoutingEvent, Rule};
use ops::{Device, Ops, Tensor2, add_scalars, backward, scalar, scale};
use processes::{ProcessError, Processes, SumTree, share};
use trace::Recorder;

use crate::config::refuse;
use crate::experts::{Origin, is_of_shared_experts};
use crate::freeze::{self, is_frozen};
use crate::given_config::json;
use crate::optimizer::Norms;
use crate::stored::State;
use crate::sums::{Sums, Whole, longest, rows_that_count, sequences};
use crate::together::Together;
use crate::{
    ExpertSharing, ExpertTraffic, NonFinite, Optimizer, Recipe, StepReport, Stored, TrainError,
    learning_rate,
};

/// What a run carries from step to step; all of it goes into checkpoints.
pub struct Trainer {
    /// The recipe, with what the data and the start filled in.
    pub recipe: Recipe,
    /// The weights; each collects its own gradient unless the recipe freezes it.
    pub model: Arc<Model>,
    /// AdamW's two moments of every weight that is trained.
    pub optimizer: Optimizer,
    /// What routers learned outside of gradients.
    pub router: RouterState,
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Windows seen since the start.
    pub position: u64,
    /// Predictions of all steps that moved the weights.
    pub tokens: u64,
    /// Steps that were not finite and skipped.
    pub skipped: u64,
    /// How many of the last steps in a row were.
    pub skipped_in_a_row: u64,
    /// Fast kernels, or the plain operations that they are compared with.
    pub ops: Ops,
    /// Special ids and chat template of the checkpoint that the run started from.
    pub text: Option<SpecialTokens>,
    /// Whose distributions are learned from too.
    pub teacher: Option<Arc<Stored>>,
    /// What the routers of the next steps decide, where somebody wants to know. One of several
    /// processes hears those of its own passes.
    pub recorder: Option<Recorder>,
    /// The processes that share the steps.
    pub(crate) together: Together,
    /// Where experts are until they are shared out, if the model does not hold them.
    pub(crate) origin: Option<Origin>,
}

/// What a step's passes are watched by: who counts, and who records if somebody does.
struct Watched<'a> {
    stats: &'a mut RoutingStats,
    recorder: Option<Recorder>,
}

impl Probe for Watched<'_> {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        self.stats.routed(event);
        if let Some(recorder) = &mut self.recorder {
            recorder.routed(event);
        }
    }

    fn loss(&mut self, name: &'static str, value: f32, weight: f32) {
        self.stats.loss(name, value, weight);
    }
}

/// Packs windows into the rows of one pass. What is not to be learned does not count.
pub fn pack(windows: &[Window], document_mask: bool) -> Batch {
    let sequences: Vec<BatchSequence<'_>> = windows
        .iter()
        .map(|w| BatchSequence {
            ids: &w.ids,
            targets: &w.targets,
            document: &w.document,
            same_document: &w.target_same_document,
        })
        .collect();
    let mut batch = Batch::pack(&sequences, document_mask);
    let learned = windows.iter().flat_map(|w| &w.learned);
    batch.counts.iter_mut().zip(learned).for_each(|(counts, learned)| *counts &= learned);
    batch
}

impl Trainer {
    /// A fresh start.
    ///
    /// # Errors
    /// An impossible recipe.
    pub fn new(recipe: &Recipe) -> Result<Self, TrainError> {
        let model = Model::fresh(&recipe.model, recipe.train.seed)?;
        Ok(Self::over(recipe, model))
    }

    /// A fresh start that leaves out experts which are to be shared out.
    pub(crate) fn without_experts(recipe: &Recipe) -> Result<Self, TrainError> {
        let (config, seed) = (&recipe.model, recipe.train.seed);
        let model = Model::build(config, |spec| {
            // No page of these is touched.
            let left_out = is_of_shared_experts(config, spec);
            Ok::<_, TrainError>(if left_out { vec![0.0; spec.count()] } else { spec.fresh(seed) })
        })?;
        Ok(Self { origin: Some(Origin::Fresh(seed)), ..Self::over(recipe, model) })
    }

    /// A start from given weights.
    pub fn over(recipe: &Recipe, model: Model) -> Self {
        for (spec, weight) in model.weights() {
            weight.collect_gradient(!is_frozen(&recipe.train.freeze, &spec.name));
        }
        let optimizer = Optimizer::new(&model, &recipe.optimizer);
        let together = Together::alone(&model);
        Self {
            recipe: recipe.clone(),
            model: Arc::new(model),
            optimizer,
            router: RouterState::default(),
            step: 0,
            position: 0,
            tokens: 0,
            skipped: 0,
            skipped_in_a_row: 0,
            ops: Ops::Fast,
            text: None,
            teacher: None,
            recorder: None,
            together,
            origin: None,
        }
    }

    /// Rounds the frozen matrices to the format that the recipe keeps them in.
    ///
    /// # Errors
    /// A matrix that does not fit the format, or is not finite.
    pub fn round_frozen(&self) -> Result<(), TrainError> {
        freeze::round(&self.recipe, &self.model)
    }

    /// Runs passes on `device` from here on. Weights, moments and what routers learned stay in the
    /// memory of the processors, where the optimizer works: checkpoints do not tell the device.
    ///
    /// # Errors
    /// What the recipe asks for and other devices than the processors do not do.
    pub fn run_on(&mut self, device: Device) -> Result<(), TrainError> {
        self.recipe.runs_on(device)?;
        self.ops = Ops::on(device);
        Ok(())
    }

    /// Shares the steps with other processes from here on. All of them call this; they take over
    /// what the first one has: weights, moments of the part that each of them updates, counters,
    /// and what routers learned.
    ///
    /// # Errors
    /// More processes than the recipe has shards, or one that is gone.
    pub fn join(&mut self, processes: Arc<dyn Processes>) -> Result<(), TrainError> {
        self.join_as(processes, None)
    }

    /// The same with experts shared out: each process is left with model and moments of its own
    /// experts, beside all other weights. With one process, as ever.
    ///
    /// # Errors
    /// As [`Trainer::join`], and what [`ExpertSharing`] says that does not fit the model.
    pub fn join_as(
        &mut self,
        processes: Arc<dyn Processes>,
        sharing: Option<&ExpertSharing>,
    ) -> Result<(), TrainError> {
        enough_shards(&self.recipe, processes.size())?;
        let mut together = Together::new(&self.model, processes);
        // As checkpoints hold it, which is exact.
        let mut told = together.tell(&json(&State::of(self, "")).to_string())?;
        let state: State = from_first(&together, &told.swap_remove(0))?;
        if let Some(sharing) = sharing {
            let shards = self.recipe.train.shards;
            let origin = self.origin.as_ref();
            self.model = Arc::new(together.share_experts(&self.model, sharing, shards, origin)?);
        }
        together.share_weights(&self.model)?;
        let parts = together.parts(&self.model);
        together.deal(self.optimizer.moments_mut(), &parts, self.origin.take().as_ref())?;
        self.optimizer.keep(parts);
        state.put(self);
        self.together = together;
        Ok(())
    }

    /// The next step on the next windows.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, if the recipe says stop; windows that cannot be read.
    pub fn step(&mut self, windows: &Windows) -> Result<StepReport, TrainError> {
        let (count, micro) = (self.recipe.train.batch as u64, self.recipe.train.micro_batch);
        let positions: Vec<u64> = (0..count).map(|i| self.position + i).collect();
        let mask = self.recipe.data.document_mask;
        let read = positions.iter().map(|&p| windows.at(p)).collect::<Result<Vec<_>, _>>()?;
        let batches: Vec<Batch> = read.chunks(micro).map(|chunk| pack(chunk, mask)).collect();
        let report = self.step_on(&batches)?;
        self.position += count;
        Ok(report)
    }

    /// The next step on given rows; the result does not depend on how they are cut into batches,
    /// but for rounding and for a balance loss over all layers, which is one over a batch.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_on(&mut self, batches: &[Batch]) -> Result<StepReport, TrainError> {
        if self.recipe.runs() == 1 {
            return self.step_over(batches);
        }
        let twice: Vec<Batch> = batches.iter().map(Batch::twice).collect();
        self.step_over(&twice)
    }

    /// [`Trainer::step_on`] for rows as the passes take them.
    fn step_over(&mut self, batches: &[Batch]) -> Result<StepReport, TrainError> {
        let (t, peak) = (self.step, self.recipe.optimizer.learning_rate);
        let rate = peak * learning_rate(&self.recipe.schedule, t, self.recipe.train.steps);
        self.schedule_router();
        self.together.begin_step()?;
        let whole = self.whole(batches)?;
        let (shards, mine) =
            (self.recipe.train.shards, self.together.share(self.recipe.train.shards));
        let (mut seen, mut tree) = (Vec::new(), SumTree::default());
        for shard in mine {
            seen.push(self.run_shard(batches, shard, &whole));
            if shards > 1 {
                Together::push(&mut tree, shard, self.together.take_gradients(&self.model));
            }
        }
        let (mut sums, stats) = self.joined(seen)?;
        self.add_losses(&mut sums, &stats);
        let weights = self.model.weights();
        let norms = match shards {
            1 => Optimizer::norms(&self.model, weights.iter().map(|(_, w)| w.gradient_square())),
            _ => {
                let squares = self.together.reduce(&self.model, tree, shards)?;
                Optimizer::norms(&self.model, squares)
            }
        };
        self.step += 1;
        self.schedule_router();
        let report = self.report(&sums, norms, rate, &stats);
        if let Some((what, value)) = not_finite(&report, norms) {
            return self.refuse(what, value, report);
        }
        self.skipped_in_a_row = 0;
        self.optimizer.update(&self.model, rate, norms);
        self.together.publish(&self.model)?;
        self.learn_outside_of_gradients(&sums.depths, &stats);
        self.tokens += report.tokens;
        Ok(StepReport { thresholds: self.thresholds(), ..report })
    }

    /// What processes that share out experts sent each other in the newest step.
    pub fn expert_traffic(&self) -> Option<&ExpertTraffic> {
        self.together.traffic()
    }

    /// How many experts of each layer compute, where it has some.
    fn computing_experts(&self) -> BTreeMap<RouterSite, usize> {
        let mlp = self.model.config().mlp.settings();
        let layers = 0..self.model.plan().stored;
        let counts =
            layers.map(|stored| (RouterSite::Layer(stored), mlp.computing_experts(stored)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// FLOPs of a step (full convention, backward counted twice) whose rows had these depths.
    pub fn step_flops(&self, depths: &[u64]) -> f64 {
        let config = self.model.config();
        let (rows, shares) = (depths.iter().sum::<u64>(), shares_of(depths, config.recursions));
        let length = self.recipe.data.sequence_length;
        3.0 * rows as f64
            * forward_flops(config, self.model.plan(), length, &shares, Convention::Full)
    }

    /// What is known of a step before its passes run. Same in all processes.
    fn whole(&self, batches: &[Batch]) -> Result<Whole, TrainError> {
        let rule = self.rule();
        let loads = self.loads(batches, &rule)?;
        Ok(Whole {
            counted: batches.iter().map(Batch::counted).sum(),
            sequences: sequences(batches),
            longest: longest(batches),
            rule,
            loads,
        })
    }

    /// Forward and backward over the batches of one shard of a step.
    fn run_shard(
        &mut self,
        batches: &[Batch],
        shard: usize,
        whole: &Whole,
    ) -> (Sums, RoutingStats) {
        let range = share(batches.len(), shard, self.recipe.train.shards);
        let mut stats = RoutingStats {
            keeps_logits: true,
            sequence_length: whole.longest,
            computing_experts: self.computing_experts(),
            ..RoutingStats::default()
        };
        let mut watched = Watched { stats: &mut stats, recorder: self.recorder.take() };
        let place = sequences(&batches[..range.start]) as u64;
        let sums = self.accumulate(&batches[range], (shard, place), whole, &mut watched);
        self.recorder = watched.recorder;
        (sums, stats)
    }

    /// What all shards saw as one, in the order of the shards.
    fn joined(&self, seen: Vec<(Sums, RoutingStats)>) -> Result<(Sums, RoutingStats), TrainError> {
        // With one shard there is one process.
        let all = match self.recipe.train.shards {
            1 => seen,
            _ => self.together.tell(&seen)?.concat(),
        };
        let (mut sums, mut stats) = (Sums::default(), None::<RoutingStats>);
        for (more, counted) in all {
            sums.append(&more);
            match &mut stats {
                Some(stats) => stats.append(counted),
                None => stats = Some(counted),
            }
        }
        Ok((sums, stats.unwrap_or_default()))
    }

    /// Losses beside the cross-entropy, over the whole step.
    fn add_losses(&self, sums: &mut Sums, stats: &RoutingStats) {
        for loss in &stats.losses {
            sums.part(&loss.name, loss.value, loss.weight);
        }
        if self.recipe.runs() == 2 {
            sums.part("consistency", sums.inconsistency, self.consistency_weight());
        }
        if self.teacher.is_some() {
            sums.part("distillation", sums.distance, self.recipe.distill.weight as f32);
        }
    }

    /// Forward and backward over the batches of a shard of a step, of which the first sequence has
    /// the number `place`; gradients add up in the weights.
    fn accumulate(
        &self,
        batches: &[Batch],
        (shard, mut place): (usize, u64),
        whole: &Whole,
        watched: &mut Watched<'_>,
    ) -> Sums {
        let Whole { counted, sequences, .. } = *whole;
        let runs = self.recipe.runs();
        let tokens = rows_that_count(batches) / runs as u64;
        let mut sums = Sums { tokens, ..Sums::default() };
        for batch in batches {
            self.together.begin_pass(shard);
            let shares = self.model.config().kv != model::KvMode::RecursionWise;
            let mut kv = PassCache::new(shares);
            let mut pass = Pass {
                ops: self.ops,
                kv: &mut kv,
                rule: &whole.rule,
                state: &self.router,
                probe: watched,
                record: true,
                recompute: self.recipe.train.recompute,
                address: Address { seed: self.recipe.train.seed, step: self.step, place },
                sequences,
                loads: &whole.loads,
                pool: Default::default(),
            };
            let passed = self.model.forward(&batch.ids, &batch.rows, &mut pass);
            let weights = batch.weights(1.0 / counted.max(1) as f32);
            let distilled = self.distilled(&passed.x_td, batch, &weights);
            let apart = (runs == 2).then(|| self.runs_apart(&passed.x_td, batch, &weights));
            let (mut ce, _) = self.model.head_loss(self.ops, passed.x_td, &batch.targets, &weights);
            let share = if distilled.is_some() { self.recipe.distill.weight as f32 } else { 0.0 };
            sums.add(scalar(&ce), 1.0 - share, &passed.depth_t, &self.model);
            if share > 0.0 {
                ce = scale(ce, 1.0 - share);
            }
            let mut terms = vec![ce];
            if let Some(apart) = apart {
                sums.inconsistency += f64::from(scalar(&apart));
                terms.push(scale(apart, self.consistency_weight()));
            }
            if let Some(apart) = distilled {
                sums.distance += f64::from(scalar(&apart));
                terms.push(scale(apart, share));
            }
            let gradients = backward(&add_scalars(terms));
            if self.ops != Ops::Fast {
                self.model.weights().iter().for_each(|(_, w)| w.take_plain_gradient(&gradients));
            }
            place += batch.rows.sequences().len() as u64;
        }
        sums
    }

    /// Rows of the step by the recursion that they choose as their last, where a router's loss is
    /// over the whole step and the step has several passes. Such a router chooses before the first
    /// recursion, so only the layers before it are run, without gradients.
    fn loads(&self, batches: &[Batch], rule: &Rule) -> Result<Vec<u64>, TrainError> {
        if batches.len() < 2 || !self.model.config().router.settings().wants_loads() {
            return Ok(Vec::new());
        }
        let mut stats = RoutingStats::default();
        // Routers over experts may decide otherwise where nothing is learned.
        let record = self.model.config().mlp.settings().trains_otherwise();
        let mine = self.together.share(batches.len());
        let mut place = sequences(&batches[..mine.start]) as u64;
        for batch in &batches[mine] {
            let sequences = batch.rows.sequences().len();
            let mut pass = Pass {
                ops: self.ops,
                kv: &mut PassCache::new(false),
                rule,
                state: &self.router,
                probe: &mut stats,
                record,
                recompute: false,
                address: Address { seed: self.recipe.train.seed, step: self.step, place },
                sequences,
                loads: &[],
                pool: Default::default(),
            };
            self.model.prelude(&batch.ids, &batch.rows, &mut pass);
            place += sequences as u64;
        }
        let mut loads = Vec::new();
        self.together.tell(&stats.depths)?.iter().for_each(|depths| add_each(&mut loads, depths));
        Ok(loads)
    }

    /// What the distance of both runs weighs in the loss.
    fn consistency_weight(&self) -> f32 {
        0.5 * self.recipe.train.consistency_weight as f32
    }

    /// How far the predictions of the two runs of a batch are apart, as its share of the step's
    /// mean; `weights` are those of the predictions of both.
    fn runs_apart(&self, x: &Tensor2, batch: &Batch, weights: &[f32]) -> Tensor2 {
        let runs = batch.runs();
        let each: Arc<[f32]> = runs[0].iter().map(|&row| 2.0 * weights[row as usize]).collect();
        let x = self.ops.gather_rows(x.clone(), &runs.concat().into());
        self.ops.consistency_loss(x, self.model.head(), &each)
    }

    /// The teacher's distance on the rows of `batch`, if there is a teacher.
    fn distilled(&self, x_td: &Tensor2, batch: &Batch, weights: &Arc<[f32]>) -> Option<Tensor2> {
        let teacher = self.teacher.as_ref()?;
        let rule = teacher.rule.clone().unwrap_or(Rule::NonCausal);
        let shares = teacher.model.config().kv != model::KvMode::RecursionWise;
        let (mut kv, mut probe) = (PassCache::new(shares), NoProbe);
        let mut pass = Pass {
            ops: self.ops,
            kv: &mut kv,
            rule: &rule,
            state: &teacher.state,
            probe: &mut probe,
            record: false,
            recompute: false,
            address: Address { seed: self.recipe.train.seed, step: u64::MAX, place: 0 },
            sequences: batch.rows.sequences().len(),
            loads: &[],
            pool: Default::default(),
        };
        let passed = teacher.model.forward(&batch.ids, &batch.rows, &mut pass);
        let tau = self.recipe.distill.temperature as f32;
        let known = (&passed.x_td, teacher.model.head());
        Some(self.ops.distill_loss(x_td.clone(), self.model.head(), known, tau, weights))
    }

    /// Buffers that are functions of the step.
    fn schedule_router(&mut self) {
        let config = self.model.config();
        config.router.settings().schedule(self.step, &mut self.router);
        config.mlp.settings().schedule(self.step, &mut self.router);
    }

    /// The rule by which this step's rows are routed.
    fn rule(&self) -> Rule {
        let config = self.model.config();
        config.router.settings().training_rule(config.recursions, self.step, &self.router)
    }

    fn learn_outside_of_gradients(&mut self, depths: &[u64], stats: &RoutingStats) {
        let needed = stats.needed_thresholds();
        let (chosen, experts) = (&stats.depths, &stats.loads);
        // The step that is being finished has been counted already.
        let step = self.step - 1;
        let (needed, compared) = (&needed, &stats.compared);
        let routed = StepRouting { step, needed, depths, chosen, experts, compared };
        let config = self.model.config();
        config.router.settings().after_step(&routed, &mut self.router);
        config.mlp.settings().after_step(&routed, &mut self.router);
    }

    /// The running thresholds of the router, if it has some.
    fn thresholds(&self) -> Vec<f32> {
        self.model.config().router.settings().thresholds(&self.router)
    }

    fn report(&self, sums: &Sums, norms: Norms, rate: f64, stats: &RoutingStats) -> StepReport {
        StepReport {
            step: self.step,
            loss: sums.loss,
            total: sums.total,
            parts: sums.parts.clone(),
            gradient_norm: norms.model,
            learning_rate: rate,
            tokens: sums.tokens,
            depths: sums.depths.clone(),
            router_accuracy: stats.sampling_accuracy(),
            dead_positions: stats.dead_positions(),
            max_violation: stats.max_violation(),
            entropy: stats.entropy(),
            expert_violation: stats.expert_violation(),
            dead_experts: stats.dead_experts(),
            experts_taken: stats.experts_taken(),
            dropped: stats.dropped(),
            dropped_at: stats.dropped_in(POSITION_PARTS),
            thresholds: Vec::new(),
            skipped: false,
        }
    }

    fn refuse(
        &mut self,
        what: &'static str,
        value: f64,
        report: StepReport,
    ) -> Result<StepReport, TrainError> {
        self.model.weights().iter().for_each(|(_, w)| w.clear_gradient());
        self.skipped += 1;
        self.skipped_in_a_row += 1;
        if self.recipe.train.non_finite == NonFinite::Stop || self.skipped_in_a_row >= 10 {
            return Err(TrainError::NonFinite { step: self.step, what, value });
        }
        Ok(StepReport { skipped: true, thresholds: self.thresholds(), ..report })
    }
}

/// Refuses more processes than can share the steps.
pub(crate) fn enough_shards(recipe: &Recipe, processes: usize) -> Result<(), TrainError> {
    let shards = recipe.train.shards;
    if processes > shards {
        let expected = format!(
            "at least {processes}, one for each of the processes that were started; start fewer, \
             or set train.shards (results depend on it, and not on the number of processes)"
        );
        return refuse("train.shards", shards.to_string(), expected);
    }
    Ok(())
}

/// What the first process says of a run.
fn from_first(together: &Together, text: &str) -> Result<State, ProcessError> {
    serde_json::from_str(text).map_err(|error| ProcessError::Unequal {
        rank: together.processes().rank(),
        from: 0,
        expected: "where the run stands".into(),
        found: error.to_string(),
    })
}

/// Equal stretches of a sequence for which a report counts apart.
const POSITION_PARTS: usize = 8;

fn not_finite(report: &StepReport, norms: Norms) -> Option<(&'static str, f64)> {
    [
        ("the loss", report.total),
        ("the gradient norm", norms.model),
        ("the auxiliary router's gradient norm", norms.auxiliary),
    ]
    .into_iter()
    .find(|(_, value)| !value.is_finite())
}
