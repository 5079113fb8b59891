//! The one error type of this room: each message names the file and its line, what was expected,
//! what was found.

use std::path::{Path, PathBuf};

/// What can go wrong between a task file and its report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The operating system refused a file operation.
    #[error(
        "cannot {action} {path}: {source}; \
         check that the path exists and that this user may read it",
        path = path.display()
    )]
    Io {
        /// What was tried: "read", "list".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system answered.
        source: std::io::Error,
    },
    /// A task file says something that a task of its kind cannot mean.
    #[error(
        "{path}: line {line}: {key}: expected {expected}, found {found}",
        path = path.display()
    )]
    Setting {
        /// The task file that has the key.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The key that no setting has.
        key: String,
        /// What the key means, and what to write instead where that is known.
        expected: String,
        /// What is written there.
        found: String,
    },
    /// One line of a JSONL file is no item of its task.
    #[error(
        "{path}: line {line}: {field}: expected {expected}, found {found}; \
         repair the line, or leave it out",
        path = path.display()
    )]
    Item {
        /// The file of items.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The field, or the text made of fields.
        field: String,
        /// What an item must hold.
        expected: String,
        /// What this one holds.
        found: String,
    },
    /// An item that this tokenizer or this context cannot hold.
    #[error("task {task}: item {item}, choice {choice}: expected {expected}, found {found}")]
    Tokens {
        /// Name of the task.
        task: String,
        /// The item, from 0.
        item: usize,
        /// The choice, from 0.
        choice: usize,
        /// The number of scores or tokens that scoring needs.
        expected: String,
        /// What the tokens are.
        found: String,
    },
    /// Arguments or answers that do not belong to the task.
    #[error("task {task}: {name}: expected {expected}, found {found}")]
    Argument {
        /// Name of the task.
        task: String,
        /// Name of the argument, as a caller writes it.
        name: &'static str,
        /// The range in which it is legal.
        expected: String,
        /// The value that was given instead.
        found: String,
    },
}

impl TaskError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn argument(
        task: &str,
        name: &'static str,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> TaskError {
        Self::Argument {
            task: task.to_owned(),
            name,
            expected: expected.into(),
            found: found.to_string(),
        }
    }
}

/// `; did you mean ...?` where one of `known` is close to `word`, else nothing.
pub(crate) fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let close = known.into_iter().map(|name| (strsim::jaro_winkler(word, name), name));
    let best = close.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(closeness, _)| *closeness >= 0.75);
    best.map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"))
}

/// The start of a text for a message, in quotes.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
