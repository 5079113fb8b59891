//! Each row takes the experts that score highest for it (Shazeer et al., 2017, arXiv 1701.06538;
//! Switch, Mixtral, OLMoE, DeepSeekMoE and others are settings of it). With groups, only experts of
//! the best groups are chosen among (DeepSeek-V2, V3).

use std::sync::Arc;

use ops::{Activation, ChosenWeights, Tensor2, Weight, read_rows};
use serde::{Deserialize, Serialize};

use super::balance::{self, Balance, shares};
use super::choice::{Choices, row_dice, told};
use super::member::{ExpertCount, ExpertRouterSettings, LayerRouting};
use super::memory::{self, Memory};
use super::room::{Room, RoomPriority};
use crate::error::{ConfigError, at_least, refuse, same};
use crate::params::{BufferSpec, Group, Init, ParamSpec, RouterSite, Take};
use crate::pass::Pass;
use crate::rng::Purpose;
use crate::routers::scorer::Scorer;
use crate::routers::top_k::top_k;
use crate::routers::{AuxLoss, Network, Router, RouterCall, RouterPlace, RouterState, RoutingPlan};
use crate::sizes::Sizes;

/// From logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// `softmax(z)` over the experts.
    Softmax,
    /// `sigmoid(z)` of each expert by itself.
    Sigmoid,
}

/// What a group of experts counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// The score of its best expert.
    Best,
    /// The sum of its two best.
    BestTwo,
}

/// `router = { kind = "top_k", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many experts a row takes.
    pub top_k: usize,
    /// The network that scores rows.
    pub network: Network,
    /// Width of what a router remembers of a row's way through the layers before, by a recurrent
    /// cell that all layers share; 0 for nothing. The logits come from that then, in place of the
    /// network.
    pub memory: usize,
    /// Whether a number is added to the logit of each expert.
    pub logit_bias: bool,
    /// Where above 0, logits `z` become `c tanh(z / c)` with this `c`.
    pub soft_cap: f64,
    /// From logits to scores.
    pub function: Function,
    /// Whether the scores of the chosen are divided by their sum.
    pub normalize: bool,
    /// The least that their sum counts then.
    pub least: f64,
    /// What multiplies the weights of the chosen.
    pub scale: f64,
    /// Equal groups of neighbouring experts.
    pub groups: usize,
    /// Whether a row takes as many experts of each group, so that groups have exactly equal loads.
    pub equal_groups: bool,
    /// How many groups a row chooses among.
    pub top_groups: usize,
    /// What a group counts.
    pub group_score: GroupScore,
    /// Optimizer steps over which the choice of experts goes from dice to scores.
    pub warmup_steps: u64,
    /// Rows of a sequence that an expert takes in training, as a multiple of its share at equal
    /// loads, `k T / E`; 0 for all.
    pub capacity: f64,
    /// Who is served first where an expert has not room for all.
    pub priority: RoomPriority,
    /// What keeps loads balanced.
    pub balance: Balance,
    /// Weight of the balance loss, or step of the bias.
    pub balance_weight: f64,
    /// With `balance = "budget"`, how many computing experts a row takes in the mean.
    pub budget: f64,
    /// Weight of the balance loss over groups, which may be devices; 0 for none.
    pub group_weight: f64,
    /// Weight of a balance loss over all layers together; 0 for none.
    pub pooled_weight: f64,
    /// Weight of the squared log-sum-exp of the logits; 0 for none.
    pub z_weight: f64,
}

impl Default for Config {
    /// Two experts by softmax, their weights divided by their sum, as Mixtral has it.
    fn default() -> Self {
        Self {
            top_k: 2,
            network: Network::Linear,
            memory: 0,
            logit_bias: false,
            soft_cap: 0.0,
            function: Function::Softmax,
            normalize: true,
            least: 0.0,
            scale: 1.0,
            groups: 1,
            equal_groups: false,
            top_groups: 1,
            group_score: GroupScore::BestTwo,
            warmup_steps: 0,
            capacity: 0.0,
            priority: RoomPriority::Position,
            balance: Balance::Sequence,
            balance_weight: 0.01,
            budget: 0.0,
            group_weight: 0.0,
            pooled_weight: 0.0,
            z_weight: 0.0,
        }
    }
}

