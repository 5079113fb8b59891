//! Low-rank adapters for each use of a matrix: LoRA (Hu et al., 2021, arXiv 2106.09685),
//! `W + s B A` with `s = alpha / rank`. Fresh ones change nothing, as B is zero.

use std::sync::Arc;

use ops::{Ops, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use super::member::{Adapter, AdapterSettings, Factors, Matrices, Replaced, stored_product};
use crate::attention;
use crate::error::{ConfigError, refuse};
use crate::kv::KvMode;
use crate::layout::{LayerPlan, LayerUse};
use crate::matrices::read_parts;
use crate::params::{Factor, Group, Init, ParamPlace, ParamSpec, Part};
use crate::pass::Pass;
use crate::sizes::Sizes;

/// The tensor A, `[rank, d]`.
pub(super) const DOWN: Factor = Factor::new("down");
/// The tensor B, `[n, rank]`.
pub(super) const UP: Factor = Factor::new("up");

/// Which layers get adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdaptedLayers {
    /// Those that are used more than once, so that each use may differ.
    #[default]
    Shared,
    /// Every layer of any model.
    All,
}

/// `relax = { kind = "lora", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Scale of what is added: `s = alpha / rank`.
    pub alpha: f64,
    /// Which matrices of a layer.
    #[serde(deserialize_with = "read_parts")]
    pub parts: Vec<Part>,
    /// Which layers get adapters.
    pub layers: AdaptedLayers,
    /// Whether the first use is the shared layer as it is.
    pub skip_first: bool,
}

impl Default for Config {
    fn default() -> Self {
        let parts = vec![attention::QUERY, attention::KEY_VALUE];
        Self { rank: 16, alpha: 32.0, parts, layers: AdaptedLayers::Shared, skip_first: false }
    }
}

impl Config {
    /// `s`, the factor of `B A`.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// Whether stored layer `stored` may have adapters.
    pub(super) fn reaches(&self, plan: &LayerPlan, stored: usize) -> bool {
        self.layers == AdaptedLayers::All || plan.uses_of(stored).len() > 1
    }

    /// Whether use `at` has an adapter for `part` in a model of this `plan` and `kv`.
    pub fn adapts(&self, kv: KvMode, plan: &LayerPlan, at: LayerUse, part: Part) -> bool {
        self.reaches(plan, at.stored)
            && self.parts.contains(&part)
            && attention::runs(kv, at, part)
            && !(self.skip_first && at.recursion == 0)
    }
}

impl AdapterSettings for Config {
    fn check(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
    ) -> Result<(), ConfigError> {
        if !(1e-6..=1e6).contains(&self.alpha) {
            return refuse("relax.alpha", self.alpha, "between 1e-6 and 1e6".into());
        }
        if self.layers == AdaptedLayers::Shared && plan.stored == sizes.layers {
            let expected = "\"all\" where every layer has weights of its own: \"shared\" adapts \
                            layers that are used more than once";
            return refuse("relax.layers", "\"shared\"", expected.into());
        }
        if self.parts.is_empty() {
            return refuse("relax.parts", "[]", "at least one of a layer's matrices".into());
        }
        let Matrices { table, adaptable } = matrices;
        for (i, part) in self.parts.iter().enumerate() {
            let name = part.name();
            if self.parts[..i].contains(part) {
                return refuse("relax.parts", name, "each matrix once".into());
            }
            let Some(base) = table.iter().find(|base| base.place.part() == Some(*part)) else {
                let known = adaptable.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ");
                return refuse("relax.parts", name, format!("matrices of this model: {known}"));
            };
            if !adaptable.contains(part) {
                let expected = "a matrix that every row meets whole: banks take no adapters";
                return refuse("relax.parts", name, expected.into());
            }
            let most = base.shape.0.min(base.shape.1);
            if self.rank == 0 || self.rank > most {
                let expected = format!("between 1 and {most}, the smaller side of {name}");
                return refuse("relax.rank", self.rank, expected);
            }
        }
        Ok(())
    }

