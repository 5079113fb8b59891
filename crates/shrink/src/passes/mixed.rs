//! A number format for each matrix, so that the errors of products are least within a budget of
//! bytes (after MC-MoE, Huang et al., 2024, arXiv 2410.06270, which shares out bits among experts).
//! The choice is a knapsack with one format for each matrix, solved exactly. Rounding is that of
//! `gptq`.

use convert::bank_size;
use model::params::{Group, ParamPlace, ParamSpec};
use model::{Model, ModelConfig, RouterState, WeightFormats};
use ops::{Format, Weight};
use serde::{Deserialize, Serialize};

use super::gptq::{Gptq, GptqSettings, parsed};
use super::member::{LayerCall, PassSettings, RunningPass, Survey};
use crate::error::refused;
use crate::seen::{Seen, Wanted};
use crate::{ModelChange, ShrinkError};

/// The most exceptions by name that formats of weights may have.
const EXCEPTIONS: usize = 256;

/// `{ kind = "mixed", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixedSettings {
    /// The formats to choose among.
    pub formats: Vec<String>,
    /// Bits a number of the matrices of layers, scales and minima counted, in the mean.
    pub bits: f64,
    /// Added to the diagonal of `X^T X`, as a share of its mean.
    pub damping: f64,
    /// Rows that a matrix must have met; those that met fewer are rounded to the nearest.
    pub least_rows: u64,
}

impl Default for MixedSettings {
    fn default() -> Self {
        let formats = vec!["int4".to_owned(), "int8".to_owned()];
        Self { formats, bits: 6.0, damping: 0.01, least_rows: 16 }
    }
}

impl PassSettings for MixedSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        let formats = self.parsed()?;
        if formats.len() < 2 {
            let next = "name two, or use gptq";
            return refused("mixed: formats", "at least two", formats.len(), next);
        }
        self.first().check()
    }

    fn rounds(&self) -> bool {
        true
    }

    fn begin(&self, config: &ModelConfig, seed: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        // What gptq refuses is refused here, too.
        self.first().begin(config, seed)?;
        let formats = self.parsed()?;
        let table = model::table::specs(config, &config.check()?);
        let mut bytes: Vec<(u64, u64)> = Vec::new();
        for format in &formats {
            let mut sum = (0, 0);
            for spec in table.iter().filter(|spec| spec.group == Group::Block) {
                sum.0 += stored(spec, *format)?;
                sum.1 += spec.count() as u64;
            }
            bytes.push(sum);
        }
        let numbers = bytes.first().map_or(1, |(_, count)| *count).max(1);
        let budget = (self.bits * numbers as f64 / 8.0).floor();
        let least = bytes.iter().map(|(bytes, _)| *bytes).min().unwrap_or(0);
        if !(budget >= least as f64 && self.bits <= 32.0) {
            let least = 8.0 * least as f64 / numbers as f64;
            let expected = format!("{least:.3} to 32, scales counted, with these formats");
            let next = "raise it, or choose formats of fewer bits";
            return refused("mixed: bits", expected, self.bits, next);
        }
        let budget = budget as u64;
        let gptq = Gptq::new(WeightFormats::default(), self.damping, self.least_rows);
        Ok(Box::new(Mixed { formats, budget, gptq }))
    }
}

impl MixedSettings {
    /// The formats to choose among, each once.
    fn parsed(&self) -> Result<Vec<Format>, ShrinkError> {
        let mut formats: Vec<Format> = Vec::new();
        for name in &self.formats {
            match name.parse() {
                Ok(format) if !formats.contains(&format) => formats.push(format),
                _ => {
                    let expected = format!("each once of {}", Format::names());
                    return refused("mixed: formats", expected, name, "choose such formats");
                }
            }
        }
        Ok(formats)
    }

    /// Rounding to the first of the formats.
    fn first(&self) -> GptqSettings {
        let weights = self.formats.first().cloned().unwrap_or_default();
        GptqSettings { weights, damping: self.damping, least_rows: self.least_rows }
    }
}

