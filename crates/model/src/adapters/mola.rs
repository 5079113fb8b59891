//! MoLA (Gao et al., 2024, arXiv 2402.08562): several low-rank adapters for each use of a matrix,
//! of which a row takes the `top_k` that a router of that matrix scores highest,
//! `y = W h + sum_i w_i s B_i A_i h` with `w = softmax(R h)` over the chosen. As these weights sum
//! to 1, a row's result is the mean, weighted by `w`, of the products with `W + s B_i A_i`.

use std::sync::Arc;

use ops::{Tensor2, Weight, read_rows};
use serde::{Deserialize, Serialize};

use super::lora;
use super::member::{Adapter, AdapterSettings, Matrices, UsedMatrix, stored_product};
use super::mixture::{Mixture, Several};
use crate::error::{ConfigError, refuse};
use crate::layout::LayerPlan;
use crate::params::{Factor, ParamSpec};
use crate::pass::Pass;
use crate::routers::top_k::top_k;
use crate::rows::Rows;
use crate::sizes::Sizes;

/// `relax = { kind = "mola", ... }`: the settings of `lora` for each adapter, and how many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rank, scale and places of the adapters.
    #[serde(flatten)]
    pub adapter: lora::Config,
    /// Adapters of each matrix: one number for all layers, or one for each of as many equal groups
    /// of the stored layers that get adapters.
    pub experts: Vec<usize>,
    /// How many of them a row takes.
    pub top_k: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { adapter: lora::Config::default(), experts: vec![4], top_k: 2 }
    }
}

impl Config {
    fn several(&self) -> Several<'_> {
        Several { adapter: &self.adapter, experts: &self.experts }
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
        if self.top_k < 2 || self.top_k > least {
            let expected = format!(
                "between 2 and {least}, the fewest adapters of a matrix: the weight of a single \
                 one would be 1 whatever the router says, which then learns nothing"
            );
            return refuse("relax.top_k", self.top_k, expected);
        }
        Ok(())
    }

    fn first_token(&self) -> u32 {
        self.adapter.from_token
    }

    fn specs(&self, site: UsedMatrix<'_>) -> Vec<ParamSpec> {
        let taken = |experts| self.top_k as f64 / experts as f64;
        self.several().specs(site, taken)
    }

    fn build(
        &self,
        site: UsedMatrix<'_>,
        specs: &[ParamSpec],
        take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Option<Box<dyn Adapter>> {
        let mixture = Mixture::take(self.adapter.scale_of(&site.base.name), specs, take);
        Some(Box::new(Mola { mixture, top_k: self.top_k }))
    }
}

/// The adapters of one use of a matrix.
#[derive(Debug)]
struct Mola {
    mixture: Mixture,
    top_k: usize,
}

impl Adapter for Mola {
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        _: &Rows,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let ops = pass.ops;
        let z_te = self.mixture.logits(h_td.clone(), ops);
        let [rows, experts] = z_te.dims();
        let z = read_rows(&z_te);
        let taken: Vec<bool> =
            z.chunks_exact(experts).flat_map(|scores| top_k(scores, self.top_k)).collect();
        // The softmax of the chosen is that of all with the others at minus infinity.
        let closed = taken.iter().map(|&taken| if taken { 0.0 } else { f32::NEG_INFINITY });
        let closed_te = ops.from_rows(closed.collect(), rows, experts);
        let w_te = ops.softmax_rows(ops::add(z_te, closed_te), 1.0);
        let y_tn = stored_product(ops, weight, h_td.clone(), residual_tn);
        self.mixture.add(y_tn, &h_td, (&taken, &w_te), ops)
    }
}

#[cfg(test)]
mod tests {
    use ops::Ops;

    use super::lora::Pair;
    use super::*;
    use crate::ModelConfig;
    use crate::kv::PassCache;
    use crate::params::{Group, Init, ParamPlace};
    use crate::pass::{Address, NoProbe};
    use crate::rng::{Purpose, Stream};
    use crate::routers::rule::Rule;
    use crate::routers::state::RouterState;

    const ROWS: usize = 7;
    const N: usize = 6;
    const D: usize = 8;
    const EXPERTS: usize = 4;
    const TOP_K: usize = 2;
    const RANK: usize = 3;

