//! What the processes of a run hand each other in a step: gradients to whoever updates a weight,
//! new weights back, and what everybody saw.
//!
//! The passes of a step are cut into shards, as many as the recipe says (`train.shards`). Gradients
//! of a shard add up in the weights as they do in one process; shards are added as a tree over
//! their numbers ([`SumTree`]). Which process runs which shard therefore changes no bit.

use std::ops::Range;
use std::sync::Arc;

use model::Model;
use ops::{Moments, SQUARES_CHUNK, add_into};
use processes::{Alone, ProcessError, Processes, SumTree, Timed, forest, share};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TrainError;
use crate::experts::{Exchange, ExpertSharing, ExpertTraffic, Experts, Gathering, Origin};
use crate::flat::FlatWeights;
use crate::tell::tell;

/// A process among others, and which values each of them updates.
pub(crate) struct Together {
    processes: Settled,
    /// The weights that all hold.
    flat: FlatWeights,
    /// Those that processes share out.
    experts: Option<Experts>,
}

/// The processes of a run, who are done with experts before they hand each other anything else.
struct Settled {
    processes: Arc<Timed>,
    experts: Option<Arc<Exchange>>,
}

impl Settled {
    fn settled(&self) -> Result<&Timed, ProcessError> {
        self.experts.as_ref().map_or(Ok(()), |experts| experts.settle())?;
        Ok(&self.processes)
    }
}

impl Processes for Settled {
    fn rank(&self) -> usize {
        self.processes.rank()
    }

    fn size(&self) -> usize {
        self.processes.size()
    }

    fn exchange(
        &self,
        sent: Vec<Vec<f32>>,
        expected: &[usize],
    ) -> Result<Vec<Vec<f32>>, ProcessError> {
        self.settled()?.exchange(sent, expected)
    }

    fn gather(&self, mine: Vec<f32>, expected: &[usize]) -> Result<Vec<Vec<f32>>, ProcessError> {
        self.settled()?.gather(mine, expected)
    }

    fn tell(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, ProcessError> {
        self.settled()?.tell(mine)
    }
}

/// `left + right`, element by element.
fn add(mut left: Vec<f32>, right: Vec<f32>) -> Vec<f32> {
    add_into(&mut left, &right);
    left
}

impl Together {
    /// One process for the weights of `model`.
    pub(crate) fn alone(model: &Model) -> Self {
        Self::new(model, Arc::new(Alone))
    }

    /// This process among `processes`, all of whom hold all weights.
    pub(crate) fn new(model: &Model, processes: Arc<dyn Processes>) -> Self {
        let processes = Settled { processes: Arc::new(Timed::new(processes)), experts: None };
        let flat = FlatWeights::new(model, processes.size(), |_| true);
        Self { processes, flat, experts: None }
    }

    /// Shares out the experts of the first process's `model`, or of their `origin` there, from here
    /// on, and returns what this process holds. All call this.
    pub(crate) fn share_experts(
        &mut self,
        model: &Model,
        sharing: &ExpertSharing,
        shards: usize,
        origin: Option<&Origin>,
    ) -> Result<Model, TrainError> {
        let processes = &self.processes.processes;
        let (held, experts) = Experts::share_out(model, processes, sharing, shards, origin)?;
        self.flat = FlatWeights::new(&held, processes.size(), |number| !experts.have(number));
        self.processes.experts = Some(experts.exchange().clone());
        self.experts = Some(experts);
        Ok(held)
    }

    /// Begins a step: experts are where they compute in it.
    pub(crate) fn begin_step(&self) -> Result<(), ProcessError> {
        self.experts.as_ref().map_or(Ok(()), |experts| experts.exchange().begin_step())
    }

    /// Begins a pass over rows of a shard.
    pub(crate) fn begin_pass(&self, shard: usize) {
        if let Some(experts) = &self.experts {
            experts.exchange().begin_pass(shard);
        }
    }

    /// What sharing out experts took in the newest step, where they are.
    pub(crate) fn traffic(&self) -> Option<&ExpertTraffic> {
        self.experts.as_ref().map(Experts::traffic)
    }

    /// Whether processes share out weight `number` of the table.
    fn is_shared_out(&self, number: usize) -> bool {
        self.experts.as_ref().is_some_and(|experts| experts.have(number))
    }

    /// Whether this is the process that writes the files of the run.
    pub(crate) fn is_first(&self) -> bool {
        self.processes.rank() == 0
    }

    /// The processes of the run.
    pub(crate) fn processes(&self) -> &dyn Processes {
        &self.processes
    }

    /// How long exchanges took since this was asked the last time, in seconds, waiting for others
    /// included; `None` where there are no others.
    pub(crate) fn exchanged(&self) -> Option<f64> {
        let took = self.processes.processes.take();
        (self.processes.size() > 1).then_some(took.as_secs_f64())
    }

