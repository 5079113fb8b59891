//! What a model has beside plain Llama, between the settings of others' files and our config.

use formats::{ArchConfig, LatentAttention, RopeScaling, SlidingWindow};
use model::mlp::dense;
use model::rotary::{Dynamic, Linear, Llama3, LongRope, RotaryScaling, Yarn};
use model::{
    AttentionSettings, LayerSet, MlpActivation, MlpConfig, ModelConfig, Multipliers, NormKind,
    NormPlace, NormSettings, QueryKeyNorm, RotarySettings,
};

/// Our `config` with what `settings` has beside plain Llama. Its MLP stays where it has experts.
pub(crate) fn with_additions(config: ModelConfig, settings: &ArchConfig) -> ModelConfig {
    let of = &settings.additions;
    let mlp = match config.mlp {
        MlpConfig::Dense(_) => MlpConfig::Dense(dense::Config {
            activation: match of.activation {
                formats::HiddenActivation::Silu => MlpActivation::Silu,
                formats::HiddenActivation::GeluTanh => MlpActivation::GeluTanh,
                formats::HiddenActivation::Gelu => MlpActivation::Gelu,
            },
            bias: of.mlp_bias,
        }),
        other => other,
    };
    ModelConfig {
        head_bias: of.head_bias,
        attention: AttentionSettings {
            bias: of.qkv_bias,
            output_bias: of.output_bias,
            query_key_norm: match of.query_key_norm {
                formats::HeadNorm::None => QueryKeyNorm::None,
                formats::HeadNorm::Head => QueryKeyNorm::Head,
                formats::HeadNorm::HeadTurned => QueryKeyNorm::HeadTurned,
                formats::HeadNorm::Width => QueryKeyNorm::Width,
            },
            clip: of.clip.unwrap_or(0.0),
            sinks: of.sinks,
            window: of.window.as_ref().map_or(0, |window| window.size),
            window_layers: of.window.as_ref().map_or(LayerSet::All, |window| {
                LayerSet::of(settings.layers, |block| window.blocks.contains(&block))
            }),
            scale: of.score_scale.unwrap_or(0.0),
            soft_cap: of.score_cap.unwrap_or(0.0),
            ..latents_of(settings)
        },
        rotary: RotarySettings {
            share: of.rotary_share.unwrap_or(1.0),
            layers: LayerSet::of(settings.layers, |block| !of.without_rotary.contains(&block)),
            scaling: settings.rope_scaling.clone().map_or_else(RotaryScaling::default, scaling_of),
            window_theta: of.window_theta.unwrap_or(0.0),
        },
        norms: NormSettings {
            kind: if of.layer_norm { NormKind::Layer } else { NormKind::Rms },
            place: match of.norm_place {
                formats::NormPosition::Before => NormPlace::Before,
                formats::NormPosition::After => NormPlace::After,
                formats::NormPosition::Both => NormPlace::Both,
            },
            plus_one: of.norm_plus_one,
        },
        multipliers: Multipliers {
            embedding: of.embedding_multiplier.unwrap_or(1.0),
            residual: of.residual_multiplier.unwrap_or(1.0),
            logits_divisor: of.logits_divisor.unwrap_or(1.0),
            logit_cap: of.logit_cap.unwrap_or(0.0),
        },
        mlp,
        ..config
    }
}

/// The latents of attention, among settings that are otherwise those of plain attention.
fn latents_of(settings: &ArchConfig) -> AttentionSettings {
    let plain = AttentionSettings::default();
    let Some(latent) = settings.additions.latent else { return plain };
    AttentionSettings {
        kv_rank: latent.key_value,
        query_rank: latent.query,
        rope_dim: latent.turned,
        value_dim: if latent.value == settings.head_dim { 0 } else { latent.value },
        latent_scale: latent.scale,
        ..plain
    }
}

