//! Keys and values in pages: what a tick's rows write and see. The pages are the scheduler's, the
//! contents the store's.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::kv::KvView;
use model::layout::{DepthRuns, LayerPlan, LayerUse};
use model::{KvCache, Rows};
use ops::{KvStore, Ops, PAGE, PageView, Tensor2};
use scheduler::{PageCopy, Scheduler, SlotId};

use crate::in_flight::{InFlightRows, occupied};

/// Where the keys and values of each unrolled layer are: a tier of the scheduler and a layer of
/// that tier.
#[derive(Clone, Debug)]
pub(crate) struct Tiers {
    /// Tier and layer, by unrolled layer.
    place: Vec<(usize, usize)>,
    /// Layers of each tier that hold something.
    pub(crate) layers: Vec<usize>,
}

impl Tiers {
    /// Tier 0 has the layers outside the recursions, tier `1 + r` those of recursion `r`. A layer
    /// that does not hold keys and values of its own looks at those of the first use of its
    /// weights.
    pub(crate) fn new(plan: &LayerPlan, holds: impl Fn(&LayerUse) -> bool) -> Self {
        let mut layers = vec![0; 1 + plan.recursions.len().max(1)];
        let mut place = vec![(0, 0); plan.unrolled().count()];
        let outside = plan.before.iter().chain(&plan.after).map(|at| (0, at));
        let inside = plan.recursions.iter().enumerate();
        let inside = inside.flat_map(|(r, uses)| uses.iter().map(move |at| (1 + r, at)));
        for (tier, at) in outside.chain(inside).filter(|(_, at)| holds(at)) {
            place[at.layer] = (tier, layers[tier]);
            layers[tier] += 1;
        }
        Self { place, layers }
    }
}

/// The keys and values of one tick. Rows carry their slot as sequence number.
pub(crate) struct PagedCache<'a> {
    scheduler: &'a Mutex<Scheduler>,
    store: &'a KvStore,
    tiers: &'a Tiers,
    in_flight: &'a mut BTreeMap<SlotId, InFlightRows>,
    /// Index of the first token that each slot added to the tier of its recursion in this tick.
    pub(crate) added: BTreeMap<SlotId, usize>,
}

/// Rows of one slot within a pass.
struct SlotRows {
    slot: SlotId,
    rows: Range<usize>,
}

fn by_slot(rows: &Rows, within: Range<usize>) -> Vec<SlotRows> {
    let mut found: Vec<SlotRows> = Vec::new();
    for i in within {
        let slot = rows.sequence[i] as SlotId;
        match found.last_mut() {
            Some(last) if last.slot == slot => last.rows.end = i + 1,
            _ => found.push(SlotRows { slot, rows: i..i + 1 }),
        }
    }
    found
}

/// Carries out the copies that appending asked for.
pub(crate) fn copy_pages(store: &KvStore, copies: &[PageCopy]) {
    if !copies.is_empty() {
        let from = places_of(copies, |copy| copy.from_page);
        store.copy(&from, &places_of(copies, |copy| copy.to_page));
    }
}

/// The copied places in the page that `page` names.
fn places_of(copies: &[PageCopy], page: fn(&PageCopy) -> u32) -> Vec<u32> {
    let mut places = Vec::new();
    for copy in copies {
        let first = page(copy) * PAGE as u32;
        places.extend(first..first + copy.tokens as u32);
    }
    places
}

impl<'a> PagedCache<'a> {
    pub(crate) fn new(
        scheduler: &'a Mutex<Scheduler>,
        store: &'a KvStore,
        tiers: &'a Tiers,
        in_flight: &'a mut BTreeMap<SlotId, InFlightRows>,
    ) -> Self {
        Self { scheduler, store, tiers, in_flight, added: BTreeMap::new() }
    }

    fn scheduler(&self) -> MutexGuard<'a, Scheduler> {
        self.scheduler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for `count` tokens of a slot in a tier; the index of the first of them.
    fn make_room(&mut self, slot: SlotId, tier: usize, count: usize) -> usize {
        let mut scheduler = self.scheduler();
        let copies =
            scheduler.append(slot, tier, count).unwrap_or_else(|misuse| panic!("{misuse}"));
        let first = scheduler.pages().count(occupied(&scheduler, slot).table(), tier) - count;
        drop(scheduler);
        copy_pages(self.store, &copies);
        self.added.insert(slot, first);
        first
    }

