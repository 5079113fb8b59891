//! What a model computes beside plain Llama.

/// What a model computes beside plain Llama; the default is nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Additions {
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// What attention writes to the residual stream has a bias.
    pub output_bias: bool,
    /// Gate, up and down have biases; beside experts, those of dense blocks and of the shared
    /// expert.
    pub mlp_bias: bool,
    /// RMSNorm of queries and keys, before rotary positions.
    pub query_key_norm: HeadNorm,
    /// Queries, keys and values lie within minus this and this, behind the norms.
    pub clip: Option<f64>,
    /// Each head has a score that no key has, which takes its share of the softmax.
    pub sinks: bool,
    /// Rows of some blocks see their last keys alone.
    pub window: Option<SlidingWindow>,
    /// Factor of products of queries and keys, in place of `1 / sqrt(head_dim)`.
    pub score_scale: Option<f64>,
    /// Soft cap c of scores s: `c tanh(s / c)`.
    pub score_cap: Option<f64>,
    /// Share of a head's columns that turn, from the first, where not all do.
    pub rotary_share: Option<f64>,
    /// Blocks without rotary positions, ascending.
    pub without_rotary: Vec<usize>,
    /// Rotary base of blocks with a window, whose frequencies are not rescaled.
    pub window_theta: Option<f64>,
    /// Whether norms are ahead of attention and MLP, behind them, or both.
    pub norm_place: NormPosition,
    /// Norms multiply by `1 + w` in place of `w`.
    pub norm_plus_one: bool,
    /// Norms of the stream take away the mean of a row first, and have biases (LayerNorm).
    pub layer_norm: bool,
    /// Each logit has a bias.
    pub head_bias: bool,
    /// What the gate goes through.
    pub activation: HiddenActivation,
    /// Factor of embeddings as they enter the residual stream.
    pub embedding_multiplier: Option<f64>,
    /// Factor of what attention and MLP add to the residual stream.
    pub residual_multiplier: Option<f64>,
    /// What logits are divided by.
    pub logits_divisor: Option<f64>,
    /// Soft cap of logits.
    pub logit_cap: Option<f64>,
    /// Keys and values of all heads come out of one narrow row.
    pub latent: Option<LatentAttention>,
}

/// Multi-head latent attention (DeepSeek-V2, 2024, arXiv:2405.04434): of each head `[own key |
/// value]` is a product with the normed latent, and in front of all own keys stands one key that
/// turns. Queries have the same two parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentAttention {
    /// Width of the latent of queries; 0 where they come out of the token's row.
    pub query: usize,
    /// Width of the latent of keys and values.
    pub key_value: usize,
    /// Columns of a key that turn, and that all heads share.
    pub turned: usize,
    /// Width of the values of a head.
    pub value: usize,
    /// What multiplies the normed latent of keys and values.
    pub scale: f64,
    /// Whether columns `2 i` and `2 i + 1` turn together in the file, instead of columns i and `i +
    /// turned / 2`.
    pub neighbours_turn: bool,
}

/// RMSNorm of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeadNorm {
    /// Queries and keys go to their products as they are (Llama).
    #[default]
    None,
    /// Over each head, with one gain of `head_dim`.
    Head,
    /// Over each head, behind rotary positions.
    HeadTurned,
    /// Over all heads together.
    Width,
}

/// Where attention and MLP of a block have their norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NormPosition {
    /// Ahead: `x + f(norm(x))` (Llama).
    #[default]
    Before,
    /// On what they add to the residual stream: `x + norm(f(x))` (OLMo 2).
    After,
    /// Ahead and behind: `x + norm(f(norm(x)))` (Gemma 2).
    Both,
}

/// What the gate of an MLP goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HiddenActivation {
    /// `z / (1 + e^-z)`
    #[default]
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
    /// GELU by the error function.
    Gelu,
}

/// Rows that see their last keys alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Keys that a row sees, its own among them.
    pub size: usize,
    /// Blocks in which it is so, ascending; at least one.
    pub blocks: Vec<usize>,
}

impl SlidingWindow {
    /// Whether it is so in every one of `layers` blocks.
    pub fn is_everywhere(&self, layers: usize) -> bool {
        self.blocks.len() == layers
    }
}

impl Additions {
    /// The first addition by name that is here and not in `held`; `None` if `held` has all.
    pub fn beyond(&self, held: &Self) -> Option<&'static str> {
        let differ = [
            ("latent attention", self.latent != held.latent),
            ("biases of attention", self.qkv_bias != held.qkv_bias),
            ("a bias of attention's output", self.output_bias != held.output_bias),
            ("biases of the MLP", self.mlp_bias != held.mlp_bias),
            ("norms of queries and keys", self.query_key_norm != held.query_key_norm),
            ("clipped queries, keys and values", self.clip != held.clip),
            ("attention sinks", self.sinks != held.sinks),
            ("a sliding window", self.window != held.window),
            ("a scale of scores", self.score_scale != held.score_scale),
            ("a soft cap of scores", self.score_cap != held.score_cap),
            ("heads that turn in part", self.rotary_share != held.rotary_share),
            ("blocks without rotary positions", self.without_rotary != held.without_rotary),
            ("a rotary base of windows", self.window_theta != held.window_theta),
            ("norms in other places", self.norm_place != held.norm_place),
            ("norms by 1 + w", self.norm_plus_one != held.norm_plus_one),
            ("LayerNorm", self.layer_norm != held.layer_norm),
            ("a bias of the output matrix", self.head_bias != held.head_bias),
            ("another activation", self.activation != held.activation),
            ("a multiplier of embeddings", self.embedding_multiplier != held.embedding_multiplier),
            ("a multiplier of residuals", self.residual_multiplier != held.residual_multiplier),
            ("a divisor of logits", self.logits_divisor != held.logits_divisor),
            ("a soft cap of logits", self.logit_cap != held.logit_cap),
        ];
        differ.iter().find(|(_, differs)| *differs).map(|(name, _)| *name)
    }
}
