//! The recipe of a run. Every field has a default; unknown fields are refused where recipes are
//! read.

use model::ModelConfig;
use model::adapters::UsedMatrix;
use model::params::Group;
use model::table::specs;
use ops::Device;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::freeze::{F32, format_of, is_frozen};
use crate::rounded::stored_bytes;

/// Everything that decides a run: the same recipe on the same data gives the same bits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recipe {
    /// Sizes, sharing and routing of the model that is trained.
    pub model: ModelConfig,
    /// The checkpoint whose weights training starts from, if not from fresh ones.
    pub start: StartConfig,
    /// The data folder, and how sequences are cut from it.
    pub data: DataConfig,
    /// How long, from which seed.
    pub train: TrainConfig,
    /// Settings of AdamW and of clipping.
    pub optimizer: OptimizerConfig,
    /// With which learning rate.
    pub schedule: ScheduleConfig,
    /// The teacher whose distributions are learned beside the text, if any.
    pub distill: DistillConfig,
    /// How often checkpoints are written, and which stay.
    pub checkpoint: CheckpointConfig,
    /// How often the run is validated, on how much text.
    pub log: LogConfig,
}

/// Where the weights come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartConfig {
    /// A checkpoint, or the folder of a run, whose weights training starts from; empty for fresh
    /// ones. The model is its own but for what `[model]` changes in routing; routers that it does
    /// not have are fresh, and the run says so.
    pub checkpoint: String,
    /// What the checkpoint must be; filled in when the run starts.
    pub fingerprint: String,
}

/// Learning from another model's distributions as well as from the text (Hinton et al., 2015, arXiv
/// 1503.02531): `loss = (1 - weight) * cross_entropy + weight * temperature^2 * KL(teacher ||
/// student)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DistillConfig {
    /// The teacher, a checkpoint or the folder of a run with the same tokenizer; empty for none.
    pub checkpoint: String,
    /// What the teacher must be; filled in when the run starts.
    pub fingerprint: String,
    /// Share of the teacher in the loss.
    pub weight: f64,
    /// Divides both models' logits.
    pub temperature: f64,
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self {
            checkpoint: String::new(),
            fingerprint: String::new(),
            weight: 0.5,
            temperature: 2.0,
        }
    }
}

/// Where the tokens come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataConfig {
    /// Folder made by `lathe data build`.
    pub dir: String,
    /// Rows of a training sequence.
    pub sequence_length: usize,
    /// Whether documents of one sequence are invisible to each other. `false` is the published
    /// behaviour.
    pub document_mask: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { dir: String::new(), sequence_length: 256, document_mask: true }
    }
}

/// What to do about a step whose loss or gradient is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    /// End the run; the last checkpoint stays.
    Stop,
    /// Leave the weights as they are and go on; ten in a row end the run.
    Skip,
}

/// How long, how large, from which seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    /// Optimizer steps of the whole run, 1 to 2^40.
    pub steps: u64,
    /// Sequences of one step.
    pub batch: usize,
    /// Sequences of one pass, a divisor of `batch`. A recipe that gives a `batch` alone gets the
    /// largest divisor up to 16: up to 16, all of it.
    pub micro_batch: usize,
    /// Parts of a step whose gradients are added up by themselves, and then in a tree over their
    /// numbers; at most as many as a step has passes. So many processes can share the steps: how
    /// many do changes no bit, but this number does.
    pub shards: usize,
    /// Seed of weights, order and dice.
    pub seed: u64,
    /// Whether layers run again in the backward pass instead of keeping their insides.
    pub recompute: bool,
    /// Where above 0, each sequence runs twice in a step, with other dice of the routers, and the
    /// loss is the mean cross-entropy of both runs plus half this weight times `(KL(p || q) +
    /// KL(q || p)) / 2` of their predictions `p` and `q`, in the mean: half of what THOR minimises
    /// (Zuo et al., 2021, arXiv 2110.04260; 5 there). It needs a router that throws dice in
    /// training, and takes two passes for one.
    pub consistency_weight: f64,
    /// What to do about a step that is not finite.
    pub non_finite: NonFinite,
    /// Weights that stay as they are, by patterns of their names: `layers.*.query`. They get no
    /// gradient and take no memory for one, nor for moments.
    pub freeze: Vec<String>,
    /// What frozen matrices of layers are kept in, as QLoRA has it (Dettmers et al., 2023, arXiv
    /// 2305.14314): `"f32"`, or a number format such as `"bf16"`, `"int8"` or `"int4"`. Products
    /// and gradients take the rounded values as they are; adapters, embedding and head stay in f32.
    pub frozen_format: String,
}

