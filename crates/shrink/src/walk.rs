//! The walk: pass after pass, layer after layer, each layer behind what was changed before it.
//!
//! Where every layer has weights of its own, the rows of the text go along: a layer is run on what
//! the changed layers before it gave, so that a pass costs two runs of the model, and memory is
//! rows by width. Where layers recur, or weights are used several times, whole passes of the model
//! are run for each stored layer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::Disk;
use convert::{ColumnSums, Costs, Importance, bank_size};
use engine::{Batch, causal_rule};
use model::params::{Group, ParamPlace};
use model::{
    Address, Causality, KvMode, Model, NoProbe, Pass, PassCache, Probe, RouterState, Rule,
    WeightFormats,
};
use ops::{Ops, Tensor2, Weight, read_rows};
use serde_json::json;
use train::{Made, Rounded, Stored, write_model};

use crate::calibration::Measured;
use crate::cluster::cosine;
use crate::error::refused;
use crate::passes::{LayerCall, PassConfig, RunningPass, Survey};
use crate::report::{LayerReport, PassReport, ShrinkReport};
use crate::seen::{GroupSeen, Observer, Seen, Wanted};
use crate::{Calibration, ModelChange, ShrinkError};

/// Runs `passes` in a row over `stored`, and writes what comes out as the checkpoint folder `out`.
/// The model of `stored` is changed. Nothing is written before the last pass is done.
///
/// # Errors
/// A pass that can do nothing with this model, a target that cannot be met, a text that is too
/// short or that makes the model compute something that is not finite, `out` is taken, or what the
/// disk refuses.
pub fn shrink(
    stored: Stored,
    passes: &[PassConfig],
    calibration: &Calibration,
    seed: u64,
    out: &Path,
    disk: &dyn Disk,
) -> Result<(PathBuf, ShrinkReport), ShrinkError> {
    let Stored { model, state, rule, tokenizer, text, origin, step, tokens, .. } = stored;
    check(passes, out)?;
    let model = sole(model)?;
    if calibration.rows() > 0 {
        calibration.check(model.config().vocab_size)?;
    }
    for pass in passes {
        // A pass that the model is not fit for yet may be after those before it.
        if let Ok(running) = pass.settings().begin(model.config(), seed) {
            has_text(pass, running.wanted(), calibration)?;
        }
    }
    let before = Costs::of(model.config())?;
    let bytes_before = bytes(&model)?;
    let mut walk = Walk { model, state, rule, changed: false, rounded: None, calibration, seed };
    let measured = walk.measure();
    let mut reports = Vec::new();
    for pass in passes {
        let (next, report) = walk.run(pass)?;
        walk = next;
        reports.push(report);
    }
    let after = Costs::of(walk.model.config())?;
    let report = ShrinkReport {
        seed,
        calibration_rows: calibration.rows(),
        held_out_predictions: measured.map_or(0, |m| m.predictions),
        held_out_bytes: measured.map_or(0, |m| m.bytes),
        bits_per_byte_before: measured.map(|m| m.bits_per_byte),
        bits_per_byte_after: reports.last().and_then(|report| report.bits_per_byte),
        bytes_before,
        bytes_after: bytes(&walk.model)?,
        zeros: zeros(&walk.model),
        passes: reports,
        before,
        after,
    };
    let weights = train::tensors(&walk.model)
        .map_err(|source| ShrinkError::Quantize { weight: "weights".into(), source })?;
    let rounded = walk.rounded.as_ref();
    let made = Made {
        config: walk.model.config(),
        weights,
        rounded: rounded.map(|formats| Rounded { weights: formats.to_string(), step, tokens }),
        recipe: None,
        rule: walk.rule.as_ref(),
        state: &walk.state,
        tokenizer: tokenizer.as_deref(),
        text: text.as_ref(),
        origin: json!({ "made_by": "shrink", "report": report, "source": origin }),
    };
    Ok((write_model(out, made, disk)?, report))
}

