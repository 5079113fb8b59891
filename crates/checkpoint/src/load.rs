//! Reading a checkpoint back, believing only what its manifest confirms.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use files::FixedFile;
use serde_json::Value;

use crate::disk::exists;
use crate::error::{LoadError, NEXT_DAMAGED};
use crate::hash::{sha256_bytes, sha256_fixed};
use crate::manifest::{self, FileEntry, FileKind};
use crate::misfit::quote;
use crate::names;
use crate::tensor_file::{TensorFile, open_tensors};

/// A checkpoint whose files all have the size and checksum of the manifest.
#[derive(Debug)]
pub struct Loaded {
    /// The folder that was opened.
    pub path: PathBuf,
    /// The JSON state, by key.
    pub json: BTreeMap<String, Value>,
    /// The further files, by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// SHA-256 of the manifest, which holds those of all files: it says which checkpoint this is.
    pub fingerprint: String,
    tensors: BTreeMap<String, TensorFile>,
}

impl Loaded {
    /// The stems of the tensor files, ascending.
    pub fn stems(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The open `<stem>.safetensors`; it is the very file that was verified, even if the
    /// checkpoint was replaced or removed since.
    ///
    /// # Errors
    /// The checkpoint has no such tensor file.
    pub fn tensors(&self, stem: &str) -> Result<TensorFile, LoadError> {
        self.tensors.get(stem).cloned().ok_or_else(|| {
            let found = format!("only {:?}", self.tensors.keys().collect::<Vec<_>>());
            let expected = format!("a tensor file {}", quote(stem));
            LoadError::invalid(
                &self.path,
                "files",
                expected,
                found,
                "choose a checkpoint that holds it",
            )
        })
    }
}

/// Opens the checkpoint folder `path`, verifying the manifest and the size and SHA-256 of every
/// file. JSON and further files are read into memory; tensors when they are asked for. Files that
/// the manifest does not list are ignored.
///
/// If the folder is missing because a save that was to replace it was interrupted, the previous
/// checkpoint is opened where that save set it aside. Nothing on the disk is changed. If another
/// process replaces the checkpoint while it is read, the result is either of the two or an error,
/// never a mixture.
///
/// # Errors
/// [`LoadError::Io`] or [`LoadError::Invalid`], naming the file and the field.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    if !exists(path)
        && let Some(parent) = path.parent()
        && let Some(name) = path.file_name().and_then(|name| name.to_str())
        && let Ok(loaded) = load_in_place(&names::aside_path(parent, name))
    {
        return Ok(loaded);
    }
    load_in_place(path)
}

/// The value of `<key>.json` of the checkpoint folder `path`. Only this file is verified.
///
/// # Errors
/// As [`load`]; the manifest does not list the file.
pub fn load_json(path: &Path, key: &str) -> Result<Value, LoadError> {
    let name = format!("{key}{}", FileKind::Json.suffix());
    let (entries, _) = manifest::read(path)?;
    let listed = entries.iter().find(|entry| entry.kind == FileKind::Json && entry.name == name);
    let Some(entry) = listed else {
        let next = "choose a checkpoint that holds it";
        let found = "a manifest without it";
        return Err(LoadError::invalid(path, "files", format!("a file {name}"), found, next));
    };
    let file = path.join(&name);
    parse_json(&file, &read_checked(&file, entry)?)
}

pub(crate) fn load_in_place(path: &Path) -> Result<Loaded, LoadError> {
    let (entries, fingerprint) = manifest::read(path)?;
    let mut loaded = Loaded {
        path: path.to_path_buf(),
        fingerprint,
        json: BTreeMap::new(),
        files: BTreeMap::new(),
        tensors: BTreeMap::new(),
    };
    for entry in entries {
        let file = path.join(&entry.name);
        let key = entry.name.strip_suffix(entry.kind.suffix()).unwrap_or(&entry.name).to_owned();
        match entry.kind {
            FileKind::Tensors => {
                loaded.tensors.insert(key, open_checked(&file, &entry)?);
            }
            FileKind::Json => {
                let value = parse_json(&file, &read_checked(&file, &entry)?)?;
                loaded.json.insert(key, value);
            }
            FileKind::File => {
                loaded.files.insert(key, read_checked(&file, &entry)?);
            }
        }
    }
    Ok(loaded)
}

/// Sums the file, and opens what the same handle refers to.
fn open_checked(path: &Path, entry: &FileEntry) -> Result<TensorFile, LoadError> {
    let file = FixedFile::of(open_sized(path, entry)?);
    let file = file.map_err(|e| LoadError::io(path, "read the size of", e))?;
    check_sum(path, entry, sha256_fixed(&file).map_err(|e| LoadError::reading(path, e))?)?;
    open_tensors(file, path, NEXT_DAMAGED)
}

fn read_checked(path: &Path, entry: &FileEntry) -> Result<Vec<u8>, LoadError> {
    let mut bytes = Vec::new();
    let file = open_sized(path, entry)?;
    file.take(entry.bytes).read_to_end(&mut bytes).map_err(|e| LoadError::io(path, "read", e))?;
    check_sum(path, entry, sha256_bytes(&bytes))?;
    Ok(bytes)
}

/// Opens a file whose size on disk is that of the manifest, so that the latter can be relied on.
fn open_sized(path: &Path, entry: &FileEntry) -> Result<File, LoadError> {
    let file = files::open(path).map_err(|e| LoadError::io(path, "open", e))?;
    let size = file.metadata().map_err(|e| LoadError::io(path, "read the size of", e))?.len();
    if size == entry.bytes {
        return Ok(file);
    }
    let expected = format!("{} bytes as in the manifest", entry.bytes);
    Err(LoadError::invalid(path, "size", expected, format!("{size} bytes"), NEXT_DAMAGED))
}

fn check_sum(path: &Path, entry: &FileEntry, found: String) -> Result<(), LoadError> {
    if found == entry.sha256 {
        return Ok(());
    }
    Err(LoadError::invalid(
        path,
        "sha256",
        format!("{} as in the manifest", entry.sha256),
        found,
        NEXT_DAMAGED,
    ))
}

fn parse_json(path: &Path, bytes: &[u8]) -> Result<Value, LoadError> {
    serde_json::from_slice(bytes)
        .map_err(|e| LoadError::invalid(path, "JSON", "a JSON value", e.to_string(), NEXT_DAMAGED))
}
