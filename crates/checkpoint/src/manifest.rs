//! `manifest.json`: which files a checkpoint has, their sizes and SHA-256 sums.

use std::collections::BTreeSet;
use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::error::{LoadError, NEXT_DAMAGED};
use crate::hash::sha256_bytes;
use crate::misfit::quote;
use crate::names;

const FORMAT: &str = "lathe-checkpoint";
const VERSION: u64 = 1;
const MAX_BYTES: u64 = 16 << 20;

/// What a file of a checkpoint is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Tensors,
    Json,
    File,
}

const KINDS: [(&str, FileKind, &str); 3] = [
    ("tensors", FileKind::Tensors, ".safetensors"),
    ("json", FileKind::Json, ".json"),
    ("file", FileKind::File, ""),
];

impl FileKind {
    pub(crate) fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind, _)| *kind == self).map_or("", |(name, _, _)| name)
    }

    /// How the names of such files end.
    pub(crate) fn suffix(self) -> &'static str {
        KINDS.iter().find(|(_, kind, _)| *kind == self).map_or("", |(_, _, suffix)| suffix)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileEntry {
    pub(crate) name: String,
    pub(crate) kind: FileKind,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

pub(crate) fn to_bytes(files: &[FileEntry]) -> Vec<u8> {
    let files: Vec<Value> = files
        .iter()
        .map(|file| {
            json!({
                "name": file.name, "kind": file.kind.name(), "bytes": file.bytes,
                "sha256": file.sha256,
            })
        })
        .collect();
    let manifest = json!({"format": FORMAT, "version": VERSION, "files": files});
    format!("{manifest:#}\n").into_bytes()
}

// The fields stay untyped here so that a wrong type is reported with the field's place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    format: Value,
    version: Value,
    #[serde(deserialize_with = "named_files")]
    files: Vec<RawFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    name: Value,
    kind: Value,
    bytes: Value,
    sha256: Value,
}

fn named_files<'de, D: Deserializer<'de>>(json: D) -> Result<Vec<RawFile>, D::Error> {
    Vec::deserialize(json).map_err(|e| D::Error::custom(format!("files: {e}")))
}

/// The files of a checkpoint, and the SHA-256 of the manifest that lists them.
pub(crate) fn read(folder: &Path) -> Result<(Vec<FileEntry>, String), LoadError> {
    let path = &folder.join(names::MANIFEST);
    let file = files::open(path).map_err(|e| LoadError::io(path, "open", e))?;
    let length = file.metadata().map_err(|e| LoadError::io(path, "read the size of", e))?.len();
    if length > MAX_BYTES {
        let (expected, found) = (format!("at most {MAX_BYTES} bytes"), format!("{length} bytes"));
        return Err(LoadError::invalid(path, "size", expected, found, NEXT_DAMAGED));
    }
    let bytes = files::read_open(file, MAX_BYTES).map_err(|e| LoadError::io(path, "read", e))?;
    Ok((parse(path, &bytes)?, sha256_bytes(&bytes)))
}

/// How the manifest of a folder begins that is being written.
const MARK: &str = "{\"format\": \"lathe-checkpoint\", \"version\": 1, \"unfinished\": ";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    format: String,
    #[serde(rename = "version")]
    _version: u64,
    unfinished: BTreeSet<String>,
}

/// The manifest of a folder that is being written, with the names of the files to come.
pub(crate) fn mark(names: &[&str]) -> Vec<u8> {
    format!("{MARK}{}}}\n", json!(names)).into_bytes()
}

/// Whether `folder` was written by this crate and holds nothing else: it has a manifest, or the
/// mark of one that is being written, that names every file in it.
pub(crate) fn is_ours(folder: &Path) -> bool {
    let Some(found) = contents(folder) else { return false };
    let named = match read(folder) {
        Ok((entries, _)) => entries.into_iter().map(|entry| entry.name).collect(),
        Err(_) => match marked(folder) {
            Some(named) => named,
            None => return false,
        },
    };
    found.iter().all(|name| named.contains(name))
}

