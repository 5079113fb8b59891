//! `manifest.json`: what a data folder holds; written last, so that a folder with one is complete.

use crate::{DataError, LossMaskEntry, TextBytesEntry};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// The manifest's name in its folder.
pub const MANIFEST: &str = "manifest.json";
/// The copy of the tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// Bytes of text per token id: one little-endian u32 each.
pub const TOKEN_BYTES: &str = "token_bytes.bin";

/// All tokens are learned.
pub(crate) const VERSION: u64 = 1;
/// Each shard says which of its tokens are learned. A program that knows version 1 alone would
/// learn all of them.
pub(crate) const VERSION_WITH_MASKS: u64 = 2;
const MAX_BYTES: u64 = 256 << 20;
/// Sources are numbered by u16 in windows.
pub(crate) const MAX_SOURCES: usize = 1 << 16;
const NEXT: &str = "build the data folder again";

/// Which part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Text that training learns from.
    Train,
    /// Text that is measured on and never learned from.
    Validation,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Validation => "validation",
        })
    }
}

/// Sums over the documents of a shard or split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Documents that are not blank.
    pub documents: u64,
    /// Token ids, one end-of-text token per document included.
    pub tokens: u64,
    /// Bytes of text before tokenization.
    pub bytes: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: Totals) {
        self.documents = self.documents.saturating_add(other.documents);
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// A shard file with what it must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Name inside the folder.
    pub file: String,
    /// Number of token ids.
    pub tokens: u64,
    /// Documents, as the shard's own header counts them.
    pub documents: u64,
    /// CRC-32C of the payload.
    pub crc32c: u32,
    /// SHA-256 of the payload.
    pub sha256: String,
    /// The file of bytes of text for each token, where ids alone do not say them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_bytes: Option<TextBytesEntry>,
    /// The file of which tokens are learned, in folders of version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_mask: Option<LossMaskEntry>,
}

/// The shards of one split, with their sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitEntry {
    /// Sums over all shards of the split.
    pub total: Totals,
    /// By source, in the order of `Manifest::sources`.
    pub by_source: Vec<Totals>,
    /// Its shards in stream order.
    pub shards: Vec<ShardEntry>,
}

/// What a data folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format: 1, or 2 where each shard has a loss mask.
    pub version: u64,
    /// SHA-256 of the folder's tokenizer.json.
    pub tokenizer_sha256: String,
    /// Largest id plus one.
    pub vocab_size: u64,
    /// The token that ends each document.
    pub eos_id: u32,
    /// Whether it is another than the tokenizer's end of text: models that learn from this text
    /// are told.
    #[serde(default, skip_serializing_if = "is_false")]
    pub given_end: bool,
    /// SHA-256 of the folder's token_bytes.bin.
    pub token_bytes_sha256: String,
    /// Names of the sources; shards and windows count them from 0.
    pub sources: Vec<String>,
    /// Documents per source and licence; the empty licence means none was stated.
    pub licenses: BTreeMap<String, BTreeMap<String, u64>>,
    /// Rows that could not be read and were left out.
    pub skipped_rows: u64,
    /// The first of them, each with file, row and reason.
    pub skipped_examples: Vec<String>,
    /// Rows without anything but blanks, which were left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub blank_rows: u64,
    /// Files in the folders that were read which are of no kind that is read, by the ending of
    /// their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub other_files: BTreeMap<String, u64>,
    /// Of every thousand bytes of a document, how many at its end are for validation, where whole
    /// documents would have left too little; absent where each is on one side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_per_mille: Option<u32>,
    /// Of a thousand conversations, how many are for validation, where those that were asked for
    /// would have been too few; conversations are never cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raised_per_mille: Option<u32>,
    /// The part to learn from.
    pub train: SplitEntry,
    /// The part to measure on.
    pub validation: SplitEntry,
}

