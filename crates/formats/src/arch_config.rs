//! The numbers that fix a model's arithmetic, whatever file and architecture they came from.

use std::path::Path;

use crate::{
    Additions, ClampedProduct, ExpertScores, Experts, FormatError, HiddenActivation,
    LatentAttention, Result,
};

/// The largest size accepted for any dimension; real models stay far below it.
const MAX_SIZE: usize = 1 << 31;
const MAX_LAYERS: usize = 1 << 16;
const MAX_EXPERTS: usize = 1 << 12;

/// The numbers that fix a model's arithmetic, which is Llama's (Touvron et al. 2023,
/// arXiv:2302.13971; grouped-query attention as in arXiv:2307.09288), pre-norm blocks with RMSNorm,
/// rotary positions, SwiGLU and no biases, with what [`Additions`] has beside it.
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
    /// What the model computes beside plain Llama.
    pub additions: Additions,
    /// Experts in place of the feed-forward network of all or some blocks.
    pub experts: Option<Experts>,
}

/// A change of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
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
    /// YaRN (arXiv:2309.00071): pairs that turn often within the original context keep their
    /// frequency, those that turn seldom have it divided by `factor`, with a straight line between;
    /// what turns is multiplied by a factor.
    Yarn {
        /// Division of the slow frequencies.
        factor: f64,
        /// Turns above which a pair is fast.
        beta_fast: f64,
        /// Turns below which a pair is slow.
        beta_slow: f64,
        /// The context before the change, in tokens.
        original_context: usize,
        /// The factor of what turns; where absent, by the next two, or `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
        /// With `mscale_all_dim`: `m(mscale) / m(mscale_all_dim)`, `m(a) = 0.1 a ln(factor) + 1`.
        mscale: Option<f64>,
        /// What divides `m(mscale)`; one of the two without the other counts for nothing.
        mscale_all_dim: Option<f64>,
        /// Whether the pairs between fast and slow are rounded outwards.
        truncate: bool,
    },
    /// Frequencies as they are up to the original context, those of a larger base for longer texts,
    /// by their length.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// The context up to which nothing changes, in tokens.
        original_context: usize,
    },
    /// LongRoPE (arXiv:2402.13753): each frequency divided by a factor of its own, from one list
    /// for texts up to the original context, from another for longer ones; what turns is
    /// multiplied by a factor.
    LongRope {
        /// One for each pair that turns.
        short_factor: Vec<f64>,
        /// One for each pair that turns.
        long_factor: Vec<f64>,
        /// The context up to which the short ones count, in tokens.
        original_context: usize,
        /// `max_position_embeddings`: the longest texts.
        long_context: usize,
        /// The factor of what turns; where absent, `sqrt(1 + ln(long / original) / ln(original))`.
        attention_factor: Option<f64>,
    },
}

impl RopeScaling {
    /// The context up to which every text has the same frequencies, where a model that is meant
    /// for `context` has others for longer texts.
    pub(crate) fn constant_up_to(&self, context: usize) -> usize {
        match self {
            Self::LongRope { original_context, .. } => context.min(*original_context),
            _ => context,
        }
    }
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
        if self.additions.latent.is_none() && !self.head_dim.is_multiple_of(2) {
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
        self.experts.as_ref().map_or(Ok(()), |experts| experts.check(path, self.layers))?;
        self.check_additions(path)?;
        self.check_experts(path)?;
        self.additions.latent.map_or(Ok(()), |latent| self.check_latent(path, latent))?;
        let turned = self.turned();
        self.rope_scaling.as_ref().map_or(Ok(()), |scaling| scaling.check(path, turned))
    }

    /// Columns of a head that turn.
    fn turned(&self) -> usize {
        let of_heads = self.additions.rotary_share.unwrap_or(1.0) * self.head_dim as f64;
        self.additions.latent.map_or(of_heads as usize, |latent| latent.turned)
    }

