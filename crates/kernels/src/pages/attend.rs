//! Attention of query rows over the pages of their sequences.

use super::format::Stored;
use super::kernel::{self, Pass};
use super::{KvFormat, KvPool, PAGE};
use crate::attend::{Heads, Parts, fits, gather, settle, weigh};
use crate::check::check_len;
use crate::scratch::Scratch;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Multiply-adds below which a call stays on its own thread.
const SERIAL_WORK: usize = 1 << 17;

/// What each query row sees: `pages[first[t]..]` begins with the pages of its sequence in this
/// layer, in order, of which it sees the first `count[t]` tokens.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// Page lists, one after the other.
    pub pages: &'a [u32],
    /// Where each row's list begins.
    pub first: &'a [u32],
    /// Where what each row sees ends; a row that sees no token gets zeros.
    pub count: &'a [u32],
    /// Tokens at the beginning of the list that each row does not see; empty where all see them.
    pub skip: &'a [u32],
}

impl Tables<'_> {
    /// Tokens before the first that `row` sees.
    fn skip(&self, row: usize) -> usize {
        self.skip.get(row).map_or(0, |&skip| skip as usize)
    }
}

/// Consecutive rows with the same list of pages, and the end of what they see of it.
struct Block {
    rows: Range<usize>,
    tokens: usize,
}

/// The rows in blocks, the one with the most work first.
fn blocks(tables: Tables<'_>, shared: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for row in 0..tables.first.len() {
        let count = tables.count[row] as usize;
        if let Some(last) = blocks.last_mut() {
            let (rows, tokens) = (last.rows.start..row + 1, last.tokens.max(count));
            if tables.first[last.rows.start] == tables.first[row]
                && fits(rows.len(), tokens, shared)
            {
                *last = Block { rows, tokens };
                continue;
            }
        }
        blocks.push(Block { rows: row..row + 1, tokens: count });
    }
    blocks.sort_by_key(|block| std::cmp::Reverse(block.rows.len() * block.tokens));
    blocks
}

#[track_caller]
fn check(
    q: &[f32],
    pool: &KvPool,
    tables: Tables<'_>,
    heads: Heads,
    out: &[f32],
    blocks: &[Block],
) {
    let Heads { heads: h, kv_heads: g, head_dim, value_dim, .. } = heads;
    assert!(
        g > 0 && h.is_multiple_of(g),
        "attend_pages: {h} heads are not a multiple of {g} key-value heads"
    );
    assert!(head_dim > 0, "attend_pages: head_dim is 0");
    assert!(
        g == pool.kv_heads() && head_dim == pool.head_dim() && value_dim == pool.value_dim(),
        "attend_pages: {g} key-value heads of {head_dim} and {value_dim} over a pool of {} of {} \
         and {}",
        pool.kv_heads(),
        pool.head_dim(),
        pool.value_dim()
    );
    check_len("attend_pages", "q", q.len(), tables.first.len() * heads.q_width());
    check_len("attend_pages", "out", out.len(), tables.first.len() * heads.out_width());
    for block in blocks {
        let (row, need) = (block.rows.start, block.tokens.div_ceil(PAGE));
        let list = tables.pages.get(tables.first[row] as usize..).unwrap_or(&[]);
        assert!(
            list.len() >= need,
            "attend_pages: row {row} or its neighbours see {} tokens, but {} pages follow {}",
            block.tokens,
            list.len(),
            tables.first[row]
        );
        if let Some(bad) = list[..need].iter().find(|&&page| page as usize >= pool.pages()) {
            panic!("attend_pages: page {bad} of row {row}, but there are {} pages", pool.pages());
        }
    }
}

