//! A task: opened from its files, turned into requests, judged by the answers.

use std::path::Path;

use serde_json::{Map, Value};

use crate::ask::{Ask, Before, SequenceScore};
use crate::error::{TaskError, excerpt};
use crate::items;
use crate::kind::{Item, Kind, Text};
use crate::kinds;
use crate::report::{self, ItemRecord, Score, TaskReport};
use crate::settings::TaskSettings;
use crate::split::{self, Cut};

/// Turns text into ids without adding any, as [`Task::requests`] needs it.
pub type Encode<'a> =
    dyn Fn(&str) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>> + 'a;

/// An evaluation task with its items.
pub struct Task {
    name: String,
    about: Option<String>,
    kind: &'static Kind,
    items: Vec<Item>,
}

impl Task {
    /// Reads a task file and the items beside it, all of them checked.
    ///
    /// # Errors
    /// A file that cannot be read; a key, a template or an item that the kind cannot use, by file
    /// and line.
    pub fn open(path: &Path) -> Result<Self, TaskError> {
        let settings = TaskSettings::read(path)?;
        let kind = kinds::of(&settings)?;
        let (name, about) = (settings.name()?, settings.optional_text("about")?);
        let form = (kind.read)(&settings)?;
        let file = settings.items()?;
        let rows = items::read(&file, usize::MAX)?;
        if rows.is_empty() {
            return Err(settings.wrong(
                "items",
                "a file of at least one item",
                format!("none in {}", file.display()),
            ));
        }
        let items = rows.iter().map(form).collect::<Result<Vec<_>, TaskError>>()?;
        Ok(Self { name, about, kind, items })
    }

    /// Opens every `*.toml` of a folder, in the order of their names.
    ///
    /// # Errors
    /// As [`Task::open`]; a folder without tasks, or with two of the same name.
    pub fn open_folder(folder: &Path) -> Result<Vec<Self>, TaskError> {
        let entries = std::fs::read_dir(folder).map_err(TaskError::io("list", folder))?;
        let paths =
            entries.map(|entry| entry.map(|e| e.path()).map_err(TaskError::io("list", folder)));
        let mut paths = paths.collect::<Result<Vec<_>, TaskError>>()?;
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
        paths.sort();
        let tasks =
            paths.iter().map(|path| Self::open(path)).collect::<Result<Vec<_>, TaskError>>()?;
        let all = folder.display().to_string();
        if tasks.is_empty() {
            return Err(TaskError::argument(
                &all,
                "folder",
                "task files, which end in .toml",
                "none",
            ));
        }
        for (at, task) in tasks.iter().enumerate() {
            if tasks[..at].iter().any(|other| other.name == task.name) {
                return Err(TaskError::argument(
                    &all,
                    "names",
                    "a different `name` in each file",
                    excerpt(&task.name),
                ));
            }
        }
        Ok(tasks)
    }

    /// What the task is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it says about itself.
    pub fn about(&self) -> Option<&str> {
        self.about.as_deref()
    }