/// The most sequences of one pass where a recipe does not say.
const USUAL_MICRO_BATCH: usize = 16;

/// Sequences of one pass for a recipe that gives a `batch` alone: its largest divisor up to 16. A
/// batch of none is refused by [`Recipe::check`], whatever stands here.
pub fn usual_micro_batch(batch: u64) -> usize {
    let mut sizes = (1..=USUAL_MICRO_BATCH).rev();
    sizes.find(|size| batch.is_multiple_of(*size as u64)).unwrap_or(1)
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: USUAL_MICRO_BATCH,
            micro_batch: USUAL_MICRO_BATCH,
            shards: 1,
            seed: 1,
            recompute: false,
            consistency_weight: 0.0,
            non_finite: NonFinite::Stop,
            freeze: Vec::new(),
            frozen_format: F32.to_owned(),
        }
    }
}

/// AdamW; no decay on norm scales.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptimizerConfig {
    /// Learning rate at the schedule's peak, 0 to 10.
    pub learning_rate: f64,
    /// Memory of the mean gradient.
    pub beta1: f64,
    /// Memory of the mean square.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Decay that does not pass through the moments: a step subtracts `learning_rate * weight_decay
    /// * w`.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for no limit.
    pub clip_norm: f64,
    /// Learning rate of an auxiliary router, relative to the others'.
    pub auxiliary_router_scale: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 3e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            auxiliary_router_scale: 10.0,
        }
    }
}

/// The course of the learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ScheduleConfig {
    /// Linear warm-up, constant, linear to 0.
    Trapezoid {
        /// Steps over which the rate rises from 0 to the peak.
        #[serde(default)]
        warmup_steps: u64,
        /// Share of all steps that the fall takes.
        #[serde(default = "fifth")]
        decay_fraction: f64,
    },
    /// Linear warm-up, then half a cosine down to a share of the peak.
    Cosine {
        /// Steps over which the rate rises from 0 to the peak.
        #[serde(default)]
        warmup_steps: u64,
        /// Final learning rate relative to the peak.
        #[serde(default = "tenth")]
        floor: f64,
    },
    /// Linear warm-up, then constant.
    Constant {
        /// Steps over which the rate rises from 0 to the peak.
        #[serde(default)]
        warmup_steps: u64,
    },
}

fn fifth() -> f64 {
    0.2
}

fn tenth() -> f64 {
    0.1
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        ScheduleConfig::Trapezoid { warmup_steps: 50, decay_fraction: fifth() }
    }
}

/// What is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 for only the last.
    pub every: u64,
    /// How many of the newest are kept.
    pub keep_last: usize,
    /// Steps of which every multiple is kept for good; 0 for none.
    pub keep_every: u64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 200, keep_last: 2, keep_every: 0 }
    }
}

/// What is measured on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// Steps between validations; 0 for only at the end.
    pub validate_every: u64,
    /// Windows of one validation.
    pub validate_windows: u64,
    /// Windows that the causal rule is calibrated on, at equal distances from the whole validation
    /// text; at least one and at most half of them. None of them is scored unless the text has only
    /// one.
    pub calibrate_windows: u64,
    /// Steps between those of which every decision of the routers is kept, in `traces/` of the
    /// run; 0 for none.
    pub trace_every: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { validate_every: 200, validate_windows: 64, calibrate_windows: 32, trace_every: 0 }
    }
}

