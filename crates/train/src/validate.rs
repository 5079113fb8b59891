//! Loss on held-out text under the rule of training and under the causal rule, side by side.

use std::collections::BTreeMap;

use data::{Window, Windows};
use engine::{Batch, RowScore, Scoring, causal_rule_with, deciding_logits, disagreement, score};
use model::cost::mean_depth;
use model::{Model, NoProbe, Probe, RouterState, Rule};
use ops::Ops;
use processes::{Alone, Processes, share};
use serde::Serialize;

use crate::{TrainError, pack, tell};

/// Rows that a pass of validation has at most, unless one window is longer.
pub(crate) const ROWS_OF_A_PASS: usize = 4096;

/// Sums over some predictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SourceScore {
    /// Predictions that count, each of one token from those before it.
    pub predictions: u64,
    /// Bytes of the original text that the predicted tokens stand for.
    pub bytes: u64,
    /// Mean negative log-likelihood, nats per prediction.
    pub nll: f64,
    /// Bits per byte of text.
    pub bits_per_byte: f64,
}

impl SourceScore {
    /// `exp(nll)`: the number of equally likely tokens that would be as hard to predict.
    pub fn perplexity(&self) -> f64 {
        self.nll.exp()
    }

    fn add(&mut self, nll: f64, bytes: u64) {
        self.predictions += 1;
        self.bytes += bytes;
        self.nll += nll;
    }

    /// From sums to means.
    fn finish(self) -> Self {
        let bits = self.nll / std::f64::consts::LN_2;
        Self {
            nll: self.nll / self.predictions.max(1) as f64,
            bits_per_byte: bits / self.bytes.max(1) as f64,
            ..self
        }
    }
}

/// Loss and depths of the windows under one routing rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RuleScore {
    /// Over the text of every source.
    pub all: SourceScore,
    /// The same, apart for each source of the data, by its name.
    pub sources: BTreeMap<String, SourceScore>,
    /// Rows by number of recursions, from 0.
    pub depths: Vec<u64>,
}

impl RuleScore {
    /// Mean number of recursions.
    pub fn mean_depth(&self) -> f64 {
        mean_depth(&self.depths)
    }
}

/// The same windows under the rule of training and under the causal rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Validation {
    /// Windows scored, the same ones for both rules.
    pub windows: u64,
    /// With the rule of training (rows of a sequence compared).
    pub training: RuleScore,
    /// With the causal rule.
    pub causal: RuleScore,
    /// Share of rows that get another depth.
    pub disagreement: f64,
    /// The causal rule that was calibrated and scored, which a checkpoint keeps.
    #[serde(skip)]
    pub rule: Option<Rule>,
}

/// Scores one rule on windows, one pass for each `chunk` of them.
pub fn score_rule(
    model: &Model,
    windows: &Windows,
    chunks: &[Vec<Window>],
    document_mask: bool,
    how: &Scoring<'_>,
) -> (RuleScore, Vec<RowScore>) {
    score_watched(model, windows, chunks, document_mask, how, None)
}

/// The same with everything that routers decide told to a probe, to which the sequences are the
/// windows with these numbers, in the order of all chunks. For causal rules: others may throw dice
/// by the numbers of sequences.
pub fn score_watched(
    model: &Model,
    windows: &Windows,
    chunks: &[Vec<Window>],
    document_mask: bool,
    how: &Scoring<'_>,
    mut watch: Option<(&[u64], &mut dyn Probe)>,
) -> (RuleScore, Vec<RowScore>) {
    let mut all = Vec::new();
    let mut first = 0;
    for chunk in chunks {
        let mut batch = pack(chunk, document_mask);
        match &mut watch {
            Some((numbers, probe)) => {
                let of_chunk = &numbers[first..first + chunk.len()];
                let number = |sequence: &u32| of_chunk[*sequence as usize] as u32;
                batch.rows.sequence = batch.rows.sequence.iter().map(number).collect();
                all.extend(score(model, &batch, how, &mut **probe));
            }
            None => all.extend(score(model, &batch, how, &mut NoProbe)),
        }
        first += chunk.len();
    }
    (summed(model, windows, chunks, document_mask, &all), all)
}

/// What the rows of all chunks got, added up in their order.
fn summed(
    model: &Model,
    windows: &Windows,
    chunks: &[Vec<Window>],
    document_mask: bool,
    rows: &[RowScore],
) -> RuleScore {
    let names = windows.corpus().sources();
    let mut result =
        RuleScore { depths: vec![0; model.config().recursions + 1], ..RuleScore::default() };
    let mut rows = rows.iter();
    for chunk in chunks {
        let counts = pack(chunk, document_mask).counts;
        let sources = chunk.iter().flat_map(|w| w.source.iter().zip(&w.bytes));
        for ((&counts, (&source, &bytes)), row) in counts.iter().zip(sources).zip(&mut rows) {
            result.depths[row.depth as usize] += 1;
            if counts {
                let (nll, bytes) = (f64::from(row.nll), u64::from(bytes));
                result.all.add(nll, bytes);
                let name = names.get(source as usize).map_or("unknown", String::as_str);
                result.sources.entry(name.to_owned()).or_default().add(nll, bytes);
            }
        }
    }
    result.all = result.all.finish();
    result.sources = result.sources.into_iter().map(|(name, s)| (name, s.finish())).collect();
    result
}

