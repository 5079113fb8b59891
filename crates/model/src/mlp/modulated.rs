//! Experts that share one MLP and differ in how they scale and shift the row ahead of it (feature
//! modulated experts of MoFME, Zhang et al., 2023, arXiv 2312.16610): `y = mlp(sum over the chosen
//! e of w_e (gamma_e h + beta_e))`, products element by element. A row meets one MLP, however many
//! experts it takes.

use std::sync::Arc;

use ops::{Combine, Tensor2, Weight};

use super::dense::Dense;
use crate::linear::LinearBuilder;
use crate::params::{Group, Init, ParamPlace, ParamSpec, Part, Take};
use crate::pass::Pass;
use crate::routers::RoutingPlan;

/// `[E, d]`: what multiplies the row, `gamma`.
pub const EXPERTS_SCALE: Part = Part::new("experts_scale");
/// `[E, d]`: what is added to it, `beta`.
pub const EXPERTS_SHIFT: Part = Part::new("experts_shift");

/// The scales and shifts of `count` experts of stored layer `stored`; at first they change nothing.
pub(super) fn specs(width: usize, stored: usize, count: usize) -> Vec<ParamSpec> {
    let two = [(EXPERTS_SCALE, Init::Ones), (EXPERTS_SHIFT, Init::Zeros)];
    let specs = two.map(|(part, init)| {
        ParamSpec::new(ParamPlace::Layer { stored, part }, (count, width), init, Group::Norm)
    });
    specs.into()
}

/// The modulations of a layer over their weights, with the MLP behind them.
#[derive(Debug)]
pub(super) struct Modulated {
    scale: Arc<Weight>,
    shift: Arc<Weight>,
    pub(super) mlp: Dense,
}

impl Modulated {
    pub(super) fn build(mlp: Dense, linears: &LinearBuilder<'_>, take: &mut Take) -> Self {
        let [scale, shift] = [EXPERTS_SCALE, EXPERTS_SHIFT].map(|part| linears.bank(part, take));
        Self { scale, shift, mlp }
    }

    /// What the MLP is given: the rows as the experts of `plan` see them, weighed together.
    pub(super) fn mixed(&self, plan: &RoutingPlan, h_td: Tensor2, pass: &Pass<'_>) -> Tensor2 {
        let ops = pass.ops;
        let experts = 0..plan.targets();
        let of_rows: Arc<[u32]> = experts.flat_map(|e| vec![e as u32; plan.of(e).len()]).collect();
        let none_td = ops::scale(ops::cut(&h_td), 0.0);
        let h_ad = ops.gather_rows(h_td, &plan.rows);
        let [scale_ad, shift_ad] =
            [&self.scale, &self.shift].map(|weight| ops.embed(&h_ad, weight, &of_rows));
        let y_ad = ops::add(ops::multiply(h_ad, scale_ad), shift_ad);
        let weights = plan.weights.clone();
        let w_a1 = weights.unwrap_or_else(|| ops.column(vec![1.0; plan.rows.len()]));
        ops.combine_rows(none_td, &plan.rows, y_ad, w_a1, Combine::Add)
    }
}
