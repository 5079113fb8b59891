//! Grouped-query attention over ragged key ranges, and its gradient, without a matrix of all
//! scores.

mod backward;
mod block;
mod forward;
mod plan;
#[cfg(test)]
mod tests;

pub use backward::attend_backward;
pub(crate) use block::{Parts, gather, settle, weigh};
pub use block::{cap_slopes, cap_values};
pub use forward::attend_forward;
pub(crate) use plan::fits;

use crate::check::check_len;
use std::ops::Range;

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
            return Err(format!(
                "spans have {} starts and {} ends; give one of each a row",
                self.start.len(),
                self.end.len()
            ));
        }
        match self.end.iter().position(|&end| end as usize > keys) {
            Some(row) => Err(format!(
                "span of row {row} is {}..{} where there are {keys} keys; \
                 end it at {keys} or before",
                self.start[row], self.end[row]
            )),
            None => Ok(()),
        }
    }

    /// The keys of one row, `0..0` for a row that sees none.
    fn range(&self, row: usize) -> Range<usize> {
        let (start, end) = (self.start[row] as usize, self.end[row] as usize);
        if start < end { start..end } else { 0..0 }
    }
}

/// Sizes of grouped-query attention: query head `h` uses key-value head `h / (heads / kv_heads)`.
/// The score of a query and a key is `s = a q.k`, or `c tanh(a q.k / c)` with a cap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Number of query heads, H.
    pub heads: usize,
    /// Number of key-value heads, G, a divisor of H.
    pub kv_heads: usize,
    /// Width of a head of queries and keys, K.
    pub head_dim: usize,
    /// Width of a head of values and of results, V; mostly that of keys.
    pub value_dim: usize,
    /// The factor `a` of products; `None` for `1 / sqrt(head_dim)`.
    pub scale: Option<f32>,
    /// The cap `c` of scores, above 0 (Gemma 2, 2024, arXiv 2408.00118).
    pub cap: Option<f32>,
}

impl Heads {
    /// Heads of these sizes, values as wide as keys, with products divided by `sqrt(head_dim)` and
    /// no cap.
    pub const fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { heads, kv_heads, head_dim, value_dim: head_dim, scale: None, cap: None }
    }
}

#[track_caller]
fn check(name: &str, q: &[f32], kv: &[f32], spans: &Spans, heads: Heads, lse: &[f32]) {
    let Heads { heads: h, kv_heads: g, head_dim, value_dim, .. } = heads;
    assert!(
        g > 0 && h.is_multiple_of(g),
        "{name}: {h} heads are not a multiple of {g} key-value heads"
    );
    assert!(head_dim > 0, "{name}: head_dim is 0");
    assert!(value_dim > 0, "{name}: value_dim is 0");
    check_len(name, "q", q.len(), spans.start.len() * h * head_dim);
    check_len(name, "lse", lse.len(), spans.start.len() * h);
    let keys = kv.len() / heads.kv_width();
    check_len(name, "kv (whole rows)", kv.len(), keys * heads.kv_width());
    if let Err(reason) = spans.check(keys) {
        panic!("{name}: {reason}");
    }
}

impl Heads {
    /// Query heads that share a key-value head.
    pub(crate) fn shared(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Numbers in a row of queries.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Numbers in a row of keys and values: key heads, then value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * (self.head_dim + self.value_dim)
    }

    /// Numbers in a row of results.
    pub fn out_width(&self) -> usize {
        self.heads * self.value_dim
    }

    pub(crate) fn scale(&self) -> f32 {
        self.scale.unwrap_or_else(|| 1.0 / (self.head_dim as f32).sqrt())
    }
}