    /// The consecutive parts, of `parts` in all, that fall to this process.
    pub(crate) fn share(&self, parts: usize) -> Range<usize> {
        share(parts, self.processes.rank(), self.processes.size())
    }

    /// The part of each weight of `model` that this process updates: of shared out ones all that it
    /// holds.
    pub(crate) fn parts(&self, model: &Model) -> Vec<Range<usize>> {
        let held = model.weights().iter().enumerate().map(|(number, (_, weight))| {
            let values = weight.shape().0 * weight.shape().1;
            if self.is_shared_out(number) { 0..values } else { 0..0 }
        });
        let mut parts: Vec<_> = held.collect();
        for (i, piece) in self.flat.pieces(self.flat.part(self.processes.rank())) {
            parts[i] = piece;
        }
        parts
    }

    /// The gradients of all trained weights that all hold, as one row of values; the weights forget
    /// them.
    pub(crate) fn take_gradients(&self, model: &Model) -> Vec<f32> {
        let mut row = Vec::with_capacity(self.flat.len());
        let weights = model.weights();
        self.flat.weights().iter().for_each(|(i, _)| weights[*i].1.move_gradient(&mut row));
        row
    }

    /// Adds the gradients of one more shard to those before it.
    pub(crate) fn push(tree: &mut SumTree<Vec<f32>>, shard: usize, gradients: Vec<f32>) {
        tree.push((0, shard), gradients, add);
    }

    /// Brings partial sums over `shards` shards to those who update the weights, who finish them
    /// and put them back as gradients. Returns each weight's sum of squares, 0 for those that are
    /// not trained; all processes get the same.
    pub(crate) fn reduce(
        &mut self,
        model: &Model,
        tree: SumTree<Vec<f32>>,
        shards: usize,
    ) -> Result<Vec<f64>, ProcessError> {
        let (rank, size) = (self.processes.rank(), self.processes.size());
        let mine = self.flat.part(rank);
        let sum = match size {
            1 => tree.sum(add),
            _ => self.finish(tree, shards)?,
        };
        let sum = sum.unwrap_or_else(|| vec![0.0; mine.len()]);
        let weights = model.weights();
        let (mut at, mut squares) = (0, Vec::new());
        for (i, piece) in self.flat.pieces(mine) {
            weights[i].1.put_gradient(piece.start, &sum[at..at + piece.len()]);
            at += piece.len();
            squares.extend(weights[i].1.gradient_squares(piece));
        }
        let told: Vec<Vec<f64>> = self.tell(&squares)?;
        let mut chunks = told.iter().flatten().copied();
        let mut all = vec![0.0; weights.len()];
        for (i, at) in self.flat.weights() {
            all[*i] = chunks.by_ref().take(at.len().div_ceil(SQUARES_CHUNK)).sum();
        }
        if let Some(experts) = &mut self.experts {
            experts.reduce()?.into_iter().for_each(|(number, square)| all[number] = square);
        }
        Ok(all)
    }

    /// Sends the partial sums of `tree` out and adds up all that come for this process.
    fn finish(
        &self,
        tree: SumTree<Vec<f32>>,
        shards: usize,
    ) -> Result<Option<Vec<f32>>, ProcessError> {
        let (rank, size) = (self.processes.rank(), self.processes.size());
        let forests: Vec<_> = (0..size).map(|r| forest(share(shards, r, size))).collect();
        let length = self.flat.part(rank).len();
        let expected: Vec<usize> = forests.iter().map(|trees| trees.len() * length).collect();
        let partial = tree.partial();
        let for_rank = |r: usize| {
            let part = self.flat.part(r);
            partial.iter().flat_map(|row| &row[part.clone()]).copied().collect()
        };
        let sent = (0..size).map(for_rank).collect();
        drop(partial);
        let mut whole = SumTree::default();
        for (trees, values) in forests.iter().zip(self.processes.exchange(sent, &expected)?) {
            for (k, &subtree) in trees.iter().enumerate() {
                whole.push(subtree, values[k * length..(k + 1) * length].to_vec(), add);
            }
        }
        Ok(whole.sum(add))
    }

    /// Hands everybody the values that each process has updated.
    pub(crate) fn publish(&self, model: &Model) -> Result<(), ProcessError> {
        let (rank, size) = (self.processes.rank(), self.processes.size());
        if size == 1 {
            return Ok(());
        }
        let weights = model.weights();
        let mut mine = Vec::with_capacity(self.flat.part(rank).len());
        for (i, piece) in self.flat.pieces(self.flat.part(rank)) {
            mine.extend_from_slice(&weights[i].1.values()[piece]);
        }
        let all = self.processes.gather(mine, &self.flat.lengths())?.concat();
        for (i, at) in self.flat.weights() {
            weights[*i].1.write(all[at.clone()].to_vec());
        }
        Ok(())
    }

