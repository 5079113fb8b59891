//! The experts of one layer over their weights: rows are laid in groups, one an expert, and each
//! group goes through its expert (`bank.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Activation, Tensor2, Weight, rows_of, stack};

use super::bank::ExpertBank;
use super::dense::Dense;
use super::member::Mlp;
use super::modulated::Modulated;
use super::shortcut;
use super::zero_experts::ZeroBank;
use crate::carry::Carry;
use crate::context::LayerContext;
use crate::layout::DepthRuns;
use crate::pass::Pass;
use crate::routers::{AuxLoss, Router, RouterCall};
use crate::rows::Rows;

/// The expert that every row takes.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) mlp: Dense,
    /// What weighs its result, if anything does.
    pub(super) weights: Option<Arc<Weight>>,
    /// Whether that weighs the chosen experts' results too.
    pub(super) mixes: bool,
}

/// What computing experts are.
#[derive(Debug)]
pub(super) enum Kind {
    /// An MLP for each expert.
    Bank(Arc<ExpertBank>),
    /// Scales and shifts ahead of one MLP.
    Modulated(Modulated),
}

/// The experts of one stored layer over their weights.
#[derive(Debug)]
pub(super) struct Experts {
    pub(super) kind: Kind,
    /// A dense MLP beside experts that take the rows of the layer before.
    pub(super) beside: Option<Dense>,
    /// How many experts compute.
    pub(super) count: usize,
    /// What stands behind them.
    pub(super) zero: ZeroBank,
    pub(super) shared: Option<Shared>,
    /// Whether rows carry something from one layer of experts to the next.
    pub(super) links_layers: bool,
    /// One for all uses of the layer, or one for each.
    pub(super) routers: Vec<Box<dyn Router>>,
}

impl Mlp for Experts {
    fn bank(&self) -> Option<&Arc<ExpertBank>> {
        match &self.kind {
            Kind::Bank(bank) => Some(bank),
            Kind::Modulated(_) => None,
        }
    }

    fn carries(&self) -> bool {
        self.links_layers
    }

    fn forward(
        &self,
        h_td: Tensor2,
        residual_td: Tensor2,
        context: &mut LayerContext<'_, '_>,
    ) -> Tensor2 {
        let (h_td, residual_td) = match &self.beside {
            None => (h_td, residual_td),
            Some(mlp) => {
                let before_td = shortcut::left(context.carry);
                (before_td, mlp.forward(h_td, residual_td, context))
            }
        };
        let (x_td, chosen_t1) = match &self.shared {
            Some(shared) => shared.forward(h_td.clone(), residual_td, context),
            None => (residual_td, None),
        };
        let latent_tm = match &self.kind {
            Kind::Bank(bank) => {
                let latent = bank.latent.as_ref();
                latent.map(|latent| {
                    latent.apply(h_td.clone(), context.rows, context.at, context.pass)
                })
            }
            Kind::Modulated(_) => None,
        };
        let recursion = context.at.runs().next().map_or(0, |(at, _)| at.recursion);
        if self.routers.len() < 2 || context.at.count() < 2 {
            let router = &self.routers[recursion.min(self.routers.len() - 1)];
            let runs: Vec<_> =
                context.at.runs().map(|(at, range)| (at.recursion, range.len())).collect();
            let (router, rows) = (&**router, context.rows);
            let (at, runs) = (context.at, &runs[..]);
            let routed = Routed { router, recursion, runs, rows, at, latent_tm, chosen_t1 };
            return self.routed(&routed, h_td, x_td, context.carry, context.pass);
        }
        let (mut parts, mut carries) = (Vec::new(), Vec::new());
        for (at, range) in context.at.runs() {
            let rows = &context.rows.stretch_of(range.clone());
            let router = &*self.routers[at.recursion];
            let chosen_t1 = chosen_t1.as_ref().map(|all| rows_of(all, range.clone()));
            let latent_tm = latent_tm.as_ref().map(|all| rows_of(all, range.clone()));
            let (recursion, runs) = (at.recursion, &[(at.recursion, range.len())]);
            let at = &DepthRuns::one(at, range.len());
            let routed = Routed { router, recursion, runs, rows, at, latent_tm, chosen_t1 };
            let mut carry = Carry::default();
            if self.links_layers {
                let numbers: Arc<[u32]> = range.clone().map(|row| row as u32).collect();
                carry = context.carry.gather(context.pass.ops, Some(&numbers));
            }
            let (h_td, x_td) = (rows_of(&h_td, range.clone()), rows_of(&x_td, range));
            parts.push(self.routed(&routed, h_td, x_td, &mut carry, context.pass));
            carries.push(carry);
        }
        if self.links_layers {
            *context.carry = Carry::stack(&carries.iter().collect::<Vec<_>>());
        }
        stack(parts)
    }
}