fn stored(spec: &ParamSpec, format: Format) -> Result<u64, ShrinkError> {
    train::stored_bytes(spec, Some(format))
        .map_err(|source| ShrinkError::Quantize { weight: spec.name.clone(), source })
}

struct Mixed {
    formats: Vec<Format>,
    /// Bytes for the matrices of layers.
    budget: u64,
    gptq: Gptq,
}

/// What one matrix costs in one format.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    bytes: u64,
    error: f64,
}

impl RunningPass for Mixed {
    fn wanted(&self) -> Wanted {
        self.gptq.wanted()
    }

    fn surveys(&self) -> Option<Wanted> {
        Some(Wanted { rows: true, squares: true, ..Wanted::default() })
    }

    fn rounds(&self) -> Option<WeightFormats> {
        self.gptq.rounds()
    }

    fn control(&self) -> Option<WeightFormats> {
        self.gptq.control()
    }

    fn allocate(&mut self, model: &Model, survey: &Survey) -> Result<(), ShrinkError> {
        let (mut names, mut items) = (Vec::new(), Vec::new());
        for (spec, weight) in model.weights() {
            let ParamPlace::Layer { stored: layer, .. } = spec.place else { continue };
            if spec.group != Group::Block {
                continue;
            }
            let values = weight.read();
            let mut costs = Vec::with_capacity(self.formats.len());
            for &format in &self.formats {
                let rounded = Weight::new(values.clone(), spec.shape.0, spec.shape.1);
                let done = rounded.quantize(format);
                done.map_err(|source| ShrinkError::Quantize { weight: spec.name.clone(), source })?;
                let groups = bank_size(model.config(), spec);
                let error = error(spec, &values, &rounded.read(), (&survey.layers[layer], groups));
                costs.push(Cost { bytes: stored(spec, format)?, error });
            }
            names.push(spec.name.clone());
            items.push(costs);
        }
        let Some(chosen) = knapsack(&items, self.budget) else {
            let next = "raise mixed: bits";
            return refused("the target: bytes", "a choice within it", self.budget, next);
        };
        self.gptq.formats = parsed("mixed", &self.text(&names, &chosen)?)?;
        Ok(())
    }

    fn act(&mut self, layer: &LayerCall<'_>) -> Result<ModelChange, ShrinkError> {
        self.gptq.act(layer)
    }

    fn finish(&mut self, model: &Model, state: &RouterState) -> Result<ModelChange, ShrinkError> {
        self.gptq.finish(model, state)
    }
}

impl Mixed {
    /// The format that most matrices have, and the others by name.
    fn text(&self, names: &[String], chosen: &[usize]) -> Result<String, ShrinkError> {
        let mut counts = vec![0; self.formats.len()];
        chosen.iter().for_each(|format| counts[*format] += 1);
        let usual = (0..counts.len()).max_by_key(|&format| (counts[format], format)).unwrap_or(0);
        let mut text = self.formats[usual].to_string();
        let others = names.iter().zip(chosen).filter(|(_, format)| **format != usual);
        for (name, &format) in others.clone() {
            text.push_str(&format!(",{name}={}", self.formats[format]));
        }
        if others.count() > EXCEPTIONS {
            let expected = format!("at most {EXCEPTIONS} matrices in another format than most");
            let found = names.len() - counts[usual];
            return refused("the target: formats", expected, found, "give other mixed: bits");
        }
        Ok(text)
    }
}

