//! `[model.attention]`: biases, norms, windows, scores and latents of attention, and every reason
//! why such settings can be impossible.

use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, refuse};
use crate::layer_set::LayerSet;
use crate::sizes::LatentSizes;

/// Biases, norms, windows, scores and latents of attention: `[model.attention]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionSettings {
    /// Whether queries, keys and values have biases.
    pub bias: bool,
    /// Whether what attention writes to the stream has a bias.
    pub output_bias: bool,
    /// RMSNorm of queries and keys.
    pub query_key_norm: QueryKeyNorm,
    /// Queries, keys and values lie within minus this and this, behind the norms and before they
    /// turn; 0 for no limit (OLMoE).
    pub clip: f64,
    /// Whether each head has a score of its own that takes its share of the softmax (GPT-OSS).
    pub sinks: bool,
    /// Sliding window: the number of keys that a row sees, its own and those before it; 0 for all.
    /// Where a router chooses, these are keys of rows that took the same recursion.
    pub window: usize,
    /// Stored layers with the window.
    pub window_layers: LayerSet,
    /// Factor of products of queries and keys; 0 for `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// Soft cap c of scores s, `c tanh(s / c)`; 0 for none.
    pub soft_cap: f64,
    /// Width of the latent that keys and values of all heads come out of (multi-head latent
    /// attention, DeepSeek-V2); 0 for keys and values out of the row itself. `kv_heads` is `heads`
    /// then, and `head_dim` the width of queries and keys.
    pub kv_rank: usize,
    /// Width of the latent that queries come out of; 0 for queries out of the row itself.
    pub query_rank: usize,
    /// With `kv_rank`: columns of each head that turn, the first ones, which all keys of a row
    /// share; even, below `head_dim`. The other columns carry no position.
    pub rope_dim: usize,
    /// With `kv_rank`: width of a head of values; 0 for `head_dim`.
    pub value_dim: usize,
    /// What multiplies the normed latent of keys and values (LongCat-Flash).
    pub latent_scale: f64,
}

impl Default for AttentionSettings {
    fn default() -> Self {
        Self {
            bias: false,
            output_bias: false,
            query_key_norm: QueryKeyNorm::None,
            clip: 0.0,
            sinks: false,
            window: 0,
            window_layers: LayerSet::All,
            scale: 0.0,
            soft_cap: 0.0,
            kv_rank: 0,
            query_rank: 0,
            rope_dim: 0,
            value_dim: 0,
            latent_scale: 1.0,
        }
    }
}

/// RMSNorm of queries and keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryKeyNorm {
    /// Queries and keys as they are
    #[default]
    None,
    /// Over each head before it turns, with one weight of `head_dim` for all heads (Qwen 3)
    Head,
    /// The same behind the turn (Hunyuan)
    HeadTurned,
    /// Over all heads together (OLMo 2)
    Width,
}

impl AttentionSettings {
    /// The window of stored layer `stored`.
    pub fn window_of(&self, stored: usize) -> Option<usize> {
        (self.window > 0 && self.window_layers.has(stored)).then_some(self.window)
    }

    /// Stretches that a row of `heads` heads of queries or keys is normed in, and their width;
    /// `None` without a norm.
    pub(crate) fn normed(&self, heads: usize, head_dim: usize) -> Option<(usize, usize)> {
        match self.query_key_norm {
            QueryKeyNorm::None => None,
            QueryKeyNorm::Head | QueryKeyNorm::HeadTurned => Some((heads, head_dim)),
            QueryKeyNorm::Width => Some((1, heads * head_dim)),
        }
    }

    pub(crate) fn check(&self, stored: usize) -> Result<(), ConfigError> {
        self.window_layers.check("attention.window_layers", stored)?;
        if self.window > 1 << 24 {
            return refuse("attention.window", self.window, format!("at most {}", 1 << 24));
        }
        if !(self.clip == 0.0 || (self.clip >= 1e-3 && self.clip <= 1e6)) {
            let expected = "0 for no limit, or a number from 1e-3 to 1e6".into();
            return refuse("attention.clip", self.clip, expected);
        }
        if !(self.scale == 0.0 || (self.scale >= 1e-6 && self.scale <= 1e6)) {
            let expected = "0 for 1 / sqrt(head_dim), or a number from 1e-6 to 1e6".into();
            return refuse("attention.scale", self.scale, expected);
        }
        if !(self.soft_cap == 0.0 || (self.soft_cap >= 1e-3 && self.soft_cap <= 1e6)) {
            let expected = "0 for no cap, or a number from 1e-3 to 1e6".into();
            return refuse("attention.soft_cap", self.soft_cap, expected);
        }
        Ok(())
    }

