//! What a row may look at. Training uses [`Transient`], which knows only the pass it is in; generation uses [`Cache`],
//! which keeps keys and values from one pass to the next. Layers cannot tell which one they have.

mod cache;
mod transient;

use std::sync::Arc;

use ops::{Ops, Spans, Tensor2};

use crate::Rows;

pub use cache::Cache;
pub use transient::Transient;

/// Keys and values `[s, 2*G*K]` and, for each asking row, the stretch of them that it sees.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Key heads, then value heads.
    pub kv_sn: Tensor2,
    /// One span a row.
    pub spans: Arc<Spans>,
}

/// Memory of keys and values, addressed by unrolled layer.
pub trait Kv {
    /// Takes in the keys and values of `rows` at `layer`; returns what these rows see there: themselves and the past.
    fn extend(&mut self, layer: usize, rows: &Rows, kv_tn: Tensor2) -> Seen;

    /// What `rows` see of the keys and values that `layer` took in before, in this pass or earlier ones.
    fn recall(&mut self, layer: usize, rows: &Rows) -> Seen;

    /// What `rows` see at `layer` if it holds what `first` holds with `kv_tn` written over it for the rows that passed
    /// here, now and earlier. `first` itself does not change.
    fn overlay(&mut self, ops: Ops, layer: usize, first: usize, rows: &Rows, kv_tn: Tensor2) -> Seen;
}
