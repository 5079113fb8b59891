//! Reading a checkpoint back, believing only what its manifest confirms.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{LoadError, NEXT_DAMAGED};
use crate::hash::{sha256_bytes, sha256_open};
use crate::manifest::{self, FileEntry, FileKind};
use crate::misfit::quote;
use crate::recover;
use crate::tensor_file::{TensorFile, map_tensors, open_regular};

/// A checkpoint whose files all have the size and checksum of the manifest.
#[derive(Debug)]
pub struct Loaded {
    /// The folder that was opened.
    pub path: PathBuf,
    /// The JSON state, by key.
    pub json: BTreeMap<String, Value>,
    /// The further files, by name.
    pub files: BTreeMap<String, Vec<u8>>,
    tensors: BTreeMap<String, TensorFile>,
}

impl Loaded {
    /// The stems of the tensor files, ascending.
    pub fn stems(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The mapped `<stem>.safetensors`; it is the very file that was verified, even if the
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
/// file. JSON and further files are read into memory; tensors are mapped. Files that the manifest
/// does not list are ignored.
///
/// If the folder is missing because a save that was to replace it was interrupted, the previous
/// checkpoint is put back first. If another process replaces the checkpoint while it is read, the
/// result is either of the two or an error, never a mixture.
///
/// # Errors
/// [`LoadError::Io`] or [`LoadError::Invalid`], naming the file and the field.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    recover::restore_missing(path);
    load_in_place(path)
}

pub(crate) fn load_in_place(path: &Path) -> Result<Loaded, LoadError> {
    let mut loaded = Loaded {
        path: path.to_path_buf(),
        json: BTreeMap::new(),
        files: BTreeMap::new(),
        tensors: BTreeMap::new(),
    };
    for entry in manifest::read(path)? {
        let file = path.join(&entry.name);
        let key = entry.name.strip_suffix(entry.kind.suffix()).unwrap_or(&entry.name).to_owned();
        match entry.kind {
            FileKind::Tensors => {
                loaded.tensors.insert(key, map_checked(&file, &entry)?);
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

/// Sums the file by reading it, as a page of a mapping that the disk cannot deliver would end the
/// process, and maps what the same handle refers to.
fn map_checked(path: &Path, entry: &FileEntry) -> Result<TensorFile, LoadError> {
    let mut file = open_sized(path, entry)?;
    check_sum(path, entry, sha256_open(&mut file, path)?)?;
    map_tensors(&file, path, NEXT_DAMAGED)
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
    let file = open_regular(path)?;
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