    /// Its kind, one of [`kind_names`](crate::kind_names).
    pub fn kind(&self) -> &'static str {
        self.kind.name
    }

    /// How many items it has, at least 1.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Keeps the first items only, at least one.
    pub fn keep_first(&mut self, items: usize) {
        self.items.truncate(items.max(1));
    }

    /// Everything to score, item by item and choice by choice.
    ///
    /// `context_limit` is the longest sequence that the model takes, lm-evaluation-harness's
    /// `max_length`. One place of it stays free, as that program keeps it for the token a server
    /// generates, so a longer text loses ids at its left. `before` says what stands before texts,
    /// as that program's own model of Hugging Face's library has it.
    ///
    /// # Errors
    /// A text that `encode` refuses, a continuation without an id of its own or longer than the
    /// context, a missing prefix token where a text needs one.
    pub fn requests(
        &self,
        encode: &Encode<'_>,
        context_limit: usize,
        before: Before,
    ) -> Result<Vec<Ask>, TaskError> {
        if context_limit < 3 {
            return Err(TaskError::argument(
                &self.name,
                "context_limit",
                "at least 3 tokens",
                context_limit,
            ));
        }
        let mut asks = Vec::new();
        for (item, entry) in self.items.iter().enumerate() {
            let mut shared = Shared::default();
            for (choice, text) in entry.texts.iter().enumerate() {
                let place = Place { task: &self.name, item, choice, encode, context_limit, before };
                let cuts = match text {
                    Text::After { context, continuation } => {
                        vec![place.pair(context, continuation, &mut shared)?]
                    }
                    Text::Whole(text) => place.rolling(text)?,
                };
                asks.extend(cuts.into_iter().map(|cut| Ask {
                    item,
                    choice,
                    ids: cut.ids,
                    from: cut.from,
                }));
            }
        }
        Ok(asks)
    }

    /// Metrics and records from the answers to `asks`, which are this task's [`Task::requests`].
    ///
    /// # Errors
    /// Another number of answers than of asks, asks of another task, a log-likelihood that is not
    /// finite.
    pub fn judge(&self, asks: &[Ask], answers: &[SequenceScore]) -> Result<TaskReport, TaskError> {
        if asks.len() != answers.len() {
            let expected = format!("one for each of {} asks", asks.len());
            return Err(TaskError::argument(&self.name, "answers", expected, answers.len()));
        }
        let sums = self.sums(asks, answers)?;
        let mut records = Vec::with_capacity(self.items.len());
        let mut scores: Vec<Vec<Score>> =
            vec![Vec::with_capacity(self.items.len()); self.kind.measures.len()];
        for (item, (entry, sums)) in self.items.iter().zip(&sums).enumerate() {
            let judged = (self.kind.judge)(entry, sums);
            let mut metrics = Map::new();
            for ((measure, score), all) in
                self.kind.measures.iter().zip(&judged.scores).zip(&mut scores)
            {
                let value = measure.shape.value(score.amount / score.weight);
                metrics.insert(measure.name.to_owned(), Value::from(value));
                all.push(*score);
            }
            records.push(ItemRecord {
                task: self.name.clone(),
                item,
                line: entry.line,
                log_likelihoods: sums.iter().map(|answer| answer.log_likelihood).collect(),
                greedy: sums.iter().map(|answer| answer.greedy).collect(),
                prediction: judged.prediction,
                answer: entry.answer,
                correct: judged.correct,
                metrics,
            });
        }
        let metrics = self
            .kind
            .measures
            .iter()
            .zip(&scores)
            .map(|(m, scores)| report::metric(m, scores))
            .collect();
        Ok(TaskReport { task: self.name.clone(), kind: self.kind.name, metrics, records })
    }

    /// One answer for each choice of each item.
    fn sums(
        &self,
        asks: &[Ask],
        answers: &[SequenceScore],
    ) -> Result<Vec<Vec<SequenceScore>>, TaskError> {
        let mut pairs = asks.iter().zip(answers).peekable();
        let mut sums = Vec::with_capacity(self.items.len());
        for (item, entry) in self.items.iter().enumerate() {
            let mut choices = Vec::with_capacity(entry.texts.len());
            for choice in 0..entry.texts.len() {
                let mut sum: Option<SequenceScore> = None;
                while let Some((_, answer)) =
                    pairs.next_if(|(ask, _)| (ask.item, ask.choice) == (item, choice))
                {
                    if !answer.log_likelihood.is_finite() {
                        let found =
                            format!("{} for item {item}, choice {choice}", answer.log_likelihood);
                        return Err(TaskError::argument(
                            &self.name,
                            "log_likelihood",
                            "a finite number",
                            found,
                        ));
                    }
                    let old = sum.unwrap_or(SequenceScore { log_likelihood: 0.0, greedy: true });
                    let log_likelihood = old.log_likelihood + answer.log_likelihood;
                    sum =
                        Some(SequenceScore { log_likelihood, greedy: old.greedy && answer.greedy });
                }
                let Some(sum) = sum else {
                    return Err(self.other_asks(format!("none for item {item}, choice {choice}")));
                };
                choices.push(sum);
            }
            sums.push(choices);
        }
        match pairs.next() {
            None => Ok(sums),
            Some((ask, _)) => {
                let found = format!("one more, of item {}, choice {}", ask.item, ask.choice);
                Err(self.other_asks(found))
            }
        }
    }

    /// Asks that are not those of this task.
    fn other_asks(&self, found: String) -> TaskError {
        TaskError::argument(&self.name, "asks", "what `requests` gave, in its order", found)
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Task {} ({}, {} items)", self.name, self.kind.name, self.items.len())
    }
}

