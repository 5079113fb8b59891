//! The numbers of a model that routers, MLPs and adapters read. The recipe names all of these, so
//! they are given its numbers and not the recipe: a member knows nothing of the other members.

use crate::kv::KvMode;
use crate::layout::Sharing;

/// What members may read of a recipe: its fields of the same names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Width `d` of the residual stream.
    pub width: usize,
    /// Layers that a row of full depth goes through.
    pub layers: usize,
    /// Heads of the queries; `head_dim` columns each.
    pub heads: usize,
    /// Key/value heads; `heads` is a multiple.
    pub kv_heads: usize,
    /// Width of a head of queries and keys.
    pub head_dim: usize,
    /// Width of a head of values.
    pub value_dim: usize,
    /// Latents that queries, keys and values come out of, where the model has them.
    pub latent: Option<LatentSizes>,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Standard deviation of fresh weights.
    pub init_std: f64,
    /// How layers share weights.
    pub sharing: Sharing,
    /// How often shared layers are used.
    pub recursions: usize,
    /// What later recursions attend to.
    pub kv: KvMode,
}

/// The widths of latent attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSizes {
    /// Width of what queries come out of; 0 where that is the row itself.
    pub query: usize,
    /// Width of what keys and values come out of.
    pub key_value: usize,
    /// Columns `r` of each query and key that turn; heads share those of keys.
    pub turned: usize,
}

impl Sizes {
    /// Columns of the key and value rows: `kv_heads * (head_dim + value_dim)`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * (self.head_dim + self.value_dim)
    }
}
