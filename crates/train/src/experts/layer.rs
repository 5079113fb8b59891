//! A layer whose experts processes share out: who computes which expert for whose rows.

use std::collections::VecDeque;
use std::sync::Arc;

use model::mlp::ExpertBank;
use processes::{forest, share};

use super::bytes::VALUE;
use super::placement::{Holders, Moved};
use super::store::{Kept, Store};

/// Steps whose loads foretell those of the next one (Hecate takes as many).
const REMEMBERED: usize = 5;

/// By expert, then by the process whose rows they are.
type Table<T> = Vec<Vec<T>>;

/// The experts of one layer, seen from one process.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) bank: Arc<ExpertBank>,
    holders: Holders,
    /// Values of one expert in each weight of the bank.
    lengths: Vec<usize>,
    me: usize,
    size: usize,
    /// The process that computes: the owner, in steps also one that has a copy for the step.
    routes: Table<usize>,
    pub(super) owned: Store,
    /// Copies for the step.
    pub(super) guests: Store,
    /// Bytes that the rows of this step take where they travel.
    rows: Table<u64>,
    /// The same of the steps before, the newest last.
    before: VecDeque<Table<u64>>,
}

/// What a forward leaves at those who compute: of owned experts, and of guests.
pub(super) type KeptOfCall = [Option<Kept>; 2];

impl Layer {
    pub(super) fn new(
        bank: Arc<ExpertBank>,
        lengths: Vec<usize>,
        holders: Holders,
        (me, size): (usize, usize),
    ) -> Self {
        let mine = (0..holders.len()).filter(|&e| holders[e][0] == me).collect();
        let none = lengths.iter().map(|_| Vec::new()).collect();
        let (owned, guests) = (Store::owned(&bank, mine), Store::guests(&bank, vec![], none));
        let rows = vec![vec![0; size]; holders.len()];
        let before = VecDeque::new();
        let routes = Table::new();
        let mut layer =
            Self { bank, holders, lengths, me, size, routes, owned, guests, rows, before };
        layer.close();
        layer
    }

    pub(super) fn owner(&self, expert: usize) -> usize {
        self.holders[expert][0]
    }