/// The ids of the context before: choices of one item mostly share it.
#[derive(Default)]
struct Shared<'a> {
    context: &'a str,
    ids: Vec<u32>,
}

/// One text of the task, and what turns it into ids.
struct Place<'a> {
    task: &'a str,
    item: usize,
    choice: usize,
    encode: &'a Encode<'a>,
    context_limit: usize,
    before: Before,
}

impl Place<'_> {
    fn pair<'t>(
        &self,
        context: &'t str,
        continuation: &str,
        shared: &mut Shared<'t>,
    ) -> Result<Cut, TaskError> {
        let cut = if context.is_empty() {
            split::after_prefix(self.ids(continuation)?, self.prefix()?)
        } else {
            let (context, continuation) = split::move_space(context, continuation);
            if shared.context != context {
                *shared = Shared { context, ids: self.begun(context)? };
            }
            split::join(&shared.ids, &self.begun(&format!("{context}{continuation}"))?)
        };
        let scored = cut.ids.len().saturating_sub(cut.from);
        if scored == 0 {
            let expected = "a continuation with a token of its own after its context; \
                            separate them by a delimiter";
            return Err(self.wrong(expected, format!("no token for {}", excerpt(continuation))));
        }
        split::truncate(cut, self.context_limit).ok_or_else(|| {
            let room = self.context_limit - 2;
            self.wrong(
                format!("a continuation of at most {room} tokens, for this model's context"),
                format!("{scored}"),
            )
        })
    }

    fn rolling(&self, text: &str) -> Result<Vec<Cut>, TaskError> {
        let ids = self.begun(text)?;
        if ids.iter().eq(&self.before.begin) {
            return Err(self
                .wrong("a document of at least one token", format!("none for {}", excerpt(text))));
        }
        Ok(split::windows(&ids, self.prefix()?, self.context_limit))
    }

    /// The ids of a text that stands alone, with what the tokenizer puts before it.
    fn begun(&self, text: &str) -> Result<Vec<u32>, TaskError> {
        let mut ids = self.ids(text)?;
        let begin = self.before.begin.filter(|begin| ids.first() != Some(begin));
        ids.splice(..0, begin);
        Ok(ids)
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, TaskError> {
        (self.encode)(text).map_err(|e| {
            self.wrong("a text that the tokenizer can spell", format!("{}: {e}", excerpt(text)))
        })
    }

    fn prefix(&self) -> Result<u32, TaskError> {
        let expected = "a begin-of-text or end-of-text token to score the first token after";
        self.before.prefix.ok_or_else(|| {
            self.wrong(expected, "a tokenizer without either; this task cannot run on it")
        })
    }

    fn wrong(&self, expected: impl Into<String>, found: impl Into<String>) -> TaskError {
        let (expected, found) = (expected.into(), found.into());
        TaskError::Tokens {
            task: self.task.to_owned(),
            item: self.item,
            choice: self.choice,
            expected,
            found,
        }
    }
}