impl ExpertRouterSettings for Config {
    fn check(&self, counts: ExpertCount) -> Result<(), ConfigError> {
        let experts = counts.all();
        if self.top_k == 0 || self.top_k > experts {
            let expected = format!("between 1 and {experts}, the number of experts");
            return refuse("mlp.router.top_k", self.top_k, expected);
        }
        if self.groups == 0 || !experts.is_multiple_of(self.groups) {
            let expected = format!("a divisor of {experts}, the number of experts");
            return refuse("mlp.router.groups", self.groups, expected);
        }
        let group = experts / self.groups;
        if self.equal_groups && (self.groups < 2 || !self.top_k.is_multiple_of(self.groups)) {
            let expected = format!(
                "2 or more groups of which {}, mlp.router.top_k, is a multiple, or equal_groups = \
                 false",
                self.top_k
            );
            return refuse("mlp.router.groups", self.groups, expected);
        }
        let least = if self.equal_groups { 1 } else { self.top_k.div_ceil(group) };
        if self.top_groups < least || self.top_groups > self.groups {
            let expected = format!(
                "between {least} and {}: top_k = {} experts out of groups of {group}",
                self.groups, self.top_k
            );
            return refuse("mlp.router.top_groups", self.top_groups, expected);
        }
        memory::check(self.memory)?;
        if self.memory > 0 && self.network != Network::Linear {
            let expected = "\"linear\" beside mlp.router.memory, out of which logits come".into();
            return refuse("mlp.router.network", self.network, expected);
        }
        self.check_budget(counts)?;
        Room::check(self.capacity)?;
        if !(1e-6..=1e6).contains(&self.scale) {
            return refuse("mlp.router.scale", self.scale, "between 1e-6 and 1e6".into());
        }
        at_least("mlp.router.least", self.least, 0.0)?;
        at_least("mlp.router.soft_cap", self.soft_cap, 0.0)?;
        at_least("mlp.router.group_weight", self.group_weight, 0.0)?;
        at_least("mlp.router.pooled_weight", self.pooled_weight, 0.0)?;
        at_least("mlp.router.balance_weight", self.balance_weight, 0.0)?;
        at_least("mlp.router.z_weight", self.z_weight, 0.0)
    }

    fn check_effects(&self, counts: ExpertCount) -> Result<(), ConfigError> {
        let experts = counts.all();
        if self.top_k == 1 && self.normalize && experts > 1 {
            let expected = "2 or more, or normalize = false: divided by itself, the score of a \
                            single expert is 1, and the router would learn nothing from the text";
            return refuse("mlp.router.top_k", self.top_k, expected.into());
        }
        let default = Self::default();
        if !self.normalize {
            same("mlp.router.least", self.least, 0.0, "without mlp.router.normalize")?;
        }
        if self.balance == Balance::None {
            let without = "where mlp.router.balance is \"none\"";
            let (field, found) = ("mlp.router.balance_weight", self.balance_weight);
            same(field, found, default.balance_weight, without)?;
        }
        self.room(RouterSite::Depth, counts).check_effects()?;
        if self.balance != Balance::Budget {
            let without = "unless mlp.router.balance is \"budget\"";
            same("mlp.router.budget", self.budget, 0.0, without)?;
        }
        if self.equal_groups && self.top_groups != default.top_groups {
            let expected = "1 with equal_groups, where every group is chosen among".into();
            return refuse("mlp.router.top_groups", self.top_groups, expected);
        }
        if self.group_weight > 0.0 && (self.groups == 1 || self.equal_groups) {
            let expected = "0 where groups have equal loads anyway: without mlp.router.groups, or \
                            with equal_groups";
            return refuse("mlp.router.group_weight", self.group_weight, expected.into());
        }
        let compares_groups = !self.equal_groups && self.groups != self.top_groups;
        if !compares_groups && self.group_score != default.group_score {
            let expected = "best_two where every group is chosen".into();
            return refuse("mlp.router.group_score", "best", expected);
        }
        Ok(())
    }

