//! The settings of a GGUF file, read by key and type.

use std::collections::BTreeMap;
use std::path::Path;

use super::cursor::{Cursor, Flaw};
use super::parse::{self, Setting};
use super::types::ValueType;
use crate::{FormatError, Result};

/// The settings of a GGUF file. Every getter gives `None` where the key is absent; a value of
/// another type is an error that names file and key.
#[derive(Clone, Copy)]
pub struct Metadata<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    entries: &'a BTreeMap<String, Setting>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(
        path: &'a Path,
        bytes: &'a [u8],
        entries: &'a BTreeMap<String, Setting>,
    ) -> Self {
        Self { path, bytes, entries }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// The keys in their sorted order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    fn wrong(&self, key: &str, expected: &str, found: impl Into<String>) -> FormatError {
        FormatError::damaged(self.path, key, expected, found)
    }

    fn flaw(&self, key: &str) -> impl Fn(Flaw) -> FormatError {
        move |flaw| self.wrong(key, &flaw.expected, flaw.found)
    }

    fn cursor(&self, entry: &Setting) -> Cursor<'a> {
        Cursor::new(&self.bytes[..entry.value.end], entry.value.start)
    }

    /// A string.
    ///
    /// # Errors
    /// Another type, or no UTF-8.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        if entry.kind != ValueType::String {
            return Err(self.wrong(key, "a string", entry.kind.name()));
        }
        self.cursor(entry).string().map(Some).map_err(self.flaw(key))
    }

    /// A truth value.
    ///
    /// # Errors
    /// Another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        if entry.kind != ValueType::Bool {
            return Err(self.wrong(key, "a truth value", entry.kind.name()));
        }
        Ok(Some(self.bytes[entry.value.start] == 1))
    }

    /// An integer of any width that is not negative.
    ///
    /// # Errors
    /// Another type, or a negative number.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        let number = integer(&mut self.cursor(entry), entry.kind).map_err(self.flaw(key))?;
        let number = number.ok_or_else(|| self.wrong(key, "an integer", entry.kind.name()))?;
        let unsigned = u64::try_from(number)
            .map_err(|_| self.wrong(key, "no negative number", number.to_string()))?;
        Ok(Some(unsigned))
    }

    /// A floating-point number. One stored in 32 bits becomes the nearest f64 to its shortest
    /// decimal form, so that 1e-5 is 1e-5.
    ///
    /// # Errors
    /// Another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        let mut cursor = self.cursor(entry);
        match entry.kind {
            ValueType::F32 => {
                let stored = cursor.array().map(f32::from_le_bytes).map_err(self.flaw(key))?;
                Ok(Some(stored.to_string().parse().unwrap_or(f64::from(stored))))
            }
            ValueType::F64 => {
                cursor.array().map(f64::from_le_bytes).map(Some).map_err(self.flaw(key))
            }
            other => Err(self.wrong(key, "a floating-point number", other.name())),
        }
    }

    /// An array of strings.
    ///
    /// # Errors
    /// Another type, or a string that is no UTF-8; the message has its position.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.items(key, "an array of strings", |cursor, kind| match kind {
            ValueType::String => cursor.string().map(Some),
            _ => Ok(None),
        })
    }

    /// An array of 32-bit integers, signed or not.
    ///
    /// # Errors
    /// Another type.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.items(key, "an array of 32-bit integers", |cursor, kind| match kind {
            ValueType::U32 => cursor.u32().map(|number| Some(number.into())),
            ValueType::I32 => cursor.array().map(|bytes| Some(i32::from_le_bytes(bytes).into())),
            _ => Ok(None),
        })
    }

    /// An array of f32.
    ///
    /// # Errors
    /// Another type.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.items(key, "an array of f32", |cursor, kind| match kind {
            ValueType::F32 => cursor.array().map(f32::from_le_bytes).map(Some),
            _ => Ok(None),
        })
    }

    /// `read` gives `None` for a type that is not `expected`. Items take at most twice their bytes
    /// in the file, so the vector is of the file's order.
    fn items<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&mut Cursor<'a>, ValueType) -> std::result::Result<Option<T>, Flaw>,
    ) -> Result<Option<Vec<T>>> {
        let Some(entry) = self.entries.get(key) else { return Ok(None) };
        if entry.kind != ValueType::Array {
            return Err(self.wrong(key, expected, entry.kind.name()));
        }
        let mut cursor = self.cursor(entry);
        let item = parse::value_type(&mut cursor).map_err(self.flaw(key))?;
        let count = cursor.count(item.least_bytes()).map_err(self.flaw(key))?;
        let mut items = Vec::new();
        for i in 0..count {
            let in_item =
                |flaw: Flaw| self.wrong(&format!("{key}[{i}]"), &flaw.expected, flaw.found);
            let value = read(&mut cursor, item).map_err(in_item)?;
            let value = value.ok_or_else(|| {
                self.wrong(key, expected, format!("one whose items are each {}", item.name()))
            })?;
            if items.is_empty() {
                // Held against the file above.
                items.reserve_exact(count as usize);
            }
            items.push(value);
        }
        Ok(Some(items))
    }
}

/// An integer of any width; `None` for other types.
fn integer(cursor: &mut Cursor<'_>, kind: ValueType) -> std::result::Result<Option<i128>, Flaw> {
    Ok(Some(match kind {
        ValueType::U8 => cursor.array().map(u8::from_le_bytes)?.into(),
        ValueType::I8 => cursor.array().map(i8::from_le_bytes)?.into(),
        ValueType::U16 => cursor.array().map(u16::from_le_bytes)?.into(),
        ValueType::I16 => cursor.array().map(i16::from_le_bytes)?.into(),
        ValueType::U32 => cursor.array().map(u32::from_le_bytes)?.into(),
        ValueType::I32 => cursor.array().map(i32::from_le_bytes)?.into(),
        ValueType::U64 => cursor.array().map(u64::from_le_bytes)?.into(),
        ValueType::I64 => cursor.array().map(i64::from_le_bytes)?.into(),
        _ => return Ok(None),
    }))
}
