//! Banks of experts as passes take them apart: which layers have experts, the matrices of one, and
//! a layer with some of its experts.

use checkpoint::Misfit;
use model::layout::LayerPlan;
use model::mlp::experts::{
    self, EXPERTS_DOWN, EXPERTS_DOWN_BIAS, EXPERTS_GATE_UP, EXPERTS_GATE_UP_BIAS,
};
use model::params::{ParamPlace, ParamSpec, Part};
use model::table::{buffers, specs};
use model::{ExpertRouterConfig, MlpConfig, Model, ModelConfig, RouterState};

use crate::error::refused;
use crate::{ModelChange, ShrinkError};

/// The weights of a bank and what belongs to it, an expert after the other.
const PARTS: [Part; 4] = [EXPERTS_GATE_UP, EXPERTS_DOWN, EXPERTS_GATE_UP_BIAS, EXPERTS_DOWN_BIAS];

/// The settings of a model's experts.
///
/// # Errors
/// A model without experts.
pub(crate) fn experts_of(config: &ModelConfig) -> Result<&experts::Config, ShrinkError> {
    match &config.mlp {
        MlpConfig::Experts(experts) if experts.latent > 0 || experts.modulated => {
            let found = match experts.modulated {
                true => "experts that scale and shift the row of one MLP (mlp.modulated)",
                false => "experts that read a projection of the row (mlp.latent)",
            };
            let next = "choose a pass for layers, such as wanda, layers or recursions";
            refused("the checkpoint: mlp", "experts with matrices of the row", found, next)
        }
        MlpConfig::Experts(experts) => Ok(experts),
        other => {
            let found = format!("\"{}\"", other.kind());
            let next = "choose a pass for dense models, such as slim, wanda or layers";
            refused("the checkpoint: mlp", "\"experts\": a model with experts", found, next)
        }
    }
}

/// Refuses routers that do not choose by scores: with another number of experts they would send
/// rows to experts that never met such rows.
pub(crate) fn chosen_by_scores(config: &ModelConfig) -> Result<(), ShrinkError> {
    let router = &experts_of(config)?.router;
    if !is_drawn(router) {
        return Ok(());
    }
    let expected = "a router that scores experts: \"top_k\", \"top_p\", \"expert_choice\" or \
                    \"sparse_mixer\"; with fewer experts a hash or dice send rows to others than \
                    those that learned them";
    let found = format!("\"{}\"", router.kind());
    refused("the checkpoint: mlp.router", expected, found, "slim the experts instead")
}

/// Whether numbers of layers and rows decide, and no weights.
fn is_drawn(router: &ExpertRouterConfig) -> bool {
    matches!(router, ExpertRouterConfig::Hash(_) | ExpertRouterConfig::Random(_))
}

/// Refuses models whose routers over experts choose by where their layer stands: by its number, or
/// by what the layers before it left in what rows carry.
pub(crate) fn chosen_anywhere(config: &ModelConfig, next: &'static str) -> Result<(), ShrinkError> {
    let MlpConfig::Experts(experts) = &config.mlp else { return Ok(()) };
    let router = &experts.router;
    if is_drawn(router) {
        let expected = "a router that scores experts: \"top_k\", \"top_p\", \"expert_choice\" or \
                        \"sparse_mixer\"; the number of a layer decides what a hash or dice \
                        choose, and layers get other numbers here";
        let found = format!("\"{}\"", router.kind());
        return refused("the checkpoint: mlp.router", expected, found, next);
    }
    if let Some((_, width)) = experts.router.settings().carried() {
        let expected = "0: routers read what those of earlier layers left, and here other layers \
                        are before them";
        return refused("the checkpoint: mlp.router.memory", expected, width, next);
    }
    Ok(())
}

