//! The weights of a model by role, and their shapes. What files call them is said by each
//! architecture.

use std::fmt;

use crate::{Additions, ArchConfig, HeadNorm, NormPosition, Result};

/// Which weights of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorRole {
    /// Embedding, `[vocab, width]`: a row for each token id.
    Embed,
    /// Gain of the last norm, `[width]`.
    Norm,
    /// Bias of the last norm, `[width]`; only where norms have some.
    NormBias,
    /// Output matrix, `[vocab, width]`; only where it is not tied.
    Head,
    /// `[vocab]`, added to logits; only where something is.
    HeadBias,
    /// Weights of a block, counted from 0.
    Layer(usize, LayerRole),
}

/// Which weights of a block; matrices are `[out, in]`, `y = W x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerRole {
    /// Gain before attention, `[width]`.
    AttentionNorm,
    /// Bias behind it, `[width]`.
    AttentionNormBias,
    /// `[heads * head_dim, width]`.
    Query,
    /// `[query latent, width]`: the latent that queries are made of.
    QueryLatent,
    /// Gain of the latent of queries, `[query latent]`.
    QueryLatentNorm,
    /// `[heads * head_dim, query latent]`: queries out of their latent.
    QueryUp,
    /// `[latent + turned, width]`: the latent of keys and values, then the key that turns.
    KeyValueLatent,
    /// Gain of the latent of keys and values, `[latent]`.
    KeyValueLatentNorm,
    /// `[heads * (own + value), latent]`: of each head its own key, then its value.
    KeyValueUp,
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
    /// `[heads]`: a score of each head that no key has.
    Sinks,
    /// `[width, heads * head_dim]`; of latent attention `[width, heads * value]`.
    Output,
    /// `[width]`, added to what attention writes.
    OutputBias,
    /// Gain of what attention adds to the residual stream, `[width]`.
    AttentionAfterNorm,
    /// Bias behind it, `[width]`.
    AttentionAfterNormBias,
    /// Gain before the feed-forward network, `[width]`.
    FfnNorm,
    /// Bias behind it, `[width]`.
    FfnNormBias,
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
    /// Bias behind it, `[width]`.
    FfnAfterNormBias,
    /// `[experts, width]`: logits of the experts.
    Router,
    /// `[experts]`, added to these.
    RouterBias,
    /// `[experts]`, added to the scores for the choice alone.
    ChoiceBias,
    /// `[expert width, width]`: the gate of an expert.
    ExpertGate(usize),
    /// `[expert width, width]`: what an expert multiplies with its gate.
    ExpertUp(usize),
    /// `[width, expert width]`: what an expert writes to the residual stream.
    ExpertDown(usize),
    /// `[expert width, width]`: stored for an expert that computes nothing, and never read.
    UnusedGate(usize),
    /// The same for what an expert multiplies with its gate.
    UnusedUp(usize),
    /// `[expert width]`, added to the gate of an expert.
    ExpertGateBias(usize),
    /// `[expert width]`, added to what an expert multiplies with its gate.
    ExpertUpBias(usize),
    /// `[width]`, added to what an expert writes, and weighted with it.
    ExpertDownBias(usize),
    /// `[shared width, width]`: the gate of the shared expert.
    SharedGate,
    /// `[shared width, width]`: what the shared expert multiplies with its gate.
    SharedUp,
    /// `[width, shared width]`: what the shared expert writes to the residual stream.
    SharedDown,
    /// `[shared width]`, added to the gate of the shared expert.
    SharedGateBias,
    /// `[shared width]`, added to what the shared expert multiplies with its gate.
    SharedUpBias,
    /// `[width]`, added to what the shared expert writes.
    SharedDownBias,
    /// `[1, width]`: whose sigmoid multiplies what the shared expert writes.
    SharedScore,
}