    fn numbers(count: usize, place: u64) -> Vec<f32> {
        let mut stream = Stream::at(5, Purpose::Init, 0, place);
        (0..count).map(|_| stream.normal() as f32).collect()
    }

    /// `M h` in f64.
    fn product(m: &[f32], h: &[f32]) -> Vec<f64> {
        let mut y = Vec::new();
        for row in m.chunks_exact(h.len()) {
            y.push(row.iter().zip(h).map(|(&m, &h)| f64::from(m) * f64::from(h)).sum());
        }
        y
    }

    /// Applied, the adapters of a row give what their merged matrices give, each with its weight.
    #[test]
    fn merged_or_applied_the_results_are_equal() {
        let (h, w) = (numbers(ROWS * D, 0), numbers(N * D, 1));
        let (score, residual) = (numbers(EXPERTS * D, 2), numbers(ROWS * N, 3));
        let downs: Vec<_> = (0..EXPERTS as u64).map(|k| numbers(RANK * D, 10 + k)).collect();
        let ups: Vec<_> = (0..EXPERTS as u64).map(|k| numbers(N * RANK, 20 + k)).collect();
        let one = lora::Config { rank: RANK, alpha: 6.0, ..lora::Config::default() };
        let weight = |values: &[f32], n, d| Arc::new(Weight::new(values.to_vec(), n, d));
        let place = ParamPlace::Layer { stored: 0, part: crate::attention::QUERY };
        let base = ParamSpec::new(place, (N, D), Init::Zeros, Group::Block);
        let model = ModelConfig { vocab_size: 9, ..ModelConfig::default() };
        let (sizes, plan) = (model.sizes(), model.check().expect("legal"));
        let at = plan.unrolled().next().expect("a layer");
        let site = UsedMatrix { sizes: &sizes, plan: &plan, at, base: &base };
        let mut pairs = Vec::new();
        for (down, up) in downs.iter().zip(&ups) {
            let (down, up) = (weight(down, RANK, D), weight(up, N, RANK));
            pairs.push(Pair { down, up, scale: one.scale_of("layers.0.query") });
        }
        let mixture = Mixture { score: weight(&score, EXPERTS, D), pairs };
        let mola = Mola { mixture, top_k: TOP_K };

        let mut expected: Vec<f64> = residual.iter().map(|&x| f64::from(x)).collect();
        for t in 0..ROWS {
            let h = &h[t * D..(t + 1) * D];
            let z = product(&score, h);
            let mut order: Vec<usize> = (0..EXPERTS).collect();
            order.sort_by(|&a, &b| z[b].total_cmp(&z[a]));
            let sum: f64 = order[..TOP_K].iter().map(|&k| z[k].exp()).sum();
            for &k in &order[..TOP_K] {
                let factors = |factor: Factor| match factor {
                    lora::DOWN => Some(downs[k].clone()),
                    _ => Some(ups[k].clone()),
                };
                let merged = one.merged(site, &w, &factors).expect("a pair");
                for (n, y) in product(&merged, h).into_iter().enumerate() {
                    expected[t * N + n] += z[k].exp() / sum * y;
                }
            }
        }
        for ops in [Ops::Fast, Ops::PLAIN] {
            let mut pass = Pass {
                ops,
                kv: &mut PassCache::new(false),
                rule: &Rule::NonCausal,
                state: &RouterState::default(),
                probe: &mut NoProbe,
                record: false,
                recompute: false,
                address: Address::default(),
                sequences: 1,
                loads: &[],
                pool: Default::default(),
            };
            let (h_td, residual_tn) =
                (ops.from_rows(h.clone(), ROWS, D), ops.from_rows(residual.clone(), ROWS, N));
            let y_tn = mola.run(
                &weight(&w, N, D),
                h_td,
                Some(residual_tn),
                &Rows::batch(1, ROWS),
                &mut pass,
            );
            for (y, expected) in read_rows(&y_tn).into_iter().zip(&expected) {
                assert!((f64::from(y) - expected).abs() < 1e-4, "{ops:?}: {y} {expected}");
            }
        }
    }
}