/// What the matrices of the layers of `stored` are given in the calibration rows, over all uses.
///
/// # Errors
/// A text that is too short, or with which a layer is given what is not finite.
pub fn importance(stored: Stored, calibration: &Calibration) -> Result<Importance, ShrinkError> {
    let Stored { model, state, rule, .. } = stored;
    calibration.check(model.config().vocab_size)?;
    let (model, seed) = (sole(model)?, 0);
    let walk = Walk { model, state, rule, changed: false, rounded: None, calibration, seed };
    let wanted = Wanted { rows: true, squares: true, ..Wanted::default() };
    let survey = walk.survey(wanted)?;
    let mut made = Importance::default();
    for (spec, _) in walk.model.weights().iter().filter(|(spec, _)| spec.group == Group::Block) {
        let ParamPlace::Layer { stored, part } = spec.place else { continue };
        let groups = 0..bank_size(walk.model.config(), spec);
        let sums = groups.map(|group| {
            let GroupSeen { rows, squares, .. } = survey.layers[stored].group(part, group);
            ColumnSums { rows, squares }
        });
        made.weights.insert(spec.name.clone(), sums.collect());
    }
    Ok(made)
}

/// Refuses what can be refused before a model is opened: passes that can never run in this order,
/// and an `out` that is taken.
///
/// # Errors
/// No pass, a setting that no model goes with, a pass behind one that rounds, or a taken `out`.
pub fn check(passes: &[PassConfig], out: &Path) -> Result<(), ShrinkError> {
    if passes.is_empty() {
        let next = "name one with --pass, or a file of them with --passes";
        return refused("passes", "at least one", "none", next);
    }
    for (i, pass) in passes.iter().enumerate() {
        pass.settings().check()?;
        if let Some(before) = passes[..i].iter().find(|pass| pass.settings().rounds()) {
            let what = format!("pass \"{}\"", pass.kind());
            let found = format!("weights that pass \"{}\" before it has rounded", before.kind());
            let next = "let the pass that rounds be the last";
            return refused(what, "weights in f32", found, next);
        }
    }
    Ok(train::check_free(out)?)
}

/// Refuses a pass that looks at rows where there are none.
fn has_text(
    pass: &PassConfig,
    wanted: Wanted,
    calibration: &Calibration,
) -> Result<(), ShrinkError> {
    if !wanted.rows || !calibration.batches.is_empty() {
        return Ok(());
    }
    let what = format!("--text, for pass \"{}\"", pass.kind());
    let next = "give a file or a data folder of the kind of text that the model is for";
    refused(what, "a calibration text", "none", next)
}

/// The model, which nobody else holds.
fn sole(model: std::sync::Arc<Model>) -> Result<Model, ShrinkError> {
    std::sync::Arc::try_unwrap(model).or_else(|_| {
        let next = "open the checkpoint again";
        refused("the model", "one that nothing else uses", "one that is in use", next)
    })
}

/// Bytes of all weights in a file.
fn bytes(model: &Model) -> Result<u64, ShrinkError> {
    let mut sum = 0;
    for (spec, weight) in model.weights() {
        let of_weight = train::stored_bytes(spec, weight.format());
        let name = spec.name.clone();
        sum += of_weight.map_err(|source| ShrinkError::Quantize { weight: name, source })?;
    }
    Ok(sum)
}

/// The share of zeros in the matrices of layers.
fn zeros(model: &Model) -> f64 {
    let (mut none, mut all) = (0usize, 0usize);
    for (spec, weight) in model.weights().iter().filter(|(spec, _)| spec.group == Group::Block) {
        none += weight.values().iter().filter(|x| **x == 0.0).count();
        all += spec.count();
    }
    none as f64 / all.max(1) as f64
}

/// A model on its way through passes.
struct Walk<'a> {
    model: Model,
    state: RouterState,
    rule: Option<Rule>,
    /// Whether the pass under way has changed anything.
    changed: bool,
    /// What weights were rounded to, if they were.
    rounded: Option<WeightFormats>,
    calibration: &'a Calibration,
    seed: u64,
}

/// Rows between two layers, one tensor a batch.
type Streams = Vec<Tensor2>;

