//! Several low-rank adapters of one use of a matrix, and the router of that matrix that picks some
//! of them for each row: what the kinds that differ in the pick have in common.

use std::sync::Arc;

use ops::{Combine, Ops, Tensor2, Weight};

use super::lora::{self, Pair};
use super::member::{AdapterSettings, Matrices, UsedMatrix};
use crate::error::{ConfigError, refuse};
use crate::layout::LayerPlan;
use crate::params::{Factor, Group, Init, ParamSpec};
use crate::sizes::Sizes;

/// The router, `[experts, d]`.
const SCORE: Factor = Factor::new("score");

/// How many adapters matrices have, and of what form.
#[derive(Clone, Copy)]
pub(super) struct Several<'a> {
    /// Rank, scale and places of each.
    pub(super) adapter: &'a lora::Config,
    /// Adapters of each matrix: one number for all layers, or one for each of as many equal groups
    /// of the stored layers that get adapters.
    pub(super) experts: &'a [usize],
}

impl Several<'_> {
    pub(super) fn check(
        self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
    ) -> Result<(), ConfigError> {
        self.adapter.check(sizes, plan, matrices)?;
        let adapted = self.adapted(plan, plan.stored);
        let groups = self.experts.len();
        if groups == 0 || !adapted.is_multiple_of(groups) {
            let expected = format!(
                "one number, or as many as divide the {adapted} stored layers with adapters"
            );
            return refuse("relax.experts", format!("{:?}", self.experts), expected);
        }
        match self.experts.iter().find(|&&experts| !(2..=256).contains(&experts)) {
            None => Ok(()),
            Some(wrong) => refuse("relax.experts", wrong, "between 2 and 256 adapters".into()),
        }
    }

    /// The fewest adapters of a matrix.
    pub(super) fn least(self) -> usize {
        self.experts.iter().copied().min().unwrap_or_default()
    }

    /// How many adapters the matrices of stored layer `stored` have.
    fn experts_of(self, plan: &LayerPlan, stored: usize) -> usize {
        let (before, all) = (self.adapted(plan, stored), self.adapted(plan, plan.stored));
        self.experts.get(before * self.experts.len() / all.max(1)).copied().unwrap_or_default()
    }

    /// How many of the first `layers` stored layers get adapters.
    fn adapted(self, plan: &LayerPlan, layers: usize) -> usize {
        (0..layers).filter(|&layer| self.adapter.reaches(plan, layer)).count()
    }

    /// The router and the adapters of a use, of which a row takes the share `taken` of their
    /// number.
    pub(super) fn specs(
        self,
        site: UsedMatrix<'_>,
        taken: impl Fn(usize) -> f64,
    ) -> Vec<ParamSpec> {
        let (true, Some(score)) = (self.adapter.stands_at(site), site.own(SCORE)) else {
            return Vec::new();
        };
        let experts = self.experts_of(site.plan, site.at.stored);
        let normal = Init::Normal(site.sizes.init_std);
        let shape = (experts, site.base.shape.1);
        let mut table = vec![ParamSpec::new(score, shape, normal, Group::Adapter)];
        for expert in 0..experts {
            let (Some(down), Some(up)) = (site.own(down(expert)), site.own(up(expert))) else {
                continue;
            };
            let mut pair = self.adapter.pair(site, down, up);
            pair.iter_mut().for_each(|spec| spec.active = taken(experts));
            table.extend(pair);
        }
        table
    }
}

fn down(expert: usize) -> Factor {
    Factor::numbered("down", expert)
}

fn up(expert: usize) -> Factor {
    Factor::numbered("up", expert)
}

/// The adapters of one use of a matrix and their router.
#[derive(Debug)]
pub(super) struct Mixture {
    pub(super) score: Arc<Weight>,
    pub(super) pairs: Vec<Pair>,
}

impl Mixture {
    /// Over the weights of [`Several::specs`].
    pub(super) fn take(
        scale: f32,
        specs: &[ParamSpec],
        take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Self {
        let score = take(SCORE);
        let mut pairs = Vec::new();
        // The router is one of the tensors, each adapter is two.
        for expert in 0..specs.len() / 2 {
            pairs.push(Pair::take(scale, down(expert), up(expert), take));
        }
        Self { score, pairs }
    }

    /// The logits of the router, `[t, experts]`.
    pub(super) fn logits(&self, h_td: Tensor2, ops: Ops) -> Tensor2 {
        ops.linear(h_td, &self.score)
    }

    /// `y + sum_i w_i s B_i A_i h` over the adapters that `taken` says of each row, `[t, experts]`
    /// row by row, with the weights `w_te`.
    pub(super) fn add(
        &self,
        mut y_tn: Tensor2,
        h_td: &Tensor2,
        (taken, w_te): (&[bool], &Tensor2),
        ops: Ops,
    ) -> Tensor2 {
        let experts = self.pairs.len();
        for (expert, pair) in self.pairs.iter().enumerate() {
            let of_expert = taken.iter().skip(expert).step_by(experts).enumerate();
            let rows: Arc<[u32]> =
                of_expert.filter(|(_, taken)| **taken).map(|(row, _)| row as u32).collect();
            if rows.is_empty() {
                continue;
            }
            let column = vec![expert as u32; taken.len() / experts];
            let w_e1 = ops.gather_rows(ops.pick_columns(w_te.clone(), &column), &rows);
            let added_en = pair.apply(ops.gather_rows(h_td.clone(), &rows), ops);
            y_tn = ops.combine_rows(y_tn, &rows, added_en, w_e1, Combine::Add);
        }
        y_tn
    }
}
