//! The model family once more, in ordinary f64 and plain loops, for tests to compare with. It is
//! written from the formulas of docs/routers.md and of the papers and uses nothing of the rooms but
//! settings and the numbers of weights: one sequence at a time, no batch, no cache, no tape.

use std::collections::BTreeMap;

use model::routers::expert_choice::{self, Function, Gating, SamplingLoss};
use model::routers::token_choice::{self, GateOn};
use model::routers::{Network, expert_choice::Config as Expert, token_choice::Config as Token};
use model::{KvMode, Model, ModelConfig, RouterConfig, Sharing};

type Row = Vec<f64>;

/// A model in f64.
#[derive(Clone, Debug)]
pub struct Plain {
    /// Its settings. Dense MLPs, norms that all uses share, no adapters with factors.
    pub config: ModelConfig,
    /// Its weights by name, row after row. A test may change them.
    pub weights: BTreeMap<String, Vec<f64>>,
}

/// What a pass depends on beside the tokens.
#[derive(Clone, Debug)]
pub struct PlainHow {
    /// The optimizer step: of it capacities are a function.
    pub step: u64,
    /// Expert-choice decides by these in place of comparing; `None` inside lets all pass.
    pub thresholds: Option<Vec<Option<f64>>>,
    /// Whether the second network's logits meet the thresholds.
    pub auxiliary: bool,
    /// Added to the scores of token-choice for selection.
    pub bias: Vec<f64>,
    /// Whether token-choice sends every row to full depth.
    pub warming: bool,
    /// The share of the router's own gate in the gate.
    pub released: f64,
}

impl Default for PlainHow {
    /// Training by comparison, after every warm-up, without a bias.
    fn default() -> Self {
        Self {
            step: u64::MAX,
            thresholds: None,
            auxiliary: false,
            bias: Vec::new(),
            warming: false,
            released: 1.0,
        }
    }
}

/// What a pass over some sequences gives.
#[derive(Clone, Debug, Default)]
pub struct PlainOut {
    /// For each row its logits.
    pub logits: Vec<Vec<f64>>,
    /// Recursions that each row took.
    pub depth: Vec<u32>,
    /// Losses of the router by name, before their weights.
    pub losses: BTreeMap<&'static str, f64>,
    /// Expert-choice: the deciding network's logits of all candidates of a recursion, and how many
    /// rows a comparison keeps.
    pub compared: Vec<(Vec<f64>, usize)>,
    /// Token-choice: the scores of each row.
    scores: Vec<Vec<f64>>,
}

impl PlainOut {
    /// For each recursion the value between the lowest logit of as many as a comparison keeps and
    /// the highest below it; `None` where all are kept.
    pub fn needed(&self) -> Vec<Option<f64>> {
        let mut needed = Vec::new();
        for (logits, kept) in &self.compared {
            let mut sorted = logits.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            needed.push(sorted.get(*kept).map(|below| 0.5 * (sorted[kept - 1] + below)));
        }
        needed
    }

    /// Mean negative log-likelihood of `targets`, one for each row.
    pub fn cross_entropy(&self, targets: &[u32]) -> f64 {
        let mut sum = 0.0;
        for (logits, &target) in self.logits.iter().zip(targets) {
            sum += log_sum_exp(logits) - logits[target as usize];
        }
        sum / targets.len() as f64
    }
}

/// One sequence on its way.
struct Sequence {
    x: Vec<Row>,
    depth: Vec<u32>,
    /// Keys and values by stored layer, of the first use: position, key row, value row.
    first: BTreeMap<usize, Vec<(usize, Row, Row)>>,
}

impl Plain {
    /// The same model in f64.
    pub fn of(model: &Model) -> Self {
        let mut weights = BTreeMap::new();
        for (spec, weight) in model.weights() {
            let numbers = weight.read().into_iter().map(f64::from);
            weights.insert(spec.name.clone(), numbers.collect());
        }
        Self { config: model.config().clone(), weights }
    }