/// Rows that one router decides about.
struct Routed<'a> {
    router: &'a dyn Router,
    recursion: usize,
    /// The recursions that the rows are at, as [`RouterCall::runs`].
    runs: &'a [(usize, usize)],
    rows: &'a Rows,
    /// Which use of the layer this is to each.
    at: &'a DepthRuns,
    /// What experts read in place of the row, if anything.
    latent_tm: Option<Tensor2>,
    /// What weighs the results of the experts that a row chose, beside their own weights.
    chosen_t1: Option<Tensor2>,
}

impl Experts {
    /// The stream with what the experts of each row write to it.
    fn routed(
        &self,
        of: &Routed<'_>,
        h_td: Tensor2,
        mut x_td: Tensor2,
        carry: &mut Carry,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let numbers: Vec<u32> = (0..of.rows.len() as u32).collect();
        let call = RouterCall {
            recursion: of.recursion,
            x_cd: &h_td,
            rows: of.rows,
            numbers: &numbers,
            runs: of.runs,
            lengths: &BTreeMap::new(),
            carry,
        };
        let mut plan = of.router.route(&call, pass);
        for (name, value_tw) in plan.carry.iter() {
            carry.set(name, value_tw.clone());
        }
        if let Some(chosen_t1) = &of.chosen_t1 {
            let chosen_a1 = pass.ops.gather_rows(chosen_t1.clone(), &plan.rows);
            plan.weights = Some(match plan.weights {
                Some(weights_a1) => pass.ops.scale_rows(weights_a1, chosen_a1),
                None => chosen_a1,
            });
        }
        let bank = match &self.kind {
            Kind::Bank(bank) => bank,
            Kind::Modulated(modulated) => {
                let m_td = modulated.mixed(&plan, h_td, pass);
                let mut context =
                    LayerContext { pass: &mut *pass, rows: of.rows, at: of.at, carry };
                x_td = modulated.mlp.forward(m_td, x_td, &mut context);
                return attached(x_td, plan.losses, pass);
            }
        };
        let seen = of.latent_tm.clone().unwrap_or_else(|| h_td.clone());
        let computing = plan.offsets[self.count] as usize;
        if computing > 0 && computing == plan.rows.len() {
            // What is gathered from may be written in place, so it has one owner.
            drop(h_td);
            let all = (&plan.rows, plan.weights.clone());
            x_td = bank.add(&plan, all, seen, x_td, pass);
        } else if !plan.rows.is_empty() {
            if computing > 0 {
                let first = (&plan, computing);
                x_td = bank.add_first(first, plan.weights.as_ref(), seen, x_td, pass);
            }
            x_td = self.zero.add(&plan, self.count, &h_td, x_td, pass.ops);
        }
        attached(x_td, plan.losses, pass)
    }
}

/// The stream with these losses on it.
fn attached(mut x_td: Tensor2, losses: Vec<AuxLoss>, pass: &mut Pass<'_>) -> Tensor2 {
    for loss in losses {
        x_td = pass.attach(x_td, loss);
    }
    x_td
}

impl Shared {
    /// The stream with the shared expert's result, and what weighs those of the chosen ones.
    fn forward(
        &self,
        h_td: Tensor2,
        x_td: Tensor2,
        context: &mut LayerContext<'_, '_>,
    ) -> (Tensor2, Option<Tensor2>) {
        let Some(weights) = &self.weights else {
            return (self.mlp.forward(h_td, x_td, context), None);
        };
        let (rows, at, ops) = (context.rows, context.at, context.pass.ops);
        let z = ops.linear(h_td.clone(), weights);
        let (own_t1, chosen_t1) = if self.mixes {
            let (c_t2, count) = (ops.softmax_rows(z, 1.0), h_td.dims()[0]);
            let chosen_t1 = ops.pick_columns(c_t2.clone(), &vec![0; count]);
            (ops.pick_columns(c_t2, &vec![1; count]), Some(chosen_t1))
        } else {
            (ops.gate(z, Activation::Sigmoid, 1.0), None)
        };
        let y_tf = ops.swiglu(self.mlp.gate_up.apply(h_td, rows, at, context.pass));
        let y_td = self.mlp.down.apply(y_tf, rows, at, context.pass);
        (ops::add(x_td, ops.scale_rows(y_td, own_t1)), chosen_t1)
    }
}
