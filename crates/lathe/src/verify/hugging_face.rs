//! A Hugging Face folder with `refs.safetensors` beside its weights: what Hugging Face's library
//! computed of them. The folder is imported in memory, and logits, cross-entropy, hidden states,
//! gradients under the names of the file and a greedy continuation are compared.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use checkpoint::{Dtype, TensorFile, open_safetensors};
use convert::{ConvertError, ImportedModel, base_of_adapter, imported_model};
use engine::{Generation, Sampler, generate};
use model::{Address, Model, Pass, PassCache, Probe, RouterState, RoutingEvent, Rule};
use ops::{Ops, Tensor2, Weight, backward, read_rows, scalar};
use serde::Deserialize;

use super::Check;
use super::adapters;
use super::comparison::worst;
use super::experts::{AdamW, Losses, Routers};
use super::reference::{Integers, integers, next_tokens, sequences};
use super::seen::{Seen, SeenLoss};

/// What the library computed, beside the weights.
pub(super) const REFERENCES: &str = "refs.safetensors";

/// What it says of them.
pub(super) const SETTINGS: &str = "refs.json";

/// Ids of the first sequence that the continuation begins with.
const PROMPT: usize = 10;

/// The checks of the folder at `path`, or why the folder is refused.
pub(super) fn checks(path: &Path, ops: Ops) -> Result<Result<Vec<Check>, String>> {
    let base = match adapters::is_adapter(path).then(|| base_of_adapter(path)).transpose() {
        Ok(base) => base,
        Err(why) => return beyond(why),
    };
    let file = path.join(REFERENCES);
    let settings = path.join(SETTINGS);
    let text = crate::open::text_file(&settings)?;
    let settings =
        serde_json::from_str(&text).with_context(|| format!("settings {}", settings.display()))?;
    let recorded = Recorded { file: open_safetensors(&file)?, ids: integers(&file)?, settings };
    if let Some(base) = base {
        return adapters::checks(path, &base, &recorded, ops);
    }
    ensure!(
        recorded.settings.losses.ce.is_some(),
        "settings {}: ce is missing, expected the cross-entropy of the batch",
        path.join(SETTINGS).display()
    );
    match imported_model(path) {
        Ok(imported) => recorded.compare(path, &imported, ops).map(Ok),
        Err(why) => beyond(why),
    }
}

/// What is out of reach is refused by its name; what is damaged is an error.
pub(super) fn beyond<T>(why: ConvertError) -> Result<Result<T, String>> {
    if why.is_beyond() { Ok(Err(why.to_string())) } else { Err(why.into()) }
}

/// The numbers of `refs.json` that are compared.
#[derive(Debug, Deserialize)]
pub(super) struct Settings {
    #[serde(flatten)]
    losses: Losses,
    /// The cross-entropy in double precision, as adapters have it.
    loss_f64: Option<f64>,
    /// The smallest gap between the two largest logits of the continuation, where there is one.
    greedy_margin: Option<f64>,
    /// Those of a batch with padding.
    pub(super) padded: Option<Losses>,
    pub(super) adamw: Option<AdamW>,
}

impl Settings {
    /// The cross-entropy of an adapted model, where there is one.
    pub(super) fn loss(&self) -> Option<f64> {
        self.loss_f64.or(self.losses.loss)
    }
}

/// What the library computed.
pub(super) struct Recorded {
    pub(super) file: TensorFile,
    pub(super) ids: Integers,
    pub(super) settings: Settings,
}

/// What a pass of the imported model gave; its gradients lie in the weights.
pub(super) struct Passed {
    pub(super) logits: Vec<f32>,
    pub(super) ce: f32,
    pub(super) losses: Vec<SeenLoss>,
    seen: Seen,
    routers: Routers,
}

/// Tells the probe of streams and losses, and the one of routers.
struct Both<'a>(&'a mut Seen, &'a mut Routers);

impl Probe for Both<'_> {
    fn stream(&mut self, x_td: &Tensor2) {
        self.0.stream(x_td);
    }

    fn routed(&mut self, event: &RoutingEvent<'_>) {
        self.1.routed(event);
    }

    fn loss(&mut self, name: &'static str, value: f32, weight: f32) {
        self.0.loss(name, value, weight);
    }
}