fn scaling_of(scaling: RopeScaling) -> RotaryScaling {
    match scaling {
        RopeScaling::Linear { factor } => RotaryScaling::Linear(Linear { factor }),
        RopeScaling::Llama3 { factor, low, high, original_context } => {
            RotaryScaling::Llama3(Llama3 { factor, low, high, original_context })
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
            attention_factor,
            mscale,
            mscale_all_dim,
            truncate,
        } => RotaryScaling::Yarn(Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
            attention_factor: attention_factor.unwrap_or(0.0),
            mscale: mscale.unwrap_or(0.0),
            mscale_all_dim: mscale_all_dim.unwrap_or(0.0),
            truncate,
        }),
        RopeScaling::Dynamic { factor, original_context } => {
            RotaryScaling::Dynamic(Dynamic { factor, original_context })
        }
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            original_context,
            long_context,
            attention_factor,
        } => RotaryScaling::LongRope(LongRope {
            short_factor,
            long_factor,
            original_context,
            long_context,
            attention_factor: attention_factor.unwrap_or(0.0),
        }),
    }
}

/// What our `config`, in which nothing is shared, has beside plain Llama.
pub(crate) fn additions_of(config: &ModelConfig) -> formats::Additions {
    let (attention, rotary) = (&config.attention, &config.rotary);
    let (norms, multipliers) = (&config.norms, &config.multipliers);
    let (slides, turns) = (&attention.window_layers, &rotary.layers);
    let windows: Vec<usize> = (0..config.layers).filter(|&block| slides.has(block)).collect();
    let dense = match &config.mlp {
        MlpConfig::Dense(dense) => dense.clone(),
        MlpConfig::Experts(experts) => {
            dense::Config { bias: experts.dense_biases, ..dense::Config::default() }
        }
    };
    formats::Additions {
        qkv_bias: attention.bias,
        output_bias: attention.output_bias,
        mlp_bias: dense.bias,
        query_key_norm: match attention.query_key_norm {
            QueryKeyNorm::None => formats::HeadNorm::None,
            QueryKeyNorm::Head => formats::HeadNorm::Head,
            QueryKeyNorm::HeadTurned => formats::HeadNorm::HeadTurned,
            QueryKeyNorm::Width => formats::HeadNorm::Width,
        },
        clip: given(attention.clip, 0.0),
        sinks: attention.sinks,
        window: (attention.window > 0 && !windows.is_empty())
            .then_some(SlidingWindow { size: attention.window, blocks: windows }),
        score_scale: given(attention.scale, 0.0),
        score_cap: given(attention.soft_cap, 0.0),
        rotary_share: given(rotary.share, 1.0),
        without_rotary: (0..config.layers).filter(|&block| !turns.has(block)).collect(),
        window_theta: given(rotary.window_theta, 0.0),
        norm_place: match norms.place {
            NormPlace::Before => formats::NormPosition::Before,
            NormPlace::After => formats::NormPosition::After,
            NormPlace::Both => formats::NormPosition::Both,
        },
        norm_plus_one: norms.plus_one,
        layer_norm: norms.kind == NormKind::Layer,
        head_bias: config.head_bias,
        activation: match dense.activation {
            MlpActivation::Silu => formats::HiddenActivation::Silu,
            MlpActivation::GeluTanh => formats::HiddenActivation::GeluTanh,
            MlpActivation::Gelu => formats::HiddenActivation::Gelu,
        },
        embedding_multiplier: given(multipliers.embedding, 1.0),
        residual_multiplier: given(multipliers.residual, 1.0),
        logits_divisor: given(multipliers.logits_divisor, 1.0),
        logit_cap: given(multipliers.logit_cap, 0.0),
        latent: attention.latent().map(|latent| LatentAttention {
            query: latent.query,
            key_value: latent.key_value,
            turned: latent.turned,
            value: attention.value_dim(config.head_dim),
            scale: attention.latent_scale,
            neighbours_turn: true,
        }),
    }
}

