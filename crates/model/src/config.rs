//! The recipe of a model, and every reason why one can be impossible.

use serde::{Deserialize, Serialize};

use crate::adapters::Relaxation;
use crate::attention;
use crate::attention_settings::AttentionSettings;
use crate::error::{ConfigError, refuse};
use crate::kv::KvMode;
use crate::layer_set::LayerSet;
use crate::layout::{LayerPlan, Sharing};
use crate::matrices;
use crate::mlp::MlpConfig;
use crate::mlp::dense::is_default;
use crate::multipliers::Multipliers;
use crate::norm::NormSettings;
use crate::params::{BufferSpec, Part, RouterSite};
use crate::rotary::RotarySettings;
use crate::routers::RouterConfig;
use crate::sizes::Sizes;

/// A decoder of the Llama family, with or without shared layers and a depth router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelConfig {
    /// Tokens in the vocabulary; 0 in a recipe means: as the data has.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Layers that a row of full depth goes through.
    pub layers: usize,
    /// Heads of the queries; `head_dim` columns each.
    pub heads: usize,
    /// Key/value heads; `heads` must be a multiple.
    pub kv_heads: usize,
    /// Width of a head of queries and keys; even, but for latent attention.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Longest sequence the model is meant for.
    pub context: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tie_embeddings: bool,
    /// Whether a number is added to the logit of each token (Phi-3.5-MoE).
    #[serde(skip_serializing_if = "is_default")]
    pub head_bias: bool,
    /// Standard deviation of fresh weights.
    pub init_std: f64,
    /// Biases, norms, windows, scores and latents of attention.
    #[serde(skip_serializing_if = "is_default")]
    pub attention: AttentionSettings,
    /// Where rotary positions are, and at which rates they turn.
    #[serde(skip_serializing_if = "is_default")]
    pub rotary: RotarySettings,
    /// Where norms stand, and what their weights are.
    #[serde(skip_serializing_if = "is_default")]
    pub norms: NormSettings,
    /// Fixed factors of the stream and of logits.
    #[serde(skip_serializing_if = "is_default")]
    pub multipliers: Multipliers,
    /// What a layer does to each row on its own, behind attention.
    pub mlp: MlpConfig,
    /// How layers share weights.
    pub sharing: Sharing,
    /// How often shared layers are used.
    pub recursions: usize,
    /// Whether the norms of shared layers are shared too.
    pub share_norms: bool,
    /// What uses of shared layers may do differently.
    pub relax: Relaxation,
    /// Who decides how deep a token goes.
    pub router: RouterConfig,
    /// What later recursions attend to.
    pub kv: KvMode,
}

impl Default for ModelConfig {
    /// A MoR model of about a million parameters.
    fn default() -> Self {
        Self {
            vocab_size: 0,
            width: 128,
            layers: 8,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            ffn: 384,
            context: 256,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            tie_embeddings: true,
            head_bias: false,
            init_std: 0.02,
            attention: AttentionSettings::default(),
            rotary: RotarySettings::default(),
            norms: NormSettings::default(),
            multipliers: Multipliers::default(),
            mlp: MlpConfig::default(),
            sharing: Sharing::MiddleCycle,
            recursions: 3,
            share_norms: true,
            relax: Relaxation::NONE,
            router: RouterConfig::default(),
            kv: KvMode::RecursionWise,
        }
    }
}

