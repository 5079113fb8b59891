//! Grouped-query attention over ragged key ranges, and its gradient, without a matrix of all scores.

use crate::dispatch::{check_len, dot, tree_sum, LANES};
use crate::exp::exp;

/// The keys that each query row sees: row `i` sees `start[i]..end[i]` of the key array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// First key of each query row.
    pub start: Vec<u32>,
    /// One past the last key of each query row; not above `start` for a row that sees none.
    pub end: Vec<u32>,
}

impl Spans {
    /// Whether there is one start and one end a row and no end is past `keys`.
    ///
    /// # Errors
    /// A sentence naming the first misfit.
    pub fn check(&self, keys: usize) -> Result<(), String> {
        if self.start.len() != self.end.len() {
            return Err(format!("spans have {} starts and {} ends; give one of each a row", self.start.len(), self.end.len()));
        }
        match self.end.iter().position(|&end| end as usize > keys) {
            Some(row) => Err(format!(
                "span of row {row} is {}..{} where there are {keys} keys; end it at {keys} or before",
                self.start[row], self.end[row]
            )),
            None => Ok(()),
        }
    }

    pub(crate) fn range(&self, row: usize) -> std::ops::Range<usize> {
        let (start, end) = (self.start[row] as usize, self.end[row] as usize);
        start.min(end)..end
    }
}

/// Sizes of grouped-query attention: query head `h` uses key-value head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Number of query heads, H.
    pub heads: usize,
    /// Number of key-value heads, G, a divisor of H.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

#[track_caller]
fn check(name: &str, q: &[f32], kv: &[f32], spans: &Spans, heads: Heads, lse: &[f32]) {
    let Heads { heads: h, kv_heads: g, head_dim } = heads;
    assert!(g > 0 && h.is_multiple_of(g), "{name}: {h} heads are not a multiple of {g} key-value heads");
    assert!(head_dim > 0, "{name}: head_dim is 0");
    check_len(name, "q", q.len(), spans.start.len() * h * head_dim);
    check_len(name, "lse", lse.len(), spans.start.len() * h);
    let keys = kv.len() / (2 * g * head_dim);
    check_len(name, "kv (whole rows)", kv.len(), keys * 2 * g * head_dim);
    if let Err(reason) = spans.check(keys) {
        panic!("{name}: {reason}");
    }
}

/// `out = softmax(q k^T / sqrt(head_dim)) v`, each query row over its own span of keys.
///
/// `q` and `out` `[Tq, H head_dim]` (already rotated), `kv` `[Tk, 2 G head_dim]` (G key heads, then G value
/// heads), `lse` `[Tq, H]`: natural logarithm of the softmax's denominator. A row that sees no key gets zeros
/// and an `lse` of minus infinity.
///
/// # Panics
/// When the lengths or the spans do not fit.
pub fn attend_forward(q: &[f32], kv: &[f32], spans: &Spans, heads: Heads, out: &mut [f32], lse: &mut [f32]) {
    check("attend_forward", q, kv, spans, heads, lse);
    check_len("attend_forward", "out", out.len(), q.len());
    let Heads { heads: h, kv_heads: g, head_dim: hd } = heads;
    let scale = 1.0 / (hd as f32).sqrt();
    for i in 0..spans.start.len() {
        for head in 0..h {
            let span = spans.range(i);
            let at = (i * h + head) * hd;
            let key = |j: usize| &kv[(j * 2 * g + head / (h / g)) * hd..][..hd];
            let value = |j: usize| &kv[(j * 2 * g + g + head / (h / g)) * hd..][..hd];
            let scores: Vec<f32> = span
                .clone()
                .map(|j| q[at..at + hd].iter().zip(key(j)).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum)) * scale)
                .collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut lanes = [0.0; LANES];
            let out = &mut out[at..at + hd];
            out.fill(0.0);
            for (j, score) in scores.iter().enumerate() {
                let p = exp(score - max);
                lanes[j % LANES] += p;
                for (out, v) in out.iter_mut().zip(value(span.start + j)) {
                    *out = p.mul_add(*v, *out);
                }
            }
            let sum = tree_sum(lanes);
            lse[i * h + head] = max + sum.ln();
            if !span.is_empty() {
                out.iter_mut().for_each(|out| *out = *out * (1.0 / sum) + 0.0);
            } else {
                lse[i * h + head] = f32::NEG_INFINITY;
            }
        }
    }
}

/// The gradient of [`attend_forward`] for the output gradient `g` `[Tq, H head_dim]`.
///
/// `out` and `lse` are what the forward pass wrote; `dq` `[Tq, H head_dim]` and `dkv` `[Tk, 2 G head_dim]` are
/// overwritten. Probabilities are worked out again from `lse` (Dao et al. 2022).
///
/// # Panics
/// When the lengths or the spans do not fit.
pub fn attend_backward(
    q: &[f32],
    kv: &[f32],
    spans: &Spans,
    heads: Heads,
    out: &[f32],
    lse: &[f32],
    g: &[f32],
    dq: &mut [f32],
    dkv: &mut [f32],
) {
    check("attend_backward", q, kv, spans, heads, lse);
    for (argument, len) in [("out", out.len()), ("g", g.len()), ("dq", dq.len())] {
        check_len("attend_backward", argument, len, q.len());
    }
    check_len("attend_backward", "dkv", dkv.len(), kv.len());
    let Heads { heads: h, kv_heads, head_dim: hd } = heads;
    let scale = 1.0 / (hd as f32).sqrt();
    dq.fill(0.0);
    dkv.fill(0.0);
    for i in 0..spans.start.len() {
        for head in 0..h {
            let at = (i * h + head) * hd;
            let (q, g, out) = (&q[at..at + hd], &g[at..at + hd], &out[at..at + hd]);
            let pull = dot(g, out);
            for j in spans.range(i) {
                let key_at = (j * 2 * kv_heads + head / (h / kv_heads)) * hd;
                let value_at = key_at + kv_heads * hd;
                let (key, value) = (&kv[key_at..key_at + hd], &kv[value_at..value_at + hd]);
                let p = exp(q.iter().zip(key).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum)) * scale - lse[i * h + head]);
                let ds = p * (g.iter().zip(value).fold(0.0f32, |sum, (g, v)| g.mul_add(*v, sum)) - pull) * scale;
                for t in 0..hd {
                    dq[at + t] = ds.mul_add(key[t], dq[at + t]);
                    dkv[key_at + t] = ds.mul_add(q[t], dkv[key_at + t]);
                    dkv[value_at + t] = p.mul_add(g[t], dkv[value_at + t]);
                }
            }
        }
    }
}
