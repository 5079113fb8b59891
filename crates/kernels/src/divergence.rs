//! How far one distribution is from another, row by row, and the gradient of that: from one side,
//! and from both.

use crate::check::check_len;
use crate::exp::exp;
use crate::multiversion::multiversion;
use crate::reduce::LANES;
use rayon::prelude::*;

multiversion! {
    fn row(student: &mut [f32], teacher: &[f32], factor: f32) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (blocks, tail) = student.as_chunks_mut::<LANES>();
        let (teacher_blocks, teacher_tail) = teacher.as_chunks::<LANES>();
        for (s, t) in blocks.iter_mut().zip(teacher_blocks) {
            for lane in 0..LANES {
                let p = exp(t[lane]);
                lanes[lane] += f64::from(p * (t[lane] - s[lane]));
                s[lane] = factor * (exp(s[lane]) - p);
            }
        }
        for ((lane, s), &t) in lanes.iter_mut().zip(tail).zip(teacher_tail) {
            let p = exp(t);
            *lane += f64::from(p * (t - *s));
            *s = factor * (exp(*s) - p);
        }
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// The divergence of each row `s` of logarithms of probabilities from its row `t`, `sum e^t (t -
/// s)` in nats, and in place of `s` the gradient `factors[i] (e^s - e^t)` of `factors[i]` times it
/// by the logits behind `s` (Kullback & Leibler 1951).
///
/// `student` and `teacher` `[T, v]`, `factors` and `apart` `[T]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn divergence_rows(
    student: &mut [f32],
    teacher: &[f32],
    v: usize,
    factors: &[f32],
    apart: &mut [f64],
) {
    let name = "divergence_rows";
    check_len(name, "student", student.len(), factors.len() * v);
    check_len(name, "teacher", teacher.len(), factors.len() * v);
    check_len(name, "apart", apart.len(), factors.len());
    if v == 0 {
        return apart.fill(0.0);
    }
    let rows =
        student.par_chunks_exact_mut(v).zip(teacher.par_chunks_exact(v)).zip(factors).zip(apart);
    rows.for_each(|(((student, teacher), &factor), apart)| *apart = row(student, teacher, factor));
}

multiversion! {
    fn both_sides(first: &mut [f32], second: &mut [f32], factor: f32) -> f64 {
        // Lanes of `sum p (log p - log q)`, and behind them those of `sum q (log q - log p)`.
        let mut lanes = [[0.0f64; LANES]; 2];
        let blocks = first.chunks(LANES).zip(second.chunks(LANES));
        for (first, second) in blocks {
            for (lane, (&p, &q)) in first.iter().zip(second).enumerate() {
                lanes[0][lane] += f64::from(exp(p) * (p - q));
                lanes[1][lane] += f64::from(exp(q) * (q - p));
            }
        }
        let mut half = LANES / 2;
        while half > 0 {
            for side in &mut lanes {
                for lane in 0..half {
                    side[lane] += side[lane + half];
                }
            }
            half /= 2;
        }
        let (there, back) = (lanes[0][0], lanes[1][0]);
        let (there_32, back_32, half) = (there as f32, back as f32, 0.5 * factor);
        for (first, second) in first.iter_mut().zip(second.iter_mut()) {
            let (p, q, apart) = (exp(*first), exp(*second), *first - *second);
            *first = half * p.mul_add(apart - there_32, p - q);
            *second = half * q.mul_add(-apart - back_32, q - p);
        }
        0.5 * (there + back)
    }
}

