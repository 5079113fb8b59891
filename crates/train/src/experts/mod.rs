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
mod layer;
mod placement;
mod store;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use model::Model;
use model::mlp::{ExpertBank, ExpertOwners};
use ops::{Moments, SQUARES_CHUNK, Weight, chunks_of_squares};
use processes::{ProcessError, Processes, Timed};

use crate::TrainError;
use crate::together::tell;
pub use bytes::ExpertTraffic;
pub(crate) use exchange::Exchange;
use exchange::Sums;
use layer::Layer;
pub use placement::{ExpertSharing, Moved};

/// A weight of the table that holds a matrix, or a row, of each expert of a layer.
#[derive(Clone, Debug)]
struct Shared {
    /// The number in the table.
    number: usize,
    /// The place of the layer among those that are shared out.
    layer: usize,
    /// Values of one expert.
    length: usize,
    /// How many values of one expert stand before them where all its weights stand in a row, and
    /// where those that are trained do; the latter is nothing for one that is not.
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

    /// All experts' values out of the parts of all processes.
    fn whole(&self, parts: &[Vec<f32>]) -> Vec<f32> {
        let mut all = vec![0.0; self.owners.len() * self.length];
        for (rank, part) in parts.iter().enumerate() {
            for (i, e) in self.of(rank).into_iter().enumerate() {
                all[e * self.length..(e + 1) * self.length]
                    .copy_from_slice(&part[i * self.length..(i + 1) * self.length]);
            }
        }
        all
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
    /// Leaves each process with the experts that it owns, out of the first one's `model`. All call
    /// this; gradients of `shards` shards make a step.
    ///
    /// # Errors
    /// A model without such experts, a placement that does not fit, processes that do not agree.
    pub(crate) fn share_out(
        model: &Model,
        processes: &Arc<Timed>,
        sharing: &ExpertSharing,
        shards: usize,
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
                let (rows, columns) = model.weights()[number].0.shape;
                let length = rows * columns / bank.count();
                let trained_from = weight.collects_gradient().then_some(trained);
                trained += trained_from.map_or(0, |_| length);
                shared.push(Shared { number, layer, length, trained_from, owners: owners.clone() });
            }
        }
        let mut parts = BTreeMap::new();
        for of in &shared {
            let (_, weight) = &model.weights()[of.number];
            let part = deal(&**processes, of, || weight.values())?;
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

    /// Hands out values of all experts that the first process has: each gets those of its own.
    /// `side` is asked of the weights that are shared out, by their numbers.
    pub(crate) fn deal(
        &self,
        moments: &mut [Option<Moments>],
        side: fn(&mut Moments) -> &mut Vec<f32>,
    ) -> Result<(), ProcessError> {
        for of in &self.shared {
            let Some(held) = moments[of.number].as_mut().map(side) else { continue };
            *held = deal(&**self.exchange.processes(), of, || std::mem::take(held))?;
        }
        Ok(())
    }

    /// The values of weight `number`, which is shared out, of all experts in the first process, out
    /// of `mine`; `None` in others.
    pub(crate) fn whole(
        &self,
        number: usize,
        mine: &[f32],
    ) -> Result<Option<Vec<f32>>, ProcessError> {
        let Some(of) = self.shared.iter().find(|of| of.number == number) else { return Ok(None) };
        let processes = self.exchange.processes();
        let (me, size) = (processes.rank(), processes.size());
        let mut sent = vec![Vec::new(); size];
        sent[0] = mine.to_vec();
        let expected =
            (0..size).map(|rank| if me == 0 { of.of(rank).len() * of.length } else { 0 });
        let parts = processes.exchange(sent, &expected.collect::<Vec<_>>())?;
        Ok((me == 0).then(|| of.whole(&parts)))
    }

    /// Ends a step: owned experts get the gradients of the whole step. Returns the sum of squares
    /// of each weight that is shared out and trained, by its number; all processes get the same.
    pub(crate) fn reduce(&mut self) -> Result<BTreeMap<usize, f64>, ProcessError> {
        let (sums, mine) = self.exchange.end_step()?;
        self.exchange.put(&sums);
        let me = self.exchange.processes().rank();
        let (mut squares, mut pieces) = (Vec::new(), Vec::new());
        for chunk in self.chunks() {
            let own = chunk.pieces.iter().filter(|piece| piece.owner == me);
            let values = own.flat_map(|piece| piece.values(&sums)).copied();
            match chunk.owner() {
                Some(owner) if owner == me => {
                    squares.extend(chunks_of_squares(&values.collect::<Vec<_>>()));
                }
                Some(_) => {}
                None => pieces.extend(values),
            }
        }
        let told = tell(&**self.exchange.processes(), &(squares, pieces, mine))?;
        let traffic: Vec<ExpertTraffic> =
            told.iter().map(|(.., traffic)| traffic.clone()).collect();
        self.traffic = ExpertTraffic::sum(&traffic);
        let mut told: Vec<(&[f64], &[f32])> =
            told.iter().map(|(squares, pieces, _)| (&squares[..], &pieces[..])).collect();
        let mut all = BTreeMap::new();
        for chunk in self.chunks() {
            let sum: f64 = match chunk.owner() {
                Some(owner) => told[owner].0.split_off_first().copied().unwrap_or_default(),
                None => {
                    let mut values = Vec::with_capacity(SQUARES_CHUNK);
                    for piece in &chunk.pieces {
                        let from = &mut told[piece.owner].1;
                        let here = from.split_off(..piece.at.len().min(from.len()));
                        values.extend_from_slice(here.unwrap_or_default());
                    }
                    chunks_of_squares(&values).into_iter().sum()
                }
            };
            all.entry(chunk.number).or_insert_with(Vec::new).push(sum);
        }
        Ok(all.into_iter().map(|(number, chunks)| (number, chunks.into_iter().sum())).collect())
    }

    /// The stretches of each trained weight whose squares are summed apart, as in one process.
    fn chunks(&self) -> impl Iterator<Item = Chunk> + '_ {
        self.shared.iter().flat_map(|of| {
            let end = match of.trained_from {
                Some(_) => of.owners.len() * of.length,
                None => 0,
            };
            (0..end)
                .step_by(SQUARES_CHUNK)
                .map(move |start| Chunk::of(of, start..(start + SQUARES_CHUNK).min(end)))
        })
    }
}

