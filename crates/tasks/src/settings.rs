//! The TOML of a task: keys with their lines, read by name, and none of them unknown.

use std::path::{Path, PathBuf};

use toml::de::DeTable;
use toml::{Table, Value};

use crate::error::{TaskError, excerpt, hint};
use crate::template::Template;

const MAX_BYTES: u64 = 1 << 20;

/// A task file, parsed.
#[derive(Debug)]
pub(crate) struct TaskSettings {
    path: PathBuf,
    values: Table,
    lines: Vec<(String, usize)>,
}

impl TaskSettings {
    /// Reads a task file and checks its keys against those of its kind.
    pub(crate) fn read(path: &Path) -> Result<Self, TaskError> {
        let file = files::open(path).map_err(TaskError::io("read", path))?;
        let bytes = file.metadata().map_err(TaskError::io("read", path))?.len();
        let mut settings =
            Self { path: path.to_path_buf(), values: Table::new(), lines: Vec::new() };
        if bytes > MAX_BYTES {
            return Err(settings.at(
                1,
                "size",
                "a task file of at most 1 MiB",
                format!("{bytes} bytes"),
            ));
        }
        let mut bytes = files::read_open(file, MAX_BYTES).map_err(TaskError::io("read", path))?;
        files::skip_mark(&mut bytes);
        let text = String::from_utf8(bytes)
            .map_err(|e| settings.at(1, "encoding", "UTF-8", e.utf8_error().to_string()))?;
        let parsed = DeTable::parse(&text).and_then(|keys| Ok((keys, toml::from_str(&text)?)));
        let (keys, values) = parsed.map_err(|e| {
            let line = e.span().map_or(1, |span| line_of(&text, span.start));
            settings.at(line, "syntax", "TOML", e.message())
        })?;
        settings.values = values;
        settings.lines = keys
            .get_ref()
            .keys()
            .map(|key| (key.get_ref().to_string(), line_of(&text, key.span().start)))
            .collect();
        Ok(settings)
    }

    /// Refuses the first key of the file that is none of `known`, the keys of the kind `kind`.
    ///
    /// # Errors
    /// That key by its line, with the known ones.
    pub(crate) fn check_keys(&self, kind: &str, known: &[&str]) -> Result<(), TaskError> {
        let unknown = self.lines.iter().filter(|(key, _)| !known.contains(&key.as_str()));
        let Some((key, line)) = unknown.min_by_key(|(_, line)| *line) else { return Ok(()) };
        let expected = format!("a key of the kind {kind}: {}", known.join(", "));
        let near = hint(key, known.iter().copied());
        Err(self.at(*line, key, expected, format!("an unknown one{near}")))
    }

    /// The name of the task: the one it gives itself, or that of its file.
    pub(crate) fn name(&self) -> Result<String, TaskError> {
        let name = match self.optional_text("name")? {
            Some(name) => name,
            None => self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        };
        match name.is_empty() || name.chars().any(char::is_control) {
            true => Err(self.wrong("name", "a name without control characters", excerpt(&name))),
            false => Ok(name),
        }
    }

    /// The file of items.
    pub(crate) fn items(&self) -> Result<PathBuf, TaskError> {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        self.beside("items", Some(format!("{stem}.jsonl")))
    }

    /// A string that must be there.
    pub(crate) fn text(&self, key: &str) -> Result<String, TaskError> {
        match self.optional_text(key)? {
            Some(text) => Ok(text),
            None => Err(self.at(1, key, "this key, which the task needs", "none")),
        }
    }

    /// A string that may be there.
    pub(crate) fn optional_text(&self, key: &str) -> Result<Option<String>, TaskError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.wrong(key, "a string", kind_of(other))),
        }
    }

    /// A whole number from 0 that may be there.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, TaskError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Integer(number)) => match usize::try_from(*number) {
                Ok(count) => Ok(Some(count)),
                Err(_) => Err(self.wrong(key, "a whole number from 0", number.to_string())),
            },
            Some(other) => Err(self.wrong(key, "a whole number from 0", kind_of(other))),
        }
    }

    /// A template that must be there.
    pub(crate) fn template(&self, key: &str) -> Result<Template, TaskError> {
        self.parse(key, &self.text(key)?)
    }

    /// A template that is one field, such as `{label}`, and must be there.
    pub(crate) fn field(&self, key: &str) -> Result<Template, TaskError> {
        let template = self.template(key)?;
        match template.only_field() {
            Some(_) => Ok(template),
            None => Err(self.wrong(
                key,
                "one field and nothing else, such as \"{label}\"",
                excerpt(&self.text(key)?),
            )),
        }
    }

    /// At least two templates, or `None` where the key holds a string.
    pub(crate) fn templates(&self, key: &str) -> Result<Option<Vec<Template>>, TaskError> {
        let entries = match self.values.get(key) {
            None => return Err(self.at(1, key, "this key, which the task needs", "none")),
            Some(Value::String(_)) => return Ok(None),
            Some(Value::Array(entries)) => entries,
            Some(other) => return Err(self.wrong(key, "a list of strings", kind_of(other))),
        };
        let parsed = entries.iter().map(|entry| match entry {
            Value::String(text) => self.parse(key, text),
            other => Err(self.wrong(key, "a list of strings", format!("{} in it", kind_of(other)))),
        });
        let parsed = parsed.collect::<Result<Vec<_>, TaskError>>()?;
        match parsed.len() {
            0 | 1 => Err(self.wrong(key, "at least two entries", parsed.len().to_string())),
            _ => Ok(Some(parsed)),
        }
    }

    /// The path of a file beside the task file, named by `key` or else `default`.
    pub(crate) fn beside(&self, key: &str, default: Option<String>) -> Result<PathBuf, TaskError> {
        let name = match (self.optional_text(key)?, default) {
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => self.text(key)?,
        };
        if name.is_empty() || name.contains(['/', '\\', '\0']) || name == "." || name == ".." {
            return Err(self.wrong(key, "the name of a file beside the task file", excerpt(&name)));
        }
        Ok(self.path.with_file_name(name))
    }

    fn parse(&self, key: &str, text: &str) -> Result<Template, TaskError> {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy();
        let origin = format!("`{key}` in {file}, line {}", self.line(key));
        Template::parse(text, origin)
            .map_err(|found| self.wrong(key, "text with {field}s in it", found))
    }

    fn line(&self, key: &str) -> usize {
        self.lines.iter().find(|(name, _)| name == key).map_or(1, |(_, line)| *line)
    }

    /// An error about what stands at `key`.
    pub(crate) fn wrong(
        &self,
        key: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> TaskError {
        self.at(self.line(key), key, expected, found)
    }

    fn at(
        &self,
        line: usize,
        key: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> TaskError {
        let (expected, found) = (expected.into(), found.into());
        TaskError::Setting { path: self.path.clone(), line, key: key.to_owned(), expected, found }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the string {}", excerpt(text)),
        Value::Integer(number) => format!("the number {number}"),
        Value::Float(number) => format!("the number {number}"),
        Value::Boolean(truth) => truth.to_string(),
        Value::Datetime(date) => format!("the date {date}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}
