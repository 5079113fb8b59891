//! Low-rank adapters for each use of a matrix: LoRA (Hu et al., 2021, arXiv 2106.09685),
//! `W + s B A` with `s = alpha / rank`. Fresh ones change nothing, as B is zero.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Ops, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use super::member::{
    Adapter, AdapterSettings, Factors, Matrices, Replaced, UsedMatrix, stored_product,
};
use super::places::{Places, Sites, check_alpha, check_rank};
use crate::error::{ConfigError, refuse};
use crate::layout::LayerPlan;
use crate::matrices::read_parts;
use crate::params::{Factor, Group, Init, ParamPlace, ParamSpec, Part};
use crate::pass::Pass;
use crate::pattern;
use crate::rows::Rows;
use crate::sizes::Sizes;

pub use super::places::AdaptedLayers;

/// The tensor A, `[rank, d]`.
pub(super) const DOWN: Factor = Factor::new("down");
/// The tensor B, `[n, rank]`.
pub(super) const UP: Factor = Factor::new("up");

/// `relax = { kind = "lora", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Scale of what is added: `s = alpha / rank`.
    pub alpha: f64,
    /// Whether the scale is `alpha / sqrt(rank)`, so that high ranks learn as fast as low ones
    /// (Kalajdzievski, 2023, arXiv 2312.03732).
    pub rank_stabilized: bool,
    /// Ranks of matrices by patterns of their names, such as `{ "layers.*.down" = 4 }`; no two of
    /// them may fit one matrix.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of matrices, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Which matrices of a layer.
    #[serde(deserialize_with = "read_parts")]
    pub parts: Vec<Part>,
    /// Which layers get adapters.
    pub layers: AdaptedLayers,
    /// Whether the first use is the shared layer as it is.
    pub skip_first: bool,
    /// The first token whose rows are changed: rows of tokens before it compute as without
    /// adapters. 0 for all.
    pub from_token: u32,
}

impl Default for Config {
    fn default() -> Self {
        let Places { parts, layers, skip_first, from_token } = Places::default();
        Self {
            rank: 16,
            alpha: 32.0,
            rank_stabilized: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            parts,
            layers,
            skip_first,
            from_token,
        }
    }
}

/// What a table of patterns says of the weight `name`.
fn of_pattern<T: Copy>(table: &BTreeMap<String, T>, name: &str) -> Option<T> {
    table.iter().find(|(pattern, _)| pattern::fits(pattern, name)).map(|(_, &value)| value)
}

/// Refuses patterns that fit none of `names`, or of which two fit one of them.
fn check_patterns<'a>(
    field: &str,
    patterns: impl Iterator<Item = &'a String>,
    names: &[&str],
) -> Result<(), ConfigError> {
    let patterns: Vec<&String> = patterns.collect();
    for (i, one) in patterns.iter().enumerate() {
        if let Err(error) = pattern::check(one, names) {
            return refuse(field, format!("\"{one}\""), error.expected);
        }
        for other in &patterns[..i] {
            let mut of_one = names.iter().filter(|name| pattern::fits(one, name));
            if let Some(name) = of_one.find(|name| pattern::fits(other, name)) {
                let expected = format!("patterns of which one fits {name}");
                return refuse(field, format!("\"{other}\" and \"{one}\""), expected);
            }
        }
    }
    Ok(())
}

impl Config {
    /// The rank of the adapters of the matrix `name`.
    pub fn rank_of(&self, name: &str) -> usize {
        of_pattern(&self.rank_pattern, name).unwrap_or(self.rank)
    }

    /// The alpha of the adapters of the matrix `name`.
    pub fn alpha_of(&self, name: &str) -> f64 {
        of_pattern(&self.alpha_pattern, name).unwrap_or(self.alpha)
    }

    /// `s`, the factor of `B A` for the matrix `name`.
    pub fn scale_of(&self, name: &str) -> f32 {
        let rank = self.rank_of(name) as f64;
        let over = if self.rank_stabilized { rank.sqrt() } else { rank };
        (self.alpha_of(name) / over) as f32
    }

