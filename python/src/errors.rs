//! Errors of Rust as exceptions of Python, in the words of the command line.

use std::path::Path;

use engine::GenerateError;
use opening::notes::causes;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// What kind of mistake it was: which class of `lathe._errors` is raised.
#[derive(Clone, Copy)]
enum Kind {
    /// `LatheError` itself, and nothing else.
    Other,
    /// A `ValueError`, too: what was asked for makes no sense.
    Value,
    /// A `FileNotFoundError`, too: there is nothing at the path.
    Missing,
}

impl Kind {
    fn class(self) -> &'static str {
        match self {
            Self::Other => "LatheError",
            Self::Value => "LatheValueError",
            Self::Missing => "LatheFileNotFoundError",
        }
    }
}

fn exception(kind: Kind, text: String) -> PyErr {
    static CLASSES: [PyOnceLock<Py<PyType>>; 3] = [const { PyOnceLock::new() }; 3];
    Python::attach(|py| match CLASSES[kind as usize].import(py, "lathe._errors", kind.class()) {
        Ok(class) => PyErr::from_type(class.clone(), text),
        Err(error) => error,
    })
}

/// An error of a computation or of a file; of generation where the request made no sense.
pub(crate) fn failed(error: &anyhow::Error) -> PyErr {
    let kind = match error.downcast_ref::<GenerateError>() {
        None | Some(GenerateError::Run(_)) => Kind::Other,
        Some(_) => Kind::Value,
    };
    exception(kind, causes(error))
}

/// What was said to a request: mostly that it makes no sense.
pub(crate) fn asked(error: &anyhow::Error) -> PyErr {
    match error.is::<GenerateError>() {
        true => failed(error),
        false => refused(error),
    }
}

/// An argument that makes no sense.
pub(crate) fn refused(error: &anyhow::Error) -> PyErr {
    exception(Kind::Value, causes(error))
}

/// An argument that makes no sense, in words.
pub(crate) fn value(text: impl Into<String>) -> PyErr {
    exception(Kind::Value, text.into())
}

/// What was said of the file or folder at `path`, which may not be there at all.
pub(crate) fn at(path: &Path, error: &anyhow::Error) -> PyErr {
    if is_missing(path) { exception(Kind::Missing, causes(error)) } else { failed(error) }
}

/// What was said of an option that may name the file `path`.
pub(crate) fn option_at(path: &Path, error: &anyhow::Error) -> PyErr {
    if is_missing(path) { exception(Kind::Missing, causes(error)) } else { refused(error) }
}

fn is_missing(path: &Path) -> bool {
    let found = path.symlink_metadata();
    found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// A panic, which is a mistake of Lathe's own.
pub(crate) fn panicked(why: &(dyn std::any::Any + Send)) -> PyErr {
    let text = why.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| why.downcast_ref::<String>().cloned()).unwrap_or_default();
    exception(Kind::Other, format!("Lathe stopped at a mistake of its own: {text}"))
}
