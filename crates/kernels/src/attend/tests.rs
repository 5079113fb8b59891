//! Attention against a plain `f64` reference, its gradients against differences, and its bits
//! against themselves.

use super::*;
use crate::testing::{assert_close, bits, differences, in_pools, inner, values, wide};

/// Heads whose scores have another factor and a cap that bends them.
const CAPPED: Heads = Heads { scale: Some(0.4), cap: Some(1.5), ..Heads::new(4, 2, 6) };

/// Values that are narrower than keys.
const NARROW: Heads = Heads { value_dim: 5, ..Heads::new(4, 2, 9) };
/// Values that are wider.
const WIDE: Heads = Heads { value_dim: 21, ..Heads::new(3, 1, 6) };

const SIZES: [Heads; 8] = [
    CAPPED,
    NARROW,
    WIDE,
    Heads::new(6, 2, 16),
    Heads::new(3, 3, 10),
    Heads::new(2, 1, 64),
    Heads::new(1, 1, 82),
    Heads::new(4, 1, 2),
];

/// Causal segments of the given lengths, `gap` unseen keys before each and one blind row after
/// each.
fn ragged(lengths: &[usize], gap: usize) -> (Spans, usize) {
    let (mut spans, mut at) = (Spans::default(), 0);
    for &length in lengths {
        at += gap;
        for i in 0..length {
            spans.start.push(at as u32);
            spans.end.push((at + i + 1) as u32);
        }
        spans.start.push(at as u32);
        spans.end.push(at as u32);
        at += length;
    }
    (spans, at + gap)
}

/// The score of a product of query and key, and its slope.
fn score_of(heads: Heads, product: f64) -> (f64, f64) {
    let scale = heads.scale.map_or(1.0 / (heads.head_dim as f64).sqrt(), f64::from);
    match heads.cap.map(f64::from) {
        None => (scale * product, scale),
        Some(cap) => {
            let t = (scale * product / cap).tanh();
            (cap * t, scale * (1.0 - t * t))
        }
    }
}

fn reference(q: &[f64], kv: &[f64], spans: &Spans, heads: Heads) -> (Vec<f64>, Vec<f64>) {
    let (hd, vd, width) = (heads.head_dim, heads.value_dim, heads.kv_width());
    let (mut out, mut lse) = (vec![0.0; q.len() / hd * vd], vec![]);
    for row in 0..spans.start.len() {
        for head in 0..heads.heads {
            let at = (row * heads.heads + head) * hd;
            let group = head / heads.shared();
            let key = |j: usize| j * width + group * hd;
            let value = |j: usize| j * width + heads.kv_heads * hd + group * vd;
            let score = |j: usize| {
                let product = (0..hd).map(|t| q[at + t] * kv[key(j) + t]).sum::<f64>();
                score_of(heads, product).0
            };
            let total: f64 = spans.range(row).map(|j| score(j).exp()).sum();
            for j in spans.range(row) {
                for t in 0..vd {
                    out[at / hd * vd + t] += score(j).exp() / total * kv[value(j) + t];
                }
            }
            lse.push(total.ln());
        }
    }
    (out, lse)
}

fn forward(q: &[f32], kv: &[f32], spans: &Spans, heads: Heads) -> (Vec<f32>, Vec<f32>) {
    let rows = spans.start.len();
    let (mut out, mut lse) =
        (vec![f32::NAN; rows * heads.out_width()], vec![f32::NAN; rows * heads.heads]);
    attend_forward(q, kv, spans, heads, &mut out, &mut lse);
    (out, lse)
}

fn backward(q: &[f32], kv: &[f32], spans: &Spans, heads: Heads, g: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (out, lse) = forward(q, kv, spans, heads);
    let (mut dq, mut dkv) = (vec![f32::NAN; q.len()], vec![f32::NAN; kv.len()]);
    attend_backward(q, kv, spans, heads, &out, &lse, g, &mut dq, &mut dkv);
    (dq, dkv)
}

fn inputs(spans: &Spans, keys: usize, heads: Heads) -> (Vec<f32>, Vec<f32>) {
    let q = values(1, spans.start.len() * heads.q_width()).iter().map(|x| 3.0 * x).collect();
    (q, values(2, keys * heads.kv_width()))
}

