//! JSONL files of items, line by line, and the fields of one line.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{TaskError, excerpt, hint};

/// A longer line is refused before it is held: no benchmark has one, a file that is no JSONL may.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// One item as it was written.
#[derive(Debug)]
pub(crate) struct Row {
    path: PathBuf,
    /// Line number in the file, from 1.
    pub(crate) line: usize,
    fields: Map<String, Value>,
}

impl Row {
    /// The value of `field`, which `origin` asks for.
    fn value(&self, field: &str, origin: &str) -> Result<&Value, TaskError> {
        self.fields.get(field).ok_or_else(|| {
            let names: Vec<&str> = self.fields.keys().map(String::as_str).collect();
            let near = hint(field, names.iter().copied());
            let found = format!("only {}{near}", quoted(&names));
            self.wrong(format!("`{field}`"), format!("a field of this name ({origin})"), found)
        })
    }

    /// A field as text: a string as it is, a whole number as it is written.
    pub(crate) fn text(&self, field: &str, origin: &str) -> Result<String, TaskError> {
        match self.value(field, origin)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) if !number.is_f64() => Ok(number.to_string()),
            other => Err(self.wrong(
                format!("`{field}`"),
                format!("a string or a whole number ({origin})"),
                kind(other),
            )),
        }
    }

    /// A field that lists texts.
    pub(crate) fn list(&self, field: &str, origin: &str) -> Result<Vec<String>, TaskError> {
        let texts = match self.value(field, origin)? {
            Value::Array(entries) => texts(entries),
            other => Err(kind(other)),
        };
        texts.map_err(|found| {
            self.wrong(format!("`{field}`"), format!("a list of strings ({origin})"), found)
        })
    }

    /// Which of `choices` a field names: by its place from 0, or by its text.
    pub(crate) fn label(
        &self,
        field: &str,
        origin: &str,
        choices: &[String],
    ) -> Result<usize, TaskError> {
        let found = match self.value(field, origin)? {
            Value::Number(number) => match number.as_u64() {
                Some(place) if place < choices.len() as u64 => return Ok(place as usize),
                _ => number.to_string(),
            },
            Value::String(text) => {
                let mut places = choices
                    .iter()
                    .enumerate()
                    .filter(|(_, choice)| *choice == text)
                    .map(|(at, _)| at);
                match (places.next(), places.next()) {
                    (Some(place), None) => return Ok(place),
                    (Some(_), Some(_)) => {
                        format!("{}, which several choices say", excerpt(text))
                    }
                    _ => format!("{}, which no choice says", excerpt(text)),
                }
            }
            other => kind(other),
        };
        let last = choices.len() - 1;
        let expected = format!("a place from 0 to {last}, or the text of one choice ({origin})");
        Err(self.wrong(format!("`{field}`"), expected, found))
    }

    /// An error about this line.
    pub(crate) fn wrong(
        &self,
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> TaskError {
        item_error(&self.path, self.line, field, expected, found)
    }
}

fn item_error(
    path: &Path,
    line: usize,
    field: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> TaskError {
    TaskError::Item {
        path: path.to_path_buf(),
        line,
        field: field.into(),
        expected: expected.into(),
        found: found.into(),
    }
}

/// The entries as texts, or else what the first one is that is none, and its place.
fn texts(entries: &[Value]) -> Result<Vec<String>, String> {
    let mut texts = Vec::with_capacity(entries.len());
    for (at, entry) in entries.iter().enumerate() {
        match entry {
            Value::String(text) => texts.push(text.clone()),
            other => return Err(format!("{} at place {at}", kind(other))),
        }
    }
    Ok(texts)
}

fn quoted(names: &[&str]) -> String {
    if names.is_empty() {
        return "an empty object".to_owned();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string {}", excerpt(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// The items of `path`, at most `limit`; blank lines are passed over.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<Row>, TaskError> {
    let file = files::open(path).map_err(TaskError::io("read", path))?;
    let mut file = BufReader::new(file);
    let mut rows = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        if rows.len() == limit {
            break;
        }
        bytes.clear();
        let taken = file.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes);
        if taken.map_err(TaskError::io("read", path))? == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE_BYTES {
            return Err(item_error(path, line, "length", "at most 16 MiB", "a longer line"));
        }
        if line == 1 {
            files::skip_mark(&mut bytes);
        }
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            item_error(
                path,
                line,
                "encoding",
                "UTF-8",
                format!("other bytes after {}", e.valid_up_to()),
            )
        })?;
        if text.trim().is_empty() {
            continue;
        }
        let fields = serde_json::from_str(text).map_err(|e| {
            let found = format!("{} at column {}", reason(&e), e.column());
            item_error(path, line, "item", "one JSON object a line", found)
        })?;
        rows.push(Row { path: path.to_path_buf(), line, fields });
    }
    Ok(rows)
}

/// The parser's reason without its own line number, which is always 1.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or_else(|| text.clone(), |(reason, _)| reason.to_owned())
}
