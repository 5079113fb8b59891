//! The forward pass: scores, softmax and value sums of one block of query rows at a time.

use super::block::{Parts, gather, key_view, local, mask, settle, weigh};
use super::plan::{Block, blocks};
use super::{Heads, Spans, check};
use crate::check::check_len;
use crate::matmul::{Mat, MatMut, Start, Threads, matmul};
use crate::scratch::Scratch;
use rayon::prelude::*;

/// Multiply-adds below which a call stays on its own thread.
const SERIAL_WORK: usize = 1 << 18;

/// What every task reads.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: &'a [f32],
    kv: &'a [f32],
    spans: &'a Spans,
    heads: Heads,
}

/// What the tasks write: each the columns of its head in the rows of its block.
struct Outputs<'a> {
    out: Parts<'a>,
    lse: Parts<'a>,
}

impl Outputs<'_> {
    /// Writes one row of one key-value head from value sums `[shared, value_dim]`, maxima and
    /// denominators.
    ///
    /// # Safety
    /// No other thread writes this row of this head.
    unsafe fn write(
        &self,
        heads: Heads,
        row: usize,
        head: usize,
        sums: &[f32],
        statistics: &[(f32, f32)],
    ) {
        let (vd, first) = (heads.value_dim, row * heads.heads + head * heads.shared());
        // SAFETY: the parts lie inside this row's part of this head.
        let (out, lse) = unsafe {
            (self.out.part(first * vd, sums.len()), self.lse.part(first, statistics.len()))
        };
        for (i, &(max, sum)) in statistics.iter().enumerate() {
            let at = i * vd..(i + 1) * vd;
            let seen = settle(&sums[at.clone()], sum, &mut out[at]);
            lse[i] = if seen { max + sum.ln() } else { f32::NEG_INFINITY };
        }
    }
}

/// `out = softmax(s) v` with the scores `s` of [`Heads`], each query row over its own span of keys.
///
/// `q` `[Tq, H head_dim]` (already rotated), `kv` `[Tk, G (head_dim + value_dim)]` (G key heads,
/// then G value heads), `out` `[Tq, H value_dim]`, `lse` `[Tq, H]`: natural logarithm of the
/// softmax's denominator. A row that sees no key gets zeros and an `lse` of minus infinity. A row's
/// bits depend on nothing but its query and the keys of its span, which must be finite.
///
/// # Panics
/// When the lengths or the spans do not fit.
pub fn attend_forward(
    q: &[f32],
    kv: &[f32],
    spans: &Spans,
    heads: Heads,
    out: &mut [f32],
    lse: &mut [f32],
) {
    check("attend_forward", q, kv, spans, heads, lse);
    check_len("attend_forward", "out", out.len(), spans.start.len() * heads.out_width());
    let inputs = Inputs { q, kv, spans, heads };
    let outputs = Outputs { out: Parts::new(out), lse: Parts::new(lse) };
    let blocks = blocks(spans, heads.shared());
    let work: usize =
        blocks.iter().map(|block| block.rows.len() * block.keys.len() * heads.q_width()).sum();
    let task = |(block, head): (&Block, usize)| forward_block(inputs, block, head, &outputs);
    // The last blocks of a segment see the most keys, so they go first.
    let tasks =
        blocks.iter().rev().flat_map(|block| (0..heads.kv_heads).map(move |head| (block, head)));
    if work <= SERIAL_WORK {
        tasks.for_each(task);
    } else {
        tasks.collect::<Vec<_>>().into_par_iter().with_max_len(1).for_each(task);
    }
}

fn forward_block(inputs: Inputs<'_>, block: &Block, head: usize, outputs: &Outputs<'_>) {
    let Inputs { q, kv, spans, heads } = inputs;
    let (shared, hd, vd) = (heads.shared(), heads.head_dim, heads.value_dim);
    let keys = block.keys.len();
    let rows = block.rows.len() * shared;
    let mut scratch = Scratch::take(rows * (keys + hd.max(vd)));
    // Queries, and where they are no longer needed sums of values.
    let [scores, dense] = scratch.split([rows * keys, rows * hd.max(vd)]);
    gather((q, hd), heads, head, &block.rows, &mut dense[..rows * hd]);
    let (k, v) = (
        key_view(kv, heads, head, &block.keys, false),
        key_view(kv, heads, head, &block.keys, true),
    );
    let q = Mat::rows_major(&dense[..rows * hd], rows, hd);
    matmul(MatMut::rows_major(scores, rows, keys), q, k.t(), Start::Zero, Threads::One);
    let mut statistics = vec![(f32::NEG_INFINITY, 0.0); rows];
    if keys > 0 {
        for (at, (scores, statistics)) in
            scores.chunks_exact_mut(keys).zip(&mut statistics).enumerate()
        {
            let span = local(spans, block.rows.start + at / shared, block);
            mask(scores, &span);
            *statistics = weigh(&mut scores[span], heads);
        }
    }
    let p = Mat::rows_major(scores, rows, keys);
    let sums = &mut dense[..rows * vd];
    matmul(MatMut::rows_major(sums, rows, vd), p, v, Start::Zero, Threads::One);
    let sums = sums.chunks_exact(shared * vd).zip(statistics.chunks_exact(shared));
    for (row, (sums, statistics)) in block.rows.clone().zip(sums) {
        // SAFETY: this task alone writes its head's columns of its block's rows.
        unsafe { outputs.write(heads, row, head, sums, statistics) };
    }
}
