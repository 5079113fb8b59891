//! Attached losses: nothing changes forward, and backward everything is as if the loss had been
//! added to the main one.

mod common;

use std::sync::Arc;

use common::{Dice, Matrix, bodies};
use ops::{Ops, Tensor2, Weight, add, backward, gradient, leaf, read_rows, scalar, scale};
use testkit::{close, same_bits};

/// How much the loss of one layer counts.
const WEIGHT: f32 = 0.3;
const LAYERS: usize = 2;

/// A layer with a loss of its own: `y = x + W norm(x)`, and the z-loss of the logits `R norm(x)`.
struct Layer {
    ops: Ops,
    norm: Weight,
    square: Weight,
    router: Weight,
}

impl Layer {
    fn run(&self, x: Tensor2) -> (Tensor2, Tensor2) {
        let (o, rows) = (self.ops, x.dims()[0]);
        let h = o.rms_norm(x.clone(), &self.norm, 1e-5, true);
        let loss = o.z_loss(o.linear(h.clone(), &self.router), vec![0.5; rows]);
        (o.linear_add(h, &self.square, x), loss)
    }

    fn attached(&self, x: Tensor2) -> Tensor2 {
        let (y, loss) = self.run(x);
        self.ops.attach_loss(y, loss, WEIGHT)
    }
}

/// The input and the layer's three weights.
fn matrices() -> [Matrix; 4] {
    let d = &mut Dice(21);
    [d.matrix(9, 6), d.matrix(1, 6), d.matrix(6, 6), d.matrix(3, 6)]
}

fn layer(ops: Ops, matrices: &[Matrix; 4]) -> (Tensor2, Arc<Layer>) {
    let [x, norm, square, router] = matrices;
    let (norm, square, router) = (norm.weight(), square.weight(), router.weight());
    (leaf(&x.tensor_of(ops)), Arc::new(Layer { ops, norm, square, router }))
}

/// The main loss: the outputs times fixed coefficients.
fn functional(ops: Ops, y: Tensor2) -> Tensor2 {
    let [rows, columns] = y.dims();
    ops.weighted_sum(y, common::coefficients(rows * columns))
}

/// The gradients of input and weights after a backward from `loss`.
fn gradients(x: &Tensor2, layer: &Layer, loss: &Tensor2) -> Vec<Vec<f32>> {
    let gradients = backward(loss);
    let weights = [&layer.norm, &layer.square, &layer.router];
    if layer.ops != Ops::Fast {
        weights.iter().for_each(|w| w.take_plain_gradient(&gradients));
    }
    let mut all = vec![read_rows(&gradient(x, &gradients).expect("tracked"))];
    all.extend(weights.iter().map(|w| w.read_gradient().expect("reached")));
    all
}

/// Outputs and gradients with the losses added to the main one by hand.
fn by_hand(ops: Ops, matrices: &[Matrix; 4]) -> (Vec<f32>, f32, Vec<Vec<f32>>) {
    let (x, layer) = layer(ops, matrices);
    let (mut y, mut losses) = (scale(x.clone(), 1.0), Vec::new());
    for _ in 0..LAYERS {
        let (out, loss) = layer.run(y);
        y = out;
        losses.push(scale(loss, WEIGHT));
    }
    let values = read_rows(&y);
    let total = add(functional(ops, y), ops::add_scalars(losses));
    (values, scalar(&total), gradients(&x, &layer, &total))
}

#[test]
fn attached_losses_train_as_added_ones() {
    for ops in bodies() {
        let (expected_values, _, expected) = by_hand(ops, &matrices());
        for recompute in [false, true] {
            let (x, layer) = layer(ops, &matrices());
            let mut y = scale(x.clone(), 1.0);
            for _ in 0..LAYERS {
                let inner = layer.clone();
                y = if recompute {
                    ops.recompute(y, Arc::new(move |x| inner.attached(x)))
                } else {
                    inner.attached(y)
                };
            }
            let what = format!("{ops:?}, recompute {recompute}");
            same_bits(&read_rows(&y), &expected_values, &what);
            let found = gradients(&x, &layer, &functional(ops, y));
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                close(found, expected, 1e-6, &format!("{what}, gradient {i}"));
            }
        }
    }
}

/// Central differences of step 1e-2 of `main + weight * loss`: within 3e-3 of the largest entry.
#[test]
fn attached_losses_are_central_differences() {
    let step = 1e-2f32;
    let (x, layer) = layer(Ops::Fast, &matrices());
    let mut y = scale(x.clone(), 1.0);
    for _ in 0..LAYERS {
        y = layer.attached(y);
    }
    let found = gradients(&x, &layer, &functional(Ops::Fast, y));
    for (which, found) in found.iter().enumerate() {
        let largest = found.iter().fold(0.1f32, |m, x| m.max(x.abs()));
        for (i, &analytic) in found.iter().enumerate() {
            let moved = |by: f32| {
                let mut all = matrices();
                all[which].values[i] += by;
                by_hand(Ops::Fast, &all).1
            };
            let numeric = (moved(step) - moved(-step)) / (2.0 * step);
            let error = (numeric - analytic).abs();
            assert!(error <= 3e-3 * largest, "matrix {which} [{i}]: {analytic} is not {numeric}");
        }
    }
}

/// The gradient of the loss does not depend on what arrives at the rows, only on coming through.
#[test]
fn the_weight_is_all_that_scales_a_loss() {
    for ops in bodies() {
        for arriving in [0.0, 1.0, -7.0] {
            let (x, from) =
                (leaf(&Dice(3).matrix(4, 2).tensor_of(ops)), leaf(&ops.column(vec![2.0])));
            let y = ops.attach_loss(x.clone(), from.clone(), 0.25);
            let gradients = backward(&ops.weighted_sum(y, vec![arriving; 8]));
            let of = |leaf: &Tensor2| read_rows(&gradient(leaf, &gradients).expect("tracked"));
            assert_eq!((of(&x), of(&from)), (vec![arriving; 8], vec![0.25]), "{ops:?}");
        }
    }
}

#[test]
fn nothing_is_recorded_where_nothing_records() {
    let x = Dice(4).matrix(3, 5);
    for ops in bodies() {
        let y = ops.attach_loss(x.tensor_of(ops), ops.column(vec![1.0]), 1.0);
        same_bits(&read_rows(&y), &x.values, "values");
        assert!(!y.is_require_grad() && !y.device().is_autodiff(), "{ops:?}");
    }
}

#[test]
#[should_panic(expected = "a loss to attach is a 1 x 1 tensor")]
fn losses_of_rows_are_refused() {
    let x = Dice(5).matrix(3, 5);
    let _ = Ops::Fast.attach_loss(x.tensor(), x.tensor(), 1.0);
}
