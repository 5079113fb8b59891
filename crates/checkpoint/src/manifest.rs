//! `manifest.json`: which files a checkpoint has, their sizes and SHA-256 sums.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::error::{LoadError, NEXT_DAMAGED};
use crate::misfit::quote;
use crate::names;
use crate::tensor_file::open_regular;

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

pub(crate) fn read(folder: &Path) -> Result<Vec<FileEntry>, LoadError> {
    let path = &folder.join(names::MANIFEST);
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| LoadError::io(path, "read", e))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(LoadError::invalid(
            path,
            "size",
            format!("at most {MAX_BYTES} bytes"),
            "more",
            NEXT_DAMAGED,
        ));
    }
    parse(path, &bytes)
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
    let files = raw
        .files
        .iter()
        .enumerate()
        .map(|(i, file)| entry(path, i, file))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeSet::new();
    for (i, file) in files.iter().enumerate() {
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
    Ok(files)
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