/// The stored layers with experts, and how many compute in each.
pub(crate) fn layers(config: &ModelConfig) -> Result<Vec<(usize, usize)>, ShrinkError> {
    let experts = experts_of(config)?;
    let plan = config.check()?;
    let all = (0..plan.stored).filter(|&stored| experts.reaches(stored));
    Ok(all.map(|stored| (stored, experts.experts(stored).computing)).collect())
}

/// `config` with `count` experts in some layers.
pub(crate) fn with_counts(
    config: &ModelConfig,
    new: &[(usize, usize)],
) -> Result<ModelConfig, ShrinkError> {
    let mut counts = layers(config)?;
    for (stored, count) in &mut counts {
        if let Some((_, changed)) = new.iter().find(|(layer, _)| layer == stored) {
            *count = *changed;
        }
    }
    let counts: Vec<usize> = counts.into_iter().map(|(_, count)| count).collect();
    let mut experts = experts_of(config)?.clone();
    let equal = counts.iter().all(|count| *count == counts[0]);
    if equal {
        (experts.count, experts.counts) = (counts[0], Vec::new());
    } else {
        (experts.count, experts.counts) = (experts::Config::default().count, counts);
    }
    Ok(ModelConfig { mlp: MlpConfig::Experts(experts), ..config.clone() })
}

/// Refuses numbers of experts with which the router cannot choose.
pub(crate) fn check_target(
    config: &ModelConfig,
    new: &[(usize, usize)],
) -> Result<(), ShrinkError> {
    let Err(error) = with_counts(config, new)?.check() else { return Ok(()) };
    let least = new.iter().map(|(_, count)| *count).min().unwrap_or(0);
    let what = format!("the target: {least} experts in a layer");
    let next = "choose a smaller share";
    Err(Misfit::new(
        what,
        "numbers of experts that the router can choose among",
        error.to_string(),
        next,
    )
    .into())
}

/// `config` without the loss over the experts of all layers together, which only a model with equal
/// numbers of experts has: on the way from layer to layer numbers differ.
pub(crate) fn unpooled(config: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    if let MlpConfig::Experts(experts) = &mut config.mlp {
        match &mut experts.router {
            ExpertRouterConfig::TopK(router) => router.pooled_weight = 0.0,
            ExpertRouterConfig::SparseMixer(router) => router.pooled_weight = 0.0,
            _ => {}
        }
    }
    config
}

/// Gives a model whose numbers of experts are final the router that it began with.
///
/// # Errors
/// Numbers of experts that this router does not go with.
pub(crate) fn with_router(
    model: &Model,
    router: &ExpertRouterConfig,
) -> Result<ModelChange, ShrinkError> {
    let mut change = ModelChange::default();
    let mut experts = experts_of(model.config())?.clone();
    if experts.router != *router {
        experts.router = router.clone();
        let config = ModelConfig { mlp: MlpConfig::Experts(experts), ..model.config().clone() };
        config.check()?;
        change.config = Some(config);
    }
    Ok(change)
}

/// The least number of experts of layer `stored` that its router can choose among.
pub(crate) fn least(config: &ModelConfig, stored: usize, count: usize) -> usize {
    let config = unpooled(config);
    let works = |n: &usize| {
        with_counts(&config, &[(stored, *n)]).is_ok_and(|config| config.check().is_ok())
    };
    (1..count).find(works).unwrap_or(count)
}

/// What stands at `place`.
pub(crate) fn weight(model: &Model, place: &ParamPlace) -> Option<Vec<f32>> {
    let found = model.weights().iter().find(|(spec, _)| spec.place == *place);
    found.map(|(_, weight)| weight.read())
}

/// The experts of a layer, each with gate and up `[2 f, d]` and down `[d, f]`, and biases if there
/// are any, in the order of `PARTS`.
#[derive(Clone, Debug)]
pub(crate) struct Bank {
    pub(crate) stored: usize,
    /// For each part its numbers of each expert.
    pub(crate) parts: Vec<(Part, Vec<Vec<f32>>)>,
}

