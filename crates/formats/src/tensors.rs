//! The weights of a model by role, and their shapes. What files call them is said by each
//! architecture.

use std::fmt;

use crate::{ArchConfig, HeadNorm, NormPosition, Result};

/// Which weights of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorRole {
    /// Embedding, `[vocab, width]`: a row for each token id.
    Embed,
    /// Gain of the last norm, `[width]`.
    Norm,
    /// Output matrix, `[vocab, width]`; only where it is not tied.
    Head,
    /// Weights of a block, counted from 0.
    Layer(usize, LayerRole),
}

/// Which weights of a block; matrices are `[out, in]`, `y = W x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerRole {
    /// Gain before attention, `[width]`.
    AttentionNorm,
    /// `[heads * head_dim, width]`.
    Query,
    /// `[kv_heads * head_dim, width]`.
    Key,
    /// `[kv_heads * head_dim, width]`.
    Value,
    /// `[heads * head_dim]`, added to queries.
    QueryBias,
    /// `[kv_heads * head_dim]`, added to keys.
    KeyBias,
    /// `[kv_heads * head_dim]`, added to values.
    ValueBias,
    /// Gain of queries, `[head_dim]` or `[heads * head_dim]`.
    QueryNorm,
    /// Gain of keys, `[head_dim]` or `[kv_heads * head_dim]`.
    KeyNorm,
    /// `[width, heads * head_dim]`.
    Output,
    /// `[width]`, added to what attention writes.
    OutputBias,
    /// Gain of what attention adds to the residual stream, `[width]`.
    AttentionAfterNorm,
    /// Gain before the feed-forward network, `[width]`.
    FfnNorm,
    /// `[ffn, width]`, under the SiLU.
    Gate,
    /// `[ffn, width]`, multiplied with the gate.
    Up,
    /// `[width, ffn]`, back to the residual stream.
    Down,
    /// `[ffn]`, added to the gate.
    GateBias,
    /// `[ffn]`, added to what the gate multiplies.
    UpBias,
    /// `[width]`, added to what the feed-forward network writes.
    DownBias,
    /// Gain of what the feed-forward network adds to the residual stream, `[width]`.
    FfnAfterNorm,
    /// `[experts, width]`: scores of the experts.
    Router,
    /// `[ffn, width]`: the gate of an expert.
    ExpertGate(usize),
    /// `[ffn, width]`: what an expert multiplies with its gate.
    ExpertUp(usize),
    /// `[width, ffn]`: what an expert writes to the residual stream.
    ExpertDown(usize),
}

impl LayerRole {
    /// Every role of a block, in the order of computation.
    pub fn all(settings: &ArchConfig) -> Vec<LayerRole> {
        let there = |roles: &[LayerRole], there| if there { roles.to_vec() } else { Vec::new() };
        let additions = &settings.additions;
        let (before, after) = (
            additions.norm_place != NormPosition::After,
            additions.norm_place != NormPosition::Before,
        );
        let mut all = there(&[LayerRole::AttentionNorm], before);
        all.extend([LayerRole::Query, LayerRole::Key, LayerRole::Value]);
        let biases = [LayerRole::QueryBias, LayerRole::KeyBias, LayerRole::ValueBias];
        all.extend(there(&biases, additions.qkv_bias));
        let norms = [LayerRole::QueryNorm, LayerRole::KeyNorm];
        all.extend(there(&norms, additions.query_key_norm != HeadNorm::None));
        all.push(LayerRole::Output);
        all.extend(there(&[LayerRole::OutputBias], additions.output_bias));
        all.extend(there(&[LayerRole::AttentionAfterNorm], after));
        all.extend(there(&[LayerRole::FfnNorm], before));
        let after = there(&[LayerRole::FfnAfterNorm], after);
        let Some(experts) = settings.experts else {
            all.extend([LayerRole::Gate, LayerRole::Up, LayerRole::Down]);
            let biases = [LayerRole::GateBias, LayerRole::UpBias, LayerRole::DownBias];
            all.extend(there(&biases, additions.mlp_bias));
            all.extend(after);
            return all;
        };
        all.push(LayerRole::Router);
        for expert in 0..experts.count {
            let [gate, up] = [LayerRole::ExpertGate(expert), LayerRole::ExpertUp(expert)];
            all.extend([gate, up, LayerRole::ExpertDown(expert)]);
        }
        all.extend(after);
        all
    }
}