    /// A pass over `texts`, which are a whole optimizer step.
    pub fn run(&self, texts: &[Vec<u32>], how: &PlainHow) -> PlainOut {
        let mut out = PlainOut::default();
        for text in texts {
            let embed = &self.weights["embed"];
            let d = self.config.width;
            let x = text.iter().map(|&id| embed[id as usize * d..][..d].to_vec()).collect();
            let mut at = Sequence { x, depth: vec![0; text.len()], first: BTreeMap::default() };
            self.middle(&mut at, how, &mut out, texts.len());
            let last = self.weights.get("head").unwrap_or(embed);
            for x in &at.x {
                out.logits.push(product(last, &self.norm("norm", x)));
            }
            out.depth.extend(at.depth);
        }
        if let RouterConfig::TokenChoice(_) = &self.config.router {
            let balance = balance(&out, self.config.recursions);
            out.losses.insert("balance", balance);
        }
        out
    }

    /// All layers of one sequence.
    fn middle(&self, at: &mut Sequence, how: &PlainHow, out: &mut PlainOut, sequences: usize) {
        let ModelConfig { sharing, recursions, layers, .. } = self.config;
        let ends = matches!(sharing, Sharing::MiddleCycle | Sharing::MiddleSequence);
        let each = (layers - if ends { 2 } else { 0 }) / recursions;
        let start = usize::from(ends);
        let all: Vec<usize> = (0..at.x.len()).collect();
        if ends {
            self.everyone(at, 0, 0, &all);
        }
        match (&self.config.router, sharing) {
            (_, Sharing::None | Sharing::Sequence | Sharing::MiddleSequence) => {
                for stored in start..start + each {
                    for r in 0..recursions {
                        self.everyone(at, stored, r, &all);
                        self.encode(&mut at.x, r);
                    }
                }
                at.depth.fill(1);
            }
            (RouterConfig::ExpertChoice(expert), _) => {
                self.expert_choice(expert, at, how, out, sequences);
            }
            (RouterConfig::TokenChoice(token), _) => {
                self.token_choice(token, at, how, out, sequences);
            }
            _ => {
                for r in 0..recursions {
                    at.x = self.block(at, &all, at.x.clone(), r);
                    at.depth.iter_mut().for_each(|depth| *depth += 1);
                }
            }
        }
        if ends {
            self.everyone(at, start + each, 0, &all);
        }
    }

    /// At each recursion the best candidates, or those that reach a threshold, go on.
    fn expert_choice(
        &self,
        router: &Expert,
        at: &mut Sequence,
        how: &PlainHow,
        out: &mut PlainOut,
        sequences: usize,
    ) {
        let n = self.config.recursions;
        let length = at.x.len();
        let mut candidates: Vec<usize> = (0..length).collect();
        out.compared.resize(n, (Vec::new(), 0));
        for r in 0..n {
            if candidates.is_empty() {
                return;
            }
            let rows: Vec<&Row> = candidates.iter().map(|&t| &at.x[t]).collect();
            let z = self.column(&format!("router.{r}"), router, &rows);
            let second = router.sampling == SamplingLoss::AuxRouter;
            let name = format!("auxiliary_router.{r}");
            let other = if second { self.column(&name, router, &rows) } else { z.clone() };
            let gates: Row = z.iter().map(|&z| gate(router, z)).collect();
            let share = capacity(router, n, r, how.step);
            let count = ((share * length as f64) as usize).max(1).min(candidates.len());
            let best = largest(&gates, count);
            out.compared[r].0.extend(&z);
            out.compared[r].1 += count;
            self.expert_losses(router, &z, &other, &best, out, sequences);
            let deciding = if how.auxiliary { &other } else { &z };
            let kept: Vec<bool> = match &how.thresholds {
                None => best,
                Some(limits) => {
                    let limit = limits[r].unwrap_or(f64::NEG_INFINITY);
                    deciding.iter().map(|&z| z >= limit).collect()
                }
            };
            let going: Vec<usize> = (0..candidates.len()).filter(|&i| kept[i]).collect();
            let rows: Vec<usize> = going.iter().map(|&i| candidates[i]).collect();
            let inputs = rows.iter().map(|&t| at.x[t].clone()).collect();
            let results = self.block(at, &rows, inputs, r);
            for ((&t, &i), y) in rows.iter().zip(&going).zip(results) {
                let g = 1.0 - how.released + how.released * gates[i];
                at.x[t] = match router.gating {
                    Gating::Weighted => sum(&at.x[t], g, &y),
                    Gating::Additive => sum(&at.x[t], 1.0, &y),
                    Gating::Blend => sum(&scaled(&at.x[t], 1.0 - g), g, &y),
                    Gating::Replace => y,
                };
                at.depth[t] += 1;
            }
            candidates = rows;
        }
    }

