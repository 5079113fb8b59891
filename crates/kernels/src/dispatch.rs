//! Compiles one plain body for several vector widths and picks among them at run time, and the
//! fixed-order reductions that make every copy give the same bits.

/// Defines a function whose body is compiled for AVX-512, for AVX2 and for the baseline, and which
/// runs the widest copy that the machine has.
///
/// Bodies write every fused multiply-add as `mul_add` and every sum in lanes, so the copies agree
/// bit for bit.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn middle($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::dispatch::width() {
                    // SAFETY: `width` found every feature that `wide` is compiled for.
                    $crate::dispatch::Width::Wide => return unsafe { wide($($arg),*) },
                    // SAFETY: `width` found every feature that `middle` is compiled for.
                    $crate::dispatch::Width::Middle => return unsafe { middle($($arg),*) },
                    $crate::dispatch::Width::Base => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// The copies of a body that [`multiversion`] makes.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Width {
    Base,
    Middle,
    Wide,
}

/// The widest copy that tests let run: 0 for the baseline, 2 for all.
#[cfg(all(test, target_arch = "x86_64"))]
static WIDEST: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(2);

/// The widest copy that this machine runs.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn width() -> Width {
    let middle = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let width = match (middle, wide) {
        (true, true) => Width::Wide,
        (true, false) => Width::Middle,
        _ => Width::Base,
    };
    #[cfg(test)]
    let width = match WIDEST.load(std::sync::atomic::Ordering::Relaxed) {
        0 => Width::Base,
        1 => width.min(Width::Middle),
        _ => width,
    };
    width
}

/// Number of partial sums in every reduction: element `j` of a row goes to lane `j % LANES`.
pub(crate) const LANES: usize = 16;

/// The sum of the lanes as a fixed tree: halves are added until one value is left.
#[inline(always)]
pub(crate) fn tree_sum(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The dot product in [`LANES`] chains of fused multiply-adds and a fixed tree.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_blocks, a_tail) = a.as_chunks::<LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<LANES>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            lanes[lane] = x[lane].mul_add(y[lane], lanes[lane]);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane = x.mul_add(*y, *lane);
    }
    tree_sum(lanes)
}