    fn taken(&self, _: ExpertCount) -> f64 {
        if self.balance == Balance::Budget { self.budget } else { self.top_k as f64 }
    }

    fn chosen(&self, _: ExpertCount) -> f64 {
        self.top_k as f64
    }

    fn holds_budget(&self) -> bool {
        self.balance == Balance::Budget
    }

    fn trains_otherwise(&self) -> bool {
        self.capacity > 0.0 || self.warmup_steps > 0
    }

    /// Where a row takes all experts, a warm-up decides nothing.
    fn throws_dice(&self, experts: ExpertCount) -> bool {
        let by_dice = self.capacity > 0.0 && self.priority == RoomPriority::Random;
        by_dice || (self.warmup_steps > 0 && self.top_k < experts.all())
    }

    fn fields_of_training(&self) -> &'static [&'static str] {
        &[
            "warmup_steps",
            "capacity",
            "priority",
            "balance_weight",
            "group_weight",
            "pooled_weight",
            "z_weight",
        ]
    }

    fn pools_layers(&self) -> bool {
        self.pooled_weight > 0.0
    }

    fn specs(&self, sizes: &Sizes, place: RouterPlace, experts: ExpertCount) -> Vec<ParamSpec> {
        let experts = experts.all();
        let mut table = match self.memory {
            0 => self.network.specs(place, sizes, experts),
            width => memory::specs(width, sizes, place, experts),
        };
        if self.logit_bias {
            let place = place.of(BIAS);
            table.push(ParamSpec::new(place, (1, experts), Init::Zeros, Group::Norm));
        }
        table
    }

    fn shared_specs(&self, sizes: &Sizes) -> Vec<ParamSpec> {
        if self.memory == 0 { Vec::new() } else { memory::cell(self.memory, sizes) }
    }

    fn carried(&self) -> Option<(&'static str, usize)> {
        (self.memory > 0).then_some((memory::STATE, self.memory))
    }

    fn buffers(
        &self,
        site: RouterSite,
        experts: ExpertCount,
        _: &[RouterPlace],
    ) -> Vec<BufferSpec> {
        self.balance.buffers(site, experts.all())
    }

    fn after_step(
        &self,
        site: RouterSite,
        experts: ExpertCount,
        did: &LayerRouting<'_>,
        state: &mut RouterState,
    ) {
        let computing = experts.computing;
        let share = self.budget / (self.top_k * computing) as f64;
        self.balance.learn(site, did.loads, (self.balance_weight, computing, share), state);
    }

    fn build(&self, place: RouterPlace, experts: ExpertCount, take: &mut Take) -> Box<dyn Router> {
        let scores_by = match self.memory {
            0 => ScoresBy::Row(self.network.build(place, take)),
            width => ScoresBy::Way(Memory::build(width, place, take)),
        };
        let bias = self.logit_bias.then(|| take.take(&place.of(BIAS)));
        let (site, room) = (place.site, self.room(place.site, experts));
        Box::new(TopK { config: self.clone(), site, experts: experts.all(), room, scores_by, bias })
    }
}

impl Config {
    /// The room of each computing expert at `site`.
    fn room(&self, site: RouterSite, experts: ExpertCount) -> Room {
        let Self { capacity, priority, .. } = *self;
        let (taken, computing) = (self.taken(experts), experts.computing);
        Room { capacity, priority, taken, computing, site }
    }

    /// Refuses a budget that no bias can hold: of `top_k` experts at least `top_k - zero` compute.
    fn check_budget(&self, experts: ExpertCount) -> Result<(), ConfigError> {
        if self.balance != Balance::Budget {
            return at_least("mlp.router.budget", self.budget, 0.0);
        }
        if experts.zero == 0 {
            let expected = "\"sequence\", \"loss_free\" or \"none\" where every expert computes: a \
                            budget needs mlp.identity_experts, mlp.zero_experts or \
                            mlp.constant_experts";
            return refuse("mlp.router.balance", "\"budget\"", expected.into());
        }
        let least = self.top_k.saturating_sub(experts.zero);
        let most = self.top_k.min(experts.computing);
        let (above, below) = (least as f64, most as f64);
        if self.budget > 0.0 && self.budget >= above && self.budget <= below {
            if self.groups > 1 {
                let expected = "1 beside zero-computation experts".into();
                return refuse("mlp.router.groups", self.groups, expected);
            }
            return Ok(());
        }
        let expected = format!(
            "above 0 and from {least} to {most}: of the {} experts of a row at most {} do not \
             compute",
            self.top_k, experts.zero
        );
        refuse("mlp.router.budget", self.budget, expected)
    }
}

