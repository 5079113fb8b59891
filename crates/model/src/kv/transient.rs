//! The cache that forgets: a pass sees itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Ops, Spans, Tensor2};

use super::{Kv, Seen};
use crate::Rows;
use crate::rows::visible;
use crate::sharing::Uses;

/// Keys and values of the running pass only. Differentiable: gradients flow back to whoever made them.
#[derive(Debug, Default)]
pub struct Transient {
    kept: BTreeMap<usize, (Rows, Tensor2)>,
    /// The last spans made: all layers of a recursion ask for the same.
    spans: Option<(Rows, Rows, Arc<Spans>)>,
    shares: bool,
}

impl Transient {
    /// `shares` says whether later recursions will [`Kv::recall`]; if not, nothing is kept at all.
    pub fn new(shares: bool) -> Self {
        Self { shares, ..Self::default() }
    }

    fn visible(&mut self, queries: &Rows, keys: &Rows) -> Arc<Spans> {
        if let Some((q, k, spans)) = &self.spans
            && q.same(queries)
            && k.same(keys)
        {
            return spans.clone();
        }
        let spans = Arc::new(visible(queries, keys));
        self.spans = Some((queries.clone(), keys.clone(), spans.clone()));
        spans
    }
}

impl Kv for Transient {
    fn extend(&mut self, at: &Uses, rows: &Rows, kv_tn: Tensor2) -> Seen {
        if self.shares {
            self.kept.insert(at.only().layer, (rows.clone(), kv_tn.clone()));
        }
        Seen::Lines { kv_sn: kv_tn, spans: self.visible(rows, rows) }
    }

    fn recall(&mut self, at: &Uses, rows: &Rows) -> Seen {
        let (keys, kv_sn) = self.kept[&at.only().first].clone();
        Seen::Lines { kv_sn, spans: self.visible(rows, &keys) }
    }

    fn overlay(&mut self, ops: Ops, at: &Uses, rows: &Rows, kv_tn: Tensor2) -> Seen {
        let (keys, all) = self.kept[&at.only().first].clone();
        let spans = self.visible(rows, &keys);
        // A row sees up to itself and no further, so the last key it sees is its own.
        let own: Arc<[u32]> = spans.end.iter().map(|&end| end - 1).collect();
        Seen::Lines { kv_sn: ops.replace_rows(all, &own, kv_tn), spans }
    }
}
