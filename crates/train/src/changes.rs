//! What a recipe may say differently when its run is continued.

use std::path::Path;

use model::ModelConfig;
use serde::Serialize;
use serde_json::Value;

use crate::error::refuse;
use crate::given_config::{json, whole_config};
use crate::{Recipe, TrainError};

/// A field of the recipe that is not as it was when the checkpoint was saved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Path of the field, such as `optimizer.learning_rate`.
    pub field: String,
    /// Its value in the checkpoint's recipe.
    pub old: Value,
    /// Its value from now on.
    pub new: Value,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} -> {}", self.field, self.old, self.new)
    }
}

/// When a field may change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum May {
    /// Always: it decides how far the run goes and what is kept of it, not what a step computes.
    Change,
    /// If the changes are accepted: later steps compute something else.
    ChangeIfAccepted,
    /// Never: the position in the data, or the weights themselves, would mean something else.
    Stay,
}

/// The first entry whose text the field begins with counts.
const FIELDS: [(&str, May); 13] = [
    ("train.seed", May::Stay),
    ("train.batch", May::Stay),
    ("train.freeze", May::Stay),
    ("train.frozen_format", May::Stay),
    ("data.sequence_length", May::Stay),
    ("data.document_mask", May::Stay),
    // What these lead to has the same fingerprint.
    ("start.checkpoint", May::Change),
    ("distill.checkpoint", May::Change),
    ("data.dir", May::Change),
    ("train.steps", May::Change),
    ("train.non_finite", May::Change),
    ("checkpoint.", May::Change),
    ("log.", May::Change),
];

fn may(field: &str) -> May {
    let known = FIELDS.iter().find(|(start, _)| field.starts_with(start));
    known.map_or(May::ChangeIfAccepted, |(_, may)| *may)
}

/// What `new` says differently from `old`, field by field. Refuses what cannot change in a run, and
/// what changes later steps unless that is `accepted`; `at` is the checkpoint, of step `step`.
pub(crate) fn changes(
    at: &Path,
    step: u64,
    old: &Recipe,
    new: &Recipe,
    accepted: bool,
) -> Result<Vec<Change>, TrainError> {
    if old.start.fingerprint != new.start.fingerprint
        || old.distill.fingerprint != new.distill.fingerprint
    {
        let expected = "those of the recipe (start and distill); choose another --out";
        return refuse(at, "recipe.json", "another start or teacher".into(), expected.into());
    }
    let mut found = Vec::new();
    compare(&json(old), &json(new), "", &mut found);
    if let Some(change) = found.iter().find(|change| may(&change.field) == May::Stay) {
        return refuse(
            at,
            &change.field,
            change.old.to_string(),
            format!(
                "{}, the recipe's: it is fixed when a run begins, as what was learned and the \
                 position in the data depend on it; go on with the run's, or choose another --out \
                 and name this run as start.checkpoint",
                change.new
            ),
        );
    }
    if new.train.steps < step {
        let expected = format!(
            "at most train.steps = {}, the recipe's: the run is beyond it already; ask for more \
             steps, or choose another --out",
            new.train.steps
        );
        return refuse(at, "step", step.to_string(), expected);
    }
    let asking: Vec<String> = found
        .iter()
        .filter(|change| may(&change.field) == May::ChangeIfAccepted)
        .map(Change::to_string)
        .collect();
    if !asking.is_empty() && !accepted {
        let found = format!("that of another recipe: {}", asking.join(", "));
        let expected = "the recipe of the run; go on with it, or allow the change with \
                        --accept-changes";
        return refuse(at, "recipe.json", found, expected.into());
    }
    Ok(found)
}

/// Refuses a run of another model than the recipe's.
pub(crate) fn same_model(
    at: &Path,
    config: &ModelConfig,
    wanted: &ModelConfig,
) -> Result<(), TrainError> {
    if config == wanted {
        return Ok(());
    }
    let mut found = Vec::new();
    compare(&json(config), &json(wanted), "model", &mut found);
    let fields: Vec<String> = found.into_iter().map(|change| change.field).collect();
    let found = format!("another model: its {} is not the recipe's", fields.join(", "));
    refuse(at, "config.json", found, "the model of the recipe; choose another --out".into())
}

