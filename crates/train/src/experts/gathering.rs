//! Experts on their way into a checkpoint, one at a time, so that the first process never holds
//! them all. Every process goes through the same list, in the order of the files.

use std::io;
use std::sync::{Mutex, PoisonError};

use model::Model;
use ops::Moments;
use processes::{ProcessError, Processes};

use super::origin::Side;
use super::{Experts, Shared};

/// Weights and moments of all experts, which come to the first process one expert after the other.
pub(crate) struct Gathering<'a> {
    experts: &'a Experts,
    model: &'a Model,
    /// Those of the experts that are held here.
    moments: &'a [Option<Moments>],
    /// What comes next: a place in the list of what comes, and an expert.
    next: Mutex<(usize, usize)>,
    list: Vec<(Side, &'a Shared)>,
    failed: Mutex<Option<ProcessError>>,
}

impl Experts {
    /// Begins to gather. All call this, and then ask for all pieces: the first process by a save.
    pub(crate) fn gathering<'a>(
        &'a self,
        model: &'a Model,
        moments: &'a [Option<Moments>],
    ) -> Gathering<'a> {
        let mut list = Vec::new();
        // "optimizer.safetensors" stands ahead of "weights.safetensors".
        for of in self.in_order().filter(|of| moments[of.number].is_some()) {
            list.extend([(Side::First, of), (Side::Second, of)]);
        }
        list.extend(self.in_order().map(|of| (Side::Weight, of)));
        let (next, failed) = (Mutex::new((0, 0)), Mutex::new(None));
        Gathering { experts: self, model, moments, next, list, failed }
    }

    /// The weights that are shared out, in the order of the table.
    fn in_order(&self) -> impl Iterator<Item = &Shared> {
        let mut all: Vec<&Shared> = self.shared.iter().collect();
        all.sort_by_key(|of| of.number);
        all.into_iter()
    }
}

impl Gathering<'_> {
    /// Whether weight `number` of the table comes so.
    pub(crate) fn has(&self, number: usize) -> bool {
        self.experts.have(number)
    }

    /// The values of the next expert in the first process; nothing in the others.
    pub(crate) fn next(&self) -> io::Result<Vec<f32>> {
        self.step().map_err(|error| {
            let told = io::Error::other(error.to_string());
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            told
        })
    }

    /// Hands over what this process holds while the first one saves.
    pub(crate) fn hand_over(&self) -> Result<(), ProcessError> {
        let experts = self.list.iter().map(|(_, of)| of.owners.len());
        (0..experts.sum()).try_for_each(|_| self.step().map(drop))
    }

    /// What kept others from handing over, if anything did.
    pub(crate) fn failure(&self) -> Option<ProcessError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn step(&self) -> Result<Vec<f32>, ProcessError> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (place, expert) = *next;
        let Some((side, of)) = self.list.get(place) else { return Ok(Vec::new()) };
        *next = if expert + 1 < of.owners.len() { (place, expert + 1) } else { (place + 1, 0) };
        let processes = self.experts.exchange.processes();
        let (me, size, owner) = (processes.rank(), processes.size(), of.owners[expert]);
        let mut sent = vec![Vec::new(); size];
        if owner == me {
            let i = of.of(me).partition_point(|&e| e < expert);
            let at = i * of.length..(i + 1) * of.length;
            sent[0] = match (side, &self.moments[of.number]) {
                (Side::Weight, _) => self.model.weights()[of.number].1.values()[at].to_vec(),
                (Side::First, Some(held)) => held.first[at].to_vec(),
                (Side::Second, Some(held)) => held.second[at].to_vec(),
                (_, None) => Vec::new(),
            };
        }
        let mut expected = vec![0; size];
        expected[owner] = if me == 0 { of.length } else { 0 };
        Ok(processes.exchange(sent, &expected)?.swap_remove(owner))
    }
}