/// [`score_rule`] by several processes, each of which scores its share of the chunks.
fn score_among(
    processes: &dyn Processes,
    model: &Model,
    windows: &Windows,
    chunks: &[Vec<Window>],
    document_mask: bool,
    how: &Scoring<'_>,
) -> Result<(RuleScore, Vec<RowScore>), TrainError> {
    let mut mine = Vec::new();
    for chunk in &chunks[share(chunks.len(), processes.rank(), processes.size())] {
        let scores = score(model, &pack(chunk, document_mask), how, &mut NoProbe);
        mine.extend(scores.into_iter().map(|row| (row.nll, row.depth)));
    }
    let told = tell::tell(processes, &mine)?.concat();
    let all: Vec<_> = told.into_iter().map(|(nll, depth)| RowScore { nll, depth }).collect();
    Ok((summed(model, windows, chunks, document_mask, &all), all))
}

/// The windows with these numbers, in chunks of at most 4096 rows or one window.
///
/// # Errors
/// A number that is not below the count of windows.
pub fn in_chunks(windows: &Windows, numbers: &[u64]) -> Result<Vec<Vec<Window>>, TrainError> {
    let each = (ROWS_OF_A_PASS / windows.seq_len().max(1)).max(1);
    let all: Result<Vec<Window>, _> = numbers.iter().map(|&i| windows.unshuffled(i)).collect();
    Ok(all?.chunks(each).map(<[Window]>::to_vec).collect())
}

/// Which windows of a held-out text make the causal rule and which ones are scored.
///
/// A text is its sources one after the other, so both kinds are taken at equal distances from all
/// of it. No window is of both kinds, unless the text has only one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowChoice {
    /// Numbers of the windows that the rule is calibrated on, ascending.
    pub calibrated: Vec<u64>,
    /// Numbers of the windows that are scored, ascending.
    pub scored: Vec<u64>,
}

impl WindowChoice {
    /// Of `windows` windows, those in the middle of `calibrate` equal stretches calibrate, at most
    /// half of all; of the others `score` at equal distances are scored, at least one.
    pub fn new(windows: u64, score: u64, calibrate: u64) -> Self {
        let held = calibrate.min(windows / 2).max(calibrate.min(1)).min(windows);
        let calibrated: Vec<u64> = (0..held).map(|i| (2 * i + 1) * windows / (2 * held)).collect();
        let mut rest: Vec<u64> =
            (0..windows).filter(|i| calibrated.binary_search(i).is_err()).collect();
        if rest.is_empty() {
            rest.clone_from(&calibrated);
        }
        let others = rest.len() as u64;
        let count = score.min(others).max(1);
        let scored = (0..count).map(|i| rest[(i * others / count) as usize]).collect();
        Self { calibrated, scored }
    }
}

/// Calibrates the causal rule on `calibrate` windows and scores both rules on up to `count` others,
/// as [`WindowChoice`] says.
///
/// # Errors
/// Windows that cannot be read.
pub fn validate(
    model: &Model,
    state: &RouterState,
    windows: &Windows,
    count: u64,
    calibrate: u64,
    document_mask: bool,
) -> Result<Validation, TrainError> {
    validate_among(&Alone, Ops::Fast, model, state, windows, count, calibrate, document_mask)
}

/// The same by `ops` and by several processes, each of which runs its share of the passes. All get
/// the same, and how many they are changes no bit.
///
/// # Errors
/// Windows that cannot be read, or a process that is gone.
pub(crate) fn validate_among(
    processes: &dyn Processes,
    ops: Ops,
    model: &Model,
    state: &RouterState,
    windows: &Windows,
    count: u64,
    calibrate: u64,
    document_mask: bool,
) -> Result<Validation, TrainError> {
    let choice = WindowChoice::new(windows.len(), count, calibrate.max(1));
    let aside: Vec<Batch> = in_chunks(windows, &choice.calibrated)?
        .iter()
        .map(|chunk| pack(chunk, document_mask))
        .collect();
    let mine = &aside[share(aside.len(), processes.rank(), processes.size())];
    let rows = aside.iter().map(|batch| batch.rows.len()).sum();
    let rule = causal_rule_with(model, state, rows, |rule, r, auxiliary| {
        let how = Scoring { ops, ..Scoring::by(rule, state) };
        let seen = deciding_logits(model, mine, &how, r, auxiliary);
        let told: Vec<_> = tell::tell(processes, &seen)?.into_iter().flatten().collect();
        Ok::<_, TrainError>((!told.is_empty()).then(|| told.concat()))
    })?;
    let chunks = in_chunks(windows, &choice.scored)?;
    let how = Scoring { ops, ..Scoring::by(&Rule::NonCausal, state) };
    let (training, a) = score_among(processes, model, windows, &chunks, document_mask, &how)?;
    let how = Scoring { ops, ..Scoring::by(&rule, state) };
    let (causal, b) = score_among(processes, model, windows, &chunks, document_mask, &how)?;
    Ok(Validation {
        windows: choice.scored.len() as u64,
        training,
        causal,
        disagreement: disagreement(&a, &b),
        rule: Some(rule),
    })
}
