//! What Hugging Face's library computed of models with experts, beside what every model has: logits
//! of routers, who is chosen and with which weights, the balance loss, a batch with padding, and
//! three steps of AdamW.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use checkpoint::Dtype;
use convert::{ImportedModel, imported_model};
use engine::Batch;
use model::{Choice, Probe, RoutingEvent, params::RouterSite};
use ops::{Ops, read_rows};
use serde::Deserialize;
use train::{OptimizerConfig, Recipe, ScheduleConfig, Trainer};

use super::Check;
use super::comparison::worst;
use super::hugging_face::{Passed, Recorded, near, pass};
use super::reference::sequences;

/// What a router of experts decided about the rows of a pass.
pub(super) struct Routed {
    layer: usize,
    logits: Vec<f32>,
    /// Of each row in ascending order of experts, with the weights.
    experts: Vec<Vec<(u32, f32)>>,
}

/// What all routers of experts decided, in the order of layers.
#[derive(Default)]
pub(super) struct Routers(pub(super) Vec<Routed>);

impl Probe for Routers {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        let (RouterSite::Layer(layer), Choice::Plan(plan)) = (event.site, event.choice) else {
            return;
        };
        let weights = plan.weights.as_ref().map(read_rows);
        let mut experts = vec![Vec::new(); event.candidates.len()];
        for expert in 0..plan.targets() {
            let (from, to) = (plan.offsets[expert] as usize, plan.offsets[expert + 1] as usize);
            for entry in from..to {
                let weight = weights.as_ref().map_or(1.0, |weights| weights[entry]);
                experts[plan.rows[entry] as usize].push((expert as u32, weight));
            }
        }
        self.0.push(Routed { layer, logits: event.logits.to_vec(), experts });
    }
}

impl Routed {
    /// The experts of each row, ascending.
    pub(super) fn chosen(&self) -> Vec<Vec<u32>> {
        let of_row = |row: &Vec<(u32, f32)>| row.iter().map(|(expert, _)| *expert).collect();
        self.experts.iter().map(of_row).collect()
    }
}

/// The losses of a batch.
#[derive(Debug, Deserialize)]
pub(super) struct Losses {
    /// Cross-entropy, a mean over predictions.
    pub(super) ce: Option<f64>,
    /// The balance loss of the class, if it has one.
    pub(super) aux: Option<f64>,
    /// Cross-entropy and the weighted balance loss.
    pub(super) loss: Option<f64>,
}

/// How the library trained.
#[derive(Debug, Deserialize)]
pub(super) struct AdamW {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    steps: usize,
    /// Before each step, and after the last.
    losses: Vec<f64>,
}

impl Losses {
    /// How far the losses of a pass are from these.
    pub(super) fn checks(&self, passed: &Passed) -> Vec<Check> {
        let weighted: f64 =
            passed.losses.iter().map(|loss| f64::from(loss.weight * loss.value)).sum();
        let aux: f64 = passed.losses.iter().map(|loss| f64::from(loss.value)).sum();
        let found = [("aux", aux, self.aux), ("loss", f64::from(passed.ce) + weighted, self.loss)];
        let mut checks = Vec::new();
        for (what, found, expected) in found {
            let Some(expected) = expected else { continue };
            let mut check = Check { what: what.into(), tolerance: 2e-5, ..Check::default() };
            worst(&mut check, (found - expected).abs(), what);
            checks.push(check);
        }
        checks
    }
}

impl Recorded {
    /// Logits of routers, the experts of each row, and their weights, where a layer of the
    /// library's class is `blocks` of ours.
    pub(super) fn routing(&self, routers: &Routers, blocks: usize) -> Result<Vec<Check>> {
        let mut checks = [("router logits", 5e-5), ("selections", 0.0), ("weights", 2e-5)]
            .map(|(what, tolerance)| Check { what: what.into(), tolerance, ..Check::default() });
        let recorded = self.file.names().filter(|name| name.starts_with("router_logits.")).count();
        ensure!(
            recorded == routers.0.len(),
            "router logits of {recorded} layers recorded, the model has {} with experts",
            routers.0.len()
        );
        for Routed { layer, logits, experts } in &routers.0 {
            let layer = layer / blocks;
            let name = format!("router_logits.{layer}");
            near(&mut checks[0], &name, logits, &self.numbers(&name)?)?;
            let name = format!("experts.{layer}");
            let found = experts.iter().flatten().map(|(expert, _)| i64::from(*expert));
            let expected = self.ids_of(&name)?;
            let differ = found.clone().zip(&expected).filter(|(f, e)| f != *e).count();
            let short = expected.len().abs_diff(found.count());
            worst(&mut checks[1], (differ + short) as f64, &name);
            let name = format!("weights.{layer}");
            let found: Vec<f32> = experts.iter().flatten().map(|(_, weight)| *weight).collect();
            near(&mut checks[2], &name, &found, &self.numbers(&name)?)?;
        }
        Ok(if routers.0.is_empty() { Vec::new() } else { checks.into() })
    }

