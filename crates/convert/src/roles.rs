//! Which weights of a plain Llama model make up which parameter of ours. Import, export and their
//! checks all read this.

use std::path::Path;

use formats::{ArchConfig, Experts, LayerRole, TensorRole};
use model::mlp::experts::{SHARED_DOWN_BIAS, SHARED_GATE_UP_BIAS};
use model::params::{ParamPlace, ParamSpec, Part, RouterSite};
use model::{KvMode, MlpConfig, ModelConfig, RouterConfig, Sharing, attention, latent, mlp, norm};

use crate::ConvertError;
use crate::additions::{additions_of, rope_scaling_of, with_additions};
use crate::error::refused_in;
use crate::experts::{experts_of, mlp_of, role_of_router, roles_of_part};

const OTHER_MODEL: &str = "choose a model that asks for no more";

/// Matrices, biases and norms of a layer and what stands in them, row after row.
const LAYER: [(Part, &[LayerRole]); 27] = [
    (latent::QUERY_LATENT, &[LayerRole::QueryLatent]),
    (latent::QUERY_LATENT_NORM, &[LayerRole::QueryLatentNorm]),
    (latent::KEY_VALUE_LATENT, &[LayerRole::KeyValueLatent]),
    (latent::KEY_VALUE_LATENT_NORM, &[LayerRole::KeyValueLatentNorm]),
    (attention::NORM, &[LayerRole::AttentionNorm]),
    (norm::ATTENTION_BIAS, &[LayerRole::AttentionNormBias]),
    (attention::AFTER_NORM, &[LayerRole::AttentionAfterNorm]),
    (norm::ATTENTION_AFTER_BIAS, &[LayerRole::AttentionAfterNormBias]),
    (attention::QUERY_NORM, &[LayerRole::QueryNorm]),
    (attention::KEY_NORM, &[LayerRole::KeyNorm]),
    (attention::SINKS, &[LayerRole::Sinks]),
    (attention::QUERY_BIAS, &[LayerRole::QueryBias]),
    (attention::KEY_VALUE_BIAS, &[LayerRole::KeyBias, LayerRole::ValueBias]),
    (attention::OUTPUT_BIAS, &[LayerRole::OutputBias]),
    (mlp::NORM, &[LayerRole::FfnNorm]),
    (norm::MLP_BIAS, &[LayerRole::FfnNormBias]),
    (mlp::AFTER_NORM, &[LayerRole::FfnAfterNorm]),
    (norm::MLP_AFTER_BIAS, &[LayerRole::FfnAfterNormBias]),
    (mlp::GATE_UP_BIAS, &[LayerRole::GateBias, LayerRole::UpBias]),
    (mlp::DOWN_BIAS, &[LayerRole::DownBias]),
    (SHARED_GATE_UP_BIAS, &[LayerRole::SharedGateBias, LayerRole::SharedUpBias]),
    (SHARED_DOWN_BIAS, &[LayerRole::SharedDownBias]),
    (attention::QUERY, &[LayerRole::Query]),
    (attention::KEY_VALUE, &[LayerRole::Key, LayerRole::Value]),
    (attention::OUTPUT, &[LayerRole::Output]),
    (mlp::GATE_UP, &[LayerRole::Gate, LayerRole::Up]),
    (mlp::DOWN, &[LayerRole::Down]),
];

/// The weights of others that stand below each other in a parameter of a dense model or of one with
/// experts; `None` for a parameter that no model of `settings` has.
pub(crate) fn roles(spec: &ParamSpec, settings: &ArchConfig) -> Option<Vec<TensorRole>> {
    let experts = settings.experts.as_ref();
    let (layer, part) = match spec.place {
        ParamPlace::Embed => return Some(vec![TensorRole::Embed]),
        ParamPlace::FinalNorm => return Some(vec![TensorRole::Norm]),
        ParamPlace::FinalNormBias => return Some(vec![TensorRole::NormBias]),
        ParamPlace::Head => return Some(vec![TensorRole::Head]),
        ParamPlace::HeadBias => return Some(vec![TensorRole::HeadBias]),
        ParamPlace::Layer { stored, part } => (stored, part),
        ParamPlace::LayerNorm { stored, part, recursion: 0 } => (stored, part),
        ParamPlace::Router { site: RouterSite::Layer(layer), .. } if experts.is_some() => {
            return role_of_router(&spec.place).map(|role| vec![TensorRole::Layer(layer, role)]);
        }
        _ => return None,
    };
    if let Some(roles) = experts.and_then(|experts| roles_of_part(part, experts)) {
        return Some(roles.into_iter().map(|role| TensorRole::Layer(layer, role)).collect());
    }
    let latent = settings.additions.latent;
    let roles = match latent {
        Some(latent) if part == attention::QUERY && latent.query > 0 => &[LayerRole::QueryUp][..],
        Some(_) if part == attention::KEY_VALUE => &[LayerRole::KeyValueUp],
        _ => LAYER.iter().find(|(known, _)| *known == part)?.1,
    };
    Some(roles.iter().map(|role| TensorRole::Layer(layer, *role)).collect())
}

