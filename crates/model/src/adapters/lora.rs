//! Low-rank adapters for each use of a shared matrix: LoRA (Hu et al., 2021, arXiv 2106.09685), `W
//! + s B A` with `s = alpha / rank`, and DoRA (Liu et al., 2024, arXiv 2402.09353), which learns
//! the length of each output's weights apart. Fresh ones change nothing: B is zero, lengths are
//! those of W.

use std::sync::Arc;

use ops::{Ops, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use super::Part;
use crate::config::{ConfigError, ModelConfig, at_least, refuse};
use crate::layout::LayerUse;
use crate::params::{Group, Init, ParamSpec};

/// `relax = { kind = "lora", ... }`, and the same for `dora`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// `s * rank`.
    pub alpha: f64,
    /// Which matrices of a layer.
    pub parts: Vec<Part>,
    /// Whether the first use is the shared layer as it is.
    pub skip_first: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, parts: vec![Part::Query, Part::KeyValue], skip_first: false }
    }
}

impl Config {
    /// `s`.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    pub(super) fn check(&self, model: &ModelConfig) -> Result<(), ConfigError> {
        at_least("relax.alpha", self.alpha, 1e-6)?;
        if self.parts.is_empty() {
            return refuse("relax.parts", "[]", "at least one of a layer's matrices".into());
        }
        for (i, part) in self.parts.iter().enumerate() {
            if self.parts[..i].contains(part) {
                return refuse("relax.parts", part.name(), "each matrix once".into());
            }
            let (n, d) = part.shape(model);
            if self.rank == 0 || self.rank > n.min(d) {
                let expected =
                    format!("between 1 and {}, the smaller side of {}", n.min(d), part.name());
                return refuse("relax.rank", self.rank, expected);
            }
        }
        Ok(())
    }

    /// Whether a use of a shared layer has an adapter for `part`.
    pub fn adapts(&self, model: &ModelConfig, at: LayerUse, part: Part) -> bool {
        self.parts.contains(&part)
            && part.runs(model, at)
            && !(self.skip_first && at.recursion == 0)
    }

    pub(super) fn specs(&self, model: &ModelConfig, at: LayerUse, apart: bool) -> Vec<ParamSpec> {
        let mut table = Vec::new();
        for part in Part::ALL.into_iter().filter(|&part| self.adapts(model, at, part)) {
            let ((n, d), rank) = (part.shape(model), self.rank);
            let name = |what| name(at, part, what);
            table.push(ParamSpec::new(
                name("down"),
                (rank, d),
                Init::Normal(model.init_std),
                Group::Adapter,
            ));
            table.push(ParamSpec::new(name("up"), (n, rank), Init::Zeros, Group::Adapter));
            if apart {
                table.push(ParamSpec::new(name("length"), (1, n), Init::Ones, Group::Norm));
            }
        }
        table
    }

    pub(super) fn build(
        &self,
        at: LayerUse,
        part: Part,
        apart: bool,
        take: &mut dyn FnMut(&str) -> Arc<Weight>,
    ) -> Adapter {
        let mut named = |what| take(&name(at, part, what));
        let (down, up) = (named("down"), named("up"));
        Adapter { down, up, scale: self.scale(), length: apart.then(|| named("length")) }
    }
}

/// The weight `what` (`down`, `up` or `length`) of the adapter that a use has for `part`.
pub fn name(at: LayerUse, part: Part, what: &str) -> String {
    format!("relax.{}.{}.{}.{what}", at.stored, part.name(), at.recursion)
}

/// The adapter of one use.
#[derive(Debug)]
pub struct Adapter {
    down: Arc<Weight>,
    up: Arc<Weight>,
    scale: f32,
    /// DoRA: how long each output's weights are, relative to those of the shared matrix.
    length: Option<Arc<Weight>>,
}

impl Adapter {
    /// `h (W + s B A)^T`, with lengths if they are learned, added to `residual` if there is one.
    /// The length of `W + s B A` counts as a constant in gradients, as its authors propose.
    pub(super) fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        ops: Ops,
    ) -> Tensor2 {
        let low_tr = ops::scale(ops.linear(h_td.clone(), &self.down), self.scale);
        let Some(length) = &self.length else {
            let y_tn = match residual_tn {
                Some(residual) => ops.linear_add(h_td, weight, residual),
                None => ops.linear(h_td, weight),
            };
            return ops.linear_add(low_tr, &self.up, y_tn);
        };
        let y_tn = ops.linear_add(low_tr, &self.up, ops.linear(h_td, weight));
        let factors = ops::length_ratios(weight, &self.up, &self.down, self.scale);
        let y_tn = ops.scale_columns(y_tn, length, Some(factors.into()));
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
    let (rank, size) =
        (down.len() / d, |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt());
    let mut merged = Vec::with_capacity(w.len());
    for (n, row) in w.chunks_exact(d).enumerate() {
        let own: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        let mut sum = own.clone();
        for (k, a) in down.chunks_exact(d).enumerate() {
            let b = f64::from(scale) * f64::from(up[n * rank + k]);
            sum.iter_mut().zip(a).for_each(|(s, &a)| *s += b * f64::from(a));
        }
        let factor = length.map_or(1.0, |length| {
            f64::from(length[n]) * size(&own) / size(&sum).max(f64::MIN_POSITIVE)
        });
        merged.extend(sum.into_iter().map(|x| (factor * x) as f32));
    }
    merged
}
