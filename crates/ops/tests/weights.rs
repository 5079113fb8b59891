//! Weights: how gradients add up in them, packing, AdamW, and the ways around the tape (recompute,
//! cut).

mod common;

use std::sync::Arc;

use common::{Dice, Matrix};
use ops::{
    AdamW, Heads, Moments, Ops, Quantized, Rotary, SQUARES_CHUNK, Spans, Tensor2, Weight, backward,
    cut, from_rows, gradient, leaf, read_rows, scale,
};
use testkit::{close, same_bits};

/// A 1 x 1 loss: the outputs times fixed coefficients.
fn functional(y: Tensor2) -> Tensor2 {
    let [rows, columns] = y.dims();
    Ops::Fast.weighted_sum(y, common::coefficients(rows * columns))
}

fn frozen(matrix: &Matrix) -> Weight {
    Weight::new(matrix.values.clone(), matrix.rows, matrix.columns)
}

#[test]
fn gradients_add_up_over_uses_and_passes() {
    let d = &mut Dice(1);
    let (x, table, square, norm) = (d.matrix(9, 6), d.matrix(8, 6), d.matrix(6, 6), d.matrix(1, 6));
    let ids: Arc<[u32]> = (0..9).map(|_| d.below(8)).collect();
    let ones: Arc<[f32]> = vec![1.0; 9].into();
    // Every weight is used twice: the table as embedding and as head.
    let pass = |o: Ops, w: &[Weight; 3]| {
        let mut x_td = o.embed(&o.anchor(true), &w[0], &ids) + leaf(&x.tensor());
        for _ in 0..2 {
            let h = o.rms_norm(x_td.clone(), &w[2], 1e-5, true);
            x_td = o.linear_add(h, &w[1], x_td);
        }
        let gradients = backward(&o.head_loss(x_td, &w[0], &ids, &ones).0);
        if o != Ops::Fast {
            w.iter().for_each(|w| w.take_plain_gradient(&gradients));
        }
    };
    let weights = || [table.weight(), square.weight(), norm.weight()];
    let (once, twice, plain) = (weights(), weights(), weights());
    pass(Ops::Fast, &once);
    (0..2).for_each(|_| pass(Ops::Fast, &twice));
    (0..2).for_each(|_| pass(Ops::PLAIN, &plain));
    for (i, ((once, twice), plain)) in once.iter().zip(&twice).zip(&plain).enumerate() {
        let double: Vec<f32> =
            once.read_gradient().expect("reached").iter().map(|g| 2.0 * g).collect();
        let found = twice.read_gradient().expect("reached");
        close(&found, &double, 1e-6, &format!("weight {i}, two passes"));
        close(
            &plain.read_gradient().expect("reached"),
            &double,
            1e-4,
            &format!("weight {i}, plain"),
        );
        let square: f64 = found.iter().map(|g| f64::from(*g).powi(2)).sum();
        assert!((twice.gradient_square() / square - 1.0).abs() < 1e-6);
    }
    once[1].clear_gradient();
    assert!(once[1].read_gradient().is_none() && once[1].gradient_square() == 0.0);
    pass(Ops::Fast, &once);
    let again = once[1].read_gradient().expect("reached");
    let half: Vec<f32> =
        twice[1].read_gradient().expect("reached").iter().map(|g| g / 2.0).collect();
    close(&again, &half, 1e-6, "after clearing");
}

/// No rows, no gradient: what an earlier step left in the buffer must not come back.
#[test]
fn a_use_without_rows_adds_nothing() {
    let d = &mut Dice(13);
    let weight = d.matrix(3, 4).weight();
    let through = |x: Tensor2| backward(&functional(Ops::Fast.linear(leaf(&x), &weight)));
    through(d.matrix(5, 4).tensor());
    let once = weight.read_gradient().expect("reached");
    through(from_rows(Vec::new(), 0, 4));
    same_bits(&weight.read_gradient().expect("reached"), &once, "no rows after some");
    weight.clear_gradient();
    through(from_rows(Vec::new(), 0, 4));
    assert!(weight.read_gradient().is_none_or(|g| g.iter().all(|x| *x == 0.0)), "no rows at all");
}

