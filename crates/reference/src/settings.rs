//! What a `config.json` says, by the names of its fields.

use serde_json::Value;

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

    /// The table `name`, like `router`.
    pub(crate) fn table(&self, name: &str) -> Self {
        Self::of(self.json[name].clone())
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
