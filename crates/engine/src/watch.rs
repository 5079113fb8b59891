//! Who watches an engine's passes: requests in the place of slots.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::params::RouterSite;
use model::{Choice, Probe, RoutingEvent, Rows};
use ops::{Tensor2, Weight};
use scheduler::Scheduler;

use crate::routed::Routing;

/// A probe that an engine and somebody else share.
pub type SharedProbe = Arc<Mutex<dyn Probe + Send>>;

/// How often rows went to each target of the routers over experts, by stored layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ExpertLoads(pub(crate) BTreeMap<usize, Vec<u64>>);

impl Probe for ExpertLoads {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        let (RouterSite::Layer(stored), Choice::Plan(plan)) = (event.site, event.choice) else {
            return;
        };
        let loads = self.0.entry(stored).or_default();
        loads.resize(loads.len().max(plan.targets()), 0);
        for (target, load) in loads.iter_mut().enumerate().take(plan.targets()) {
            *load += plan.of(target).len() as u64;
        }
    }
}

/// Bytes of the matrices that products of layers read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct MatrixBytes(pub(crate) u64);

impl Probe for MatrixBytes {
    fn product(&mut self, weight: &Weight, groups: &[usize], x_an: &Tensor2) {
        let bytes = weight.bytes() as u64;
        self.0 += match groups.len() as u64 {
            0 if x_an.dims()[0] == 0 => 0,
            0 => bytes,
            all => bytes / all * groups.iter().filter(|rows| **rows > 0).count() as u64,
        };
    }
}

/// Who is told of an engine's passes: who counts, and who watches if somebody does.
pub(crate) struct Watched<'a> {
    pub(crate) loads: &'a mut ExpertLoads,
    pub(crate) bytes: &'a mut MatrixBytes,
    pub(crate) watch: Option<ByRequest<'a>>,
    /// For requests that want to know.
    pub(crate) routing: Option<Routing<'a>>,
}

impl Probe for Watched<'_> {
    fn stream(&mut self, x_td: &Tensor2) {
        if let Some(watch) = &mut self.watch {
            watch.stream(x_td);
        }
    }

    fn product(&mut self, weight: &Weight, groups: &[usize], x_an: &Tensor2) {
        self.bytes.product(weight, groups, x_an);
    }

    fn routed(&mut self, event: &RoutingEvent<'_>) {
        self.loads.routed(event);
        if let Some(routing) = &mut self.routing {
            routing.routed(event);
        }
        if let Some(watch) = &mut self.watch {
            watch.routed(event);
        }
    }

    fn loss(&mut self, name: &'static str, value: f32, weight: f32) {
        if let Some(watch) = &mut self.watch {
            watch.loss(name, value, weight);
        }
    }
}

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
