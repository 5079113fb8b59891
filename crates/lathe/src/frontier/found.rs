//! What a frontier found: results by method and strength, differences from controls, and what is
//! not beaten in both quality and size.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use study::{Frontier, FrontierPoint, Paired, Sheet, mean_and_deviation, paired, undominated};

use super::{BEGIN, MOST_RECORD};

/// What became of a method at one strength on one model.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The numbers of a model that was made smaller.
    Done(Box<Done>),
    /// Why nothing could be.
    Failed(String),
}

/// What was measured of one model that was made smaller.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    /// Bits per byte before all passes.
    pub(crate) bits_before: f64,
    /// Bits per byte after them.
    pub(crate) bits: f64,
    /// Nats a prediction after them.
    pub(crate) nats: f64,
    /// Bytes of all weights before.
    pub(crate) bytes_before: f64,
    /// Bytes of all weights after.
    pub(crate) bytes: f64,
    /// Forward FLOPs per token before, every product counted.
    pub(crate) flops_before: f64,
    /// Forward FLOPs per token after.
    pub(crate) flops: f64,
    /// Numbers of layers that are zero, as a share.
    pub(crate) zeros: f64,
}

impl Outcome {
    /// A record of the result `key` that was written before.
    pub(crate) fn read(path: &Path, key: &str) -> Result<Option<Self>> {
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let bytes = files::read(path, MOST_RECORD)
            .with_context(|| format!("reading {}", path.display()))?;
        let record: Option<Value> = serde_json::from_slice(&bytes).ok();
        let record = record.filter(|record| record["result"] == key);
        let outcome = record.and_then(|record| Self::of(&record["report"]));
        let expected =
            "expected the record of `lathe frontier` of this name: remove it to measure again";
        Ok(Some(outcome.with_context(|| format!("{}: {expected}", path.display()))?))
    }

    /// The numbers of a report of passes.
    pub(crate) fn of(report: &Value) -> Option<Self> {
        let number = |key: &str| report[key].as_f64();
        let bits = number("bits_per_byte_after")?;
        let each = number("held_out_bytes")? / number("held_out_predictions")?;
        Some(Self::Done(Box::new(Done {
            bits_before: number("bits_per_byte_before")?,
            bits,
            nats: bits * std::f64::consts::LN_2 * each,
            bytes_before: number("bytes_before")?,
            bytes: number("bytes_after")?,
            flops_before: report["before"]["forward_flops_full"].as_f64()?,
            flops: report["after"]["forward_flops_full"].as_f64()?,
            zeros: number("zeros")?,
        })))
    }

    pub(crate) fn done(&self) -> Option<&Done> {
        match self {
            Self::Done(done) => Some(done),
            Self::Failed(_) => None,
        }
    }
}

/// A method at one strength, over all models.
pub(crate) struct Group {
    /// Number of the method in the study.
    pub(crate) method: usize,
    /// Number of the strength among the method's.
    pub(crate) strength: usize,
    /// The strength in words, empty where nothing varies.
    pub(crate) label: String,
    /// Results in the order of the models, where there are any.
    pub(crate) done: Vec<Done>,
    /// Why others failed, each reason once.
    pub(crate) failures: Vec<String>,
    /// Whether there is a result on every model.
    pub(crate) whole: bool,
    /// Whether no other group has both fewer bits per byte and fewer bytes, by means over all
    /// models.
    pub(crate) undominated: bool,
}

impl Group {
    pub(crate) fn mean(&self, number: impl Fn(&Done) -> f64) -> Option<f64> {
        let numbers: Vec<f64> = self.done.iter().map(number).collect();
        (!numbers.is_empty()).then(|| mean_and_deviation(&numbers).0)
    }

    pub(crate) fn deviation(&self, number: impl Fn(&Done) -> f64) -> Option<f64> {
        let numbers: Vec<f64> = self.done.iter().map(number).collect();
        if numbers.is_empty() { None } else { mean_and_deviation(&numbers).1 }
    }
}

/// A method beside its control, at one strength.
pub(crate) struct Duel {
    /// Name of the method.
    pub(crate) method: String,
    /// Name of its control.
    pub(crate) control: String,
    /// The strength of both, in words.
    pub(crate) label: String,
    /// Differences of nats a prediction, model by model.
    pub(crate) paired: Paired,
}

/// Everything that was asked for and what came out.
pub(crate) struct Found<'a> {
    /// The study that they are of.
    pub(crate) study: &'a Frontier,
    /// The results that were asked for.
    pub(crate) points: Vec<FrontierPoint>,
    /// Their names in the folder of results.
    pub(crate) keys: Vec<String>,
    /// One for each point.
    pub(crate) outcomes: Vec<Outcome>,
    /// Methods at their strengths, over all models.
    pub(crate) groups: Vec<Group>,
    /// Methods beside their controls, strength by strength.
    pub(crate) duels: Vec<Duel>,
}