    /// Refuses widths of latents that no model has.
    fn check_latent(&self, path: &Path, latent: LatentAttention) -> Result<()> {
        let LatentAttention { query, key_value, turned, value, scale, .. } = latent;
        let widths =
            [("q_lora_rank", query, 0), ("kv_lora_rank", key_value, 1), ("v_head_dim", value, 1)];
        for (field, found, least) in widths {
            if found < least || found > MAX_LAYERS {
                let expected = format!("{least} to {MAX_LAYERS}");
                return Err(FormatError::damaged(path, field, expected, found.to_string()));
            }
        }
        if turned == 0 || !turned.is_multiple_of(2) || turned >= self.head_dim {
            let expected = format!(
                "an even number of the {} columns of a head, and not all (qk_nope_head_dim is at \
                 least 1)",
                self.head_dim
            );
            let field = "qk_rope_head_dim";
            return Err(FormatError::damaged(path, field, expected, turned.to_string()));
        }
        if self.heads != self.kv_heads {
            let expected = format!("{}, as num_attention_heads", self.heads);
            let found = self.kv_heads.to_string();
            return Err(FormatError::damaged(path, "num_key_value_heads", expected, found));
        }
        if !(scale.is_finite() && scale > 0.0) {
            let expected = "a positive number";
            return Err(FormatError::damaged(path, "latent scale", expected, scale.to_string()));
        }
        Ok(())
    }

    /// Refuses another activation beside experts, which have SiLU.
    fn check_experts(&self, path: &Path) -> Result<()> {
        let activation = self.additions.activation;
        if self.experts.is_none() || activation == HiddenActivation::Silu {
            return Ok(());
        }
        let (expected, found) = ("\"silu\" for experts", format!("{activation:?}"));
        Err(FormatError::unsupported(path, "hidden_act", expected, found))
    }

