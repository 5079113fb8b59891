//! Which weights of a plain Llama model make up which parameter of ours. Import, export and their
//! checks all read this.

use std::path::Path;

use formats::{ArchConfig, LayerRole, TensorRole};
use model::params::{ParamPlace, ParamSpec, Part};
use model::{KvMode, ModelConfig, RouterConfig, Sharing, attention, mlp};

use crate::ConvertError;
use crate::error::refused_in;

const OTHER_MODEL: &str = "choose a model that asks for no more";

/// Matrices and norms of a layer and what stands in them, row after row.
const LAYER: [(Part, &[LayerRole]); 7] = [
    (attention::NORM, &[LayerRole::AttentionNorm]),
    (mlp::NORM, &[LayerRole::FfnNorm]),
    (attention::QUERY, &[LayerRole::Query]),
    (attention::KEY_VALUE, &[LayerRole::Key, LayerRole::Value]),
    (attention::OUTPUT, &[LayerRole::Output]),
    (mlp::GATE_UP, &[LayerRole::Gate, LayerRole::Up]),
    (mlp::DOWN, &[LayerRole::Down]),
];

/// The weights of others that stand below each other in a parameter of a dense model; `None` for a
/// parameter that a plain Llama model does not have.
pub(crate) fn roles(spec: &ParamSpec) -> Option<Vec<TensorRole>> {
    let (layer, part) = match spec.place {
        ParamPlace::Embed => return Some(vec![TensorRole::Embed]),
        ParamPlace::FinalNorm => return Some(vec![TensorRole::Norm]),
        ParamPlace::Head => return Some(vec![TensorRole::Head]),
        ParamPlace::Layer { stored, part } => (stored, part),
        ParamPlace::LayerNorm { stored, part, recursion: 0 } => (stored, part),
        _ => return None,
    };
    let (_, roles) = LAYER.iter().find(|(known, _)| *known == part)?;
    Some(roles.iter().map(|role| TensorRole::Layer(layer, *role)).collect())
}

/// Our recipe of the model that `settings` of the file `path` describe.
pub(crate) fn config_of(settings: &ArchConfig, path: &Path) -> Result<ModelConfig, ConvertError> {
    if let Some(scaling) = settings.rope_scaling {
        let expected = "none: rotary frequencies are not rescaled here";
        let found = format!("{scaling:?}");
        return refused_in(path, "rope_scaling", expected, found, OTHER_MODEL);
    }
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
        sharing: Sharing::None,
        recursions: 1,
        share_norms: true,
        router: RouterConfig::FIXED,
        kv: KvMode::RecursionWise,
        ..ModelConfig::default()
    };
    match config.check() {
        Ok(_) => Ok(config),
        Err(error) => {
            let field = format!("model.{}", error.field);
            refused_in(path, &field, error.expected, error.found, OTHER_MODEL)
        }
    }
}

/// The settings of a dense `config`.
pub(crate) fn settings_of(config: &ModelConfig) -> ArchConfig {
    ArchConfig {
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
        rope_scaling: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use model::params::Factor;

    use super::*;

    #[test]
    fn every_parameter_is_made_of_every_role_once() {
        for tie_embeddings in [true, false] {
            let config = ModelConfig { vocab_size: 10, tie_embeddings, ..dense() };
            let settings = settings_of(&config);
            let mut seen = BTreeSet::new();
            for spec in model::table::specs(&config, &config.check().expect("legal")) {
                let parts = roles(&spec).unwrap_or_else(|| panic!("{}", spec.name));
                let count: usize =
                    parts.iter().map(|r| r.shape(&settings).iter().product::<usize>()).sum();
                assert_eq!(count, spec.count(), "{}", spec.name);
                for role in parts {
                    assert_eq!(role.shape(&settings).last(), Some(&spec.shape.1), "{role}");
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
            assert_eq!(roles(&spec), None, "{name}");
        }
    }

    #[test]
    fn settings_and_config_say_the_same() {
        let config = ModelConfig { vocab_size: 10, ..dense() };
        assert_eq!(config_of(&settings_of(&config), Path::new("x")).expect("plain"), config);
        let scaled = ArchConfig {
            rope_scaling: Some(formats::RopeScaling::Linear { factor: 2.0 }),
            ..settings_of(&config)
        };
        let error = config_of(&scaled, Path::new("some/file")).expect_err("scaled").to_string();
        assert!(error.contains("some/file") && error.contains("rope_scaling"), "{error}");
    }

    fn dense() -> ModelConfig {
        let (sharing, router) = (Sharing::None, RouterConfig::FIXED);
        ModelConfig { sharing, recursions: 1, router, layers: 3, ..ModelConfig::default() }
    }
}
