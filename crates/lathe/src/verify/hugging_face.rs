//! A Hugging Face folder with `refs.safetensors` beside its weights: what Hugging Face's library
//! computed of them. The folder is imported in memory, and logits, cross-entropy, hidden states,
//! gradients under the names of the file and a greedy continuation are compared.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use checkpoint::{Dtype, TensorFile, open_safetensors};
use convert::{ImportedModel, imported_model};
use engine::{Generation, Sampler, generate};
use model::{Address, Pass, PassCache, RouterState, Rule};
use ops::{Ops, backward, read_rows, scalar};
use serde::Deserialize;

use super::Check;
use super::comparison::worst;
use super::reference::{Integers, integers, next_tokens, sequences};
use super::seen::Seen;

/// What the library computed, beside the weights.
pub(super) const REFERENCES: &str = "refs.safetensors";

/// What it says of them.
const SETTINGS: &str = "refs.json";

/// Ids of the first sequence that the continuation begins with.
const PROMPT: usize = 10;

/// The checks of the folder at `path`, or why the folder is refused.
pub(super) fn checks(path: &Path, ops: Ops) -> Result<Result<Vec<Check>, String>> {
    let file = path.join(REFERENCES);
    let settings = path.join(SETTINGS);
    let text = crate::open::text_file(&settings)?;
    let settings =
        serde_json::from_str(&text).with_context(|| format!("settings {}", settings.display()))?;
    let recorded = Recorded { file: open_safetensors(&file)?, ids: integers(&file)?, settings };
    match imported_model(path) {
        Ok(imported) => recorded.compare(&imported, ops).map(Ok),
        Err(why) => Ok(Err(why.to_string())),
    }
}

/// The numbers of `refs.json` that are compared.
#[derive(Debug, Deserialize)]
struct Settings {
    ce: f64,
}

/// What the library computed.
struct Recorded {
    file: TensorFile,
    ids: Integers,
    settings: Settings,
}

impl Recorded {
    fn compare(&self, imported: &ImportedModel, ops: Ops) -> Result<Vec<Check>> {
        let model = &imported.model;
        model.collect_gradients(true);
        let sequences = sequences(&self.ids, "input_ids")?;
        let vocab = model.config().vocab_size;
        let outside = sequences.iter().flatten().find(|&&id| id as usize >= vocab);
        ensure!(outside.is_none(), "input_ids has {outside:?}, the vocabulary {vocab}");
        let batch = next_tokens(&sequences);
        let mut seen = Seen::default();
        let (rule, state) = (Rule::NonCausal, RouterState::default());
        let mut kv = PassCache::new(false);
        let mut pass = Pass {
            ops,
            kv: &mut kv,
            rule: &rule,
            state: &state,
            probe: &mut seen,
            record: true,
            recompute: false,
            address: Address::default(),
            sequences: sequences.len(),
            loads: &[],
            pool: Default::default(),
        };
        let passed = model.forward(&batch.ids, &batch.rows, &mut pass);
        let logits = read_rows(&model.logits(passed.x_td.clone(), &pass));
        let weights = batch.weights(1.0 / batch.counted().max(1) as f32);
        let (ce, _) = model.head_loss(ops, passed.x_td, &batch.targets, &weights);
        let found_ce = scalar(&ce);
        let gradients = backward(&ce);
        if ops == Ops::Plain {
            model.weights().iter().for_each(|(_, w)| w.take_plain_gradient(&gradients));
        }
        drop(gradients);
        let mut checks = vec![self.logits(&logits)?, self.cross_entropy(found_ce)];
        checks.push(self.hidden(&seen)?);
        checks.push(self.gradients(imported)?);
        model.collect_gradients(false);
        checks.push(self.greedy(imported, &sequences)?);
        Ok(checks)
    }

    /// In the double precision that the library has too, where it is recorded.
    fn logits(&self, found: &[f32]) -> Result<Check> {
        let mut check = Check { what: "logits".into(), tolerance: 1e-4, ..Check::default() };
        let name = if self.file.shape("logits_f64").is_some() { "logits_f64" } else { "logits" };
        near(&mut check, name, found, &self.numbers(name)?)?;
        Ok(check)
    }

    /// The loss of the next token, a mean over all tokens but the last of each sequence.
    fn cross_entropy(&self, found: f32) -> Check {
        let mut check = Check { what: "ce".into(), tolerance: 2e-5, ..Check::default() };
        worst(&mut check, (f64::from(found) - self.settings.ce).abs(), "ce");
        check
    }

