//! Routers of depth: who goes on, with which gate, and what the router is taught.

use std::collections::BTreeMap;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

use crate::forward::{Decide, Decision};
use crate::layer::{Layers, Row};
use crate::matrix::{largest, sigmoid, softmax};
use crate::settings::Settings;

/// The losses of a router over one sequence, unweighted, and what the balance of a whole step is
/// made of.
#[derive(Clone, Debug, Default)]
pub struct RouterLosses {
    /// Means over the sequence's rows, by name.
    pub means: BTreeMap<&'static str, f64>,
    /// Expert-choice in training: for each recursion the logits of its candidates, and how many of
    /// them the comparison keeps.
    pub compared: Vec<(Vec<f64>, usize)>,
    /// Token-choice: for each row its depth, from 0.
    pub depths: Vec<usize>,
    /// Token-choice: for each row its scores.
    pub scores: Vec<Vec<f64>>,
}

impl RouterLosses {
    fn add(&mut self, name: &'static str, value: f64) {
        *self.means.entry(name).or_default() += value;
    }
}

/// `sum_j f_j P_j` over all rows of some sequences: `f_j` is the number of depths times the share
/// of rows at depth j, `P_j` the mean of its scores.
pub fn pooled_balance(all: &[&RouterLosses]) -> f64 {
    let rows: usize = all.iter().map(|one| one.depths.len()).sum();
    let depths = all[0].scores[0].len();
    let mut sum = 0.0;
    for j in 0..depths {
        let load: usize =
            all.iter().map(|one| one.depths.iter().filter(|&&d| d == j).count()).sum();
        let score: f64 = all.iter().flat_map(|one| &one.scores).map(|s| s[j]).sum();
        sum += depths as f64 * load as f64 / rows as f64 * score / rows as f64;
    }
    sum
}

/// For each recursion the logit that the comparisons of some sequences needed: midway between the
/// lowest of as many as they kept and the highest left out. `None` where they kept all.
pub fn needed_thresholds(all: &[&RouterLosses]) -> Vec<Option<f64>> {
    let mut needed = Vec::new();
    for r in 0..all[0].compared.len() {
        let kept: usize = all.iter().map(|one| one.compared[r].1).sum();
        let mut sorted: Vec<f64> =
            all.iter().flat_map(|one| one.compared[r].0.iter().copied()).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        needed.push(sorted.get(kept).map(|left_out| (sorted[kept - 1] + left_out) / 2.0));
    }
    needed
}

/// The rows that a router decides about at a recursion.
pub(crate) struct Candidates<'a> {
    pub(crate) recursion: usize,
    pub(crate) rows: &'a [Row],
    /// Rows of the whole sequence.
    pub(crate) length: usize,
}

/// Places among the candidates that go on, with their gates.
pub(crate) struct Chosen {
    pub(crate) kept: Vec<usize>,
    pub(crate) gates: Vec<f64>,
    pub(crate) gating: String,
}

/// The logits of a scoring network for each row.
fn score(layers: &mut Layers<'_>, router: &Settings, name: &str, rows: &[Row]) -> Vec<Vec<f64>> {
    let mut all = Vec::new();
    for row in rows {
        let x: Vec<f64> = row.x.iter().map(|x| x / router.number("temperature")).collect();
        all.push(match router.text("network") {
            "linear" => layers.times(&format!("{name}.score"), &x),
            _ => {
                let hidden = layers.times(&format!("{name}.up"), &x);
                let hidden: Vec<f64> = hidden.into_iter().map(gelu).collect();
                layers.times(&format!("{name}.down"), &hidden)
            }
        });
    }
    all
}

/// `x Phi(x)`, with the error function by its series of positive terms:
/// `erf z = 2/sqrt(pi) e^(-z^2) sum_n 2^n z^(2n+1) / (1 3 5 ... (2n+1))`.
fn gelu(x: f64) -> f64 {
    let z = x * FRAC_1_SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..300 {
        term *= 2.0 * z * z / f64::from(2 * n + 1);
        sum += term;
    }
    let erf = if z.abs() > 6.0 { z.signum() } else { FRAC_2_SQRT_PI * (-z * z).exp() * sum };
    x * 0.5 * (1.0 + erf)
}

/// The share of rows in recursion `r` at an optimizer step.
fn capacity(router: &Settings, n: usize, r: usize, step: Option<u64>) -> f64 {
    let nominal = match router.numbers("capacities") {
        Some(given) => given[r],
        None => (n - r) as f64 / n as f64,
    };
    if router.text("kind") != "expert_choice" {
        return nominal;
    }
    let warmup = router.count("capacity_warmup_steps") as f64;
    match step {
        Some(step) if (step as f64) < warmup => {
            nominal + (1.0 - nominal) * 0.5 * (1.0 + (PI * step as f64 / warmup).cos())
        }
        _ => nominal,
    }
}