#[test]
fn frozen_weights_collect_nothing() {
    let d = &mut Dice(2);
    let (x, w) = (leaf(&d.matrix(3, 4).tensor()), frozen(&d.matrix(2, 4)));
    let gradients = backward(&functional(Ops::Fast.linear(x.clone(), &w)));
    assert!(w.read_gradient().is_none());
    assert!(gradient(&x, &gradients).is_some(), "rows still get theirs");
    let before = w.read();
    w.adamw(&hyper(1), 1.0, &mut Moments::of(&w));
    same_bits(&w.read(), &before, "an update without gradients");
}

/// A decoder layer over its weights.
struct Layer {
    weights: Vec<Weight>,
    rotary: Rotary,
    positions: Arc<[u32]>,
    spans: Arc<Spans>,
}

const HEADS: Heads = Heads::new(2, 1, 4);

impl Layer {
    fn new(rows: usize) -> Self {
        let d = &mut Dice(3);
        let shapes = [(1, 8), (8, 8), (8, 8), (8, 8), (1, 8), (12, 8), (8, 6)];
        let weights = shapes.iter().map(|&(n, m)| d.matrix(n, m).weight()).collect();
        // Two documents.
        let start = (0..rows as u32).map(|t| if t < 4 { 0 } else { 4 }).collect();
        let spans = Arc::new(Spans { start, end: (1..=rows as u32).collect() });
        Self {
            weights,
            rotary: Rotary::new(1000.0, 4),
            positions: (0..rows as u32).collect(),
            spans,
        }
    }

    fn run(&self, x: Tensor2) -> Tensor2 {
        let (o, w) = (Ops::Fast, &self.weights);
        let h = o.rms_norm(x.clone(), &w[0], 1e-5, true);
        let q = o.rotate(o.linear(h.clone(), &w[1]), &self.rotary, 2, &self.positions);
        let kv = o.rotate(o.linear(h, &w[2]), &self.rotary, 1, &self.positions);
        let x = o.linear_add(o.attend(q, kv, &self.spans, HEADS), &w[3], x);
        let h = o.rms_norm(x.clone(), &w[4], 1e-5, true);
        o.linear_add(o.swiglu(o.linear(h, &w[5])), &w[6], x)
    }
}

#[test]
fn recompute_equals_direct() {
    let input = Dice(4).matrix(11, 8);
    let run = |again: bool| {
        let layer = Arc::new(Layer::new(11));
        let x = leaf(&input.tensor());
        let mut y = scale(x.clone(), 1.0);
        // The same weights twice, as in a recursion.
        for _ in 0..2 {
            let inner = layer.clone();
            y = if again {
                Ops::Fast.recompute(y, Arc::new(move |x| inner.run(x)))
            } else {
                inner.run(y)
            };
        }
        let values = read_rows(&y);
        let gradients = backward(&functional(y));
        let mut found = vec![read_rows(&gradient(&x, &gradients).expect("tracked"))];
        found.extend(layer.weights.iter().map(|w| w.read_gradient().expect("reached")));
        (values, found)
    };
    let ((direct, expected), (values, found)) = (run(false), run(true));
    same_bits(&values, &direct, "recomputed values");
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        close(found, expected, 1e-6, &format!("recomputed gradient {i}"));
    }
}

#[test]
fn recompute_without_recording_is_the_piece() {
    let layer = Arc::new(Layer::new(7));
    let x = Dice(5).matrix(7, 8);
    let inner = layer.clone();
    let y = Ops::Fast.recompute(x.tensor(), Arc::new(move |x| inner.run(x)));
    same_bits(&read_rows(&y), &read_rows(&layer.run(x.tensor())), "values");
    assert!(layer.weights.iter().all(|w| w.read_gradient().is_none()));
}

