//! What a `config.json` says, by the names of its fields.

use std::f64::consts::PI;

use serde_json::{Map, Value};

/// A model's config as it stands in a checkpoint.
#[derive(Clone, Debug)]
pub struct Settings {
    json: Value,
}

impl Settings {
    /// The config in a `config.json`.
    pub fn of(json: Value) -> Self {
        Self { json }
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.json[name].as_u64().unwrap_or_else(|| panic!("{name} in {}", self.json)) as usize
    }

    pub(crate) fn number(&self, name: &str) -> f64 {
        self.json[name].as_f64().unwrap_or_else(|| panic!("{name} in {}", self.json))
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.json[name].as_bool().unwrap_or_else(|| panic!("{name} in {}", self.json))
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.json[name].as_str().unwrap_or_else(|| panic!("{name} in {}", self.json))
    }

    /// The texts of the list `name`.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        let list = self.json[name].as_array().into_iter().flatten();
        list.filter_map(|x| x.as_str().map(str::to_owned)).collect()
    }

    /// The factor of what an adapter of low rank adds to a weight.
    pub(crate) fn scale(&self, weight: &str) -> f64 {
        let rank = self.by_pattern("rank_pattern", weight, "rank");
        let over = if self.has("rank_stabilized", false) { rank.sqrt() } else { rank };
        self.by_pattern("alpha_pattern", weight, "alpha") / over
    }

    /// What the table `name` says of a weight, by patterns in which `*` stands for anything;
    /// otherwise the number `usual`.
    pub(crate) fn by_pattern(&self, name: &str, weight: &str, usual: &str) -> f64 {
        let table = self.json[name].as_object().into_iter().flatten();
        let found =
            table.filter(|(pattern, _)| fits(pattern, weight)).find_map(|(_, x)| x.as_f64());
        found.unwrap_or_else(|| self.number(usual))
    }

    /// The table `name`, like `router`.
    pub(crate) fn table(&self, name: &str) -> Self {
        Self::of(self.json[name].clone())
    }

    /// The table `name`, empty where the config leaves it out.
    pub(crate) fn group(&self, name: &str) -> Self {
        Self::of(self.json.get(name).cloned().unwrap_or_else(|| Value::Object(Map::new())))
    }

    /// The number `name`, or what stands for one that is left out.
    pub(crate) fn value(&self, name: &str, otherwise: f64) -> f64 {
        self.json[name].as_f64().unwrap_or(otherwise)
    }

    /// The flag `name`, or what stands for one that is left out.
    pub(crate) fn has(&self, name: &str, otherwise: bool) -> bool {
        self.json[name].as_bool().unwrap_or(otherwise)
    }

    /// The text `name`, or what stands for one that is left out.
    pub(crate) fn word<'a>(&'a self, name: &str, otherwise: &'a str) -> &'a str {
        self.json[name].as_str().unwrap_or(otherwise)
    }

    /// Whether the list `name` has a layer; a word stands for all.
    fn lists(&self, name: &str, stored: usize) -> bool {
        match self.json[name].as_array() {
            Some(list) => list.iter().any(|layer| layer.as_u64() == Some(stored as u64)),
            None => true,
        }
    }

    /// How many keys a row of a stored layer sees, where not all.
    pub(crate) fn window(&self, stored: usize) -> Option<usize> {
        let attention = self.group("attention");
        let window = attention.value("window", 0.0) as usize;
        (window > 0 && attention.lists("window_layers", stored)).then_some(window)
    }

    /// Width of a head of values.
    pub(crate) fn value_dim(&self) -> usize {
        match self.group("attention").value("value_dim", 0.0) as usize {
            0 => self.count("head_dim"),
            stated => stated,
        }
    }

    /// The rates of the pairs of columns that turn in a stored layer, and the factor of what turns;
    /// `None` without positions.
    pub(crate) fn rotation(&self, stored: usize) -> Option<(Vec<f64>, f64)> {
        let rotary = self.group("rotary");
        if !rotary.lists("layers", stored) {
            return None;
        }
        let latent = self.group("attention").value("rope_dim", 0.0) as usize;
        let share = (self.count("head_dim") as f64 * rotary.value("share", 1.0)) as usize;
        let n = if latent > 0 { latent } else { share };
        let local = rotary.value("window_theta", 0.0);
        if local > 0.0 && self.window(stored).is_some() {
            return Some((plain_rates(local, n), 1.0));
        }
        let base = self.number("rope_theta");
        let scaling = rotary.group("scaling");
        let context = self.number("context");
        match scaling.word("kind", "none") {
            "dynamic" => Some((plain_rates(scaling.grown(base, n, context), n), 1.0)),
            "longrope" => Some(scaling.by_lists(plain_rates(base, n), context)),
            _ => Some(scaling.rescaled(plain_rates(base, n), base)),
        }
    }

    /// Rates rescaled as the `scaling` of rotary positions says, and the factor that goes with it.
    fn rescaled(&self, mut rates: Vec<f64>, base: f64) -> (Vec<f64>, f64) {
        let n = 2 * rates.len();
        match self.word("kind", "none") {
            "none" => return (rates, 1.0),
            "linear" => rates.iter_mut().for_each(|rate| *rate /= self.number("factor")),
            "llama3" => rates.iter_mut().for_each(|rate| *rate = self.by_turns(*rate)),
            _ => {
                let mut first = self.pair(self.number("beta_fast"), n, base);
                let mut last = self.pair(self.number("beta_slow"), n, base);
                if self.flag("truncate") {
                    (first, last) = (first.floor(), last.ceil());
                }
                (first, last) = (first.max(0.0), last.min(n as f64 - 1.0));
                let last = if first == last { last + 0.001 } else { last };
                for (i, rate) in rates.iter_mut().enumerate() {
                    let slow = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
                    *rate = *rate * (1.0 - slow) + *rate / self.number("factor") * slow;
                }
                return (rates, self.turned_factor());
            }
        }
        (rates, 1.0)
    }

    /// The base of NTK scaling for texts of the model's context.
    fn grown(&self, base: f64, n: usize, context: f64) -> f64 {
        let (factor, original) = (self.number("factor"), self.number("original_context"));
        if context <= original {
            return base;
        }
        let n = n as f64;
        base * (1.0 + factor * (context - original) / original).powf(n / (n - 2.0))
    }

    /// LongRoPE: a divisor for each rate, and the factor of what turns.
    fn by_lists(&self, mut rates: Vec<f64>, context: f64) -> (Vec<f64>, f64) {
        let original = self.number("original_context");
        let list = if context > original { "long_factor" } else { "short_factor" };
        for (i, rate) in rates.iter_mut().enumerate() {
            *rate /= self.json[list][i].as_f64().unwrap_or(1.0);
        }
        let (stated, long) = (self.number("attention_factor"), self.number("long_context"));
        let factor = (1.0 + (long / original).ln().max(0.0) / original.ln()).sqrt();
        (rates, if stated > 0.0 { stated } else { factor })
    }

    /// YaRN's factor of what turns.
    fn turned_factor(&self) -> f64 {
        let log = 0.1 * self.number("factor").ln();
        let (stated, above) = (self.number("attention_factor"), self.number("mscale"));
        if stated > 0.0 {
            stated
        } else if above > 0.0 {
            (above * log + 1.0) / (self.number("mscale_all_dim") * log + 1.0)
        } else {
            log + 1.0
        }
    }

    /// Llama 3's: by how often a rate turns within the original context.
    fn by_turns(&self, rate: f64) -> f64 {
        let (low, high) = (self.number("low"), self.number("high"));
        let (turns, factor) =
            (self.number("original_context") * rate / (2.0 * PI), self.number("factor"));
        if turns < low {
            rate / factor
        } else if turns > high {
            rate
        } else {
            let kept = (turns - low) / (high - low);
            (1.0 - kept) * rate / factor + kept * rate
        }
    }

    /// The pair that turns `turns` times within the original context, from its rate, which is
    /// `base^(-2 pair / n)`.
    fn pair(&self, turns: f64, n: usize, base: f64) -> f64 {
        let rate = 2.0 * PI * turns / self.number("original_context");
        -(n as f64) * rate.ln() / (2.0 * base.ln())
    }

    pub(crate) fn numbers(&self, name: &str) -> Option<Vec<f64>> {
        let list = self.json[name].as_array()?;
        Some(list.iter().filter_map(Value::as_f64).collect())
    }

    pub(crate) fn counts(&self, name: &str) -> Vec<usize> {
        self.numbers(name).unwrap_or_default().into_iter().map(|count| count as usize).collect()
    }

    pub(crate) fn recursions(&self) -> usize {
        self.count("recursions")
    }

    /// For each unrolled layer the stored one that it uses, and how often that was used before.
    pub(crate) fn uses(&self) -> Vec<(usize, usize)> {
        let (layers, n) = (self.count("layers"), self.recursions());
        let ends = usize::from(self.text("sharing").starts_with("middle"));
        let middle = layers - 2 * ends;
        let block = middle / n;
        let mut uses = Vec::new();
        for layer in 0..layers {
            let inside = layer >= ends && layer < layers - ends;
            uses.push(match self.text("sharing") {
                "none" => (layer, 0),
                _ if !inside && layer == 0 => (0, 0),
                _ if !inside => (block + 1, 0),
                "cycle" | "middle_cycle" => ((layer - ends) % block + ends, (layer - ends) / block),
                _ => ((layer - ends) / n + ends, (layer - ends) % n),
            });
        }
        uses
    }

    /// The unrolled layers of each recursion, where the shared layers are one block that is applied
    /// again and again.
    pub(crate) fn blocks(&self) -> Option<Vec<Vec<usize>>> {
        let sharing = self.text("sharing");
        if !matches!(sharing, "cycle" | "middle_cycle") {
            return None;
        }
        let ends = usize::from(sharing == "middle_cycle");
        let middle = self.count("layers") - 2 * ends;
        let block = middle / self.recursions();
        let mut blocks = Vec::new();
        for r in 0..self.recursions() {
            blocks.push((ends + r * block..ends + (r + 1) * block).collect());
        }
        Some(blocks)
    }
}

/// `base^(-2 i / n)` for pair i of n columns.
fn plain_rates(base: f64, n: usize) -> Vec<f64> {
    (0..n / 2).map(|i| base.powf(-2.0 * i as f64 / n as f64)).collect()
}

/// Whether a name fits a pattern, in which `*` stands for anything.
fn fits(pattern: &str, weight: &str) -> bool {
    let mut rest = Some(weight);
    for (i, piece) in pattern.split('*').enumerate() {
        let at = rest.and_then(|rest| {
            if i == 0 { rest.strip_prefix(piece).map(|_| 0) } else { rest.find(piece) }
        });
        rest = rest.zip(at).map(|(rest, at)| &rest[at + piece.len()..]);
    }
    rest.is_some_and(|rest| rest.is_empty() || pattern.ends_with('*'))
}