    /// Values of one expert in each weight of the bank.
    pub(super) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Values of one expert.
    fn values(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Those of them that are trained.
    pub(super) fn trained(&self) -> usize {
        let weights = self.bank.weights().all().into_iter().zip(&self.lengths);
        weights.filter(|(weight, _)| weight.collects_gradient()).map(|(_, length)| length).sum()
    }

    /// The processes whose rows `rank` computes for `expert`, ascending.
    pub(super) fn sources(&self, expert: usize, rank: usize) -> Vec<usize> {
        (0..self.size).filter(|&source| self.routes[expert][source] == rank).collect()
    }

    /// Whether `rank` has a copy of `expert` for this step.
    fn hosts(&self, expert: usize, rank: usize) -> bool {
        self.owner(expert) != rank && self.routes[expert].contains(&rank)
    }

    /// The experts of which `owner` has given `host` a copy for this step, ascending.
    pub(super) fn lent(&self, owner: usize, host: usize) -> Vec<usize> {
        let mut lent: Vec<usize> = (0..self.holders.len()).collect();
        lent.retain(|&e| self.owner(e) == owner && self.hosts(e, host));
        lent
    }

    /// Copies of experts for this step, over all processes.
    pub(super) fn copies(&self) -> usize {
        let mut copies = 0;
        for expert in 0..self.holders.len() {
            copies += (0..self.size).filter(|&rank| self.hosts(expert, rank)).count();
        }
        copies
    }

    /// The experts to which rows of `source` go at `rank`, in the order in which they travel: its
    /// own, then its guests.
    pub(super) fn order(&self, source: usize, rank: usize) -> Vec<usize> {
        let all = (0..self.holders.len()).filter(|&e| self.routes[e][source] == rank);
        let (mut own, guests): (Vec<_>, Vec<_>) = all.partition(|&e| self.owner(e) == rank);
        own.extend(guests);
        own
    }

    /// Of rows of `source`, `sizes` for each expert, how many `rank` computes.
    pub(super) fn rows_at(&self, source: usize, rank: usize, sizes: &[u32]) -> usize {
        let experts = self.routes.iter().zip(sizes);
        experts.filter(|(of, _)| of[source] == rank).map(|(_, &n)| n as usize).sum()
    }

    /// Notes that rows went there and back, or would have if they had to travel.
    pub(super) fn note(&mut self, source: usize, sizes: &[u32]) {
        let (reads, writes) = self.bank.widths();
        for (of, &rows) in self.rows.iter_mut().zip(sizes) {
            of[source] += u64::from(rows) * VALUE * (reads + writes) as u64;
        }
    }

    /// Says who computes in the step that begins, of so many shards. Same in all processes.
    pub(super) fn choose(&mut self, moved: Moved, shards: usize) {
        let steps = self.before.len() as u64;
        for source in 0..self.size {
            let sums = forest(share(shards, source, self.size)).len();
            let weights = VALUE * (self.values() + sums * self.trained()) as u64;
            for (e, holders) in self.holders.iter().enumerate() {
                let near = holders.contains(&source);
                let held = if near { source } else { holders[source % holders.len()] };
                let rows: u64 = self.before.iter().map(|step| step[e][source]).sum();
                let comes = match moved {
                    Moved::Rows => false,
                    Moved::Weights => true,
                    Moved::Fewest => rows > weights * steps,
                };
                self.routes[e][source] = if comes { source } else { held };
            }
        }
    }

    /// Begins the step: gradients of each process's rows have a place.
    pub(super) fn open(&mut self, guests: Store) {
        self.guests = guests;
        for source in 0..self.size {
            let order = self.order(source, self.me);
            let own = order.iter().any(|&e| self.owner(e) == self.me);
            let guests = order.iter().any(|&e| self.owner(e) != self.me);
            self.owned.open(source == self.me, own);
            self.guests.open(source == self.me, guests);
        }
    }

    /// Ends it: the owners compute.
    pub(super) fn close(&mut self) {
        self.owned.close();
        let none = self.lengths.iter().map(|_| Vec::new()).collect();
        self.guests = Store::guests(&self.bank, Vec::new(), none);
        self.routes = self.holders.iter().map(|of| vec![of[0]; self.size]).collect();
        let none = vec![vec![0; self.size]; self.holders.len()];
        let step = std::mem::replace(&mut self.rows, none);
        if step.iter().flatten().any(|bytes| *bytes > 0) {
            self.before.push_back(step);
        }
        if self.before.len() > REMEMBERED {
            self.before.pop_front();
        }
    }

    /// What the experts here make of rows of `source`, as they travel.
    pub(super) fn forward(
        &self,
        source: usize,
        x: &[f32],
        sizes: &[u32],
        record: bool,
    ) -> (Vec<f32>, KeptOfCall) {
        let (mut y, mut kept, mut x) = (Vec::new(), KeptOfCall::default(), x);
        for (store, kept) in [&self.owned, &self.guests].into_iter().zip(&mut kept) {
            let mut here = vec![0; store.experts.len()];
            for (here, &e) in here.iter_mut().zip(&store.experts) {
                if self.routes[e][source] == self.me {
                    *here = sizes[e] as usize;
                }
            }
            let rows: usize = here.iter().sum();
            let sizes = here.into();
            if rows > 0 {
                let (here, rest) = x.split_at(rows * self.bank.widths().0);
                x = rest;
                let (made, left) = store.forward(source, here, &sizes, record);
                y.extend(made);
                *kept = left;
            }
        }
        (y, kept)
    }

    /// The gradient of those rows from that of what was made of them.
    pub(super) fn backward(&self, kept: KeptOfCall, g: &[f32]) -> Vec<f32> {
        let (mut dx, mut g) = (Vec::new(), g);
        for kept in kept.into_iter().flatten() {
            let (here, rest) = g.split_at(kept.rows() * self.bank.widths().1);
            g = rest;
            dx.extend(kept.backward(here.to_vec()));
        }
        dx
    }
}
