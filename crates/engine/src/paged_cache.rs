//! Keys and values in pages: what a tick's rows write and see. The pages are the scheduler's, the
//! contents the store's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use model::kv::KvView;
use model::layout::{DepthRuns, LayerPlan, LayerUse};
use model::{KvCache, Rows};
use ops::{KvStore, Ops, PAGE, PageView, Tensor2};
use scheduler::{PageCopy, Scheduler, SlotId};

use crate::in_flight::InFlightRows;

/// Where the keys and values of each unrolled layer are: a tier of the scheduler and a layer of
/// that tier.
#[derive(Clone, Debug)]
pub(crate) struct Tiers {
    /// By unrolled layer.
    place: Vec<(usize, usize)>,
    /// Layers of each tier that hold something.
    pub(crate) layers: Vec<usize>,
}

impl Tiers {
    /// Tier 0 has the layers outside the recursions, tier `1 + r` those of recursion `r`; where
    /// `held` is false for a recursion, its layers look at those of the first one.
    pub(crate) fn new(plan: &LayerPlan, held: impl Fn(usize) -> bool) -> Self {
        let mut layers = vec![0; 1 + plan.recursions.len().max(1)];
        let mut place = vec![(0, 0); plan.unrolled().count()];
        let mut put = |at: &LayerUse, tier: usize| {
            place[at.layer] = (tier, layers[tier]);
            layers[tier] += 1;
        };
        plan.before.iter().chain(&plan.after).for_each(|at| put(at, 0));
        for (r, uses) in plan.recursions.iter().enumerate().filter(|(r, _)| held(*r)) {
            uses.iter().for_each(|at| put(at, 1 + r));
        }
        Self { place, layers }
    }
}

/// The memory of one tick. Rows carry their slot as sequence number.
pub(crate) struct PagedCache<'a> {
    pub(crate) scheduler: &'a Mutex<Scheduler>,
    pub(crate) store: &'a KvStore,
    pub(crate) tiers: &'a Tiers,
    pub(crate) flights: &'a mut BTreeMap<SlotId, InFlightRows>,
    /// Index of the first token that each slot added to the tier of its recursion in this tick.
    pub(crate) added: BTreeMap<SlotId, usize>,
}

/// Rows of one slot within a pass.
struct Stretch {
    slot: SlotId,
    rows: Range<usize>,
}

fn stretches(rows: &Rows, within: Range<usize>) -> Vec<Stretch> {
    let mut found: Vec<Stretch> = Vec::new();
    for i in within {
        let slot = rows.sequence[i] as SlotId;
        match found.last_mut() {
            Some(last) if last.slot == slot => last.rows.end = i + 1,
            _ => found.push(Stretch { slot, rows: i..i + 1 }),
        }
    }
    found
}

/// Carries out the copies that appending asked for.
pub(crate) fn copy_pages(store: &KvStore, copies: &[PageCopy]) {
    let places = |page: fn(&PageCopy) -> u32| -> Vec<u32> {
        copies
            .iter()
            .flat_map(|c| (0..c.tokens as u32).map(move |t| page(c) * PAGE as u32 + t))
            .collect()
    };
    if !copies.is_empty() {
        store.copy(&places(|c| c.from_page), &places(|c| c.to_page));
    }
}