/// The fields below `model` in which two models differ, but for those that only training reads.
pub(crate) fn differing_models(config: &ModelConfig, wanted: &ModelConfig) -> Vec<Change> {
    let mut found = Vec::new();
    compare(&whole_config(config), &whole_config(wanted), "", &mut found);
    let of_training = wanted.mlp.settings().fields_of_training();
    found.retain(|change| !of_training.contains(&change.field));
    found
}

/// The leaves in which two recipes differ.
pub(crate) fn differing(old: &Value, new: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    compare(old, new, "", &mut found);
    found
}

/// The leaves in which two tables differ.
fn compare(old: &Value, new: &Value, path: &str, found: &mut Vec<Change>) {
    let (Value::Object(one), Value::Object(other)) = (old, new) else {
        if old != new {
            found.push(Change { field: path.to_owned(), old: old.clone(), new: new.clone() });
        }
        return;
    };
    for (key, value) in one {
        compare(value, other.get(key).unwrap_or(&Value::Null), &below(path, key), found);
    }
    for (key, value) in other.iter().filter(|(key, _)| !one.contains_key(*key)) {
        compare(&Value::Null, value, &below(path, key), found);
    }
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(change: impl Fn(&mut Recipe), accepted: bool) -> Result<Vec<String>, String> {
        let old = Recipe::default();
        let mut new = old.clone();
        change(&mut new);
        let changes = changes(Path::new("at"), 10, &old, &new, accepted);
        changes
            .map(|list| list.iter().map(Change::to_string).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_fixes_the_position_in_the_data_stays() {
        type Edit = fn(&mut Recipe);
        let edits: [(&str, Edit); 5] = [
            ("train.seed", |r| r.train.seed = 2),
            ("train.batch", |r| r.train.batch = 32),
            ("train.freeze", |r| r.train.freeze = vec!["norm".to_owned()]),
            ("data.sequence_length", |r| r.data.sequence_length = 128),
            ("data.document_mask", |r| r.data.document_mask = false),
        ];
        for (field, edit) in edits {
            for accepted in [false, true] {
                let error = judged(edit, accepted).expect_err(field);
                assert!(error.contains(field) && error.contains("--out"), "{error}");
            }
        }
        for edit in [(|r| r.start.fingerprint = "0".to_owned()) as Edit, |r| {
            r.distill.fingerprint = "0".to_owned()
        }] {
            let error = judged(edit, true).expect_err("another");
            assert!(error.contains("another start or teacher"), "{error}");
        }
        let error = judged(|r| r.train.steps = 9, true).expect_err("behind");
        assert!(error.contains("train.steps = 9") && error.contains("10"), "{error}");
    }

    #[test]
    fn what_later_steps_compute_changes_on_request() {
        let edit = |r: &mut Recipe| {
            r.optimizer.learning_rate = 0.5;
            r.schedule = crate::ScheduleConfig::Constant { warmup_steps: 50 };
            r.log.validate_every = 7;
        };
        let error = judged(edit, false).expect_err("another rate");
        assert!(error.contains("optimizer.learning_rate 0.003 -> 0.5"), "{error}");
        assert!(error.contains("--accept-changes") && !error.contains("log."), "{error}");
        let list = judged(edit, true).expect("accepted").join("\n");
        for change in [
            "schedule.kind \"trapezoid\" -> \"constant\"",
            "schedule.decay_fraction 0.2 -> null",
            "log.validate_every 200 -> 7",
        ] {
            assert!(list.contains(change), "{list}");
        }
        assert_eq!(judged(|_| (), false), Ok(Vec::new()));
        let longer = judged(|r| r.train.steps = 2000, false).expect("longer");
        assert_eq!(longer, ["train.steps 1000 -> 2000"]);
    }
}
