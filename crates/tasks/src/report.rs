//! Metrics with standard errors and records of single items.

use std::io::Write;

use serde::Serialize;
use serde_json::{Map, Value};

/// What a task says about a model.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskReport {
    /// Name of the task.
    pub task: String,
    /// Name of the kind of task, as task files spell it.
    pub kind: &'static str,
    /// In the order of the kind, the first one is what the kind is known for.
    pub metrics: Vec<Metric>,
    /// One an item, in the order of the file.
    pub records: Vec<ItemRecord>,
}

/// One number of a report.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// Its name in lm-evaluation-harness.
    pub name: &'static str,
    /// Weighted mean over all items, in the unit of the measure.
    pub value: f64,
    /// Of `value`, from the scatter between items; none for a single item.
    pub standard_error: Option<f64>,
    /// Whether a better model has a higher value.
    pub higher_is_better: bool,
}

/// One item of a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ItemRecord {
    /// Name of the task.
    pub task: String,
    /// Place among the items, from 0.
    pub item: usize,
    /// Line of the file, from 1.
    pub line: usize,
    /// Summed natural logarithms of each choice's probability.
    pub log_likelihoods: Vec<f64>,
    /// Whether each choice is what the model would have said.
    pub greedy: Vec<bool>,
    /// The choice of the highest log-likelihood, the first of equals; none where there is nothing
    /// to choose.
    pub prediction: Option<usize>,
    /// Index of the right choice, if the item has one.
    pub answer: Option<usize>,
    /// Whether the first metric counts the item as right; none for perplexities.
    pub correct: Option<bool>,
    /// The metrics of this item alone; one that overflows is written as null.
    pub metrics: Map<String, Value>,
}

impl ItemRecord {
    /// Whether `line` is what [`TaskReport::write_records`] writes of an item.
    pub fn is_in(line: &str) -> bool {
        const FIELDS: [&str; 9] = [
            "task",
            "item",
            "line",
            "log_likelihoods",
            "greedy",
            "prediction",
            "answer",
            "correct",
            "metrics",
        ];
        let Ok(fields) = serde_json::from_str::<Map<String, Value>>(line) else { return false };
        fields.len() == FIELDS.len() && FIELDS.iter().all(|field| fields.contains_key(*field))
    }
}

impl TaskReport {
    /// Writes the records as JSONL.
    ///
    /// # Errors
    /// What the writer refuses.
    pub fn write_records(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for record in &self.records {
            serde_json::to_writer(&mut *out, record)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// What one item gives to one metric: metrics are functions of the ratio of summed amounts to
/// summed weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Score {
    pub(crate) amount: f64,
    pub(crate) weight: f64,
}

impl Score {
    /// One for a right answer, zero for a wrong one, of weight one.
    pub(crate) fn of(right: bool) -> Self {
        Self { amount: f64::from(u8::from(right)), weight: 1.0 }
    }
}

/// How the ratio becomes the metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    /// The sum of amounts over the sum of weights.
    Mean,
    /// `exp(-ratio)`, where amounts are log-likelihoods in nats.
    Perplexity,
    /// `-ratio / ln 2` of log-likelihoods.
    Bits,
}

impl Shape {
    pub(crate) fn value(self, ratio: f64) -> f64 {
        match self {
            Self::Mean => ratio,
            Self::Perplexity => (-ratio).exp(),
            Self::Bits => -ratio / std::f64::consts::LN_2,
        }
    }

    /// Magnitude of the derivative.
    fn slope(self, ratio: f64) -> f64 {
        match self {
            Self::Mean => 1.0,
            Self::Perplexity => (-ratio).exp(),
            Self::Bits => 1.0 / std::f64::consts::LN_2,
        }
    }
}

/// A metric of a kind.
#[derive(Debug)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) about: &'static str,
}

/// One metric over all items. Its standard error is that of a ratio estimator over n items drawn at
/// random, `sqrt(n / (n - 1) * sum (amount - ratio * weight)^2) / sum weight`, times the slope of
/// the metric's shape; for equal weights this is the sample's standard deviation over the root of
/// n. lm-evaluation-harness gives the same for accuracies, draws samples for the perplexity of a
/// last word, and gives none for documents.
pub(crate) fn metric(measure: &Measure, scores: &[Score]) -> Metric {
    let weight: f64 = scores.iter().map(|s| s.weight).sum();
    let ratio = scores.iter().map(|s| s.amount).sum::<f64>() / weight;
    let n = scores.len() as f64;
    let scatter: f64 = scores.iter().map(|s| (s.amount - ratio * s.weight).powi(2)).sum();
    let error = (n / (n - 1.0) * scatter).sqrt() / weight * measure.shape.slope(ratio);
    Metric {
        name: measure.name,
        value: measure.shape.value(ratio),
        standard_error: (scores.len() > 1).then_some(error),
        higher_is_better: measure.shape == Shape::Mean,
    }
}
