//! Starting from a checkpoint, and learning from one: what must fit, and how both are pinned.

use std::path::Path;
use std::sync::Arc;

use checkpoint::Damaged;
use data::Corpus;
use model::ModelConfig;

use crate::changes::differing_models;
use crate::error::refuse;
use crate::opening::{Found, find};
use crate::{Recipe, Stored, TrainError, Trainer};

/// A checkpoint that a recipe names, opened once: what is loaded is what the run remembers.
pub(crate) struct Pinned {
    /// The text of the recipe.
    name: String,
    /// The one that was opened.
    found: Found,
}

/// Opens the checkpoint that the recipe names as `field.checkpoint`, if any, and notes which one it
/// is: the SHA-256 of its manifest, which holds those of its files. Refuses another one than
/// `known`, unless that is empty.
pub(crate) fn pin(
    field: &str,
    name: &str,
    known: &mut String,
) -> Result<Option<Pinned>, TrainError> {
    if name.is_empty() {
        known.clear();
        return Ok(None);
    }
    let found = find(Path::new(name))?;
    let fingerprint = &found.loaded.fingerprint;
    if !known.is_empty() && known != fingerprint {
        return Err(TrainError::Recipe {
            field: format!("{field}.checkpoint"),
            found: format!("{name}, which has changed: fingerprint {fingerprint}"),
            expected: format!("the checkpoint of fingerprint {known}"),
        });
    }
    known.clone_from(fingerprint);
    Ok(Some(Pinned { name: name.to_owned(), found }))
}

/// The start of a run that is continued: it was read when the run began and is not read again. What
/// the run remembers of it counts, if the recipe still names it.
pub(crate) fn remember(recipe: &mut Recipe, run: &Recipe) -> Result<(), TrainError> {
    let (wanted, begun) = (&mut recipe.start, &run.start);
    if wanted.checkpoint == begun.checkpoint && wanted.fingerprint.is_empty() {
        wanted.fingerprint.clone_from(&begun.fingerprint);
        return Ok(());
    }
    let name = wanted.checkpoint.clone();
    pin("start", &name, &mut wanted.fingerprint).map(|_| ())
}

impl Pinned {
    /// The model, without rounded weights, and what to tell of how it was found.
    fn open(self, remarks: &mut Vec<String>) -> Result<Stored, TrainError> {
        let path = Path::new(&self.name);
        let folder = self.found.loaded.path.clone();
        remarks.extend(older(&self.found.passed_over, &folder));
        self.found.model()?.whole(path)
    }
}

/// What to tell where newer checkpoints than the one in `folder` could not be read.
pub fn older(passed_over: &[Damaged], folder: &Path) -> Vec<String> {
    let mut remarks: Vec<String> = passed_over
        .iter()
        .map(|damaged| {
            let path = damaged.path.display();
            format!("passing over the damaged checkpoint {path}: {}", damaged.reason)
        })
        .collect();
    if !remarks.is_empty() {
        remarks.push(format!("taking the older checkpoint {}", folder.display()));
    }
    remarks
}

/// Gives a trainer the weights that its recipe starts from, if it names any, and what routers
/// learned beside them. Returns what begins fresh, as remarks for whoever watches.
pub(crate) fn begin(
    trainer: &mut Trainer,
    start: Option<Pinned>,
    tokenizer: &[u8],
) -> Result<Vec<String>, TrainError> {
    let mut remarks = Vec::new();
    let Some(start) = start else { return Ok(remarks) };
    let name = start.name.clone();
    let path = Path::new(&name);
    let stored = start.open(&mut remarks)?;
    same_tokenizer(path, &stored, tokenizer)?;
    let given = stored.model.config();
    let wanted = ModelConfig {
        relax: given.relax.clone(),
        router: given.router.clone(),
        kv: given.kv,
        context: given.context,
        init_std: given.init_std,
        ..trainer.recipe.model.clone()
    };
    let differing = differing_models(given, &wanted);
    if !differing.is_empty() {
        let fields: Vec<String> =
            differing.iter().map(|change| format!("model.{}", change.field)).collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let found = format!("another model: its {} is not the recipe's", some_of(&fields));
        let expected = "that of the recipe, but for routing, relax, kv, context and what only \
                        training reads: leave the rest of [model] out, or convert";
        return refuse(path, "config.json", found, expected.into());
    }
    let mut fresh = Vec::new();
    for (spec, weight) in trainer.model.weights() {
        let mut known = stored.model.weights().iter();
        match known.find(|(known, _)| known.name == spec.name && known.shape == spec.shape) {
            Some((_, known)) => weight.write(known.read()),
            None if spec.place.is_router() || spec.place.is_relaxation() => fresh.push(spec),
            None => {
                let found = format!("no {} of {:?}", spec.name, spec.shape);
                return refuse(path, "weights", found, "it".into());
            }
        }
    }
    if !fresh.is_empty() {
        let names: Vec<&str> = fresh.iter().map(|spec| spec.name.as_str()).collect();
        remarks.push(format!(
            "{} begin fresh: {name} has no weights of these names and shapes",
            some_of(&names)
        ));
    }
    let left = left_behind(trainer, &stored);
    if !left.is_empty() {
        remarks.push(format!(
            "{} of {name} are left behind: the recipe's model has no weights of these names and \
             shapes",
            some_of(&left)
        ));
    }
    if fresh.iter().any(|spec| spec.place.is_router()) || !knows_state(trainer, &stored) {
        let names: Vec<&str> = stored.state.iter().map(|(name, _)| name).collect();
        if !names.is_empty() {
            remarks.push(format!(
                "what the router of {name} learned beside its weights ({}) is left behind: it is \
                 that of a router of another kind, shape or capacity",
                names.join(", ")
            ));
        }
    } else {
        trainer.router = stored.state;
    }
    trainer.text = stored.text;
    Ok(remarks)
}

