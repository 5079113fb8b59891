//! How processes meet at experts: rows there and back, by agreement.
//!
//! Passes of different rows ask for experts differently often: a recursion ends early where no row
//! goes on, and who has fewer passes is done before the others. So ahead of each exchange everybody
//! tells which one it is at, all take part in the one that comes first, and who is not at it serves
//! with the experts that it holds. It ends when all are done. No process needs to know the way of
//! another through the model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::mlp::{ExpertOwners, GroupedRows};
use processes::{ProcessError, Processes, SumTree, Timed, forest, share};
use serde::{Deserialize, Serialize};

use super::bytes::{ExpertTraffic, to_others};
use super::layer::{KeptOfCall, Layer};
use super::placement::Moved;
use super::store::{Store, add};
use crate::tell::{heard, said};

/// The meeting of processes at the experts of a model.
#[derive(Debug)]
pub(crate) struct Exchange {
    processes: Arc<Timed>,
    moved: Moved,
    shards: usize,
    /// The place of each stored layer among those below.
    places: BTreeMap<usize, usize>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    layers: Vec<Layer>,
    /// What ended the others; nothing is exchanged from then on.
    failed: Option<ProcessError>,
    /// Passes that this process has begun since all were done.
    pass: u64,
    /// The shard of its passes.
    shard: usize,
    /// Uses of experts so far.
    calls: u64,
    /// For each process the shards whose gradients are complete end here.
    complete: Vec<usize>,
    /// What backwards need, by process and number of the call.
    kept: BTreeMap<(usize, u64), KeptOfCall>,
    traffic: ExpertTraffic,
}

