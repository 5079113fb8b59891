//! Experts of a layer that a process computes, and the gradients that they have from the rows of
//! each process: apart, as those of each shard are sums of their own.

use std::sync::Arc;

use model::mlp::{BankWeights, ExpertBank};
use ops::{Tensor2, Weight, add_into, backward_from, from_rows, gradient, leaf, read_rows};
use processes::SumTree;

/// Some experts of one layer.
#[derive(Debug)]
pub(super) struct Store {
    bank: Arc<ExpertBank>,
    /// The numbers of these, ascending.
    pub(super) experts: Vec<usize>,
    weights: BankWeights,
    /// Gradients by the rows of each process, where it has rows for experts here.
    lanes: Vec<Option<Lane>>,
}

/// Gradients by the rows of one process.
#[derive(Debug)]
struct Lane {
    /// The store's weights, with gradient buffers of their own.
    weights: BankWeights,
    /// Those of whole shards.
    sums: SumTree<Vec<f32>>,
}

/// What is left of a forward for its backward.
#[derive(Debug)]
pub(super) struct Kept {
    rows: usize,
    x_ad: Tensor2,
    y_ad: Tensor2,
}

/// `left + right`, element by element.
pub(super) fn add(mut left: Vec<f32>, right: Vec<f32>) -> Vec<f32> {
    add_into(&mut left, &right);
    left
}

impl Store {
    /// The experts that the process holds between steps.
    pub(super) fn owned(bank: &Arc<ExpertBank>, experts: Vec<usize>) -> Self {
        let weights = bank.weights().clone();
        Self { bank: bank.clone(), experts, weights, lanes: Vec::new() }
    }

    /// Copies of other experts for a step: of each weight the values of one behind the other.
    /// Gradients are collected where the bank's weights collect them.
    pub(super) fn guests(
        bank: &Arc<ExpertBank>,
        experts: Vec<usize>,
        values: Vec<Vec<f32>>,
    ) -> Self {
        let mut values = values.into_iter();
        let weights = bank.weights().map(|own| {
            let (values, columns) = (values.next().unwrap_or_default(), own.shape().1);
            let rows = values.len() / columns.max(1);
            let weight = Weight::new(values, rows, columns);
            weight.collect_gradient(own.collects_gradient());
            Arc::new(weight)
        });
        Self { bank: bank.clone(), experts, weights, lanes: Vec::new() }
    }

    /// Begins a step for the rows of the next process, this one or another, if it sends any.
    pub(super) fn open(&mut self, is_own: bool, sends: bool) {
        self.lanes.push(sends.then(|| Lane {
            weights: match is_own {
                true => self.weights.clone(),
                false => self.weights.map(|weight| Arc::new(weight.twin())),
            },
            sums: SumTree::default(),
        }));
    }

    /// Ends it: gradients by rows of others, and what was not taken, are forgotten.
    pub(super) fn close(&mut self) {
        self.lanes.clear();
    }

    /// What the experts make of rows of process `source`, `sizes` of each; and what a backward
    /// needs, where one may follow.
    pub(super) fn forward(
        &self,
        source: usize,
        x: &[f32],
        sizes: &Arc<[usize]>,
        record: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        let rows = sizes.iter().sum();
        let x_ad = from_rows(x.to_vec(), rows, self.bank.widths().0);
        let lane = self.lanes.get(source).and_then(Option::as_ref).filter(|_| record);
        let Some(lane) = lane else {
            return (read_rows(&self.bank.compute(&self.weights, x_ad, sizes)), None);
        };
        let x_ad = leaf(&x_ad);
        let y_ad = self.bank.compute(&lane.weights, x_ad.clone(), sizes);
        (read_rows(&y_ad), Some(Kept { rows, x_ad, y_ad }))
    }

    /// Process `source` has come to the end of a shard.
    pub(super) fn end_shard(&mut self, source: usize, shard: usize) {
        let Some(Some(lane)) = self.lanes.get_mut(source) else { return };
        let mut row = Vec::new();
        lane.weights.all().iter().for_each(|weight| weight.move_gradient(&mut row));
        lane.sums.push((0, shard), row, add);
    }

    /// The sums over subtrees of shards of process `source`, those of [`processes::forest`], all
    /// experts in each; none are left.
    pub(super) fn take_sums(&mut self, source: usize) -> Vec<Vec<f32>> {
        let lane = self.lanes.get_mut(source).and_then(Option::as_mut);
        lane.map_or(Vec::new(), |lane| std::mem::take(&mut lane.sums).partial())
    }

    /// Out of a row of gradients as [`Store::take_sums`] has them, those of expert number `i` here:
    /// of one trained weight behind the other.
    pub(super) fn of_expert(&self, row: &[f32], i: usize) -> Vec<f32> {
        let (mut found, mut at) = (Vec::new(), 0);
        for weight in self.weights.all().into_iter().filter(|w| w.collects_gradient()) {
            let values = weight.shape().0 * weight.shape().1;
            let length = values / self.experts.len();
            found.extend_from_slice(&row[at + i * length..][..length]);
            at += values;
        }
        found
    }

    /// The values of expert number `i` here, of one weight behind the other.
    pub(super) fn values_of(&self, i: usize) -> Vec<f32> {
        let mut found = Vec::new();
        for weight in self.weights.all() {
            let values = weight.values();
            let length = values.len() / self.experts.len();
            found.extend_from_slice(&values[i * length..][..length]);
        }
        found
    }

    /// Puts what [`Store::of_expert`] gave, summed up, in the place of the gradient.
    pub(super) fn put_gradient(&self, i: usize, gradient: &[f32]) {
        let mut at = 0;
        for weight in self.weights.all().into_iter().filter(|w| w.collects_gradient()) {
            let length = weight.shape().0 * weight.shape().1 / self.experts.len();
            weight.put_gradient(i * length, &gradient[at..at + length]);
            at += length;
        }
    }
}

impl Kept {
    /// How many rows it was.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The gradient of the rows from that of what was made of them; weights collect theirs.
    pub(super) fn backward(self, g: Vec<f32>) -> Vec<f32> {
        let gradients = backward_from(self.y_ad, g);
        gradient(&self.x_ad, &gradients).map_or(Vec::new(), |dx| read_rows(&dx))
    }
}