    /// The index of each row's own token in the tier of its layer. Tier 0 has a token for every
    /// row, so the index is the position, and room was made before the pass; in a recursion room is
    /// made when its first layer asks.
    fn own_indices(&mut self, at: &DepthRuns, rows: &Rows) -> Vec<u32> {
        let mut indices = rows.position.to_vec();
        for (used, range) in at.runs() {
            let (tier, layer) = self.tiers.place[used.layer];
            if tier == 0 {
                continue;
            }
            for SlotRows { slot, rows: range } in by_slot(rows, range) {
                let first = if layer == 0 {
                    self.make_room(slot, tier, range.len())
                } else {
                    self.added[&slot]
                };
                for (rank, i) in range.enumerate() {
                    indices[i] = (first + rank) as u32;
                    if tier == 1 {
                        self.in_flight_of(slot).set_index(rows.position[i], indices[i]);
                    }
                }
            }
        }
        indices
    }

    fn in_flight_of(&mut self, slot: SlotId) -> &mut InFlightRows {
        self.in_flight.get_mut(&slot).unwrap_or_else(|| panic!("slot {slot} has no rows under way"))
    }

    /// The index of each row's token in the tier of the first use of its layer's weights.
    fn first_indices(&mut self, at: &DepthRuns, rows: &Rows) -> Vec<u32> {
        let mut indices = rows.position.to_vec();
        for (used, range) in at.runs() {
            if self.tiers.place[used.first].0 == 0 {
                continue;
            }
            for i in range {
                let in_flight = self.in_flight_of(rows.sequence[i] as SlotId);
                indices[i] = in_flight.index_of(rows.position[i]);
            }
        }
        indices
    }

    /// Writes keys and values to the tokens `indices`, one a row, of each row's layer.
    fn write(&self, at: &DepthRuns, rows: &Rows, indices: &[u32], kv_tn: &Tensor2) {
        let scheduler = self.scheduler();
        let mut places = Vec::with_capacity(rows.len());
        for (used, range) in at.runs() {
            let (tier, layer) = self.tiers.place[used.layer];
            for i in range {
                let table = occupied(&scheduler, rows.sequence[i] as SlotId).table();
                let index = indices[i] as usize;
                places.push(scheduler.pages().place(table, tier, layer, index));
            }
        }
        drop(scheduler);
        self.store.write(&places, kv_tn);
    }

    /// Each row sees its slot's tokens up to and including `indices`, in the layer that `layer_of`
    /// names for the use it is at.
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
            for SlotRows { slot, rows } in by_slot(rows, range) {
                let start = pages.len() as u32;
                let table = occupied(&scheduler, slot).table();
                pages.extend_from_slice(scheduler.pages().list(table, tier, layer));
                first.extend(rows.map(|_| start));
            }
        }
        let count = indices.iter().map(|i| i + 1).collect();
        KvView::Pages(PageView {
            store: self.store.clone(),
            pages: pages.into(),
            first: first.into(),
            count,
            skip: [].into(),
        })
    }

    /// Where every row leaves a token in every recursion: makes room in `tier` for all rows of the
    /// slot that are under way and took the first recursion, and fills it with what they left
    /// there.
    pub(crate) fn fill(&mut self, slot: SlotId, tier: usize) {
        let indices = self.in_flight_of(slot).indices();
        self.make_room(slot, tier, indices.len());
        let scheduler = self.scheduler();
        let table = occupied(&scheduler, slot).table();
        for layer in 0..self.tiers.layers[tier] {
            let [from, to] = [1, tier].map(|tier| -> Vec<u32> {
                let pages = scheduler.pages();
                indices.iter().map(|&i| pages.place(table, tier, layer, i as usize)).collect()
            });
            self.store.copy(&from, &to);
        }
    }
}

impl KvCache for PagedCache<'_> {
    fn append(&mut self, at: &DepthRuns, rows: &Rows, kv_tn: Tensor2) -> KvView {
        let indices = self.own_indices(at, rows);
        self.write(at, rows, &indices, &kv_tn);
        self.view(at, rows, &indices, |used| used.layer)
    }

    fn reuse(&mut self, at: &DepthRuns, rows: &Rows) -> KvView {
        let indices = self.first_indices(at, rows);
        self.view(at, rows, &indices, |used| used.first)
    }

    /// In tier 0 every row passes every layer, so nothing of the first use is left to be seen.
    fn overwrite(&mut self, _: Ops, at: &DepthRuns, rows: &Rows, kv_tn: Tensor2) -> KvView {
        for (used, range) in at.runs() {
            let (tier, layer) = self.tiers.place[used.layer];
            if tier > 0 && layer == 0 {
                by_slot(rows, range).iter().for_each(|part| self.fill(part.slot, tier));
            }
        }
        let indices = self.first_indices(at, rows);
        self.write(at, rows, &indices, &kv_tn);
        self.view(at, rows, &indices, |used| used.layer)
    }
}