impl TensorRole {
    /// Every role of a model: embedding, blocks, last norm, and the output matrix where it is not
    /// tied.
    pub fn all(settings: &ArchConfig) -> impl Iterator<Item = TensorRole> + use<> {
        let of_layer = LayerRole::all(settings);
        let layers = (0..settings.layers).flat_map(move |i| {
            of_layer.clone().into_iter().map(move |role| TensorRole::Layer(i, role))
        });
        let head = (!settings.tied).then_some(TensorRole::Head);
        std::iter::once(TensorRole::Embed).chain(layers).chain([TensorRole::Norm]).chain(head)
    }

    /// The shape, `[length]` of a gain or `[out, in]` of a matrix.
    pub fn shape(self, settings: &ArchConfig) -> Vec<usize> {
        let (d, f) = (settings.width, settings.ffn);
        let (q, k) = (settings.query_rows(), settings.key_rows());
        match self {
            Self::Embed | Self::Head => vec![settings.vocab, d],
            Self::Norm => vec![d],
            Self::Layer(_, role) => match role {
                LayerRole::AttentionNorm
                | LayerRole::FfnNorm
                | LayerRole::AttentionAfterNorm
                | LayerRole::FfnAfterNorm
                | LayerRole::OutputBias
                | LayerRole::DownBias => vec![d],
                LayerRole::QueryBias => vec![q],
                LayerRole::KeyBias | LayerRole::ValueBias => vec![k],
                LayerRole::GateBias | LayerRole::UpBias => vec![f],
                LayerRole::QueryNorm | LayerRole::KeyNorm
                    if settings.additions.query_key_norm == HeadNorm::Head =>
                {
                    vec![settings.head_dim]
                }
                LayerRole::QueryNorm => vec![q],
                LayerRole::KeyNorm => vec![k],
                LayerRole::Query => vec![q, d],
                LayerRole::Key | LayerRole::Value => vec![k, d],
                LayerRole::Output => vec![d, q],
                LayerRole::Gate
                | LayerRole::Up
                | LayerRole::ExpertGate(_)
                | LayerRole::ExpertUp(_) => vec![f, d],
                LayerRole::Down | LayerRole::ExpertDown(_) => vec![d, f],
                LayerRole::Router => vec![settings.experts.map_or(0, |experts| experts.count), d],
            },
        }
    }

    /// How many heads the rows belong to, for the two matrices whose rows rotate.
    pub(crate) fn rotated_heads(self, settings: &ArchConfig) -> Option<usize> {
        match self {
            Self::Layer(_, LayerRole::Query) => Some(settings.heads),
            Self::Layer(_, LayerRole::Key) => Some(settings.kv_heads),
            _ => None,
        }
    }
}

impl fmt::Display for TensorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(i, role) => write!(f, "block {i}, {role:?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Gives weights by role: what the readers are, and what the writers take.
///
/// Matrices are row-major, `[out, in]`; query and key rows are in Hugging Face's rotary order:
/// within a head, row i pairs with row `i + head_dim / 2`.
pub trait TensorSource {
    /// The values of `role`, as many as [`TensorRole::shape`] says.
    ///
    /// # Errors
    /// What hinders the giver; a reader refuses NaN and infinite values.
    fn tensor(&self, role: TensorRole) -> Result<Vec<f32>>;
}

impl<F: Fn(TensorRole) -> Result<Vec<f32>>> TensorSource for F {
    fn tensor(&self, role: TensorRole) -> Result<Vec<f32>> {
        self(role)
    }
}
