//! The numbers that fix a model's arithmetic, whatever file and architecture they came from.

use std::path::Path;

use crate::{FormatError, Result};

/// The largest size accepted for any dimension; real models stay far below it.
const MAX_SIZE: usize = 1 << 31;
const MAX_LAYERS: usize = 1 << 16;
const MAX_EXPERTS: usize = 1 << 12;

/// The numbers that fix a model's arithmetic, which is Llama's (Touvron et al. 2023,
/// arXiv:2302.13971; grouped-query attention as in arXiv:2307.09288): pre-norm blocks with RMSNorm,
/// rotary positions, SwiGLU, no biases.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchConfig {
    /// Rows of the embedding; a tokenizer may use fewer.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of blocks, each attention and a feed-forward network.
    pub layers: usize,
    /// Query heads of each block.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head, even; `heads * head_dim` need not be `width`.
    pub head_dim: usize,
    /// Inner width of the feed-forward network.
    pub ffn: usize,
    /// Base of the rotary frequencies: pair i of a head turns by `position * rope_theta^(-2 i /
    /// head_dim)`.
    pub rope_theta: f64,
    /// Added to the mean square in every RMSNorm.
    pub norm_eps: f64,
    /// Longest sequence the model was made for, in tokens.
    pub context: usize,
    /// The output matrix is the embedding.
    pub tied: bool,
    /// A change of the rotary frequencies; a model that does not compute it must refuse the file.
    pub rope_scaling: Option<RopeScaling>,
    /// Experts of inner width `ffn` in place of the feed-forward network of every block.
    pub experts: Option<Experts>,
}

/// Feed-forward networks of which a token takes those with the largest softmax scores, each
/// weighted by its share of their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a block.
    pub count: usize,
    /// How many of them a token takes.
    pub top_k: usize,
}

/// A change of the rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Every frequency divided by `factor` (position interpolation, arXiv:2306.15595).
    Linear {
        /// At least 1: how much longer texts may become.
        factor: f64,
    },
    /// Llama 3.1: frequencies of wavelength above `original_context / low` are divided by `factor`,
    /// those below `original_context / high` stay, those between are interpolated.
    Llama3 {
        /// Division of the slow frequencies.
        factor: f64,
        /// `low_freq_factor`: above `original_context / low` a wavelength is slow.
        low: f64,
        /// `high_freq_factor`, above `low`: below `original_context / high` it is fast.
        high: f64,
        /// `original_max_position_embeddings`: the context before the change, in tokens.
        original_context: usize,
    },
}

impl ArchConfig {
    /// Refuses numbers that no model has; `path` and the name of the setting go into the error.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] for the first setting that is zero, too large, odd, not finite or
    /// not a divisor.
    pub fn check(&self, path: &Path) -> Result<()> {
        let sizes = [
            ("vocab", self.vocab, MAX_SIZE),
            ("width", self.width, MAX_SIZE),
            ("layers", self.layers, MAX_LAYERS),
            ("heads", self.heads, MAX_LAYERS),
            ("kv_heads", self.kv_heads, MAX_LAYERS),
            ("head_dim", self.head_dim, MAX_LAYERS),
            ("ffn", self.ffn, MAX_SIZE),
            ("context", self.context, MAX_SIZE),
        ];
        for (field, value, max) in sizes {
            if value == 0 || value > max {
                return Err(FormatError::damaged(
                    path,
                    field,
                    format!("1 to {max}"),
                    value.to_string(),
                ));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of {} heads", self.heads);
            return Err(FormatError::damaged(
                path,
                "kv_heads",
                expected,
                self.kv_heads.to_string(),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(FormatError::damaged(
                path,
                "head_dim",
                "an even number",
                self.head_dim.to_string(),
            ));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(FormatError::damaged(
                path,
                "rope_theta",
                "a positive number",
                self.rope_theta.to_string(),
            ));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            let found = self.norm_eps.to_string();
            return Err(FormatError::damaged(path, "norm_eps", "a number between 0 and 1", found));
        }
        if let Some(Experts { count, top_k }) = self.experts {
            for (field, value, max) in [("experts", count, MAX_EXPERTS), ("top_k", top_k, count)] {
                if value == 0 || value > max {
                    let (expected, found) = (format!("1 to {max}"), value.to_string());
                    return Err(FormatError::damaged(path, field, expected, found));
                }
            }
        }
        self.rope_scaling.map_or(Ok(()), |scaling| scaling.check(path))
    }

    /// Query rows: `heads * head_dim`.
    pub fn query_rows(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Key rows, and as many value rows: `kv_heads * head_dim`.
    pub fn key_rows(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl RopeScaling {
    fn check(self, path: &Path) -> Result<()> {
        let (Self::Linear { factor } | Self::Llama3 { factor, .. }) = self;
        if !(factor.is_finite() && factor >= 1.0) {
            let expected = "a number of at least 1";
            return Err(FormatError::damaged(
                path,
                "rope_scaling.factor",
                expected,
                factor.to_string(),
            ));
        }
        if let Self::Llama3 { low, high, original_context, .. } = self {
            if !(low > 0.0 && high.is_finite() && high > low) {
                let field = "rope_scaling.high_freq_factor";
                let expected = "0 < low_freq_factor < high_freq_factor";
                return Err(FormatError::damaged(
                    path,
                    field,
                    expected,
                    format!("{low} and {high}"),
                ));
            }
            if original_context == 0 || original_context > MAX_SIZE {
                let field = "rope_scaling.original_max_position_embeddings";
                let found = original_context.to_string();
                return Err(FormatError::damaged(path, field, "1 to 2^31", found));
            }
        }
        Ok(())
    }
}
