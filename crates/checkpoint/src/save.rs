//! Writing a checkpoint beside the others and renaming it into place once it is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::building::{FileWriter, FolderWriter, Place, bad_name, split};
use crate::disk::Disk;
use crate::error::SaveError;
use crate::hash::CHUNK_BYTES;
use crate::header;
use crate::manifest::{self, FileEntry, FileKind};
use crate::misfit::quote;
use crate::recover::{Failure, attempt};
use crate::{Misfit, NamedTensor, Snapshot, TensorData, names};

/// Writes `snapshot` as the folder `parent/<name>/` and returns its path.
///
/// The folder is built as `parent/.tmp-<name>/`, each file and the folder synced, then renamed to
/// its name and the parent synced. A checkpoint of the same name is first renamed to `.old-<name>`
/// and removed at the end; if the process dies in between, [`load`](crate::load) and
/// [`newest_valid`](crate::newest_valid) find it there, and the next `save` or
/// [`recover`](crate::recover) puts back whichever of the two is complete. Something else of that
/// name is kept as `.bad-<name>`. Missing parents are created. Waits while another process saves
/// into `parent`.
///
/// # Errors
/// Names, shapes and values are checked before anything is written. When the disk refuses an
/// operation the unfinished folder is removed, a checkpoint of the same name goes back to its
/// place, and [`SaveError::Io`] says what could not be undone.
pub fn save(
    parent: &Path,
    name: &str,
    snapshot: &Snapshot<'_>,
    disk: &dyn Disk,
) -> Result<PathBuf, SaveError> {
    write(parent, name, snapshot, Place::Replaced, disk)
}

/// As [`save`], for the folder `place`, which must be free or empty.
///
/// # Errors
/// As [`save`]; a `place` that is taken, or whose name no checkpoint has.
pub fn save_new(
    place: &Path,
    snapshot: &Snapshot<'_>,
    disk: &dyn Disk,
) -> Result<PathBuf, SaveError> {
    let (parent, name) = split(place)?;
    write(parent, name, snapshot, Place::Free, disk)
}

fn write(
    parent: &Path,
    name: &str,
    snapshot: &Snapshot<'_>,
    place: Place,
    disk: &dyn Disk,
) -> Result<PathBuf, SaveError> {
    if !names::is_plain(name) {
        return Err(bad_name("checkpoint", name, names::NAME_RULE));
    }
    let parts = prepare(snapshot)?;
    let names: Vec<&str> = parts.keys().map(String::as_str).collect();
    let folder = FolderWriter::begin(parent, name, &names, place, disk)?;
    match fill(&folder, &parts).and_then(|()| folder.publish()) {
        Ok(()) => Ok(parent.join(name)),
        Err(failure) => Err(folder.give_up(failure)),
    }
}

enum Content<'s> {
    Tensors { header: Vec<u8>, tensors: &'s [NamedTensor<'s>] },
    Owned(Vec<u8>),
    Borrowed(&'s [u8]),
}

/// One file of the checkpoint, checked.
struct Part<'s> {
    kind: FileKind,
    content: Content<'s>,
}

/// Checks everything that can be wrong with a snapshot and orders its files by name.
fn prepare<'s>(snapshot: &'s Snapshot<'_>) -> Result<BTreeMap<String, Part<'s>>, SaveError> {
    let mut parts = BTreeMap::new();
    let mut add = |kind: FileKind, key: &str, content| {
        let file = format!("{key}{}", kind.suffix());
        if !names::is_plain(key) || !names::is_plain(&file) || file == names::MANIFEST {
            let expected = format!("{}, and not {}", names::NAME_RULE, names::MANIFEST);
            return Err(bad_name(kind.name(), key, &expected));
        }
        match parts.insert(file.clone(), Part { kind, content }) {
            None => Ok(()),
            Some(first) => {
                let found = format!("two ({} and {})", first.kind.name(), kind.name());
                let expected = "one part of the snapshot to write it";
                Err(Misfit::new(format!("file {file}"), expected, found, "rename one of them"))?
            }
        }
    };
    for (key, tensors) in &snapshot.tensors {
        let file = format!("{key}{}", FileKind::Tensors.suffix());
        check_tensors(&file, tensors)?;
        let header = header::build(tensors).map_err(|bytes| {
            let expected = format!("at most {} bytes", header::MAX_HEADER_BYTES);
            let next = "spread the tensors over several files";
            Misfit::new(format!("{file}: header"), expected, format!("{bytes} bytes"), next)
        })?;
        add(FileKind::Tensors, key, Content::Tensors { header, tensors })?;
    }
    for (key, value) in &snapshot.json {
        add(FileKind::Json, key, Content::Owned(json_bytes(key, value)?))?;
    }
    for (key, bytes) in &snapshot.files {
        add(FileKind::File, key, Content::Borrowed(bytes))?;
    }
    Ok(parts)
}

