//! Keys and values in pages, written once and read by every later row of their sequence, and
//! attention over them. For inference: nothing here is on the tape.

use std::sync::{Arc, RwLock};

pub use kernels::pages::{KvFormat, PAGE};
use kernels::pages::{KvPool, Tables, attend_pages};

use crate::attend::{Heads, Spans};
use crate::seam::{FastOp, Raw, apply, buffer, dims, host, make, values};
use crate::tensor::beside;
use crate::{Ops, Tensor2, from_rows, timing};

/// The name of writing in reports of time.
struct KvWrite;

/// A store of pages, each [`PAGE`] tokens of one layer. Shared by whoever writes and reads it.
#[derive(Clone)]
pub struct KvStore {
    pool: Arc<RwLock<KvPool>>,
    kv_width: usize,
}

impl std::fmt::Debug for KvStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("store of keys and values")
    }
}

impl KvStore {
    /// Room for `pages` pages. Memory is taken from the system when a page is first written.
    pub fn new(format: KvFormat, heads: Heads, pages: usize) -> Self {
        let pool = KvPool::new(format, heads, pages);
        Self { pool: Arc::new(RwLock::new(pool)), kv_width: heads.kv_width() }
    }

    /// Bytes of one page.
    pub fn page_bytes(format: KvFormat, heads: Heads) -> usize {
        KvPool::page_bytes(format, heads)
    }

    /// Bytes of the keys and values of one token in one layer.
    pub fn token_bytes(format: KvFormat, heads: Heads) -> usize {
        KvPool::token_bytes(format, heads)
    }

    /// Writes the rows of `kv_tn` (key heads, then value heads) to `places` (page * [`PAGE`] +
    /// slot).
    pub fn write(&self, places: &[u32], kv_tn: &Tensor2) {
        timing::of::<KvWrite, _>(true, || {
            let kv = host(kv_tn);
            self.pool.write().expect("store lock").write(places, values(&kv));
        });
    }

    /// Copies whole tokens from place to place, bit for bit.
    pub fn copy(&self, from: &[u32], to: &[u32]) {
        self.pool.write().expect("store lock").copy(from, to);
    }

    /// The keys and values at `places`, one row each.
    pub fn read(&self, places: &[u32]) -> Tensor2 {
        let pool = self.pool.read().expect("store lock");
        let mut lines = vec![0.0; places.len() * self.kv_width];
        for (line, &place) in lines.chunks_exact_mut(self.kv_width).zip(places) {
            pool.read(place, line);
        }
        from_rows(lines, places.len(), self.kv_width)
    }
}

/// What some rows see of a store: row `t` sees the tokens `skip[t]..count[t]` of the page list that
/// begins at `pages[first[t]]`.
#[derive(Clone, Debug)]
pub struct PageView {
    /// The store that the pages belong to; a handle, not a copy.
    pub store: KvStore,
    /// Page lists, one after the other.
    pub pages: Arc<[u32]>,
    /// Where each row's list begins.
    pub first: Arc<[u32]>,
    /// Where what each row sees ends.
    pub count: Arc<[u32]>,
    /// Where it begins; empty where all rows see their lists from the beginning.
    pub skip: Arc<[u32]>,
}

/// `a`, then `b + add`.
fn chain(a: &[u32], b: &[u32], add: u32) -> Arc<[u32]> {
    a.iter().copied().chain(b.iter().map(|&x| x + add)).collect()
}

impl PageView {
    /// The same, but of what a row sees the last `window` tokens alone.
    pub fn within(self, window: u32) -> Self {
        let begins = self.begins();
        let rows = begins.iter().zip(self.count.iter());
        let skip = rows.map(|(&begin, count)| begin.max(count.saturating_sub(window))).collect();
        Self { skip, ..self }
    }

    /// Where what each row sees begins.
    fn begins(&self) -> Arc<[u32]> {
        if self.skip.is_empty() { vec![0; self.count.len()].into() } else { self.skip.clone() }
    }

    /// What the rows of `self`, then those of `other`, see of the same store.
    pub fn join(self, other: Self) -> Self {
        let offset = self.pages.len() as u32;
        let skip = match self.skip.is_empty() && other.skip.is_empty() {
            true => self.skip.clone(),
            false => chain(&self.begins(), &other.begins(), 0),
        };
        Self {
            skip,
            pages: chain(&self.pages, &other.pages, 0),
            first: chain(&self.first, &other.first, offset),
            count: chain(&self.count, &other.count, 0),
            store: self.store,
        }
    }

    /// Every token of every row's view, as a matrix with spans, where `like` is: what the plain
    /// operation works on.
    fn lines(&self, like: &Tensor2) -> (Tensor2, Spans) {
        self.lines_of(0..self.first.len(), like)
    }

    /// The same for some of the rows.
    pub(crate) fn lines_of(
        &self,
        rows: std::ops::Range<usize>,
        like: &Tensor2,
    ) -> (Tensor2, Spans) {
        let mut places = Vec::new();
        let (mut start, mut end) = (Vec::new(), Vec::new());
        for t in rows {
            let (first, count) = (self.first[t], self.count[t]);
            start.push(places.len() as u32);
            for i in self.skip.get(t).copied().unwrap_or(0)..count {
                let page = self.pages[first as usize + i as usize / PAGE];
                places.push(page * PAGE as u32 + i % PAGE as u32);
            }
            end.push(places.len() as u32);
        }
        (beside(self.store.read(&places), like), Spans { start, end })
    }
}

impl Ops {
    /// As [`Ops::attend`], over pages: `q_tn [t, H*K]` already rotated; returns `[t, H*V]`. Rows
    /// that see nothing get zeros. In the f32 format the bits are those of `attend` over the same
    /// keys and values.
    pub fn attend_pages(self, q_tn: Tensor2, view: &PageView, heads: Heads) -> Tensor2 {
        match self {
            Ops::Fast => apply(AttendPages { view: view.clone(), heads }, [q_tn]),
            Ops::Plain(_) => {
                let (kv_sn, spans) = view.lines(&q_tn);
                self.attend(q_tn, kv_sn, &Arc::new(spans), heads)
            }
        }
    }
}

#[derive(Clone, Debug)]
struct AttendPages {
    view: PageView,
    heads: Heads,
}

impl FastOp<1> for AttendPages {
    type Saved = ();

    fn forward(&self, [q_tn]: [Raw; 1]) -> (Raw, ()) {
        let t = dims(&q_tn).0;
        let n = self.heads.out_width();
        let mut out = buffer(t * n);
        let PageView { store, pages, first, count, skip } = &self.view;
        let tables = Tables { pages, first, count, skip };
        attend_pages(
            values(&q_tn),
            &store.pool.read().expect("store lock"),
            tables,
            self.heads,
            &mut out,
        );
        (make(out, t, n), ())
    }

    fn backward(&self, (): (), _: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        unreachable!("pages hold no gradients: passes that record use the cache that forgets")
    }
}