impl Recipe {
    /// Refuses what this recipe asks for and `device` does not do.
    ///
    /// # Errors
    /// The field.
    pub fn runs_on(&self, device: Device) -> Result<(), TrainError> {
        if device == Device::CPU || !self.train.recompute {
            return Ok(());
        }
        Err(TrainError::Recipe {
            field: "train.recompute".into(),
            found: format!("true with the device {}", device.name()),
            expected: "false, as layers run again on cpu alone: make train.micro_batch smaller \
                       where memory is short"
                .into(),
        })
    }

    /// Checks everything that does not need the data.
    ///
    /// # Errors
    /// The first impossible field.
    pub fn check(&self) -> Result<(), TrainError> {
        self.model.check()?;
        if self.data.sequence_length == 0 || self.data.sequence_length > self.model.context {
            let (length, context) = (self.data.sequence_length, self.model.context);
            let next = match length {
                0 => String::new(),
                _ => format!(": give model.context = {length}, or shorter sequences"),
            };
            let expected = format!("between 1 and model.context = {context}{next}");
            return refuse("data.sequence_length", self.data.sequence_length.to_string(), expected);
        }
        if self.train.steps == 0 || self.train.steps > 1 << 40 {
            let expected = "between 1 and 2^40";
            return refuse("train.steps", self.train.steps.to_string(), expected.into());
        }
        let (batch, micro) = (self.train.batch, self.train.micro_batch);
        if micro == 0 || batch == 0 || batch > 1 << 20 || batch % micro != 0 {
            let expected =
                format!("a divisor of train.batch = {batch}, which is between 1 and 2^20");
            return refuse("train.micro_batch", micro.to_string(), expected);
        }
        let (shards, passes) = (self.train.shards, batch / micro);
        if shards == 0 || shards > passes {
            let expected = format!(
                "1 to {passes}, the passes of a step (train.batch = {batch} / train.micro_batch = \
                 {micro})"
            );
            return refuse("train.shards", shards.to_string(), expected);
        }
        if self.train.recompute && self.model.kv != model::KvMode::RecursionWise {
            let expected = "false where later recursions read keys of the first \
                            (model.kv is not recursion_wise)";
            return refuse("train.recompute", "true".into(), expected.into());
        }
        if self.train.recompute && self.model.mlp.settings().links_layers() {
            let expected = "false where layers of experts leave rows something for later layers, \
                            which is kept in any case";
            return refuse("train.recompute", "true".into(), expected.into());
        }
        crate::freeze::check(&self.train.freeze, &self.model)?;
        crate::freeze::check_format(self)?;
        self.check_optimizer()?;
        self.model.check_training()?;
        self.check_effects()
    }

    /// Refuses what changes nothing beside the other settings. The model of a start may bring such
    /// settings along.
    fn check_effects(&self) -> Result<(), TrainError> {
        if self.start.checkpoint.is_empty() {
            self.model.check_effects()?;
        }
        let (given, default) = (&self.distill, DistillConfig::default());
        let weighs = given.weight != default.weight || given.temperature != default.temperature;
        if given.checkpoint.is_empty() && weighs {
            let found = format!("{} at temperature {}", given.weight, given.temperature);
            let expected = "a teacher beside it: name one as distill.checkpoint, or leave \
                            [distill] out";
            return refuse("distill.weight", found, expected.into());
        }
        self.check_consistency()?;
        let scale = self.optimizer.auxiliary_router_scale;
        let table = specs(&self.model, &self.model.check()?);
        let auxiliary = table.iter().any(|spec| spec.group == Group::AuxiliaryRouter);
        if !auxiliary && scale != OptimizerConfig::default().auxiliary_router_scale {
            let expected = "10 where there is no auxiliary router (router.sampling is not \
                            \"aux_router\")";
            return refuse("optimizer.auxiliary_router_scale", scale.to_string(), expected.into());
        }
        Ok(())
    }

    /// How often each sequence runs in a step.
    pub fn runs(&self) -> usize {
        if self.train.consistency_weight > 0.0 { 2 } else { 1 }
    }

