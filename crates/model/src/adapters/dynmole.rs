//! DynMoLE (Li et al., 2025, arXiv 2504.00661): several low-rank adapters for each use of a matrix,
//! and as many of them for a row as its router is unsure: `y = W h + sum_i w_i s B_i A_i h` with
//! `w = p = softmax(R h)` over the chosen, which do not sum to 1. A row whose probabilities have a
//! Tsallis entropy `S_q(p) = (1 - sum_i p_i^q) / (q - 1)` above a threshold takes all adapters;
//! any other takes the most likely ones while their sum is at most `top_p`, and the first `top_k`
//! at least. The entropy is a loss too, so that rows take few in the end.

use std::sync::Arc;

use ops::{Tensor2, Weight, read_rows};
use serde::{Deserialize, Serialize};

use super::lora;
use super::member::{Adapter, AdapterSettings, Matrices, UsedMatrix, stored_product};
use super::mixture::{Mixture, Several};
use crate::error::{ConfigError, at_least, refuse};
use crate::layout::LayerPlan;
use crate::params::{Factor, ParamSpec};
use crate::pass::Pass;
use crate::routers::AuxLoss;
use crate::rows::Rows;
use crate::sizes::Sizes;

/// `relax = { kind = "dynmole", ... }`: the settings of `lora` for each adapter, how many, and who
/// takes which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rank, scale and places of the adapters.
    #[serde(flatten)]
    pub adapter: lora::Config,
    /// Adapters of each matrix: one number for all layers, or one for each of as many equal groups
    /// of the stored layers that get adapters.
    pub experts: Vec<usize>,
    /// `q` of the entropy, above 0 and at most 2; 1, from which others keep 0.01 away, for
    /// Shannon's, in nats.
    pub entropy_index: f64,
    /// The entropy above which a row takes all adapters.
    pub threshold: f64,
    /// The sum of probabilities that the adapters of any other row keep to, beyond the first
    /// `top_k`.
    pub top_p: f64,
    /// How many such a row takes at least.
    pub top_k: usize,
    /// Weight of the entropy, the mean over rows and over all uses of adapted matrices; 0 for none.
    pub entropy_weight: f64,
    /// Weight of the balance loss, the mean over all uses of adapted matrices; 0 for none.
    pub balance_weight: f64,
}

impl Default for Config {
    /// The numbers of its authors.
    fn default() -> Self {
        Self {
            adapter: lora::Config::default(),
            experts: vec![8],
            entropy_index: 1.1,
            threshold: 0.9,
            top_p: 0.75,
            top_k: 2,
            entropy_weight: 0.01,
            balance_weight: 0.001,
        }
    }
}

impl Config {
    fn several(&self) -> Several<'_> {
        Several { adapter: &self.adapter, experts: &self.experts }
    }

    /// `S_q` of these probabilities.
    fn entropy(&self, p: impl Iterator<Item = f32>) -> f64 {
        let q = self.entropy_index;
        if q == 1.0 {
            let terms = p.filter(|&p| p > 0.0).map(f64::from);
            return -terms.map(|p| p * p.ln()).sum::<f64>();
        }
        p.map(|p| ops::entropy_term(p, q)).sum()
    }

    /// Whether a row with these probabilities takes each adapter. The lower adapter comes first
    /// among equals.
    fn chosen(&self, p: &[f32]) -> Vec<bool> {
        if self.entropy(p.iter().copied()) > self.threshold {
            return vec![true; p.len()];
        }
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
        let (mut taken, mut sum) = (vec![false; p.len()], 0.0);
        for (place, adapter) in order.into_iter().enumerate() {
            sum += f64::from(p[adapter]);
            taken[adapter] = place < self.top_k || sum <= self.top_p;
        }
        taken
    }
}

impl AdapterSettings for Config {
    fn check(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
    ) -> Result<(), ConfigError> {
        self.several().check(sizes, plan, matrices)?;
        let least = self.several().least();
        let q = self.entropy_index;
        if !(q > 0.0 && q <= 2.0) || (q != 1.0 && (q - 1.0).abs() < 0.01) {
            let expected = "above 0 and at most 2, and 1 or 0.01 and more away from it";
            return refuse("relax.entropy_index", q, expected.into());
        }
        let even = self.entropy((0..least).map(|_| 1.0 / least as f32));
        if !(self.threshold > 0.0 && self.threshold < even) {
            let expected =
                format!("above 0 and below {even:.4}, the entropy of {least} even probabilities");
            return refuse("relax.threshold", self.threshold, expected);
        }
        if !(self.top_p > 0.0 && self.top_p < 1.0) {
            return refuse("relax.top_p", self.top_p, "above 0 and below 1".into());
        }
        if !(1..least).contains(&self.top_k) {
            let expected = format!("between 1 and {}: one below the fewest adapters", least - 1);
            return refuse("relax.top_k", self.top_k, expected);
        }
        at_least("relax.entropy_weight", self.entropy_weight, 0.0)?;
        at_least("relax.balance_weight", self.balance_weight, 0.0)
    }

    fn first_token(&self) -> u32 {
        self.adapter.from_token
    }

    /// Of all adapters, as rows of a fresh router take them; later ones take fewer.
    fn specs(&self, site: UsedMatrix<'_>) -> Vec<ParamSpec> {
        self.several().specs(site, |_| 1.0)
    }

