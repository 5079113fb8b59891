//! Zero-computation experts beside those of the bank: a row that takes them meets fewer matrices.
//! Identity experts write the row itself, `E(h) = h` (LongCat-Flash, 2025, arXiv 2509.01322), zero
//! experts nothing, and constant ones `E(h) = a_0 h + a_1 v` with a learned vector `v` and `a =
//! softmax(W h)` (MoE++, Jin et al., 2024, arXiv 2410.07348). `h` is what the MLP is given, the
//! normed row.

use std::sync::Arc;

use ops::{Combine, Ops, Tensor2, Weight, rows_of};

use crate::linear::LinearBuilder;
use crate::params::{Group, Init, ParamPlace, ParamSpec, Part, Take};
use crate::routers::RoutingPlan;
use crate::sizes::Sizes;

/// `[C, d]`: the vectors of the constant experts.
pub(crate) const CONSTANTS: Part = Part::new("experts_constant");
/// `[2 C, d]`: for each constant expert the logits of the row and of the vector.
pub(crate) const CONSTANT_MIX: Part = Part::new("experts_constant_mix");

/// How many there are of each kind; the router numbers them in this order.
#[derive(Clone, Copy, Debug)]
pub(super) struct ZeroExperts {
    pub(super) identity: usize,
    pub(super) zero: usize,
    pub(super) constant: usize,
}

impl ZeroExperts {
    pub(super) fn all(self) -> usize {
        self.identity + self.zero + self.constant
    }

    /// The weights of constant experts, of a row that takes `chosen` experts that do not compute.
    pub(super) fn specs(self, sizes: &Sizes, stored: usize, chosen: f64) -> Vec<ParamSpec> {
        if self.constant == 0 {
            return Vec::new();
        }
        let (d, init) = (sizes.width, Init::Normal(sizes.init_std));
        let place = ParamPlace::Layer { stored, part: CONSTANTS };
        let vectors = ParamSpec::new(place, (self.constant, d), init, Group::Norm);
        let place = ParamPlace::Layer { stored, part: CONSTANT_MIX };
        let mix = ParamSpec::new(place, (2 * self.constant, d), init, Group::Router);
        vec![vectors, ParamSpec { active: chosen / self.all() as f64, ..mix }]
    }

    pub(super) fn build(self, linears: &LinearBuilder<'_>, take: &mut Take) -> ZeroBank {
        let constants = (self.constant > 0).then(|| Constants {
            vectors: linears.bank(CONSTANTS, take),
            mix: linears.bank(CONSTANT_MIX, take),
        });
        ZeroBank { counts: self, constants }
    }
}

/// The zero-computation experts of a layer over their weights.
#[derive(Debug)]
pub(super) struct ZeroBank {
    counts: ZeroExperts,
    constants: Option<Constants>,
}

/// The weights of the constant experts of a layer.
#[derive(Debug)]
struct Constants {
    vectors: Arc<Weight>,
    mix: Arc<Weight>,
}

impl ZeroBank {
    /// The stream with what the experts behind the first `computing` of `plan` write to it.
    pub(super) fn add(
        &self,
        plan: &RoutingPlan,
        computing: usize,
        h_td: &Tensor2,
        mut x_td: Tensor2,
        ops: Ops,
    ) -> Tensor2 {
        let identity = computing..computing + self.counts.identity;
        let first = identity.end + self.counts.zero;
        let constant = first..first + self.counts.constant;
        for (targets, constants) in [(identity, None), (constant, self.constants.as_ref())] {
            let (start, end) = (plan.offsets[targets.start], plan.offsets[targets.end]);
            let range = start as usize..end as usize;
            if range.is_empty() {
                continue;
            }
            let rows: Arc<[u32]> = plan.rows[range.clone()].into();
            let weights = plan.weights.as_ref().map(|all| rows_of(all, range.clone()));
            let w_a1 = weights.unwrap_or_else(|| ops.column(vec![1.0; range.len()]));
            let mut y_ad = ops.gather_rows(h_td.clone(), &rows);
            if let Some(constants) = constants {
                y_ad = constants.mixed(y_ad, targets.map(|e| plan.of(e).len()).collect(), ops);
            }
            x_td = ops.combine_rows(x_td, &rows, y_ad, w_a1, Combine::Add);
        }
        x_td
    }
}

impl Constants {
    /// `a_0 h + a_1 v_c` of the rows of each constant expert `c`, with `a = softmax(W_c h)`;
    /// `sizes[c]` rows lie together.
    fn mixed(&self, h_ad: Tensor2, sizes: Vec<usize>, ops: Ops) -> Tensor2 {
        let experts = sizes.iter().enumerate();
        let of_rows: Arc<[u32]> = experts.flat_map(|(c, &n)| vec![c as u32; n]).collect();
        let z_a2 = ops.grouped_linear(h_ad.clone(), &self.mix, &sizes.into());
        let a_a2 = ops.softmax_rows(z_a2, 1.0);
        let row_a1 = ops.pick_columns(a_a2.clone(), &vec![0; of_rows.len()]);
        let vector_a1 = ops.pick_columns(a_a2, &vec![1; of_rows.len()]);
        let v_ad = ops.embed(&h_ad, &self.vectors, &of_rows);
        ops::add(ops.scale_rows(h_ad, row_a1), ops.scale_rows(v_ad, vector_a1))
    }
}
