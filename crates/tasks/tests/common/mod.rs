//! What the tests of this room share: task folders, a tokenizer of characters, scores that depend
//! on the ids.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use tasks::{Ask, Before, SequenceScore, Task, TaskError};
use tempfile::TempDir;

/// A folder with the task `t.toml` and its items `t.jsonl`.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn with(toml: &str, jsonl: &str) -> Self {
        let folder = Self(TempDir::new().unwrap());
        folder.write("t.toml", toml);
        folder.write("t.jsonl", jsonl);
        folder
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn open(&self) -> Result<Task, TaskError> {
        Task::open(&self.0.path().join("t.toml"))
    }
}

/// Nothing before a text, and this where it follows nothing.
pub(crate) fn prefix(prefix: Option<u32>) -> Before {
    Before { begin: None, prefix }
}

pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/tasks")
}

pub(crate) fn open(path: &Path) -> Task {
    Task::open(path).unwrap()
}

/// One id a character: its code point.
pub(crate) fn encode(text: &str) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(text.chars().map(u32::from).collect())
}

/// What [`encode`] made ids of.
pub(crate) fn text(ids: &[u32]) -> String {
    ids.iter().map(|&id| char::from_u32(id).unwrap()).collect()
}

/// Scores by the ids, different for different asks.
pub(crate) fn answers(asks: &[Ask]) -> Vec<SequenceScore> {
    let score = |ask: &Ask| {
        let mixed = ask.ids.iter().fold(7u32, |sum, &id| sum.wrapping_mul(31).wrapping_add(id));
        let log_likelihood = -f64::from(mixed % 1000) / 97.0 - (ask.ids.len() - ask.from) as f64;
        SequenceScore { log_likelihood, greedy: mixed.is_multiple_of(2) }
    };
    asks.iter().map(score).collect()
}
