//! What a row may look at. Training uses [`PassCache`], which knows only the pass it is in;
//! generation uses [`SequenceCache`], which keeps keys and values from one pass to the next. Layers
//! cannot tell which one they have.

mod cache;
mod transient;

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use ops::{Heads, Ops, PageView, Spans, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use crate::layout::DepthRuns;
use crate::rows::Rows;

pub use cache::SequenceCache;
pub use transient::PassCache;

/// What later recursions attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvMode {
    /// Each recursion keeps keys and values of the rows active in it, and sees only these.
    RecursionWise,
    /// Later recursions see the first one's keys and values of all rows; only queries are computed.
    Shared,
    /// As `Shared`, with the active rows' fresh keys and values written over the first recursion's,
    /// for that recursion only.
    SharedUpdate,
}

impl Display for KvMode {
    /// Its name in recipes.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KvMode::RecursionWise => "recursion_wise",
            KvMode::Shared => "shared",
            KvMode::SharedUpdate => "shared_update",
        })
    }
}

/// Keys and values, and for each asking row what it sees of them.
#[derive(Clone, Debug)]
pub enum KvView {
    /// A matrix of keys and values `[s, 2*G*K]` (key heads, then value heads), of which each row
    /// sees a stretch.
    Lines {
        /// Keys and values of one layer, a line for each row or free place.
        kv_sn: Tensor2,
        /// One span a row.
        spans: Arc<Spans>,
    },
    /// Pages of a store, of which each row sees the beginning of a list.
    Pages(PageView),
}

impl KvView {
    /// Attention of the asking rows over what they see.
    pub(crate) fn attend(
        self,
        ops: Ops,
        q_tn: Tensor2,
        heads: Heads,
        sinks: Option<&Weight>,
    ) -> Tensor2 {
        match (self, sinks) {
            (KvView::Lines { kv_sn, spans }, None) => ops.attend(q_tn, kv_sn, &spans, heads),
            (KvView::Lines { kv_sn, spans }, Some(sinks)) => {
                ops.attend_with_sinks(q_tn, kv_sn, &spans, heads, sinks)
            }
            (KvView::Pages(view), None) => ops.attend_pages(q_tn, &view, heads),
            (KvView::Pages(view), Some(sinks)) => {
                ops.attend_pages_with_sinks(q_tn, &view, heads, sinks)
            }
        }
    }

    /// Of what each row sees the last `window` keys, at least one.
    pub(crate) fn within(self, window: usize) -> Self {
        match self {
            KvView::Lines { kv_sn, spans } => {
                let mut within = (*spans).clone();
                for (start, end) in within.start.iter_mut().zip(&spans.end) {
                    *start = (*start).max((*end as usize).saturating_sub(window) as u32);
                }
                KvView::Lines { kv_sn, spans: Arc::new(within) }
            }
            KvView::Pages(view) => KvView::Pages(view.within(window as u32)),
        }
    }

    /// What the rows of `self` see, then what the rows of `other` see. Only pages can be joined: a
    /// cache that takes mixed depths is paged.
    pub(crate) fn join(self, other: Self) -> Self {
        match (self, other) {
            (KvView::Pages(a), KvView::Pages(b)) => KvView::Pages(a.join(b)),
            _ => unreachable!("passes of mixed depth use pages"),
        }
    }
}

/// Memory of keys and values, addressed by unrolled layer. Rows come with the use of the layer's
/// weights that they are at.
pub trait KvCache {
    /// Takes in the keys and values of `rows`; returns what these rows see at their layer:
    /// themselves and the past.
    fn append(&mut self, at: &DepthRuns, rows: &Rows, kv_tn: Tensor2) -> KvView;

    /// What `rows` see of the keys and values that the first use of their layer took in before, in
    /// this pass or earlier ones.
    fn reuse(&mut self, at: &DepthRuns, rows: &Rows) -> KvView;

    /// What `rows` see at their layer if it holds what the first use of it holds with `kv_tn`
    /// written over it for the rows that passed here, now and earlier. The first one itself does
    /// not change.
    fn overwrite(&mut self, ops: Ops, at: &DepthRuns, rows: &Rows, kv_tn: Tensor2) -> KvView;
}