/// Forward and backward over `sequences`, from gradients of zero.
pub(super) fn pass(model: &Model, state: &RouterState, sequences: &[Vec<u32>], ops: Ops) -> Passed {
    model.collect_gradients(true);
    let batch = next_tokens(sequences);
    let (mut seen, mut routers) = (Seen::default(), Routers::default());
    let rule = Rule::NonCausal;
    let mut kv = PassCache::new(false);
    let mut pass = Pass {
        ops,
        kv: &mut kv,
        rule: &rule,
        state,
        probe: &mut Both(&mut seen, &mut routers),
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
    let found = scalar(&ce);
    let gradients = backward(&ce);
    if ops != Ops::Fast {
        model.weights().iter().for_each(|(_, w)| w.take_plain_gradient(&gradients));
    }
    drop(gradients);
    Passed { logits, ce: found, losses: std::mem::take(&mut seen.losses), seen, routers }
}

impl Recorded {
    fn compare(&self, path: &Path, imported: &ImportedModel, ops: Ops) -> Result<Vec<Check>> {
        let model = &imported.model;
        let sequences = sequences(&self.ids, "input_ids")?;
        let vocab = model.config().vocab_size;
        let outside = sequences.iter().flatten().find(|&&id| id as usize >= vocab);
        ensure!(outside.is_none(), "input_ids has {outside:?}, the vocabulary {vocab}");
        let passed = pass(model, &imported.state, &sequences, ops);
        let mut checks = vec![self.logits(&passed.logits)?, self.cross_entropy(passed.ce)];
        checks.extend(self.settings.losses.checks(&passed));
        let blocks = self.blocks(passed.seen.stream.len())?;
        checks.extend(self.routing(&passed.routers, blocks)?);
        checks.push(self.hidden(&passed.seen, blocks)?);
        checks.push(self.gradients(imported)?);
        checks.extend(self.padded(imported, ops)?);
        model.collect_gradients(false);
        if self.ids.contains_key("greedy") || self.settings.greedy_margin.is_some() {
            checks.push(self.greedy(imported, &sequences)?);
        }
        checks.extend(self.adamw(path, ops)?);
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
        worst(
            &mut check,
            (f64::from(found) - self.settings.losses.ce.unwrap_or(f64::NAN)).abs(),
            "ce",
        );
        check
    }

    /// How many layers of ours a layer of the library's class is: the library has a hidden state
    /// ahead of each of its layers and one at the end, the model `streams`.
    fn blocks(&self, streams: usize) -> Result<usize> {
        let recorded = self.file.names().filter(|name| name.starts_with("hidden.")).count();
        let blocks = streams.saturating_sub(1).checked_div(recorded.saturating_sub(1));
        blocks
            .filter(|blocks| *blocks > 0 && blocks * (recorded - 1) == streams - 1)
            .with_context(|| format!("{recorded} hidden states recorded, the model has {streams}"))
    }

    fn hidden(&self, seen: &Seen, blocks: usize) -> Result<Check> {
        let mut check = Check { what: "hidden".into(), tolerance: 1e-4, ..Check::default() };
        for (i, found) in seen.stream.iter().step_by(blocks).enumerate() {
            let name = format!("hidden.{i}");
            near(&mut check, &name, found, &self.numbers(&name)?)?;
        }
        Ok(check)
    }

    /// Each tensor of the file against its largest entry.
    fn gradients(&self, imported: &ImportedModel) -> Result<Check> {
        self.compare_by_name(imported, "grad.", |weight| weight.read_gradient())
    }

    /// What `read` gives of each weight beside the tensors of `prefix`, against the largest entry
    /// of each, or a thousandth of the largest of all: a gradient that is 0 by its formula, such as
    /// of a bias of keys without positions, is rounding on both sides.
    pub(super) fn compare_by_name(
        &self,
        imported: &ImportedModel,
        prefix: &str,
        read: impl Fn(&Weight) -> Option<Vec<f32>>,
    ) -> Result<Check> {
        let mut check = Check { what: "gradients".into(), tolerance: 1e-4, ..Check::default() };
        let mut largest: BTreeMap<String, f64> = BTreeMap::new();
        for name in self.file.names().filter(|name| name.starts_with(prefix)) {
            let most = self.numbers(name)?.iter().fold(0.0f64, |most, e| most.max(e.abs()));
            largest.insert(name.to_owned(), most);
        }
        let floor = 1e-3 * largest.values().copied().fold(0.0f64, f64::max);
        self.each_tensor(imported, prefix, read, |name, f, e| {
            let error = (f - e).abs();
            let error = if error == 0.0 { 0.0 } else { error / largest[name].max(floor) };
            worst(&mut check, error, name);
        })?;
        Ok(check)
    }

    /// Calls `each` with the tensor, found and expected number of all tensors of `prefix`, which
    /// must all belong to the model.
    pub(super) fn each_tensor(
        &self,
        imported: &ImportedModel,
        prefix: &str,
        read: impl Fn(&Weight) -> Option<Vec<f32>>,
        mut each: impl FnMut(&str, f64, f64),
    ) -> Result<()> {
        let mut left: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for name in self.file.names().filter(|name| name.starts_with(prefix)) {
            left.insert(name.to_owned(), self.numbers(name)?);
        }
        // Of a padded batch some gradients alone are recorded.
        let in_part = prefix.starts_with("padded");
        let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (spec, weight) in imported.model.weights() {
            let ours = read(weight).unwrap_or_else(|| vec![0.0; spec.count()]);
            let mut at = 0;
            for piece in imported.pieces(&spec.name) {
                let name = format!("{prefix}{}", piece.tensor);
                let mine = &ours[at..at + piece.places.len()];
                at += piece.places.len();
                let Some(expected) = left.get(&name) else {
                    ensure!(in_part, "tensor {name} is missing");
                    continue;
                };
                let length = expected.len();
                let theirs = found.entry(name).or_insert_with(|| vec![f64::NAN; length]);
                for (&place, from) in piece.places.iter().zip(mine) {
                    let to = theirs.get_mut(place);
                    *to.with_context(|| format!("{prefix}{} is short", piece.tensor))? =
                        f64::from(*from);
                }
            }
        }
        for (name, found) in found {
            let expected = left.remove(&name).unwrap_or_default();
            found.iter().zip(&expected).for_each(|(f, e)| each(&name, *f, *e));
        }
        // A buffer of ours, which no step moves here, is a weight of the library's; what it stores
        // and never reads has a gradient of zeros.
        let is_weight = |(name, numbers): &(&String, &Vec<f64>)| {
            let is_unread = prefix == "grad." && numbers.iter().all(|x| *x == 0.0);
            !name.ends_with("e_score_correction_bias") && !is_unread
        };
        let surplus = left.iter().find(is_weight).map(|(name, _)| name);
        ensure!(surplus.is_none(), "{surplus:?} belongs to no weight of the model");
        Ok(())
    }

    /// Tokens that differ, through the cache that generation uses.
    fn greedy(&self, imported: &ImportedModel, sequences: &[Vec<u32>]) -> Result<Check> {
        let mut check = Check { what: "greedy".into(), ..Check::default() };
        let (_, expected) = self.ids.get("greedy").context("tensor greedy is missing")?;
        let prompt = sequences.first().and_then(|ids| ids.get(..PROMPT));
        let prompt = prompt.with_context(|| format!("input_ids has less than {PROMPT} ids"))?;
        // The library goes on beyond the positions that a model was made for.
        let room = imported.model.config().context.saturating_sub(prompt.len());
        let expected = &expected[..expected.len().min(room)];
        if expected.is_empty() {
            return Ok(check);
        }
        let what = Generation {
            prompt,
            max_tokens: expected.len(),
            stop: &[],
            sampler: &Sampler::greedy(),
            rule: &Rule::NonCausal,
            state: &imported.state,
            max_depth: None,
            choice: 0,
            constraint: None,
        };
        let tokens = generate(&imported.model, &what, &mut |_| true)?.tokens;
        let found = tokens.iter().map(|token| i64::from(token.id));
        let differ = found.zip(expected).filter(|(found, expected)| found != *expected).count();
        let short = expected.len() - tokens.len();
        worst(&mut check, (differ + short) as f64, "greedy");
        Ok(check)
    }

    /// A tensor of floats in double precision.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f64>> {
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
pub(super) fn near(check: &mut Check, name: &str, found: &[f32], expected: &[f64]) -> Result<()> {
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
