//! Multi-head latent attention (DeepSeek-V2, 2024, arXiv 2405.04434): keys and values of all heads
//! come out of one narrow row, the latent, and so may queries. With `n` an RMSNorm and `s` a fixed
//! factor:
//!
//! ```text
//! [c | r] = W_kv_latent h        c = s n(c), r turned by the position
//! key of head i = [r | own key], [own key | value] of head i = W_kv c
//! query of head i = [turned | own query] = W_q h, or W_q n(W_q_latent h)
//! ```
//!
//! The first columns of queries and keys turn, and in keys they are one stretch for all heads.
//! Caches hold keys and values of each head, as those of other attention: `H (K + V)` numbers a
//! token, not the latent. So a row's result is one chain of products, whatever cache it runs over,
//! and every matrix stays one that takes adapters and rounded weights.

use ops::{Heads, Rotary, Tensor2};

use crate::layout::DepthRuns;
use crate::linear::{Linear, LinearBuilder};
use crate::norm::Norm;
use crate::params::{Part, Take};
use crate::pass::Pass;
use crate::rows::Rows;
use crate::sizes::LatentSizes;

/// `[m, d]`: what queries come out of.
pub const QUERY_LATENT: Part = Part::new("query_latent");
/// The norm of that.
pub const QUERY_LATENT_NORM: Part = Part::new("query_latent_norm");
/// `[m + r, d]`: what keys and values come out of, then the part of keys that heads share.
pub const KEY_VALUE_LATENT: Part = Part::new("key_value_latent");
/// The norm of the first `m` of these.
pub const KEY_VALUE_LATENT_NORM: Part = Part::new("key_value_latent_norm");

/// The matrices that other attention has not.
pub(crate) const PARTS: [Part; 2] = [QUERY_LATENT, KEY_VALUE_LATENT];

/// Added to the mean square in the norms of latents, whatever the other norms add: the published
/// models have it so.
pub(crate) const EPSILON: f32 = 1e-6;

/// The norms of latents and their widths.
pub(crate) fn norms(latent: LatentSizes) -> Vec<(Part, usize)> {
    let query = (latent.query > 0).then_some((QUERY_LATENT_NORM, latent.query));
    query.into_iter().chain([(KEY_VALUE_LATENT_NORM, latent.key_value)]).collect()
}

/// The way through the latents, over its weights.
#[derive(Debug)]
pub(crate) struct Latent {
    query: Option<(Linear, Norm)>,
    key_value: Linear,
    norm: Norm,
    sizes: LatentSizes,
    /// What multiplies the normed latent of keys and values.
    scale: f32,
    /// Of the part of keys that heads share; none in layers without positions.
    rotary: Option<Rotary>,
}

impl Latent {
    /// The latents of one stored layer; `norm` builds the norms.
    pub(crate) fn build(
        (sizes, scale): (LatentSizes, f64),
        rotary: Option<Rotary>,
        linears: &LinearBuilder<'_>,
        norm: impl Fn(Part, &mut Take) -> Norm,
        take: &mut Take,
    ) -> Self {
        let query = (sizes.query > 0)
            .then(|| (linears.build(QUERY_LATENT, take), norm(QUERY_LATENT_NORM, take)));
        Self {
            query,
            key_value: linears.build(KEY_VALUE_LATENT, take),
            norm: norm(KEY_VALUE_LATENT_NORM, take),
            sizes,
            scale: scale as f32,
            rotary,
        }
    }

    /// What queries come out of.
    pub(crate) fn of_queries(
        &self,
        h_td: Tensor2,
        rows: &Rows,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let Some((linear, norm)) = &self.query else { return h_td };
        let c_tm = linear.apply(h_td, rows, at, pass);
        norm.forward(c_tm, at, pass.ops)
    }

    /// Keys and values of all heads, the keys turned; `up` expands the latent.
    pub(crate) fn keys_and_values(
        &self,
        h_td: Tensor2,
        (up, heads): (&Linear, Heads),
        rows: &Rows,
        at: &DepthRuns,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let (ops, m) = (pass.ops, self.sizes.key_value);
        let both_tn = self.key_value.apply(h_td, rows, at, pass);
        let shared_tr = ops.columns_of(both_tn.clone(), m..m + self.sizes.turned);
        let shared_tr = match &self.rotary {
            Some(rotary) => ops.rotate(shared_tr, rotary, 1, &rows.position),
            None => shared_tr,
        };
        let c_tm = self.norm.forward(ops.columns_of(both_tn, 0..m), at, ops);
        let c_tm = if self.scale == 1.0 { c_tm } else { ops.times(c_tm, self.scale) };
        let expanded_tn = up.apply(c_tm, rows, at, pass);
        ops.join_heads(expanded_tn, shared_tr, heads)
    }
}
