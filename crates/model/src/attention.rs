//! Attention with its norms, rotary positions and output: `x += O attend(norm(x))`.

use std::sync::Arc;

use ops::{Heads, Rotary, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use crate::context::LayerContext;
use crate::error::{ConfigError, refuse};
use crate::kv::{KvMode, KvView};
use crate::layer_set::LayerSet;
use crate::layout::{DepthRuns, LayerUse};
use crate::linear::Linear;
use crate::norm::{Join, Norm};
use crate::params::{ParamSpec, Part};
use crate::pass::Pass;
use crate::rows::Rows;
use crate::sizes::Sizes;

/// The norm ahead of attention.
pub const NORM: Part = Part::new("attention_norm");
/// The norm on what attention adds to the stream.
pub const AFTER_NORM: Part = Part::new("attention_after_norm");
/// The norm of queries.
pub const QUERY_NORM: Part = Part::new("query_norm");
/// The norm of keys.
pub const KEY_NORM: Part = Part::new("key_norm");
/// `[1, H K]`: added to queries.
pub const QUERY_BIAS: Part = Part::new("query_bias");
/// `[1, 2 G K]`: added to keys, then to values.
pub const KEY_VALUE_BIAS: Part = Part::new("key_value_bias");
/// `[1, d]`: added to what attention writes to the stream.
pub const OUTPUT_BIAS: Part = Part::new("output_bias");
/// `[1, H]`: a score of each head that no key has.
pub const SINKS: Part = Part::new("sinks");
/// `[H K, d]`: queries.
pub const QUERY: Part = Part::new("query");
/// `[2 G K, d]`: keys, then values.
pub const KEY_VALUE: Part = Part::new("key_value");
/// `[d, H K]`: what attention writes to the stream.
pub const OUTPUT: Part = Part::new("output");

/// The matrices of attention, in the order of computation.
pub(crate) const PARTS: [Part; 3] = [QUERY, KEY_VALUE, OUTPUT];

/// Its matrices in stored layer `stored`.
pub(crate) fn specs(sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
    let (d, n) = (sizes.width, sizes.heads * sizes.head_dim);
    vec![
        ParamSpec::matrix(sizes, stored, QUERY, (n, d)),
        ParamSpec::matrix(sizes, stored, KEY_VALUE, (sizes.kv_width(), d)),
        ParamSpec::matrix(sizes, stored, OUTPUT, (d, n)),
    ]
}

/// Its biases in stored layer `stored`.
pub(crate) fn vectors(
    settings: &AttentionSettings,
    sizes: &Sizes,
    stored: usize,
) -> Vec<ParamSpec> {
    let mut table = Vec::new();
    if settings.bias {
        let n = sizes.heads * sizes.head_dim;
        table.push(ParamSpec::bias(stored, QUERY_BIAS, n));
        table.push(ParamSpec::bias(stored, KEY_VALUE_BIAS, sizes.kv_width()));
    }
    if settings.sinks {
        table.push(ParamSpec::bias(stored, SINKS, sizes.heads));
    }
    if settings.output_bias {
        table.push(ParamSpec::bias(stored, OUTPUT_BIAS, sizes.width));
    }
    table
}

/// Whether use `at` computes `part`: where keys and values are shared, later uses read those of the
/// first one.
pub fn runs(kv: KvMode, at: LayerUse, part: Part) -> bool {
    !(part == KEY_VALUE && kv == KvMode::Shared && at.recursion > 0)
}

/// Biases, norms, windows and scores of attention: `[model.attention]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// Attention over its weights.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Ahead of it, where there is one.
    pub(crate) norm: Option<Norm>,
    pub(crate) query: Linear,
    pub(crate) key_value: Linear,
    pub(crate) output: Linear,
    /// Of queries, and how many stretches of a row each is over.
    pub(crate) query_norm: Option<(Norm, usize)>,
    /// The same of keys.
    pub(crate) key_norm: Option<(Norm, usize)>,
    /// Whether these norms stand behind the turn.
    pub(crate) turned_first: bool,
    /// The limit of queries, keys and values.
    pub(crate) clip: Option<f32>,
    /// The scores of heads that no key has.
    pub(crate) sinks: Option<Arc<Weight>>,
    pub(crate) heads: Heads,
    /// None in layers without positions.
    pub(crate) rotary: Option<Rotary>,
    /// Keys that a row sees, where not all.
    pub(crate) window: Option<usize>,
    pub(crate) mode: KvMode,
    pub(crate) join: Join,
}