/// `out = softmax(s) v` with the scores `s` of [`Heads`], each query row over the tokens that
/// `tables` gives it.
///
/// `q` is `[rows, H head_dim]`, already rotated, and `out` `[rows, H value_dim]`. In
/// [`KvFormat::F32`] the bits are those of [`attend_forward`](crate::attend::attend_forward) over
/// the same keys and values laid out one after the other; in the other formats they are those over
/// the values that [`KvPool::read`] gives. A row's bits depend on nothing but its query and the
/// tokens that it sees, which must be finite.
///
/// # Panics
/// When the lengths or sizes do not fit, or a list or a page is out of range.
pub fn attend_pages(q: &[f32], pool: &KvPool, tables: Tables<'_>, heads: Heads, out: &mut [f32]) {
    check_len("attend_pages", "tables.count", tables.count.len(), tables.first.len());
    if !tables.skip.is_empty() {
        check_len("attend_pages", "tables.skip", tables.skip.len(), tables.first.len());
    }
    let blocks = blocks(tables, heads.heads / heads.kv_heads.max(1));
    check(q, pool, tables, heads, out, &blocks);
    match pool.format() {
        KvFormat::F32 => attend_as::<f32>(q, pool, tables, heads, out, &blocks),
        KvFormat::Bf16 => attend_as::<u16>(q, pool, tables, heads, out, &blocks),
        KvFormat::Int8 => attend_as::<i8>(q, pool, tables, heads, out, &blocks),
    }
}

fn attend_as<T: Stored>(
    q: &[f32],
    pool: &KvPool,
    tables: Tables<'_>,
    heads: Heads,
    out: &mut [f32],
    blocks: &[Block],
) {
    let work: usize =
        blocks.iter().map(|block| block.rows.len() * block.tokens * heads.q_width()).sum();
    let out = Parts::new(out);
    let tasks = blocks.iter().flat_map(|block| (0..heads.kv_heads).map(move |head| (block, head)));
    let task = |(block, head): (&Block, usize)| {
        attend_block::<T>(q, pool, tables, heads, block, head, &out)
    };
    if work <= SERIAL_WORK {
        tasks.for_each(task);
    } else {
        tasks.collect::<Vec<_>>().into_par_iter().with_max_len(1).for_each(task);
    }
}

/// One key-value head of one block.
fn attend_block<T: Stored>(
    q: &[f32],
    pool: &KvPool,
    tables: Tables<'_>,
    heads: Heads,
    block: &Block,
    head: usize,
    out: &Parts<'_>,
) {
    let (shared, hd, vd) = (heads.shared(), heads.head_dim, heads.value_dim);
    // Pages that no row of the block sees are not read: the list begins behind them.
    let unseen = block.rows.clone().map(|row| tables.skip(row)).min().unwrap_or(0) / PAGE;
    let pages = block.tokens.div_ceil(PAGE).saturating_sub(unseen);
    let lines = block.rows.len() * shared;
    let counts = block
        .rows
        .clone()
        .map(|row| (tables.count[row] as usize).saturating_sub(unseen * PAGE) as u32);
    let counts: Vec<u32> = counts.collect();
    // The odd page spreads the lines over the sets of the first-level cache.
    let stride = (pages | 1) * PAGE;
    let mut scratch = Scratch::take(lines * (stride + hd + vd));
    let [scores, dense, sums] = scratch.split([lines * stride, lines * hd, lines * vd]);
    gather((q, hd), heads, head, &block.rows, dense);
    let pass = Pass::<T> {
        pool,
        pages: &tables.pages[tables.first[block.rows.start] as usize + unseen..][..pages],
        head,
        counts: &counts,
        shared,
        q: dense,
        stride,
        kind: PhantomData,
    };
    kernel::key_pass(&pass, scores);
    let mut denominators = vec![0.0; lines];
    for (line, (scores, denominator)) in
        scores.chunks_exact_mut(stride).zip(&mut denominators).enumerate()
    {
        let count = counts[line / shared] as usize;
        let skip = tables.skip(block.rows.start + line / shared).saturating_sub(unseen * PAGE);
        let skip = skip.min(count);
        // What is not seen adds zeros to the sums of values, which changes no bit of them.
        scores[..skip].fill(0.0);
        *denominator = weigh(&mut scores[skip..count], heads).1;
    }
    sums.fill(0.0);
    kernel::value_pass(&pass, scores, sums);
    for (line, (sums, denominator)) in sums.chunks_exact(vd).zip(denominators).enumerate() {
        let row = block.rows.start + line / shared;
        let at = row * heads.out_width() + (head * shared + line % shared) * vd;
        // SAFETY: this task alone writes its head's columns of its block's rows.
        settle(sums, denominator, unsafe { out.part(at, vd) });
    }
}
