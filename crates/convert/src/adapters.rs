//! Adapters of each use, so that the use comes close to the layer that it replaces (Relaxed
//! Recursive Transformers, arXiv 2410.20672): the difference between that layer and the shared one,
//! cut to the adapter's rank.

use std::collections::BTreeMap;

use model::ModelConfig;
use model::adapters::{Part, lora, merge};
use model::layout::{LayerPlan, LayerUse};
use model::rng::{Purpose, Stream, name_place};

use crate::svd::truncated;

/// A use's own matrix as its layer had it, and the shared one.
type Pair = (Vec<f32>, Vec<f32>);

/// The weights of all adapters by name, and for each use and part the matrix that it then computes
/// with.
pub(crate) struct Adapters {
    pub(crate) weights: BTreeMap<String, Vec<f32>>,
    pub(crate) merged: BTreeMap<(usize, &'static str), Vec<f32>>,
}

/// `matrices` gives a use's pair for a part. `merged` is by unrolled layer and part.
pub(crate) fn fit(
    config: &ModelConfig,
    plan: &LayerPlan,
    seed: u64,
    matrices: &dyn Fn(LayerUse, Part) -> Option<Pair>,
) -> Adapters {
    let mut made = Adapters { weights: BTreeMap::new(), merged: BTreeMap::new() };
    let Some((settings, apart)) = config.relax.adapters() else { return made };
    for at in
        plan.unrolled().filter(|at| plan.unrolled().filter(|u| u.stored == at.stored).count() > 1)
    {
        for part in Part::ALL.into_iter().filter(|&part| settings.adapts(config, at, part)) {
            let Some((own, shared)) = matrices(at, part) else { continue };
            let fitted =
                Fitted::new(&own, &shared, part.shape(config), settings, apart, at, part, seed);
            let (d, length) = (part.shape(config).1, fitted.length.as_deref());
            let merged = merge(&shared, d, &fitted.down, &fitted.up, settings.scale(), length);
            made.merged.insert((at.layer, part.name()), merged);
            made.weights.insert(lora::name(at, part, "down"), fitted.down);
            made.weights.insert(lora::name(at, part, "up"), fitted.up);
            made.weights
                .extend(fitted.length.map(|length| (lora::name(at, part, "length"), length)));
        }
    }
    made
}

struct Fitted {
    down: Vec<f32>,
    up: Vec<f32>,
    length: Option<Vec<f32>>,
}

impl Fitted {
    fn new(
        own: &[f32],
        shared: &[f32],
        (n, d): (usize, usize),
        settings: &lora::Config,
        apart: bool,
        at: LayerUse,
        part: Part,
        seed: u64,
    ) -> Self {
        let difference: Vec<f32> = own.iter().zip(shared).map(|(o, s)| o - s).collect();
        let mut dice =
            Stream::at(seed, Purpose::Init, 0, name_place(&lora::name(at, part, "down")));
        let found = truncated(&difference, n, d, settings.rank, &mut dice);
        let scale = f64::from(settings.scale());
        let share = |k: usize| (found.sigma[k] / scale).sqrt();
        let rank = settings.rank;
        let down = (0..rank * d).map(|p| (share(p / d) * found.v[p / d][p % d]) as f32).collect();
        let up =
            (0..n * rank).map(|p| (share(p % rank) * found.u[p % rank][p / rank]) as f32).collect();
        let length = apart.then(|| {
            let size = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let ratio = |(own, shared): (&[f32], &[f32])| {
                (size(own) / size(shared).max(f64::MIN_POSITIVE)) as f32
            };
            own.chunks_exact(d).zip(shared.chunks_exact(d)).map(ratio).collect()
        });
        Self { down, up, length }
    }
}
