//! Which weights of a plain Llama model make up which parameter of ours. Import, export and their
//! checks all read this.

use std::path::Path;

use formats::{ArchConfig, LayerRole, TensorRole};
use model::adapters::Part;
use model::params::ParamSpec;
use model::{KvMode, ModelConfig, RouterConfig, Sharing};

use crate::ConvertError;
use crate::error::refused_in;
use crate::known::{self, KnownParam, Norm};

const OTHER_MODEL: &str = "choose a model that asks for no more";

/// The weights of others that stand below each other in a parameter of a dense model; `None` for a
/// parameter that a plain Llama model does not have.
pub(crate) fn roles(spec: &ParamSpec) -> Option<Vec<TensorRole>> {
    let (layer, roles): (usize, &[LayerRole]) = match known::of(spec)? {
        KnownParam::Embed => return Some(vec![TensorRole::Embed]),
        KnownParam::LastNorm => return Some(vec![TensorRole::Norm]),
        KnownParam::Head => return Some(vec![TensorRole::Head]),
        KnownParam::Matrix { stored, part } => (stored, of_matrix(part)),
        KnownParam::Norm { stored, recursion: 0, norm: Norm::Attention } => {
            (stored, &[LayerRole::AttentionNorm])
        }
        KnownParam::Norm { stored, recursion: 0, norm: Norm::FeedForward } => {
            (stored, &[LayerRole::FfnNorm])
        }
        KnownParam::Norm { .. } | KnownParam::Adapter | KnownParam::Router => return None,
    };
    Some(roles.iter().map(|role| TensorRole::Layer(layer, *role)).collect())
}

/// What stands in a matrix of a layer, row after row.
fn of_matrix(part: Part) -> &'static [LayerRole] {
    match part {
        Part::Query => &[LayerRole::Query],
        Part::KeyValue => &[LayerRole::Key, LayerRole::Value],
        Part::Output => &[LayerRole::Output],
        Part::GateUp => &[LayerRole::Gate, LayerRole::Up],
        Part::Down => &[LayerRole::Down],
    }
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
        router: RouterConfig::Fixed,
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

    use super::*;

    #[test]
    fn every_parameter_is_made_of_every_role_once() {
        for tie_embeddings in [true, false] {
            let config = ModelConfig { vocab_size: 10, tie_embeddings, ..dense() };
            let settings = settings_of(&config);
            let mut seen = BTreeSet::new();
            for spec in model::params::specs(&config, &config.check().expect("legal")) {
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
        let table = model::params::specs(&config, &config.check().expect("legal"));
        for name in [
            "router.0.score",
            "layers.0.attention_norm.1",
            "layers.x.query",
            "layers.0.lora",
            "heads",
            "",
        ] {
            let spec = ParamSpec { name: name.into(), ..table[1].clone() };
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
        let (sharing, router) = (Sharing::None, RouterConfig::Fixed);
        ModelConfig { sharing, recursions: 1, router, layers: 3, ..ModelConfig::default() }
    }
}