impl Manifest {
    /// Reads and checks the manifest of a data folder.
    ///
    /// # Errors
    /// A missing or damaged manifest, with file and field.
    pub fn load(dir: &Path) -> Result<Self, DataError> {
        let path = &dir.join(MANIFEST);
        let file = files::open(path).map_err(DataError::io("read", path))?;
        let length = file.metadata().map_err(DataError::io("read", path))?.len();
        if length > MAX_BYTES {
            return Err(wrong(
                path,
                "file size",
                format!("at most {MAX_BYTES} bytes"),
                format!("{length}"),
            ));
        }
        let bytes = files::read_open(file, MAX_BYTES).map_err(DataError::io("read", path))?;
        let value: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|e| wrong(path, "JSON", "one object".to_owned(), e.to_string()))?;
        let version = value.get("version");
        let known = [VERSION, VERSION_WITH_MASKS];
        if !version.and_then(serde_json::Value::as_u64).is_some_and(|v| known.contains(&v)) {
            let found = version.map_or("nothing".into(), ToString::to_string);
            return Err(wrong(path, "version", known.map(|v| v.to_string()).join(" or "), found));
        }
        let manifest: Manifest = serde_json::from_value(value)
            .map_err(|e| wrong(path, "fields", "those of its version".into(), e.to_string()))?;
        manifest.check(path)?;
        Ok(manifest)
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<(), DataError> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| {
            wrong(&dir.join(MANIFEST), "JSON", "plain values".into(), e.to_string())
        })?;
        json.push(b'\n');
        let path = dir.join(MANIFEST);
        files::write_whole(&path, &json).map_err(DataError::io("write", &path))
    }

    /// The entry of a split.
    pub fn split(&self, split: Split) -> &SplitEntry {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
        }
    }

    /// How many tokens of a split are learned, and not only read.
    pub fn learned(&self, split: Split) -> u64 {
        let of = |shard: &ShardEntry| shard.loss_mask.as_ref().map_or(shard.tokens, |m| m.learned);
        self.split(split).shards.iter().map(of).sum()
    }

    /// How many windows of `length` inputs a split has.
    pub fn windows(&self, split: Split, length: usize) -> u64 {
        self.split(split).total.tokens.saturating_sub(1) / length.max(1) as u64
    }

    fn check(&self, path: &Path) -> Result<(), DataError> {
        if self.vocab_size == 0 || self.vocab_size > 1 << 32 {
            return Err(wrong(
                path,
                "vocab_size",
                "1 to 4294967296".into(),
                self.vocab_size.to_string(),
            ));
        }
        if u64::from(self.eos_id) >= self.vocab_size {
            return Err(wrong(
                path,
                "eos_id",
                format!("below {}", self.vocab_size),
                self.eos_id.to_string(),
            ));
        }
        if self.sources.len() > MAX_SOURCES {
            return Err(wrong(
                path,
                "sources",
                format!("at most {MAX_SOURCES}"),
                self.sources.len().to_string(),
            ));
        }
        for split in [Split::Train, Split::Validation] {
            self.check_split(path, split)?;
        }
        Ok(())
    }

    fn check_split(&self, path: &Path, split: Split) -> Result<(), DataError> {
        let entry = self.split(split);
        if entry.by_source.len() != self.sources.len() {
            let (expected, found) =
                (self.sources.len().to_string(), entry.by_source.len().to_string());
            return Err(wrong(path, &format!("{split}.by_source"), expected, found));
        }
        let mut by_source = Totals::default();
        entry.by_source.iter().for_each(|t| by_source.add(*t));
        if by_source != entry.total {
            let (expected, found) =
                (format!("the sum over sources {by_source:?}"), format!("{:?}", entry.total));
            return Err(wrong(path, &format!("{split}.total"), expected, found));
        }
        let mut sums = Totals { bytes: entry.total.bytes, ..Totals::default() };
        for (i, shard) in entry.shards.iter().enumerate() {
            if !is_plain_name(&shard.file) {
                let field = format!("{split}.shards[{i}].file");
                return Err(wrong(
                    path,
                    &field,
                    "a plain file name".into(),
                    format!("{:?}", shard.file),
                ));
            }
            let masked = self.version == VERSION_WITH_MASKS;
            if shard.loss_mask.is_some() != masked {
                let expected = format!("one in version {VERSION_WITH_MASKS}, none before");
                let found = if masked { "none" } else { "one" }.to_owned();
                let field = format!("{split}.shards[{i}].loss_mask");
                return Err(wrong(path, &field, expected, found));
            }
            sums.add(Totals { documents: shard.documents, tokens: shard.tokens, bytes: 0 });
        }
        if sums != entry.total {
            let (expected, found) =
                (format!("the sum over shards {sums:?}"), format!("{:?}", entry.total));
            return Err(wrong(path, &format!("{split}.total"), expected, found));
        }
        Ok(())
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_false(given: &bool) -> bool {
    !given
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Letters, digits and `-_.` of ASCII, the first one no dot: the name leads out of no folder.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn wrong(path: &Path, field: &str, expected: String, found: String) -> DataError {
    DataError::format(path, field, expected, found, NEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of one source with one document of three tokens to learn from.
    fn manifest() -> Manifest {
        let total = Totals { documents: 1, tokens: 3, bytes: 2 };
        let shard = ShardEntry {
            file: "train-0.bin".into(),
            tokens: 3,
            documents: 1,
            crc32c: 0,
            sha256: String::new(),
            text_bytes: None,
            loss_mask: None,
        };
        Manifest {
            version: VERSION,
            tokenizer_sha256: String::new(),
            vocab_size: 10,
            eos_id: 0,
            given_end: false,
            token_bytes_sha256: String::new(),
            sources: vec!["words".into()],
            licenses: BTreeMap::new(),
            skipped_rows: 0,
            skipped_examples: Vec::new(),
            blank_rows: 0,
            other_files: BTreeMap::new(),
            ends_per_mille: None,
            raised_per_mille: None,
            train: SplitEntry { total, by_source: vec![total], shards: vec![shard] },
            validation: SplitEntry { by_source: vec![Totals::default()], ..Default::default() },
        }
    }

    fn checked(change: impl Fn(&mut Manifest)) -> Result<(), String> {
        let mut changed = manifest();
        change(&mut changed);
        changed.check(Path::new(MANIFEST)).map_err(|error| error.to_string())
    }

    /// The last value that is taken and the first that is not.
    #[test]
    fn limits_are_the_last_values_that_are_taken() {
        for (size, end) in [(1, 0), (10, 9), (1 << 32, u32::MAX)] {
            assert_eq!(checked(|m| (m.vocab_size, m.eos_id) = (size, end)), Ok(()));
        }
        for size in [0, (1 << 32) + 1] {
            let said = checked(|m| m.vocab_size = size).unwrap_err();
            assert!(said.contains("vocab_size"), "{said}");
        }
        for end in [10, u32::MAX] {
            let said = checked(|m| m.eos_id = end).unwrap_err();
            assert!(said.contains("eos_id") && said.contains("below 10"), "{said}");
        }
        let of_sources = |count: usize| {
            move |m: &mut Manifest| {
                m.sources = vec!["words".into(); count];
                m.train.by_source.resize(count, Totals::default());
                m.validation.by_source.resize(count, Totals::default());
            }
        };
        assert_eq!(checked(of_sources(MAX_SOURCES)), Ok(()));
        let said = checked(of_sources(MAX_SOURCES + 1)).unwrap_err();
        assert!(said.contains("sources") && said.contains("at most 65536"), "{said}");
    }

    #[test]
    fn sums_that_do_not_hold_are_refused() {
        type Change = fn(&mut Manifest);
        let changes: [(&str, Change); 6] = [
            ("train.by_source", |m| m.train.by_source.push(Totals::default())),
            ("validation.by_source", |m| m.validation.by_source.clear()),
            ("train.total", |m| m.train.by_source[0].bytes += 1),
            ("train.total", |m| m.train.shards[0].tokens += 1),
            ("train.total", |m| m.train.shards[0].documents += 1),
            ("validation.total", |m| {
                let shard = m.train.shards[0].clone();
                m.validation.shards.push(shard);
            }),
        ];
        for (field, change) in changes {
            let said = checked(change).unwrap_err();
            assert!(said.contains(field), "{field}: {said}");
        }
    }

    /// A shard lies in the folder itself.
    #[test]
    fn names_of_shards_lead_out_of_no_folder() {
        for name in ["a", "A-b_c.9", "train-00000.bin"] {
            assert_eq!(checked(|m| m.train.shards[0].file = name.into()), Ok(()), "{name}");
        }
        for name in ["", ".", "..", ".hidden", "a/b", "/a", "a\\b", "a b", "\u{e4}", "c:d"] {
            let said = checked(|m| m.train.shards[0].file = name.into()).unwrap_err();
            assert!(said.contains("train.shards[0].file"), "{name:?}: {said}");
        }
    }

    /// A folder of version 1 without masks, or of version 2 with one for each shard.
    #[test]
    fn masks_and_version_go_together() {
        let mask = || Some(LossMaskEntry { learned: 1, sha256: String::new() });
        let with = |m: &mut Manifest| m.train.shards[0].loss_mask = mask();
        for said in
            [checked(with).unwrap_err(), checked(|m| m.version = VERSION_WITH_MASKS).unwrap_err()]
        {
            assert!(said.contains("train.shards[0].loss_mask"), "{said}");
        }
        let both = |m: &mut Manifest| {
            with(m);
            m.version = VERSION_WITH_MASKS;
        };
        assert_eq!(checked(both), Ok(()));
        let mut folder = manifest();
        assert_eq!(folder.learned(Split::Train), 3);
        both(&mut folder);
        assert_eq!(folder.learned(Split::Train), 1);
    }
}
