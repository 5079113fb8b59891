//! Adapters of each use, so that the use comes close to the layer that it replaces (Relaxed
//! Recursive Transformers, arXiv 2410.20672). How near a kind of adapter comes is its own matter.

use std::collections::BTreeMap;

use model::ModelConfig;
use model::adapters::{Replaced, UsedMatrix};
use model::layout::{LayerPlan, LayerUse};
use model::params::{ParamPlace, Part};
use model::rng::{Purpose, Stream, name_place};
use model::table::linears;

use crate::svd::truncated;

/// A matrix as the layer that a use replaces had it, and the shared one.
type OwnAndShared = (Vec<f32>, Vec<f32>);

/// The weights of all adapters by place, and for each unrolled layer and part the matrix that it
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
    let (settings, sizes) = (config.relax.settings(), config.sizes());
    for at in plan.unrolled() {
        for base in linears(config, at.stored) {
            let ParamPlace::Layer { part, .. } = base.place else { continue };
            let site = UsedMatrix { sizes: &sizes, plan, at, base: &base };
            let specs = settings.specs(site);
            let Some(first) = specs.first() else { continue };
            let Some((own, shared)) = matrices(at, &base.place) else { continue };
            let (n, d) = base.shape;
            let mut dice = Stream::at(seed, Purpose::Init, 0, name_place(&first.name));
            let mut replaced = Replaced {
                base: &base,
                own: &own,
                shared: &shared,
                shape: (n, d),
                truncated: &mut |a, rank| truncated(a, n, d, rank, &mut dice),
            };
            let factors: BTreeMap<_, _> = settings.approximate(&mut replaced).into_iter().collect();
            let merged = settings.merged(site, &shared, &|factor| factors.get(&factor).cloned());
            if let Some(merged) = merged {
                made.merged.insert((at.layer, part), merged);
            }
            for (factor, values) in factors {
                if let Some(place) = settings.place(site, factor) {
                    made.weights.insert(place, values);
                }
            }
        }
    }
    made
}
