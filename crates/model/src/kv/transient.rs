//! The cache that forgets: a pass sees itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Ops, Spans, Tensor2};

use super::{KvCache, KvView};
use crate::layout::DepthRuns;
use crate::rows::{Rows, visible};

/// Keys and values of the running pass only. Differentiable: gradients flow back to whoever made
/// them.
#[derive(Debug, Default)]
pub struct PassCache {
    kept: BTreeMap<usize, (Rows, Tensor2)>,
    /// The last spans made: all layers of a recursion ask for the same.
    spans: Option<(Rows, Rows, Arc<Spans>)>,
    shares: bool,
}

impl PassCache {
    /// `shares` says whether later recursions will [`KvCache::reuse`]; if not, nothing is kept at
    /// all.
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

impl KvCache for PassCache {
    fn append(&mut self, at: &DepthRuns, rows: &Rows, kv_tn: Tensor2) -> KvView {
        if self.shares {
            self.kept.insert(at.only().layer, (rows.clone(), kv_tn.clone()));
        }
        KvView::Lines { kv_sn: kv_tn, spans: self.visible(rows, rows) }
    }

    fn reuse(&mut self, at: &DepthRuns, rows: &Rows) -> KvView {
        let (keys, kv_sn) = self.kept[&at.only().first].clone();
        KvView::Lines { kv_sn, spans: self.visible(rows, &keys) }
    }

    fn overwrite(&mut self, ops: Ops, at: &DepthRuns, rows: &Rows, kv_tn: Tensor2) -> KvView {
        let (keys, all) = self.kept[&at.only().first].clone();
        let spans = self.visible(rows, &keys);
        // A row sees up to itself and no further, so the last key it sees is its own.
        let own: Arc<[u32]> = spans.end.iter().map(|&end| end - 1).collect();
        KvView::Lines { kv_sn: ops.replace_rows(all, &own, kv_tn), spans }
    }
}