    fn specs(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        at: LayerUse,
        base: &ParamSpec,
    ) -> Vec<ParamSpec> {
        let ParamPlace::Layer { part, .. } = base.place else { return Vec::new() };
        if !self.adapts(sizes.kv, plan, at, part) {
            return Vec::new();
        }
        self.pair(
            sizes,
            base.shape,
            ParamPlace::adapter(at, part, DOWN),
            ParamPlace::adapter(at, part, UP),
        )
    }

    fn build(
        &self,
        _: &[ParamSpec],
        take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Option<Box<dyn Adapter>> {
        Some(Box::new(Pair::take(self.scale(), DOWN, UP, take)))
    }

    fn merges(&self) -> bool {
        true
    }

    fn merged(&self, w: &[f32], columns: usize, factors: &Factors<'_>) -> Option<Vec<f32>> {
        let merged = sum(w, columns, self.scale(), factors)?;
        Some(merged.into_iter().map(|x| x as f32).collect())
    }

    /// `own - shared ~ s B A`, each factor with the square roots of the singular values.
    fn approximate(&self, replaced: &mut Replaced<'_>) -> Vec<(Factor, Vec<f32>)> {
        let ((n, d), rank) = (replaced.shape, self.rank);
        let pairs = replaced.own.iter().zip(replaced.shared);
        let difference: Vec<f32> = pairs.map(|(own, shared)| own - shared).collect();
        let found = (replaced.truncated)(&difference, rank);
        let scale = f64::from(self.scale());
        let roots: Vec<f64> = found.sigma.iter().map(|sigma| (sigma / scale).sqrt()).collect();
        let down = (0..rank * d).map(|p| (roots[p / d] * found.v[p / d][p % d]) as f32);
        let up = (0..n * rank).map(|p| (roots[p % rank] * found.u[p % rank][p / rank]) as f32);
        vec![(DOWN, down.collect()), (UP, up.collect())]
    }
}

impl Config {
    /// The two factors of a pair at these places, for a matrix of this shape.
    pub(super) fn pair(
        &self,
        sizes: &Sizes,
        (n, d): (usize, usize),
        down: ParamPlace,
        up: ParamPlace,
    ) -> Vec<ParamSpec> {
        let (rank, normal) = (self.rank, Init::Normal(sizes.init_std));
        vec![
            ParamSpec::new(down, (rank, d), normal, Group::Adapter),
            ParamSpec::new(up, (n, rank), Init::Zeros, Group::Adapter),
        ]
    }
}

/// The factors of one adapter.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) down: Arc<Weight>,
    pub(super) up: Arc<Weight>,
    pub(super) scale: f32,
}

impl Pair {
    pub(super) fn take(
        scale: f32,
        down: Factor,
        up: Factor,
        take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Self {
        Self { down: take(down), up: take(up), scale }
    }

    /// `s B A h`, added to `y`.
    pub(super) fn add(&self, h_td: Tensor2, y_tn: Tensor2, ops: Ops) -> Tensor2 {
        let low_tr = ops::scale(ops.linear(h_td, &self.down), self.scale);
        ops.linear_add(low_tr, &self.up, y_tn)
    }

    /// `s B A h`.
    pub(super) fn apply(&self, h_td: Tensor2, ops: Ops) -> Tensor2 {
        let low_tr = ops::scale(ops.linear(h_td, &self.down), self.scale);
        ops.linear(low_tr, &self.up)
    }
}

impl Adapter for Pair {
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let ops = pass.ops;
        let y_tn = stored_product(ops, weight, h_td.clone(), residual_tn);
        self.add(h_td, y_tn, ops)
    }
}

/// `w + s B A`, `[n, d]` with `d = columns`.
pub(super) fn sum(
    w: &[f32],
    columns: usize,
    scale: f32,
    factors: &Factors<'_>,
) -> Option<Vec<f64>> {
    let (down, up) = (factors(DOWN)?, factors(UP)?);
    let rank = down.len() / columns;
    let mut sum: Vec<f64> = w.iter().map(|&x| f64::from(x)).collect();
    for (n, row) in sum.chunks_exact_mut(columns).enumerate() {
        for (k, a) in down.chunks_exact(columns).enumerate() {
            let b = f64::from(scale) * f64::from(up[n * rank + k]);
            row.iter_mut().zip(a).for_each(|(s, &a)| *s += b * f64::from(a));
        }
    }
    Some(sum)
}
