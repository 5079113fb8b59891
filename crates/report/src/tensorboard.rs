//! TensorBoard event files: TFRecord frames around hand-encoded protobuf events with scalar
//! summaries.
//!
//! Layout after TensorFlow's `record_writer.h` (length u64, masked CRC-32C of the length, payload,
//! masked CRC-32C of the payload; all little-endian), `event.proto` and `summary.proto`.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// What can go wrong with an event file.
#[derive(Debug, thiserror::Error)]
#[error(
    "TensorBoard events {path}: could not {action}: {source}; \
     check that the directory is writable and has space"
)]
pub struct EventError {
    /// The file or directory.
    pub path: PathBuf,
    /// The operation that failed, as a verb.
    pub action: &'static str,
    /// What the operating system answered.
    pub source: std::io::Error,
}

/// Writes one event file; each call is one frame, handed to the system at once.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

// Field numbers of event.proto and summary.proto with their wire types.
const EVENT_WALL_TIME: u8 = 1 << 3 | FIXED64;
const EVENT_STEP: u8 = 2 << 3 | VARINT;
const EVENT_FILE_VERSION: u8 = 3 << 3 | BYTES;
const EVENT_SUMMARY: u8 = 5 << 3 | BYTES;
const SUMMARY_VALUE: u8 = 1 << 3 | BYTES;
const VALUE_TAG: u8 = 1 << 3 | BYTES;
const VALUE_SIMPLE: u8 = 2 << 3 | FIXED32;
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// How names of event files begin, and what stands behind the time in those of this program.
const PREFIX: &str = "events.out.tfevents.";
const OURS: &str = ".lathe.";

/// Names tried within one second before giving up.
const NAME_ATTEMPTS: usize = 1000;

impl EventWriter {
    /// Creates `dir` and a fresh event file in it; `wall_time` in seconds since 1970 names the file
    /// and stamps its header.
    ///
    /// An existing file is never touched: a counter in the name keeps a second run within the same
    /// second apart.
    pub fn create(dir: &Path, wall_time: f64) -> Result<Self, EventError> {
        fs::create_dir_all(dir).map_err(|source| EventError {
            path: dir.to_path_buf(),
            action: "create the directory",
            source,
        })?;
        let (file, path) = create_fresh(dir, wall_time.max(0.0) as u64)?;
        let mut writer = Self { file, path };
        let mut event = event_head(wall_time, 0);
        push_bytes(&mut event, EVENT_FILE_VERSION, b"brain.Event:2");
        writer.append(&event)?;
        Ok(writer)
    }

    /// Like [`EventWriter::create`], for a run that goes on after step `last`: events of later
    /// steps are first taken out of the files that earlier parts of the run left in `dir`, so that
    /// each step stands once. A shorter file is written beside the old one and renamed over it.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn resume(dir: &Path, wall_time: f64, last: u64) -> Result<Self, EventError> {
        cut_back(dir, last)?;
        Self::create(dir, wall_time)
    }

    /// Appends one event at `step` with a scalar for each `(tag, value)`; an empty list writes
    /// nothing.
    pub fn scalars(
        &mut self,
        step: u64,
        wall_time: f64,
        values: &[(&str, f32)],
    ) -> Result<(), EventError> {
        if values.is_empty() {
            return Ok(());
        }
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::with_capacity(tag.len() + 8);
            push_bytes(&mut entry, VALUE_TAG, tag.as_bytes());
            entry.push(VALUE_SIMPLE);
            entry.extend_from_slice(&value.to_le_bytes());
            push_bytes(&mut summary, SUMMARY_VALUE, &entry);
        }
        let mut event = event_head(wall_time, step);
        push_bytes(&mut event, EVENT_SUMMARY, &summary);
        self.append(&event)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn append(&mut self, payload: &[u8]) -> Result<(), EventError> {
        // One write for the whole frame, so a reader that follows the file rarely meets half of
        // one.
        self.file.write_all(&frame(payload)).map_err(|source| EventError {
            path: self.path.clone(),
            action: "append an event",
            source,
        })
    }
}

/// Takes what is after step `last`, and what a crash left incomplete, out of the event files that
/// this program wrote into `dir`.
fn cut_back(dir: &Path, last: u64) -> Result<(), EventError> {
    let failed = |path: &Path, action, source| EventError { path: path.into(), action, source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed(dir, "list the directory", source)),
    };
    for entry in entries {
        let path = entry.map_err(|source| failed(dir, "list the directory", source))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with(PREFIX) || !name.contains(OURS) {
            continue;
        }
        if path.is_symlink() {
            let source = std::io::Error::new(
                ErrorKind::InvalidInput,
                "a link, and what is cut back would be there: remove it",
            );
            return Err(failed(&path, "take the file for one of this run", source));
        }
        let old = files::read(&path, u64::MAX)
            .map_err(|source| failed(&path, "read the file", source))?;
        let kept = frames_through(&old, last);
        if kept.len() == old.len() {
            continue;
        }
        // Readers of the folder do not take the name of the copy for one of event files.
        let written = files::write_whole(&path, &kept);
        written.map_err(|source| failed(&path, "shorten the file", source))?;
    }
    Ok(())
}

/// The whole frames of `bytes` but those of steps after `last`.
fn frames_through(bytes: &[u8], last: u64) -> Vec<u8> {
    let mut kept = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(length) = frame_length(rest) {
        let (frame, after) = rest.split_at(length);
        if step_of(&frame[12..length - 4]).unwrap_or(0) <= last {
            kept.extend_from_slice(frame);
        }
        rest = after;
    }
    kept
}

/// The bytes of the frame that `bytes` begins with, if it is whole.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let (head, after) = bytes.split_at_checked(12)?;
    let (length, sum) = head.split_at(8);
    let payload = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    let all = payload.checked_add(16)?;
    let (payload, end) = after.get(..all - 12)?.split_at(payload);
    let whole = sum == masked_crc(length).to_le_bytes() && end == masked_crc(payload).to_le_bytes();
    whole.then_some(all)
}

/// The step of an event as [`event_head`] begins it: wall time, then the step.
fn step_of(event: &[u8]) -> Option<u64> {
    let (key, varint) = event.get(9..)?.split_first()?;
    if *key != EVENT_STEP {
        return None;
    }
    let mut step = 0;
    for (i, byte) in varint.iter().take(9).enumerate() {
        step |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some(step);
        }
    }
    None
}

fn create_fresh(dir: &Path, seconds: u64) -> Result<(File, PathBuf), EventError> {
    let mut attempt = 0;
    loop {
        let path = dir.join(format!("{PREFIX}{seconds:010}{OURS}{attempt}"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error)
                if error.kind() == ErrorKind::AlreadyExists && attempt + 1 < NAME_ATTEMPTS =>
            {
                attempt += 1
            }
            Err(source) => return Err(EventError { path, action: "create the file", source }),
        }
    }
}

fn event_head(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = vec![EVENT_WALL_TIME];
    event.extend_from_slice(&wall_time.to_le_bytes());
    event.push(EVENT_STEP);
    // The field is an int64; a step beyond it cannot happen in a run, and saturating keeps the
    // order.
    push_varint(&mut event, step.min(i64::MAX as u64));
    event
}

fn push_bytes(out: &mut Vec<u8>, key: u8, bytes: &[u8]) {
    out.push(key);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(payload.len() + 16);
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc(&length).to_le_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(&masked_crc(payload).to_le_bytes());
    out
}

/// `rotate_right(crc, 15) + 0xa282ead8`: TFRecord's mask, which keeps a CRC over data that holds
/// CRCs sound.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
