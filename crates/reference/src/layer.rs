//! One layer of a Llama decoder for one sequence, with what its uses add.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::adapted::adapted;
use crate::experts::Pool;
use crate::matrix::{Matrix, add, dot, largest, softmax};
use crate::settings::Settings;

/// A row on its way: its position and its state.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: usize,
    pub(crate) position: usize,
    pub(crate) x: Vec<f64>,
    /// What the routers over experts remember of its way; empty for nothing.
    pub(crate) remembered: Vec<f64>,
    /// What the MLP of the layer before was given.
    pub(crate) before: Vec<f64>,
}

/// Keys and values of one layer, by position.
type Memory = BTreeMap<usize, (Vec<f64>, Vec<f64>)>;

/// A model and what one pass over a sequence has left so far.
pub(crate) struct Layers<'a> {
    pub(crate) config: &'a Settings,
    pub(crate) weights: &'a BTreeMap<String, Matrix>,
    uses: Vec<(usize, usize)>,
    /// What the first use of each stored layer left, where later ones share it.
    first: BTreeMap<usize, Memory>,
    /// Multiply-adds of products, attention's among them.
    pub(crate) products: u64,
    /// How far any decision was from the other one.
    pub(crate) margin: f64,
    /// Added to the scores of experts for the choice alone.
    pub(crate) expert_bias: Vec<f64>,
    /// Whether rows are compared, by experts that choose them or have not room for all.
    pub(crate) compares: bool,
    /// Losses of the routers of layers, added up over the layers and their uses.
    pub(crate) losses: BTreeMap<&'static str, f64>,
    /// What rows took of the adapters of a matrix, by the use's name.
    mixtures: BTreeMap<String, Taken>,
    /// The token of the row that is worked out.
    pub(crate) id: usize,
    /// What experts of all layers took.
    pub(crate) pool: Pool,
}

/// What rows took of the adapters of a matrix.
#[derive(Default)]
struct Taken {
    rows: f64,
    entropy: f64,
    p: Vec<f64>,
    w: Vec<f64>,
}

impl<'a> Layers<'a> {
    pub(crate) fn new(config: &'a Settings, weights: &'a BTreeMap<String, Matrix>) -> Self {
        Self {
            config,
            weights,
            uses: config.uses(),
            first: BTreeMap::new(),
            products: 0,
            margin: f64::INFINITY,
            expert_bias: Vec::new(),
            compares: false,
            losses: BTreeMap::new(),
            mixtures: BTreeMap::new(),
            id: 0,
            pool: Pool::default(),
        }
    }

    pub(crate) fn weight(&self, name: &str) -> &'a Matrix {
        self.weights.get(name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// `M x` with its multiply-adds counted.
    pub(crate) fn times(&mut self, name: &str, x: &[f64]) -> Vec<f64> {
        let matrix = self.weight(name);
        self.products += (matrix.rows * matrix.columns) as u64;
        matrix.times(x)
    }

    /// The same with some rows of the matrix.
    pub(crate) fn times_rows(&mut self, name: &str, rows: Range<usize>, x: &[f64]) -> Vec<f64> {
        let matrix = self.weight(name);
        self.products += (rows.len() * matrix.columns) as u64;
        rows.map(|i| dot(matrix.row(i), x)).collect()
    }

    /// A norm of the stream: LayerNorm where its bias `bias` is there, RMSNorm otherwise.
    pub(crate) fn stream_norm(&self, name: &str, bias: &str, x: &[f64]) -> Vec<f64> {
        if self.config.group("norms").word("kind", "rms") == "rms" {
            return self.norm(name, x);
        }
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let centred: Vec<f64> = x.iter().map(|x| x - mean).collect();
        let normed = self.norm(name, &centred);
        normed.iter().zip(self.weight(bias).row(0)).map(|(y, b)| y + b).collect()
    }

    pub(crate) fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.norm_with(self.config.number("norm_eps"), name, x)
    }

    /// The same with another number under the root.
    fn norm_with(&self, eps: f64, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = dot(x, x) / x.len() as f64;
        let factor = 1.0 / (mean + eps).sqrt();
        let norms = self.config.group("norms");
        let offset = if norms.has("plus_one", false) { 1.0 } else { 0.0 };
        x.iter().zip(self.weight(name).row(0)).map(|(x, w)| x * factor * (offset + w)).collect()
    }

