//! Low-rank adapters for each use of a matrix: LoRA (Hu et al., 2021, arXiv 2106.09685),
//! `W + s B A` with `s = alpha / rank`, and DoRA (Liu et al., 2024, arXiv 2402.09353), which learns
//! the magnitude of each output's weights apart. Fresh ones change nothing: B is zero, magnitudes
//! are those of W.

use std::sync::Arc;

use ops::{Tensor2, Weight};
use serde::{Deserialize, Serialize};

use super::member::{Adapter, AdapterSettings, Matrices};
use crate::attention;
use crate::error::{ConfigError, at_least, refuse};
use crate::kv::KvMode;
use crate::layout::{LayerPlan, LayerUse};
use crate::matrices::read_parts;
use crate::params::{Group, Init, ParamPlace, ParamSpec, Part};
use crate::pass::Pass;
use crate::sizes::Sizes;

/// The tensor A, `[rank, d]`.
pub const DOWN: &str = "down";
/// The tensor B, `[n, rank]`.
pub const UP: &str = "up";
/// `[1, n]`: DoRA's magnitudes, relative to those of the adapted matrix.
pub const MAGNITUDE: &str = "length";

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

/// `relax = { kind = "lora", ... }`, and the same for `dora`.
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

    /// Whether use `at` has an adapter for `part` in a model of this `plan` and `kv`.
    pub fn adapts(&self, kv: KvMode, plan: &LayerPlan, at: LayerUse, part: Part) -> bool {
        let reached = self.layers == AdaptedLayers::All || plan.uses_of(at.stored).len() > 1;
        reached
            && self.parts.contains(&part)
            && attention::runs(kv, at, part)
            && !(self.skip_first && at.recursion == 0)
    }
}

/// LoRA, and DoRA where magnitudes are learned apart.
pub(super) struct LowRank<'a> {
    pub(super) config: &'a Config,
    pub(super) magnitudes: bool,
}

impl AdapterSettings for LowRank<'_> {
    fn check(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
    ) -> Result<(), ConfigError> {
        let config = self.config;
        at_least("relax.alpha", config.alpha, 1e-6)?;
        if config.layers == AdaptedLayers::Shared && plan.stored == sizes.layers {
            let expected = "\"all\" where every layer has weights of its own: \"shared\" adapts \
                            layers that are used more than once";
            return refuse("relax.layers", "\"shared\"", expected.into());
        }
        if config.parts.is_empty() {
            return refuse("relax.parts", "[]", "at least one of a layer's matrices".into());
        }
        let Matrices { table, adaptable } = matrices;
        for (i, part) in config.parts.iter().enumerate() {
            let name = part.name();
            if config.parts[..i].contains(part) {
                return refuse("relax.parts", name, "each matrix once".into());
            }
            let of_part = ParamPlace::Layer { stored: 0, part: *part };
            let Some(base) = table.iter().find(|base| base.place == of_part) else {
                let known = adaptable.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ");
                return refuse("relax.parts", name, format!("matrices of this model: {known}"));
            };
            if !adaptable.contains(part) {
                let expected = "a matrix that every row meets whole: banks take no adapters";
                return refuse("relax.parts", name, expected.into());
            }
            let most = base.shape.0.min(base.shape.1);
            if config.rank == 0 || config.rank > most {
                let expected = format!("between 1 and {most}, the smaller side of {name}");
                return refuse("relax.rank", config.rank, expected);
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
        if !self.config.adapts(sizes.kv, plan, at, part) {
            return Vec::new();
        }
        let ((n, d), rank) = (base.shape, self.config.rank);
        let normal = Init::Normal(sizes.init_std);
        let mut table = vec![
            ParamSpec::new(ParamPlace::adapter(at, part, DOWN), (rank, d), normal, Group::Adapter),
            ParamSpec::new(
                ParamPlace::adapter(at, part, UP),
                (n, rank),
                Init::Zeros,
                Group::Adapter,
            ),
        ];
        if self.magnitudes {
            let place = ParamPlace::adapter(at, part, MAGNITUDE);
            table.push(ParamSpec::new(place, (1, n), Init::Ones, Group::Norm));
        }
        table
    }

    fn build(&self, take: &mut dyn FnMut(&'static str) -> Arc<Weight>) -> Box<dyn Adapter> {
        let (down, up) = (take(DOWN), take(UP));
        let magnitude = self.magnitudes.then(|| take(MAGNITUDE));
        Box::new(Pair { down, up, scale: self.config.scale(), magnitude })
    }
}

/// The adapter of one use.
#[derive(Debug)]
struct Pair {
    down: Arc<Weight>,
    up: Arc<Weight>,
    scale: f32,
    /// DoRA: how long each output's weights are, relative to those of the adapted matrix.
    magnitude: Option<Arc<Weight>>,
}

impl Adapter for Pair {
    /// `h (W + s B A)^T`, with magnitudes if they are learned, added to `residual` if there is one.
    /// The magnitude of `W + s B A` counts as a constant in gradients, as its authors propose.
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let ops = pass.ops;
        let low_tr = ops::scale(ops.linear(h_td.clone(), &self.down), self.scale);
        let Some(magnitude) = &self.magnitude else {
            let y_tn = match residual_tn {
                Some(residual) => ops.linear_add(h_td, weight, residual),
                None => ops.linear(h_td, weight),
            };
            return ops.linear_add(low_tr, &self.up, y_tn);
        };
        let y_tn = ops.linear_add(low_tr, &self.up, ops.linear(h_td, weight));
        let factors = ops::length_ratios(weight, &self.up, &self.down, self.scale);
        let y_tn = ops.scale_columns(y_tn, magnitude, Some(factors.into()));
        match residual_tn {
            Some(residual) => ops::add(residual, y_tn),
            None => y_tn,
        }
    }
}

/// The matrix `[n, d]` that a use computes with: `w + s up down`, row by row of the length that
/// `length` says.
pub fn merge(
    w: &[f32],
    d: usize,
    down: &[f32],
    up: &[f32],
    scale: f32,
    length: Option<&[f32]>,
) -> Vec<f32> {
    let rank = down.len() / d;
    let mut merged = Vec::with_capacity(w.len());
    for (n, row) in w.chunks_exact(d).enumerate() {
        let own: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        let mut sum = own.clone();
        for (k, a) in down.chunks_exact(d).enumerate() {
            let b = f64::from(scale) * f64::from(up[n * rank + k]);
            sum.iter_mut().zip(a).for_each(|(s, &a)| *s += b * f64::from(a));
        }
        let factor = length.map_or(1.0, |length| {
            f64::from(length[n]) * norm(&own) / norm(&sum).max(f64::MIN_POSITIVE)
        });
        merged.extend(sum.into_iter().map(|x| (factor * x) as f32));
    }
    merged
}

/// The Euclidean length of a row.
fn norm(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>().sqrt()
}