/// `[1, E]`: what is added to the logits.
const BIAS: &str = "bias";

/// The router of one layer over its weights.
#[derive(Debug)]
struct TopK {
    config: Config,
    site: RouterSite,
    experts: usize,
    room: Room,
    scores_by: ScoresBy,
    bias: Option<Arc<Weight>>,
}

/// What logits come from.
#[derive(Debug)]
enum ScoresBy {
    /// The row as it is.
    Row(Scorer),
    /// What the router remembers of its way.
    Way(Memory),
}

impl Router for TopK {
    fn route(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan {
        let (z_te, remembered) = self.logits(call, pass);
        let scores_te = match self.config.function {
            Function::Softmax => pass.ops.softmax_rows(z_te.clone(), 1.0),
            Function::Sigmoid => pass.ops.gate(z_te.clone(), Activation::Sigmoid, 1.0),
        };
        let (logits, scores) = (read_rows(&z_te), read_rows(&scores_te));
        let bias = self.config.balance.bias(self.site, self.experts, pass.state);
        let warmed = self.warmed(&scores, call, pass);
        let compared = warmed.as_ref().unwrap_or(&scores);
        let taken = ops::for_rows(compared, self.experts, |row| self.chosen(row, &bias));
        let choices = Choices::of(&taken, self.experts);
        let how = ChosenWeights {
            normalize: self.config.normalize.then_some(EPSILON),
            least: self.config.least as f32,
            scale: self.config.scale as f32,
        };
        // The weight of the only expert is 1, whatever it scores: its result is the layer's.
        let config = &self.config;
        let whole = config.normalize && config.scale == 1.0 && config.least == 0.0;
        let single = self.experts == 1 && whole;
        let weights = (!single).then(|| choices.weights(pass.ops, scores_te.clone(), how));
        let losses = match pass.record {
            true => self.losses(z_te, &scores_te, &choices, call, pass),
            false => Vec::new(),
        };
        let plan = if self.room.is_short(pass) {
            let served = self.room.served(&choices, (&scores, &bias), call, pass);
            choices.plan_of(&served, weights, call.rows, pass.ops)
        } else {
            choices.plan(weights)
        };
        let mut plan = RoutingPlan { losses, ..plan };
        if let Some(state_tw) = remembered {
            plan.carry.set(memory::STATE, state_tw);
        }
        told(plan, self.site, (&logits, &scores), call, pass)
    }
}

/// Added to the sum of the chosen scores: it matters only where sigmoids vanish.
const EPSILON: f32 = 1e-20;

impl TopK {
    /// The logits, and what rows carry on where they carry something.
    fn logits(&self, call: &RouterCall<'_>, pass: &Pass<'_>) -> (Tensor2, Option<Tensor2>) {
        let (x_td, ops) = (call.x_cd.clone(), pass.ops);
        let (mut z_te, remembered) = match &self.scores_by {
            ScoresBy::Row(scorer) => (scorer.forward(ops, x_td, 1.0), None),
            ScoresBy::Way(memory) => {
                let (z_te, state_tw) = memory.forward(x_td, call.carry, pass);
                (z_te, Some(state_tw))
            }
        };
        if let Some(bias) = &self.bias {
            let first: Arc<[u32]> = vec![0; z_te.dims()[0]].into();
            let bias_te = ops.embed(&z_te, bias, &first);
            z_te = ops::add(z_te, bias_te);
        }
        let cap = self.config.soft_cap as f32;
        if cap > 0.0 {
            z_te = ops.gate(ops::scale(z_te, 1.0 / cap), Activation::Tanh, cap);
        }
        (z_te, remembered)
    }

