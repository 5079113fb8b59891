//! The backward pass: one task a key-value head of each group of rows whose keys nobody else sees,
//! so that every gradient is summed by one task in a fixed order.

use super::block::{
    Parts, capped_score_gradients, dot_product, gather, key_view, local, mask, score_gradients,
};
use super::plan::{Block, Group, blocks, groups};
use super::{Heads, Spans, check};
use crate::check::check_len;
use crate::matmul::{Mat, MatMut, Start, Threads, matmul};
use crate::scratch::Scratch;
use rayon::prelude::*;

/// What every task reads.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: &'a [f32],
    kv: &'a [f32],
    spans: &'a Spans,
    heads: Heads,
    out: &'a [f32],
    lse: &'a [f32],
    g: &'a [f32],
}

/// What the tasks write: each the columns of its head in the rows and keys of its group.
struct Outputs<'a> {
    dq: Parts<'a>,
    dkv: Parts<'a>,
}

/// The gradient of [`attend_forward`](super::attend_forward) for the output gradient `g` `[Tq, H
/// value_dim]`.
///
/// `out` and `lse` are what the forward pass wrote; `dq` `[Tq, H head_dim]` and `dkv` `[Tk, G
/// (head_dim + value_dim)]` are overwritten. With `s` the scores, `p = e^(s - lse)` worked out
/// again (Dao et al. 2022), `a` the factor of products and `ds = p (g . v - g . out)`, times `1 -
/// (s / c)^2` with a cap: `dq = a ds k`, `dk = a ds^T q`, `dv = p^T g`.
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
    for (argument, len) in [("out", out.len()), ("g", g.len())] {
        check_len("attend_backward", argument, len, spans.start.len() * heads.out_width());
    }
    check_len("attend_backward", "dq", dq.len(), q.len());
    check_len("attend_backward", "dkv", dkv.len(), kv.len());
    let groups = groups(blocks(spans, heads.shared()));
    let mut unseen = 0;
    for group in groups.iter().filter(|group| !group.keys.is_empty()) {
        dkv[unseen * heads.kv_width()..group.keys.start * heads.kv_width()].fill(0.0);
        unseen = group.keys.end;
    }
    dkv[unseen * heads.kv_width()..].fill(0.0);
    let inputs = Inputs { q, kv, spans, heads, out, lse, g };
    let outputs = Outputs { dq: Parts::new(dq), dkv: Parts::new(dkv) };
    let tasks: Vec<(&Group, usize)> = groups
        .iter()
        .flat_map(|group| (0..heads.kv_heads).map(move |head| (group, head)))
        .collect();
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(group, head)| backward_group(inputs, group, head, &outputs));
}

/// One key-value head of one group.
fn backward_group(inputs: Inputs<'_>, group: &Group, head: usize, outputs: &Outputs<'_>) {
    let heads = inputs.heads;
    let (hd, vd, keys) = (heads.head_dim, heads.value_dim, group.keys.len());
    let mut scratch = Scratch::take(keys * (hd + vd));
    let [dk, dv] = scratch.split([keys * hd, keys * vd]);
    dk.fill(0.0);
    dv.fill(0.0);
    for block in &group.blocks {
        let from = block.keys.start - group.keys.start;
        let keys = from..from + block.keys.len();
        let (dk, dv) =
            (&mut dk[keys.start * hd..keys.end * hd], &mut dv[keys.start * vd..keys.end * vd]);
        backward_block(inputs, block, head, dk, dv, outputs);
    }
    for (key, (dk, dv)) in group.keys.clone().zip(dk.chunks_exact(hd).zip(dv.chunks_exact(vd))) {
        let at = key * heads.kv_width();
        // SAFETY: this task alone writes its head's columns of its group's keys.
        unsafe {
            outputs.dkv.part(at + head * hd, hd).copy_from_slice(dk);
            outputs.dkv.part(at + heads.kv_heads * hd + head * vd, vd).copy_from_slice(dv);
        }
    }
}

/// Writes the query gradients of a block and adds to the gradients of its keys `[keys, head_dim]`
/// and values `[keys, value_dim]`.
fn backward_block(
    inputs: Inputs<'_>,
    block: &Block,
    head: usize,
    dk: &mut [f32],
    dv: &mut [f32],
    outputs: &Outputs<'_>,
) {
    let Inputs { kv, heads, .. } = inputs;
    let (shared, hd, vd) = (heads.shared(), heads.head_dim, heads.value_dim);
    let keys = block.keys.len();
    let rows = block.rows.len() * shared;
    let mut scratch = Scratch::take(rows * (2 * keys + 2 * hd + vd));
    let [scores, products, q, g, dq] =
        scratch.split([rows * keys, rows * keys, rows * hd, rows * vd, rows * hd]);
    gather((inputs.q, hd), heads, head, &block.rows, q);
    gather((inputs.g, vd), heads, head, &block.rows, g);
    let (k, v) = (
        key_view(kv, heads, head, &block.keys, false),
        key_view(kv, heads, head, &block.keys, true),
    );
    let (q, g) = (Mat::rows_major(q, rows, hd), Mat::rows_major(g, rows, vd));
    matmul(MatMut::rows_major(scores, rows, keys), q, k.t(), Start::Zero, Threads::One);
    matmul(MatMut::rows_major(products, rows, keys), g, v.t(), Start::Zero, Threads::One);
    differentiate(inputs, block, head, scores, products);
    let (p, ds) = (Mat::rows_major(scores, rows, keys), Mat::rows_major(products, rows, keys));
    matmul(MatMut::rows_major(dq, rows, hd), ds, k, Start::Zero, Threads::One);
    matmul(MatMut::rows_major(dk, keys, hd), ds.t(), q, Start::FromC, Threads::One);
    matmul(MatMut::rows_major(dv, keys, vd), p.t(), g, Start::FromC, Threads::One);
    for (row, dq) in block.rows.clone().zip(dq.chunks_exact(shared * hd)) {
        // SAFETY: this task alone writes its head's columns of its group's rows.
        let place =
            unsafe { outputs.dq.part(row * heads.q_width() + head * shared * hd, shared * hd) };
        place.copy_from_slice(dq);
    }
}

/// Turns scores into probabilities and `g . v` into score gradients, zero outside each row's span.
fn differentiate(
    inputs: Inputs<'_>,
    block: &Block,
    head: usize,
    scores: &mut [f32],
    products: &mut [f32],
) {
    let Inputs { spans, heads, out, lse, g, .. } = inputs;
    let (shared, vd) = (heads.shared(), heads.value_dim);
    let keys = block.keys.len();
    if keys == 0 {
        return;
    }
    for (at, (scores, products)) in
        scores.chunks_exact_mut(keys).zip(products.chunks_exact_mut(keys)).enumerate()
    {
        let row = block.rows.start + at / shared;
        let one = row * heads.heads + head * shared + at % shared;
        let pull = dot_product(&g[one * vd..][..vd], &out[one * vd..][..vd]);
        let span = local(spans, row, block);
        mask(scores, &span);
        mask(products, &span);
        let (scores, products) = (&mut scores[span.clone()], &mut products[span]);
        let (scale, lse) = (heads.scale(), lse[one]);
        match heads.cap {
            None => score_gradients(scores, products, scale, lse, pull),
            Some(cap) => capped_score_gradients(scores, products, scale, cap, lse, pull),
        }
    }
}
