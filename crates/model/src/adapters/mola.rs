//! MoLA (Gao et al., 2024, arXiv 2402.08562): several low-rank adapters for each use of a matrix,
//! of which a row takes the `top_k` that a router of that matrix scores highest,
//! `y = W h + sum_i w_i s B_i A_i h` with `w = softmax(R h)` over the chosen. As these weights sum
//! to 1, a row's result is the mean, weighted by `w`, of the products with `W + s B_i A_i`.

use std::sync::Arc;

use ops::{Combine, Ops, Tensor2, Weight, from_rows, read_rows};
use serde::{Deserialize, Serialize};

use super::lora::{self, Pair};
use super::member::{Adapter, AdapterSettings, Matrices, stored_product};
use crate::error::{ConfigError, refuse};
use crate::layout::{LayerPlan, LayerUse};
use crate::params::{Factor, Group, Init, ParamPlace, ParamSpec};
use crate::pass::Pass;
use crate::routers::plan::RoutingPlan;
use crate::routers::top_k::top_k;
use crate::sizes::Sizes;

/// The router, `[experts, d]`.
const SCORE: Factor = Factor::new("score");

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
    /// Half of the rank of a single adapter, as two are added.
    fn default() -> Self {
        let adapter = lora::Config { rank: 8, alpha: 16.0, ..lora::Config::default() };
        Self { adapter, experts: vec![4], top_k: 2 }
    }
}

impl Config {
    /// How many adapters the matrices of stored layer `stored` have.
    fn experts_of(&self, plan: &LayerPlan, stored: usize) -> usize {
        let (before, all) = (self.adapted(plan, stored), self.adapted(plan, plan.stored));
        self.experts.get(before * self.experts.len() / all.max(1)).copied().unwrap_or_default()
    }

    /// How many of the first `layers` stored layers get adapters.
    fn adapted(&self, plan: &LayerPlan, layers: usize) -> usize {
        (0..layers).filter(|&layer| self.adapter.reaches(plan, layer)).count()
    }
}