    fn sites(&self) -> Sites<'_> {
        let Self { layers, skip_first, from_token, .. } = *self;
        Sites { parts: &self.parts, layers, skip_first, from_token }
    }

    /// How many uses the named matrices have that may have adapters, all layers together.
    pub(super) fn count_uses(&self, site: UsedMatrix<'_>) -> usize {
        let uses = |part| self.sites().uses(site.sizes.kv, site.plan, part).len();
        self.parts.iter().map(|&part| uses(part)).sum()
    }

    /// Whether stored layer `stored` may have adapters.
    pub(super) fn reaches(&self, plan: &LayerPlan, stored: usize) -> bool {
        self.sites().reach(plan, stored)
    }

    /// Whether a use has an adapter.
    pub(super) fn stands_at(&self, site: UsedMatrix<'_>) -> bool {
        self.sites().adapt(site)
    }

    /// The names of the matrices of the table that have adapters.
    fn names(&self, plan: &LayerPlan) -> Vec<String> {
        let stored = (0..plan.stored).filter(|&stored| self.reaches(plan, stored));
        let place =
            |stored| move |part: &Part| ParamPlace::Layer { stored, part: *part }.to_string();
        stored.flat_map(|stored| self.parts.iter().map(place(stored))).collect()
    }
}

impl AdapterSettings for Config {
    fn check(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
    ) -> Result<(), ConfigError> {
        self.sites().check(sizes, plan, matrices, &|base| {
            let ranks = self.rank_pattern.values().map(|&rank| ("relax.rank_pattern", rank));
            for (field, rank) in std::iter::once(("relax.rank", self.rank)).chain(ranks) {
                check_rank(field, rank, base)?;
            }
            Ok(())
        })?;
        check_alpha("relax.alpha", self.alpha)?;
        for &alpha in self.alpha_pattern.values() {
            check_alpha("relax.alpha_pattern", alpha)?;
        }
        let names = self.names(plan);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        check_patterns("relax.rank_pattern", self.rank_pattern.keys(), &names)?;
        check_patterns("relax.alpha_pattern", self.alpha_pattern.keys(), &names)?;
        Ok(())
    }

    fn specs(&self, site: UsedMatrix<'_>) -> Vec<ParamSpec> {
        let (true, Some(down), Some(up)) = (self.stands_at(site), site.own(DOWN), site.own(UP))
        else {
            return Vec::new();
        };
        self.pair(site, down, up)
    }

    fn build(
        &self,
        site: UsedMatrix<'_>,
        _: &[ParamSpec],
        take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Option<Box<dyn Adapter>> {
        Some(Box::new(Pair::take(self.scale_of(&site.base.name), DOWN, UP, take)))
    }

    fn first_token(&self) -> u32 {
        self.from_token
    }

    fn merges(&self) -> bool {
        self.from_token == 0
    }

    fn merged(&self, site: UsedMatrix<'_>, w: &[f32], factors: &Factors<'_>) -> Option<Vec<f32>> {
        if !self.merges() {
            return None;
        }
        let merged = sum(w, site.base.shape.1, self.scale_of(&site.base.name), factors)?;
        Some(merged.into_iter().map(|x| x as f32).collect())
    }

    /// `own - shared ~ s B A`, each factor with the square roots of the singular values.
    fn approximate(&self, replaced: &mut Replaced<'_>) -> Vec<(Factor, Vec<f32>)> {
        let ((n, d), rank) = (replaced.shape, self.rank_of(&replaced.base.name));
        let pairs = replaced.own.iter().zip(replaced.shared);
        let difference: Vec<f32> = pairs.map(|(own, shared)| own - shared).collect();
        let found = (replaced.truncated)(&difference, rank);
        let scale = f64::from(self.scale_of(&replaced.base.name));
        let roots: Vec<f64> = found.sigma.iter().map(|sigma| (sigma / scale).sqrt()).collect();
        let down = (0..rank * d).map(|p| (roots[p / d] * found.v[p / d][p % d]) as f32);
        let up = (0..n * rank).map(|p| (roots[p % rank] * found.u[p % rank][p / rank]) as f32);
        vec![(DOWN, down.collect()), (UP, up.collect())]
    }
}

impl Config {
    /// The two factors of a pair at these places.
    pub(super) fn pair(
        &self,
        site: UsedMatrix<'_>,
        down: ParamPlace,
        up: ParamPlace,
    ) -> Vec<ParamSpec> {
        let ((n, d), rank) = (site.base.shape, self.rank_of(&site.base.name));
        let normal = Init::Normal(site.sizes.init_std);
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
        _: &Rows,
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