    /// Refuses layers of a window that there is not, and a window of no layer.
    pub(crate) fn check_effects(&self) -> Result<(), ConfigError> {
        let names_layers = self.window_layers != LayerSet::All;
        if self.window == 0 && names_layers {
            let expected = "\"all\" without a window".into();
            return refuse("attention.window_layers", "a list", expected);
        }
        if self.window > 0 && self.window_layers == LayerSet::These(Vec::new()) {
            return refuse("attention.window_layers", "[]", "the layers of the window".into());
        }
        Ok(())
    }
}

impl AttentionSettings {
    /// The widths of latent attention, where the model has it.
    pub fn latent(&self) -> Option<LatentSizes> {
        let (query, key_value, turned) = (self.query_rank, self.kv_rank, self.rope_dim);
        (key_value > 0).then_some(LatentSizes { query, key_value, turned })
    }

    /// Width of the values of a head whose keys have `head_dim` columns.
    pub fn value_dim(&self, head_dim: usize) -> usize {
        if self.value_dim == 0 { head_dim } else { self.value_dim }
    }

    /// Refuses widths of latents that no model has, and what latent attention does not go with.
    pub(crate) fn check_latent(
        &self,
        (heads, kv_heads, head_dim): (usize, usize, usize),
        share: f64,
    ) -> Result<(), ConfigError> {
        let ranks =
            [("attention.kv_rank", self.kv_rank), ("attention.query_rank", self.query_rank)];
        for (field, found) in ranks {
            if found > 1 << 17 {
                return refuse(field, found, format!("at most {}", 1 << 17));
            }
        }
        if self.value_dim > 1 << 12 {
            return refuse("attention.value_dim", self.value_dim, format!("at most {}", 1 << 12));
        }
        if self.kv_rank == 0 {
            return self.check_no_latent();
        }
        let turned = self.rope_dim;
        if turned == 0 || !turned.is_multiple_of(2) || turned >= head_dim {
            let expected = format!(
                "an even number of the {head_dim} columns of a head (head_dim), and not all: \
                 the others are each head's own"
            );
            return refuse("attention.rope_dim", turned, expected);
        }
        if !(self.latent_scale >= 1e-6 && self.latent_scale <= 1e6) {
            let expected = "a number from 1e-6 to 1e6".into();
            return refuse("attention.latent_scale", self.latent_scale, expected);
        }
        if kv_heads != heads {
            let expected = format!(
                "{heads} as heads, beside attention.kv_rank: every head gets keys of its own out \
                 of the latent"
            );
            return refuse("kv_heads", kv_heads, expected);
        }
        let beside = |none: &str| {
            format!(
                "{none} beside attention.kv_rank: latent attention has its norms on the latents"
            )
        };
        if self.bias {
            return refuse("attention.bias", "true", beside("false"));
        }
        if self.query_key_norm != QueryKeyNorm::None {
            return refuse("attention.query_key_norm", "a norm", beside("\"none\""));
        }
        if self.clip != 0.0 {
            return refuse("attention.clip", self.clip, beside("0"));
        }
        if share != 1.0 {
            let expected = "1 beside attention.kv_rank: attention.rope_dim says what turns";
            return refuse("rotary.share", share, expected.into());
        }
        Ok(())
    }

    /// Refuses settings of latents where there are none.
    fn check_no_latent(&self) -> Result<(), ConfigError> {
        let widths = [
            ("attention.query_rank", self.query_rank),
            ("attention.rope_dim", self.rope_dim),
            ("attention.value_dim", self.value_dim),
        ];
        for (field, found) in widths {
            if found != 0 {
                let expected = "0 where attention.kv_rank is 0: set that for latent attention";
                return refuse(field, found, expected.into());
            }
        }
        if self.latent_scale != 1.0 {
            let expected = "1 where attention.kv_rank is 0: set that for latent attention";
            return refuse("attention.latent_scale", self.latent_scale, expected.into());
        }
        Ok(())
    }
}
