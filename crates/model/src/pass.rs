//! What a pass carries besides the rows: which operations, which cache, which rule, who watches.
//! Explicit, no globals.

use ops::{BalancePool, Ops, Tensor2, Weight, scalar};

use crate::kv::KvCache;
use crate::params::RouterSite;
use crate::routers::plan::{AuxLoss, RouterCall, RoutingPlan};
use crate::routers::rule::Rule;
use crate::routers::state::RouterState;
use crate::rows::Rows;

/// Where the random numbers of a pass live.
#[derive(Clone, Copy, Debug, Default)]
pub struct Address {
    /// The seed of the run or, where rows carry none of their own, of the request.
    pub seed: u64,
    /// The optimizer step, from 0; `u64::MAX` outside of training.
    pub step: u64,
    /// Number of the first sequence of this pass within the step.
    pub place: u64,
}

/// One trip of some rows through the model.
pub struct Pass<'a> {
    /// Fast or plain operations.
    pub ops: Ops,
    /// What rows may look at.
    pub kv: &'a mut dyn KvCache,
    /// Whether routers may compare rows of a sequence, or decide by thresholds.
    pub rule: &'a Rule,
    /// What routers learned outside of gradients: running thresholds, balance biases.
    pub state: &'a RouterState,
    /// What is told of streams, decisions and losses.
    pub probe: &'a mut dyn Probe,
    /// Whether gradients will be asked for.
    pub record: bool,
    /// Whether to run layers again in the backward pass instead of keeping their insides.
    pub recompute: bool,
    /// For random numbers and schedules.
    pub address: Address,
    /// How many sequences the whole step has, over all its passes: losses of routers are means over
    /// these.
    pub sequences: usize,
    /// Rows of the whole step by the recursion that they choose as their last, where the step has
    /// several passes and [`RouterSettings::wants_loads`](crate::routers::RouterSettings); empty
    /// where this pass is the whole step.
    pub loads: &'a [u64],
    /// What the experts of all layers took, for losses over all of them; empty at first.
    pub pool: BalancePool,
}

impl Pass<'_> {
    /// Whether routers over experts may compare the rows of a sequence, or throw dice of the step:
    /// where the pass learns, and not by the rule of generation.
    pub(crate) fn compares_rows(&self) -> bool {
        self.record && *self.rule == Rule::NonCausal
    }

    /// Zeros `[rows, width]` that record if the pass does, so that what is computed from them
    /// trains its weights.
    pub(crate) fn nothing(&self, rows: usize, width: usize) -> Tensor2 {
        let zeros = self.ops.from_rows(vec![0.0; rows * width], rows, width);
        if self.record { ops::leaf(&zeros) } else { zeros }
    }

    /// `x` itself, whose backward pass adds the gradient of `weight * loss`. So losses made
    /// anywhere in the model join the backward pass without being handed through its layers; their
    /// values reach the probe. `x` must go on to the output of the pass.
    pub fn attach(&mut self, x: Tensor2, loss: AuxLoss) -> Tensor2 {
        let AuxLoss { name, value_11, weight } = loss;
        self.probe.loss(name, scalar(&value_11), weight);
        self.ops.attach_loss(x, value_11, weight)
    }

    /// Tells the probe what the router at `site` decided about the rows of `call`, by which logits
    /// and scores.
    pub(crate) fn tell(
        &mut self,
        call: &RouterCall<'_>,
        site: RouterSite,
        (logits, scores): (&[f32], &[f32]),
        choice: Choice<'_>,
    ) {
        self.probe.routed(&RoutingEvent {
            site,
            address: self.address,
            recursion: call.recursion,
            runs: call.runs,
            candidates: call.numbers,
            rows: call.rows,
            logits,
            scores,
            choice,
        });
    }
}

/// What a router decided about some rows, for whoever watches.
#[derive(Clone, Debug)]
pub struct RoutingEvent<'a> {
    /// Which router of the model decided.
    pub site: RouterSite,
    /// The step and the first sequence of the pass.
    pub address: Address,
    /// The recursion that the rows are at, from 0; that of the first where they are at several.
    pub recursion: usize,
    /// The recursion of each row: runs of rows in row order, each a recursion and its length.
    pub runs: &'a [(usize, usize)],
    /// Numbers of the rows that it decided about: in the whole pass for a depth router, in the
    /// layer for others.
    pub candidates: &'a [u32],
    /// Sequences, positions and tokens of these rows.
    pub rows: &'a Rows,
    /// The scores that decide, before any function: `[candidates, targets]`, row by row.
    pub logits: &'a [f32],
    /// The same after the router's function; empty where nothing follows from them.
    pub scores: &'a [f32],
    /// The decision, in the form that the router makes it.
    pub choice: Choice<'a>,
}

