//! Reading a checkpoint back, believing only what its manifest confirms.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{LoadError, NEXT_DAMAGED, quote};
use crate::hash::{sha256_bytes, sha256_file};
use crate::manifest::{self, FileEntry, Kind};
use crate::recover;
use crate::tensor_file::{self, TensorFile, open_regular};

/// A checkpoint whose files all have the size and checksum of the manifest.
#[derive(Debug)]
pub struct Loaded {
    /// The checkpoint's folder.
    pub path: PathBuf,
    /// The JSON state, by key.
    pub json: BTreeMap<String, Value>,
    /// The further files, by name.
    pub files: BTreeMap<String, Vec<u8>>,
    stems: Vec<String>,
}

impl Loaded {
    /// The stems of the tensor files, ascending.
    pub fn stems(&self) -> impl ExactSizeIterator<Item = &str> {
        self.stems.iter().map(String::as_str)
    }

    /// Maps `<stem>.safetensors`.
    ///
    /// # Errors
    /// The manifest has no such tensor file, or the file contradicts its format.
    pub fn tensors(&self, stem: &str) -> Result<TensorFile, LoadError> {
        if !self.stems.iter().any(|known| known == stem) {
            let found = format!("only {:?}", self.stems);
            let expected = format!("a tensor file {}", quote(stem));
            let next = "choose a checkpoint that holds it";
            return Err(LoadError::invalid(&self.path, "files", expected, found, next));
        }
        tensor_file::open(&self.path.join(format!("{stem}{}", Kind::Tensors.suffix())), NEXT_DAMAGED)
    }
}

/// Opens the checkpoint folder `path`, verifying the manifest and the size and SHA-256 of every
/// file. JSON and further files are read into memory; tensors stay on disk. Files that the manifest
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
    let mut loaded =
        Loaded { path: path.to_path_buf(), json: BTreeMap::new(), files: BTreeMap::new(), stems: Vec::new() };
    for entry in manifest::read(path)? {
        let file = path.join(&entry.name);
        let key = entry.name.strip_suffix(entry.kind.suffix()).unwrap_or(&entry.name).to_owned();
        match entry.kind {
            Kind::Tensors => {
                check_tensors(&file, &entry)?;
                loaded.stems.push(key);
            }
            Kind::Json => {
                let value = parse_json(&file, &read_checked(&file, &entry)?)?;
                loaded.json.insert(key, value);
            }
            Kind::File => {
                loaded.files.insert(key, read_checked(&file, &entry)?);
            }
        }
    }
    loaded.stems.sort();
    Ok(loaded)
}

fn check_tensors(path: &Path, entry: &FileEntry) -> Result<(), LoadError> {
    check_size(path, entry)?;
    check_sum(path, entry, sha256_file(path)?)?;
    // A sum only says that the file is the one written; the header is checked in its own right.
    tensor_file::open(path, NEXT_DAMAGED).map(drop)
}

/// Reads a file whose size on disk was compared with the manifest first.
fn read_checked(path: &Path, entry: &FileEntry) -> Result<Vec<u8>, LoadError> {
    let size = check_size(path, entry)?;
    let mut bytes = Vec::new();
    open_regular(path)?.take(size).read_to_end(&mut bytes).map_err(|e| LoadError::io(path, "read", e))?;
    check_sum(path, entry, sha256_bytes(&bytes))?;
    Ok(bytes)
}

fn check_size(path: &Path, entry: &FileEntry) -> Result<u64, LoadError> {
    let size = open_regular(path)?.metadata().map_err(|e| LoadError::io(path, "read the size of", e))?.len();
    if size == entry.bytes {
        return Ok(size);
    }
    let expected = format!("{} bytes as in the manifest", entry.bytes);
    Err(LoadError::invalid(path, "size", expected, format!("{size} bytes"), NEXT_DAMAGED))
}

fn check_sum(path: &Path, entry: &FileEntry, found: String) -> Result<(), LoadError> {
    if found == entry.sha256 {
        return Ok(());
    }
    Err(LoadError::invalid(path, "sha256", format!("{} as in the manifest", entry.sha256), found, NEXT_DAMAGED))
}

fn parse_json(path: &Path, bytes: &[u8]) -> Result<Value, LoadError> {
    serde_json::from_slice(bytes).map_err(|e| LoadError::invalid(path, "JSON", "a JSON value", e.to_string(), NEXT_DAMAGED))
}