/// Our recipe of the model that `settings` of the file `path` describe.
pub(crate) fn config_of(settings: &ArchConfig, path: &Path) -> Result<ModelConfig, ConvertError> {
    let config = ModelConfig {
        vocab_size: settings.vocab,
        width: settings.width,
        layers: settings.layers,
        heads: settings.heads,
        kv_heads: settings.kv_heads,
        head_dim: settings.head_dim,
        ffn: settings.ffn,
        context: settings.context,
        rope_theta: settings.rope_theta,
        norm_eps: settings.norm_eps,
        tie_embeddings: settings.tied,
        mlp: match &settings.experts {
            Some(of) => mlp_of(of, settings),
            None => MlpConfig::default(),
        },
        sharing: Sharing::None,
        recursions: 1,
        share_norms: true,
        router: RouterConfig::FIXED,
        kv: KvMode::RecursionWise,
        ..ModelConfig::default()
    };
    let config = with_additions(config, settings);
    match config.check() {
        Ok(_) => Ok(config),
        Err(error) => {
            let field = format!("model.{}", error.field);
            refused_in(path, &field, error.expected, error.found, OTHER_MODEL)
        }
    }
}

/// The settings of a `config` that is dense or has experts as [`experts_of`] knows them.
pub(crate) fn settings_of(config: &ModelConfig) -> ArchConfig {
    settings_with(config, experts_of(config).flatten())
}

/// The settings of a `config` with these experts.
pub(crate) fn settings_with(config: &ModelConfig, experts: Option<Experts>) -> ArchConfig {
    ArchConfig {
        experts,
        vocab: config.vocab_size,
        width: config.width,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        ffn: config.ffn,
        rope_theta: config.rope_theta,
        norm_eps: config.norm_eps,
        context: config.context,
        tied: config.tie_embeddings,
        rope_scaling: rope_scaling_of(config),
        additions: additions_of(config),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use model::params::Factor;

    use super::*;

    #[test]
    fn every_parameter_is_made_of_every_role_once() {
        for (number, form) in testkit::forms().into_iter().enumerate() {
            let tie_embeddings = number.is_multiple_of(2);
            let mlp = MlpConfig::Dense(mlp::dense::Config {
                bias: !tie_embeddings,
                ..Default::default()
            });
            let plain = ModelConfig { vocab_size: 10, tie_embeddings, mlp, ..dense() };
            let config = form.of(plain);
            let settings = settings_of(&config);
            let mut seen = BTreeSet::new();
            for spec in model::table::specs(&config, &config.check().expect("legal")) {
                let parts = roles(&spec, &settings).unwrap_or_else(|| panic!("{}", spec.name));
                let count: usize =
                    parts.iter().map(|r| r.shape(&settings).iter().product::<usize>()).sum();
                assert_eq!(count, spec.count(), "{}", spec.name);
                for role in parts {
                    let shape = role.shape(&settings);
                    let is_row = spec.shape.0 == 1 && shape.len() == 1;
                    assert!(is_row || shape.last() == Some(&spec.shape.1), "{role}");
                    assert!(seen.insert(role), "{role} twice");
                }
            }
            assert_eq!(seen, TensorRole::all(&settings).collect());
        }
    }

    #[test]
    fn other_parameters_have_no_role() {
        let config = ModelConfig { vocab_size: 10, ..dense() };
        let table = model::table::specs(&config, &config.check().expect("legal"));
        let (stored, part) = (0, attention::QUERY);
        for place in [
            ParamPlace::LayerNorm { stored, part: attention::NORM, recursion: 1 },
            ParamPlace::Layer { stored, part: Part::new("experts") },
            ParamPlace::Adapter { stored, part, recursion: 0, factor: Factor::new("up") },
            ParamPlace::Encoding { recursion: 0 },
        ] {
            let name = place.to_string();
            let spec = ParamSpec { place, ..table[1].clone() };
            assert_eq!(roles(&spec, &settings_of(&config)), None, "{name}");
        }
    }

    #[test]
    fn settings_and_config_say_the_same() {
        let config = ModelConfig { vocab_size: 10, ..dense() };
        assert_eq!(config_of(&settings_of(&config), Path::new("x")).expect("plain"), config);
        let wide = ArchConfig { vocab: 1 << 25, ..settings_of(&config) };
        let error = config_of(&wide, Path::new("some/file")).expect_err("too wide").to_string();
        assert!(error.contains("some/file") && error.contains("vocab_size"), "{error}");
    }

    fn dense() -> ModelConfig {
        let (sharing, router) = (Sharing::None, RouterConfig::FIXED);
        ModelConfig { sharing, recursions: 1, router, layers: 3, ..ModelConfig::default() }
    }
}