    fn build(
        &self,
        site: UsedMatrix<'_>,
        specs: &[ParamSpec],
        take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Option<Box<dyn Adapter>> {
        let mixture = Mixture::take(self.adapter.scale_of(&site.base.name), specs, take);
        let share = 1.0 / self.adapter.count_uses(site).max(1) as f64;
        Some(Box::new(DynMole { mixture, config: self.clone(), share }))
    }
}

/// The adapters of one use of a matrix.
#[derive(Debug)]
struct DynMole {
    mixture: Mixture,
    config: Config,
    /// Of the mean over all uses of adapted matrices.
    share: f64,
}

impl Adapter for DynMole {
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        rows: &Rows,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let (ops, experts) = (pass.ops, self.mixture.pairs.len());
        let z_te = self.mixture.logits(h_td.clone(), ops);
        let p_te = ops.softmax_rows(z_te.clone(), 1.0);
        let p = read_rows(&p_te);
        let taken: Vec<bool> =
            p.chunks_exact(experts).flat_map(|row| self.config.chosen(row)).collect();
        let y_tn = stored_product(ops, weight, h_td.clone(), residual_tn);
        let mut y_tn = self.mixture.add(y_tn, &h_td, (&taken, &p_te), ops);
        if pass.record {
            for loss in self.losses((z_te, p_te), (&p, &taken), rows, pass) {
                y_tn = pass.attach(y_tn, loss);
            }
        }
        y_tn
    }
}

impl DynMole {
    /// Over the rows of each sequence that come by, then the mean over the sequences of the step
    /// and over the uses of adapted matrices: the mean of `S_q(p)`, and `N sum_i W_i P_i` with
    /// `W_i` and `P_i` the means of what rows take of adapter `i` and of its probability.
    fn losses(
        &self,
        (z_te, p_te): (Tensor2, Tensor2),
        (p, taken): (&[f32], &[bool]),
        rows: &Rows,
        pass: &Pass<'_>,
    ) -> Vec<AuxLoss> {
        let Config { entropy_weight, balance_weight, entropy_index, .. } = self.config;
        let (experts, mut losses) = (self.mixture.pairs.len(), Vec::new());
        let (mut each, mut factors) = (vec![0.0; rows.len()], vec![0.0; p.len()]);
        let mut balance = 0.0;
        for run in rows.sequences() {
            let share = self.share / (run.len() as f64 * pass.sequences as f64);
            each[run.clone()].fill(share as f32);
            let entries = run.start * experts..run.end * experts;
            let (mut w, mut of_all) = (vec![0.0; experts], vec![0.0; experts]);
            for entry in entries.clone() {
                let mean = f64::from(p[entry]) / run.len() as f64;
                of_all[entry % experts] += mean;
                w[entry % experts] += if taken[entry] { mean } else { 0.0 };
            }
            let products = w.iter().zip(&of_all).map(|(w, p)| w * p).sum::<f64>();
            balance += self.share * experts as f64 * products / pass.sequences as f64;
            for entry in entries {
                let (adapter, taken) = (entry % experts, taken[entry]);
                let slope = w[adapter] + if taken { of_all[adapter] } else { 0.0 };
                factors[entry] = (experts as f64 * share * slope) as f32;
            }
        }
        if entropy_weight > 0.0 {
            let value_11 = pass.ops.tsallis_loss(z_te, entropy_index as f32, each);
            let weight = entropy_weight as f32;
            losses.push(AuxLoss { name: "adapter_entropy", value_11, weight });
        }
        if balance_weight > 0.0 {
            // The slopes of a product times its factors are twice the product.
            let twice_11 = pass.ops.weighted_sum(p_te, factors);
            let value_11 = ops::add(twice_11, pass.ops.from_rows(vec![-balance as f32], 1, 1));
            let weight = balance_weight as f32;
            losses.push(AuxLoss { name: "adapter_balance", value_11, weight });
        }
        losses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(config: &Config, p: &[f32]) -> Vec<usize> {
        let taken = config.chosen(p);
        (0..p.len()).filter(|&adapter| taken[adapter]).collect()
    }

    #[test]
    fn unsure_rows_take_all() {
        let config = Config { top_k: 1, ..Config::default() };
        // S_1.1 = (1 - 4 * 0.25^1.1) / 0.1 = 1.2945 above the threshold of 0.9.
        assert_eq!(chosen(&config, &[0.25; 4]), [0, 1, 2, 3]);
        assert_eq!(chosen(&Config { threshold: 1.3, ..config }, &[0.25; 4]), [0, 1, 2]);
    }

    #[test]
    fn sure_rows_keep_to_a_sum() {
        let config = Config { threshold: 1.5, top_k: 1, ..Config::default() };
        // The one that takes the sum past the share is not among them.
        assert_eq!(chosen(&config, &[0.125, 0.5, 0.25, 0.125]), [1, 2]);
        assert_eq!(
            chosen(&Config { top_p: 0.74, ..config.clone() }, &[0.125, 0.5, 0.25, 0.125]),
            [1]
        );
        // The first come whatever they sum to.
        assert_eq!(chosen(&config, &[0.0625, 0.875, 0.0625, 0.0]), [1]);
        assert_eq!(chosen(&Config { top_k: 2, ..config }, &[0.0625, 0.875, 0.0625, 0.0]), [0, 1]);
    }

    #[test]
    fn entropies_by_hand() {
        let of = |entropy_index: f64, p: &[f32]| {
            let config = Config { entropy_index, ..Config::default() };
            config.entropy(p.iter().copied())
        };
        assert!((of(2.0, &[0.5, 0.25, 0.25]) - (1.0 - 0.375)).abs() < 1e-12);
        assert!((of(0.5, &[0.25, 0.25, 0.25, 0.25]) - 2.0).abs() < 1e-12);
        assert!((of(1.0, &[0.5, 0.5, 0.0]) - 2.0_f64.ln()).abs() < 1e-12);
        // Probabilities that rounding has left a little beside 1 in sum.
        let rounded = [0.3, 0.7, 1e-6];
        assert!((of(1.0, &rounded) - of(1.0 + 1e-7, &rounded)).abs() < 1e-6);
    }
}