    /// Refuses additions that no model of these blocks and heads has.
    fn check_additions(&self, path: &Path) -> Result<()> {
        let (layers, head_dim, additions) = (self.layers, self.head_dim, &self.additions);
        for (field, found) in [
            ("score_scale", additions.score_scale),
            ("score_cap", additions.score_cap),
            ("clip_qkv", additions.clip),
            ("window_theta", additions.window_theta),
            ("embedding_multiplier", additions.embedding_multiplier),
            ("residual_multiplier", additions.residual_multiplier),
            ("logits_divisor", additions.logits_divisor),
            ("logit_cap", additions.logit_cap),
        ] {
            if let Some(found) = found.filter(|x| !(x.is_finite() && *x > 0.0)) {
                let expected = "a positive number";
                return Err(FormatError::damaged(path, field, expected, found.to_string()));
            }
        }
        if let Some(share) = additions.rotary_share {
            let turned = (head_dim as f64 * share) as usize;
            if !(share > 0.0 && share <= 1.0 && turned > 0 && turned.is_multiple_of(2)) {
                let expected = format!("a share with which an even number of {head_dim} turn");
                return Err(FormatError::damaged(
                    path,
                    "partial_rotary_factor",
                    expected,
                    share.to_string(),
                ));
            }
        }
        let blocks = additions.window.iter().flat_map(|window| &window.blocks);
        if let Some(block) = blocks.chain(&additions.without_rotary).find(|&&block| block >= layers)
        {
            let expected = format!("blocks below {layers}");
            return Err(FormatError::damaged(path, "layer_types", expected, block.to_string()));
        }
        match &additions.window {
            Some(window) if window.size == 0 => {
                Err(FormatError::damaged(path, "sliding_window", "at least 1", "0"))
            }
            _ => Ok(()),
        }
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

impl Experts {
    /// Refuses numbers that no model of `layers` blocks has.
    fn check(&self, path: &Path, layers: usize) -> Result<()> {
        let sizes = [
            ("experts", self.count, 1, MAX_EXPERTS),
            ("experts a token takes", self.top_k, 1, self.all()),
            ("width of an expert", self.width, 1, MAX_SIZE),
            ("width of the shared expert", self.shared, 0, MAX_SIZE),
            ("identity experts", self.identity, 0, MAX_EXPERTS),
            ("groups of experts", self.groups, 1, self.all()),
            ("groups a token chooses among", self.top_groups, 1, self.groups),
        ];
        for (field, value, least, most) in sizes {
            if value < least || value > most {
                let expected = format!("{least} to {most}");
                return Err(FormatError::damaged(path, field, expected, value.to_string()));
            }
        }
        let refuse = |field: &str, expected: String, found: String| {
            Err(FormatError::damaged(path, field, expected, found))
        };
        if !self.all().is_multiple_of(self.groups) {
            let expected = format!("a divisor of {} experts", self.all());
            return refuse("groups of experts", expected, self.groups.to_string());
        }
        let among = self.all() / self.groups * self.top_groups;
        if self.top_k > among {
            let expected = format!("at most {among}, the experts of {} groups", self.top_groups);
            return refuse("experts a token takes", expected, self.top_k.to_string());
        }
        if (0..layers).all(|layer| !self.reach(layer)) {
            let found = "a feed-forward network in every block".to_owned();
            return refuse("blocks", "one with experts".into(), found);
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let at_least_0 = |x: f64| x.is_finite() && x >= 0.0;
        let clamp = self.clamp.unwrap_or(ClampedProduct { limit: 1.0, alpha: 1.0 });
        let jitter = match self.scoring {
            ExpertScores::SparseMixer { jitter } => jitter,
            _ => 0.0,
        };
        let numbers = [
            ("factor of the weights of experts", self.scale, positive(self.scale)),
            ("least sum of the weights", self.least, at_least_0(self.least)),
            ("weight of the balance loss", self.balance_weight, at_least_0(self.balance_weight)),
            ("limit of gate and up", clamp.limit, positive(clamp.limit)),
            ("slope of the sigmoid", clamp.alpha, positive(clamp.alpha)),
            ("jitter", jitter, at_least_0(jitter)),
        ];
        for (field, value, fits) in numbers {
            if !fits {
                let expected = "a number above 0, or 0 where that asks for nothing";
                return refuse(field, expected.into(), value.to_string());
            }
        }
        let takes_two =
            !matches!(self.scoring, ExpertScores::SparseMixer { .. }) || self.top_k == 2;
        if !takes_two {
            let found = self.top_k.to_string();
            return refuse("experts a token takes", "2, as SparseMixer has it".into(), found);
        }
        Ok(())
    }
}

impl RopeScaling {
    fn check(&self, path: &Path, turned: usize) -> Result<()> {
        let factor = match *self {
            Self::Linear { factor }
            | Self::Llama3 { factor, .. }
            | Self::Yarn { factor, .. }
            | Self::Dynamic { factor, .. } => factor,
            Self::LongRope { .. } => 1.0,
        };
        if !(factor.is_finite() && factor >= 1.0) {
            let expected = "a number of at least 1";
            return Err(FormatError::damaged(
                path,
                "rope_scaling.factor",
                expected,
                factor.to_string(),
            ));
        }
        if let Self::Yarn { beta_fast, beta_slow, .. } = *self
            && !(beta_slow > 0.0 && beta_fast.is_finite() && beta_fast > beta_slow)
        {
            let expected = "0 < beta_slow < beta_fast";
            let found = format!("{beta_slow} and {beta_fast}");
            return Err(FormatError::damaged(path, "rope_scaling.beta_fast", expected, found));
        }
        if let Self::Llama3 { low, high, .. } = *self
            && !(low > 0.0 && high.is_finite() && high > low)
        {
            let field = "rope_scaling.high_freq_factor";
            let expected = "0 < low_freq_factor < high_freq_factor";
            return Err(FormatError::damaged(path, field, expected, format!("{low} and {high}")));
        }
        if let Self::LongRope { short_factor, long_factor, .. } = self {
            for (field, list) in [("short_factor", short_factor), ("long_factor", long_factor)] {
                if list.len() != turned / 2 || list.iter().any(|x| !(1e-6..=1e6).contains(x)) {
                    let field = format!("rope_scaling.{field}");
                    let expected =
                        format!("{} numbers from 1e-6 to 1e6, one for each pair", turned / 2);
                    let found = format!("{} numbers", list.len());
                    return Err(FormatError::damaged(path, field, expected, found));
                }
            }
        }
        if let Self::Llama3 { original_context, .. }
        | Self::Yarn { original_context, .. }
        | Self::Dynamic { original_context, .. }
        | Self::LongRope { original_context, .. } = *self
            && (original_context == 0 || original_context > MAX_SIZE)
        {
            let field = "rope_scaling.original_max_position_embeddings";
            let found = original_context.to_string();
            return Err(FormatError::damaged(path, field, "1 to 2^31", found));
        }
        Ok(())
    }
}
