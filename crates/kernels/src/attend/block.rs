//! What the passes share: moving a key-value head's rows in and out of dense blocks, and the row
//! arithmetic between the products.

use super::plan::Block;
use super::{Heads, Spans};
use crate::exp::{exp, tanh};
use crate::matmul::Mat;
use crate::multiversion::multiversion;
use crate::reduce::{LANES, dot, max_value, tree_sum};
use std::marker::PhantomData;
use std::ops::Range;

/// A slice that parallel tasks write in parts that never overlap.
pub(crate) struct Parts<'a> {
    data: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for a `&mut [f32]`; the callers of `part` keep the parts of different threads
// apart.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    pub(crate) fn new(data: &'a mut [f32]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// The values `at..at + len`.
    ///
    /// # Safety
    /// No other live part holds any of them.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at <= self.len && len <= self.len - at, "part {at}+{len} of {}", self.len);
        // SAFETY: in bounds by the line above, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) }
    }
}

/// The keys (`value` false) or values of one key-value head over a range of keys, `[keys,
/// head_dim]` or `[keys, value_dim]`.
pub(super) fn key_view<'a>(
    kv: &'a [f32],
    heads: Heads,
    head: usize,
    keys: &Range<usize>,
    value: bool,
) -> Mat<'a> {
    let (column, width) = match value {
        false => (head * heads.head_dim, heads.head_dim),
        true => (heads.kv_heads * heads.head_dim + head * heads.value_dim, heads.value_dim),
    };
    let from = (keys.start * heads.kv_width() + column).min(kv.len());
    Mat::strided(&kv[from..], keys.len(), width, heads.kv_width(), 1)
}

/// Copies the query heads of one key-value head, for the block's rows, out of `x` `[rows, H width]`
/// to `dense` `[rows, shared, width]`.
pub(crate) fn gather(
    (x, width): (&[f32], usize),
    heads: Heads,
    head: usize,
    rows: &Range<usize>,
    dense: &mut [f32],
) {
    let part = heads.shared() * width;
    for (row, dense) in rows.clone().zip(dense.chunks_exact_mut(part)) {
        dense.copy_from_slice(&x[row * heads.heads * width + head * part..][..part]);
    }
}

/// The keys that a row sees, counted from the first key of its block.
pub(super) fn local(spans: &Spans, row: usize, block: &Block) -> Range<usize> {
    let span = spans.range(row);
    if span.is_empty() { 0..0 } else { span.start - block.keys.start..span.end - block.keys.start }
}

multiversion! {
    /// Turns raw scores into `exp(scale s - max)`; returns the scaled maximum and the sum in lanes.
    fn soften(scores: &mut [f32], scale: f32) -> (f32, f32) {
        let max = max_value(scores) * scale;
        let mut lanes = [0.0f32; LANES];
        let (blocks, tail) = scores.as_chunks_mut::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                block[lane] = exp(block[lane].mul_add(scale, -max));
                lanes[lane] += block[lane];
            }
        }
        for (lane, score) in lanes.iter_mut().zip(tail) {
            *score = exp(score.mul_add(scale, -max));
            *lane += *score;
        }
        (max, tree_sum(lanes))
    }
}

multiversion! {
    /// Replaces each value `x` by `cap tanh(scale x / cap)`.
    fn cap_scaled(x: &mut [f32], scale: f32, cap: f32) {
        let inner = scale / cap;
        for x in x {
            *x = cap * tanh(inner * *x);
        }
    }
}

/// Turns the raw scores of one row's span into what the softmax weighs values with, before it
/// divides: `exp(s - max)`; returns the largest `s` and the sum in lanes.
pub(crate) fn weigh(scores: &mut [f32], heads: Heads) -> (f32, f32) {
    match heads.cap {
        None => soften(scores, heads.scale()),
        Some(cap) => {
            cap_scaled(scores, heads.scale(), cap);
            soften(scores, 1.0)
        }
    }
}

/// Replaces each value `x` by `cap tanh(x / cap)`, `cap` above 0.
pub fn cap_values(x: &mut [f32], cap: f32) {
    cap_scaled(x, 1.0, cap);
}

multiversion! {
    /// The slopes of [`cap_values`] where it gave `y`: `1 - (y / cap)^2`.
    pub fn cap_slopes(y: &mut [f32], cap: f32) {
        let inverse = 1.0 / cap;
        for y in y {
            let t = *y * inverse;
            *y = (-t).mul_add(t, 1.0);
        }
    }
}

multiversion! {
    /// `out = x * factor`, with the zeros of either sign made positive.
    ///
    /// A chain that passes over masked keys can lose the sign of an underflowed zero; this removes
    /// the difference.
    fn finish(x: &[f32], factor: f32, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * factor + 0.0;
        }
    }
}

/// Turns a value sum into a row of output by the softmax's denominator `sum`, a row that sees no
/// key into zeros; returns whether it saw one.
pub(crate) fn settle(sums: &[f32], sum: f32, out: &mut [f32]) -> bool {
    let seen = sum > 0.0 || sum.is_nan();
    finish(sums, if seen { 1.0 / sum } else { 0.0 }, out);
    seen
}

multiversion! {
    /// Turns raw scores into probabilities, and products `g . v` into score gradients, of one row's
    /// span.
    pub(super) fn score_gradients(
        scores: &mut [f32],
        products: &mut [f32],
        scale: f32,
        lse: f32,
        pull: f32,
    ) {
        for (score, product) in scores.iter_mut().zip(products) {
            let p = exp(score.mul_add(scale, -lse));
            *score = p;
            *product = p * (*product - pull) * scale;
        }
    }
}

multiversion! {
    /// [`score_gradients`] where scores have a cap.
    pub(super) fn capped_score_gradients(
        scores: &mut [f32],
        products: &mut [f32],
        scale: f32,
        cap: f32,
        lse: f32,
        pull: f32,
    ) {
        let inner = scale / cap;
        for (score, product) in scores.iter_mut().zip(products) {
            let t = tanh(inner * *score);
            let p = exp(cap.mul_add(t, -lse));
            *score = p;
            *product = p * (*product - pull) * (-t).mul_add(t, 1.0) * scale;
        }
    }
}

multiversion! {
    pub(super) fn dot_product(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

/// Sets everything outside `span` to zero.
pub(super) fn mask(row: &mut [f32], span: &Range<usize>) {
    row[..span.start].fill(0.0);
    row[span.end..].fill(0.0);
}