/// Expert-choice, or the random router.
pub(crate) fn choose(
    layers: &mut Layers<'_>,
    router: &Settings,
    decision: Decision<'_>,
    candidates: Candidates<'_>,
    losses: &mut RouterLosses,
) -> Chosen {
    let Candidates { recursion: r, rows, length } = candidates;
    let n = layers.config.recursions();
    let training = decision.decide.trains();
    let step = training.then_some(decision.step);
    let most = (capacity(router, n, r, step) * length as f64).floor().max(1.0) as usize;
    if router.text("kind") == "random" {
        let dice: Vec<f64> = rows.iter().map(|row| (decision.die)(r, row.position)).collect();
        let before = if r == 0 { 1.0 } else { capacity(router, n, r - 1, None) };
        let limit = 1.0 - capacity(router, n, r, None) / before;
        let kept = match decision.decide {
            Decide::Training => largest(&dice, most.min(rows.len()), &mut layers.margin),
            Decide::ByThresholds { .. } => (0..rows.len()).filter(|&i| dice[i] >= limit).collect(),
        };
        let gates = kept.iter().map(|&i| router.number("alpha") * dice[i]).collect();
        return Chosen { kept, gates, gating: "weighted".into() };
    }
    let logits = score(layers, router, &format!("router.{r}"), rows);
    let z: Vec<f64> = logits.into_iter().map(|z| z[0]).collect();
    let gates: Vec<f64> = z.iter().map(|&z| gate(router, z)).collect();
    let auxiliary = router.text("sampling") == "aux_router";
    // At inference the second network runs where it decides.
    let asked = match decision.decide {
        Decide::ByThresholds { auxiliary: asked, .. } => asked || (training && auxiliary),
        Decide::Training => auxiliary,
    };
    let second = asked.then(|| score(layers, router, &format!("auxiliary_router.{r}"), rows));
    let most = most.min(rows.len());
    let best = if training { largest(&gates, most, &mut layers.margin) } else { Vec::new() };
    let kept: Vec<usize> = match decision.decide {
        Decide::Training => best.clone(),
        Decide::ByThresholds { thresholds, auxiliary, .. } => {
            let asked = match &second {
                Some(second) if auxiliary => second.iter().map(|z| z[0]).collect(),
                _ => z.clone(),
            };
            let least = thresholds[r].unwrap_or(f64::NEG_INFINITY);
            for logit in &asked {
                layers.margin = layers.margin.min((logit - least).abs());
            }
            (0..rows.len()).filter(|&i| asked[i] >= least).collect()
        }
    };
    if training {
        losses.compared.push((z.clone(), most));
    }
    if training && !rows.is_empty() {
        let count = rows.len() as f64;
        if router.text("sampling") == "aux_loss" {
            let sum: f64 = (0..rows.len()).map(|i| bce(z[i], best.contains(&i))).sum();
            losses.add("auxiliary", sum / count);
        }
        if let Some(second) = &second {
            let sum: f64 = (0..rows.len()).map(|i| bce(second[i][0], best.contains(&i))).sum();
            losses.add("auxiliary_router", sum / count);
        }
        losses.add("z", z.iter().map(|z| z * z).sum::<f64>() / count);
    }
    let gating = router.text("gating").to_owned();
    let release = router.count("gate_release_steps") as f64;
    // A gate that blends goes from 1 to its own value.
    let own = match gating.as_str() {
        "blend" if (decision.step as f64) < release => {
            0.5 * (1.0 - (PI * decision.step as f64 / release).cos())
        }
        _ => 1.0,
    };
    let gates = kept.iter().map(|&i| 1.0 + own * (gates[i] - 1.0));
    let gates = gates.collect();
    Chosen { kept, gates, gating }
}

/// The cross-entropy of `sigmoid(z)` with whether the row was kept.
fn bce(z: f64, kept: bool) -> f64 {
    if kept { softplus(-z) } else { softplus(z) }
}

fn gate(router: &Settings, z: f64) -> f64 {
    match router.text("function") {
        "sigmoid" => router.number("alpha") * sigmoid(z),
        "tanh" => router.number("alpha") * z.tanh(),
        "none" => z,
        other => panic!("function {other}"),
    }
}

/// `ln(1 + e^z)`, for large z of either sign too.
fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// Token-choice: for each row its depth, from 1, and its gate.
pub(crate) fn assign(
    layers: &mut Layers<'_>,
    router: &Settings,
    decision: Decision<'_>,
    rows: &[Row],
    losses: &mut RouterLosses,
) -> Vec<(usize, f64)> {
    let n = layers.config.recursions();
    let (logits, alpha) = (score(layers, router, "router", rows), router.number("alpha"));
    let training = decision.decide.trains();
    // Whoever runs a model from among these steps sends every row to full depth.
    let warming = decision.step < router.count("balance_warmup_steps") as u64;
    let mut choices = Vec::new();
    for z in &logits {
        let scores: Vec<f64> = match router.text("function") {
            "softmax" => softmax(z).into_iter().map(|p| alpha * p).collect(),
            _ => z.iter().map(|&z| alpha * sigmoid(z)).collect(),
        };
        let biased: Vec<f64> =
            (0..n).map(|j| scores[j] + decision.bias.get(j).copied().unwrap_or_default()).collect();
        let mut at = 0;
        for j in 1..n {
            if biased[j] > biased[at] {
                at = j;
            }
        }
        if warming {
            at = n - 1;
        }
        largest(&biased, 1, &mut layers.margin);
        choices.push((at + 1, scores[at]));
        if training {
            let all: f64 = z.iter().map(|z| z.exp()).sum();
            losses.add("z", all.ln().powi(2) / rows.len() as f64);
        }
        losses.depths.push(at);
        losses.scores.push(scores);
    }
    choices
}