impl LayerRole {
    /// Every role of block `layer`, in the order of computation.
    pub fn all(settings: &ArchConfig, layer: usize) -> Vec<LayerRole> {
        let there = |roles: &[LayerRole], there| if there { roles.to_vec() } else { Vec::new() };
        let additions = &settings.additions;
        let (before, after) = (
            additions.norm_place != NormPosition::After,
            additions.norm_place != NormPosition::Before,
        );
        let norm = |gain, bias, has| {
            let roles = [gain, bias];
            there(if additions.layer_norm { &roles } else { &roles[..1] }, has)
        };
        let mut all = norm(LayerRole::AttentionNorm, LayerRole::AttentionNormBias, before);
        match &additions.latent {
            None => all.extend([LayerRole::Query, LayerRole::Key, LayerRole::Value]),
            Some(latent) => {
                let through =
                    [LayerRole::QueryLatent, LayerRole::QueryLatentNorm, LayerRole::QueryUp];
                all.extend(there(&through, latent.query > 0));
                all.extend(there(&[LayerRole::Query], latent.query == 0));
                all.extend([
                    LayerRole::KeyValueLatent,
                    LayerRole::KeyValueLatentNorm,
                    LayerRole::KeyValueUp,
                ]);
            }
        }
        let biases = [LayerRole::QueryBias, LayerRole::KeyBias, LayerRole::ValueBias];
        all.extend(there(&biases, additions.qkv_bias));
        let norms = [LayerRole::QueryNorm, LayerRole::KeyNorm];
        all.extend(there(&norms, additions.query_key_norm != HeadNorm::None));
        all.extend(there(&[LayerRole::Sinks], additions.sinks));
        all.push(LayerRole::Output);
        all.extend(there(&[LayerRole::OutputBias], additions.output_bias));
        let of_attention = (LayerRole::AttentionAfterNorm, LayerRole::AttentionAfterNormBias);
        all.extend(norm(of_attention.0, of_attention.1, after));
        all.extend(norm(LayerRole::FfnNorm, LayerRole::FfnNormBias, before));
        let after = norm(LayerRole::FfnAfterNorm, LayerRole::FfnAfterNormBias, after);
        let experts = settings.experts.as_ref().filter(|experts| experts.reach(layer));
        let Some(experts) = experts else {
            all.extend([LayerRole::Gate, LayerRole::Up, LayerRole::Down]);
            let biases = [LayerRole::GateBias, LayerRole::UpBias, LayerRole::DownBias];
            all.extend(there(&biases, additions.mlp_bias));
            all.extend(after);
            return all;
        };
        let beside = [LayerRole::Gate, LayerRole::Up, LayerRole::Down];
        all.extend(there(&beside, experts.shortcut));
        all.push(LayerRole::Router);
        all.extend(there(&[LayerRole::RouterBias], experts.logit_bias));
        all.extend(there(&[LayerRole::ChoiceBias], experts.choice_bias));
        // What may stand in one tensor follows each other.
        let each = 0..experts.count;
        all.extend(each.clone().flat_map(|e| [LayerRole::ExpertGate(e), LayerRole::ExpertUp(e)]));
        let unused = experts.count..experts.all();
        all.extend(unused.flat_map(|e| [LayerRole::UnusedGate(e), LayerRole::UnusedUp(e)]));
        all.extend(each.clone().map(LayerRole::ExpertDown));
        if experts.biases {
            let gate_up = |e| [LayerRole::ExpertGateBias(e), LayerRole::ExpertUpBias(e)];
            all.extend(each.clone().flat_map(gate_up));
            all.extend(each.map(LayerRole::ExpertDownBias));
        }
        let shared = [LayerRole::SharedGate, LayerRole::SharedUp, LayerRole::SharedDown];
        all.extend(there(&shared, experts.shared > 0));
        let biases =
            [LayerRole::SharedGateBias, LayerRole::SharedUpBias, LayerRole::SharedDownBias];
        all.extend(there(&biases, experts.shared > 0 && additions.mlp_bias));
        all.extend(there(&[LayerRole::SharedScore], experts.shared_gate));
        all.extend(after);
        all
    }
}