/// Whether `folder` holds nothing, or only the beginning of a mark.
pub(crate) fn is_barely_begun(folder: &Path) -> bool {
    let bytes = files::read(&folder.join(names::MANIFEST), MAX_BYTES);
    let begun = match &bytes {
        Ok(bytes) => {
            let common = bytes.len().min(MARK.len());
            bytes[..common] == MARK.as_bytes()[..common]
        }
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    begun && contents(folder).is_some_and(|found| found.is_empty())
}

/// Names of the files in a folder but for its manifest; none if it is no folder, or holds something
/// else than files.
fn contents(folder: &Path) -> Option<Vec<String>> {
    if !folder.symlink_metadata().ok()?.is_dir() {
        return None;
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).ok()? {
        let entry = entry.ok()?;
        if !entry.file_type().ok()?.is_file() {
            return None;
        }
        found.push(entry.file_name().into_string().ok()?);
    }
    found.retain(|name| name != names::MANIFEST && name != names::NEW_MANIFEST);
    Some(found)
}

fn marked(folder: &Path) -> Option<BTreeSet<String>> {
    let bytes = files::read(&folder.join(names::MANIFEST), MAX_BYTES).ok()?;
    let mark: Mark = serde_json::from_slice(&bytes).ok()?;
    (mark.format == FORMAT).then_some(mark.unfinished)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<FileEntry>, LoadError> {
    let raw: RawManifest = serde_json::from_slice(bytes).map_err(|e| {
        LoadError::invalid(path, "JSON", "a manifest", clip(&e.to_string()), NEXT_DAMAGED)
    })?;
    if raw.format != FORMAT {
        return Err(LoadError::invalid(
            path,
            "format",
            format!("{FORMAT:?}"),
            shown(&raw.format),
            "name a checkpoint",
        ));
    }
    if raw.version != VERSION {
        let next = "use the version of the program that wrote it";
        return Err(LoadError::invalid(
            path,
            "version",
            VERSION.to_string(),
            shown(&raw.version),
            next,
        ));
    }
    let entries = raw
        .files
        .iter()
        .enumerate()
        .map(|(i, file)| entry(path, i, file))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeSet::new();
    for (i, file) in entries.iter().enumerate() {
        if !seen.insert(&file.name) {
            let field = format!("files[{i}].name");
            return Err(LoadError::invalid(
                path,
                field,
                "each name once",
                format!("{:?} twice", file.name),
                NEXT_DAMAGED,
            ));
        }
    }
    Ok(entries)
}

fn entry(path: &Path, index: usize, raw: &RawFile) -> Result<FileEntry, LoadError> {
    let place = Place { path, index };
    let kind = raw.kind.as_str().and_then(|text| KINDS.iter().find(|(name, _, _)| *name == text));
    let Some(&(_, kind, suffix)) = kind else {
        return Err(place.invalid("kind", "\"tensors\", \"json\" or \"file\"", &raw.kind));
    };
    let Some(name) =
        raw.name.as_str().filter(|name| names::is_plain(name) && *name != names::MANIFEST)
    else {
        return Err(place.invalid("name", names::NAME_RULE, &raw.name));
    };
    if !name.strip_suffix(suffix).is_some_and(names::is_plain) {
        return Err(place.invalid("name", &format!("a name that ends in {suffix:?}"), &raw.name));
    }
    let Some(bytes) = raw.bytes.as_u64() else {
        return Err(place.invalid("bytes", "a number of bytes", &raw.bytes));
    };
    let Some(sha256) = raw.sha256.as_str().filter(|text| is_sum(text)) else {
        return Err(place.invalid("sha256", "64 lower-case hexadecimal digits", &raw.sha256));
    };
    Ok(FileEntry { name: name.to_owned(), kind, bytes, sha256: sha256.to_owned() })
}

/// An entry of the list of files.
struct Place<'a> {
    path: &'a Path,
    index: usize,
}

impl Place<'_> {
    fn invalid(&self, field: &str, expected: &str, found: &Value) -> LoadError {
        let field = format!("files[{}].{field}", self.index);
        LoadError::invalid(self.path, field, expected, shown(found), NEXT_DAMAGED)
    }
}

fn is_sum(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| clip(&value.to_string()), quote)
}

fn clip(text: &str) -> String {
    text.chars().take(160).collect()
}
