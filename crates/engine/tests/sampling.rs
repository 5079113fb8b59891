//! Drawing, against a sampler written from the table of `docs/serving.md` in plain f64: every step
//! alone, every two of them together, and all of them.

mod common;

use std::collections::BTreeSet;

use common::serving::request;
use engine::{DefaultDraw, Draw};
use model::rng::{Purpose, Stream};
use scheduler::{Request, SamplingParams};

const VOCAB: usize = 23;

/// Probabilities of all tokens after each step, for a request whose text goes on from `generated`.
struct Steps {
    after_bias: Vec<f64>,
    after_cuts: Vec<f64>,
    after_top_p: Vec<f64>,
    /// How near the nearest token is to being cut, or to being kept.
    margin: f64,
    /// Whether other tokens would be left if the likeliest share were taken before the other cuts.
    differs_by_order: bool,
}

fn softmax(z: &[f64]) -> Vec<f64> {
    let top = z.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = z.iter().map(|z| (z - top).exp()).collect();
    scaled(&weights)
}

/// The same shares of a sum of 1.
fn scaled(weights: &[f64]) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Token ids, most likely first, the smaller id of equals.
fn ordered(p: &[f64]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..p.len()).collect();
    ids.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
    ids
}

/// Logits after penalties and bias.
fn penalised(logits: &[f32], request: &Request, generated: &[u32]) -> Vec<f64> {
    let s = &request.sampling;
    let mut z: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
    let repetition = f64::from(s.repetition_penalty);
    for id in request.prompt.iter().chain(generated).collect::<BTreeSet<_>>() {
        let z = &mut z[*id as usize];
        *z = if *z > 0.0 { *z / repetition } else { *z * repetition };
    }
    for id in generated.iter().collect::<BTreeSet<_>>() {
        let times = generated.iter().filter(|other| *other == id).count() as f64;
        z[*id as usize] -= f64::from(s.presence_penalty) + f64::from(s.frequency_penalty) * times;
    }
    for (id, bias) in &s.logit_bias {
        z[*id as usize] += f64::from(*bias);
    }
    z
}

fn steps(logits: &[f32], request: &Request, generated: &[u32]) -> Steps {
    let s = &request.sampling;
    let z = penalised(logits, request, generated);
    let after_bias = softmax(&z);
    let divided: Vec<f64> = z.iter().map(|z| z / f64::from(s.temperature)).collect();
    let p = softmax(&divided);
    let order = ordered(&p);
    let most = p[order[0]];
    let (mut after_cuts, mut margin) = (p.clone(), f64::MAX);
    for (rank, &id) in order.iter().enumerate() {
        let (share, least) = (p[id] / most, f64::from(s.min_p));
        margin = margin.min(if least > 0.0 { (share - least).abs() } else { 1.0 });
        if (s.top_k > 0 && rank >= s.top_k) || share < least {
            after_cuts[id] = 0.0;
        }
    }
    if s.top_k > 0 && s.top_k < VOCAB {
        margin = margin.min(p[order[s.top_k - 1]] - p[order[s.top_k]]);
    }
    let left = scaled(&after_cuts);
    let top_p = f64::from(s.top_p);
    let (mut after_top_p, mut reached, mut reached_of_all) = (left.clone(), 0.0, 0.0);
    let mut differs_by_order = false;
    for &id in &order {
        let goes = top_p < 1.0 && reached >= top_p;
        let goes_of_all = top_p < 1.0 && reached_of_all >= top_p;
        differs_by_order |= left[id] > 0.0 && goes != goes_of_all;
        if goes {
            after_top_p[id] = 0.0;
        }
        (reached, reached_of_all) = (reached + left[id], reached_of_all + p[id]);
        if top_p < 1.0 {
            margin = margin.min((reached - top_p).abs());
        }
    }
    let after_top_p = scaled(&after_top_p);
    Steps { after_bias, after_cuts: left, after_top_p, margin, differs_by_order }
}

/// The token at point `u` of the line on which the tokens lie in the order of their ids, and how
/// near that is to a neighbour.
fn at(p: &[f64], u: f64) -> (u32, f64) {
    let (mut end, mut nearest) = (0.0, f64::MAX);
    let mut found = None;
    for (id, share) in p.iter().enumerate().filter(|(_, share)| **share > 0.0) {
        end += share;
        nearest = nearest.min((end - u).abs());
        if found.is_none() && u < end {
            found = Some(id as u32);
        }
    }
    (found.expect("the shares are 1 together"), nearest)
}

/// The request in which option `i` is on where `values[i]` is 1; its numbers come from `dice`.
fn with(values: &[usize], dice: &mut Stream) -> Request {
    let mut prompt = Vec::new();
    (0..6).for_each(|_| prompt.push((dice.next_u64() % VOCAB as u64) as u32));
    let mut drawn = || dice.uniform() as f32;
    let s = SamplingParams {
        temperature: if values[0] == 1 { 0.3 + 2.0 * drawn() } else { 1.0 },
        top_k: if values[1] == 1 { 1 + (12.0 * drawn()) as usize } else { 0 },
        top_p: if values[2] == 1 { 0.2 + 0.75 * drawn() } else { 1.0 },
        min_p: if values[3] == 1 { 0.02 + 0.5 * drawn() } else { 0.0 },
        presence_penalty: if values[4] == 1 { 4.0 * drawn() - 2.0 } else { 0.0 },
        frequency_penalty: if values[5] == 1 { 4.0 * drawn() - 2.0 } else { 0.0 },
        repetition_penalty: if values[6] == 1 { 0.5 + 2.0 * drawn() } else { 1.0 },
        logit_bias: match values[7] {
            1 => vec![(3, 8.0 * drawn() - 4.0), (11, 8.0 * drawn() - 4.0), (20, -100.0)],
            _ => Vec::new(),
        },
        seed: 77,
        choice: 5,
        constraint: None,
    };
    Request { sampling: s, ..request(1, prompt, 40) }
}

