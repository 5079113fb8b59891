//! JSON files of bounded size, read by key with errors that name file and field.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{io_at, quote};
use crate::{FormatError, Result};

/// Above any settings file; the index of a model of a thousand layers has a tenth of it.
const MAX_BYTES: u64 = 32 << 20;
/// Commas and brackets, of which a parsed value needs one each; bounds the memory of the parsed
/// form.
const MAX_VALUES: usize = 1 << 18;

/// The object in a JSON file, or one within it.
pub(crate) struct JsonObject<'a> {
    path: &'a Path,
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

/// A file that was read and parsed as one JSON object.
pub(crate) struct JsonFile {
    path: PathBuf,
    root: Map<String, Value>,
}

/// The bytes of a regular text file of at most `max` bytes, without a byte-order mark.
pub(crate) fn read_bytes(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = files::open(path).map_err(io_at(path, "open"))?;
    let length = file.metadata().map_err(io_at(path, "open"))?.len();
    if length > max {
        let (expected, found) = (format!("at most {max} bytes"), format!("{length} bytes"));
        return Err(FormatError::damaged(path, "file size", expected, found));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(max).read_to_end(&mut bytes).map_err(io_at(path, "read"))?;
    files::skip_mark(&mut bytes);
    Ok(bytes)
}

impl JsonFile {
    /// Reads a file that must hold one JSON object.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = read_bytes(path, MAX_BYTES)?;
        let values = bytes.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
        if values > MAX_VALUES {
            let expected = format!("at most {MAX_VALUES} values");
            return Err(FormatError::damaged(path, "JSON", expected, format!("up to {values}")));
        }
        let root = serde_json::from_slice(&bytes)
            .map_err(|e| FormatError::damaged(path, "JSON", "one JSON object", e.to_string()))?;
        Ok(Self { path: path.to_path_buf(), root })
    }

    /// [`JsonFile::read`], `None` where there is no such file.
    pub(crate) fn read_if_there(path: &Path) -> Result<Option<Self>> {
        if path.try_exists().map_err(|e| FormatError::io(path, "open", e))? {
            Self::read(path).map(Some)
        } else {
            Ok(None)
        }
    }

    pub(crate) fn object(&self) -> JsonObject<'_> {
        JsonObject { path: &self.path, prefix: "", map: &self.root }
    }
}

impl<'a> JsonObject<'a> {
    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// The field's name as it goes into messages.
    pub(crate) fn field(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.into() } else { format!("{}.{key}", self.prefix) }
    }

    /// The value of a key, `None` where it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is written at all, even as null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The same file with other keys and values.
    pub(crate) fn with<'b>(&self, map: &'b Map<String, Value>) -> JsonObject<'b>
    where
        'a: 'b,
    {
        JsonObject { path: self.path, prefix: self.prefix, map }
    }

    /// Keys and values, in the order of the file.
    pub(crate) fn items(&self) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        self.map.iter()
    }

    pub(crate) fn wrong(&self, key: &str, expected: impl Into<String>) -> FormatError {
        let found = self.get(key).map_or("nothing".into(), describe);
        FormatError::damaged(self.path, self.field(key), expected, found)
    }

    pub(crate) fn unsupported(&self, key: &str, expected: impl Into<String>) -> FormatError {
        let found = self.get(key).map_or("nothing".into(), describe);
        FormatError::unsupported(self.path, self.field(key), expected, found)
    }

    /// [`JsonObject::unsupported`] for `field`, an item under a key, that is `found`.
    pub(crate) fn unsupported_item(
        &self,
        field: &str,
        expected: impl Into<String>,
        found: String,
    ) -> FormatError {
        FormatError::unsupported(self.path, self.field(field), expected, found)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.wrong(key, expected))).transpose()
    }

    /// An integer of 0 to 2^32 - 1.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "an integer of 32 bits", |value| {
            u32::try_from(value.as_u64()?).ok().map(|n| n as usize)
        })
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        self.typed(key, "a list", Value::as_array)
    }

    /// A list of numbers.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of numbers", |value| {
            value.as_array()?.iter().map(Value::as_f64).collect()
        })
    }

    /// The object under a key; `name` is what messages call it.
    pub(crate) fn inner(&self, key: &'a str) -> Result<Option<JsonObject<'a>>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| JsonObject { path: self.path, prefix: key, map }))
    }

    pub(crate) fn must<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.wrong(key, "a value"))
    }
}

/// A value as it goes into messages.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => quote(text),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(map) => format!("an object of {}", map.len()),
    }
}