    /// The norm `part` of a use of a stored layer; `x` itself where the model has none there.
    fn normed(&self, stored: usize, part: &str, of_use: usize, x: &[f64]) -> Vec<f64> {
        let place = self.config.group("norms").word("place", "before").to_owned();
        let is_after = part.contains("after");
        if (is_after && place == "before") || (!is_after && place == "after") {
            return x.to_vec();
        }
        let [name, bias] = ["", "_bias"].map(|b| format!("layers.{stored}.{part}{b}.{of_use}"));
        self.stream_norm(&name, &bias, x)
    }

    /// Adds the result of attention or of the MLP to the stream.
    pub(crate) fn join(&self, stored: usize, part: &str, of_use: usize, y: &[f64], x: &mut [f64]) {
        let factor = self.config.group("multipliers").value("residual", 1.0);
        let y = self.normed(stored, part, of_use, y);
        x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * y);
    }

    /// Queries or keys with the norm that the model has over them.
    fn heads_normed(&self, stored: usize, part: &str, of_use: usize, x: &[f64]) -> Vec<f64> {
        let attention = self.config.group("attention");
        let width = match attention.word("query_key_norm", "none") {
            "none" => return x.to_vec(),
            "head" | "head_turned" => self.config.count("head_dim"),
            _ => x.len(),
        };
        // Keys that only the first use makes have one norm.
        let first = part == "key_norm" && self.config.text("kv") == "shared";
        let name = format!("layers.{stored}.{part}.{}", if first { 0 } else { of_use });
        x.chunks(width).flat_map(|head| self.norm(&name, head)).collect()
    }

    /// Queries or keys, normed, clipped and turned.
    fn placed(
        &mut self,
        stored: usize,
        part: &str,
        of_use: usize,
        x: &[f64],
        position: usize,
    ) -> Vec<f64> {
        let attention = self.config.group("attention");
        if attention.word("query_key_norm", "none") == "head_turned" {
            let clipped = self.clipped(x);
            let turned = self.rotated(stored, &clipped, self.config.count("head_dim"), position);
            return self.heads_normed(stored, part, of_use, &turned);
        }
        let normed = self.heads_normed(stored, part, of_use, x);
        let clipped = self.clipped(&normed);
        self.rotated(stored, &clipped, self.config.count("head_dim"), position)
    }

    /// Within the limit that the model has, if any. Beside the limit the slope jumps, and what is
    /// cut hangs on less than other decisions.
    fn clipped(&mut self, x: &[f64]) -> Vec<f64> {
        let limit = self.config.group("attention").value("clip", 0.0);
        if limit == 0.0 {
            return x.to_vec();
        }
        for x in x {
            self.margin = self.margin.min(100.0 * (x.abs() - limit).abs());
        }
        x.iter().map(|x| x.clamp(-limit, limit)).collect()
    }

    /// Adds a bias, where the model has it.
    pub(crate) fn biased(&self, stored: usize, part: &str, mut y: Vec<f64>) -> Vec<f64> {
        if let Some(bias) = self.weights.get(&format!("layers.{stored}.{part}_bias")) {
            add(&mut y, bias.row(0));
        }
        y
    }

    /// The unrolled layer `layer` on `rows`.
    pub(crate) fn run(&mut self, layer: usize, rows: &mut [Row]) {
        let (stored, recursion) = self.uses[layer];
        let of_use = if self.config.flag("share_norms") { 0 } else { recursion };
        let own = self.memory(stored, recursion, of_use, rows);
        let mut normed = Vec::new();
        for row in rows.iter_mut() {
            self.id = row.id;
            let h = self.normed(stored, "attention_norm", of_use, &row.x);
            let y = self.attend((stored, recursion, of_use), &h, row.position, &own);
            let y = self.linear(stored, "output", recursion, &y);
            let y = self.biased(stored, "output", y);
            self.join(stored, "attention_after_norm", of_use, &y, &mut row.x);
            normed.push(self.normed(stored, "ffn_norm", of_use, &row.x));
        }
        self.mlp(stored, recursion, of_use, &normed, rows);
        for row in rows {
            self.encode(layer, recursion, &mut row.x);
        }
    }

    /// The keys and values that rows may see at this use.
    fn memory(&mut self, stored: usize, recursion: usize, of_use: usize, rows: &[Row]) -> Memory {
        let mode = self.config.text("kv").to_owned();
        let mut memory = match mode.as_str() {
            "recursion_wise" => Memory::new(),
            _ => self.first.get(&stored).cloned().unwrap_or_default(),
        };
        if mode == "shared" && recursion > 0 {
            return memory;
        }
        for row in rows {
            self.id = row.id;
            let h = self.normed(stored, "attention_norm", of_use, &row.x);
            if self.config.group("attention").value("kv_rank", 0.0) > 0.0 {
                let kept = self.out_of_latent((stored, recursion, of_use), &h, row.position);
                memory.insert(row.position, kept);
                continue;
            }
            let both = self.linear(stored, "key_value", recursion, &h);
            let both = self.biased(stored, "key_value", both);
            let (keys, values) = both.split_at(both.len() / 2);
            let keys = self.placed(stored, "key_norm", of_use, keys, row.position);
            let values = self.clipped(values);
            memory.insert(row.position, (keys, values));
        }
        if recursion == 0 {
            self.first.insert(stored, memory.clone());
        }
        memory
    }

    /// Keys and values of all heads out of one latent: `[shared | own key]` of each head, where the
    /// latent gives own keys and values head by head.
    fn out_of_latent(
        &mut self,
        (stored, recursion, of_use): (usize, usize, usize),
        h: &[f64],
        position: usize,
    ) -> (Vec<f64>, Vec<f64>) {
        let attention = self.config.group("attention");
        let (m, turned) = (attention.count("kv_rank"), attention.count("rope_dim"));
        let both = self.linear(stored, "key_value_latent", recursion, h);
        let shared = self.rotated(stored, &both[m..], turned, position);
        // Latents that only the first use makes have one norm.
        let of_norm = if self.config.text("kv") == "shared" { 0 } else { of_use };
        let name = format!("layers.{stored}.key_value_latent_norm.{of_norm}");
        let scale = attention.number("latent_scale");
        let normed = self.norm_with(1e-6, &name, &both[..m]);
        let latent: Vec<f64> = normed.iter().map(|c| scale * c).collect();
        let expanded = self.linear(stored, "key_value", recursion, &latent);
        let (own, value) = (self.config.count("head_dim") - turned, self.config.value_dim());
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for head in expanded.chunks(own + value) {
            keys.extend(shared.iter().chain(&head[..own]));
            values.extend_from_slice(&head[own..]);
        }
        (keys, values)
    }

    /// What queries are a product with: the row, or its latent.
    fn seen_by_queries(
        &mut self,
        (stored, recursion, of_use): (usize, usize, usize),
        h: &[f64],
    ) -> Vec<f64> {
        if self.config.group("attention").value("query_rank", 0.0) == 0.0 {
            return h.to_vec();
        }
        let latent = self.linear(stored, "query_latent", recursion, h);
        self.norm_with(1e-6, &format!("layers.{stored}.query_latent_norm.{of_use}"), &latent)
    }

    /// Attention's result for a row before the output matrix.
    fn attend(
        &mut self,
        (stored, recursion, of_use): (usize, usize, usize),
        h: &[f64],
        position: usize,
        memory: &Memory,
    ) -> Vec<f64> {
        let (d, heads) = (self.config.count("head_dim"), self.config.count("heads"));
        let group = heads / self.config.count("kv_heads");
        let value = self.config.value_dim();
        let seen = self.seen_by_queries((stored, recursion, of_use), h);
        let query = self.linear(stored, "query", recursion, &seen);
        let query = self.biased(stored, "query", query);
        let query = self.placed(stored, "query_norm", of_use, &query, position);
        let attention = self.config.group("attention");
        let over = match attention.value("scale", 0.0) {
            0.0 => (d as f64).sqrt(),
            scale => 1.0 / scale,
        };
        let cap = attention.value("soft_cap", 0.0);
        let mut seen: Vec<&(Vec<f64>, Vec<f64>)> =
            memory.range(..=position).map(|(_, kept)| kept).collect();
        if let Some(window) = self.config.window(stored) {
            seen.drain(..seen.len().saturating_sub(window));
        }
        let mut y = vec![0.0; heads * value];
        for head in 0..heads {
            let from = head / group * d;
            let of_values = head / group * value;
            let q = &query[head * d..][..d];
            let scores: Vec<f64> = seen
                .iter()
                .map(|(keys, _)| dot(q, &keys[from..from + d]) / over)
                .map(|s| if cap > 0.0 { cap * (s / cap).tanh() } else { s })
                .collect();
            let mut scores = scores;
            if attention.has("sinks", false) {
                scores.push(self.weight(&format!("layers.{stored}.sinks")).row(0)[head]);
            }
            for (p, (_, values)) in softmax(&scores).into_iter().zip(&seen) {
                let values = &values[of_values..][..value];
                for (y, v) in y[head * value..][..value].iter_mut().zip(values) {
                    *y += p * v;
                }
            }
            self.products += ((d + value) * seen.len()) as u64;
        }
        y
    }

    /// Each head turned by its position; entries i of the two halves of the columns that turn are a
    /// pair.
    fn rotated(&self, stored: usize, x: &[f64], width: usize, position: usize) -> Vec<f64> {
        let mut y = x.to_vec();
        let Some((rates, factor)) = self.config.rotation(stored) else { return y };
        let half = rates.len();
        for head in y.chunks_mut(width) {
            for (i, rate) in rates.iter().enumerate() {
                let angle = position as f64 * rate;
                let (a, b) = (head[i], head[i + half]);
                head[i] = factor * (a * angle.cos() - b * angle.sin());
                head[i + half] = factor * (b * angle.cos() + a * angle.sin());
            }
        }
        y
    }

    /// The matrix `part` of a stored layer with what its use adds.
    pub(crate) fn linear(
        &mut self,
        stored: usize,
        part: &str,
        recursion: usize,
        x: &[f64],
    ) -> Vec<f64> {
        let name = format!("layers.{stored}.{part}");
        let relax = self.config.table("relax");
        let use_of = format!("relax.{stored}.{part}.{recursion}");
        let of_use = format!("{use_of}.");
        if self.id < relax.value("from_token", 0.0) as usize {
            return self.times(&name, x);
        }
        let all = self.adapted_uses(&relax, part);
        let number = all.iter().position(|at| *at == (stored, recursion));
        let shares = relax.text("kind") == "mos" && number.is_some();
        if shares || self.weights.keys().any(|name| name.starts_with(&of_use)) {
            let number = number.unwrap_or_default();
            let found = adapted(&relax, (part, number), self.weight(&name), &|leaf: &str| {
                // Tensors of several uses stand with the first.
                let of_all = all.first().map(|(s, r)| format!("relax.{s}.{part}.{r}.{leaf}"));
                let own = self.weights.get(&format!("{use_of}.{leaf}"));
                let of_all = of_all.filter(|_| leaf.starts_with("pool_"));
                own.or_else(|| self.weights.get(&of_all?))
            });
            if let Some(matrix) = found {
                self.products += (matrix.rows * matrix.columns) as u64;
                return matrix.times(x);
            }
        }
        let mut y = self.times(&name, x);
        match relax.text("kind") {
            "lora" | "dora" if self.weights.contains_key(&format!("{use_of}.up")) => {
                let scale = relax.scale(&name);
                self.add_pair(&format!("{use_of}.down"), &format!("{use_of}.up"), scale, x, &mut y);
                if relax.text("kind") == "dora" {
                    self.stretch(&format!("layers.{stored}.{part}"), &use_of, scale, &mut y);
                }
            }
            "mola" if self.weights.contains_key(&format!("{use_of}.score")) => {
                let scale = relax.scale(&name);
                let z = self.times(&format!("{use_of}.score"), x);
                let chosen = largest(&z, relax.count("top_k"), &mut self.margin);
                let of_chosen: Vec<f64> = chosen.iter().map(|&k| z[k]).collect();
                for (&k, w) in chosen.iter().zip(softmax(&of_chosen)) {
                    let (down, up) = (format!("{use_of}.down.{k}"), format!("{use_of}.up.{k}"));
                    self.add_pair(&down, &up, w * scale, x, &mut y);
                }
            }
            "dynmole" if self.weights.contains_key(&format!("{use_of}.score")) => {
                let scale = relax.scale(&name);
                let p = softmax(&self.times(&format!("{use_of}.score"), x));
                let w = self.taken_adapters(&relax, &use_of, &p);
                for (k, w) in w.into_iter().enumerate().filter(|(_, w)| *w > 0.0) {
                    let (down, up) = (format!("{use_of}.down.{k}"), format!("{use_of}.up.{k}"));
                    self.add_pair(&down, &up, w * scale, x, &mut y);
                }
            }
            _ => {}
        }
        y
    }

    /// The uses of a matrix that have adapters, layer by layer.
    fn adapted_uses(&self, relax: &Settings, part: &str) -> Vec<(usize, usize)> {
        let mut uses = self.uses.clone();
        uses.sort_unstable();
        let every = uses.clone();
        uses.retain(|&(stored, recursion)| {
            let often = every.iter().filter(|(other, _)| *other == stored).count() > 1;
            let reached = relax.word("layers", "all") == "all" || often;
            let no_keys = self.config.text("kv") == "shared" && recursion > 0;
            let skipped = relax.has("skip_first", false) && recursion == 0;
            reached && !skipped && !(no_keys && part.starts_with("key_value"))
        });
        uses.retain(|_| relax.texts("parts").iter().any(|of| of == part));
        uses
    }

    /// DynMoLE: the probability of each adapter that a row takes, 0 for the others.
    fn taken_adapters(&mut self, relax: &Settings, use_of: &str, p: &[f64]) -> Vec<f64> {
        let q = relax.number("entropy_index");
        let entropy = match q {
            1.0 => -p.iter().map(|p| p * p.ln()).sum::<f64>(),
            q => (1.0 - p.iter().map(|p| p.powf(q)).sum::<f64>()) / (q - 1.0),
        };
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        let unsure = entropy > relax.number("threshold");
        self.margin = self.margin.min((entropy - relax.number("threshold")).abs());
        let (mut w, mut sum) = (vec![0.0; p.len()], 0.0);
        for (place, &k) in order.iter().enumerate() {
            sum += p[k];
            let is_first = place < relax.count("top_k");
            if unsure || is_first || sum <= relax.number("top_p") {
                w[k] = p[k];
            } else if w[order[place - 1]] > 0.0 {
                self.margin = self.margin.min(p[order[place - 1]] - p[k]);
            }
            if !unsure && !is_first {
                self.margin = self.margin.min((sum - relax.number("top_p")).abs());
            }
        }
        let all = self.mixtures.entry(use_of.to_owned()).or_default();
        all.rows += 1.0;
        all.entropy += entropy;
        all.p.resize(p.len(), 0.0);
        all.w.resize(p.len(), 0.0);
        add(&mut all.p, p);
        add(&mut all.w, &w);
        w
    }

    /// The means of these over the rows of each use, with their losses.
    pub(crate) fn adapter_losses(&mut self) {
        let relax = self.config.table("relax");
        let parts = relax.texts("parts");
        let uses: usize = parts.iter().map(|part| self.adapted_uses(&relax, part).len()).sum();
        for all in std::mem::take(&mut self.mixtures).into_values() {
            *self.losses.entry("adapter_entropy").or_default() +=
                all.entropy / all.rows / uses as f64;
            let products = all.p.iter().zip(&all.w).map(|(p, w)| p * w).sum::<f64>();
            let balance = all.p.len() as f64 * products / (all.rows * all.rows);
            *self.losses.entry("adapter_balance").or_default() += balance / uses as f64;
        }
    }

    fn add_pair(&mut self, down: &str, up: &str, scale: f64, x: &[f64], y: &mut [f64]) {
        let low = self.times(down, x);
        let mut added = self.times(up, &low);
        added.iter_mut().for_each(|a| *a *= scale);
        add(y, &added);
    }

    /// DoRA: each output times its magnitude and `|W| / |W + s B A|` of its row.
    fn stretch(&self, name: &str, use_of: &str, scale: f64, y: &mut [f64]) {
        let w = self.weight(name);
        let down = self.weight(&format!("{use_of}.down"));
        let up = self.weight(&format!("{use_of}.up"));
        let magnitudes = self.weight(&format!("{use_of}.length")).row(0);
        for (n, y) in y.iter_mut().enumerate() {
            let mut merged = w.row(n).to_vec();
            for (k, b) in up.row(n).iter().enumerate() {
                merged.iter_mut().zip(down.row(k)).for_each(|(m, a)| *m += scale * b * a);
            }
            *y *= magnitudes[n] * length(w.row(n)) / length(&merged);
        }
    }

    /// The factors of a recursion encoding, behind the last layer of a block that is applied again
    /// and again, or behind every shared layer.
    fn encode(&self, layer: usize, recursion: usize, x: &mut [f64]) {
        if self.config.table("relax").text("kind") != "encoding" {
            return;
        }
        let ends = usize::from(self.config.text("sharing").starts_with("middle"));
        let shared = layer >= ends && layer < self.config.count("layers") - ends;
        let behind = match self.config.blocks() {
            Some(blocks) => blocks.iter().any(|block| block.last() == Some(&layer)),
            None => shared,
        };
        if behind {
            let factors = self.weight(&format!("encoding.{recursion}")).row(0);
            x.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
    }
}

/// The Euclidean length of a row of numbers.
fn length(row: &[f64]) -> f64 {
    dot(row, row).sqrt()
}
