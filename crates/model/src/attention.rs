//! Attention with its norms, rotary positions and output: `x += O attend(norm(x))`.

use std::sync::Arc;

use ops::{Heads, Rotary, Tensor2, Weight};

use crate::attention_settings::AttentionSettings;
use crate::context::LayerContext;
use crate::kv::{KvMode, KvView};
use crate::latent::{KEY_VALUE_LATENT, Latent, QUERY_LATENT};
use crate::layout::{DepthRuns, LayerUse};
use crate::linear::Linear;
use crate::norm::{Join, Norm};
use crate::params::{ParamSpec, Part};
use crate::pass::Pass;
use crate::rows::Rows;
use crate::sizes::{LatentSizes, Sizes};

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
/// `[H K, d]`: queries; with a latent of theirs `[H K, m]`.
pub const QUERY: Part = Part::new("query");
/// `[2 G K, d]`: keys, then values; with a latent `[H (K - r + V), m]`, of each head what of its
/// key is its own, then its value.
pub const KEY_VALUE: Part = Part::new("key_value");
/// `[d, H V]`: what attention writes to the stream; values are mostly as wide as keys.
pub const OUTPUT: Part = Part::new("output");

/// The matrices that all attention has, in the order of computation.
pub(crate) const PARTS: [Part; 3] = [QUERY, KEY_VALUE, OUTPUT];

/// Its matrices in stored layer `stored`.
pub(crate) fn specs(sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
    if let Some(latent) = sizes.latent {
        return with_latents(sizes, latent, stored);
    }
    let (d, n) = (sizes.width, sizes.heads * sizes.head_dim);
    vec![
        ParamSpec::matrix(sizes, stored, QUERY, (n, d)),
        ParamSpec::matrix(sizes, stored, KEY_VALUE, (sizes.kv_width(), d)),
        ParamSpec::matrix(sizes, stored, OUTPUT, (d, n)),
    ]
}

/// The matrices of latent attention in stored layer `stored`, in the order of computation.
fn with_latents(sizes: &Sizes, latent: LatentSizes, stored: usize) -> Vec<ParamSpec> {
    let (d, heads) = (sizes.width, sizes.heads);
    let matrix = |part, shape| ParamSpec::matrix(sizes, stored, part, shape);
    let seen = if latent.query > 0 { latent.query } else { d };
    let own = sizes.head_dim - latent.turned;
    let mut table = Vec::new();
    if latent.query > 0 {
        table.push(matrix(QUERY_LATENT, (latent.query, d)));
    }
    table.push(matrix(QUERY, (heads * sizes.head_dim, seen)));
    table.push(matrix(KEY_VALUE_LATENT, (latent.key_value + latent.turned, d)));
    table.push(matrix(KEY_VALUE, (heads * (own + sizes.value_dim), latent.key_value)));
    table.push(matrix(OUTPUT, (d, heads * sizes.value_dim)));
    table
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
    let of_keys = part == KEY_VALUE || part == KEY_VALUE_LATENT;
    !(of_keys && kv == KvMode::Shared && at.recursion > 0)
}

/// Attention over its weights.
#[derive(Debug)]
pub(crate) struct Attention {
    /// Ahead of it, where there is one.
    pub(crate) norm: Option<Norm>,
    pub(crate) query: Linear,
    pub(crate) key_value: Linear,
    pub(crate) output: Linear,
    /// Where queries, keys and values come out of latents.
    pub(crate) latent: Option<Latent>,
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
        let seen_tm = match &self.latent {
            Some(latent) => latent.of_queries(h_td.clone(), rows, at, pass),
            None => h_td.clone(),
        };
        let q_tn = self.query.apply(seen_tm, rows, at, pass);
        let q_tn = self.placed(q_tn, self.query_norm.as_ref(), self.heads.heads, rows, at, pass);
        let view = self.keys_and_values(h_td, rows, at, pass);
        let view = match self.window {
            Some(window) => view.within(window),
            None => view,
        };
        let y_tn = view.attend(pass.ops, q_tn, self.heads, self.sinks.as_deref());
        if self.join.is_sum() {
            return self.output.add(y_tn, x_td, rows, at, pass);
        }
        let y_td = self.output.apply(y_tn, rows, at, pass);
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
        if let Some(latent) = &self.latent {
            return latent.keys_and_values(h_td, (&self.key_value, self.heads), rows, at, pass);
        }
        let kv_tn = self.key_value.apply(h_td, rows, at, pass);
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