/// A model that learns from documents with an end of their own ends its texts by that, too.
pub(crate) fn end_as(trainer: &mut Trainer, corpus: &Corpus) {
    let Some(end) = corpus.given_end() else { return };
    let text = trainer.text.get_or_insert_default();
    if !text.eos.contains(&end) {
        text.eos.push(end);
    }
}

/// Weights that the trainer's model has no place for: those of other routers and adapters.
fn left_behind<'a>(trainer: &Trainer, stored: &'a Stored) -> Vec<&'a str> {
    let mut left = Vec::new();
    for (spec, _) in stored.model.weights() {
        let mut taken = trainer.model.weights().iter();
        if !taken.any(|(known, _)| known.name == spec.name && known.shape == spec.shape) {
            left.push(spec.name.as_str());
        }
    }
    left
}

/// The first few of some names, and how many more there are.
fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 6;
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 1 => format!("{} and {more} more", names[..SHOWN].join(", ")),
        _ => names.join(", "),
    }
}

/// Whether what the router of `stored` learned means the same to the trainer's: of the same kind,
/// at the same capacities, in buffers of the same lengths.
fn knows_state(trainer: &Trainer, stored: &Stored) -> bool {
    let (given, wanted) = (stored.model.config(), trainer.model.config());
    let table = model::table::buffers(wanted);
    let mut buffers = stored.state.iter();
    given.router.kind() == wanted.router.kind()
        && given.router.capacities(given.recursions, u64::MAX)
            == wanted.router.capacities(wanted.recursions, u64::MAX)
        && buffers.all(|(name, value)| {
            // Checkpoints of version 0.1 hold this counter at zero whatever the router.
            (name == "running_steps" && value == [0.0])
                || table.iter().any(|spec| spec.name == name && spec.length == value.len())
        })
}

/// Gives a trainer the teacher that its recipe names, if any. Returns what to tell of how it was
/// found.
pub(crate) fn teach(
    trainer: &mut Trainer,
    teacher: Option<Pinned>,
    tokenizer: &[u8],
) -> Result<Vec<String>, TrainError> {
    let mut remarks = Vec::new();
    let Some(teacher) = teacher.filter(|_| trainer.recipe.distill.weight != 0.0) else {
        return Ok(remarks);
    };
    let name = teacher.name.clone();
    let path = Path::new(&name);
    let stored = teacher.open(&mut remarks)?;
    same_tokenizer(path, &stored, tokenizer)?;
    let (found, expected) = (stored.model.config().vocab_size, trainer.recipe.model.vocab_size);
    if found != expected {
        return refuse(
            path,
            "vocab_size",
            found.to_string(),
            format!("{expected}, as the student has"),
        );
    }
    let length = trainer.recipe.data.sequence_length;
    if stored.model.config().context < length {
        let found = stored.model.config().context.to_string();
        let expected = format!(
            "at least data.sequence_length = {length}: the teacher has not learned positions \
             beyond its context; shorten the sequences, or choose another teacher"
        );
        return refuse(path, "context", found, expected);
    }
    for (whose, model) in
        [("the teacher", stored.model.config()), ("the student", &trainer.recipe.model)]
    {
        if model.multipliers.cap().is_some() {
            let found = format!("{} of {whose}", model.multipliers.logit_cap);
            let expected = "0 on both sides: distillation compares logits without a cap; leave \
                            [distill] out"
                .to_owned();
            return refuse(path, "multipliers.logit_cap", found, expected);
        }
    }
    trainer.teacher = Some(Arc::new(stored));
    Ok(remarks)
}

fn same_tokenizer(path: &Path, stored: &Stored, tokenizer: &[u8]) -> Result<(), TrainError> {
    match &stored.tokenizer {
        Some(known) if known != tokenizer => {
            let expected =
                "that of data.dir: build the data with `--tokenizer` naming the checkpoint's";
            refuse(path, "tokenizer.json", "another tokenizer".into(), expected.into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "and 1 more" would take the place of the name.
    #[test]
    fn long_lists_are_cut_where_that_saves_something() {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        assert_eq!(some_of(&names[..1]), "a");
        assert_eq!(some_of(&names[..6]), "a, b, c, d, e, f");
        assert_eq!(some_of(&names[..7]), "a, b, c, d, e, f, g");
        assert_eq!(some_of(&names), "a, b, c, d, e, f and 2 more");
    }
}
