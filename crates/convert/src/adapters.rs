//! Adapters of each use, so that the use comes close to the layer that it replaces (Relaxed
//! Recursive Transformers, arXiv 2410.20672): the difference between that layer and the shared one,
//! cut to the adapter's rank.

use std::collections::BTreeMap;

use model::ModelConfig;
use model::adapters::{lora, merge};
use model::layout::{LayerPlan, LayerUse};
use model::params::{ParamPlace, Part};
use model::rng::{Purpose, Stream, name_place};
use model::table::linears;

use crate::svd::truncated;

/// A matrix as the layer that a use replaces had it, and the shared one.
type OwnAndShared = (Vec<f32>, Vec<f32>);

/// The weights of all adapters by name, and for each unrolled layer and part the matrix that it
/// then computes with.
#[derive(Default)]
pub(crate) struct Adapters {
    pub(crate) weights: BTreeMap<ParamPlace, Vec<f32>>,
    pub(crate) merged: BTreeMap<(usize, Part), Vec<f32>>,
}

/// Adapters for every use that has one; `matrices` gives a use's pair for a place.
pub(crate) fn fit(
    config: &ModelConfig,
    plan: &LayerPlan,
    seed: u64,
    matrices: &dyn Fn(LayerUse, &ParamPlace) -> Option<OwnAndShared>,
) -> Adapters {
    let mut made = Adapters::default();
    let Some((settings, magnitudes)) = config.relax.adapters() else { return made };
    for at in plan.unrolled() {
        for base in linears(config, at.stored) {
            let ParamPlace::Layer { part, .. } = base.place else { continue };
            if !settings.adapts(config.kv, plan, at, part) {
                continue;
            }
            let Some((own, shared)) = matrices(at, &base.place) else { continue };
            let (n, d) = base.shape;
            let down = ParamPlace::adapter(at, part, lora::DOWN);
            let dice = Stream::at(seed, Purpose::Init, 0, name_place(&down.to_string()));
            let fitted = Fitted::new(&own, &shared, n, settings, dice);
            let magnitude = magnitudes.then(|| lengths(&own, &shared, d));
            let scale = settings.scale();
            let merged = merge(&shared, d, &fitted.down, &fitted.up, scale, magnitude.as_deref());
            made.merged.insert((at.layer, part), merged);
            made.weights.insert(down, fitted.down);
            made.weights.insert(ParamPlace::adapter(at, part, lora::UP), fitted.up);
            if let Some(magnitude) = magnitude {
                made.weights.insert(ParamPlace::adapter(at, part, lora::MAGNITUDE), magnitude);
            }
        }
    }
    made
}

/// The two factors of an adapter, `[rank, d]` and `[n, rank]`.
struct Fitted {
    down: Vec<f32>,
    up: Vec<f32>,
}

impl Fitted {
    /// `own - shared ~ s up down`, each factor with the square roots of the singular values.
    fn new(
        own: &[f32],
        shared: &[f32],
        n: usize,
        settings: &lora::Config,
        mut dice: Stream,
    ) -> Self {
        let (rank, d) = (settings.rank, own.len() / n);
        let difference: Vec<f32> = own.iter().zip(shared).map(|(o, s)| o - s).collect();
        let found = truncated(&difference, n, d, rank, &mut dice);
        let scale = f64::from(settings.scale());
        let roots: Vec<f64> = found.sigma.iter().map(|sigma| (sigma / scale).sqrt()).collect();
        let down = (0..rank * d).map(|p| (roots[p / d] * found.v[p / d][p % d]) as f32).collect();
        let up =
            (0..n * rank).map(|p| (roots[p % rank] * found.u[p % rank][p / rank]) as f32).collect();
        Self { down, up }
    }
}

/// For each row the length of `own` as a multiple of that of `shared`; rows have `d` numbers.
fn lengths(own: &[f32], shared: &[f32], d: usize) -> Vec<f32> {
    let rows = own.chunks_exact(d).zip(shared.chunks_exact(d));
    rows.map(|(own, shared)| (norm(own) / norm(shared).max(f64::MIN_POSITIVE)) as f32).collect()
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}