impl LayerRole {
    /// Whether files may be without it: the class stores it and never reads it.
    pub fn is_unused(self) -> bool {
        matches!(self, Self::UnusedGate(_) | Self::UnusedUp(_))
    }

    /// Whether it is a norm on what joins the residual stream.
    pub(crate) fn is_after_norm(self) -> bool {
        matches!(
            self,
            Self::AttentionAfterNorm
                | Self::AttentionAfterNormBias
                | Self::FfnAfterNorm
                | Self::FfnAfterNormBias
        )
    }

    /// Whether it is of one expert alone, so that no file has it below others in one matrix.
    pub(crate) fn is_of_one_expert(self) -> bool {
        matches!(
            self,
            Self::ExpertGate(_)
                | Self::ExpertUp(_)
                | Self::ExpertDown(_)
                | Self::UnusedGate(_)
                | Self::UnusedUp(_)
                | Self::ExpertGateBias(_)
                | Self::ExpertUpBias(_)
                | Self::ExpertDownBias(_)
        )
    }
}

impl TensorRole {
    /// Every role of a model: embedding, blocks, last norm, the output matrix where it is not tied,
    /// and what biases the last two have.
    pub fn all(settings: &ArchConfig) -> impl Iterator<Item = TensorRole> + use<> {
        let of = settings.clone();
        let layers = (0..settings.layers).flat_map(move |i| {
            LayerRole::all(&of, i).into_iter().map(move |role| TensorRole::Layer(i, role))
        });
        let Additions { layer_norm, head_bias, .. } = settings.additions;
        let last = [
            (TensorRole::Norm, true),
            (TensorRole::NormBias, layer_norm),
            (TensorRole::Head, !settings.tied),
            (TensorRole::HeadBias, head_bias),
        ];
        let last = last.into_iter().filter(|(_, there)| *there).map(|(role, _)| role);
        std::iter::once(TensorRole::Embed).chain(layers).chain(last)
    }

    /// The shape, `[length]` of a gain or `[out, in]` of a matrix.
    pub fn shape(self, settings: &ArchConfig) -> Vec<usize> {
        let (d, f) = (settings.width, settings.ffn);
        let (q, k) = (settings.query_rows(), settings.key_rows());
        let of_experts = settings.experts.as_ref();
        let (count, inner, shared) =
            of_experts.map_or((0, 0, 0), |experts| (experts.all(), experts.width, experts.shared));
        let latent = settings.additions.latent;
        let (m_q, m, turned, value) = latent.map_or((0, 0, 0, settings.head_dim), |latent| {
            (latent.query, latent.key_value, latent.turned, latent.value)
        });
        match self {
            Self::Embed | Self::Head => vec![settings.vocab, d],
            Self::Norm | Self::NormBias => vec![d],
            Self::HeadBias => vec![settings.vocab],
            Self::Layer(_, role) => match role {
                LayerRole::AttentionNorm
                | LayerRole::AttentionNormBias
                | LayerRole::FfnNorm
                | LayerRole::FfnNormBias
                | LayerRole::AttentionAfterNorm
                | LayerRole::AttentionAfterNormBias
                | LayerRole::FfnAfterNorm
                | LayerRole::FfnAfterNormBias
                | LayerRole::OutputBias
                | LayerRole::DownBias => vec![d],
                LayerRole::Sinks => vec![settings.heads],
                LayerRole::QueryBias => vec![q],
                LayerRole::KeyBias | LayerRole::ValueBias => vec![k],
                LayerRole::GateBias | LayerRole::UpBias => vec![f],
                LayerRole::QueryNorm | LayerRole::KeyNorm
                    if settings.additions.query_key_norm != HeadNorm::Width =>
                {
                    vec![settings.head_dim]
                }
                LayerRole::QueryNorm => vec![q],
                LayerRole::KeyNorm => vec![k],
                LayerRole::Query => vec![q, d],
                LayerRole::QueryLatent => vec![m_q, d],
                LayerRole::QueryLatentNorm => vec![m_q],
                LayerRole::QueryUp => vec![q, m_q],
                LayerRole::KeyValueLatent => vec![m + turned, d],
                LayerRole::KeyValueLatentNorm => vec![m],
                LayerRole::KeyValueUp => {
                    vec![settings.heads * (settings.head_dim - turned + value), m]
                }
                LayerRole::Key | LayerRole::Value => vec![k, d],
                LayerRole::Output => vec![d, settings.heads * value],
                LayerRole::Gate | LayerRole::Up => vec![f, d],
                LayerRole::Down => vec![d, f],
                LayerRole::Router => vec![count, d],
                LayerRole::RouterBias | LayerRole::ChoiceBias => vec![count],
                LayerRole::ExpertGate(_)
                | LayerRole::ExpertUp(_)
                | LayerRole::UnusedGate(_)
                | LayerRole::UnusedUp(_) => vec![inner, d],
                LayerRole::ExpertDown(_) => vec![d, inner],
                LayerRole::ExpertGateBias(_) | LayerRole::ExpertUpBias(_) => vec![inner],
                LayerRole::ExpertDownBias(_) => vec![d],
                LayerRole::SharedGate | LayerRole::SharedUp => vec![shared, d],
                LayerRole::SharedDown => vec![d, shared],
                LayerRole::SharedGateBias | LayerRole::SharedUpBias => vec![shared],
                LayerRole::SharedDownBias => vec![d],
                LayerRole::SharedScore => vec![1, d],
            },
        }
    }