#[test]
fn packing_changes_no_bit() {
    let d = &mut Dice(6);
    for (n, m) in [(1, 5), (37, 65), (64, 32), (130, 17)] {
        let matrix = d.matrix(n, m);
        let (plain, packed) = (frozen(&matrix), frozen(&matrix));
        packed.pack();
        for rows in [1, 3, 33] {
            let (x, r) = (d.matrix(rows, m), d.matrix(rows, n));
            let what = format!("{rows} rows through {n} x {m}");
            let of = |w: &Weight| read_rows(&Ops::Fast.linear(x.tensor(), w));
            same_bits(&of(&packed), &of(&plain), &what);
            let of = |w: &Weight| read_rows(&Ops::Fast.linear_add(x.tensor(), w, r.tensor()));
            same_bits(&of(&packed), &of(&plain), &format!("{what}, added"));
            // As a bank: matrices of whole panels, and others.
            for groups in [1, 2].into_iter().filter(|groups| n % groups == 0) {
                let sizes: Arc<[usize]> = (0..groups).map(|g| (rows + g) / groups).collect();
                let of = |w: &Weight| read_rows(&Ops::Fast.grouped_linear(x.tensor(), w, &sizes));
                same_bits(&of(&packed), &of(&plain), &format!("{what}, in groups {sizes:?}"));
            }
        }
        // A write or an update must not leave the old copy behind.
        let (x, other) = (d.matrix(2, m), d.matrix(n, m));
        let fresh = |w: &Weight| {
            same_bits(
                &read_rows(&Ops::Fast.linear(x.tensor(), w)),
                &read_rows(&Ops::Fast.linear(
                    x.tensor(),
                    &frozen(&Matrix { values: w.read(), rows: n, columns: m }),
                )),
                "a packed weight after a change",
            )
        };
        packed.write(other.values.clone());
        fresh(&packed);
        packed.pack();
        fresh(&packed);
        packed.collect_gradient(true);
        backward(&functional(Ops::Fast.linear(leaf(&x.tensor()), &packed)));
        packed.adamw(&hyper(1), 1.0, &mut Moments::of(&packed));
        assert_ne!(packed.read(), other.values);
        fresh(&packed);
    }
}

#[test]
fn a_row_alone_is_the_row_among_many() {
    let d = &mut Dice(7);
    let rows = 21;
    let (x, w, norm) = (d.matrix(rows, 24), frozen(&d.matrix(35, 24)), frozen(&d.matrix(1, 24)));
    let kv = d.matrix(rows, 24);
    let heads = Heads::new(4, 2, 6);
    let spans = |rows: std::ops::Range<u32>| {
        let start = rows.clone().map(|t| if t >= 13 { 13 } else { 0 }).collect();
        Arc::new(Spans { start, end: rows.map(|t| t + 1).collect() })
    };
    let o = Ops::Fast;
    let attend = |x: Tensor2, rows| o.attend(x, kv.tensor(), &spans(rows), heads);
    let all = [
        o.linear(x.tensor(), &w),
        o.rms_norm(x.tensor(), &norm, 1e-5, false),
        o.swiglu(x.tensor()),
        o.gelu(x.tensor()),
        attend(x.tensor(), 0..rows as u32),
    ];
    for t in 0..rows {
        let alone = || from_rows(x.values[t * 24..][..24].to_vec(), 1, 24);
        let found = [
            o.linear(alone(), &w),
            o.rms_norm(alone(), &norm, 1e-5, false),
            o.swiglu(alone()),
            o.gelu(alone()),
            attend(alone(), t as u32..t as u32 + 1),
        ];
        for (name, (all, found)) in
            ["linear", "rms_norm", "swiglu", "gelu", "attend"].iter().zip(all.iter().zip(&found))
        {
            let width = found.dims()[1];
            same_bits(
                &read_rows(found),
                &read_rows(all)[t * width..][..width],
                &format!("{name}, row {t}"),
            );
        }
    }
}

fn hyper(step: u64) -> AdamW {
    AdamW { lr: 0.03, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step }
}