impl ModelConfig {
    /// Checks every field and combination.
    ///
    /// # Errors
    /// The first impossible one.
    pub fn check(&self) -> Result<LayerPlan, ConfigError> {
        self.check_sizes()?;
        let routed = self.router.settings().chooses();
        if self.sharing == Sharing::None && (routed || self.recursions != 1) {
            let (recursions, router) = (self.recursions, self.router.kind());
            let found = format!("\"none\" with recursions = {recursions} and router \"{router}\"");
            let expected = "model.recursions = 1 and model.router = { kind = \"fixed\" } beside \
                            it, as a dense model has them";
            return refuse("sharing", found, expected.into());
        }
        let plan = self.sharing.plan(self.layers, self.recursions)?;
        if routed && (plan.recursions.is_empty() || self.recursions < 2) {
            let expected = format!(
                "sharing \"cycle\" or \"middle_cycle\" with at least 2 recursions for router \
                 \"{}\"",
                self.router.kind()
            );
            return refuse(
                "sharing",
                format!("\"{}\" with {} recursions", self.sharing, self.recursions),
                expected,
            );
        }
        if self.kv != KvMode::RecursionWise && self.sharing == Sharing::None {
            return refuse(
                "kv",
                format!("\"{}\"", self.kv),
                "recursion_wise where no layer is shared".into(),
            );
        }
        let sizes = self.sizes();
        self.attention.check(plan.stored)?;
        let of_heads = (self.heads, self.kv_heads, self.head_dim);
        self.attention.check_latent(of_heads, self.rotary.share)?;
        self.rotary.check((self.head_dim, self.turned()), plan.stored)?;
        self.multipliers.check()?;
        self.mlp.settings().check(&sizes)?;
        self.relax.check(&sizes, &plan, &self.mlp)?;
        self.check_biases(&sizes, &plan)?;
        self.router.settings().check(&sizes)?;
        self.check_buffers(&sizes)?;
        Ok(plan)
    }

    /// Refuses settings that no run may train with, although a checkpoint of an earlier version may
    /// hold them.
    ///
    /// # Errors
    /// The first such setting.
    pub fn check_training(&self) -> Result<(), ConfigError> {
        self.router.settings().check_training()
    }

    /// Refuses settings that change nothing beside the others, and are not left at their defaults.
    /// It is for recipes: checkpoints may hold such settings.
    ///
    /// # Errors
    /// The first such setting, or an impossible config.
    pub fn check_effects(&self) -> Result<(), ConfigError> {
        let plan = self.check()?;
        let shares = plan.stored < self.layers;
        if !shares && self.kv != KvMode::RecursionWise {
            let expected = "recursion_wise where no layer is used twice".into();
            return refuse("kv", format!("\"{}\"", self.kv), expected);
        }
        if !shares && !self.share_norms {
            return refuse("share_norms", "false", "true where no layer is used twice".into());
        }
        let has_adapters = !self.relax.specs(&self.sizes(), &plan, &self.mlp).is_empty();
        if self.relax != Relaxation::NONE && !has_adapters {
            let expected = "settings with which some use of a layer gets an adapter: skip_first \
                            leaves out the first use of every layer, and shared keys and values \
                            are made in that one alone";
            return refuse("relax", self.relax.kind(), expected.into());
        }
        self.attention.check_effects()?;
        let has_windows = (0..plan.stored).any(|stored| self.attention.window_of(stored).is_some());
        if self.rotary.window_theta > 0.0 && !has_windows {
            let expected = "0 where no layer has a window".into();
            return refuse("rotary.window_theta", self.rotary.window_theta, expected);
        }
        self.rotary.scaling.settings().check_effects(self.context)?;
        self.mlp.settings().check_effects(&self.sizes())?;
        self.router.settings().check_effects()
    }

    /// Refuses buffers of the router and of MLPs under one name: each would write the other's.
    fn check_buffers(&self, sizes: &Sizes) -> Result<(), ConfigError> {
        let of_router = self.router.settings().buffers(sizes, RouterSite::Depth);
        let of_mlp = self.mlp.settings().buffers(sizes);
        let Some(name) = name_in_both(&of_router, &of_mlp) else { return Ok(()) };
        let expected = format!("another router: both keep a buffer \"{name}\"");
        refuse("mlp.kind", format!("\"{}\"", self.mlp.kind()), expected)
    }