#[test]
fn forward_agrees_with_the_reference_on_ragged_spans() {
    let (mut spans, keys) = ragged(&[5, 1, 70, 130, 3, 17], 2);
    spans.start[40] = 21;
    spans.end[50] = 12;
    for heads in SIZES {
        let (q, kv) = inputs(&spans, keys, heads);
        let (out, lse) = forward(&q, &kv, &spans, heads);
        let (expected_out, expected_lse) = reference(&wide(&q), &wide(&kv), &spans, heads);
        assert_close(&out, &expected_out, 2e-6);
        for (found, expected) in lse.iter().zip(expected_lse) {
            assert!(
                f64::from(*found) == expected || (f64::from(*found) - expected).abs() < 4e-6,
                "{found} {expected}"
            );
        }
    }
}

#[test]
fn gradients_agree_with_differences() {
    let (mut spans, keys) = ragged(&[4, 1, 9], 1);
    spans.start[9] = 8;
    for heads in [Heads::new(4, 2, 6), Heads::new(3, 1, 18), CAPPED, NARROW, WIDE] {
        let (q, kv) = inputs(&spans, keys, heads);
        let g = values(3, spans.start.len() * heads.out_width());
        let (dq, dkv) = backward(&q, &kv, &spans, heads, &g);
        let (q64, kv64) = (wide(&q), wide(&kv));
        assert_close(
            &dq,
            &differences(&q, |q| inner(&reference(q, &kv64, &spans, heads).0, &g)),
            3e-6,
        );
        assert_close(
            &dkv,
            &differences(&kv, |kv| inner(&reference(&q64, kv, &spans, heads).0, &g)),
            3e-6,
        );
    }
}

