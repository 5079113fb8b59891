//! Cross-entropy of a linear output layer, a chunk of rows at a time, so that the logits of all
//! rows never exist together.

use crate::attend::{cap_slopes, cap_values};
use crate::check::check_len;
use crate::exp::exp_shifted_sum;
use crate::matmul::{Mat, MatMut, Start, Threads, matmul};
use crate::multiversion::multiversion;
use crate::reduce::max_value;
use crate::rows::{gather_rows, scale_values};
use crate::scratch::Scratch;
use rayon::prelude::*;

/// Logits that exist together: each chunk of rows passes over the output layer and its gradient, so
/// few large ones pay.
const CHUNK_VALUES: usize = 16 << 20;
/// Fewest rows of a chunk, however large the vocabulary.
const LEAST_ROWS: usize = 256;

multiversion! {
    fn row_max(x: &[f32]) -> f32 {
        max_value(x)
    }
}

multiversion! {
    fn subtract(x: &mut [f32], amount: f32) {
        for x in x {
            *x -= amount;
        }
    }
}

/// Rows whose logits over a vocabulary of `v` exist together.
pub fn chunk_rows(v: usize) -> usize {
    (CHUNK_VALUES / v.max(1)).max(LEAST_ROWS)
}

/// The problem's fixed inputs.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    x_td: &'a [f32],
    e_vd: &'a [f32],
    d: usize,
    v: usize,
    targets: &'a [u32],
    weights: &'a [f32],
    /// The cap of logits, above 0.
    cap: Option<f32>,
    /// Most rows of a chunk. Each takes a buffer for as many, so that passes whose rows of weight 0
    /// differ in number share one buffer.
    most: usize,
}

/// The negative log-likelihood of `target` under the softmax of `logits`; leaves the exponentials
/// in `logits` and also returns their sum.
fn row_loss(logits: &mut [f32], target: u32) -> (f32, f32) {
    let target = logits[target as usize];
    let max = row_max(logits);
    let sum = exp_shifted_sum(logits, max);
    (sum.ln() + (max - target), sum)
}

/// Losses of the given rows and, with `grads`, `dx` of those rows and a continued sum in `de_vd`.
fn chunk(
    inputs: Inputs<'_>,
    rows: &[u32],
    losses: &mut [f32],
    grads: Option<(&mut [f32], &mut [f32], Start)>,
) {
    let Inputs { d, v, cap, .. } = inputs;
    let (n, with_grads) = (rows.len(), grads.is_some());
    // What a cap does to the gradient of each logit.
    let bent = if cap.is_some() && with_grads { v } else { 0 };
    let mut scratch = Scratch::take(inputs.most * (v + bent + 2 * d + 1));
    let [logits, slopes, x, dx, loss] = scratch.split([n * v, n * bent, n * d, n * d, n]);
    gather_rows(inputs.x_td, d, rows, x);
    let e = Mat::rows_major(inputs.e_vd, v, d);
    matmul(
        MatMut::rows_major(logits, n, v),
        Mat::rows_major(x, n, d),
        e.t(),
        Start::Zero,
        Threads::All,
    );
    if let Some(cap) = cap {
        logits.par_chunks_mut(v).for_each(|logits| cap_values(logits, cap));
        slopes.copy_from_slice(&logits[..slopes.len()]);
        slopes.par_chunks_mut(v).for_each(|slopes| cap_slopes(slopes, cap));
    }
    logits.par_chunks_mut(v).zip(&mut *loss).zip(rows).for_each(|((logits, loss), &row)| {
        let target = inputs.targets[row as usize];
        let (nll, sum) = row_loss(logits, target);
        *loss = nll;
        if with_grads {
            let weight = inputs.weights[row as usize];
            scale_values(logits, weight / sum);
            logits[target as usize] -= weight;
        }
    });
    if !slopes.is_empty() {
        logits.par_chunks_mut(v).zip(slopes.par_chunks(v)).for_each(|(g, slopes)| {
            g.iter_mut().zip(slopes).for_each(|(g, slope)| *g *= slope);
        });
    }
    for (&row, &loss) in rows.iter().zip(&*loss) {
        losses[row as usize] = loss;
    }
    let Some((dx_td, de_vd, start)) = grads else { return };
    let g = Mat::rows_major(logits, n, v);
    matmul(MatMut::rows_major(dx, n, d), g, e, Start::Zero, Threads::All);
    matmul(MatMut::rows_major(de_vd, v, d), g.t(), Mat::rows_major(x, n, d), start, Threads::All);
    for (&row, dx) in rows.iter().zip(dx.chunks_exact(d)) {
        dx_td[row as usize * d..][..d].copy_from_slice(dx);
    }
}

