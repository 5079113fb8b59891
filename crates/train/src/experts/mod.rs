//! Experts of layers shared out among processes (expert parallelism: GShard, Lepikhin et al., 2020,
//! arXiv 2006.16668): each holds weights, gradients and moments of some, and computes them for the
//! rows of all.
//!
//! Bits are those of one process. A row's result depends on its values and its expert alone.
//! Gradients of an expert are summed over the rows of a shard in their order, apart from those of
//! other shards, and over shards as a tree; so the owner keeps a gradient for each process, which
//! is at one shard at a time.

mod bytes;
mod exchange;
mod gathering;
mod layer;
mod origin;
mod placement;
mod squares;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;

use model::Model;
use model::mlp::{ExpertBank, ExpertOwners};
use model::params::ParamSpec;
use ops::{Moments, Weight};
use processes::{ProcessError, Processes, Timed};

use crate::TrainError;
use crate::tell::tell;
pub use bytes::ExpertTraffic;
pub(crate) use exchange::Exchange;
pub(crate) use gathering::Gathering;
use layer::Layer;
use origin::Side;
pub(crate) use origin::{Origin, is_of_shared_experts};
pub use placement::{ExpertSharing, Moved};

/// A weight of the table that holds a matrix, or a row, of each expert of a layer.
#[derive(Clone, Debug)]
struct Shared {
    /// Its entry of the table.
    spec: ParamSpec,
    /// The number in the table.
    number: usize,
    /// The place of the layer among those that are shared out.
    layer: usize,
    /// Values of one expert.
    length: usize,
    /// Where they begin among the trained values of one expert, if they are trained.
    trained_from: Option<usize>,
    /// The owner of each expert.
    owners: Vec<usize>,
}

impl Shared {
    /// The experts of `rank`, ascending.
    fn of(&self, rank: usize) -> Vec<usize> {
        (0..self.owners.len()).filter(|&e| self.owners[e] == rank).collect()
    }

    /// The values of `rank`'s experts out of those of all.
    fn part(&self, all: &[f32], rank: usize) -> Vec<f32> {
        let experts = self.of(rank).into_iter();
        experts.flat_map(|e| &all[e * self.length..(e + 1) * self.length]).copied().collect()
    }
}

/// The experts of a model, seen from one of the processes that share them out.
pub(crate) struct Experts {
    exchange: Arc<Exchange>,
    shared: Vec<Shared>,
    /// What was sent in the newest step.
    traffic: ExpertTraffic,
}

impl Experts {
    /// Leaves each process with the experts that it owns, out of the first one's `model`, or out of
    /// their `origin` there if they are not in it. All call this; gradients of `shards` shards make
    /// a step.
    ///
    /// # Errors
    /// A model without such experts, a placement that does not fit, processes that do not agree.
    pub(crate) fn share_out(
        model: &Model,
        processes: &Arc<Timed>,
        sharing: &ExpertSharing,
        shards: usize,
        origin: Option<&Origin>,
    ) -> Result<(Model, Self), TrainError> {
        let (me, size) = (processes.rank(), processes.size());
        let holders = sharing.holders(model.config(), size)?;
        let banks = shared_banks(model);
        agree(&**processes, &(sharing.moved, &holders))?;
        let mut shared = Vec::new();
        for (layer, (bank, holders)) in banks.iter().zip(&holders).enumerate() {
            let owners: Vec<usize> = holders.iter().map(|of| of[0]).collect();
            let mut trained = 0;
            for weight in bank.weights().all() {
                let mut table = model.weights().iter();
                let number = table.position(|(_, known)| Arc::ptr_eq(known, weight));
                let number = number.unwrap_or_else(|| unreachable!("banks are of the table"));
                let spec = model.weights()[number].0.clone();
                let length = spec.count() / bank.count();
                let trained_from = weight.collects_gradient().then_some(trained);
                trained += trained_from.map_or(0, |_| length);
                let owners = owners.clone();
                shared.push(Shared { spec, number, layer, length, trained_from, owners });
            }
        }
        let mut parts = BTreeMap::new();
        for of in &shared {
            let (_, weight) = &model.weights()[of.number];
            let part = deal(&**processes, of, || match origin {
                Some(origin) => origin.read(&of.spec, Side::Weight),
                None => Ok(weight.read()),
            })?;
            parts.insert(of.number, (part, weight.collects_gradient()));
        }
        let mut table = model.weights().iter().enumerate();
        let held = Model::sharing(model.config(), |spec| {
            let (number, (_, known)) = table.next().unwrap_or_else(|| unreachable!("one table"));
            let Some((part, learns)) = parts.remove(&number) else { return Ok(known.clone()) };
            let columns = spec.shape.1;
            let weight = Weight::new(part.clone(), part.len() / columns, columns);
            weight.collect_gradient(learns);
            Ok::<_, TrainError>(Arc::new(weight))
        })?;
        let layers = shared_banks(&held).into_iter().zip(holders).enumerate();
        let layers = layers.map(|(layer, (bank, holders))| {
            let of_layer = shared.iter().filter(|of| of.layer == layer);
            let lengths = of_layer.map(|of| of.length).collect();
            Layer::new(bank, lengths, holders, (me, size))
        });
        let layers = layers.collect();
        let exchange = Arc::new(Exchange::new(processes.clone(), sharing.moved, shards, layers));
        let owners: Arc<dyn ExpertOwners> = exchange.clone();
        shared_banks(&held).iter().for_each(|bank| bank.leave_to(&owners));
        Ok((held, Self { exchange, shared, traffic: ExpertTraffic::default() }))
    }