    /// Integers of 32 bits.
    fn ids_of(&self, name: &str) -> Result<Vec<i64>> {
        let bytes = self.file.read_bytes(name, Dtype::I32)?;
        Ok(bytes
            .chunks_exact(4)
            .map(|b| i64::from(i32::from_le_bytes(b.try_into().expect("4 bytes"))))
            .collect())
    }

    /// A batch whose second sequence is shorter, which the library pads: logits of the rows that
    /// are there, losses, gradients.
    pub(super) fn padded(&self, imported: &ImportedModel, ops: Ops) -> Result<Option<Check>> {
        let Some(losses) = &self.settings.padded else { return Ok(None) };
        let mut check = Check { what: "padded".into(), tolerance: 1e-4, ..Check::default() };
        let ids = sequences(&self.ids, "padded.input_ids")?;
        let mask = sequences(&self.ids, "padded.attention_mask")?;
        let length = |mask: &[u32]| mask.iter().filter(|there| **there == 1).count();
        let real: Vec<Vec<u32>> =
            ids.iter().zip(&mask).map(|(ids, mask)| ids[..length(mask)].to_vec()).collect();
        let passed = pass(&imported.model, &imported.state, &real, ops);
        let vocab = imported.model.config().vocab_size;
        let all = self.numbers("padded.logits")?;
        let longest = ids.first().map_or(0, Vec::len);
        let mut expected = Vec::new();
        for (number, ids) in real.iter().enumerate() {
            let first = number * longest * vocab;
            expected.extend_from_slice(&all[first..first + ids.len() * vocab]);
        }
        near(&mut check, "padded.logits", &passed.logits, &expected)?;
        worst(
            &mut check,
            (f64::from(passed.ce) - losses.ce.unwrap_or(f64::NAN)).abs(),
            "padded ce",
        );
        for of in losses.checks(&passed) {
            worst(&mut check, of.error, &format!("padded {}", of.what));
        }
        let gradients =
            self.compare_by_name(imported, "padded.grad.", |weight| weight.read_gradient())?;
        worst(&mut check, gradients.error, &gradients.worst);
        Ok(Some(check))
    }

    /// Weights, losses and logits of some steps of AdamW on the same batch.
    pub(super) fn adamw(&self, path: &Path, ops: Ops) -> Result<Vec<Check>> {
        let Some(settings) = &self.settings.adamw else { return Ok(Vec::new()) };
        let ImportedModel { model, state, .. } = imported_model(path)?;
        let mut trained = imported_model(path)?;
        let model = std::sync::Arc::into_inner(model).context("the model has other users")?;
        let recipe = Recipe {
            model: model.config().clone(),
            optimizer: OptimizerConfig {
                learning_rate: settings.lr,
                beta1: settings.betas[0],
                beta2: settings.betas[1],
                eps: settings.eps,
                weight_decay: settings.weight_decay,
                clip_norm: 0.0,
                ..OptimizerConfig::default()
            },
            schedule: ScheduleConfig::Constant { warmup_steps: 0 },
            ..Recipe::default()
        };
        let mut trainer = Trainer::over(&recipe, model);
        (trainer.ops, trainer.router) = (ops, state);
        let ids = sequences(&self.ids, "input_ids")?;
        let batch: Batch = super::reference::next_tokens(&ids);
        let mut loss = Check { what: "adamw loss".into(), tolerance: 2e-5, ..Check::default() };
        for step in 0..settings.steps {
            let report = trainer.step_on(std::slice::from_ref(&batch))?;
            let expected = settings.losses.get(step).context("adamw.losses is too short")?;
            worst(&mut loss, (report.total - expected).abs(), &format!("step {step}"));
        }
        (trained.model, trained.state) = (trainer.model.clone(), trainer.router.clone());
        let mut most = Check { what: "adamw".into(), tolerance: 2e-4, ..Check::default() };
        let mut share = Check { what: "adamw off".into(), tolerance: 1e-3, ..Check::default() };
        let (mut off, mut all) = (0, 0);
        self.each_tensor(
            &trained,
            "adamw3.",
            |weight| Some(weight.read()),
            |name, f, e| {
                let error = (f - e).abs();
                (off, all) = (off + usize::from(error > 2e-6), all + 1);
                worst(&mut most, error, name);
            },
        )?;
        worst(&mut share, off as f64 / all.max(1) as f64, "all weights");
        let mut logits = Check { what: "adamw logits".into(), tolerance: 1e-4, ..Check::default() };
        let passed = pass(&trained.model, &trained.state, &ids, ops);
        near(&mut logits, "adamw3_logits", &passed.logits, &self.numbers("adamw3_logits")?)?;
        if let Some(expected) = settings.losses.get(settings.steps) {
            let found = settings_loss(&passed);
            worst(&mut loss, (found - expected).abs(), "after the last step");
        }
        Ok(vec![loss, most, share, logits])
    }
}

/// Cross-entropy with the weighted losses beside it.
fn settings_loss(passed: &Passed) -> f64 {
    let beside = passed.losses.iter().map(|loss| f64::from(loss.weight * loss.value));
    f64::from(passed.ce) + beside.sum::<f64>()
}