/// A number that is not the one that stands for none.
fn given(x: f64, none: f64) -> Option<f64> {
    (x != none).then_some(x)
}

/// Factors of all pairs: an empty list is one of ones.
fn whole(list: &[f64], pairs: usize) -> Vec<f64> {
    if list.is_empty() { vec![1.0; pairs] } else { list.to_vec() }
}

/// How our `config` rescales rotary frequencies.
pub(crate) fn rope_scaling_of(config: &ModelConfig) -> Option<RopeScaling> {
    match &config.rotary.scaling {
        RotaryScaling::Unscaled(_) => None,
        RotaryScaling::Linear(Linear { factor }) => Some(RopeScaling::Linear { factor: *factor }),
        RotaryScaling::Llama3(of) => Some(RopeScaling::Llama3 {
            factor: of.factor,
            low: of.low,
            high: of.high,
            original_context: of.original_context,
        }),
        RotaryScaling::Yarn(of) => Some(RopeScaling::Yarn {
            factor: of.factor,
            beta_fast: of.beta_fast,
            beta_slow: of.beta_slow,
            original_context: of.original_context,
            attention_factor: given(of.attention_factor, 0.0),
            mscale: given(of.mscale, 0.0),
            mscale_all_dim: given(of.mscale_all_dim, 0.0),
            truncate: of.truncate,
        }),
        RotaryScaling::Dynamic(of) => {
            Some(RopeScaling::Dynamic { factor: of.factor, original_context: of.original_context })
        }
        RotaryScaling::LongRope(of) => {
            let pairs = config.turned() / 2;
            Some(RopeScaling::LongRope {
                short_factor: whole(&of.short_factor, pairs),
                long_factor: whole(&of.long_factor, pairs),
                original_context: of.original_context,
                long_context: of.long_context,
                attention_factor: given(of.attention_factor, 0.0),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::{config_of, settings_of};
    use model::{RouterConfig, Sharing};

    /// Every addition at once goes to settings of files and comes back as it was.
    #[test]
    fn additions_go_out_and_come_back() {
        let plain = ModelConfig {
            vocab_size: 10,
            layers: 3,
            sharing: Sharing::None,
            recursions: 1,
            router: RouterConfig::FIXED,
            ..ModelConfig::default()
        };
        let window_layers = LayerSet::These(vec![1]);
        let full = ModelConfig {
            attention: AttentionSettings {
                bias: true,
                output_bias: true,
                query_key_norm: QueryKeyNorm::Width,
                clip: 2.0,
                sinks: true,
                window: 7,
                window_layers,
                scale: 0.3,
                soft_cap: 5.0,
                ..AttentionSettings::default()
            },
            rotary: RotarySettings {
                share: 0.5,
                layers: LayerSet::These(vec![0, 2]),
                scaling: RotaryScaling::Yarn(Yarn {
                    mscale: 0.7,
                    mscale_all_dim: 1.0,
                    ..Yarn::default()
                }),
                window_theta: 100.0,
            },
            head_bias: true,
            norms: NormSettings { kind: NormKind::Layer, place: NormPlace::Both, plus_one: true },
            multipliers: Multipliers {
                embedding: 2.0,
                residual: 0.4,
                logits_divisor: 3.0,
                logit_cap: 20.0,
            },
            mlp: MlpConfig::Dense(dense::Config { activation: MlpActivation::Gelu, bias: true }),
            ..plain.clone()
        };
        let latent = ModelConfig {
            kv_heads: plain.heads,
            attention: AttentionSettings {
                kv_rank: 9,
                query_rank: 7,
                rope_dim: 4,
                value_dim: 5,
                latent_scale: 1.5,
                scale: 0.3,
                ..AttentionSettings::default()
            },
            ..plain.clone()
        };
        for config in [plain, full, latent] {
            let settings = settings_of(&config);
            let back = config_of(&settings, std::path::Path::new("x")).expect("legal");
            assert_eq!(back, config);
        }
    }
}