impl PagedCache<'_> {
    fn scheduler(&self) -> std::sync::MutexGuard<'_, Scheduler> {
        self.scheduler.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes room for `count` tokens of a slot in a tier; the index of the first of them.
    fn append(&mut self, slot: SlotId, tier: usize, count: usize) -> usize {
        let mut scheduler = self.scheduler();
        let copies =
            scheduler.append(slot, tier, count).unwrap_or_else(|misuse| panic!("{misuse}"));
        let running = scheduler.running(slot).unwrap_or_else(|| panic!("slot {slot} is empty"));
        let first = scheduler.pages().count(running.table(), tier) - count;
        drop(scheduler);
        copy_pages(self.store, &copies);
        self.added.insert(slot, first);
        first
    }

    /// The index of each row's own token in the tier of its layer; room is made when the first
    /// layer of a recursion asks.
    fn indices(&mut self, at: &DepthRuns, rows: &Rows) -> Vec<u32> {
        let mut indices = vec![0; rows.len()];
        for (used, range) in at.runs() {
            let (tier, layer) = self.tiers.place[used.layer];
            for stretch in stretches(rows, range) {
                let Stretch { slot, rows: range } = stretch;
                if tier == 0 {
                    range.for_each(|i| indices[i] = rows.position[i]);
                    continue;
                }
                let first = if layer == 0 {
                    self.append(slot, tier, range.len())
                } else {
                    self.added[&slot]
                };
                for (rank, i) in range.enumerate() {
                    indices[i] = (first + rank) as u32;
                    if tier == 1 {
                        self.flight(slot).first_index(rows.position[i], indices[i]);
                    }
                }
            }
        }
        indices
    }

    fn flight(&mut self, slot: SlotId) -> &mut InFlightRows {
        self.flights.get_mut(&slot).unwrap_or_else(|| panic!("slot {slot} has no flight"))
    }

    /// The index that each row's token has in the first recursion.
    fn first_indices(&mut self, rows: &Rows) -> Vec<u32> {
        (0..rows.len())
            .map(|i| self.flight(rows.sequence[i] as SlotId).index_of(rows.position[i]))
            .collect()
    }

    /// Places of tokens, one a row, in the layer that `layer_of` names for the use a row is at.
    fn places(
        &self,
        at: &DepthRuns,
        rows: &Rows,
        indices: &[u32],
        layer_of: fn(&LayerUse) -> usize,
    ) -> Vec<u32> {
        let scheduler = self.scheduler();
        let mut places = Vec::with_capacity(rows.len());
        for (used, range) in at.runs() {
            let (tier, layer) = self.tiers.place[layer_of(&used)];
            for i in range {
                let running = scheduler
                    .running(rows.sequence[i] as SlotId)
                    .unwrap_or_else(|| panic!("an empty slot"));
                places.push(scheduler.pages().place(
                    running.table(),
                    tier,
                    layer,
                    indices[i] as usize,
                ));
            }
        }
        places
    }

    /// Each row sees its slot's tokens up to and including `indices`.
    fn view(
        &self,
        at: &DepthRuns,
        rows: &Rows,
        indices: &[u32],
        layer_of: fn(&LayerUse) -> usize,
    ) -> KvView {
        let scheduler = self.scheduler();
        let (mut pages, mut first) = (Vec::new(), Vec::with_capacity(rows.len()));
        for (used, range) in at.runs() {
            let (tier, layer) = self.tiers.place[layer_of(&used)];
            for stretch in stretches(rows, range) {
                let running =
                    scheduler.running(stretch.slot).unwrap_or_else(|| panic!("an empty slot"));
                let start = pages.len() as u32;
                pages.extend_from_slice(scheduler.pages().list(running.table(), tier, layer));
                stretch.rows.for_each(|_| first.push(start));
            }
        }
        let count = indices.iter().map(|i| i + 1).collect();
        KvView::Pages(PageView {
            store: self.store.clone(),
            pages: pages.into(),
            first: first.into(),
            count,
        })
    }

    /// Where every row leaves a token in every recursion: makes room in `tier` for all rows of the
    /// slot's flight that took the first recursion and fills it with what they left there.
    pub(crate) fn fill(&mut self, slot: SlotId, tier: usize) {
        let indices = self.flight(slot).all_first_indices();
        self.append(slot, tier, indices.len());
        let scheduler = self.scheduler();
        let table =
            scheduler.running(slot).unwrap_or_else(|| panic!("slot {slot} is empty")).table();
        for layer in 0..self.tiers.layers[tier] {
            let places = |tier: usize| -> Vec<u32> {
                indices
                    .iter()
                    .map(|&i| scheduler.pages().place(table, tier, layer, i as usize))
                    .collect()
            };
            self.store.copy(&places(1), &places(tier));
        }
    }
}

impl KvCache for PagedCache<'_> {
    fn append(&mut self, at: &DepthRuns, rows: &Rows, kv_tn: Tensor2) -> KvView {
        let indices = self.indices(at, rows);
        self.store.write(&self.places(at, rows, &indices, |used| used.layer), &kv_tn);
        self.view(at, rows, &indices, |used| used.layer)
    }

    fn reuse(&mut self, at: &DepthRuns, rows: &Rows) -> KvView {
        let indices = self.first_indices(rows);
        self.view(at, rows, &indices, |used| used.first)
    }

    fn overwrite(&mut self, _: Ops, at: &DepthRuns, rows: &Rows, kv_tn: Tensor2) -> KvView {
        for (used, range) in at.runs() {
            let (tier, layer) = self.tiers.place[used.layer];
            if layer == 0 {
                stretches(rows, range).iter().for_each(|stretch| self.fill(stretch.slot, tier));
            }
        }
        let indices = self.first_indices(rows);
        self.store.write(&self.places(at, rows, &indices, |used| used.layer), &kv_tn);
        self.view(at, rows, &indices, |used| used.layer)
    }
}