#[test]
fn adamw_is_its_formula() {
    let d = &mut Dice(9);
    let (x, start) = (d.matrix(4, 5), d.matrix(3, 5));
    let weight = start.weight();
    let mut moments = Moments::of(&weight);
    let mut expected: Vec<f64> = start.values.iter().map(|&v| f64::from(v)).collect();
    let (mut m, mut v) = (vec![0.0f64; 15], vec![0.0f64; 15]);
    let c = common::coefficients(12);
    for step in 1..=3 {
        backward(&functional(Ops::Fast.linear(leaf(&x.tensor()), &weight)));
        let (h, clip) = (hyper(step), 0.5 + step as f32 / 8.0);
        for (n, k) in (0..3).flat_map(|n| (0..5).map(move |k| (n, k))) {
            let i = n * 5 + k;
            let g: f64 =
                (0..4).map(|t| f64::from(c[t * 3 + n]) * f64::from(x.values[t * 5 + k])).sum();
            let g = g * f64::from(clip);
            m[i] = h.beta1 * m[i] + (1.0 - h.beta1) * g;
            v[i] = h.beta2 * v[i] + (1.0 - h.beta2) * g * g;
            let (m_hat, v_hat) = (
                m[i] / (1.0 - h.beta1.powi(step as i32)),
                v[i] / (1.0 - h.beta2.powi(step as i32)),
            );
            expected[i] -= h.lr * (m_hat / (v_hat.sqrt() + h.eps) + h.weight_decay * expected[i]);
        }
        weight.adamw(&h, clip, &mut moments);
        let rounded: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
        close(&weight.read(), &rounded, 2e-6, &format!("weights after step {step}"));
        let first: Vec<f32> = m.iter().map(|&m| m as f32).collect();
        close(&moments.first, &first, 1e-6, "first moments");
        assert!(weight.read_gradient().is_none(), "the gradient is spent");
    }
}

/// A gradient that went out, came back and moved a weight in parts does what it does in one.
#[test]
fn gradients_come_back_and_parts_make_the_whole() {
    let d = &mut Dice(19);
    let (rows, columns) = (SQUARES_CHUNK / 100 + 3, 230);
    let (x, start) = (d.matrix(4, columns), d.matrix(rows, columns));
    let (whole, parted) = (start.weight(), start.weight());
    let n = rows * columns;
    assert!(n > 2 * SQUARES_CHUNK && n % SQUARES_CHUNK != 0);
    let cut = SQUARES_CHUNK;
    let (mut all, mut left, mut right) =
        (Moments::of(&whole), Moments::of(&whole).part(0..cut), Moments::of(&whole).part(cut..n));
    for step in 1..=2 {
        backward(&functional(Ops::Fast.linear(leaf(&x.tensor()), &whole)));
        backward(&functional(Ops::Fast.linear(leaf(&x.tensor()), &parted)));
        let mut flat = vec![7.0];
        parted.move_gradient(&mut flat);
        assert!(parted.read_gradient().is_none() && flat[0] == 7.0, "moved behind the others");
        assert_eq!(whole.read_gradient().as_deref(), Some(&flat[1..]));
        let mut squares = Vec::new();
        for range in [0..cut, cut..n] {
            parted.put_gradient(range.start, &flat[1..][range.clone()]);
            squares.extend(parted.gradient_squares(range));
        }
        let sum: f64 = squares.iter().sum();
        assert_eq!(sum.to_bits(), whole.gradient_square().to_bits());
        whole.adamw(&hyper(step), 0.5, &mut all);
        parted.adamw_part(&hyper(step), 0.5, cut..n, &mut right);
        assert!(parted.read_gradient().is_none(), "the gradient is spent");
        parted.put_gradient(0, &flat[1..][..cut]);
        parted.adamw_part(&hyper(step), 0.5, 0..cut, &mut left);
        same_bits(&parted.read(), &whole.read(), "weights");
        same_bits(&[left.first.clone(), right.first.clone()].concat(), &all.first, "moments");
    }
    let mut nothing = Vec::new();
    parted.move_gradient(&mut nothing);
    assert_eq!((nothing, parted.gradient_squares(0..cut)), (vec![0.0; n], vec![0.0]));
}

#[test]
fn a_weight_that_nothing_reached_only_decays() {
    let start = Dice(10).matrix(2, 3);
    let weight = start.weight();
    backward(&functional(Ops::Fast.linear(leaf(&from_rows(vec![1.0; 3], 1, 3)), &weight)));
    weight.clear_gradient();
    let mut moments = Moments::of(&weight);
    weight.adamw(&hyper(1), 1.0, &mut moments);
    let decayed: Vec<f32> = start.values.iter().map(|v| v * (1.0 - 0.03 * 0.1)).collect();
    close(&weight.read(), &decayed, 1e-6, "a stale gradient must not count");
    assert!(moments.first.iter().chain(&moments.second).all(|m| *m == 0.0));
}