    /// Whether it is the gain of a norm.
    pub(crate) fn is_gain(self) -> bool {
        match self {
            Self::Norm => true,
            Self::Layer(_, role) => matches!(
                role,
                LayerRole::AttentionNorm
                    | LayerRole::AttentionAfterNorm
                    | LayerRole::FfnNorm
                    | LayerRole::FfnAfterNorm
                    | LayerRole::QueryNorm
                    | LayerRole::KeyNorm
                    | LayerRole::QueryLatentNorm
                    | LayerRole::KeyValueLatentNorm
            ),
            _ => false,
        }
    }

    /// How many heads the rows belong to, for the matrices and biases whose rows rotate.
    pub(crate) fn rotated_heads(self, settings: &ArchConfig) -> Option<usize> {
        match self {
            Self::Layer(_, LayerRole::Query | LayerRole::QueryBias) => Some(settings.heads),
            Self::Layer(_, LayerRole::Key | LayerRole::KeyBias) => Some(settings.kv_heads),
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
/// within a head, row i pairs with row `i + head_dim / 2`. Of latent attention, the rows that turn
/// stand ahead of a head's own ones, and row i pairs with row `i + turned / 2`.
pub trait TensorSource {
    /// The values of `role`, as many as [`TensorRole::shape`] says.
    ///
    /// # Errors
    /// What hinders the giver; a reader refuses NaN and infinite values.
    fn tensor(&self, role: TensorRole) -> Result<Vec<f32>>;

    /// The same in codes, where the giver keeps the matrix of `role` so.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`]; codes that are not `q s` with a scale for each group.
    fn rounded(&self, _role: TensorRole) -> Result<Option<RoundedRows>> {
        Ok(None)
    }
}

/// How a matrix is rounded: a number is `q s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounding {
    /// Bits of a code: `q` is from `-2^(bits - 1)` to `2^(bits - 1) - 1`.
    pub bits: usize,
    /// Columns that share a scale `s`; `None` for the whole row.
    pub group: Option<usize>,
}

/// A matrix in codes.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundedRows {
    /// How it is rounded.
    pub rounding: Rounding,
    /// Codes row after row.
    pub codes: Vec<i8>,
    /// The scales of each row's groups.
    pub scales: Vec<f32>,
}

impl<F: Fn(TensorRole) -> Result<Vec<f32>>> TensorSource for F {
    fn tensor(&self, role: TensorRole) -> Result<Vec<f32>> {
        self(role)
    }
}
