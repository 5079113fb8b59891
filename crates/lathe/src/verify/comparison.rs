//! Running a case, forward and backward or some steps of training, and comparing what it records.

use anyhow::{Context, Result, ensure};
use model::{Address, KvMode, Model, ModelConfig, Pass, PassCache, RouterState, Rule};
use ops::{Ops, backward, read_rows, scalar};
use train::{OptimizerConfig, Recipe, ScheduleConfig, Trainer};

use super::Check;
use super::reference::{Reference, next_tokens};
use super::seen::Seen;
use super::settings::TrainSettings;

impl Reference {
    pub(super) fn pass(&self, ops: Ops) -> Result<Vec<Check>> {
        let config = self.config()?;
        let model = self.model(&config)?;
        model.collect_gradients(true);
        let sequences = self.sequences("input_ids")?;
        let batch = next_tokens(&sequences);
        let mut seen = Seen::default();
        let (rule, state) = (Rule::NonCausal, RouterState::default());
        let mut kv = PassCache::new(config.kv != KvMode::RecursionWise);
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
        let weights = batch.weights(1.0 / batch.counted() as f32);
        let (ce, _) = model.head_loss(pass.ops, passed.x_td, &batch.targets, &weights);
        let mut losses = vec![("loss.ce", scalar(&ce))];
        losses.extend(seen.losses.iter().map(|loss| (loss.name, loss.value)));
        let weighted = seen.losses.iter().map(|loss| loss.weight * loss.value);
        losses.push(("loss.total", scalar(&ce) + weighted.sum::<f32>()));
        let gradients = backward(&ce);
        if ops != Ops::Fast {
            model.weights().iter().for_each(|(_, w)| w.take_plain_gradient(&gradients));
        }
        Ok(vec![
            self.selections(&seen, sequences.len())?,
            self.hidden(&seen)?,
            self.near("logits", &[("logits".into(), logits)])?,
            self.near(
                "loss",
                &losses.into_iter().map(|(n, v)| (n.to_owned(), vec![v])).collect::<Vec<_>>(),
            )?,
            self.gradients(&model, &config)?,
        ])
    }

    fn selections(&self, seen: &Seen, batch: usize) -> Result<Check> {
        let mut check = Check { what: "selections".into(), ..Check::default() };
        let first = usize::from(self.settings.sharing.starts_with("middle"));
        let mut compared = 0;
        for (name, (shape, expected)) in self.ids.iter().filter(|(n, _)| n.starts_with("select.")) {
            compared += 1;
            if name == "select.depth" {
                same_rows(&mut check, name, &seen.depth, expected);
                continue;
            }
            let element: usize =
                name["select.".len()..].parse().with_context(|| format!("tensor name {name}"))?;
            let kept = element.checked_sub(first).and_then(|r| seen.kept.get(r));
            let length = seen.rows / batch.max(1);
            let kept: Vec<u32> =
                kept.map(|k| k.iter().map(|row| row % length as u32).collect()).unwrap_or_default();
            ensure!(shape.len() == 2, "{name} has {} axes, expected 2", shape.len());
            same_rows(&mut check, name, &kept, expected);
        }
        if let Some(expected) = self.file.names().find(|n| *n == "select.router_logits") {
            let check = self.near("scores", &[(expected.to_owned(), seen.logits.clone())])?;
            ensure!(check.error <= 1e-3, "router scores differ by {}", check.error);
        }
        if compared == 0 {
            check.worst = "none recorded".into();
        }
        Ok(check)
    }

    fn hidden(&self, seen: &Seen) -> Result<Check> {
        let recorded = self.file.names().filter(|n| n.starts_with("hidden.")).count();
        ensure!(
            recorded == seen.stream.len(),
            "{recorded} hidden states recorded, the model has {}",
            seen.stream.len()
        );
        let named: Vec<_> = seen
            .stream
            .iter()
            .enumerate()
            .map(|(i, x)| (format!("hidden.{i}"), x.clone()))
            .collect();
        self.near("hidden", &named)
    }

    /// Largest error, absolute or relative, whichever is smaller.
    fn near(&self, what: &str, found: &[(String, Vec<f32>)]) -> Result<Check> {
        let mut check = Check { what: what.into(), tolerance: 1e-4, ..Check::default() };
        for (name, found) in found {
            if self.file.shape(name).is_none() {
                ensure!(name.starts_with("loss."), "tensor {name} is missing");
                continue;
            }
            let expected = self.file.read_f32(name)?;
            ensure!(
                expected.len() == found.len(),
                "{name} has {} numbers, found {}",
                expected.len(),
                found.len()
            );
            for (&f, &e) in found.iter().zip(&expected) {
                let absolute = f64::from((f - e).abs());
                worst(&mut check, absolute.min(absolute / f64::from(e.abs()).max(1e-30)), name);
            }
        }
        Ok(check)
    }