/// The gradient formulas written out in `f64`, for sizes where differences would take too long.
fn reference_gradients(
    q: &[f64],
    kv: &[f64],
    spans: &Spans,
    heads: Heads,
    g: &[f32],
) -> (Vec<f64>, Vec<f64>) {
    let (hd, vd, width) = (heads.head_dim, heads.value_dim, heads.kv_width());
    let (out, lse) = reference(q, kv, spans, heads);
    let (mut dq, mut dkv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for row in 0..spans.start.len() {
        for head in 0..heads.heads {
            let at = (row * heads.heads + head) * hd;
            let of_out = at / hd * vd..(at / hd + 1) * vd;
            let g = wide(&g[of_out.clone()]);
            for j in spans.range(row) {
                let k = j * width + head / heads.shared() * hd;
                let v = j * width + heads.kv_heads * hd + head / heads.shared() * vd;
                let (score, slope) = score_of(heads, dot(&q[at..at + hd], &kv[k..k + hd]));
                let p = (score - lse[row * heads.heads + head]).exp();
                let ds = p * (dot(&g, &kv[v..v + vd]) - dot(&g, &out[of_out.clone()])) * slope;
                for t in 0..hd {
                    dq[at + t] += ds * kv[k + t];
                    dkv[k + t] += ds * q[at + t];
                }
                for t in 0..vd {
                    dkv[v + t] += p * g[t];
                }
            }
        }
    }
    (dq, dkv)
}

#[test]
fn gradients_agree_with_the_reference_over_many_blocks_and_groups() {
    let (spans, keys) = ragged(&[150, 3, 70], 3);
    for heads in SIZES {
        let (q, kv) = inputs(&spans, keys, heads);
        let g = values(3, spans.start.len() * heads.out_width());
        let (dq, dkv) = backward(&q, &kv, &spans, heads, &g);
        let (expected_dq, expected_dkv) =
            reference_gradients(&wide(&q), &wide(&kv), &spans, heads, &g);
        assert_close(&dq, &expected_dq, 5e-6);
        assert_close(&dkv, &expected_dkv, 5e-6);
    }
}

#[test]
fn rows_one_by_one_equal_the_block_bit_for_bit() {
    let (spans, keys) = ragged(&[128, 33], 5);
    for heads in SIZES {
        let (q, kv) = inputs(&spans, keys, heads);
        let (out, lse) = forward(&q, &kv, &spans, heads);
        for row in 0..spans.start.len() {
            // The cache of a decoder: only the keys up to the row's own, and nothing before its
            // segment.
            let span = spans.range(row);
            let one = Spans { start: vec![0], end: vec![span.len() as u32] };
            let cache = &kv[span.start * heads.kv_width()..span.end * heads.kv_width()];
            let (one_out, one_lse) =
                forward(&q[row * heads.q_width()..][..heads.q_width()], cache, &one, heads);
            assert_eq!(
                bits(&one_out),
                bits(&out[row * heads.out_width()..][..heads.out_width()]),
                "row {row}"
            );
            assert_eq!(bits(&one_lse), bits(&lse[row * heads.heads..][..heads.heads]), "row {row}");
        }
    }
}

#[test]
fn a_row_does_not_see_its_neighbours() {
    let (spans, keys) = ragged(&[90], 0);
    let heads = SIZES[0];
    let (q, kv) = inputs(&spans, keys, heads);
    let (out, _) = forward(&q, &kv, &spans, heads);
    let few = Spans { start: spans.start[70..75].to_vec(), end: spans.end[70..75].to_vec() };
    let at = 70 * heads.q_width()..75 * heads.q_width();
    assert_eq!(bits(&forward(&q[at.clone()], &kv, &few, heads).0), bits(&out[at]));
}

#[test]
fn thread_counts_do_not_change_a_bit() {
    let (spans, keys) = ragged(&[100, 40, 130, 7], 1);
    let heads = SIZES[0];
    let (q, kv) = inputs(&spans, keys, heads);
    let g = values(3, q.len());
    let runs = in_pools(1..=3, || {
        let (out, lse) = forward(&q, &kv, &spans, heads);
        let (dq, dkv) = backward(&q, &kv, &spans, heads, &g);
        [bits(&out), bits(&lse), bits(&dq), bits(&dkv)]
    });
    assert!(runs[0] == runs[1] && runs[1] == runs[2]);
}

#[test]
fn no_rows_no_keys_and_blind_rows_are_fine() {
    let heads = SIZES[0];
    assert_eq!(forward(&[], &[], &Spans::default(), heads), (vec![], vec![]));
    assert_eq!(backward(&[], &[], &Spans::default(), heads, &[]), (vec![], vec![]));
    for rows in [1, 5] {
        let blind = Spans { start: vec![3; rows], end: vec![1; rows] };
        let (q, kv) = inputs(&blind, 4, heads);
        let (out, lse) = forward(&q, &kv, &blind, heads);
        assert!(out.iter().all(|&x| x == 0.0) && lse.iter().all(|&x| x == f32::NEG_INFINITY));
        let (dq, dkv) = backward(&q, &kv, &blind, heads, &q);
        assert!(dq.iter().chain(&dkv).all(|&x| x == 0.0));
    }
}

#[test]
fn extreme_scores_stay_finite() {
    let heads = Heads::new(1, 1, 4);
    let spans = Spans { start: vec![0, 0, 0], end: vec![3, 3, 3] };
    let q: Vec<f32> = values(1, 12).iter().map(|x| x * 1e4).collect();
    let kv: Vec<f32> = values(2, 24).iter().map(|x| x * 1e3).collect();
    let (out, lse) = forward(&q, &kv, &spans, heads);
    let (dq, dkv) = backward(&q, &kv, &spans, heads, &values(3, 12));
    assert!([out, lse, dq, dkv].iter().flatten().all(|x| x.is_finite()));
}

#[test]
fn check_names_the_misfit() {
    let spans = Spans { start: vec![0, 2], end: vec![1, 5] };
    assert_eq!(spans.check(5), Ok(()));
    let reason = spans.check(4).unwrap_err();
    assert!(reason.contains("row 1") && reason.contains("4 keys"), "{reason}");
    let uneven = Spans { start: vec![0], end: vec![] }.check(4).unwrap_err();
    assert!(uneven.contains("1 starts and 0 ends"), "{uneven}");
}

#[test]
#[should_panic(expected = "`q` holds 5 values where its shape needs 6")]
fn a_wrong_length_is_named() {
    let heads = Heads::new(1, 1, 6);
    forward(&[0.0; 5], &[0.0; 12], &Spans { start: vec![0], end: vec![1] }, heads);
}