/// Cross-entropy of `softmax(z)`, `z = x e^T` or with a cap `z = c tanh(x e^T / c)`, against one
/// target a row, and its gradients, in chunks of at least 256 rows and about 16M logits.
///
/// `x_td` `[T, d]`, `e_vd` `[V, d]`, `targets`, `weights` and `losses` `[T]`. `losses[t]` is the
/// unweighted `-ln softmax(z[t])[targets[t]]` in nats. With `grads` = `(dx_td, de_vd)`, both
/// are overwritten by the gradients of `sum over t of weights[t] losses[t]`; rows of weight 0 cost
/// no gradient work and get a zero `dx`.
///
/// # Panics
/// When the lengths do not fit or a target is not below V.
pub fn linear_cross_entropy(
    x_td: &[f32],
    e_vd: &[f32],
    d: usize,
    cap: Option<f32>,
    targets: &[u32],
    weights: &[f32],
    losses: &mut [f32],
    grads: Option<(&mut [f32], &mut [f32])>,
) {
    let name = "linear_cross_entropy";
    assert!(d > 0, "{name}: rows of width 0 have no logits");
    let (t, v) = (targets.len(), e_vd.len() / d);
    check_len(name, "e_vd (whole rows)", e_vd.len(), v * d);
    check_len(name, "x_td", x_td.len(), t * d);
    check_len(name, "weights", weights.len(), t);
    check_len(name, "losses", losses.len(), t);
    if let Some((dx_td, de_vd)) = &grads {
        check_len(name, "dx_td", dx_td.len(), t * d);
        check_len(name, "de_vd", de_vd.len(), v * d);
    }
    if let Some(bad) = targets.iter().find(|&&target| target as usize >= v) {
        panic!("{name}: target {bad}, but the vocabulary has {v} entries");
    }
    let most = chunk_rows(v).min(t.max(1));
    by_chunks(Inputs { x_td, e_vd, d, v, targets, weights, cap, most }, losses, grads);
}

fn by_chunks(inputs: Inputs<'_>, losses: &mut [f32], grads: Option<(&mut [f32], &mut [f32])>) {
    let Inputs { d, weights, most, .. } = inputs;
    let all = 0..inputs.targets.len() as u32;
    let Some((dx_td, de_vd)) = grads else {
        let all: Vec<u32> = all.collect();
        return all.chunks(most).for_each(|rows| chunk(inputs, rows, losses, None));
    };
    let (weighted, silent): (Vec<u32>, Vec<u32>) =
        all.partition(|&row| weights[row as usize] != 0.0);
    let mut start = Start::Zero;
    for rows in weighted.chunks(most) {
        chunk(inputs, rows, losses, Some((&mut *dx_td, &mut *de_vd, start)));
        start = Start::FromC;
    }
    if weighted.is_empty() {
        de_vd.fill(0.0);
    }
    for rows in silent.chunks(most) {
        chunk(inputs, rows, losses, None);
        for &row in rows {
            dx_td[row as usize * d..][..d].fill(0.0);
        }
    }
}

/// Replaces every row of `logits` `[T, v]` by its logarithmic softmax, in nats.
///
/// # Panics
/// When `logits` does not hold whole rows.
pub fn log_softmax_rows(logits: &mut [f32], v: usize) {
    if logits.is_empty() {
        return;
    }
    check_len("log_softmax_rows", "logits (whole rows)", logits.len(), logits.len() / v.max(1) * v);
    if logits.len() <= 1 << 13 {
        return logits.chunks_exact_mut(v).for_each(log_softmax);
    }
    logits.par_chunks_mut(v).for_each(log_softmax);
}