    fn gradients(&self, model: &Model, config: &ModelConfig) -> Result<Check> {
        let mut check = Check { what: "gradients".into(), tolerance: 1e-3, ..Check::default() };
        for (spec, weight) in model.weights() {
            let found = weight.read_gradient().unwrap_or_else(|| vec![0.0; spec.count()]);
            let mut at = 0;
            for name in self.names(spec, config)? {
                let name = format!("grad.{name}");
                let expected = self.file.read_f32(&name)?;
                let part = found.get(at..at + expected.len());
                let part = part.with_context(|| {
                    format!("{name} has {} numbers, more than its weight", expected.len())
                })?;
                at += expected.len();
                let largest = expected.iter().fold(0.0f32, |m, e| m.max(e.abs()));
                for (&f, &e) in part.iter().zip(&expected) {
                    let error = f64::from((f - e).abs());
                    worst(
                        &mut check,
                        if error == 0.0 { 0.0 } else { error / f64::from(largest).max(1e-12) },
                        &name,
                    );
                }
            }
            ensure!(
                at == found.len(),
                "grad of {} has {at} numbers, expected {}",
                spec.name,
                found.len()
            );
        }
        Ok(check)
    }

    pub(super) fn train(&self, settings: &TrainSettings, ops: Ops) -> Result<Vec<Check>> {
        let config = self.config()?;
        let (shape, _) =
            self.ids.get("train.input_ids").context("tensor train.input_ids is missing")?;
        ensure!(
            shape.len() == 3 && shape[0] == settings.steps,
            "train.input_ids is {shape:?}, expected [steps, B, T]"
        );
        let recipe = Recipe {
            model: config.clone(),
            optimizer: OptimizerConfig {
                learning_rate: settings.lr,
                beta1: settings.betas[0],
                beta2: settings.betas[1],
                eps: settings.eps,
                weight_decay: settings.weight_decay,
                clip_norm: settings.clip_norm,
                ..OptimizerConfig::default()
            },
            schedule: ScheduleConfig::Constant { warmup_steps: 0 },
            ..Recipe::default()
        };
        let mut trainer = Trainer::over(&recipe, self.model(&config)?);
        trainer.ops = ops;
        let sequences = self.sequences("train.input_ids")?;
        let (losses, norms) =
            (self.file.read_f32("train.loss")?, self.file.read_f32("train.grad_norm")?);
        for (name, found) in [("train.loss", losses.len()), ("train.grad_norm", norms.len())] {
            ensure!(
                found == settings.steps,
                "{name} has {found} numbers, expected one for each of {} steps",
                settings.steps
            );
        }
        let mut loss = Check { what: "train loss".into(), tolerance: 1e-3, ..Check::default() };
        let mut norm = Check { what: "train norm".into(), tolerance: 1e-2, ..Check::default() };
        for (step, batch) in sequences.chunks(shape[1]).enumerate() {
            let report = trainer.step_on(&[next_tokens(batch)])?;
            let name = format!("step {step}");
            worst(&mut loss, relative_error(report.total, losses[step]), &name);
            worst(&mut norm, relative_error(report.gradient_norm, norms[step]), &name);
        }
        Ok(vec![loss, norm])
    }
}

/// Counts a difference where the rows of `name` are not the expected ones.
fn same_rows(check: &mut Check, name: &str, found: &[u32], expected: &[i64]) {
    if !found.iter().map(|&row| i64::from(row)).eq(expected.iter().copied()) {
        check.error += 1.0;
        check.worst = name.to_owned();
    }
}

/// `|found - expected| / |expected|`
fn relative_error(found: f64, expected: f32) -> f64 {
    (found - f64::from(expected)).abs() / f64::from(expected.abs())
}

/// Keeps `error` if it is the largest so far.
pub(super) fn worst(check: &mut Check, error: f64, name: &str) {
    // A NaN is never within a tolerance.
    let error = if error.is_nan() { f64::INFINITY } else { error };
    if error > check.error || check.worst.is_empty() {
        check.error = error.max(check.error);
        check.worst = name.to_owned();
    }
}