/// What differs between the table's order and others, and between each option and its absence.
#[derive(Default)]
struct Seen {
    cases: usize,
    unsure: usize,
    by_other_order: usize,
    by_bias_first: usize,
}

fn check(values: &[usize], dice: &mut Stream, seen: &mut Seen) {
    let request = with(values, dice);
    let logits: Vec<f32> = (0..VOCAB).map(|_| 2.0 * dice.normal() as f32).collect();
    let length = (dice.next_u64() % 30) as usize;
    let generated: Vec<u32> =
        (0..length).map(|_| (dice.next_u64() % VOCAB as u64 / 2) as u32).collect();
    let steps = steps(&logits, &request, &generated);
    let position = (request.prompt.len() + generated.len()) as u64;
    let u = Stream::at(77, Purpose::Sample, 5, position).uniform();
    let (expected, near) = at(&steps.after_top_p, u);
    seen.cases += 1;
    if near.min(steps.margin) < 1e-5 {
        seen.unsure += 1;
        return;
    }
    let found = DefaultDraw.draw(&logits, &request, &generated);
    assert_eq!(found, expected, "{:?} after {generated:?}, at {u}", request.sampling);
    for p in [&steps.after_bias, &steps.after_cuts, &steps.after_top_p] {
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
    seen.by_other_order += usize::from(steps.differs_by_order);
    let first = at(&softmax(&logits.iter().map(|&z| f64::from(z)).collect::<Vec<_>>()), u).0;
    seen.by_bias_first += usize::from(first != expected);
}

#[test]
fn each_two_options_draw_as_the_table_says() {
    let mut all = Vec::new();
    for bits in 0..256usize {
        all.push((0..8).map(|i| bits >> i & 1).collect::<Vec<_>>());
    }
    // Each option alone, each two of them, and all.
    let some = all.iter().filter(|values| [1, 2, 8].contains(&values.iter().sum()));
    let (mut dice, mut seen) = (Stream::at(1, Purpose::Shuffle, 9, 9), Seen::default());
    for values in some {
        for _ in 0..400 {
            check(values, &mut dice, &mut seen);
        }
    }
    assert_eq!(seen.cases, 400 * (8 + 28 + 1));
    assert!(seen.unsure * 50 < seen.cases, "{} of {} are unsure", seen.unsure, seen.cases);
    // The cases tell orders apart, and options from their absence.
    assert!(seen.by_other_order > 50, "{}", seen.by_other_order);
    assert!(seen.by_bias_first * 5 > seen.cases, "{}", seen.by_bias_first);
}

#[test]
fn without_temperature_the_largest_is_taken_whatever_the_cuts() {
    let mut dice = Stream::at(2, Purpose::Shuffle, 9, 9);
    for bits in 0..256usize {
        let values: Vec<usize> = (0..8).map(|i| bits >> i & 1).collect();
        let mut request = with(&values, &mut dice);
        request.sampling.temperature = 0.0;
        let logits: Vec<f32> = (0..VOCAB).map(|_| 2.0 * dice.normal() as f32).collect();
        let generated = [1, 1, 1, 4, 9];
        let z = penalised(&logits, &request, &generated);
        let expected = ordered(&z)[0] as u32;
        assert_eq!(DefaultDraw.draw(&logits, &request, &generated), expected, "{values:?}");
    }
}

#[test]
fn equal_tokens_are_cut_from_the_largest_id_on() {
    let mut drawn = BTreeSet::new();
    let mut asked = request(1, vec![1], 40);
    asked.sampling.top_k = 3;
    for length in 0..200 {
        drawn.insert(DefaultDraw.draw(&[0.5; VOCAB], &asked, &vec![0; length]));
    }
    assert_eq!(drawn, BTreeSet::from([0, 1, 2]));
    // The share is reached exactly by two of four.
    (asked.sampling.top_k, asked.sampling.top_p) = (4, 0.5);
    let drawn: BTreeSet<u32> =
        (0..200).map(|n| DefaultDraw.draw(&[0.5; VOCAB], &asked, &vec![0; n])).collect();
    assert_eq!(drawn, BTreeSet::from([0, 1]));
}

/// Each penalty counts by itself, at whatever value.
#[test]
fn a_single_penalty_is_not_forgotten() {
    let mut logits = [0.0f32; VOCAB];
    (logits[4], logits[5]) = (3.0, 2.9);
    for (repetition, presence, frequency) in
        [(2.0, 0.0, 0.0), (1.5, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 2.0, 0.0), (1.0, 0.0, 1.0)]
    {
        let mut asked = request(1, vec![1], 40);
        asked.sampling.temperature = 0.0;
        assert_eq!(DefaultDraw.draw(&logits, &asked, &[4]), 4);
        asked.sampling.repetition_penalty = repetition;
        (asked.sampling.presence_penalty, asked.sampling.frequency_penalty) = (presence, frequency);
        assert_eq!(DefaultDraw.draw(&logits, &asked, &[4]), 5, "{:?}", asked.sampling);
    }
}