impl<'a> Found<'a> {
    pub(crate) fn new(
        study: &'a Frontier,
        points: Vec<FrontierPoint>,
        keys: Vec<String>,
        outcomes: Vec<Outcome>,
    ) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for (point, outcome) in points.iter().zip(&outcomes) {
            let same =
                |group: &Group| (group.method, group.strength) == (point.method, point.strength);
            let at = match groups.iter().position(same) {
                Some(at) => at,
                None => {
                    groups.push(Group {
                        method: point.method,
                        strength: point.strength,
                        label: point.label.clone(),
                        done: Vec::new(),
                        failures: Vec::new(),
                        whole: false,
                        undominated: false,
                    });
                    groups.len() - 1
                }
            };
            match outcome {
                Outcome::Done(done) => groups[at].done.push((**done).clone()),
                Outcome::Failed(error) if groups[at].failures.contains(error) => {}
                Outcome::Failed(error) => groups[at].failures.push(error.clone()),
            }
        }
        for group in &mut groups {
            group.whole = group.done.len() == study.checkpoints.len();
        }
        let means: Vec<(f64, f64)> = groups
            .iter()
            .map(|group| match (group.whole, group.mean(|d| d.bytes), group.mean(|d| d.bits)) {
                (true, Some(bytes), Some(bits)) => (bytes, bits),
                _ => (f64::INFINITY, f64::INFINITY),
            })
            .collect();
        let best = undominated(&means);
        groups.iter_mut().zip(best).for_each(|(group, best)| group.undominated = best);
        let mut found = Self { study, points, keys, outcomes, groups, duels: Vec::new() };
        found.duels = found.compare();
        found
    }

    /// Results of one method at one strength, by model.
    fn nats(&self, method: usize, strength: usize) -> Vec<Option<f64>> {
        let of = self.points.iter().zip(&self.outcomes);
        let of = of.filter(|(point, _)| (point.method, point.strength) == (method, strength));
        of.map(|(_, outcome)| outcome.done().map(|done| done.nats)).collect()
    }

    fn compare(&self) -> Vec<Duel> {
        let mut duels = Vec::new();
        for group in &self.groups {
            let method = &self.study.methods[group.method];
            let Some(control) = &method.control else { continue };
            let other = self.study.methods.iter().position(|other| other.name == *control);
            let Some(other) = other else { continue };
            let ours = self.nats(group.method, group.strength);
            let theirs = self.nats(other, group.strength);
            let both = ours.iter().zip(&theirs).filter_map(|(a, b)| Some(((*a)?, (*b)?)));
            let (ours, theirs): (Vec<f64>, Vec<f64>) = both.unzip();
            let Some(paired) = paired(&ours, &theirs) else { continue };
            duels.push(Duel {
                method: method.name.clone(),
                control: control.clone(),
                label: group.label.clone(),
                paired,
            });
        }
        duels
    }

    /// A line for each result.
    pub(crate) fn sheet(&self) -> Sheet {
        let more = [
            "bits_per_byte_before",
            "bits_per_byte",
            "nats_per_token",
            "bytes_before",
            "bytes",
            "forward_flops_before",
            "forward_flops",
            "zeros",
            "result",
            "error",
        ];
        let columns = BEGIN.split(',').filter(|name| !name.is_empty()).chain(more);
        let mut lines = Vec::new();
        for ((point, key), outcome) in self.points.iter().zip(&self.keys).zip(&self.outcomes) {
            let mut line = vec![
                self.study.methods[point.method].name.clone(),
                point.label.clone(),
                self.study.checkpoints[point.model].clone(),
            ];
            let (numbers, error) = match outcome {
                Outcome::Done(done) => (numbers(done).map(|(_, n)| n.to_string()), ""),
                Outcome::Failed(error) => (Default::default(), error.as_str()),
            };
            line.extend(numbers);
            line.extend([key.clone(), error.to_owned()]);
            lines.push(line);
        }
        Sheet { columns: columns.map(str::to_owned).collect(), lines }
    }

    /// Everything that the page has, for programs.
    pub(crate) fn record(&self) -> Value {
        let points = self.points.iter().zip(&self.keys).zip(&self.outcomes);
        let results: Vec<Value> = points
            .map(|((point, key), outcome)| {
                let mut result = json!({
                    "result": key, "method": self.study.methods[point.method].name,
                    "strength": point.label, "passes": point.passes, "seed": point.seed,
                    "checkpoint": self.study.checkpoints[point.model],
                });
                match outcome {
                    Outcome::Done(done) => {
                        for (name, number) in numbers(done) {
                            result[name] = number.into();
                        }
                    }
                    Outcome::Failed(error) => result["error"] = error.as_str().into(),
                }
                result
            })
            .collect();
        let duels = self.duels.iter().map(|duel| {
            json!({
                "method": duel.method, "control": duel.control, "strength": duel.label,
                "nats_per_token": duel.paired,
            })
        });
        json!({
            "name": self.study.name, "version": env!("CARGO_PKG_VERSION"),
            "text": self.study.text, "calibration_rows": self.study.calibration_rows,
            "windows": self.study.windows, "results": results,
            "pairs": duels.collect::<Vec<_>>(),
        })
    }
}

/// The numbers of a result by their columns.
fn numbers(done: &Done) -> [(&'static str, f64); 8] {
    [
        ("bits_per_byte_before", done.bits_before),
        ("bits_per_byte", done.bits),
        ("nats_per_token", done.nats),
        ("bytes_before", done.bytes_before),
        ("bytes", done.bytes),
        ("forward_flops_before", done.flops_before),
        ("forward_flops", done.flops),
        ("zeros", done.zeros),
    ]
}
