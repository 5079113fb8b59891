//! DoRA (Liu et al., 2024, arXiv 2402.09353): a low-rank adapter that learns the magnitude of each
//! output's weights apart, `m |W| / |W + s B A| (W + s B A)`, row by row. Fresh magnitudes are 1.

use std::sync::Arc;

use ops::{Tensor2, Weight};
use serde::{Deserialize, Serialize};

use super::lora::{self, Pair};
use super::member::{Adapter, AdapterSettings, Factors, Matrices, Replaced};
use crate::error::ConfigError;
use crate::layout::{LayerPlan, LayerUse};
use crate::params::{Factor, Group, Init, ParamPlace, ParamSpec};
use crate::pass::Pass;
use crate::sizes::Sizes;

/// `[1, n]`: the magnitudes, relative to those of the adapted matrix.
const MAGNITUDE: Factor = Factor::new("length");

/// `relax = { kind = "dora", ... }`, with the settings of `lora`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Config(pub lora::Config);

impl AdapterSettings for Config {
    fn check(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
    ) -> Result<(), ConfigError> {
        self.0.check(sizes, plan, matrices)
    }

    fn specs(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        at: LayerUse,
        base: &ParamSpec,
    ) -> Vec<ParamSpec> {
        let mut table = self.0.specs(sizes, plan, at, base);
        if let (false, ParamPlace::Layer { part, .. }) = (table.is_empty(), &base.place) {
            let place = ParamPlace::adapter(at, *part, MAGNITUDE);
            table.push(ParamSpec::new(place, (1, base.shape.0), Init::Ones, Group::Norm));
        }
        table
    }

    fn build(
        &self,
        _: &[ParamSpec],
        take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Option<Box<dyn Adapter>> {
        let pair = Pair::take(self.0.scale(), lora::DOWN, lora::UP, take);
        Some(Box::new(Dora { pair, magnitude: take(MAGNITUDE) }))
    }

    fn merges(&self) -> bool {
        true
    }

    fn merged(&self, w: &[f32], columns: usize, factors: &Factors<'_>) -> Option<Vec<f32>> {
        let magnitude = factors(MAGNITUDE)?;
        let mut merged = lora::sum(w, columns, self.0.scale(), factors)?;
        for (row, (w, m)) in
            merged.chunks_exact_mut(columns).zip(w.chunks_exact(columns).zip(magnitude))
        {
            let w: Vec<f64> = w.iter().map(|&x| f64::from(x)).collect();
            let factor = f64::from(m) * length(&w) / length(row).max(f64::MIN_POSITIVE);
            row.iter_mut().for_each(|x| *x *= factor);
        }
        Some(merged.into_iter().map(|x| x as f32).collect())
    }

    fn approximate(&self, replaced: &mut Replaced<'_>) -> Vec<(Factor, Vec<f32>)> {
        let mut factors = self.0.approximate(replaced);
        let columns = replaced.shape.1;
        let rows = replaced.own.chunks_exact(columns).zip(replaced.shared.chunks_exact(columns));
        let length = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let magnitudes =
            rows.map(|(own, shared)| (length(own) / length(shared).max(f64::MIN_POSITIVE)) as f32);
        factors.push((MAGNITUDE, magnitudes.collect()));
        factors
    }
}

/// The Euclidean length of a row.
fn length(row: &[f64]) -> f64 {
    row.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// The adapter of one use.
#[derive(Debug)]
struct Dora {
    pair: Pair,
    /// How long each output's weights are, relative to those of the adapted matrix.
    magnitude: Arc<Weight>,
}

impl Adapter for Dora {
    /// The magnitude of `W + s B A` counts as a constant in gradients, as the authors propose.
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let ops = pass.ops;
        let y_tn = ops.linear(h_td.clone(), weight);
        let y_tn = self.pair.add(h_td, y_tn, ops);
        let Pair { down, up, scale } = &self.pair;
        let factors = ops::length_ratios(weight, up, down, *scale);
        let y_tn = ops.scale_columns(y_tn, &self.magnitude, Some(factors.into()));
        match residual_tn {
            Some(residual) => ops::add(residual, y_tn),
            None => y_tn,
        }
    }
}
