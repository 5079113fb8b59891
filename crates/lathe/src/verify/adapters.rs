//! A folder of adapters with what PEFT computed of them: the base is imported in memory, the
//! adapters are put on it, and logits, merged tensors and gradients are compared.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use convert::{AdaptedModel, adapted_model, imported_model};
use model::{ExpertRouterConfig, MlpConfig, Model};
use ops::Ops;

use super::Check;
use super::comparison::worst;
use super::hugging_face::{Passed, Recorded, beyond, near, pass};
use super::reference::sequences;

/// Whether there is a folder of adapters at `path`.
pub(super) fn is_adapter(path: &Path) -> bool {
    formats::peft::is_adapter(path)
}

/// The checks of the folder at `path` over the model at `base`, or why it is refused.
pub(super) fn checks(
    path: &Path,
    base: &Path,
    recorded: &Recorded,
    ops: Ops,
) -> Result<Result<Vec<Check>, String>> {
    let base = imported_model(base).with_context(|| format!("the base {}", base.display()))?;
    let plain = without_losses(&base.model)?;
    let adapted = match adapted_model(&plain, Some(base.architecture), path) {
        Ok(adapted) => adapted,
        Err(why) => return beyond(why),
    };
    let mut checks = Vec::new();
    let sequences = sequences(&recorded.ids, "input_ids")?;
    if recorded.file.shape("base_logits").is_some() {
        let passed = pass(&plain, &base.state, &sequences, ops);
        checks.push(logits(recorded, "base logits", &["base_logits"], &passed)?);
        plain.collect_gradients(false);
    }
    let passed = pass(&adapted.model, &base.state, &sequences, ops);
    checks.push(logits(recorded, "logits", &["logits_f64", "logits"], &passed)?);
    if let Some(loss) = recorded.settings.loss() {
        let mut check = Check { what: "ce".into(), tolerance: 2e-5, ..Check::default() };
        worst(&mut check, (f64::from(passed.ce) - loss).abs(), "loss");
        checks.push(check);
    }
    if recorded.file.shape("merged_logits").is_some() {
        checks.push(logits(recorded, "merged logits", &["merged_logits"], &passed)?);
    }
    checks.extend(merged(recorded, &adapted)?);
    checks.extend(gradients(recorded, &adapted)?);
    Ok(Ok(checks))
}

/// The same model without losses of routers beside the text's: gradients are recorded without them.
fn without_losses(model: &Model) -> Result<Model> {
    let mut config = model.config().clone();
    if let MlpConfig::Experts(mlp) = &mut config.mlp {
        match &mut mlp.router {
            ExpertRouterConfig::TopK(router) => router.pooled_weight = 0.0,
            ExpertRouterConfig::SparseMixer(router) => router.pooled_weight = 0.0,
            _ => {}
        }
    }
    let mut weights = model.weights().iter().map(|(_, weight)| weight.clone());
    let same = Model::sharing(&config, |spec| {
        weights.next().with_context(|| format!("{} is missing", spec.name))
    });
    same.context("a model without losses of routers")
}

fn logits(recorded: &Recorded, what: &str, names: &[&str], passed: &Passed) -> Result<Check> {
    let mut check = Check { what: what.into(), tolerance: 1e-4, ..Check::default() };
    let name = names.iter().find(|name| recorded.file.shape(name).is_some());
    let name = name.with_context(|| format!("tensor {} is missing", names[names.len() - 1]))?;
    near(&mut check, name, &passed.logits, &recorded.numbers(name)?)?;
    Ok(check)
}

/// Every tensor that merging changed.
fn merged(recorded: &Recorded, adapted: &AdaptedModel) -> Result<Option<Check>> {
    let mut check = Check { what: "merged".into(), tolerance: 5e-6, ..Check::default() };
    let mut seen = false;
    for key in recorded.file.names() {
        let Some(name) = key.strip_prefix("merged.") else { continue };
        let found =
            adapted.tensor(name).with_context(|| format!("no tensor {name} in the base"))?;
        near(&mut check, key, &found, &recorded.numbers(key)?)?;
        seen = true;
    }
    Ok(seen.then_some(check))
}

/// Each tensor of the adapter against its largest entry.
fn gradients(recorded: &Recorded, adapted: &AdaptedModel) -> Result<Option<Check>> {
    let mut check = Check { what: "gradients".into(), tolerance: 1e-4, ..Check::default() };
    let found = adapted.gradients();
    let mut seen = false;
    for key in recorded.file.names() {
        let Some(name) = key.strip_prefix("grad.") else { continue };
        let expected = recorded.numbers(key)?;
        let found = found.get(name).with_context(|| format!("no gradient of {name}"))?;
        ensure!(
            found.len() == expected.len(),
            "{key} has {} numbers, found {}",
            expected.len(),
            found.len()
        );
        let largest = expected.iter().fold(0.0f64, |most, e| most.max(e.abs()));
        for (f, e) in found.iter().zip(&expected) {
            let error = (f - e).abs();
            worst(&mut check, if error == 0.0 { 0.0 } else { error / largest.max(1e-12) }, key);
        }
        seen = true;
    }
    Ok(seen.then_some(check))
}
