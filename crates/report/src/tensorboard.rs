//! TensorBoard event files: TFRecord frames around hand-encoded protobuf events with scalar summaries.

use std::fs::File;
use std::path::{Path, PathBuf};

/// What can go wrong with an event file.
#[derive(Debug, thiserror::Error)]
#[error("TensorBoard events {path}: could not {action}: {source}; check that the directory is writable and has space")]
pub struct EventError {
    /// The file or directory.
    pub path: PathBuf,
    /// What was tried.
    pub action: &'static str,
    /// The system's answer.
    pub source: std::io::Error,
}

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Creates `dir` and a fresh event file in it; `wall_time` in seconds since 1970 names the file and stamps its header.
    pub fn create(dir: &Path, wall_time: f64) -> Result<Self, EventError> {
        todo!()
    }
    /// Appends one event with a scalar for each tag.
    pub fn scalars(&mut self, step: u64, wall_time: f64, values: &[(&str, f32)]) -> Result<(), EventError> {
        todo!()
    }
    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