fn log_softmax(row: &mut [f32]) {
    let mut scratch = Scratch::take(row.len());
    let [copy] = scratch.split([row.len()]);
    copy.copy_from_slice(row);
    let max = row_max(copy);
    let lse = exp_shifted_sum(copy, max).ln();
    subtract(row, max);
    subtract(row, lse);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, differences, in_pools, inner, values, wide};

    fn reference(x: &[f64], e: &[f64], d: usize, cap: Option<f32>, targets: &[u32]) -> Vec<f64> {
        let bent = |z: f64| cap.map_or(z, |c| f64::from(c) * (z / f64::from(c)).tanh());
        let loss = |(x, &target): (&[f64], &u32)| {
            let logits: Vec<f64> =
                e.chunks(d).map(|e| bent(e.iter().zip(x).map(|(e, x)| e * x).sum())).collect();
            logits.iter().map(|l| l.exp()).sum::<f64>().ln() - logits[target as usize]
        };
        x.chunks(d).zip(targets).map(loss).collect()
    }

    struct Case {
        x: Vec<f32>,
        e: Vec<f32>,
        d: usize,
        cap: Option<f32>,
        targets: Vec<u32>,
        weights: Vec<f32>,
    }

    fn case(t: usize, d: usize, v: usize) -> Case {
        Case {
            x: values(1, t * d),
            e: values(2, v * d).iter().map(|x| 2.0 * x).collect(),
            d,
            cap: None,
            targets: (0..t).map(|i| ((i * 7 + 3) % v) as u32).collect(),
            weights: values(3, t)
                .iter()
                .enumerate()
                .map(|(i, w)| if i % 3 == 1 { 0.0 } else { w + 1.5 })
                .collect(),
        }
    }

    /// Losses, `dx` and `de`.
    fn run(case: &Case) -> [Vec<f32>; 3] {
        let mut found = [
            vec![f32::NAN; case.targets.len()],
            vec![f32::NAN; case.x.len()],
            vec![f32::NAN; case.e.len()],
        ];
        let [losses, dx, de] = &mut found;
        linear_cross_entropy(
            &case.x,
            &case.e,
            case.d,
            case.cap,
            &case.targets,
            &case.weights,
            losses,
            Some((dx, de)),
        );
        found
    }

    #[test]
    fn losses_and_gradients_agree_with_the_reference_and_with_differences() {
        let sizes = [(1, 1, 1, None), (7, 5, 11, None), (4, 17, 3, None), (7, 5, 11, Some(1.5))];
        for (t, d, v, cap) in sizes {
            let case = Case { cap, ..case(t, d, v) };
            let [losses, dx, de] = run(&case);
            let (x64, e64) = (wide(&case.x), wide(&case.e));
            assert_close(&losses, &reference(&x64, &e64, d, cap, &case.targets), 2e-6);
            let of_x = |x: &[f64]| inner(&reference(x, &e64, d, cap, &case.targets), &case.weights);
            assert_close(&dx, &differences(&case.x, of_x), 4e-6);
            let of_e = |e: &[f64]| inner(&reference(&x64, e, d, cap, &case.targets), &case.weights);
            assert_close(&de, &differences(&case.e, of_e), 4e-6);
        }
    }

    #[test]
    fn chunks_and_threads_do_not_change_a_bit() {
        let case = case(600, 9, 70);
        let runs = in_pools(1..=3, || run(&case).map(|x| bits(&x)));
        assert!(runs[0] == runs[1] && runs[1] == runs[2]);
        for most in [1, 7, 599] {
            let inputs = Inputs {
                x_td: &case.x,
                e_vd: &case.e,
                d: 9,
                v: 70,
                targets: &case.targets,
                weights: &case.weights,
                cap: None,
                most,
            };
            let (mut losses, mut dx) = (vec![0.0; 600], vec![0.0; 600 * 9]);
            let mut de = vec![0.0; 70 * 9];
            by_chunks(inputs, &mut losses, Some((&mut dx, &mut de)));
            assert!(runs[0] == [losses, dx, de].map(|x| bits(&x)), "chunks of {most} rows");
        }
        assert_close(
            &run(&case)[0],
            &reference(&wide(&case.x), &wide(&case.e), 9, None, &case.targets),
            3e-6,
        );
        let mut without = vec![0.0; 600];
        let (x, e) = (&case.x, &case.e);
        linear_cross_entropy(x, e, 9, None, &case.targets, &case.weights, &mut without, None);
        assert_eq!(bits(&without), runs[0][0]);
        let mut last = [0.0];
        linear_cross_entropy(
            &case.x[599 * 9..],
            &case.e,
            9,
            None,
            &case.targets[599..],
            &[0.0],
            &mut last,
            None,
        );
        assert_eq!(last[0].to_bits(), runs[0][0][599]);
    }

    #[test]
    fn unweighted_rows_leave_zero_gradients() {
        let mut case = case(5, 3, 4);
        case.weights.fill(0.0);
        let [losses, dx, de] = run(&case);
        assert!(losses.iter().all(|loss| loss.is_finite() && *loss > 0.0));
        assert!(dx.iter().chain(&de).all(|&x| x == 0.0));
        case = self::case(0, 3, 4);
        assert_eq!(run(&case), [vec![], vec![], vec![0.0; 12]]);
    }

    #[test]
    fn log_softmax_agrees_with_its_formula() {
        for (t, v) in [(1, 1), (3, 37), (70, 301)] {
            let logits: Vec<f32> = values(1, t * v).iter().map(|x| 30.0 * x).collect();
            let mut found = logits.clone();
            log_softmax_rows(&mut found, v);
            let row = |row: &[f64]| {
                let lse = row.iter().map(|l| l.exp()).sum::<f64>().ln();
                row.iter().map(|l| l - lse).collect::<Vec<_>>()
            };
            assert_close(&found, &wide(&logits).chunks(v).flat_map(row).collect::<Vec<_>>(), 1e-6);
            let mut one = logits[(t - 1) * v..].to_vec();
            log_softmax_rows(&mut one, v);
            assert_eq!(bits(&one), bits(&found[(t - 1) * v..]));
        }
        log_softmax_rows(&mut [], 5);
    }

    #[test]
    #[should_panic(expected = "target 4, but the vocabulary has 4 entries")]
    fn a_target_past_the_vocabulary_is_named() {
        linear_cross_entropy(&[0.0], &[0.0; 4], 1, None, &[4], &[1.0], &mut [0.0], None);
    }
}
