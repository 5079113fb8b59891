//! The append-only JSONL log of a run: its source of truth, cut back to a step on resume.

use std::fs::File;
use std::path::{Path, PathBuf};

/// One line of the log; keys keep their insertion order, floats print with the fewest digits that read back exactly.
pub type Record = serde_json::Map<String, serde_json::Value>;

/// What can go wrong with a log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The file system refused.
    #[error("run log {path}: could not {action}: {source}; check that the directory exists, is writable and has space")]
    Io {
        /// The log.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A line before the last is not a record.
    #[error("run log {path}, line {line}: expected {expected}, found {found}; repair or delete that line")]
    BadLine {
        /// The log.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What a line must be.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A record that may not be written.
    #[error("run log record: expected a whole number \"step\" or a string \"event\", found {found}; add one of them")]
    BadRecord {
        /// What the record holds instead.
        found: String,
    },
}

/// A last line that a crash left incomplete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornLine {
    /// Line number, from 1.
    pub line: usize,
    /// Its length in bytes.
    pub bytes: usize,
}

/// What a log holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Contents {
    /// The whole records in order.
    pub records: Vec<Record>,
    /// The torn last line, if there is one.
    pub torn: Option<TornLine>,
}

/// An open log at its end.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens or creates the log to append to it.
    pub fn open(path: &Path, keep_through_step: Option<u64>) -> Result<Self, LogError> {
        todo!()
    }
    /// Appends one line and hands it to the system.
    pub fn write(&mut self, record: &Record) -> Result<(), LogError> {
        todo!()
    }
    /// Waits until every line is on the disk.
    pub fn sync(&self) -> Result<(), LogError> {
        todo!()
    }
    /// Where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads a whole log.
pub fn read(path: &Path) -> Result<Contents, LogError> {
    todo!()
}
