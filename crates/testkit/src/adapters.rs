//! Adapters of every kind, for the models of tests.

use std::sync::OnceLock;

use model::MlpConfig;
use model::adapters::{Places, Relaxation, dora, ia3, loha, lokr, lora, miss, mola, vera, wara};

use crate::models::mlps;

/// Whether adapters are tested on the MLP of this number of [`mlps`]: an adapter knows of an MLP
/// which of its matrices take one, so that the first MLP of those with the same matrices does for
/// all. No adapter is tested on every MLP.
pub fn takes_adapters(mlp: usize) -> bool {
    static FIRST: OnceLock<Vec<bool>> = OnceLock::new();
    let first = FIRST.get_or_init(|| {
        let parts: Vec<_> = mlps().iter().map(|mlp| mlp.settings().adaptable()).collect();
        let is_first = |at: usize| !parts[..at].contains(&parts[at]);
        (0..parts.len()).map(is_first).collect()
    });
    first[mlp]
}

/// Every adapter with its default settings (none is the first) where `mlp` has the matrices, then
/// those with factors on all matrices that take them, in every use of a layer or in all but the
/// first. There are as many for every `mlp`.
pub fn adapters(mlp: &MlpConfig) -> Vec<Relaxation> {
    let mut all = Relaxation::all();
    let takes = mlp.settings().adaptable();
    for vector in all.iter_mut() {
        if let Relaxation::Ia3(config) = vector {
            config.parts.retain(|part| takes.contains(part));
            config.inputs.retain(|part| takes.contains(part));
        }
    }
    for skip_first in [false, true] {
        let parts = mlp.settings().adaptable();
        // About as large as the matrices; much larger ones amplify rounding beyond comparison.
        let everywhere =
            lora::Config { rank: 3, alpha: 12.0, parts, skip_first, ..lora::Config::default() };
        let several = mola::Config { adapter: everywhere.clone(), experts: vec![3], top_k: 2 };
        // Over the root of the rank, about the scale of the others.
        let by_pattern = lora::Config {
            rank_stabilized: true,
            alpha: 7.0,
            rank_pattern: [("layers.*.query".to_owned(), 2)].into(),
            alpha_pattern: [("layers.*.output".to_owned(), 4.0)].into(),
            ..everywhere.clone()
        };
        let places = Places {
            parts: everywhere.parts.clone(),
            layers: everywhere.layers,
            skip_first: everywhere.skip_first,
        };
        all.extend([
            Relaxation::Lora(everywhere.clone()),
            Relaxation::Lora(by_pattern.clone()),
            Relaxation::Dora(dora::Config(if skip_first { by_pattern } else { everywhere })),
            Relaxation::Mola(several),
        ]);
        all.extend(by_formulas(places));
    }
    all
}

/// Adapters that are formulas over the matrices at `places`.
fn by_formulas(places: Places) -> Vec<Relaxation> {
    let Places { parts, layers, skip_first } = places.clone();
    let inputs = parts.iter().copied().skip(1).step_by(2).collect();
    let (factor, rank) = if skip_first { (2, 3) } else { (0, 2) };
    let ranks = if skip_first { vec![3] } else { vec![3, 0, 2, 1] };
    vec![
        Relaxation::Loha(loha::Config { rank: 3, alpha: 12.0, places: places.clone() }),
        Relaxation::Lokr(lokr::Config { rank, alpha: 4.0, factor, places: places.clone() }),
        Relaxation::Ia3(ia3::Config { parts, inputs, layers, skip_first }),
        Relaxation::Miss(miss::Config { rank: 5, places: places.clone() }),
        Relaxation::Vera(vera::Config {
            rank: 5,
            projection_seed: 3,
            initial: 0.5,
            places: places.clone(),
        }),
        Relaxation::Wara(wara::Config { ranks, alpha: 6.0, places }),
    ]
}