/// A stretch of a weight of all experts.
struct Chunk {
    number: usize,
    /// One for each expert in it.
    pieces: Vec<Piece>,
}

/// What of it belongs to one expert.
struct Piece {
    owner: usize,
    layer: usize,
    expert: usize,
    /// Among the trained values of the expert.
    at: Range<usize>,
}

impl Piece {
    /// Its values, out of gradients that this process owns.
    fn values<'a>(&self, sums: &'a Sums) -> &'a [f32] {
        sums[self.layer].get(&self.expert).map_or(&[], |values| &values[self.at.clone()])
    }
}

impl Chunk {
    fn of(of: &Shared, range: Range<usize>) -> Self {
        let from = of.trained_from.unwrap_or_default();
        let mut pieces = Vec::new();
        for expert in range.start / of.length..=(range.end - 1) / of.length {
            let (start, end) = (expert * of.length, (expert + 1) * of.length);
            let at = range.start.max(start) - start + from..range.end.min(end) - start + from;
            pieces.push(Piece { owner: of.owners[expert], layer: of.layer, expert, at });
        }
        Self { number: of.number, pieces }
    }

    /// The process that owns all of it, if one does.
    fn owner(&self) -> Option<usize> {
        let first = self.pieces.first()?.owner;
        self.pieces.iter().all(|piece| piece.owner == first).then_some(first)
    }
}

/// The banks whose experts processes share out.
fn shared_banks(model: &Model) -> Vec<Arc<ExpertBank>> {
    let mut banks = model.banks();
    banks.retain(|bank| placement::is_shared(bank.count()));
    banks
}

/// Hands each process its experts' values out of `all`, which the first one has.
fn deal<V: std::ops::Deref<Target = [f32]>>(
    processes: &dyn Processes,
    of: &Shared,
    all: impl FnOnce() -> V,
) -> Result<Vec<f32>, ProcessError> {
    let (me, size) = (processes.rank(), processes.size());
    let mut sent = vec![Vec::new(); size];
    if me == 0 {
        let all = all();
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