    /// Refuses to compare two runs that cannot differ.
    fn check_consistency(&self) -> Result<(), TrainError> {
        let (weight, model) = (self.train.consistency_weight, &self.model);
        if weight == 0.0 {
            return Ok(());
        }
        let field = "train.consistency_weight";
        if !(model.mlp.settings().throws_dice() || model.router.settings().draws()) {
            let expected = "0 where no router throws dice in training that decide something, as \
                            router \"random\" does with fewer than all experts: both runs of a \
                            sequence would be the same";
            return refuse(field, weight.to_string(), expected.into());
        }
        if model.multipliers.cap().is_some() {
            let expected = "0 beside model.multipliers.logit_cap: predictions are compared without \
                            a cap";
            return refuse(field, weight.to_string(), expected.into());
        }
        Ok(())
    }

    /// Bytes of weights, gradients and both moments in f32; a frozen weight takes only its own, in
    /// its format. Matrices that adapters keep merged come on top. Where one process adds up
    /// several shards, partial sums of gradients wait beside them.
    ///
    /// # Errors
    /// An impossible model.
    pub fn state_bytes(&self) -> Result<u64, TrainError> {
        let mut bytes = 0;
        let waiting = match self.train.shards {
            0 | 1 => 0,
            shards => u64::from(shards.ilog2()) + 1,
        };
        for spec in specs(&self.model, &self.model.check()?) {
            if let Some(format) = format_of(&self.train, &spec) {
                bytes += stored_bytes(&spec, Some(format)).unwrap_or_default();
                continue;
            }
            let copies = if is_frozen(&self.train.freeze, &spec.name) { 1 } else { 4 + waiting };
            bytes += 4 * copies * spec.count() as u64;
        }
        Ok(bytes + self.merged_bytes()?)
    }

    /// Bytes of the matrices that adapters keep in f32 beside the stored ones.
    fn merged_bytes(&self) -> Result<u64, TrainError> {
        let model = &self.model;
        if !model.relax.settings().keeps_matrices() {
            return Ok(0);
        }
        let plan = model.check()?;
        let mut bytes = 0;
        for at in plan.unrolled() {
            for base in model::table::linears(model, at.stored) {
                let site = UsedMatrix { sizes: &model.sizes(), plan: &plan, at, base: &base };
                let adapts = model.relax.settings().adapts(site);
                bytes += if adapts { 4 * base.count() as u64 } else { 0 };
            }
        }
        Ok(bytes)
    }

    fn check_optimizer(&self) -> Result<(), TrainError> {
        let o = &self.optimizer;
        let ranges = [
            ("optimizer.learning_rate", o.learning_rate, 0.0, 10.0),
            ("optimizer.beta1", o.beta1, 0.0, 0.999_999_9),
            ("optimizer.beta2", o.beta2, 0.0, 0.999_999_9),
            ("optimizer.eps", o.eps, 0.0, 1.0),
            ("optimizer.weight_decay", o.weight_decay, 0.0, 10.0),
            ("optimizer.clip_norm", o.clip_norm, 0.0, 1e9),
            ("optimizer.auxiliary_router_scale", o.auxiliary_router_scale, 0.0, 1e4),
            ("train.consistency_weight", self.train.consistency_weight, 0.0, 1e4),
            ("distill.weight", self.distill.weight, 0.0, 1.0),
            ("distill.temperature", self.distill.temperature, 1e-3, 1e3),
        ];
        let share = match self.schedule {
            ScheduleConfig::Trapezoid { decay_fraction, .. } => {
                ("schedule.decay_fraction", decay_fraction, 0.0, 1.0)
            }
            ScheduleConfig::Cosine { floor, .. } => ("schedule.floor", floor, 0.0, 1.0),
            ScheduleConfig::Constant { .. } => ("schedule", 0.0, 0.0, 1.0),
        };
        for (field, found, least, most) in ranges.into_iter().chain([share]) {
            if !(found >= least && found <= most) {
                let expected = format!("between {least} and {most}");
                return refuse(field, found.to_string(), expected);
            }
        }
        Ok(())
    }
}

/// The refusal of a field of a recipe.
pub(crate) fn refuse<T>(field: &str, found: String, expected: String) -> Result<T, TrainError> {
    Err(TrainError::Recipe { field: field.into(), found, expected })
}