    fn hidden(&self, seen: &Seen) -> Result<Check> {
        let mut check = Check { what: "hidden".into(), tolerance: 1e-4, ..Check::default() };
        let recorded = self.file.names().filter(|name| name.starts_with("hidden.")).count();
        ensure!(
            recorded == seen.stream.len(),
            "{recorded} hidden states recorded, the model has {}",
            seen.stream.len()
        );
        for (i, found) in seen.stream.iter().enumerate() {
            let name = format!("hidden.{i}");
            near(&mut check, &name, found, &self.numbers(&name)?)?;
        }
        Ok(check)
    }

    /// Each tensor of the file against its largest entry.
    fn gradients(&self, imported: &ImportedModel) -> Result<Check> {
        let mut check = Check { what: "gradients".into(), tolerance: 1e-4, ..Check::default() };
        let mut left: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for name in self.file.names().filter(|name| name.starts_with("grad.")) {
            left.insert(name.to_owned(), self.numbers(name)?);
        }
        let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (spec, weight) in imported.model.weights() {
            let ours = weight.read_gradient().unwrap_or_else(|| vec![0.0; spec.count()]);
            let mut at = 0;
            for piece in imported.pieces(&spec.name) {
                let name = format!("grad.{}", piece.tensor);
                let length = left.get(&name).map_or(0, Vec::len);
                let theirs = found.entry(name).or_insert_with(|| vec![f64::NAN; length]);
                let part = theirs.get_mut(piece.range.clone());
                let part = part.with_context(|| format!("grad.{} is missing", piece.tensor))?;
                for (to, from) in part.iter_mut().zip(&ours[at..]) {
                    *to = f64::from(*from);
                }
                at += piece.range.len();
            }
        }
        for (name, found) in found {
            let expected = left.remove(&name).unwrap_or_default();
            let largest = expected.iter().fold(0.0f64, |most, e| most.max(e.abs()));
            for (f, e) in found.iter().zip(&expected) {
                let error = (f - e).abs();
                worst(&mut check, if error == 0.0 { 0.0 } else { error / largest }, &name);
            }
        }
        let surplus = left.keys().next();
        ensure!(surplus.is_none(), "{surplus:?} belongs to no weight of the model");
        Ok(check)
    }

    /// Tokens that differ, through the cache that generation uses.
    fn greedy(&self, imported: &ImportedModel, sequences: &[Vec<u32>]) -> Result<Check> {
        let mut check = Check { what: "greedy".into(), ..Check::default() };
        let (_, expected) = self.ids.get("greedy").context("tensor greedy is missing")?;
        let prompt = sequences.first().and_then(|ids| ids.get(..PROMPT));
        let what = Generation {
            prompt: prompt.with_context(|| format!("input_ids has less than {PROMPT} ids"))?,
            max_tokens: expected.len(),
            stop: &[],
            sampler: &Sampler::greedy(),
            rule: &Rule::NonCausal,
            state: &RouterState::default(),
            max_depth: None,
            choice: 0,
        };
        let tokens = generate(&imported.model, &what, &mut |_| true)?.tokens;
        let found = tokens.iter().map(|token| i64::from(token.id));
        let differ = found.zip(expected).filter(|(found, expected)| found != *expected).count();
        let short = expected.len() - tokens.len();
        worst(&mut check, (differ + short) as f64, "greedy");
        Ok(check)
    }

    /// A tensor of floats in double precision.
    fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        ensure!(self.file.shape(name).is_some(), "tensor {name} is missing");
        if self.file.dtype(name) == Some(Dtype::F64) {
            let bytes = self.file.read_bytes(name, Dtype::F64)?;
            let numbers =
                bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")));
            return Ok(numbers.collect());
        }
        Ok(self.file.read_f32(name)?.into_iter().map(f64::from).collect())
    }
}

/// The largest difference over `max(1, largest / 10)`: rounding grows with the numbers.
fn near(check: &mut Check, name: &str, found: &[f32], expected: &[f64]) -> Result<()> {
    ensure!(
        expected.len() == found.len(),
        "{name} has {} numbers, found {}",
        expected.len(),
        found.len()
    );
    let largest = expected.iter().fold(0.0f64, |most, e| most.max(e.abs()));
    for (&f, &e) in found.iter().zip(expected) {
        worst(check, (f64::from(f) - e).abs() / (largest / 10.0).max(1.0), name);
    }
    Ok(())
}
