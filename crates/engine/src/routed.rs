//! The experts that rows took, for requests that want to know: kept from the first layer on, and
//! told when the last one is done with the row.

use std::collections::BTreeMap;

use model::layout::LayerPlan;
use model::params::RouterSite;
use model::{Choice, RoutingEvent};
use scheduler::{RoutedRows, Scheduler};

/// The experts of one row at each layer that it went through, by the layer's number among all.
type ByLayer = BTreeMap<usize, Vec<u32>>;

/// The experts of rows on their way, by request and position.
#[derive(Debug, Default)]
pub(crate) struct RoutedExperts(BTreeMap<(u64, usize), ByLayer>);

/// What takes them in during a pass.
pub(crate) struct Routing<'a> {
    pub(crate) kept: &'a mut RoutedExperts,
    pub(crate) plan: LayerPlan,
    /// Requests that want to know, by slot.
    pub(crate) wanted: BTreeMap<u32, u64>,
}

impl Routing<'_> {
    /// The requests in the slots of `scheduler` that want to know.
    pub(crate) fn wanted(scheduler: &Scheduler) -> BTreeMap<u32, u64> {
        let slots = (0..scheduler.slots()).filter_map(|slot| {
            let running = scheduler.running(slot)?;
            let request = running.sequence().request();
            request.routed_experts.then_some((slot as u32, request.id))
        });
        slots.collect()
    }

    /// Takes in what a router over experts decided.
    pub(crate) fn routed(&mut self, event: &RoutingEvent<'_>) {
        let (RouterSite::Layer(stored), Choice::Plan(plan)) = (event.site, event.choice) else {
            return;
        };
        let mut layers = Vec::with_capacity(event.rows.len());
        for &(recursion, count) in event.runs {
            let at = self.plan.uses_of(stored).get(recursion).map(|at| at.layer);
            layers.resize(layers.len() + count, at);
        }
        let mut taken: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for target in 0..plan.targets() {
            for &row in plan.of(target) {
                taken.entry(row as usize).or_default().push(target as u32);
            }
        }
        for (row, layer) in layers.into_iter().enumerate() {
            let request = self.wanted.get(&event.rows.sequence[row]);
            if let (Some(&request), Some(layer)) = (request, layer) {
                let experts = taken.remove(&row).unwrap_or_default();
                let position = event.rows.position[row] as usize;
                self.kept.0.entry((request, position)).or_default().insert(layer, experts);
            }
        }
    }
}

impl RoutedExperts {
    /// Those of the rows of `request` from position `first` to below `end`, which are done.
    pub(crate) fn take(&mut self, request: u64, first: usize, end: usize) -> RoutedRows {
        let rows = (first..end).map(|position| {
            let row = self.0.remove(&(request, position)).unwrap_or_default();
            row.into_values().collect()
        });
        RoutedRows { first, experts: rows.collect() }
    }

    /// Forgets a request that has ended.
    pub(crate) fn forget(&mut self, request: u64) {
        let of_request = (request, 0)..=(request, usize::MAX);
        let keys: Vec<_> = self.0.range(of_request).map(|(key, _)| *key).collect();
        for key in keys {
            self.0.remove(&key);
        }
    }
}