impl Walk<'_> {
    /// How routers decide in what is looked at and measured: as in generation.
    fn rule(&self) -> Rule {
        self.rule.clone().unwrap_or(Rule::NonCausal)
    }

    fn measure(&self) -> Option<Measured> {
        self.calibration.measure(&self.model, &self.state, &self.rule())
    }

    /// Whether rows can go along, layer by layer.
    fn goes_along(&self) -> bool {
        let (plan, config) = (self.model.plan(), self.model.config());
        let once = (0..plan.stored).all(|stored| plan.uses_of(stored).len() == 1);
        let apart = once && !config.mlp.settings().links_layers();
        plan.recursions.is_empty() && apart && config.kv == KvMode::RecursionWise
    }

    /// Runs one pass over all of its layers.
    fn run(mut self, pass: &PassConfig) -> Result<(Self, PassReport), ShrinkError> {
        self.changed = false;
        let mut running = pass.settings().begin(self.model.config(), self.seed)?;
        let wanted = running.wanted();
        has_text(pass, wanted, self.calibration)?;
        let bytes_before = bytes(&self.model)?;
        if let Some(wanted) = running.surveys() {
            let survey = self.survey(wanted)?;
            running.allocate(&self.model, &survey)?;
        }
        let control = match running.control() {
            Some(formats) => self.nearest(&formats)?,
            None => None,
        };
        let mut layers = Vec::new();
        if wanted.rows && self.goes_along() {
            self = self.along(&mut *running, wanted, &mut layers)?;
        } else {
            self = self.again(&mut *running, wanted, &mut layers)?;
        }
        let last = running.finish(&self.model, &self.state)?;
        let went = last.went.clone();
        for layer in &mut layers {
            layer.went.extend(last.of_layers.get(&layer.stored).cloned());
        }
        self = self.changed(last)?;
        self.rounded = running.rounds();
        let notes = self.calibrate(pass).map(str::to_owned).into_iter().collect();
        let measured = self.measure();
        computes(pass, measured)?;
        let report = PassReport {
            pass: serde_json::to_value(pass).unwrap_or_default(),
            layers,
            went,
            notes,
            bytes_before,
            bytes_after: bytes(&self.model)?,
            bits_per_byte: measured.map(|m| m.bits_per_byte),
            control_bits_per_byte: control.map(|m| m.bits_per_byte),
        };
        Ok((self, report))
    }

    /// What a copy of the model measures that is rounded to the nearest in `formats`.
    fn nearest(&self, formats: &WeightFormats) -> Result<Option<Measured>, ShrinkError> {
        if self.calibration.held.is_empty() {
            return Ok(None);
        }
        let values: BTreeMap<_, _> =
            self.model.weights().iter().map(|(spec, weight)| (&spec.place, weight)).collect();
        let copy = Model::over(self.model.config(), |spec| {
            let values = values.get(&spec.place).map(|weight| weight.read()).unwrap_or_default();
            let weight = Weight::new(values, spec.shape.0, spec.shape.1);
            let name = spec.name.clone();
            match formats.of(spec).map(|format| weight.quantize(format)) {
                Some(Err(source)) => Err(ShrinkError::Quantize { weight: name, source }),
                _ => Ok(weight),
            }
        })?;
        Ok(self.calibration.measure(&copy, &self.state, &self.rule()))
    }

    /// Layer by layer, rows going along.
    fn along(
        mut self,
        running: &mut dyn RunningPass,
        wanted: Wanted,
        layers: &mut Vec<LayerReport>,
    ) -> Result<Self, ShrinkError> {
        let visits = running.layers(&self.model);
        let mut streams = self.embedded();
        for stored in 0..self.model.plan().stored {
            if !visits.contains(&stored) {
                streams = self.layer(stored, &streams, &mut NoProbe, &mut |_, _| {});
                continue;
            }
            let mut observer = Observer::new(&self.model, &[stored], wanted);
            let before =
                self.layer(stored, &streams, &mut observer, &mut |observer, _| observer.begin());
            let mut seen = observer.seen.remove(&stored).unwrap_or_default();
            finite(stored, &seen)?;
            seen.influence = influence(&streams, &before);
            let change = self.act(running, stored, &seen)?;
            let mut report = reported(stored, &seen, &change);
            if change.is_nothing() {
                report.error = (!running.acts_at_the_end()).then_some(0.0);
                streams = before;
            } else {
                self = self.changed(change)?;
                let after = self.layer(stored, &streams, &mut NoProbe, &mut |_, _| {});
                report.error = Some(distance(&before, &after, Some(&streams)));
                streams = after;
            }
            layers.push(report);
        }
        Ok(self)
    }

    /// Layer by layer, each seen in passes of the whole model.
    fn again(
        mut self,
        running: &mut dyn RunningPass,
        wanted: Wanted,
        layers: &mut Vec<LayerReport>,
    ) -> Result<Self, ShrinkError> {
        for stored in running.layers(&self.model) {
            if !wanted.rows {
                let change = self.act(running, stored, &Seen::default())?;
                layers.push(reported(stored, &Seen::default(), &change));
                self = self.changed(change)?;
                continue;
            }
            let mut observer = Observer::new(&self.model, &[stored], wanted);
            let before = self.whole(&mut observer);
            let seen = observer.seen.remove(&stored).unwrap_or_default();
            finite(stored, &seen)?;
            let change = self.act(running, stored, &seen)?;
            let mut report = reported(stored, &seen, &change);
            report.error = (!running.acts_at_the_end()).then_some(0.0);
            if !change.is_nothing() {
                self = self.changed(change)?;
                let mut nothing = Observer::new(&self.model, &[], Wanted::default());
                report.error = Some(distance(&before, &self.whole(&mut nothing), None));
            }
            layers.push(report);
        }
        Ok(self)
    }

    fn act(
        &self,
        running: &mut dyn RunningPass,
        stored: usize,
        seen: &Seen,
    ) -> Result<ModelChange, ShrinkError> {
        running.act(&LayerCall { model: &self.model, state: &self.state, stored, seen })
    }

    fn changed(self, change: ModelChange) -> Result<Self, ShrinkError> {
        if change.is_nothing() {
            return Ok(self);
        }
        let (model, state) = change.applied(self.model, self.state)?;
        Ok(Self { model, state, changed: true, ..self })
    }

    /// Thresholds of a causal rule that are measured on text are measured again where what comes to
    /// the router has changed. Returns a note where that takes a text that there is not.
    fn calibrate(&mut self, pass: &PassConfig) -> Option<&'static str> {
        if let Some(Rule::Causal(thresholds)) = &mut self.rule {
            thresholds.thresholds.truncate(self.model.config().recursions);
        }
        let causality = self.model.config().router.settings().causality();
        let moved = self.changed && !pass.settings().keeps_thresholds();
        if !matches!(causality, Causality::Thresholds(_)) || !moved {
            return None;
        }
        if !self.calibration.batches.is_empty() {
            let rule = causal_rule(&self.model, &self.state, &self.calibration.batches);
            self.rule = Some(rule);
            return None;
        }
        let note = "thresholds of the causal rule are those of the model before, as no --text was \
                    given to measure them on";
        matches!(self.rule, Some(Rule::Causal(_))).then_some(note)
    }

    /// All layers of the model as it is.
    fn survey(&self, wanted: Wanted) -> Result<Survey, ShrinkError> {
        let all: Vec<usize> = (0..self.model.plan().stored).collect();
        let mut observer = Observer::new(&self.model, &all, wanted);
        if wanted.rows {
            self.whole(&mut observer);
        }
        for (&stored, seen) in &observer.seen {
            finite(stored, seen)?;
        }
        Ok(Survey { layers: observer.seen.into_values().collect() })
    }

    /// The last streams of whole passes, each batch one.
    fn whole(&self, observer: &mut Observer) -> Streams {
        let rule = self.rule();
        let mut streams = Vec::new();
        for batch in &self.calibration.batches {
            observer.begin();
            streams.push(self.passed(batch, &rule, observer, |pass, model| {
                model.forward(&batch.ids, &batch.rows, pass).x_td
            }));
        }
        streams
    }

    fn embedded(&self) -> Streams {
        let rule = self.rule();
        let batches = self.calibration.batches.iter();
        batches
            .map(|batch| {
                self.passed(batch, &rule, &mut NoProbe, |pass, model| {
                    model.embedded(&batch.ids, pass)
                })
            })
            .collect()
    }

    /// One layer on the rows of every batch.
    fn layer<P: Probe>(
        &self,
        stored: usize,
        streams: &Streams,
        probe: &mut P,
        begin: &mut dyn FnMut(&mut P, usize),
    ) -> Streams {
        let rule = self.rule();
        let at = self.model.plan().uses_of(stored)[0];
        let mut next = Vec::with_capacity(streams.len());
        for (i, (batch, x_td)) in self.calibration.batches.iter().zip(streams).enumerate() {
            begin(probe, i);
            next.push(self.passed(batch, &rule, probe, |pass, model| {
                let rows = batch.rows.with_tokens(&batch.ids);
                model.layer(at, x_td.clone(), &rows, pass)
            }));
        }
        next
    }

    fn passed(
        &self,
        batch: &Batch,
        rule: &Rule,
        probe: &mut dyn Probe,
        run: impl FnOnce(&mut Pass<'_>, &Model) -> Tensor2,
    ) -> Tensor2 {
        let mut kv = PassCache::new(self.model.config().kv != KvMode::RecursionWise);
        let mut pass = Pass {
            ops: Ops::Fast,
            kv: &mut kv,
            rule,
            state: &self.state,
            probe,
            record: false,
            recompute: false,
            address: Address { seed: 0, step: u64::MAX, place: 0 },
            sequences: batch.rows.sequences().len(),
            loads: &[],
            pool: Default::default(),
        };
        run(&mut pass, &self.model)
    }
}