impl Attention {
    /// `x + O attend(norm(x))`.
    pub(crate) fn forward(&self, x_td: Tensor2, context: &mut LayerContext<'_, '_>) -> Tensor2 {
        let LayerContext { pass, rows, at, .. } = context;
        let h_td = match &self.norm {
            Some(norm) => norm.forward(x_td.clone(), at, pass.ops),
            None => x_td.clone(),
        };
        let q_tn = self.query.apply(h_td.clone(), at, pass);
        let q_tn = self.placed(q_tn, self.query_norm.as_ref(), self.heads.heads, rows, at, pass);
        let view = self.keys_and_values(h_td, rows, at, pass);
        let view = match self.window {
            Some(window) => view.within(window),
            None => view,
        };
        let y_tn = view.attend(pass.ops, q_tn, self.heads, self.sinks.as_deref());
        if self.join.is_sum() {
            return self.output.add(y_tn, x_td, at, pass);
        }
        let y_td = self.output.apply(y_tn, at, pass);
        self.join.add(x_td, y_td, at, pass.ops)
    }

    /// Queries or keys, the first `heads` heads of each row, normed and turned.
    fn placed(
        &self,
        x_tn: Tensor2,
        norm: Option<&(Norm, usize)>,
        heads: usize,
        rows: &Rows,
        at: &DepthRuns,
        pass: &Pass<'_>,
    ) -> Tensor2 {
        let turn = |x_tn| match &self.rotary {
            Some(rotary) => pass.ops.rotate(x_tn, rotary, heads, &rows.position),
            None => x_tn,
        };
        let normed = |x_tn| match norm {
            Some((norm, stretches)) => norm.of_heads(x_tn, *stretches, at, pass.ops),
            None => x_tn,
        };
        if self.turned_first {
            return normed(turn(self.clipped(x_tn)));
        }
        turn(self.clipped(normed(x_tn)))
    }

    fn clipped(&self, x_tn: Tensor2) -> Tensor2 {
        match self.clip {
            Some(limit) => ops::clamp(x_tn, limit),
            None => x_tn,
        }
    }

    fn project(&self, h_td: Tensor2, rows: &Rows, at: &DepthRuns, pass: &mut Pass<'_>) -> Tensor2 {
        let kv_tn = self.key_value.apply(h_td, at, pass);
        self.placed(kv_tn, self.key_norm.as_ref(), self.heads.kv_heads, rows, at, pass)
    }

    /// Under sharing, only the first recursion projects keys and values at all; rows that are there
    /// come first.
    fn keys_and_values(
        &self,
        h_td: Tensor2,
        rows: &Rows,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> KvView {
        let fresh = if self.mode == KvMode::RecursionWise { rows.len() } else { at.fresh() };
        if fresh == rows.len() {
            return self.first(h_td, rows, at, pass);
        }
        if fresh == 0 {
            return self.later(h_td, rows, at, pass);
        }
        let (first, rest) = at.split(fresh);
        let h_first = ops::rows_of(&h_td, 0..fresh);
        let view = self.first(h_first, &rows.stretch_of(0..fresh), &first, pass);
        let h_rest = ops::rows_of(&h_td, fresh..rows.len());
        view.join(self.later(h_rest, &rows.stretch_of(fresh..rows.len()), &rest, pass))
    }

    /// What rows see that bring keys and values of their own.
    fn first(&self, h_td: Tensor2, rows: &Rows, at: &DepthRuns, pass: &mut Pass<'_>) -> KvView {
        let kv_tn = self.project(h_td, rows, at, pass);
        pass.kv.append(at, rows, kv_tn)
    }

    /// What rows of a later recursion see under sharing.
    fn later(&self, h_td: Tensor2, rows: &Rows, at: &DepthRuns, pass: &mut Pass<'_>) -> KvView {
        if self.mode == KvMode::Shared {
            return pass.kv.reuse(at, rows);
        }
        let kv_tn = self.project(h_td, rows, at, pass);
        pass.kv.overwrite(pass.ops, at, rows, kv_tn)
    }
}