    /// Hands the first process's values of all weights that all hold to everybody.
    pub(crate) fn share_weights(&self, model: &Model) -> Result<(), ProcessError> {
        let weights = model.weights().iter().enumerate();
        for (_, (_, weight)) in weights.filter(|(number, _)| !self.is_shared_out(*number)) {
            let mut expected = vec![0; self.processes.size()];
            expected[0] = weight.shape().0 * weight.shape().1;
            let mine = if self.is_first() { weight.read() } else { Vec::new() };
            let mut got = self.processes.gather(mine, &expected)?;
            if !self.is_first() {
                weight.write(std::mem::take(&mut got[0]));
            }
        }
        Ok(())
    }

    /// Hands the first process's moments of all weights to those who update them, `parts` of each;
    /// `moments` are whole before and this process's parts after.
    pub(crate) fn deal(
        &self,
        moments: &mut [Option<Moments>],
        parts: &[Range<usize>],
        origin: Option<&Origin>,
    ) -> Result<(), TrainError> {
        let (rank, size) = (self.processes.rank(), self.processes.size());
        type Side = fn(&mut Moments) -> &mut Vec<f32>;
        let sides: [Side; 2] = [|held| &mut held.first, |held| &mut held.second];
        for side in sides {
            let mut sent = vec![Vec::new(); size];
            if self.is_first() {
                for (r, sent) in sent.iter_mut().enumerate() {
                    for (i, piece) in self.flat.pieces(self.flat.part(r)) {
                        let held = moments[i].as_mut().map(|held| &side(held)[piece]);
                        sent.extend_from_slice(held.unwrap_or_default());
                    }
                }
            }
            let mut expected = vec![0; size];
            expected[0] = self.flat.part(rank).len();
            let got = &self.processes.exchange(sent, &expected)?[0];
            let mut at = 0;
            for (number, (held, part)) in moments.iter_mut().zip(parts).enumerate() {
                if let (Some(held), false) = (held, self.is_shared_out(number)) {
                    *side(held) = got[at..at + part.len()].to_vec();
                    at += part.len();
                }
            }
        }
        self.experts.as_ref().map_or(Ok(()), |experts| experts.deal(moments, origin))
    }

    /// The moments of all weights whole, in the first process, but those of shared out experts,
    /// which are empty; `None` in the others.
    pub(crate) fn collect(
        &self,
        moments: &[Option<Moments>],
    ) -> Result<Option<Vec<Option<Moments>>>, ProcessError> {
        let first = self.whole(moments, |held| &held.first)?;
        let second = self.whole(moments, |held| &held.second)?;
        let mut both = first.into_iter().zip(second);
        let mut filled = Vec::with_capacity(moments.len());
        for (number, held) in moments.iter().enumerate() {
            if held.is_none() {
                filled.push(None);
                continue;
            }
            filled.push(match self.is_shared_out(number) {
                true => Some(Moments::default()),
                false => both.next().map(|(first, second)| Moments { first, second }),
            });
        }
        Ok(self.is_first().then_some(filled))
    }

    /// Experts that others hold on their way into a checkpoint, where they are shared out.
    pub(crate) fn gathering<'a>(
        &'a self,
        model: &'a Model,
        moments: &'a [Option<Moments>],
    ) -> Option<Gathering<'a>> {
        self.experts.as_ref().map(|experts| experts.gathering(model, moments))
    }

    /// One of the moments of each trained weight, whole in the first process.
    fn whole(
        &self,
        moments: &[Option<Moments>],
        side: impl Fn(&Moments) -> &Vec<f32>,
    ) -> Result<Vec<Vec<f32>>, ProcessError> {
        let mut sent = vec![Vec::new(); self.processes.size()];
        let flat = moments.iter().enumerate().filter(|(number, _)| !self.is_shared_out(*number));
        flat.filter_map(|(_, held)| held.as_ref())
            .for_each(|held| sent[0].extend_from_slice(side(held)));
        let expected = match self.is_first() {
            true => self.flat.lengths(),
            false => vec![0; self.processes.size()],
        };
        let row = self.processes.exchange(sent, &expected)?.concat();
        let of_weight = |(_, at): &(usize, Range<usize>)| row.get(at.clone()).map(<[f32]>::to_vec);
        Ok(self.flat.weights().iter().filter_map(of_weight).collect())
    }

    /// What everybody says, in the order of the processes.
    pub(crate) fn tell<T: Serialize + DeserializeOwned>(
        &self,
        mine: &T,
    ) -> Result<Vec<T>, ProcessError> {
        tell(&self.processes, mine)
    }

    /// Whether somebody says yes.
    pub(crate) fn any(&self, mine: bool) -> Result<bool, ProcessError> {
        if self.processes.size() == 1 {
            return Ok(mine);
        }
        Ok(self.tell(&mine)?.contains(&true))
    }
}