    /// Refuses adapters that scale the outputs of a matrix with a bias, which would be scaled, too.
    fn check_biases(&self, sizes: &Sizes, plan: &LayerPlan) -> Result<(), ConfigError> {
        let adapters = self.relax.settings();
        for stored in 0..plan.stored {
            let mut vectors = attention::vectors(&self.attention, sizes, stored);
            vectors.extend(self.mlp.settings().vectors(sizes, stored));
            let has_bias = |part: &Part| {
                let bias = format!("layers.{stored}.{}_bias", part.name());
                vectors.iter().any(|vector| vector.name == bias)
            };
            let table = matrices::of_layer(sizes, &self.mlp, stored);
            let parts = table.iter().filter_map(|base| base.place.part());
            let mut scaled = parts.filter(|&part| adapters.scales_outputs(part));
            if let Some(part) = scaled.find(has_bias) {
                let expected = "matrices whose inputs are scaled, or that have no bias: one would \
                                be scaled with the outputs";
                return refuse("relax.parts", part.name(), expected.into());
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("width", self.width, 1 << 17),
            ("heads", self.heads, 1 << 12),
            ("kv_heads", self.kv_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("ffn", self.ffn, 1 << 19),
            ("context", self.context, 1 << 24),
        ];
        for (field, found, most) in sizes {
            if found == 0 || found > most {
                return refuse(field, found, format!("between 1 and {most}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return refuse(
                "kv_heads",
                self.kv_heads,
                format!("a divisor of heads = {}", self.heads),
            );
        }
        if self.attention.kv_rank == 0 && !self.head_dim.is_multiple_of(2) {
            return refuse("head_dim", self.head_dim, "an even number (rotary pairs)".into());
        }
        positive("rope_theta", self.rope_theta, 1e12)?;
        positive("norm_eps", self.norm_eps, 1.0)?;
        positive("init_std", self.init_std, 10.0)
    }

    /// What routers, MLPs and adapters may read of it.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            vocab: self.vocab_size,
            width: self.width,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            value_dim: self.attention.value_dim(self.head_dim),
            latent: self.attention.latent(),
            ffn: self.ffn,
            init_std: self.init_std,
            sharing: self.sharing,
            recursions: self.recursions,
            kv: self.kv,
        }
    }

    /// The heads as the attention operation wants them.
    pub fn heads(&self) -> ops::Heads {
        let AttentionSettings { scale, soft_cap, .. } = self.attention;
        ops::Heads {
            scale: (scale > 0.0).then_some(scale as f32),
            cap: (soft_cap > 0.0).then_some(soft_cap as f32),
            value_dim: self.attention.value_dim(self.head_dim),
            ..ops::Heads::new(self.heads, self.kv_heads, self.head_dim)
        }
    }

    /// Columns of a head that turn.
    pub fn turned(&self) -> usize {
        match self.attention.latent() {
            Some(latent) => latent.turned,
            None => self.rotary.turned(self.head_dim),
        }
    }

    /// Whether all layers attend in the same way, so that one may stand in for another.
    pub fn has_equal_layers(&self) -> bool {
        let has_one_window = self.attention.window == 0;
        (has_one_window || self.attention.window_layers == LayerSet::All)
            && self.rotary.layers == LayerSet::All
    }

    /// Columns of the key and value rows: key heads, then value heads.
    pub fn kv_width(&self) -> usize {
        self.sizes().kv_width()
    }
}

/// Refuses a number that is not above 0, or is above `most`.
fn positive(field: &str, x: f64, most: f64) -> Result<(), ConfigError> {
    if x > 0.0 && x <= most {
        Ok(())
    } else {
        refuse(field, x, format!("above 0 and at most {most}"))
    }
}

/// A name that two lists of buffers share.
fn name_in_both<'a>(one: &'a [BufferSpec], other: &[BufferSpec]) -> Option<&'a str> {
    let taken = |buffer: &&BufferSpec| other.iter().any(|spec| spec.name == buffer.name);
    one.iter().find(taken).map(|buffer| buffer.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_two_buffers_is_found() {
        let buffers = |names: &[&str]| -> Vec<BufferSpec> {
            let range = (0.0, 1.0);
            let of = |name: &&str| BufferSpec {
                name: (*name).to_owned(),
                length: 1,
                range,
                every_step: false,
            };
            names.iter().map(of).collect()
        };
        let router = buffers(&["running", "bias"]);
        assert_eq!(name_in_both(&router, &buffers(&["load", "bias"])), Some("bias"));
        assert_eq!(name_in_both(&router, &buffers(&["load"])), None);
        assert_eq!(name_in_both(&router, &[]), None);
    }
}