    /// Where the processes meet.
    pub(crate) fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    /// Whether weight `number` of the table is shared out.
    pub(crate) fn have(&self, number: usize) -> bool {
        self.shared.iter().any(|of| of.number == number)
    }

    /// What all processes sent in the newest step.
    pub(crate) fn traffic(&self) -> &ExpertTraffic {
        &self.traffic
    }

    /// Hands out the moments of all experts, which the first process has, or their origin there.
    pub(crate) fn deal(
        &self,
        moments: &mut [Option<Moments>],
        origin: Option<&Origin>,
    ) -> Result<(), TrainError> {
        for of in &self.shared {
            let Some(held) = &mut moments[of.number] else { continue };
            let sides = [(Side::First, &mut held.first), (Side::Second, &mut held.second)];
            for (side, values) in sides {
                *values = deal(&**self.exchange.processes(), of, || match origin {
                    Some(origin) => origin.read(&of.spec, side),
                    None => Ok(std::mem::take(values)),
                })?;
            }
        }
        Ok(())
    }
}

/// The banks whose experts processes share out.
fn shared_banks(model: &Model) -> Vec<Arc<ExpertBank>> {
    let mut banks = model.banks();
    banks.retain(|bank| placement::is_shared(bank.count()));
    banks
}

/// Hands each process its experts' values out of `all`, which the first one has.
fn deal(
    processes: &dyn Processes,
    of: &Shared,
    all: impl FnOnce() -> Result<Vec<f32>, TrainError>,
) -> Result<Vec<f32>, TrainError> {
    let (me, size) = (processes.rank(), processes.size());
    let mut sent = vec![Vec::new(); size];
    if me == 0 {
        let all = all()?;
        sent.iter_mut().enumerate().for_each(|(rank, sent)| *sent = of.part(&all, rank));
    }
    let mut expected = vec![0; size];
    expected[0] = of.of(me).len() * of.length;
    Ok(processes.exchange(sent, &expected)?.swap_remove(0))
}

/// Refuses processes that would share out experts otherwise than the first.
fn agree<T: serde::Serialize>(processes: &dyn Processes, mine: &T) -> Result<(), TrainError> {
    let text = serde_json::to_string(mine).unwrap_or_else(|_| unreachable!("plain values"));
    let told: Vec<String> = tell(processes, &text)?;
    match told.iter().position(|text| *text != told[0]) {
        None => Ok(()),
        Some(from) => Err(TrainError::Processes(ProcessError::Unequal {
            rank: processes.rank(),
            from,
            expected: "experts shared out as process 0 has them".into(),
            found: "another placement, or something else that travels".into(),
        })),
    }
}
