//! The two shapes that nearly every error about files has.

use std::borrow::Cow;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// Something that is not as it has to be, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, found {found}; {next}")]
pub struct Misfit {
    /// The thing: a file and a field in it, an option, a weight.
    pub what: String,
    /// What would be accepted.
    pub expected: String,
    /// What is there instead.
    pub found: String,
    /// The next move, as an imperative.
    pub next: Cow<'static, str>,
}

impl Misfit {
    /// A misfit of `what`.
    pub fn new(
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        next: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
            next: next.into(),
        }
    }

    /// A misfit of a field in a file.
    pub fn in_file(
        path: &Path,
        field: impl Display,
        expected: impl Into<String>,
        found: impl Into<String>,
        next: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(format!("{}: {field}", path.display()), expected, found, next)
    }

    /// The first NaN or infinite value of a tensor; `index` counts its row-major data.
    pub fn not_finite(
        file: impl Display,
        tensor: &str,
        index: usize,
        value: f32,
        next: impl Into<Cow<'static, str>>,
    ) -> Self {
        let what = format!("{file}: tensor {}[{index}]", quote(tensor));
        Self::new(what, "a finite value", value.to_string(), next)
    }
}

/// What the system refused to do with a file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {action}: {source}; {next}")]
pub struct FileError {
    /// The file or folder concerned.
    pub path: PathBuf,
    /// What was attempted, such as `open`.
    pub action: &'static str,
    /// What the system answered.
    pub source: io::Error,
    /// The next move, as an imperative.
    pub next: &'static str,
}

impl FileError {
    /// With the next move that the kind of failure suggests.
    pub fn new(path: &Path, action: &'static str, source: io::Error) -> Self {
        let next = files::next_move(&source);
        Self { path: path.to_path_buf(), action, source, next }
    }
}

/// Quotes text from outside for a message: escaped, and cut after 80 characters.
pub fn quote(text: &str) -> String {
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(80).collect();
    if chars.next().is_some() {
        format!("{head:?}.. ({} bytes)", text.len())
    } else {
        format!("{head:?}")
    }
}
