//! Experts as files of others know them: how many a block has, which of them a token takes, and how
//! much each weighs.

/// Feed-forward networks of which a token takes some: `y = sum over the chosen e of w_e down_e(act(
/// gate_e(h)) * up_e(h))`, beside a shared one that every token takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Experts of a block.
    pub count: usize,
    /// How many of them a token takes.
    pub top_k: usize,
    /// Inner width of each.
    pub width: usize,
    /// Blocks that have a feed-forward network of inner width `ffn` instead, ascending.
    pub dense: Vec<usize>,
    /// Inner width of the shared expert; 0 for none.
    pub shared: usize,
    /// Whether the shared expert's result is multiplied by a sigmoid of the token's row.
    pub shared_gate: bool,
    /// From logits to scores.
    pub scoring: ExpertScores,
    /// Whether a number is added to each expert's logit.
    pub logit_bias: bool,
    /// Whether a number is added to each expert's score for the choice alone.
    pub choice_bias: bool,
    /// Equal groups of neighbouring experts.
    pub groups: usize,
    /// How many groups a token chooses among: those whose two best scores have the largest sum.
    pub top_groups: usize,
    /// Whether a group counts its best score alone.
    pub best_of_group: bool,
    /// Experts behind these that compute nothing and write the token's row itself.
    pub identity: usize,
    /// Whether blocks with experts have a feed-forward network of inner width `ffn` too, and
    /// experts read what the network of the block before was given.
    pub shortcut: bool,
    /// Whether the scores of the chosen are divided by their sum.
    pub normalize: bool,
    /// The least that this sum counts.
    pub least: f64,
    /// What multiplies the weights.
    pub scale: f64,
    /// Whether experts have biases.
    pub biases: bool,
    /// The clamped product in place of SwiGLU.
    pub clamp: Option<ClampedProduct>,
    /// Weight of the balance loss over all blocks in training; 0 for none.
    pub balance_weight: f64,
}

/// From logits to scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExpertScores {
    /// `softmax(z)` over the experts.
    Softmax,
    /// `sigmoid(z)` of each expert by itself: they do not sum to 1.
    Sigmoid,
    /// SparseMixer: two experts, each weighted by its softmax among those whose logit is near.
    SparseMixer {
        /// Half of the relative distance at which a logit is near.
        jitter: f64,
    },
}

/// `gate sigmoid(alpha gate) (up + 1)`, gate at most and up within `limit`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedProduct {
    /// Where gate and up are cut.
    pub limit: f64,
    /// The slope of the sigmoid.
    pub alpha: f64,
}

impl Default for Experts {
    /// As Mixtral has them, of no size.
    fn default() -> Self {
        Self {
            count: 0,
            top_k: 2,
            width: 0,
            dense: Vec::new(),
            shared: 0,
            shared_gate: false,
            scoring: ExpertScores::Softmax,
            logit_bias: false,
            choice_bias: false,
            groups: 1,
            top_groups: 1,
            best_of_group: false,
            identity: 0,
            shortcut: false,
            normalize: true,
            least: 0.0,
            scale: 1.0,
            biases: false,
            clamp: None,
            balance_weight: 0.0,
        }
    }
}

impl Experts {
    /// Experts that the router chooses among.
    pub fn all(&self) -> usize {
        self.count + self.identity
    }

    /// Whether block `layer` has experts.
    pub fn reach(&self, layer: usize) -> bool {
        !self.dense.contains(&layer)
    }
}