/// What a process is at.
#[derive(Debug, Serialize, Deserialize)]
struct At {
    /// Nothing where it is done.
    wants: Option<Wanted>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Wanted {
    place: Place,
    /// The shard whose gradients follow.
    shard: usize,
    call: u64,
    record: bool,
    /// Rows of each expert.
    sizes: Vec<u32>,
}

/// An exchange. Those of a pass come in the order of its layers, forward, then backward; processes
/// that are at the same one exchange together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Place {
    pass: u64,
    way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Way {
    Forward(usize),
    Backward(std::cmp::Reverse<usize>),
}

impl Way {
    /// The place of the layer.
    fn layer(self) -> usize {
        match self {
            Self::Forward(layer) | Self::Backward(std::cmp::Reverse(layer)) => layer,
        }
    }
}

/// Summed gradients of experts that this process owns: by the place of the layer, then by expert.
pub(super) type Sums = Vec<BTreeMap<usize, Vec<f32>>>;

impl Exchange {
    pub(super) fn new(
        processes: Arc<Timed>,
        moved: Moved,
        shards: usize,
        layers: Vec<Layer>,
    ) -> Self {
        let numbers = layers.iter().enumerate();
        let places = numbers.map(|(place, layer)| (layer.bank.layer(), place)).collect();
        let state = State {
            layers,
            failed: None,
            pass: 0,
            shard: 0,
            calls: 0,
            complete: vec![0; processes.size()],
            kept: BTreeMap::new(),
            traffic: ExpertTraffic::default(),
        };
        Self { processes, moved, shards, places, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes that meet here.
    pub(super) fn processes(&self) -> &Arc<Timed> {
        &self.processes
    }

    /// Begins a step: copies of experts travel to where they are to compute. All call this.
    pub(crate) fn begin_step(&self) -> Result<(), ProcessError> {
        self.settle()?;
        let mut state = self.state();
        let (me, size) = (self.processes.rank(), self.processes.size());
        state.traffic = ExpertTraffic::default();
        state.complete = (0..size).map(|r| share(self.shards, r, size).start).collect();
        let State { layers, traffic, .. } = &mut *state;
        for layer in layers {
            layer.choose(self.moved, self.shards);
            let copies = layer.copies();
            traffic.copies.push(copies);
            let mut got = vec![Vec::new(); size];
            if copies > 0 {
                let values = layer.lengths().iter().sum::<usize>();
                let (mut sent, mut expected) = (vec![Vec::new(); size], vec![0; size]);
                for rank in 0..size {
                    let lent = layer.lent(me, rank);
                    sent[rank].reserve_exact(lent.len() * values);
                    for e in lent {
                        sent[rank].extend(layer.owned.values_of(place(&layer.owned.experts, e)));
                    }
                    expected[rank] = layer.lent(rank, me).len() * values;
                }
                traffic.weights += to_others(&sent, me);
                got = self.processes.exchange(sent, &expected)?;
            }
            let guests = guests(layer, me, &got);
            layer.open(guests);
        }
        Ok(())
    }

    /// Begins a pass over rows of a shard.
    pub(crate) fn begin_pass(&self, shard: usize) {
        let mut state = self.state();
        (state.pass, state.shard) = (state.pass + 1, shard);
    }

    /// Serves the others until all are done with what they were at.
    pub(crate) fn settle(&self) -> Result<(), ProcessError> {
        let state = &mut *self.state();
        self.take_part(state, None, &[])?;
        // What nobody asked a gradient for.
        state.kept.clear();
        state.pass = 0;
        Ok(())
    }

    /// Ends a step: gradients of owned experts over all shards. All call this behind the backwards
    /// of a step.
    pub(super) fn end_step(&self) -> Result<(Sums, ExpertTraffic), ProcessError> {
        self.settle()?;
        let state = &mut *self.state();
        let (me, size) = (self.processes.rank(), self.processes.size());
        for source in 0..size {
            state.complete_to(source, share(self.shards, source, size).end);
        }
        let State { layers, traffic, .. } = state;
        let mut all = Sums::new();
        for layer in layers {
            let mut got = vec![Vec::new(); size];
            if layer.copies() > 0 {
                let (sent, expected) = self.gradients_of_guests(layer);
                traffic.gradients += to_others(&sent, me);
                got = self.processes.exchange(sent, &expected)?;
            }
            all.push(self.added(layer, &got));
            layer.close();
        }
        Ok((all, traffic.clone()))
    }

    /// The gradients of copies in `layer`, for their owners, and how many values come from each
    /// process for experts of this one.
    fn gradients_of_guests(&self, layer: &mut Layer) -> (Vec<Vec<f32>>, Vec<usize>) {
        let (me, size) = (self.processes.rank(), self.processes.size());
        let (mut sent, mut expected) = (vec![Vec::new(); size], vec![0; size]);
        let sums: Vec<_> = (0..size).map(|source| layer.guests.take_sums(source)).collect();
        for rank in 0..size {
            for e in layer.lent(rank, me) {
                let i = place(&layer.guests.experts, e);
                for row in layer.sources(e, me).into_iter().flat_map(|source| &sums[source]) {
                    sent[rank].extend(layer.guests.of_expert(row, i));
                }
            }
            for e in layer.lent(me, rank) {
                for source in layer.sources(e, rank) {
                    expected[rank] += self.sums_of(source) * layer.trained();
                }
            }
        }
        (sent, expected)
    }

    /// How many sums over subtrees the shards of a process come to.
    fn sums_of(&self, source: usize) -> usize {
        forest(share(self.shards, source, self.processes.size())).len()
    }

    /// The sums over all shards of what rows of each process gave here and at the hosts of copies,
    /// of whom these came.
    fn added(&self, layer: &mut Layer, got: &[Vec<f32>]) -> BTreeMap<usize, Vec<f32>> {
        let (me, size) = (self.processes.rank(), self.processes.size());
        // As hosts send them: by host and expert.
        let mut from_hosts: BTreeMap<(usize, usize), &[f32]> = BTreeMap::new();
        for (host, got) in got.iter().enumerate() {
            let mut got = &got[..];
            for e in layer.lent(me, host) {
                for source in layer.sources(e, host) {
                    let (here, rest) = got.split_at(self.sums_of(source) * layer.trained());
                    got = rest;
                    from_hosts.insert((e, source), here);
                }
            }
        }
        let own: Vec<_> = (0..size).map(|source| layer.owned.take_sums(source)).collect();
        let mut of_layer = BTreeMap::new();
        for (i, &e) in layer.owned.experts.iter().enumerate() {
            let mut whole = SumTree::default();
            for (source, own) in own.iter().enumerate() {
                let parts: Vec<Vec<f32>> = match from_hosts.get(&(e, source)) {
                    Some(got) => got.chunks(layer.trained().max(1)).map(<[f32]>::to_vec).collect(),
                    None => own.iter().map(|row| layer.owned.of_expert(row, i)).collect(),
                };
                let trees = forest(share(self.shards, source, size));
                trees.into_iter().zip(parts).for_each(|(at, sum)| whole.push(at, sum, add));
            }
            of_layer.insert(e, whole.sum(add).unwrap_or_default());
        }
        of_layer
    }

    /// Gives owned experts their gradients.
    pub(super) fn put(&self, sums: &Sums) {
        for (layer, sums) in self.state().layers.iter().zip(sums) {
            let owned = layer.owned.experts.iter().enumerate();
            owned.for_each(|(i, e)| layer.owned.put_gradient(i, &sums[e]));
        }
    }

    /// Takes part in exchanges until what this process wants is done, or, if it wants nothing,
    /// until nobody wants anything. Returns what has come back for `values`.
    fn take_part(
        &self,
        state: &mut State,
        wants: Option<Wanted>,
        values: &[f32],
    ) -> Result<Vec<f32>, ProcessError> {
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        let done = self.meet(state, At { wants }, values);
        state.failed = done.as_ref().err().cloned();
        done
    }

    fn meet(&self, state: &mut State, mine: At, values: &[f32]) -> Result<Vec<f32>, ProcessError> {
        let text = said(&*self.processes, &mine)?;
        loop {
            state.traffic.agreement += (text.len() * (self.processes.size() - 1)) as u64;
            let told: Vec<At> = heard(&*self.processes, text.clone())?;
            let first = told.iter().filter_map(|at| at.wants.as_ref().map(|w| w.place)).min();
            let Some(first) = first else { return Ok(Vec::new()) };
            let mut come: Vec<Option<Wanted>> = told.into_iter().map(|at| at.wants).collect();
            come.iter_mut().for_each(|wanted| {
                wanted.take_if(|wanted| wanted.place != first);
            });
            let is_mine = mine.wants.as_ref().is_some_and(|wants| wants.place == first);
            self.check(state, first.way, &come)?;
            let back = self.there_and_back(state, first.way, &come, values)?;
            if is_mine {
                return Ok(back);
            }
        }
    }

    /// Refuses what no process of the same run can want.
    fn check(&self, state: &State, way: Way, come: &[Option<Wanted>]) -> Result<(), ProcessError> {
        let count = state.layers.get(way.layer()).map(|layer| layer.bank.count());
        for (from, wanted) in come.iter().enumerate() {
            let Some(wanted) = wanted else { continue };
            if count != Some(wanted.sizes.len()) {
                return Err(ProcessError::Unequal {
                    rank: self.processes.rank(),
                    from,
                    expected: format!("rows for {count:?} experts of layer {}", way.layer()),
                    found: format!("for {}", wanted.sizes.len()),
                });
            }
        }
        Ok(())
    }

    /// One exchange: `values` of this process travel if it has come, and so do those of all who
    /// have, and what was made of them.
    fn there_and_back(
        &self,
        state: &mut State,
        way: Way,
        come: &[Option<Wanted>],
        values: &[f32],
    ) -> Result<Vec<f32>, ProcessError> {
        let (me, size) = (self.processes.rank(), self.processes.size());
        let (reads, writes) = state.layers[way.layer()].bank.widths();
        let (there, back) = match way {
            Way::Forward(_) => (reads, writes),
            Way::Backward(_) => (writes, reads),
        };
        for (source, wanted) in come.iter().enumerate() {
            let Some(wanted) = wanted else { continue };
            state.layers[way.layer()].note(source, &wanted.sizes);
            if matches!(way, Way::Backward(_)) {
                state.complete_to(source, wanted.shard);
            }
        }
        let layer = &state.layers[way.layer()];
        let (mut here, mut away) = (vec![0; size], vec![0; size]);
        for (rank, (here, away)) in here.iter_mut().zip(&mut away).enumerate() {
            *here = come[rank].as_ref().map_or(0, |of| layer.rows_at(rank, me, &of.sizes));
            *away = come[me].as_ref().map_or(0, |of| layer.rows_at(me, rank, &of.sizes));
        }
        let groups = come[me].as_ref().map(|mine| Groups::new(layer, me, size, &mine.sizes));
        let sent = match &groups {
            Some(groups) => groups.apart(values, there),
            None => vec![Vec::new(); size],
        };
        let expected: Vec<usize> = here.iter().map(|rows| rows * there).collect();
        state.traffic.rows += to_others(&sent, me);
        let got = self.processes.exchange(sent, &expected)?;
        let mut made = Vec::with_capacity(size);
        for (source, values) in got.into_iter().enumerate() {
            let Some(wanted) = come[source].as_ref().filter(|_| here[source] > 0) else {
                made.push(Vec::new());
                continue;
            };
            let call = (source, wanted.call);
            made.push(match way {
                Way::Forward(_) => {
                    let (y, kept) = layer.forward(source, &values, &wanted.sizes, wanted.record);
                    if wanted.record {
                        state.kept.insert(call, kept);
                    }
                    y
                }
                Way::Backward(_) => {
                    layer.backward(state.kept.remove(&call).unwrap_or_default(), &values)
                }
            });
        }
        state.traffic.rows += to_others(&made, me);
        let expected: Vec<usize> = away.iter().map(|rows| rows * back).collect();
        let returned = self.processes.exchange(made, &expected)?;
        Ok(groups.map_or(Vec::new(), |groups| groups.together(&returned, back)))
    }

    /// What comes back for rows, or as many zeros where the others are gone: who goes on learns of
    /// it when processes next tell each other something.
    fn ask(&self, way: fn(usize) -> Way, rows: &GroupedRows<'_>, width: usize) -> Vec<f32> {
        let state = &mut *self.state();
        let place = Place { pass: state.pass, way: way(self.places[&rows.layer]) };
        let wanted = Wanted {
            place,
            shard: state.shard,
            call: *rows.call.get_or_init(|| {
                state.calls += 1;
                state.calls
            }),
            record: rows.record,
            sizes: rows.sizes.iter().map(|&n| n as u32).collect(),
        };
        let count = rows.sizes.iter().sum::<usize>();
        let back = self.take_part(state, Some(wanted), rows.values);
        back.unwrap_or_else(|_| vec![0.0; count * width])
    }

    fn widths(&self, layer: usize) -> (usize, usize) {
        self.state().layers[self.places[&layer]].bank.widths()
    }
}

impl ExpertOwners for Exchange {
    fn forward(&self, rows: &GroupedRows<'_>) -> Vec<f32> {
        let (_, writes) = self.widths(rows.layer);
        self.ask(Way::Forward, rows, writes)
    }

    fn backward(&self, rows: &GroupedRows<'_>) -> Vec<f32> {
        let (reads, _) = self.widths(rows.layer);
        self.ask(|layer| Way::Backward(std::cmp::Reverse(layer)), rows, reads)
    }
}

impl State {
    /// The gradients of all shards of process `source` before this one are complete.
    fn complete_to(&mut self, source: usize, shard: usize) {
        for done in self.complete[source]..shard.max(self.complete[source]) {
            for layer in &mut self.layers {
                layer.owned.end_shard(source, done);
                layer.guests.end_shard(source, done);
            }
            self.complete[source] = done + 1;
        }
    }
}

/// Where the groups of a process's rows go.
struct Groups {
    /// For each process the rows that go there, as stretches.
    stretches: Vec<Vec<std::ops::Range<usize>>>,
    rows: usize,
}

impl Groups {
    fn new(layer: &Layer, me: usize, size: usize, sizes: &[u32]) -> Self {
        let (mut starts, mut rows) = (Vec::with_capacity(sizes.len()), 0);
        for &n in sizes {
            starts.push(rows);
            rows += n as usize;
        }
        let mut stretches = vec![Vec::new(); size];
        for (rank, stretches) in stretches.iter_mut().enumerate() {
            for e in layer.order(me, rank) {
                stretches.push(starts[e]..starts[e] + sizes[e] as usize);
            }
        }
        Self { stretches, rows }
    }

    /// Rows of `width` values by who they go to.
    fn apart(&self, values: &[f32], width: usize) -> Vec<Vec<f32>> {
        let mut parts = vec![Vec::new(); self.stretches.len()];
        for (stretches, part) in self.stretches.iter().zip(&mut parts) {
            for at in stretches {
                part.extend_from_slice(&values[at.start * width..at.end * width]);
            }
        }
        parts
    }

    /// Back from there, in their order.
    fn together(&self, parts: &[Vec<f32>], width: usize) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * width];
        for (stretches, part) in self.stretches.iter().zip(parts) {
            let mut from = 0;
            for at in stretches {
                let to = from + at.len() * width;
                values[at.start * width..at.end * width].copy_from_slice(&part[from..to]);
                from = to;
            }
        }
        values
    }
}

/// Where `expert` stands among ascending ones.
fn place(experts: &[usize], expert: usize) -> usize {
    experts.partition_point(|&e| e < expert)
}

/// The copies that this process hosts in `layer`, out of what each owner sent.
fn guests(layer: &Layer, me: usize, got: &[Vec<f32>]) -> Store {
    let values = layer.lengths().iter().sum::<usize>();
    let mut hosted = BTreeMap::new();
    for (owner, got) in got.iter().enumerate() {
        let lent = layer.lent(owner, me).into_iter();
        hosted.extend(lent.zip(got.chunks(values.max(1))));
    }
    let mut at = 0;
    let mut of_weights = Vec::new();
    for &length in layer.lengths() {
        let mut weight = Vec::with_capacity(hosted.len() * length);
        hosted.values().for_each(|values| weight.extend_from_slice(&values[at..at + length]));
        of_weights.push(weight);
        at += length;
    }
    Store::guests(&layer.bank, hosted.into_keys().collect(), of_weights)
}