    /// What rows choose by while the choice warms up: `a s + (1 - a) (m + d e)`, with `a` from 0 to
    /// 1 over the warm-up, `m` and `d` the mean and the standard deviation of the row's scores, and
    /// `e` normal dice of step, row and expert. Weights stay those of the scores.
    fn warmed(&self, scores: &[f32], call: &RouterCall<'_>, pass: &Pass<'_>) -> Option<Vec<f32>> {
        let (step, steps) = (pass.address.step, self.config.warmup_steps);
        if step >= steps || !pass.compares_rows() {
            return None;
        }
        let a = step as f64 / steps as f64;
        let mut warmed = Vec::with_capacity(scores.len());
        for (i, row) in scores.chunks_exact(self.experts).enumerate() {
            let count = self.experts as f64;
            let mean = row.iter().map(|s| f64::from(*s)).sum::<f64>() / count;
            let squares = row.iter().map(|s| (f64::from(*s) - mean).powi(2)).sum::<f64>();
            let deviation = (squares / count).sqrt();
            let mut dice = row_dice(i, (Purpose::Experts, self.site), call, pass);
            for score in row {
                let thrown = mean + deviation * dice.normal();
                warmed.push((a * f64::from(*score) + (1.0 - a) * thrown) as f32);
            }
        }
        Some(warmed)
    }

    /// Whether a row with these scores takes each expert.
    fn chosen(&self, scores: &[f32], bias: &[f32]) -> Vec<bool> {
        let mut biased: Vec<f32> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
        if self.config.equal_groups {
            let groups = biased.chunks_exact(self.experts / self.config.groups);
            let each = self.config.top_k / self.config.groups;
            return groups.flat_map(|group| top_k(group, each)).collect();
        }
        if self.config.top_groups < self.config.groups {
            let size = self.experts / self.config.groups;
            let of_groups = biased.chunks_exact(size).map(|group| self.group_score(group));
            let open = top_k(&of_groups.collect::<Vec<_>>(), self.config.top_groups);
            for (group, open) in biased.chunks_exact_mut(size).zip(open) {
                if !open {
                    group.fill(f32::NEG_INFINITY);
                }
            }
        }
        top_k(&biased, self.config.top_k)
    }

    fn group_score(&self, group: &[f32]) -> f32 {
        let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &score in group {
            if score > best {
                (best, second) = (score, best);
            } else {
                second = second.max(score);
            }
        }
        match self.config.group_score {
            GroupScore::BestTwo if group.len() > 1 => best + second,
            GroupScore::Best | GroupScore::BestTwo => best,
        }
    }

    fn losses(
        &self,
        z_te: Tensor2,
        scores_te: &Tensor2,
        choices: &Choices,
        call: &RouterCall<'_>,
        pass: &Pass<'_>,
    ) -> Vec<AuxLoss> {
        let Config { balance_weight, group_weight, groups, .. } = self.config;
        let by_expert = if self.config.balance == Balance::Sequence { balance_weight } else { 0.0 };
        let mut losses = Vec::new();
        if by_expert > 0.0 || group_weight > 0.0 {
            // A softmax sums to 1 already.
            let shares = match self.config.function {
                Function::Softmax => scores_te.clone(),
                Function::Sigmoid => shares(pass.ops, scores_te.clone()),
            };
            for (name, weight, group) in [
                ("expert_balance", by_expert, 1),
                ("expert_group_balance", group_weight, self.experts / groups),
            ] {
                let of = (self.experts, group, choices);
                let loss = balance::load_loss((name, weight), &shares, of, call.rows, pass);
                losses.extend(loss);
            }
        }
        let pooled = (self.site, self.config.top_k, self.config.pooled_weight as f32);
        losses.extend(balance::pooled(&z_te, pooled, call, pass));
        let z_weight = self.config.z_weight as f32;
        losses.extend(balance::z_loss(z_te, call.rows, z_weight, pass));
        losses
    }
}
