//! The MLP of a layer: one, or experts of which a row takes some.

use crate::layer::{Layers, Row};
use crate::matrix::{add, largest, sigmoid, softmax};
use crate::settings::Settings;

/// What the rows of one sequence chose at one use of a layer.
#[derive(Default)]
pub(crate) struct Chosen {
    loads: Vec<f64>,
    shares: Vec<f64>,
    rows: f64,
    z: f64,
    entropy: f64,
}

/// The experts of a row, ascending, with their weights, and whether each has room for it.
struct Choice {
    taken: Vec<usize>,
    weights: Vec<f64>,
    served: Vec<bool>,
    scores: Vec<f64>,
}

/// What the rows of one sequence chose at all uses of all layers.
#[derive(Default)]
pub(crate) struct Pool {
    loads: Vec<f64>,
    shares: Vec<f64>,
    rows: f64,
}

impl Pool {
    /// `E sum_e f_e P_e`: `f_e` the share of rows that took expert `e`, `P_e` its mean softmax.
    pub(crate) fn loss(&self) -> Option<f64> {
        let terms = self.loads.iter().zip(&self.shares);
        let sum: f64 = terms.map(|(load, share)| load / self.rows * share / self.rows).sum();
        (self.rows > 0.0).then_some(self.loads.len() as f64 * sum)
    }
}

/// `silu(gate) up` of the two halves of a product.
fn swiglu(both: &[f64]) -> Vec<f64> {
    let (gate, up) = both.split_at(both.len() / 2);
    gate.iter().zip(up).map(|(g, u)| g * sigmoid(*g) * u).collect()
}

/// Whether a stored layer has experts.
fn has_experts(mlp: &Settings, stored: usize) -> bool {
    let first = mlp.count("dense_first");
    let listed = mlp.counts("dense_layers").contains(&stored);
    stored >= first && !listed && (stored + 1 - first).is_multiple_of(mlp.count("every"))
}

/// How many computing experts a stored layer has.
fn computing(mlp: &Settings, stored: usize) -> usize {
    let counts = mlp.counts("counts");
    let before = (0..stored).filter(|&layer| has_experts(mlp, layer)).count();
    if counts.is_empty() { mlp.count("count") } else { counts[before] }
}

/// The softmax of `chosen` among the logits that are near it.
fn among_near(z: &[f64], chosen: usize, jitter: f64, margin: &mut f64) -> f64 {
    let mut sum = 0.0;
    for z_e in z.iter().filter(|z_e| z_e.is_finite()) {
        let distance = (z[chosen] - z_e) / z_e.abs().max(z[chosen]);
        *margin = margin.min((distance - 2.0 * jitter).abs());
        if distance <= 2.0 * jitter {
            sum += (z_e - z[chosen]).exp();
        }
    }
    1.0 / sum
}

/// The clamped product of the two halves.
fn clamped(both: &[f64], limit: f64, alpha: f64) -> Vec<f64> {
    let (gate, up) = both.split_at(both.len() / 2);
    let mut y = Vec::new();
    for (g, u) in gate.iter().zip(up) {
        let (g, u) = (g.min(limit), u.clamp(-limit, limit));
        y.push(g * sigmoid(alpha * g) * (u + 1.0));
    }
    y
}

/// `f(gate) up` of the two halves of a product.
fn gated(both: &[f64], activation: &str) -> Vec<f64> {
    let (gate, up) = both.split_at(both.len() / 2);
    gate.iter().zip(up).map(|(g, u)| activated(*g, activation) * u).collect()
}

fn activated(z: f64, activation: &str) -> f64 {
    match activation {
        "silu" => z * sigmoid(z),
        "gelu_tanh" => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044_715 * z.powi(3));
            0.5 * z * (1.0 + u.tanh())
        }
        "gelu" => z * normal(z),
        other => panic!("activation {other}"),
    }
}