    /// The logits of one network of expert-choice.
    fn column(&self, name: &str, router: &Expert, rows: &[&Row]) -> Row {
        let rows = rows.iter();
        rows.map(|x| self.score(name, router.network, x, router.temperature)[0]).collect()
    }

    fn expert_losses(
        &self,
        router: &Expert,
        z: &[f64],
        other: &[f64],
        best: &[bool],
        out: &mut PlainOut,
        sequences: usize,
    ) {
        let mean = 1.0 / (z.len() as f64 * sequences as f64);
        let (name, learning) = match router.sampling {
            SamplingLoss::AuxLoss => (Some("auxiliary"), z),
            SamplingLoss::AuxRouter => (Some("auxiliary_router"), other),
            SamplingLoss::None => (None, z),
        };
        for ((&z, &learning), &best) in z.iter().zip(learning).zip(best) {
            *out.losses.entry("z").or_default() += mean * z * z;
            if let Some(name) = name {
                let p = 1.0 / (1.0 + (-learning).exp());
                let right = if best { p } else { 1.0 - p };
                *out.losses.entry(name).or_default() -= mean * right.ln();
            }
        }
    }

    /// Each row is told its depth before the first recursion.
    fn token_choice(
        &self,
        router: &Token,
        at: &mut Sequence,
        how: &PlainHow,
        out: &mut PlainOut,
        sequences: usize,
    ) {
        let (n, length) = (self.config.recursions, at.x.len());
        let (mut depth, mut gates) = (Vec::new(), Vec::new());
        for x in &at.x {
            let z = self.score("router", router.network, x, router.temperature);
            let top = log_sum_exp(&z);
            let scores: Row = match router.function {
                token_choice::Function::Softmax => z.iter().map(|z| (z - top).exp()).collect(),
                token_choice::Function::Sigmoid => {
                    z.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect()
                }
            };
            let scores = scaled(&scores, router.alpha);
            let mut biased = scores.clone();
            biased.iter_mut().zip(&how.bias).for_each(|(score, bias)| *score += bias);
            let mut chosen = if how.warming { n - 1 } else { 0 };
            for j in 1..n {
                chosen = if biased[j] > biased[chosen] && !how.warming { j } else { chosen };
            }
            let mean = 1.0 / (length as f64 * sequences as f64);
            *out.losses.entry("z").or_default() += mean * top * top;
            gates.push(scores[chosen]);
            out.scores.push(scores);
            depth.push(chosen);
        }
        let mut inner = at.x.clone();
        for r in 0..n {
            let rows: Vec<usize> = (0..length).filter(|&t| depth[t] >= r).collect();
            let inputs = rows.iter().map(|&t| inner[t].clone()).collect();
            for (&t, y) in rows.iter().zip(self.block(at, &rows, inputs, r)) {
                let factor = if router.gate_on == GateOn::EveryPass { gates[t] } else { 1.0 };
                inner[t] = scaled(&y, factor);
                at.depth[t] += 1;
            }
        }
        for t in 0..length {
            let factor = if router.gate_on == GateOn::LastPass { gates[t] } else { 1.0 };
            at.x[t] = sum(&at.x[t], factor, &inner[t]);
        }
    }

    /// The shared layers once for the rows at positions `rows`, whose states are `x`.
    fn block(&self, at: &mut Sequence, rows: &[usize], x: Vec<Row>, r: usize) -> Vec<Row> {
        let ends = self.config.sharing == Sharing::MiddleCycle;
        let shared = (self.config.layers - if ends { 2 } else { 0 }) / self.config.recursions;
        let start = usize::from(ends);
        let mut x = x;
        for stored in start..start + shared {
            x = self.layer(at, stored, r, rows, x);
        }
        self.encode(&mut x, r);
        x
    }

