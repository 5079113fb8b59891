//! What the classes with multi-head latent attention share: the widths of their latents, and the
//! factor of scores.

use serde_json::Value;

use crate::json::JsonObject;
use crate::{Additions, ArchConfig, LatentAttention, Result, RopeScaling};

use super::dense::{self, Defaults};

/// Numbers whose defaults are those of all these classes. The width of a head is stated otherwise.
pub(super) const DEFAULTS: Defaults = Defaults { head_dim: Some(2), ..Defaults::LLAMA };

/// What a class does beside DeepSeek-V2.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scaled {
    /// Latents go on as they are normed.
    No,
    /// Queries and the latent of keys and values are multiplied by the root of what the width of
    /// the residual stream is in widths of their latents.
    ByRank,
}

impl Scaled {
    /// What a latent of this rank, of rows of this width, is multiplied by.
    fn factor(self, width: usize, rank: usize) -> f64 {
        match self {
            Scaled::No => 1.0,
            Scaled::ByRank => (width as f64 / rank as f64).sqrt(),
        }
    }
}

/// Reads latent attention into `found`, whose other numbers are there.
pub(super) fn read(
    config: &JsonObject<'_>,
    found: &mut ArchConfig,
    scaled: Scaled,
    neighbours_turn: bool,
) -> Result<()> {
    dense::must_turn_whole(config)?;
    dense::must_be_unset(config, "attention_bias")?;
    let size = |key, default| config.size(key).map(|found| found.unwrap_or(default));
    let query = match (config.has("q_lora_rank"), config.size("q_lora_rank")?) {
        (true, Some(0)) => {
            let expected = "null for queries without a latent, or the width of theirs";
            return Err(config.wrong("q_lora_rank", expected));
        }
        (true, None) if scaled == Scaled::ByRank => {
            return Err(config.wrong("q_lora_rank", "the width of the latent of queries"));
        }
        (true, None) => 0,
        (_, stated) => stated.unwrap_or(1536),
    };
    let key_value = size("kv_lora_rank", 512)?;
    if key_value == 0 {
        let expected = "at least 1, the width of the latent of keys and values";
        return Err(config.wrong("kv_lora_rank", expected));
    }
    let (own, turned) = (size("qk_nope_head_dim", 128)?, size("qk_rope_head_dim", 64)?);
    if config.size("qk_head_dim")?.is_some_and(|whole| whole != own + turned) {
        let expected = format!("{}, qk_nope_head_dim + qk_rope_head_dim", own + turned);
        return Err(config.wrong("qk_head_dim", expected));
    }
    found.head_dim = own + turned;
    let scale = scaled.factor(found.width, key_value);
    found.additions.latent = Some(LatentAttention {
        query,
        key_value,
        turned,
        value: size("v_head_dim", 128)?,
        scale,
        neighbours_turn,
    });
    found.additions.score_scale = score_scale(found, scaled);
    Ok(())
}

/// The factor of products of queries and keys: `1 / sqrt(head_dim)`, with YaRN times the square of
/// `m(mscale_all_dim)`, and times what queries are multiplied by. `None` for the first alone.
fn score_scale(config: &ArchConfig, scaled: Scaled) -> Option<f64> {
    let plain = 1.0 / (config.head_dim as f64).sqrt();
    let growth = match config.rope_scaling {
        Some(RopeScaling::Yarn { factor, mscale_all_dim: Some(a), .. }) => {
            (0.1 * a * factor.ln() + 1.0).powi(2)
        }
        _ => 1.0,
    };
    let query = config.additions.latent.map_or(0, |latent| latent.query);
    let of_query = if query > 0 { scaled.factor(config.width, query) } else { 1.0 };
    let scale = plain * growth * of_query;
    (scale != plain).then_some(scale)
}

/// What of `config` a class with latent attention can say: the same, with the factors that follow
/// from its widths. `None` for a model without latents.
pub(super) fn held(config: &ArchConfig, scaled: Scaled) -> Option<Additions> {
    let latent = config.additions.latent?;
    let follows = scaled.factor(config.width, latent.key_value);
    // A recipe states such a factor in a few digits.
    let near = |found: f64, expected: f64| (found - expected).abs() <= 1e-6 * expected;
    let scale = if near(latent.scale, follows) { latent.scale } else { follows };
    let (found, expected) = (config.additions.score_scale, score_scale(config, scaled));
    let plain = 1.0 / (config.head_dim as f64).sqrt();
    let same = near(found.unwrap_or(plain), expected.unwrap_or(plain));
    let has_query = latent.query > 0 || scaled == Scaled::No;
    Some(Additions {
        latent: has_query.then_some(LatentAttention { scale, neighbours_turn: true, ..latent }),
        score_scale: if same { found } else { expected },
        activation: config.additions.activation,
        ..Additions::default()
    })
}

/// The fields of latent attention.
pub(super) fn fields(config: &ArchConfig) -> Vec<(&'static str, Value)> {
    let Some(latent) = config.additions.latent else { return Vec::new() };
    let query = (latent.query > 0).then_some(latent.query);
    vec![
        ("attention_bias", false.into()),
        // The library calls what turns the width of a head.
        ("head_dim", latent.turned.into()),
        ("q_lora_rank", query.into()),
        ("kv_lora_rank", latent.key_value.into()),
        ("qk_nope_head_dim", (config.head_dim - latent.turned).into()),
        ("qk_rope_head_dim", latent.turned.into()),
        ("qk_head_dim", config.head_dim.into()),
        ("v_head_dim", latent.value.into()),
    ]
}
