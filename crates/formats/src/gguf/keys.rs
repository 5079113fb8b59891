//! The settings of one architecture: those whose key begins with its name.

use std::path::Path;

use super::metadata::Metadata;
use super::write::GgufValue;
use crate::{FormatError, Result};

/// Typed access to settings by the rest of their key. Absent ones that are needed and numbers
/// beyond 32 bits are refused; messages have the whole key.
pub(crate) struct SettingKeys<'a> {
    metadata: Metadata<'a>,
    prefix: &'static str,
}

impl<'a> SettingKeys<'a> {
    pub(crate) fn new(metadata: Metadata<'a>, prefix: &'static str) -> Self {
        Self { metadata, prefix }
    }

    fn whole(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.metadata.unsigned(&self.whole(key))? else { return Ok(None) };
        match u32::try_from(value) {
            Ok(size) => Ok(Some(size as usize)),
            Err(_) => Err(self.damaged(key, "a number of 32 bits", value.to_string())),
        }
    }

    pub(crate) fn must_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.absent(key))
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.float(&self.whole(key))
    }

    pub(crate) fn must_float(&self, key: &str) -> Result<f64> {
        self.float(key)?.ok_or_else(|| self.absent(key))
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.metadata.string(&self.whole(key))
    }

    /// Refuses a setting that is there and is not `expected`.
    pub(crate) fn agree(&self, key: &str, expected: usize) -> Result<()> {
        match self.size(key)? {
            Some(size) if size != expected => {
                Err(self.unsupported(key, expected.to_string(), size.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses settings of the architecture that are neither `known` nor `zero` and 0.
    pub(crate) fn refuse_others(&self, known: &[&str], zero: &[&str]) -> Result<()> {
        for whole in self.metadata.keys() {
            let rest = whole.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.'));
            let Some(key) = rest.filter(|key| !known.contains(key)) else { continue };
            if !(zero.contains(&key) && self.metadata.unsigned(whole)? == Some(0)) {
                let expected = "only settings whose effect is known here";
                return Err(self.unsupported(key, expected, "it in the file"));
            }
        }
        Ok(())
    }

    fn absent(&self, key: &str) -> FormatError {
        self.damaged(key, "a value", "no such setting")
    }

    pub(crate) fn damaged(
        &self,
        key: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> FormatError {
        FormatError::damaged(self.metadata.path(), self.whole(key), expected, found)
    }

    pub(crate) fn unsupported(
        &self,
        key: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> FormatError {
        FormatError::unsupported(self.metadata.path(), self.whole(key), expected, found)
    }
}

/// A setting of 32 bits, to be written.
pub(crate) fn u32_setting(
    path: &Path,
    prefix: &str,
    key: &str,
    value: usize,
) -> Result<(String, GgufValue)> {
    let key = format!("{prefix}.{key}");
    match u32::try_from(value) {
        Ok(number) => Ok((key, GgufValue::U32(number))),
        Err(_) => Err(FormatError::unwritable(path, key, "a number of 32 bits", value.to_string())),
    }
}
