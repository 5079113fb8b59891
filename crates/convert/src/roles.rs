//! Which weights of a plain Llama model make up which parameter of ours. Import, export and their
//! checks all read this.

use std::path::Path;

use formats::{ArchConfig, LayerRole, TensorRole};
use model::{KvMode, ModelConfig, RouterConfig, Sharing};

use crate::ConvertError;
use crate::error::refused_in;

const OTHER_MODEL: &str = "choose a model that asks for no more";

/// Parameters of a layer and what stands in them, row after row.
const LAYER: [(&str, &[LayerRole]); 7] = [
    ("attention_norm.0", &[LayerRole::AttentionNorm]),
    ("ffn_norm.0", &[LayerRole::FfnNorm]),
    ("query", &[LayerRole::Query]),
    ("key_value", &[LayerRole::Key, LayerRole::Value]),
    ("output", &[LayerRole::Output]),
    ("gate_up", &[LayerRole::Gate, LayerRole::Up]),
    ("down", &[LayerRole::Down]),
];

/// The weights of others that stand below each other in the parameter `name` of a dense model; `None`
/// for a parameter that a plain Llama model does not have.
pub fn roles(name: &str) -> Option<Vec<TensorRole>> {
    match name {
        "embed" => return Some(vec![TensorRole::Embed]),
        "norm" => return Some(vec![TensorRole::Norm]),
        "head" => return Some(vec![TensorRole::Head]),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("layers.")?.split_once('.')?;
    let layer = layer.parse().ok()?;
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
                let parts = roles(&spec.name).unwrap_or_else(|| panic!("{}", spec.name));
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
        for name in [
            "router.0.score",
            "layers.0.attention_norm.1",
            "layers.x.query",
            "layers.0.lora",
            "heads",
            "",
        ] {
            assert_eq!(roles(name), None, "{name}");
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
