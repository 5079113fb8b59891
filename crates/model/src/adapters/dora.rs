//! DoRA (Liu et al., 2024, arXiv 2402.09353): a low-rank adapter that learns the magnitude of each
//! output's weights apart, `m |W| / |W + s B A| (W + s B A)`, row by row. Fresh magnitudes are 1.

use std::sync::{Arc, Mutex, PoisonError};

use ops::{Tensor2, Weight};
use serde::{Deserialize, Serialize};

use super::lora::{self, Pair};
use super::member::{Adapter, AdapterSettings, Factors, Matrices, Replaced, UsedMatrix};
use crate::error::ConfigError;
use crate::layout::LayerPlan;
use crate::params::{Factor, Group, Init, ParamSpec};
use crate::pass::Pass;
use crate::rows::Rows;
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

    fn specs(&self, site: UsedMatrix<'_>) -> Vec<ParamSpec> {
        let mut table = self.0.specs(site);
        if let (false, Some(place)) = (table.is_empty(), site.own(MAGNITUDE)) {
            table.push(ParamSpec::new(place, (1, site.base.shape.0), Init::Ones, Group::Norm));
        }
        table
    }

    fn build(
        &self,
        site: UsedMatrix<'_>,
        _: &[ParamSpec],
        take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Option<Box<dyn Adapter>> {
        let pair = Pair::take(self.0.scale_of(&site.base.name), lora::DOWN, lora::UP, take);
        Some(Box::new(Dora { pair, magnitude: take(MAGNITUDE), ratios: Mutex::default() }))
    }

    fn first_token(&self) -> u32 {
        self.0.from_token
    }

    fn merges(&self) -> bool {
        self.0.merges()
    }

    fn merged(&self, site: UsedMatrix<'_>, w: &[f32], factors: &Factors<'_>) -> Option<Vec<f32>> {
        if !self.merges() {
            return None;
        }
        let columns = site.base.shape.1;
        let magnitude = factors(MAGNITUDE)?;
        let mut merged = lora::sum(w, columns, self.0.scale_of(&site.base.name), factors)?;
        let own = lengths(w, columns);
        for (n, row) in merged.chunks_exact_mut(columns).enumerate() {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
            let factor = f64::from(magnitude[n]) * own[n] / length;
            row.iter_mut().for_each(|x| *x *= factor);
        }
        Some(merged.into_iter().map(|x| x as f32).collect())
    }

    fn approximate(&self, replaced: &mut Replaced<'_>) -> Vec<(Factor, Vec<f32>)> {
        let mut factors = self.0.approximate(replaced);
        let columns = replaced.shape.1;
        let own = lengths(replaced.own, columns);
        let shared = lengths(replaced.shared, columns);
        let magnitudes = own.iter().zip(&shared).map(|(own, shared)| own / shared);
        factors.push((MAGNITUDE, magnitudes.map(|m| m as f32).collect()));
        factors
    }
}

/// The Euclidean length of each row of `columns` numbers, above zero.
fn lengths(matrix: &[f32], columns: usize) -> Vec<f64> {
    let mut lengths = Vec::new();
    for row in matrix.chunks_exact(columns) {
        let square: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        lengths.push(square.sqrt().max(f64::MIN_POSITIVE));
    }
    lengths
}

/// The adapter of one use.
#[derive(Debug)]
struct Dora {
    pair: Pair,
    /// How long each output's weights are, relative to those of the adapted matrix.
    magnitude: Arc<Weight>,
    ratios: Mutex<Option<Ratios>>,
}

/// `|W| / |W + s B A|` of each row.
#[derive(Debug)]
struct Ratios {
    /// Changes of W, A and B until these were made.
    made_at: [u64; 3],
    of_row: Arc<[f32]>,
}

impl Dora {
    /// Made anew only where a matrix has changed: between the steps of a training, and once in
    /// generation.
    fn ratios(&self, weight: &Weight) -> Arc<[f32]> {
        let Pair { down, up, scale } = &self.pair;
        let made_at = [weight.changes(), down.changes(), up.changes()];
        let mut kept = self.ratios.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.made_at == made_at) {
            return kept.of_row.clone();
        }
        let of_row: Arc<[f32]> = ops::length_ratios(weight, up, down, *scale).into();
        *kept = Some(Ratios { made_at, of_row: of_row.clone() });
        of_row
    }
}

impl Adapter for Dora {
    /// The magnitude of `W + s B A` counts as a constant in gradients, as the authors propose.
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        _: &Rows,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let ops = pass.ops;
        let y_tn = ops.linear(h_td.clone(), weight);
        let y_tn = self.pair.add(h_td, y_tn, ops);
        let y_tn = ops.scale_columns(y_tn, &self.magnitude, Some(self.ratios(weight)));
        match residual_tn {
            Some(residual) => ops::add(residual, y_tn),
            None => y_tn,
        }
    }
}