/// Half the sum of the divergences between each row `p` and row `q` of logarithms of probabilities,
/// `1/2 sum (e^p - e^q) (p - q)` in nats, and in place of both the gradients of `factors[i]` times
/// it by the logits behind them, `1/2 (e^p (p - q - KL(p||q)) + e^p - e^q)` for `p` and likewise
/// for `q` (Jeffreys, 1946).
///
/// `first` and `second` `[T, v]`, `factors` and `apart` `[T]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn divergence_of_both(
    first: &mut [f32],
    second: &mut [f32],
    v: usize,
    factors: &[f32],
    apart: &mut [f64],
) {
    let name = "divergence_of_both";
    check_len(name, "first", first.len(), factors.len() * v);
    check_len(name, "second", second.len(), factors.len() * v);
    check_len(name, "apart", apart.len(), factors.len());
    if v == 0 {
        return apart.fill(0.0);
    }
    let rows =
        first.par_chunks_exact_mut(v).zip(second.par_chunks_exact_mut(v)).zip(factors).zip(apart);
    rows.for_each(|(((first, second), &factor), apart)| {
        *apart = both_sides(first, second, factor);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cross_entropy::log_softmax_rows;
    use crate::testing::{assert_close, bits, differences, in_pools, inner, values, wide};

    fn log_softmax(logits: &[f64]) -> Vec<f64> {
        let lse = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
        logits.iter().map(|z| z - lse).collect()
    }

    fn reference(student: &[f64], teacher: &[f64], v: usize) -> Vec<f64> {
        let one = |(s, t): (&[f64], &[f64])| {
            let (s, t) = (log_softmax(s), log_softmax(t));
            s.iter().zip(&t).map(|(s, t)| t.exp() * (t - s)).sum()
        };
        student.chunks(v).zip(teacher.chunks(v)).map(one).collect()
    }

    #[test]
    fn agrees_with_the_reference_and_with_differences() {
        for (t, v) in [(1, 1), (3, 7), (2, 37)] {
            let [s, y] = [1, 2]
                .map(|seed| values(seed, t * v).iter().map(|x| 3.0 * x).collect::<Vec<f32>>());
            let factors = values(3, t);
            let (mut student, mut teacher) = (s.clone(), y.clone());
            log_softmax_rows(&mut student, v);
            log_softmax_rows(&mut teacher, v);
            let mut apart = vec![f64::NAN; t];
            divergence_rows(&mut student, &teacher, v, &factors, &mut apart);
            let apart: Vec<f32> = apart.iter().map(|&x| x as f32).collect();
            assert_close(&apart, &reference(&wide(&s), &wide(&y), v), 2e-6);
            let of = |s: &[f64]| inner(&reference(s, &wide(&y), v), &factors);
            assert_close(&student, &differences(&s, of), 4e-6);
        }
        divergence_rows(&mut [], &[], 5, &[], &mut []);
    }

    #[test]
    fn both_sides_agree_with_the_reference_and_with_differences() {
        for (t, v) in [(1, 1), (3, 7), (2, 37)] {
            let [a, b] = [4, 5]
                .map(|seed| values(seed, t * v).iter().map(|x| 3.0 * x).collect::<Vec<f32>>());
            let factors = values(3, t);
            let (mut first, mut second) = (a.clone(), b.clone());
            log_softmax_rows(&mut first, v);
            log_softmax_rows(&mut second, v);
            let mut apart = vec![f64::NAN; t];
            divergence_of_both(&mut first, &mut second, v, &factors, &mut apart);
            let (a_wide, b_wide) = (wide(&a), wide(&b));
            let of = |a: &[f64], b: &[f64]| -> Vec<f64> {
                let (there, back) = (reference(a, b, v), reference(b, a, v));
                there.iter().zip(&back).map(|(x, y)| 0.5 * (x + y)).collect()
            };
            let apart: Vec<f32> = apart.iter().map(|&x| x as f32).collect();
            assert_close(&apart, &of(&a_wide, &b_wide), 2e-6);
            let by_first = differences(&a, |a| inner(&of(a, &b_wide), &factors));
            assert_close(&first, &by_first, 4e-6);
            let by_second = differences(&b, |b| inner(&of(&a_wide, b), &factors));
            assert_close(&second, &by_second, 4e-6);
        }
        let (mut same, mut twin) = (vec![-0.5f32, -1.5, -3.0], vec![-0.5f32, -1.5, -3.0]);
        let mut apart = [f64::NAN];
        divergence_of_both(&mut same, &mut twin, 3, &[1.0], &mut apart);
        assert_eq!(
            (apart, same.as_slice(), twin.as_slice()),
            ([0.0], &[0.0; 3][..], &[0.0; 3][..])
        );
        divergence_of_both(&mut [], &mut [], 5, &[], &mut []);
    }

    #[test]
    fn threads_and_places_do_not_change_a_bit() {
        let (t, v) = (70, 301);
        let (mut s, mut y) = (values(1, t * v), values(2, t * v));
        log_softmax_rows(&mut s, v);
        log_softmax_rows(&mut y, v);
        let factors = values(3, t);
        let run = |rows: std::ops::Range<usize>| {
            let mut student = s[rows.start * v..rows.end * v].to_vec();
            let mut apart = vec![0.0; rows.len()];
            divergence_rows(
                &mut student,
                &y[rows.start * v..rows.end * v],
                v,
                &factors[rows],
                &mut apart,
            );
            (bits(&student), apart)
        };
        let runs = in_pools(1..=3, || run(0..t));
        assert!(runs[0] == runs[1] && runs[1] == runs[2]);
        let (one, apart) = run(44..45);
        assert_eq!((&one[..], apart[0]), (&runs[0].0[44 * v..45 * v], runs[0].1[44]));
    }

    #[test]
    #[should_panic(expected = "divergence_rows: `teacher` holds 3 values where its shape needs 4")]
    fn a_wrong_length_is_named() {
        divergence_rows(&mut [0.0; 4], &[0.0; 3], 2, &[1.0; 2], &mut [0.0; 2]);
    }
}