impl AdapterSettings for Config {
    fn check(
        &self,
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
        if let Some(wrong) = self.experts.iter().find(|&&experts| !(2..=256).contains(&experts)) {
            let expected = "between 2 and 256: of fewer there is nothing to choose";
            return refuse("relax.experts", wrong, expected.into());
        }
        let least = self.experts.iter().copied().min().unwrap_or_default();
        if self.top_k < 2 || self.top_k > least {
            let expected = format!(
                "between 2 and {least}, the fewest adapters of a matrix: the weight of a single \
                 one would be 1 whatever the router says, which then learns nothing"
            );
            return refuse("relax.top_k", self.top_k, expected);
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
        if !self.adapter.adapts(sizes.kv, plan, at, part) {
            return Vec::new();
        }
        let experts = self.experts_of(plan, at.stored);
        let (score, shape) = (ParamPlace::adapter(at, part, SCORE), (experts, base.shape.1));
        let normal = Init::Normal(sizes.init_std);
        let mut table = vec![ParamSpec::new(score, shape, normal, Group::Adapter)];
        for expert in 0..experts {
            let down = ParamPlace::adapter(at, part, down(expert));
            let up = ParamPlace::adapter(at, part, up(expert));
            let mut pair = self.adapter.pair(sizes, base, down, up);
            pair.iter_mut().for_each(|spec| spec.active = self.top_k as f64 / experts as f64);
            table.extend(pair);
        }
        table
    }

    fn build(
        &self,
        base: &ParamSpec,
        specs: &[ParamSpec],
        take: &mut dyn FnMut(Factor) -> Arc<Weight>,
    ) -> Option<Box<dyn Adapter>> {
        let scale = self.adapter.scale_of(&base.name);
        let score = take(SCORE);
        let mut pairs = Vec::new();
        // The router is one of the tensors, each adapter is two.
        for expert in 0..specs.len() / 2 {
            pairs.push(Pair::take(scale, down(expert), up(expert), take));
        }
        Some(Box::new(Mola { score, pairs, top_k: self.top_k }))
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
struct Mola {
    score: Arc<Weight>,
    pairs: Vec<Pair>,
    top_k: usize,
}

impl Mola {
    /// For each adapter its rows; weights are in the order of these entries.
    fn route(&self, h_td: Tensor2, ops: Ops) -> RoutingPlan {
        let experts = self.pairs.len();
        let z_te = ops.linear(h_td, &self.score);
        let z = read_rows(&z_te);
        let rows = z.len() / experts;
        // The softmax of the chosen is that of all with the others at minus infinity.
        let mut closed = vec![f32::NEG_INFINITY; z.len()];
        let mut rows_of = vec![Vec::new(); experts];
        for (row, scores) in z.chunks_exact(experts).enumerate() {
            for (expert, chosen) in top_k(scores, self.top_k).into_iter().enumerate() {
                if chosen {
                    closed[row * experts + expert] = 0.0;
                    rows_of[expert].push(row as u32);
                }
            }
        }
        let w_te = ops.softmax_rows(ops::add(z_te, from_rows(closed, rows, experts)), 1.0);
        let (mut entries, mut offsets, mut weights) = (Vec::new(), vec![0], Vec::new());
        for (expert, of) in rows_of.into_iter().enumerate() {
            let w_t1 = ops.pick_columns(w_te.clone(), &vec![expert as u32; rows]);
            weights.push(ops.gather_rows(w_t1, &of.as_slice().into()));
            entries.extend(of);
            offsets.push(entries.len() as u32);
        }
        let weights = Some(ops::stack(weights));
        RoutingPlan { offsets, rows: entries.into(), weights, ..RoutingPlan::all(0, None) }
    }
}

impl Adapter for Mola {
    fn run(
        &self,
        weight: &Weight,
        h_td: Tensor2,
        residual_tn: Option<Tensor2>,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let ops = pass.ops;
        let plan = self.route(h_td.clone(), ops);
        let mut y_tn = stored_product(ops, weight, h_td.clone(), residual_tn);
        let Some(weights) = &plan.weights else { return y_tn };
        for (expert, pair) in self.pairs.iter().enumerate() {
            let rows: Arc<[u32]> = plan.of(expert).into();
            if rows.is_empty() {
                continue;
            }
            let entries = plan.offsets[expert] as usize..plan.offsets[expert + 1] as usize;
            let added_en = pair.apply(ops.gather_rows(h_td.clone(), &rows), ops);
            let w_e1 = ops::rows_of(weights, entries);
            y_tn = ops.combine_rows(y_tn, &rows, added_en, w_e1, Combine::Add);
        }
        y_tn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::PassCache;
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
        let mut pairs = Vec::new();
        for (down, up) in downs.iter().zip(&ups) {
            let (down, up) = (weight(down, RANK, D), weight(up, N, RANK));
            pairs.push(Pair { down, up, scale: one.scale_of("layers.0.query") });
        }
        let mola = Mola { score: weight(&score, EXPERTS, D), pairs, top_k: TOP_K };

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
                let merged = one.merged(&base, &w, &factors).expect("a pair");
                for (n, y) in product(&merged, h).into_iter().enumerate() {
                    expected[t * N + n] += z[k].exp() / sum * y;
                }
            }
        }
        for ops in [Ops::Fast, Ops::Plain] {
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
                (from_rows(h.clone(), ROWS, D), from_rows(residual.clone(), ROWS, N));
            let y_tn = mola.run(&weight(&w, N, D), h_td, Some(residual_tn), &mut pass);
            for (y, expected) in read_rows(&y_tn).into_iter().zip(&expected) {
                assert!((f64::from(y) - expected).abs() < 1e-4, "{ops:?}: {y} {expected}");
            }
        }
    }
}