/// What a router decided.
#[derive(Clone, Copy, Debug)]
pub enum Choice<'a> {
    /// Whether each candidate goes on to this recursion.
    GoOn {
        /// Whether each goes on.
        kept: &'a [bool],
        /// Whether each is among the best of its sequence, as training would choose; absent where
        /// rows are not compared.
        best: Option<&'a [bool]>,
        /// Logits of the auxiliary router, if there is one.
        auxiliary: Option<&'a [f32]>,
    },
    /// The target of each candidate: its last recursion, from 0.
    Target(&'a [u32]),
    /// Rows by target, several targets a row.
    Plan(&'a RoutingPlan),
}

/// Watches a pass. Metrics are probes, not outputs of the model.
pub trait Probe {
    /// The residual stream before each element of the model (a layer, or a whole recursion where a
    /// router decides), and last the normed rows that the head sees.
    fn stream(&mut self, x_td: &Tensor2) {
        let _ = x_td;
    }

    /// Rows `x_an` that meet a matrix of a layer, ahead of the product. Of a bank the first
    /// `groups[0]` rows meet the first matrix, and so on; `groups` is empty where all rows meet
    /// `weight` itself. Not told where layers run again in the backward pass.
    fn product(&mut self, weight: &Weight, groups: &[usize], x_an: &Tensor2) {
        let _ = (weight, groups, x_an);
    }

    /// A decision of a router.
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        let _ = event;
    }

    /// A loss beside the cross-entropy: its share of the step's mean, before its weight.
    fn loss(&mut self, name: &'static str, value: f32, weight: f32) {
        let _ = (name, value, weight);
    }
}

/// A probe that does nothing.
#[derive(Debug)]
pub struct NoProbe;

impl Probe for NoProbe {}

/// A probe that keeps what it is told, to tell another one later.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    told: Vec<Told>,
}

#[derive(Debug)]
enum Told {
    Routed(Box<ToldRouting>),
    Loss(&'static str, f32, f32),
}

/// A [`RoutingEvent`] that owns what it tells.
#[derive(Debug)]
struct ToldRouting {
    site: RouterSite,
    address: Address,
    recursion: usize,
    runs: Vec<(usize, usize)>,
    candidates: Vec<u32>,
    rows: Rows,
    logits: Vec<f32>,
    scores: Vec<f32>,
    choice: Chosen,
}

#[derive(Debug)]
enum Chosen {
    GoOn { kept: Vec<bool>, best: Option<Vec<bool>>, auxiliary: Option<Vec<f32>> },
    Target(Vec<u32>),
    Plan(Box<RoutingPlan>),
}

impl Recorded {
    /// Tells `probe` everything, in order.
    pub(crate) fn tell(&self, probe: &mut dyn Probe) {
        for told in &self.told {
            match told {
                Told::Loss(name, value, weight) => probe.loss(name, *value, *weight),
                Told::Routed(told) => {
                    probe.routed(&RoutingEvent {
                        site: told.site,
                        address: told.address,
                        recursion: told.recursion,
                        runs: &told.runs,
                        candidates: &told.candidates,
                        rows: &told.rows,
                        logits: &told.logits,
                        scores: &told.scores,
                        choice: match &told.choice {
                            Chosen::Target(target) => Choice::Target(target),
                            Chosen::Plan(plan) => Choice::Plan(plan),
                            Chosen::GoOn { kept, best, auxiliary } => Choice::GoOn {
                                kept,
                                best: best.as_deref(),
                                auxiliary: auxiliary.as_deref(),
                            },
                        },
                    });
                }
            }
        }
    }
}

impl Probe for Recorded {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        self.told.push(Told::Routed(Box::new(ToldRouting {
            site: event.site,
            address: event.address,
            recursion: event.recursion,
            runs: event.runs.to_vec(),
            candidates: event.candidates.to_vec(),
            rows: event.rows.clone(),
            logits: event.logits.to_vec(),
            scores: event.scores.to_vec(),
            choice: match event.choice {
                Choice::Target(target) => Chosen::Target(target.to_vec()),
                Choice::Plan(plan) => Chosen::Plan(Box::new(plan.clone())),
                Choice::GoOn { kept, best, auxiliary } => Chosen::GoOn {
                    kept: kept.to_vec(),
                    best: best.map(<[bool]>::to_vec),
                    auxiliary: auxiliary.map(<[f32]>::to_vec),
                },
            },
        })));
    }

    fn loss(&mut self, name: &'static str, value: f32, weight: f32) {
        self.told.push(Told::Loss(name, value, weight));
    }
}