#[test]
fn cut_stops_gradients_and_lets_later_weights_learn() {
    let d = &mut Dice(11);
    let (x, first, second) = (d.matrix(5, 4), d.matrix(6, 4), d.matrix(2, 6));
    for o in [Ops::Fast, Ops::PLAIN] {
        let (first, second) = (first.weight(), second.weight());
        let x = leaf(&x.tensor());
        let h = o.linear(x.clone(), &first);
        let before = read_rows(&h);
        let parted = cut(&h);
        same_bits(&read_rows(&parted), &before, "cut values");
        let gradients = backward(&functional(o.linear(parted, &second)));
        if o != Ops::Fast {
            [&first, &second].iter().for_each(|w| w.take_plain_gradient(&gradients));
        }
        assert!(
            gradient(&x, &gradients).is_none() && first.read_gradient().is_none(),
            "{o:?}: nothing before the cut"
        );
        assert!(second.read_gradient().expect("reached").iter().any(|g| *g != 0.0), "{o:?}");
    }
    let constant = from_rows(vec![1.0; 4], 2, 2);
    assert!(!cut(&constant).is_require_grad(), "what does not record still does not");
}

#[test]
fn plain_operations_see_the_values_of_now() {
    let d = &mut Dice(12);
    let (x, w, other) = (d.matrix(3, 4), d.matrix(2, 4), d.matrix(2, 4));
    let weight = w.weight();
    // A pass without a backward must leave nothing behind that a later pass would read.
    let _ = Ops::PLAIN.linear(x.tensor(), &weight);
    weight.write(other.values.clone());
    let found = read_rows(&Ops::PLAIN.linear(x.tensor(), &weight));
    close(&found, &read_rows(&Ops::Fast.linear(x.tensor(), &weight)), 1e-6, "after a write");
    let _ = Ops::PLAIN.linear(x.tensor(), &weight);
    weight.adamw(&hyper(1), 1.0, &mut Moments::of(&weight));
    let found = read_rows(&Ops::PLAIN.linear(x.tensor(), &weight));
    close(&found, &read_rows(&Ops::Fast.linear(x.tensor(), &weight)), 1e-6, "after an update");
}

#[test]
fn a_row_turned_into_a_column_is_read_like_any_matrix() {
    let column = from_rows(vec![1.0, 2.0, 3.0], 1, 3).transpose();
    assert_eq!(read_rows(&column), [1.0, 2.0, 3.0]);
    let row = from_rows(vec![1.0, 2.0, 3.0], 3, 1).transpose();
    assert_eq!(read_rows(&row), [1.0, 2.0, 3.0]);
    assert!(read_rows(&from_rows(Vec::new(), 0, 3).transpose()).is_empty());
}

#[test]
fn columns_of_a_tracked_matrix_are_an_input_like_any_other() {
    let d = &mut Dice(13);
    let (x, w) = (d.matrix(3, 4), d.matrix(2, 2));
    let run = |o: Ops| {
        let (x, weight) = (leaf(&x.tensor()), w.weight());
        let y = o.linear(x.clone().narrow(1, 1, 2), &weight);
        let values = read_rows(&y);
        let gradients = backward(&functional(y));
        (values, read_rows(&gradient(&x, &gradients).expect("reached")))
    };
    let (fast, plain) = (run(Ops::Fast), run(Ops::PLAIN));
    close(&fast.0, &plain.0, 1e-6, "values");
    close(&fast.1, &plain.1, 1e-6, "gradients");
}

#[test]
fn codes_stand_in_the_place_of_values() {
    let values: Vec<f32> = (0..6).map(|i| i as f32).collect();
    let format = "int4".parse().expect("known");
    let codes = Quantized::new(format, &values, 2, 3).expect("fits");
    let weight = Weight::new(vec![9.0; 6], 2, 3);
    weight.put_codes(codes.clone()).expect("the same shape");
    assert_eq!((weight.read(), weight.format()), (codes.dequantize(), Some(format)));
    for (n, d, needle) in [(3, 2, "rows of codes"), (2, 2, "columns of codes")] {
        let other = Weight::new(vec![9.0; n * d], n, d);
        let said = other.put_codes(codes.clone()).expect_err("another shape").to_string();
        assert!(said.contains(needle) && other.format().is_none(), "{said}");
    }
}