/// `sum_ij (w_ij - q_ij)^2 sum_t x_tj^2` over a weight in which `groups` matrices stand; where no
/// row met one, the mean over the others counts.
fn error(spec: &ParamSpec, w: &[f32], q: &[f32], (seen, groups): (&Seen, usize)) -> f64 {
    let ParamPlace::Layer { part, .. } = spec.place else { return 0.0 };
    let (d, each) = (spec.shape.1, w.len() / groups);
    let (mut sum, mut met) = (0.0, 0usize);
    for group in 0..groups {
        let squares = seen.group(part, group).squares;
        if squares.is_empty() {
            continue;
        }
        met += 1;
        let range = group * each..(group + 1) * each;
        for (w, q) in w[range.clone()].chunks_exact(d).zip(q[range].chunks_exact(d)) {
            let numbers = w.iter().zip(q).zip(&squares);
            sum += numbers.map(|((w, q), x)| f64::from(w - q).powi(2) * x).sum::<f64>();
        }
    }
    if met == 0 { 0.0 } else { sum * groups as f64 / met as f64 }
}

/// One of the costs of each item, with the least sum of errors within `budget` bytes: exact, over
/// sums of bytes and errors of which none is better in both. `None` where nothing fits.
fn knapsack(items: &[Vec<Cost>], budget: u64) -> Option<Vec<usize>> {
    // For each item the sums so far, with the place of the sum before and the choice.
    let mut steps: Vec<Vec<(Cost, usize, usize)>> = Vec::with_capacity(items.len());
    let mut sums = vec![Cost { bytes: 0, error: 0.0 }];
    for costs in items {
        let mut all = Vec::with_capacity(sums.len() * costs.len());
        for (before, sum) in sums.iter().enumerate() {
            for (choice, cost) in costs.iter().enumerate() {
                let bytes = sum.bytes + cost.bytes;
                if bytes <= budget {
                    all.push((Cost { bytes, error: sum.error + cost.error }, before, choice));
                }
            }
        }
        all.sort_by(|(a, ..), (b, ..)| a.bytes.cmp(&b.bytes).then(a.error.total_cmp(&b.error)));
        let mut least = f64::INFINITY;
        all.retain(|(cost, ..)| {
            let better = cost.error < least;
            least = least.min(cost.error);
            better
        });
        sums = all.iter().map(|(cost, ..)| *cost).collect();
        steps.push(all);
    }
    let mut at = sums.len().checked_sub(1)?;
    let mut chosen = vec![0; items.len()];
    for (step, chosen) in steps.iter().zip(&mut chosen).rev() {
        let (_, before, choice) = step[at];
        (*chosen, at) = (choice, before);
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::rng::{Purpose, Stream};

    /// Every choice of eight items with three formats.
    fn by_trying(items: &[Vec<Cost>], budget: u64) -> Option<f64> {
        let mut best = None;
        for mut code in 0..3usize.pow(items.len() as u32) {
            let (mut bytes, mut error) = (0, 0.0);
            for costs in items {
                let cost = costs[code % 3];
                (bytes, error) = (bytes + cost.bytes, error + cost.error);
                code /= 3;
            }
            if bytes <= budget && best.is_none_or(|least| error < least) {
                best = Some(error);
            }
        }
        best
    }

    #[test]
    fn the_knapsack_is_the_best_of_all_choices() {
        for seed in 0..20 {
            let mut dice = Stream::at(seed, Purpose::Init, 0, 0);
            let mut items = Vec::new();
            for _ in 0..8 {
                let size = 1 + (dice.uniform() * 5.0) as u64;
                let costs = (1..4).map(|b| Cost { bytes: size * b, error: dice.uniform() });
                items.push(costs.collect::<Vec<_>>());
            }
            for budget in [5, 20, 35, 50, 200] {
                let found = knapsack(&items, budget).map(|chosen| {
                    let costs = items.iter().zip(chosen).map(|(costs, choice)| costs[choice]);
                    let costs: Vec<Cost> = costs.collect();
                    assert!(costs.iter().map(|cost| cost.bytes).sum::<u64>() <= budget);
                    costs.iter().map(|cost| cost.error).sum::<f64>()
                });
                match (found, by_trying(&items, budget)) {
                    (Some(found), Some(best)) => assert!((found - best).abs() < 1e-12),
                    (found, best) => assert_eq!(found, best),
                }
            }
        }
    }
}