    /// A layer for every row of the sequence.
    fn everyone(&self, at: &mut Sequence, stored: usize, r: usize, rows: &[usize]) {
        let x = std::mem::take(&mut at.x);
        at.x = self.layer(at, stored, r, rows, x);
    }

    /// The factor that recursion encodings give the stream.
    fn encode(&self, x: &mut [Row], r: usize) {
        let Some(vector) = self.weights.get(&format!("encoding.{r}")) else { return };
        for x in x {
            x.iter_mut().zip(vector).for_each(|(x, v)| *x *= v);
        }
    }

    /// Attention, then the MLP, each added to the stream.
    fn layer(
        &self,
        at: &mut Sequence,
        stored: usize,
        r: usize,
        rows: &[usize],
        x: Vec<Row>,
    ) -> Vec<Row> {
        let h: Vec<Row> =
            x.iter().map(|x| self.norm(&format!("layers.{stored}.attention_norm.0"), x)).collect();
        let keys = self.keys(at, stored, r, rows, &h);
        let mut results = Vec::new();
        for ((x, h), &t) in x.iter().zip(&h).zip(rows) {
            let query = self.rotated(product(self.part(stored, "query"), h), self.config.heads, t);
            let attended = self.attend(&query, &keys, t);
            let x = sum(x, 1.0, &product(self.part(stored, "output"), &attended));
            let h = self.norm(&format!("layers.{stored}.ffn_norm.0"), &x);
            let both = product(self.part(stored, "gate_up"), &h);
            let (gate, up) = both.split_at(self.config.ffn);
            let inner: Row = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            results.push(sum(&x, 1.0, &product(self.part(stored, "down"), &inner)));
        }
        results
    }

    /// A matrix of stored layer `stored`.
    fn part(&self, stored: usize, part: &str) -> &[f64] {
        &self.weights[&format!("layers.{stored}.{part}")]
    }

    /// What the rows of a layer may see: position, key and value.
    fn keys(
        &self,
        at: &mut Sequence,
        stored: usize,
        r: usize,
        rows: &[usize],
        h: &[Row],
    ) -> Vec<(usize, Row, Row)> {
        let weight = self.part(stored, "key_value");
        let mut own = Vec::new();
        for (h, &t) in h.iter().zip(rows) {
            let both = product(weight, h);
            let (key, value) = both.split_at(both.len() / 2);
            let key = self.rotated(key.to_vec(), self.config.kv_heads, t);
            own.push((t, key, value.to_vec()));
        }
        if r == 0 {
            at.first.insert(stored, own.clone());
        }
        let first = &at.first[&stored];
        match self.config.kv {
            KvMode::RecursionWise => own,
            KvMode::Shared => first.clone(),
            KvMode::SharedUpdate => {
                let mut all = first.clone();
                for fresh in own {
                    let old = all.iter_mut().find(|(t, ..)| *t == fresh.0);
                    *old.expect("a row of the first use") = fresh;
                }
                all
            }
        }
    }

    /// Softmax attention of one row at position `t` over keys at positions up to its own.
    fn attend(&self, query: &[f64], keys: &[(usize, Row, Row)], t: usize) -> Row {
        let ModelConfig { heads, kv_heads, head_dim: k, .. } = self.config;
        let mut result = Vec::new();
        for head in 0..heads {
            let theirs = head / (heads / kv_heads) * k;
            let seen: Vec<_> = keys.iter().filter(|(position, ..)| *position <= t).collect();
            let q = &query[head * k..][..k];
            let mut weights: Row =
                seen.iter().map(|(_, key, _)| dot(q, &key[theirs..][..k])).collect();
            weights.iter_mut().for_each(|w| *w /= (k as f64).sqrt());
            let total = log_sum_exp(&weights);
            for j in 0..k {
                let terms = weights.iter().zip(&seen);
                let terms = terms.map(|(w, (_, _, value))| (w - total).exp() * value[theirs + j]);
                result.push(terms.sum());
            }
        }
        result
    }