impl Bank {
    /// The bank of stored layer `stored`, of `count` experts.
    pub(crate) fn of(model: &Model, stored: usize, count: usize) -> Self {
        let parts = PARTS.into_iter().filter_map(|part| {
            let values = weight(model, &ParamPlace::Layer { stored, part })?;
            let each = (values.len() / count).max(1);
            Some((part, values.chunks_exact(each).map(<[f32]>::to_vec).collect()))
        });
        Self { stored, parts: parts.collect() }
    }

    /// All numbers of an expert, one after the other.
    pub(crate) fn flat(&self, expert: usize) -> Vec<f32> {
        self.parts.iter().flat_map(|(_, all)| all[expert].iter().copied()).collect()
    }

    /// Its weights with the experts `keep` alone.
    pub(crate) fn kept(&self, keep: &[usize]) -> Vec<(ParamPlace, Vec<f32>)> {
        let mut weights = Vec::new();
        for (part, all) in &self.parts {
            let place = ParamPlace::Layer { stored: self.stored, part: *part };
            let values = keep.iter().flat_map(|&expert| all[expert].iter().copied());
            weights.push((place, values.collect()));
        }
        weights
    }
}

/// The entries of the tables of two configs at one layer's routers, old beside new.
fn router_entries(
    old: &ModelConfig,
    new: &ModelConfig,
    plan: &LayerPlan,
    stored: usize,
) -> Vec<(ParamSpec, ParamSpec)> {
    let (old, new) = (specs(old, plan), specs(new, plan));
    let old = old.into_iter().filter(|spec| is_of_router(spec, stored));
    old.zip(new.into_iter().filter(|spec| is_of_router(spec, stored))).collect()
}

/// Whether a weight is one of the routers of stored layer `stored`.
pub(crate) fn is_of_router(spec: &ParamSpec, stored: usize) -> bool {
    spec.place.is_router() && spec.place.layer() == Some(stored)
}

/// Layer `stored` with the experts `keep` out of `bank`: their matrices, their rows of the router,
/// and what the router learned outside of gradients about them. Zero-computation experts stay. If
/// layers have other numbers for now, the model is without its pooled loss until [`with_router`].
pub(crate) fn keep(
    model: &Model,
    state: &RouterState,
    bank: &Bank,
    keep: &[usize],
) -> Result<ModelChange, ShrinkError> {
    let (config, stored) = (model.config(), bank.stored);
    let was = experts_of(config)?.experts(stored);
    let mut target = with_counts(config, &[(stored, keep.len())])?;
    if target.check().is_err() {
        target = unpooled(&target);
    }
    let plan = target.check()?;
    let outputs: Vec<usize> = keep.iter().copied().chain(was.computing..was.all()).collect();
    let mut change = ModelChange::default();
    change.weights.extend(bank.kept(keep));
    for (old, new) in router_entries(config, &target, &plan, stored) {
        if old.shape == new.shape {
            continue;
        }
        let values = weight(model, &old.place).unwrap_or_default();
        let chosen = if old.shape.0 == new.shape.0 {
            values
                .chunks_exact(old.shape.1)
                .flat_map(|row| outputs.iter().map(|&e| row[e]))
                .collect()
        } else {
            outputs
                .iter()
                .flat_map(|&e| values[e * old.shape.1..][..old.shape.1].to_vec())
                .collect()
        };
        change.weights.insert(old.place, chosen);
    }
    let mut learned = state.clone();
    for (old, new) in buffers(config).iter().zip(&buffers(&target)) {
        if old.length != new.length
            && let Some(values) = state.get(&old.name)
        {
            learned.set(&new.name, outputs.iter().map(|&e| values[e]).collect());
        }
    }
    change.state = (learned != *state).then_some(learned);
    change.config = (target != *config).then_some(target);
    Ok(change)
}

/// How many of `count` stay where `share` goes: at least one.
pub(crate) fn staying(count: usize, share: f64) -> usize {
    count - ((count as f64 * share).round() as usize).min(count.saturating_sub(1))
}