/// The text of a JSON value, checked to read back as the same value: a value built in memory can be
/// nested more deeply than a reader follows.
fn json_bytes(key: &str, value: &serde_json::Value) -> Result<Vec<u8>, SaveError> {
    let bytes = format!("{value:#}\n").into_bytes();
    let reason = match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(read) if read == *value => return Ok(bytes),
        Ok(_) => "a different value".to_owned(),
        Err(e) => e.to_string(),
    };
    let file = format!("{key}{}", FileKind::Json.suffix());
    let expected = "JSON that reads back as the value given";
    Err(Misfit::new(file, expected, reason, "nest less deeply").into())
}

fn check_tensors(file: &str, tensors: &[NamedTensor<'_>]) -> Result<(), SaveError> {
    let mut names = BTreeSet::new();
    for tensor in tensors {
        let name = quote(&tensor.name);
        if tensor.name == header::METADATA {
            let expected = format!("another name, as the file format keeps this one (in {file})");
            return Err(bad_name("tensor", &tensor.name, &expected));
        }
        if !names.insert(tensor.name.as_str()) {
            let what = format!("{file}: tensor {name}");
            let next = "names within a file must differ: rename one of them";
            return Err(Misfit::new(what, "each name once", "it twice", next).into());
        }
        let element = tensor.data.dtype().bytes();
        let bytes = header::byte_size(&tensor.shape, element);
        if bytes != Some(tensor.data.size()) || tensor.shape.len() > header::MAX_DIMENSIONS {
            let expected = match bytes {
                Some(_) if tensor.shape.len() > header::MAX_DIMENSIONS => {
                    "at most 32 dimensions of".to_owned()
                }
                Some(bytes) => (bytes / element).to_string(),
                None => format!("below 2^{}", 64 - element.ilog2()),
            };
            let what = format!("{file}: tensor {name} of shape {:?}", tensor.shape);
            let found = (tensor.data.size() / element).to_string();
            let next = "pass the shape the data has";
            return Err(Misfit::new(what, format!("{expected} values"), found, next).into());
        }
        if let Some((index, value)) = tensor.data.not_finite() {
            let next = "nothing was written: the run has diverged, go back to an older checkpoint";
            return Err(Misfit::not_finite(file, &tensor.name, index, value, next).into());
        }
    }
    Ok(())
}

fn fill(folder: &FolderWriter<'_>, parts: &BTreeMap<String, Part<'_>>) -> Result<(), Failure> {
    let mut entries = Vec::new();
    for (name, part) in parts {
        let mut file = folder.start_file(name)?;
        match &part.content {
            Content::Tensors { header, tensors } => append_tensors(&mut file, header, tensors)?,
            Content::Owned(bytes) => file.append(bytes)?,
            Content::Borrowed(bytes) => file.append(bytes)?,
        }
        let (bytes, sha256) = file.close()?;
        entries.push(FileEntry { name: name.clone(), kind: part.kind, bytes, sha256 });
    }
    folder.put_manifest(&manifest::to_bytes(&entries))
}

/// Appends tensors in chunks, as little-endian bytes.
fn append_tensors(
    file: &mut FileWriter<'_>,
    header: &[u8],
    tensors: &[NamedTensor<'_>],
) -> Result<(), Failure> {
    file.append(header)?;
    let mut buffer = Vec::with_capacity(CHUNK_BYTES);
    for tensor in tensors {
        match &tensor.data {
            TensorData::F32(values) => append_values(file, &mut buffer, values)?,
            TensorData::Pieces(pieces) => {
                let mut left = pieces.values;
                while left > 0 {
                    let action = "gather the values of";
                    let piece = attempt(action, Path::new(&tensor.name), pieces.take(left))?;
                    append_values(file, &mut buffer, &piece)?;
                    left -= piece.len();
                }
            }
            TensorData::Stored { bytes, .. } => {
                for part in bytes.chunks(CHUNK_BYTES) {
                    room(file, &mut buffer, part.len())?;
                    buffer.extend_from_slice(part);
                }
            }
        }
    }
    file.append(&buffer)
}

fn append_values(
    file: &mut FileWriter<'_>,
    buffer: &mut Vec<u8>,
    values: &[f32],
) -> Result<(), Failure> {
    for part in values.chunks(CHUNK_BYTES / 4) {
        let start = room(file, buffer, 4 * part.len())?;
        buffer.resize(start + 4 * part.len(), 0);
        for (bytes, value) in buffer[start..].as_chunks_mut().0.iter_mut().zip(part) {
            *bytes = value.to_le_bytes();
        }
    }
    Ok(())
}

/// Writes the buffer out if `more` bytes do not fit beside what it holds; returns how much it holds
/// then.
fn room(file: &mut FileWriter<'_>, buffer: &mut Vec<u8>, more: usize) -> Result<usize, Failure> {
    if buffer.len() + more > CHUNK_BYTES {
        file.append(buffer)?;
        buffer.clear();
    }
    Ok(buffer.len())
}
