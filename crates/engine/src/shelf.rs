//! The model with each of its adapters: they come and go while ticks run, and one that somebody
//! still runs with stays until that ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::Model;
use scheduler::Scheduler;

use crate::error::EngineError;

/// Models by the numbers of their adapters, from 1; no number is given twice.
pub(crate) struct Shelf {
    base: Arc<Model>,
    last: u32,
    models: BTreeMap<u32, Arc<Model>>,
    /// Those that no new request may name.
    retired: BTreeSet<u32>,
}

impl Shelf {
    pub(crate) fn new(base: Arc<Model>) -> Self {
        Self { base, last: 0, models: BTreeMap::new(), retired: BTreeSet::new() }
    }

    /// Takes in the base with an adapter and says its number.
    pub(crate) fn add(&mut self, model: Arc<Model>) -> Result<u32, EngineError> {
        let number = self.last.checked_add(1).ok_or(EngineError::Adapters)?;
        let shape = |model: &Model| {
            let config = model.config();
            let of_rows = (config.width, config.vocab_size, config.layers);
            let of_keys = (config.heads(), config.kv);
            (of_rows, of_keys, config.context)
        };
        let found = number as usize;
        if shape(&model) != shape(&self.base) {
            return Err(EngineError::Adapter { number: found, what: "shape" });
        }
        if !model.plan().recursions.is_empty() || !self.base.plan().recursions.is_empty() {
            return Err(EngineError::Adapter { number: found, what: "layers, each used once" });
        }
        self.models.insert(number, model);
        self.last = number;
        Ok(number)
    }

    /// The model that runs with this adapter, or the base for 0.
    pub(crate) fn model(&self, number: u32) -> Option<Arc<Model>> {
        if number == 0 { Some(self.base.clone()) } else { self.models.get(&number).cloned() }
    }

    /// Whether a new request may name it.
    pub(crate) fn offers(&self, number: u32) -> bool {
        number == 0 || (self.models.contains_key(&number) && !self.retired.contains(&number))
    }

    /// Whether its weights are still held.
    pub(crate) fn holds(&self, number: u32) -> bool {
        self.models.contains_key(&number)
    }

    /// No new request may name it from now on.
    pub(crate) fn retire(&mut self, number: u32) {
        if self.models.contains_key(&number) {
            self.retired.insert(number);
        }
    }

    /// Gives up the weights of retired ones that nobody waits for or runs with.
    pub(crate) fn clear(&mut self, scheduler: &Scheduler) {
        if self.retired.is_empty() {
            return;
        }
        let running = (0..scheduler.slots()).filter_map(|slot| scheduler.running(slot));
        let all = running.map(|running| running.sequence()).chain(scheduler.waiting());
        let used: BTreeSet<u32> = all.map(|sequence| sequence.request().adapter).collect();
        let models = &mut self.models;
        self.retired.retain(|number| {
            let stays = used.contains(number);
            if !stays {
                models.remove(number);
            }
            stays
        });
    }
}
