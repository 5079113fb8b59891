//! Adapters of every kind, for the models of tests.

use std::sync::OnceLock;

use model::MlpConfig;
use model::adapters::{
    Places, Relaxation, dora, dynmole, ia3, loha, lokr, lora, miss, mola, mos, vera, wara,
};

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
        // Such that some rows take all adapters, some two, and some one.
        let unsure = dynmole::Config {
            adapter: lora::Config {
                from_token: if skip_first { 20 } else { 0 },
                ..everywhere.clone()
            },
            experts: vec![3],
            entropy_index: if skip_first { 1.0 } else { 2.0 },
            threshold: if skip_first { 0.7 } else { 0.4 },
            top_p: 0.8,
            top_k: 1,
            ..dynmole::Config::default()
        };
        // Over the root of the rank, about the scale of the others.
        let by_pattern = lora::Config {
            rank_stabilized: true,
            alpha: 7.0,
            rank_pattern: [("layers.*.query".to_owned(), 2)].into(),
            alpha_pattern: [("layers.*.output".to_owned(), 4.0)].into(),
            // Of the tokens of small models about a half.
            from_token: if skip_first { 0 } else { 20 },
            ..everywhere.clone()
        };
        let places = Places {
            parts: everywhere.parts.clone(),
            layers: everywhere.layers,
            skip_first: everywhere.skip_first,
            from_token: if skip_first { 20 } else { 0 },
        };
        all.extend([
            Relaxation::Lora(everywhere.clone()),
            Relaxation::Lora(by_pattern.clone()),
            Relaxation::Dora(dora::Config(if skip_first { by_pattern } else { everywhere })),
            Relaxation::Mola(several),
            Relaxation::Dynmole(unsure),
        ]);
        all.extend(by_formulas(places, mlp));
    }
    all
}

/// Adapters that are formulas over the matrices at `places`.
fn by_formulas(places: Places, mlp: &MlpConfig) -> Vec<Relaxation> {
    let mut everywhere = places.parts.clone();
    if mlp.kind() != "dense" {
        everywhere.retain(|part| Places::default().parts.contains(part));
    }
    let Places { parts, layers, skip_first, from_token } = places.clone();
    let inputs = parts.iter().copied().skip(1).step_by(2).collect();
    let (factor, rank) = if skip_first { (2, 3) } else { (0, 2) };
    let ranks = if skip_first { vec![3] } else { vec![3, 0, 2, 1] };
    vec![
        Relaxation::Loha(loha::Config { rank: 3, alpha: 12.0, places: places.clone() }),
        Relaxation::Lokr(lokr::Config { rank, alpha: 4.0, factor, places: places.clone() }),
        Relaxation::Ia3(ia3::Config { parts, inputs, layers, skip_first, from_token }),
        Relaxation::Miss(miss::Config { rank: 5, places: places.clone() }),
        Relaxation::Mos(mos::Config {
            rank: 3,
            alpha: 6.0,
            budget: 2,
            own_rank: if skip_first { 0 } else { 1 },
            shards: 2 + factor,
            selection_seed: 3,
            // A pool needs matrices of one shape in every layer.
            places: Places { parts: everywhere, ..places.clone() },
        }),
        Relaxation::Vera(vera::Config {
            rank: 5,
            projection_seed: 3,
            initial: 0.5,
            places: places.clone(),
        }),
        Relaxation::Wara(wara::Config { ranks, alpha: 6.0, places }),
    ]
}