fn reported(stored: usize, seen: &Seen, change: &ModelChange) -> LayerReport {
    LayerReport {
        stored,
        went: change.went.clone(),
        expert_rows: seen.experts.rows.clone(),
        unseen: change.unseen.clone(),
        error: None,
    }
}

/// Refuses a model that predicts the text with NaN or infinite numbers: it is of no use.
fn computes(pass: &PassConfig, measured: Option<Measured>) -> Result<(), ShrinkError> {
    match measured {
        Some(found) if !found.bits_per_byte.is_finite() => {
            let what = format!("bits per byte of the text, after pass \"{}\"", pass.kind());
            let next = "look for NaN or very large numbers in the checkpoint";
            refused(what, "a finite number", found.bits_per_byte, next)
        }
        _ => Ok(()),
    }
}

/// Refuses a layer that was given NaN or infinite numbers: whatever was scored on them is nothing.
fn finite(stored: usize, seen: &Seen) -> Result<(), ShrinkError> {
    let Some(found) = &seen.not_finite else { return Ok(()) };
    let what = format!("the calibration rows at layer {stored}");
    let next = "look for NaN or very large numbers in the checkpoint, or use another text";
    refused(what, "finite numbers", found, next)
}

/// The mean over rows of `1 - cosine` between a row of `from` and of `to`.
fn influence(from: &Streams, to: &Streams) -> f64 {
    let (mut sum, mut rows) = (0.0, 0usize);
    for (from, to) in from.iter().zip(to) {
        let d = from.dims()[1];
        let (from, to) = (read_rows(from), read_rows(to));
        for (a, b) in from.chunks_exact(d).zip(to.chunks_exact(d)) {
            sum += 1.0 - cosine(a, b);
            rows += 1;
        }
    }
    sum / rows.max(1) as f64
}

/// `|after - before| / |before - from|` over all batches: how much of what was added to the streams
/// `from` is another now.
fn distance(before: &Streams, after: &Streams, from: Option<&Streams>) -> f64 {
    let (mut apart, mut size) = (0.0, 0.0);
    for (i, (a, b)) in before.iter().zip(after).enumerate() {
        let (a, b) = (read_rows(a), read_rows(b));
        let from = from.map(|all| read_rows(&all[i]));
        for (j, (a, b)) in a.iter().zip(&b).enumerate() {
            let origin = from.as_ref().map_or(0.0, |from| f64::from(from[j]));
            apart += (f64::from(*b) - f64::from(*a)).powi(2);
            size += (f64::from(*a) - origin).powi(2);
        }
    }
    if size > 0.0 { (apart / size).sqrt() } else { 0.0 }
}
