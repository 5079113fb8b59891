//! The table of a model: every weight that it stores and every buffer of its routers. Building,
//! counting, costs, saving, loading, conversion and the optimizer read it; shapes are written
//! nowhere else. What an entry says is in `params.rs`.

use crate::attention;
use crate::config::ModelConfig;
use crate::kv::KvMode;
use crate::latent;
use crate::layout::LayerPlan;
use crate::matrices;
use crate::mlp;
use crate::norm::{ATTENTION_AFTER_BIAS, ATTENTION_BIAS, MLP_AFTER_BIAS, MLP_BIAS};
use crate::params::{BufferSpec, Group, Init, ParamPlace, ParamSpec, Part, RouterSite};

/// The table of `config`, which must have passed its check with this `plan`.
pub fn specs(config: &ModelConfig, plan: &LayerPlan) -> Vec<ParamSpec> {
    let sizes = config.sizes();
    let mut table = vec![vocabulary(config, ParamPlace::Embed)];
    for stored in 0..plan.stored {
        table.extend(norms(config, plan, stored));
        table.extend(linears(config, stored));
        table.extend(attention::vectors(&config.attention, &sizes, stored));
        table.extend(config.mlp.settings().vectors(&sizes, stored));
        table.extend(config.mlp.settings().routers(&sizes, stored));
    }
    table.extend(config.mlp.settings().shared_routers(&sizes));
    table.extend(config.relax.specs(&sizes, plan, &config.mlp));
    table.extend(config.router.settings().specs(&sizes, RouterSite::Depth));
    let (last, init) = (ParamPlace::FinalNorm, config.norms.init());
    table.push(ParamSpec::new(last, (1, config.width), init, Group::Norm));
    if !config.norms.kind.is_rms() {
        let (last, shape) = (ParamPlace::FinalNormBias, (1, config.width));
        table.push(ParamSpec::new(last, shape, Init::Zeros, Group::Norm));
    }
    if !config.tie_embeddings {
        table.push(vocabulary(config, ParamPlace::Head));
    }
    if config.head_bias {
        let shape = (1, config.vocab_size);
        table.push(ParamSpec::new(ParamPlace::HeadBias, shape, Init::Zeros, Group::Norm));
    }
    table
}

/// A matrix `[vocabulary, d]`: the embedding or the head.
fn vocabulary(config: &ModelConfig, place: ParamPlace) -> ParamSpec {
    let shape = (config.vocab_size, config.width);
    ParamSpec::new(place, shape, Init::Normal(config.init_std), Group::Embedding)
}

/// The matrices of stored layer `stored`: attention's, then the MLP's.
pub fn linears(config: &ModelConfig, stored: usize) -> Vec<ParamSpec> {
    matrices::of_layer(&config.sizes(), &config.mlp, stored)
}

/// The norms of a layer and their biases, each with one weight for all its uses or one for each.
fn norms(config: &ModelConfig, plan: &LayerPlan, stored: usize) -> Vec<ParamSpec> {
    let init = config.norms.init();
    let mut table = Vec::new();
    for (part, width) in norm_parts(config) {
        let bias = norm_bias(config, part).map(|bias| (bias, Init::Zeros));
        for (part, init) in [(part, init)].into_iter().chain(bias) {
            for recursion in 0..norm_count(config, plan, stored, part) {
                let place = ParamPlace::LayerNorm { stored, part, recursion };
                table.push(ParamSpec::new(place, (1, width), init, Group::Norm));
            }
        }
    }
    table
}

/// The norms of every layer and their widths.
fn norm_parts(config: &ModelConfig) -> Vec<(Part, usize)> {
    let mut parts = Vec::new();
    let places = [
        (config.norms.before(), [attention::NORM, mlp::NORM]),
        (config.norms.after(), [attention::AFTER_NORM, mlp::AFTER_NORM]),
    ];
    for (_, two) in places.into_iter().filter(|(there, _)| *there) {
        parts.extend(two.map(|part| (part, config.width)));
    }
    let of_heads = [(attention::QUERY_NORM, config.heads), (attention::KEY_NORM, config.kv_heads)];
    for (part, heads) in of_heads {
        let normed = config.attention.normed(heads, config.head_dim);
        parts.extend(normed.map(|(_, width)| (part, width)));
    }
    parts.extend(config.attention.latent().into_iter().flat_map(latent::norms));
    parts
}

/// The bias of the norm `part` of a layer, where it has one.
pub(crate) fn norm_bias(config: &ModelConfig, part: Part) -> Option<Part> {
    let biases = [
        (attention::NORM, ATTENTION_BIAS),
        (attention::AFTER_NORM, ATTENTION_AFTER_BIAS),
        (mlp::NORM, MLP_BIAS),
        (mlp::AFTER_NORM, MLP_AFTER_BIAS),
    ];
    let known = biases.into_iter().find(|(norm, _)| *norm == part && !config.norms.kind.is_rms());
    known.map(|(_, bias)| bias)
}

/// How many weights a norm of stored layer `stored` has: one for all uses, or one for each. Keys
/// that only the first use makes are normed there alone.
pub(crate) fn norm_count(
    config: &ModelConfig,
    plan: &LayerPlan,
    stored: usize,
    part: Part,
) -> usize {
    let of_keys = part == attention::KEY_NORM || part == latent::KEY_VALUE_LATENT_NORM;
    let first_alone = of_keys && config.kv == KvMode::Shared;
    if config.share_norms || first_alone { 1 } else { plan.uses_of(stored).len() }
}

/// The buffers of `config`.
pub fn buffers(config: &ModelConfig) -> Vec<BufferSpec> {
    let sizes = config.sizes();
    let mut table = config.router.settings().buffers(&sizes, RouterSite::Depth);
    table.extend(config.mlp.settings().buffers(&sizes));
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::preset;

    fn table(config: &ModelConfig) -> Vec<ParamSpec> {
        specs(config, &config.check().expect("legal"))
    }

    #[test]
    fn names_are_those_of_stored_checkpoints() {
        let config = ModelConfig { vocab_size: 10, ..preset("cpu-1m-mor3").expect("a preset") };
        let names: Vec<String> = table(&config).into_iter().map(|spec| spec.name).collect();
        for name in
            ["embed", "layers.0.attention_norm.0", "layers.2.gate_up", "router.1.score", "norm"]
        {
            assert!(names.iter().any(|known| known == name), "{name} is not in {names:?}");
        }
        let place = ParamPlace::Router {
            site: RouterSite::Layer(4),
            auxiliary: true,
            recursion: Some(2),
            factor: "up",
        };
        assert_eq!(place.to_string(), "layers.4.auxiliary_router.2.up");
    }

    #[test]
    fn no_name_stands_twice() {
        for name in crate::presets::names() {
            let config = ModelConfig { vocab_size: 10, ..preset(&name).expect("listed") };
            let table = table(&config);
            let names: std::collections::BTreeSet<&str> =
                table.iter().map(|spec| spec.name.as_str()).collect();
            assert_eq!(names.len(), table.len(), "{name}");
        }
    }
}