    /// Pairs `(j, j + k/2)` of each head, turned by `position * theta^(-2j/k)`.
    fn rotated(&self, mut x: Row, heads: usize, position: usize) -> Row {
        let k = self.config.head_dim;
        for head in 0..heads {
            for j in 0..k / 2 {
                let exponent = -2.0 * j as f64 / k as f64;
                let angle = position as f64 * self.config.rope_theta.powf(exponent);
                let (a, b) = (x[head * k + j], x[head * k + j + k / 2]);
                x[head * k + j] = a * angle.cos() - b * angle.sin();
                x[head * k + j + k / 2] = b * angle.cos() + a * angle.sin();
            }
        }
        x
    }

    /// RMSNorm by the scale `name`.
    fn norm(&self, name: &str, x: &[f64]) -> Row {
        let square = dot(x, x) / x.len() as f64 + self.config.norm_eps;
        let scale = &self.weights[name];
        x.iter().zip(scale).map(|(x, s)| x / square.sqrt() * s).collect()
    }

    /// The logits of a scoring network at `x / temperature`.
    fn score(&self, name: &str, network: Network, x: &[f64], temperature: f64) -> Row {
        let x = scaled(x, 1.0 / temperature);
        if network == Network::Linear {
            return product(&self.weights[&format!("{name}.score")], &x);
        }
        let inner: Row =
            product(&self.weights[&format!("{name}.up")], &x).into_iter().map(gelu).collect();
        product(&self.weights[&format!("{name}.down")], &inner)
    }
}

/// `n sum_j (share of rows at depth j) (mean score of depth j)` over all rows of the step.
fn balance(out: &PlainOut, n: usize) -> f64 {
    let rows = out.depth.len() as f64;
    let mut loss = 0.0;
    for j in 0..n {
        let share = out.depth.iter().filter(|&&d| d as usize == j + 1).count() as f64 / rows;
        let mean = out.scores.iter().map(|scores| scores[j]).sum::<f64>() / rows;
        loss += n as f64 * share * mean;
    }
    loss
}

/// The gate of a logit.
fn gate(router: &Expert, z: f64) -> f64 {
    match router.function {
        Function::Sigmoid => router.alpha / (1.0 + (-z).exp()),
        Function::Tanh => router.alpha * z.tanh(),
        expert_choice::Function::None => z,
    }
}

/// The share of a sequence's rows in recursion `r` at an optimizer step: half a cosine from 1.
fn capacity(router: &Expert, n: usize, r: usize, step: u64) -> f64 {
    let even = (n - r) as f64 / n as f64;
    let aim = router.capacities.as_ref().map_or(even, |capacities| capacities[r]);
    let warmup = router.capacity_warmup_steps;
    if step >= warmup {
        return aim;
    }
    let done = step as f64 / warmup as f64;
    aim + (1.0 - aim) * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0
}

/// Which of `values` are the `count` largest.
fn largest(values: &[f64], count: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let mut found = vec![false; values.len()];
    order[..count].iter().for_each(|&i| found[i] = true);
    found
}

/// `M h` for a matrix of as many columns as `h` has entries.
fn product(matrix: &[f64], h: &[f64]) -> Row {
    matrix.chunks_exact(h.len()).map(|row| dot(row, h)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `a + factor * b`.
fn sum(a: &[f64], factor: f64, b: &[f64]) -> Row {
    a.iter().zip(b).map(|(a, b)| a + factor * b).collect()
}

fn scaled(x: &[f64], factor: f64) -> Row {
    x.iter().map(|x| x * factor).collect()
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    top + x.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
}

/// `x Phi(x)`, with the normal distribution's series around 0.
fn gelu(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.max(0.0);
    }
    let (mut term, mut series) = (x, x);
    for k in 1..200 {
        term *= -x * x / (2.0 * f64::from(k));
        series += term / f64::from(2 * k + 1);
    }
    x * (0.5 + series / (2.0 * std::f64::consts::PI).sqrt())
}
