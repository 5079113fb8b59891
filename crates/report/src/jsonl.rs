//! The append-only JSONL log of a run: its source of truth, cut back to a step on resume.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// One line of the log; keys keep their insertion order, floats print with the fewest digits that
/// read back exactly.
pub type Record = serde_json::Map<String, Value>;

const EXPECTED: &str = "a JSON object with a whole number \"step\" or a string \"event\"";

/// What can go wrong with a log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The file system refused.
    #[error(
        "run log {path}: could not {action}: {source}; \
         check that the directory exists, is writable and has space"
    )]
    Io {
        /// Path of the log.
        path: PathBuf,
        /// The operation that failed, as a verb.
        action: &'static str,
        /// What the operating system answered.
        source: std::io::Error,
    },
    /// A link in the place of the log, to a file that is not this run's.
    #[error(
        "run log {path}: expected a file of this run, found a link to {to}; what a run writes or \
         cuts back would be there: remove the link, or choose another --out",
        to = to.display()
    )]
    Link {
        /// Path of the log.
        path: PathBuf,
        /// What the link says.
        to: PathBuf,
    },
    /// A line before the last is not a record.
    #[error(
        "run log {path}, line {line}: expected {EXPECTED}, found {found}; \
         repair or delete that line"
    )]
    BadLine {
        /// Path of the log.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What stands there instead.
        found: String,
    },
    /// A record that may not be written.
    #[error("run log record: expected {EXPECTED}, found {found}; add one of them")]
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
    /// The torn last line, if there is one: it has no newline at its end or is not a record.
    pub torn: Option<TornLine>,
}

/// An open log at its end.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    /// Length of the whole lines, to cut a failed write off again.
    bytes: u64,
}

impl Log {
    /// Opens or creates the log to append to it.
    ///
    /// A torn last line is dropped. With `keep_through_step = Some(s)` every record with `step > s`
    /// is dropped too; records without a step stay. The lines that stay keep their bytes. The
    /// shorter log is written beside the old one and renamed over it, so a crash leaves either the
    /// old file or the new one.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Link`], or [`LogError::BadLine`] when a line before the last
    /// is not a record; the file is then left as it was.
    pub fn open(path: &Path, keep_through_step: Option<u64>) -> Result<Self, LogError> {
        must_be_own(path)?;
        let old = match files::read(path, u64::MAX) {
            Ok(old) => old,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(io_error(path, "read", source)),
        };
        let lines = parse(path, &old)?;
        let mut kept = Vec::with_capacity(old.len());
        for line in &lines.whole {
            let dropped = match (step_of(&line.record), keep_through_step) {
                (Some(step), Some(last)) => step > last,
                _ => false,
            };
            if !dropped {
                kept.extend_from_slice(line.bytes);
            }
        }
        if kept.len() != old.len() {
            replace(path, &kept)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|source| io_error(path, "open to append", source))?;
        Ok(Self { file, path: path.to_path_buf(), bytes: kept.len() as u64 })
    }

    /// Appends the record as one line and hands it to the system; [`sync`](Self::sync) waits for
    /// the disk.
    ///
    /// # Errors
    /// [`LogError::BadRecord`] without a whole "step" or a string "event"; [`LogError::Io`] when
    /// the write fails, after the part that reached the file has been cut off again where the
    /// system allows it.
    pub fn write(&mut self, record: &Record) -> Result<(), LogError> {
        check(record).map_err(|found| LogError::BadRecord { found })?;
        let mut line = serde_json::to_vec(record).map_err(|error| {
            io_error(&self.path, "encode a record", std::io::Error::other(error))
        })?;
        line.push(b'\n');
        if let Err(source) = self.file.write_all(&line) {
            // The first error is the one to tell; a torn line that stays is dropped at the next
            // open.
            let _ = self.file.set_len(self.bytes);
            return Err(io_error(&self.path, "append a record", source));
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Waits until every line is on the disk.
    pub fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|source| io_error(&self.path, "sync", source))
    }

    /// Where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Refuses a log that is a link to a file, or to none: its run would write there.
///
/// # Errors
/// [`LogError::Link`] with what the link says.
pub fn must_be_own(path: &Path) -> Result<(), LogError> {
    match std::fs::read_link(path) {
        // In a device nothing stands that could be cut back.
        Ok(to) if std::fs::metadata(path).map_or(true, |found| found.is_file()) => {
            Err(LogError::Link { path: path.to_path_buf(), to })
        }
        _ => Ok(()),
    }
}

/// Reads a whole log. A torn last line is reported in [`Contents::torn`] and is no error.
///
/// # Errors
/// [`LogError::Io`], or [`LogError::BadLine`] with the number of the first line that is not a
/// record.
pub fn read(path: &Path) -> Result<Contents, LogError> {
    let bytes = files::read(path, u64::MAX).map_err(|source| io_error(path, "read", source))?;
    let lines = parse(path, &bytes)?;
    Ok(Contents {
        records: lines.whole.into_iter().map(|line| line.record).collect(),
        torn: lines.torn,
    })
}

struct Line<'a> {
    bytes: &'a [u8],
    record: Record,
}

struct Lines<'a> {
    whole: Vec<Line<'a>>,
    torn: Option<TornLine>,
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<Lines<'a>, LogError> {
    let mut lines = Lines { whole: Vec::new(), torn: None };
    let mut rest = bytes;
    while !rest.is_empty() {
        let number = lines.whole.len() + 1;
        let end =
            rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |newline| newline + 1);
        let (line, after) = rest.split_at(end);
        let parsed = match line.strip_suffix(b"\n") {
            Some(text) => parse_record(text),
            None => Err("no newline at its end".to_string()),
        };
        match parsed {
            Ok(record) => lines.whole.push(Line { bytes: line, record }),
            // Blocks of one write may reach the disk out of order: a newline alone does not make
            // the last line whole.
            Err(_) if after.is_empty() => {
                lines.torn = Some(TornLine { line: number, bytes: line.len() })
            }
            Err(found) => {
                return Err(LogError::BadLine { path: path.to_path_buf(), line: number, found });
            }
        }
        rest = after;
    }
    Ok(lines)
}

fn parse_record(text: &[u8]) -> Result<Record, String> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(record)) => check(&record).map(|()| record),
        Ok(_) => Err("JSON that is no object".to_string()),
        Err(error) => Err(format!("no JSON ({error})")),
    }
}

fn check(record: &Record) -> Result<(), String> {
    match (record.get("step"), record.get("event")) {
        (Some(step), _) if step.as_u64().is_some() => Ok(()),
        (Some(step), _) => Err(format!("\"step\": {step}")),
        (None, Some(Value::String(_))) => Ok(()),
        (None, Some(event)) => Err(format!("\"event\": {event}")),
        (None, None) => Err("neither of them".to_string()),
    }
}

fn step_of(record: &Record) -> Option<u64> {
    record.get("step").and_then(Value::as_u64)
}

fn replace(path: &Path, contents: &[u8]) -> Result<(), LogError> {
    files::write_whole(path, contents)
        .map_err(|source| io_error(path, "replace it by the shortened copy", source))
}

fn io_error(path: &Path, action: &'static str, source: std::io::Error) -> LogError {
    LogError::Io { path: path.to_path_buf(), action, source }
}