/// The standard normal distribution function, by its series around zero.
fn normal(z: f64) -> f64 {
    let (mut term, mut sum, mut n) = (z, z, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 2.0;
        term *= z * z / n;
        sum += term;
    }
    0.5 + sum * (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

impl Layers<'_> {
    /// The MLPs of all rows at a use of a stored layer.
    pub(crate) fn mlp(
        &mut self,
        stored: usize,
        recursion: usize,
        of_use: usize,
        h: &[Vec<f64>],
        rows: &mut [Row],
    ) {
        let settings = self.config.table("mlp");
        let dense = settings.text("kind") == "dense" || !has_experts(&settings, stored);
        if dense {
            for (h, row) in h.iter().zip(rows) {
                self.id = row.id;
                let y = self.dense(stored, recursion, &settings, h);
                self.join(stored, "ffn_after_norm", of_use, &y, &mut row.x);
                row.before = h.clone();
            }
            return;
        }
        let (own, mut taken) = (h, h.to_vec());
        let shortcut = settings.has("shortcut", false);
        if shortcut {
            taken = rows.iter().map(|row| row.before.clone()).collect();
        }
        let h = &taken[..];
        let mut chosen = Chosen::default();
        let mut choices = Vec::new();
        for (h, row) in h.iter().zip(rows.iter_mut()) {
            let old = std::mem::take(&mut row.remembered);
            let (choice, new) = self.choice((stored, recursion), &settings, h, old, &mut chosen);
            row.remembered = new;
            choices.push(choice);
        }
        let (router, count) = (settings.table("router"), computing(&settings, stored));
        self.choose_rows(&router, count, &mut choices);
        self.drop_choices(&router, count, &mut choices);
        for (((h, row), choice), own) in h.iter().zip(rows).zip(&choices).zip(own) {
            self.id = row.id;
            let mut y = self.experts(stored, recursion, &settings, h, choice);
            if shortcut {
                add(&mut y, &self.dense(stored, recursion, &settings, own));
            }
            self.join(stored, "ffn_after_norm", of_use, &y, &mut row.x);
        }
        if chosen.rows > 0.0 {
            self.expert_losses(&settings, &chosen);
        }
    }

    /// The dense MLP of a layer.
    fn dense(
        &mut self,
        stored: usize,
        recursion: usize,
        settings: &Settings,
        h: &[f64],
    ) -> Vec<f64> {
        let both = self.linear(stored, "gate_up", recursion, h);
        let both = self.biased(stored, "gate_up", both);
        let activation = settings.word("activation", "silu");
        let y = self.linear(stored, "down", recursion, &gated(&both, activation));
        self.biased(stored, "down", y)
    }

    /// Shared expert and chosen experts of a row.
    fn experts(
        &mut self,
        stored: usize,
        recursion: usize,
        settings: &Settings,
        h: &[f64],
        choice: &Choice,
    ) -> Vec<f64> {
        let mut y = vec![0.0; h.len()];
        let mut mix = vec![1.0; 2];
        if settings.has("shared_mix", false) {
            mix = softmax(&self.times(&format!("layers.{stored}.router.shared_mix"), h));
        }
        if settings.count("shared") > 0 {
            let both = self.linear(stored, "shared_gate_up", recursion, h);
            let both = self.biased(stored, "shared_gate_up", both);
            y = self.linear(stored, "shared_down", recursion, &swiglu(&both));
            y = self.biased(stored, "shared_down", y);
            if settings.flag("shared_gate") {
                let gate = self.times(&format!("layers.{stored}.router.shared_gate"), h)[0];
                y.iter_mut().for_each(|y| *y *= sigmoid(gate));
            }
            y.iter_mut().for_each(|y| *y *= mix[1]);
        }
        if settings.has("modulated", false) {
            let mut mixed = vec![0.0; h.len()];
            for (place, (&e, weight)) in choice.taken.iter().zip(&choice.weights).enumerate() {
                if choice.served[place] {
                    let scale = self.weight(&format!("layers.{stored}.experts_scale")).row(e);
                    let shift = self.weight(&format!("layers.{stored}.experts_shift")).row(e);
                    for (j, x) in mixed.iter_mut().enumerate() {
                        *x += weight * mix[0] * (scale[j] * h[j] + shift[j]);
                    }
                }
            }
            add(&mut y, &self.dense(stored, recursion, settings, &mixed));
            return y;
        }
        let mut seen = h.to_vec();
        if settings.value("latent", 0.0) > 0.0 {
            seen = self.linear(stored, "experts_latent", recursion, h);
        }
        for (place, (&e, weight)) in choice.taken.iter().zip(&choice.weights).enumerate() {
            if choice.served[place] {
                let count = computing(settings, stored);
                let mut out = match e < count {
                    true => self.expert((stored, h.len()), settings, e, &seen),
                    false => self.zero_expert(stored, settings, e - count, h),
                };
                out.iter_mut().for_each(|x| *x *= weight * mix[0]);
                add(&mut y, &out);
            }
        }
        y
    }

    /// What expert `e` makes of a row.
    fn expert(
        &mut self,
        (stored, width): (usize, usize),
        settings: &Settings,
        e: usize,
        h: &[f64],
    ) -> Vec<f64> {
        let f = match settings.count("width") {
            0 => self.config.count("ffn"),
            width => width,
        };
        let biases = settings.flag("biases");
        let rows = e * 2 * f..(e + 1) * 2 * f;
        let mut both = self.times_rows(&format!("layers.{stored}.experts_gate_up"), rows, h);
        if biases {
            add(&mut both, self.weight(&format!("layers.{stored}.experts_gate_up_bias")).row(e));
        }
        let inner = self.inner(settings, &both);
        let rows = e * width..(e + 1) * width;
        let mut out = self.times_rows(&format!("layers.{stored}.experts_down"), rows, &inner);
        if biases {
            add(&mut out, self.weight(&format!("layers.{stored}.experts_down_bias")).row(e));
        }
        out
    }

    /// What the `i`th expert behind the computing ones writes: the row, nothing, or the row mixed
    /// with a vector.
    fn zero_expert(&mut self, stored: usize, of: &Settings, i: usize, h: &[f64]) -> Vec<f64> {
        let (identity, zero) = (of.count("identity_experts"), of.count("zero_experts"));
        if i < identity {
            return h.to_vec();
        } else if i < identity + zero {
            return vec![0.0; h.len()];
        }
        let c = i - identity - zero;
        let name = format!("layers.{stored}.experts_constant");
        let a = softmax(&self.times_rows(&format!("{name}_mix"), 2 * c..2 * c + 2, h));
        let v = self.weight(&name).row(c);
        h.iter().zip(v).map(|(h, v)| a[0] * h + a[1] * v).collect()
    }

    /// The experts that a row chooses, all of them served.
    fn choice(
        &mut self,
        (stored, recursion): (usize, usize),
        settings: &Settings,
        h: &[f64],
        mut remembered: Vec<f64>,
        chosen: &mut Chosen,
    ) -> (Choice, Vec<f64>) {
        let router = settings.table("router");
        let own =
            if settings.flag("own_routers") { format!("{recursion}.") } else { String::new() };
        let of_layer = format!("layers.{stored}.router.{own}");
        let width = router.value("memory", 0.0) as usize;
        if width > 0 {
            remembered.resize(width, 0.0);
            let input = self.times(&format!("{of_layer}project"), h);
            remembered = self.next_memory(&input, &remembered);
        }
        let seen = if width > 0 { remembered.clone() } else { h.to_vec() };
        let mut z = self.times(&format!("{of_layer}score"), &seen);
        let kind = router.text("kind").to_owned();
        let mixes = kind == "sparse_mixer";
        if router.has("logit_bias", false) {
            add(&mut z, self.weight(&format!("layers.{stored}.router.{own}bias")).row(0));
        }
        let cap = router.value("soft_cap", 0.0);
        if cap > 0.0 {
            z.iter_mut().for_each(|z| *z = cap * (*z / cap).tanh());
        }
        let scores: Vec<f64> = match router.word("function", "softmax") == "softmax" {
            true => softmax(&z),
            false => z.iter().map(|z| sigmoid(*z)).collect(),
        };
        let (taken, weights) = match kind.as_str() {
            "sparse_mixer" => self.mixed(router.number("jitter"), &z),
            "top_p" => self.likely(&router, &scores),
            "expert_choice" => self.by_thresholds(&router, &scores),
            _ => self.weighed(&router, &scores),
        };
        self.pooled(&router, if mixes { 2 } else { router.value("top_k", 0.0) as usize }, &z);
        chosen.loads.resize(z.len(), 0.0);
        chosen.shares.resize(z.len(), 0.0);
        taken.iter().for_each(|&e| chosen.loads[e] += 1.0);
        let all: f64 = scores.iter().sum();
        chosen.shares.iter_mut().zip(&scores).for_each(|(sum, s)| *sum += s / all);
        let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = z.iter().map(|z| (z - most).exp()).sum();
        chosen.z += (most + sum.ln()).powi(2);
        chosen.entropy -= softmax(&z).iter().map(|p| p * p.ln()).sum::<f64>();
        chosen.rows += 1.0;
        let served = vec![true; taken.len()];
        (Choice { taken, weights, served, scores }, remembered)
    }

    /// The gated recurrent unit of all routers: `(1 - z) n + z h` with `n = tanh(W_n x + r U_n h)`.
    fn next_memory(&mut self, x: &[f64], h: &[f64]) -> Vec<f64> {
        let mut a = self.times("routers.cell_input", x);
        add(&mut a, self.weight("routers.cell_input_bias").row(0));
        let mut b = self.times("routers.cell_state", h);
        add(&mut b, self.weight("routers.cell_state_bias").row(0));
        let w = h.len();
        let mut next = Vec::new();
        for j in 0..w {
            let (r, z) = (sigmoid(a[j] + b[j]), sigmoid(a[w + j] + b[w + j]));
            let n = (a[2 * w + j] + r * b[2 * w + j]).tanh();
            next.push((1.0 - z) * n + z * h[j]);
        }
        next
    }

    /// In training an expert takes `ceil(c k T / E)` of the `T` rows: first choices before second
    /// ones, and among equal ranks by position or by the largest score of the row.
    fn drop_choices(&mut self, router: &Settings, experts: usize, choices: &mut [Choice]) {
        let capacity = router.value("capacity", 0.0);
        if router.text("kind") != "top_k" || capacity == 0.0 || !self.compares {
            return;
        }
        let taken = match router.text("balance") {
            "budget" => router.number("budget"),
            _ => router.count("top_k") as f64,
        };
        let share = capacity * (taken * choices.len() as f64) / experts as f64;
        let room = (share.ceil() as usize).max(1);
        let by_score = match router.text("priority") {
            "position" => false,
            "score" => true,
            other => panic!("priority {other}"),
        };
        for e in 0..experts {
            let mut wanting = Vec::new();
            for (row, choice) in choices.iter().enumerate() {
                if let Some(place) = choice.taken.iter().position(|&taken| taken == e) {
                    let of = |e: usize| {
                        choice.scores[e] + self.expert_bias.get(e).copied().unwrap_or(0.0)
                    };
                    let others = choice.taken.iter().filter(|&&other| other != e);
                    let mut rank = 0;
                    for &other in others {
                        rank += usize::from(of(other) > of(e));
                        self.margin = self.margin.min((of(other) - of(e)).abs());
                    }
                    let best = choice.taken.iter().map(|&e| choice.scores[e]).fold(0.0, f64::max);
                    wanting.push((rank, if by_score { -best } else { 0.0 }, row, place));
                }
            }
            wanting.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
            if by_score && room < wanting.len() {
                let (last, first) = (wanting[room - 1], wanting[room]);
                if last.0 == first.0 {
                    self.margin = self.margin.min((first.1 - last.1).abs());
                }
            }
            for (_, _, row, place) in wanting.into_iter().skip(room) {
                choices[row].served[place] = false;
            }
        }
    }

    /// What an expert makes of gate and up. Beside a limit the slope jumps.
    fn inner(&mut self, settings: &Settings, both: &[f64]) -> Vec<f64> {
        let limit = settings.number("limit");
        if limit == 0.0 {
            return swiglu(both);
        }
        for x in both {
            self.margin = self.margin.min(100.0 * (x.abs() - limit).abs());
        }
        clamped(both, limit, settings.number("alpha"))
    }

    /// The experts of a row with these scores, and their weights.
    fn weighed(&mut self, router: &Settings, scores: &[f64]) -> (Vec<usize>, Vec<f64>) {
        let taken = self.taken(router, scores);
        let sum: f64 = taken.iter().map(|&e| scores[e]).sum();
        let divisor = if router.flag("normalize") { sum.max(router.number("least")) } else { 1.0 };
        let weights = taken.iter().map(|&e| router.number("scale") * scores[e] / divisor);
        let weights = weights.collect();
        (taken, weights)
    }

    /// The most likely experts, until their probability exceeds `p` or there are enough.
    fn likely(&mut self, router: &Settings, scores: &[f64]) -> (Vec<usize>, Vec<f64>) {
        let limit = match router.count("limit") {
            0 => scores.len(),
            limit => limit,
        };
        for count in 1..=scores.len() {
            let taken = largest(scores, count, &mut f64::INFINITY.clone());
            let (sum, p) = (taken.iter().map(|&e| scores[e]).sum::<f64>(), router.number("p"));
            if p < 1.0 {
                self.margin = self.margin.min((sum - p).abs());
            }
            if (p < 1.0 && sum > p) || count == limit {
                largest(scores, count, &mut self.margin);
                let weights = taken.iter().map(|&e| scores[e]).collect();
                return (taken, weights);
            }
        }
        ((0..scores.len()).collect(), scores.to_vec())
    }

    /// The experts whose threshold a row reaches; without any, its best ones.
    fn by_thresholds(&mut self, router: &Settings, scores: &[f64]) -> (Vec<usize>, Vec<f64>) {
        let taken = if self.compares {
            Vec::new()
        } else if self.expert_bias.is_empty() {
            let count = router.number("capacity").round().max(1.0) as usize;
            largest(scores, count.min(scores.len()), &mut self.margin)
        } else {
            for (score, threshold) in scores.iter().zip(&self.expert_bias) {
                self.margin = self.margin.min((score - threshold).abs());
            }
            (0..scores.len()).filter(|&e| scores[e] >= self.expert_bias[e]).collect()
        };
        let weights = taken.iter().map(|&e| scores[e]).collect();
        (taken, weights)
    }

    /// In training each expert takes its best `floor(c T / E)` of the `T` rows.
    fn choose_rows(&mut self, router: &Settings, experts: usize, choices: &mut [Choice]) {
        if router.text("kind") != "expert_choice" || !self.compares {
            return;
        }
        let share = router.number("capacity") * choices.len() as f64 / experts as f64;
        // No row went on to here, perhaps.
        let count = (share.floor() as usize).max(1).min(choices.len());
        for e in 0..experts {
            let of: Vec<f64> = choices.iter().map(|choice| choice.scores[e]).collect();
            for row in largest(&of, count, &mut self.margin) {
                choices[row].taken.push(e);
                choices[row].weights.push(of[row]);
                choices[row].served.push(true);
            }
        }
    }

    /// The two largest, each weighted among the others that are near it.
    fn mixed(&mut self, jitter: f64, z: &[f64]) -> (Vec<usize>, Vec<f64>) {
        let first = largest(z, 1, &mut self.margin)[0];
        let mut left = z.to_vec();
        left[first] = f64::NEG_INFINITY;
        let second = largest(&left, 1, &mut self.margin)[0];
        let weights = vec![
            among_near(z, first, jitter, &mut self.margin),
            among_near(&left, second, jitter, &mut self.margin),
        ];
        (vec![first, second], weights)
    }

    /// A row more in the pool of all layers.
    fn pooled(&mut self, router: &Settings, top_k: usize, z: &[f64]) {
        if router.value("pooled_weight", 0.0) == 0.0 {
            return;
        }
        let shares = softmax(z);
        self.pool.loads.resize(z.len(), 0.0);
        self.pool.shares.resize(z.len(), 0.0);
        largest(&shares, top_k, &mut self.margin).iter().for_each(|&e| self.pool.loads[e] += 1.0);
        add(&mut self.pool.shares, &shares);
        self.pool.rows += 1.0;
    }

    /// The experts of a row with these scores, ascending.
    fn taken(&mut self, router: &Settings, scores: &[f64]) -> Vec<usize> {
        let mut biased = scores.to_vec();
        biased.iter_mut().zip(&self.expert_bias).for_each(|(s, b)| *s += b);
        let groups = router.count("groups");
        let size = scores.len() / groups;
        if router.has("equal_groups", false) {
            let mut taken = Vec::new();
            for (g, group) in biased.chunks(size).enumerate() {
                let best = largest(group, router.count("top_k") / groups, &mut self.margin);
                taken.extend(best.into_iter().map(|e| g * size + e));
            }
            return taken;
        }
        let mut best = Vec::new();
        for group in biased.chunks(size) {
            let mut sorted = group.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let two = router.text("group_score") == "best_two";
            best.push(sorted[..if two { 2.min(size) } else { 1 }].iter().sum::<f64>());
        }
        let open = largest(&best, router.count("top_groups"), &mut self.margin);
        let among: Vec<usize> = open.into_iter().flat_map(|g| g * size..(g + 1) * size).collect();
        let of_these: Vec<f64> = among.iter().map(|&e| biased[e]).collect();
        let places = largest(&of_these, router.count("top_k"), &mut self.margin);
        places.into_iter().map(|place| among[place]).collect()
    }

    /// `sum_e f_e P_e` with `f_e = E` times the share of the choices, `P_e` the mean share of the
    /// scores; and the mean of `logsumexp(z)^2`.
    fn expert_losses(&mut self, settings: &Settings, chosen: &Chosen) {
        let router = settings.table("router");
        *self.losses.entry("expert_z").or_default() += chosen.z / chosen.rows;
        if !matches!(router.text("kind"), "top_k" | "top_p") {
            return;
        }
        let entries: f64 = chosen.loads.iter().sum();
        let terms = chosen.loads.iter().zip(&chosen.shares);
        let sum: f64 = terms.map(|(load, share)| load / entries * share / chosen.rows).sum();
        if router.word("balance", "sequence") == "sequence" {
            *self.losses.entry("expert_balance").or_default() += chosen.loads.len() as f64 * sum;
        }
        let groups = router.value("groups", 1.0) as usize;
        let size = chosen.loads.len() / groups;
        for (loads, shares) in chosen.loads.chunks(size).zip(chosen.shares.chunks(size)) {
            // The mean share of the choices times the number of experts, and the share of scores.
            let load = loads.iter().sum::<f64>() / entries * groups as f64;
            let share = shares.iter().sum::<f64>() / chosen.rows;
            *self.losses.entry("expert_group_balance").or_default() += load * share;
        }
        *self.losses.entry("expert_entropy").or_default() += chosen.entropy / chosen.rows;
    }
}
