//! Who watches an engine's passes: requests in the place of slots.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::{Probe, RoutingEvent, Rows};
use ops::Tensor2;
use scheduler::Scheduler;

/// A probe that an engine and somebody else share.
pub type SharedProbe = Arc<Mutex<dyn Probe + Send>>;

/// Tells a probe which requests rows belong to. To a pass their sequences are slots, which request
/// after request uses.
pub(crate) struct ByRequest<'a> {
    watch: &'a SharedProbe,
    requests: BTreeMap<u32, u32>,
}

impl<'a> ByRequest<'a> {
    pub(crate) fn new(watch: &'a SharedProbe, scheduler: &Scheduler) -> Self {
        let mut requests = BTreeMap::new();
        for slot in 0..scheduler.slots() {
            if let Some(running) = scheduler.running(slot) {
                let id = running.sequence().request().id;
                requests.insert(slot as u32, u32::try_from(id).unwrap_or(u32::MAX));
            }
        }
        Self { watch, requests }
    }

    fn told<T>(&self, tell: impl FnOnce(&mut dyn Probe) -> T) -> T {
        tell(&mut *self.watch.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Probe for ByRequest<'_> {
    fn stream(&mut self, x_td: &Tensor2) {
        self.told(|probe| probe.stream(x_td));
    }

    fn routed(&mut self, event: &RoutingEvent<'_>) {
        let slots = event.rows.sequence.iter();
        let requests = slots.map(|slot| self.requests.get(slot).copied().unwrap_or(u32::MAX));
        let rows = Rows { sequence: requests.collect(), ..event.rows.clone() };
        self.told(|probe| probe.routed(&RoutingEvent { rows: &rows, ..event.clone() }));
    }

    fn loss(&mut self, name: &'static str, value: f32, weight: f32) {
        self.told(|probe| probe.loss(name, value, weight));
    }
}