/// The largest value, minus infinity for an empty slice; a NaN is passed over.
#[inline(always)]
pub(crate) fn max_value(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
        }
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane = if *value > *lane { *value } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// Panics, naming the argument, when a slice has not the length that its shape asks for.
#[track_caller]
pub(crate) fn check_len(function: &str, argument: &str, found: usize, expected: usize) {
    assert!(
        found == expected,
        "{function}: `{argument}` holds {found} values where its shape needs {expected}"
    );
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::adamw::{AdamW, adamw_step};
    use crate::attend::{Heads, Spans, attend_backward, attend_forward};
    use crate::cross_entropy::{linear_cross_entropy, log_softmax_rows};
    use crate::divergence::divergence_rows;
    use crate::gelu::{gelu_backward, gelu_forward};
    use crate::pages::{KvFormat, KvPool, Tables, attend_pages};
    use crate::rms_norm::{rms_norm_backward, rms_norm_forward};
    use crate::rotary::{RotaryTable, rotate};
    use crate::rows::{axpy, row_dots, sum_of_squares};
    use crate::swiglu::{swiglu_backward, swiglu_forward};
    use crate::testing::{bits, values};
    use std::sync::atomic::Ordering;

    /// Forward and backward results of the kernels that work element by element or row by row.
    fn pointwise() -> Vec<Vec<f32>> {
        let (t, d) = (5, 38);
        let (x, w, g) = (values(1, t * d), values(2, d), values(3, t * d));
        let buffer = || vec![0.0f32; t * d];
        let mut r = vec![
            buffer(),
            buffer(),
            vec![0.0; d],
            buffer(),
            buffer(),
            vec![0.0; t * d / 2],
            buffer(),
            x.clone(),
        ];
        rms_norm_forward(&x, &w, 1e-5, &mut r[0]);
        let mut dw = vec![0.0; d];
        rms_norm_backward(&x, &w, &g, 1e-5, &mut r[1], false, &mut dw);
        r[2] = dw;
        gelu_forward(&x, &mut r[3]);
        gelu_backward(&x, &g, &mut r[4]);
        swiglu_forward(&x, d / 2, &mut r[5]);
        swiglu_backward(&x, d / 2, &g[..t * d / 2], &mut r[6]);
        let mut table = RotaryTable::new(1e4, d);
        table.grow(t);
        rotate(&mut r[7], d, 1, d, &[0, 1, 2, 3, 4], &table, false);
        let mut dots = vec![0.0; t];
        row_dots(&x, &g, d, &mut dots);
        axpy(&mut dots, 0.3, &w[..t]);
        let squares = sum_of_squares(&x);
        r.extend([dots, vec![squares as f32, (squares - f64::from(squares as f32)) as f32]]);
        let (mut p, mut m, mut v) = (x, vec![0.1; t * d], vec![0.2; t * d]);
        let hyper =
            AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 2 };
        adamw_step(&hyper, 0.5, &mut p, &g, &mut m, &mut v);
        r.extend([p, m, v]);
        r
    }

    /// Results of attention and of the loss.
    fn products() -> Vec<Vec<f32>> {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim: 10 };
        let spans = Spans { start: vec![0, 0, 1, 4, 4], end: vec![1, 2, 3, 23, 24] };
        let (q, kv, g) = (values(1, 200), values(2, 24 * 40), values(3, 200));
        let (mut out, mut lse, mut dq, mut dkv) =
            (vec![0.0; 200], vec![0.0; 20], vec![0.0; 200], vec![0.0; 960]);
        attend_forward(&q, &kv, &spans, heads, &mut out, &mut lse);
        attend_backward(&q, &kv, &spans, heads, &out, &lse, &g, &mut dq, &mut dkv);
        let (mut losses, mut dx, mut de) = (vec![0.0; 5], vec![0.0; 200], vec![0.0; 960]);
        linear_cross_entropy(
            &q,
            &kv,
            40,
            &[1, 0, 9, 23, 4],
            &[0.5; 5],
            &mut losses,
            Some((&mut dx, &mut de)),
        );
        let mut logits = q.clone();
        log_softmax_rows(&mut logits, 40);
        let (mut student, mut apart) = (values(4, 200), [0.0; 5]);
        log_softmax_rows(&mut student, 40);
        divergence_rows(&mut student, &logits, 40, &[0.7; 5], &mut apart);
        let apart =
            apart.iter().flat_map(|&x| [x as f32, (x - f64::from(x as f32)) as f32]).collect();
        vec![out, lse, dq, dkv, losses, dx, de, logits, student, apart]
    }

    /// Attention over pages in every format: five lines that decode and a chunk, full and partial
    /// registers.
    fn paged() -> Vec<Vec<f32>> {
        let heads = Heads { heads: 5, kv_heads: 1, head_dim: 104 };
        let pages: Vec<u32> = (0..6).rev().collect();
        let places: Vec<u32> = (0..96).collect();
        let (q, kv) = (values(1, 9 * 520), values(2, 96 * 208));
        let (first, count) = ([0, 0, 0, 0, 0, 1, 0, 2, 0], [80, 81, 82, 83, 84, 80, 3, 64, 96]);
        let one = |format| {
            let mut pool = KvPool::new(format, 1, 104, 6);
            pool.write(&places, &kv);
            let mut out = vec![0.0; q.len()];
            attend_pages(
                &q,
                &pool,
                Tables { pages: &pages, first: &first, count: &count },
                heads,
                &mut out,
            );
            out
        };
        KvFormat::ALL.map(one).to_vec()
    }

    #[test]
    fn every_width_gives_the_same_bits() {
        let all = || -> Vec<Vec<u32>> {
            pointwise().iter().chain(&products()).chain(&paged()).map(|x| bits(x)).collect()
        };
        let [base, middle, wide] = [0, 1, 2].map(|widest| {
            WIDEST.store(widest, Ordering::Relaxed);
            all()
        });
        assert!(base == middle && middle == wide);
    }
}
