//! Writing a checkpoint beside the others and renaming it into place once it is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::disk::{Disk, OpenFile};
use crate::error::SaveError;
use crate::hash::{CHUNK_BYTES, hex};
use crate::header;
use crate::manifest::{self, FileEntry, FileKind};
use crate::misfit::quote;
use crate::recover::{self, Failure, attempt, exists};
use crate::{Misfit, NamedTensor, Snapshot, TensorData, lock, names};

const UNTOUCHED: &str = "nothing was written";

/// Writes `snapshot` as the folder `parent/<name>/` and returns its path.
///
/// The folder is built as `parent/.tmp-<name>/`, each file and the folder synced, then renamed to
/// its name and the parent synced. A checkpoint of the same name is first renamed to `.old-<name>`
/// and removed at the end; if the process dies in between, the next [`load`](crate::load),
/// [`newest_valid`](crate::newest_valid) or `save` puts back whichever of the two is complete.
/// Missing parents are created. Waits while another process saves into `parent`.
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
    if !names::is_plain(name) {
        return Err(bad_name("checkpoint", name, names::NAME_RULE));
    }
    let parts = prepare(snapshot)?;
    let fail = |failure: Failure, aftermath: String| io_error(name, failure, aftermath);
    create_parents(parent, disk).map_err(|e| fail(e, UNTOUCHED.to_owned()))?;
    let _lock = attempt("lock", parent, lock::acquire(parent))
        .map_err(|e| fail(e, UNTOUCHED.to_owned()))?;
    recover::settle(parent, name, disk).map_err(|e| fail(e, UNTOUCHED.to_owned()))?;
    let (place, temp) = (parent.join(name), names::temp_path(parent, name));
    if exists(&place) && !place.is_dir() {
        let source =
            io::Error::new(io::ErrorKind::NotADirectory, "there is something else of that name");
        return Err(fail(Failure { action: "replace", path: place, source }, UNTOUCHED.to_owned()));
    }
    if exists(&temp) {
        attempt("remove", &temp, disk.remove_dir_all(&temp))
            .map_err(|e| fail(e, UNTOUCHED.to_owned()))?;
    }
    let written = write_folder(&temp, &parts, disk).and_then(|()| publish(parent, name, disk));
    written.map_err(|failure| {
        let aftermath = undo(parent, name, disk);
        fail(failure, aftermath)
    })?;
    Ok(place)
}

fn bad_name(what: &str, name: &str, expected: &str) -> SaveError {
    let next = "rename it and save again";
    Misfit::new(format!("name of the {what}"), expected, quote(name), next).into()
}

fn io_error(name: &str, failure: Failure, aftermath: String) -> SaveError {
    let Failure { action, path, source } = failure;
    let next = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free disk space and save again"
        }
        io::ErrorKind::PermissionDenied => "check the permissions and save again",
        _ => "check the disk and save again",
    };
    SaveError::Io { name: name.to_owned(), action, path, source, aftermath, next }
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

/// Creates the missing folders down to `parent`, each made durable in the one above it.
fn create_parents(parent: &Path, disk: &dyn Disk) -> Result<(), Failure> {
    let missing: Vec<_> = parent
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !exists(path))
        .collect();
    for path in missing.into_iter().rev() {
        match disk.create_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return attempt("create folder", path, Err(e));
            }
            _ => {}
        }
        let above =
            path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        attempt("sync the folder", above, disk.sync_dir(above))?;
    }
    Ok(())
}

fn write_folder(
    temp: &Path,
    parts: &BTreeMap<String, Part<'_>>,
    disk: &dyn Disk,
) -> Result<(), Failure> {
    attempt("create folder", temp, disk.create_dir(temp))?;
    let mut entries = Vec::new();
    for (name, part) in parts {
        let mut writer = Writer::create(&temp.join(name), disk)?;
        match &part.content {
            Content::Tensors { header, tensors } => writer.tensors(header, tensors)?,
            Content::Owned(bytes) => writer.bytes(bytes)?,
            Content::Borrowed(bytes) => writer.bytes(bytes)?,
        }
        let (bytes, sha256) = writer.finish()?;
        entries.push(FileEntry { name: name.clone(), kind: part.kind, bytes, sha256 });
    }
    let mut writer = Writer::create(&temp.join(names::MANIFEST), disk)?;
    writer.bytes(&manifest::to_bytes(&entries))?;
    writer.finish()?;
    attempt("sync the folder", temp, disk.sync_dir(temp))
}

/// Writes one file in chunks, summing what it writes.
struct Writer<'d> {
    disk: &'d dyn Disk,
    file: OpenFile,
    hasher: Sha256,
    bytes: u64,
}

impl<'d> Writer<'d> {
    fn create(path: &Path, disk: &'d dyn Disk) -> Result<Self, Failure> {
        let file = attempt("create", path, disk.create_file(path))?;
        Ok(Self { disk, file, hasher: Sha256::new(), bytes: 0 })
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let result = self.disk.write_chunk(&mut self.file, chunk);
            attempt("write", self.file.path(), result)?;
            self.hasher.update(chunk);
            self.bytes += chunk.len() as u64;
        }
        Ok(())
    }

    fn tensors(&mut self, header: &[u8], tensors: &[NamedTensor<'_>]) -> Result<(), Failure> {
        self.bytes(header)?;
        let mut buffer = Vec::with_capacity(CHUNK_BYTES);
        for tensor in tensors {
            match &tensor.data {
                TensorData::F32(values) => {
                    for part in values.chunks(CHUNK_BYTES / 4) {
                        let start = self.room(&mut buffer, 4 * part.len())?;
                        buffer.resize(start + 4 * part.len(), 0);
                        for (bytes, value) in buffer[start..].as_chunks_mut().0.iter_mut().zip(part)
                        {
                            *bytes = value.to_le_bytes();
                        }
                    }
                }
                TensorData::Stored { bytes, .. } => {
                    for part in bytes.chunks(CHUNK_BYTES) {
                        self.room(&mut buffer, part.len())?;
                        buffer.extend_from_slice(part);
                    }
                }
            }
        }
        self.bytes(&buffer)
    }

    /// Writes the buffer out if `more` bytes do not fit beside what it holds; returns how much it
    /// holds then.
    fn room(&mut self, buffer: &mut Vec<u8>, more: usize) -> Result<usize, Failure> {
        if buffer.len() + more > CHUNK_BYTES {
            self.bytes(buffer)?;
            buffer.clear();
        }
        Ok(buffer.len())
    }

    fn finish(self) -> Result<(u64, String), Failure> {
        attempt("sync", self.file.path(), self.disk.sync_file(&self.file))?;
        Ok((self.bytes, hex(&self.hasher.finalize())))
    }
}

/// Gives the finished folder its name; what was there before is set aside and removed at the end.
fn publish(parent: &Path, name: &str, disk: &dyn Disk) -> Result<(), Failure> {
    let place = parent.join(name);
    let temp = names::temp_path(parent, name);
    let aside = names::aside_path(parent, name);
    let replaces = exists(&place);
    if replaces {
        attempt("rename", &place, disk.rename(&place, &aside))?;
    }
    attempt("rename", &temp, disk.rename(&temp, &place))?;
    if let Err(e) = disk.sync_dir(parent) {
        // Not durable, so not saved: take the name back. If even that fails, `undo` reports it.
        let _ = disk.rename(&place, &temp);
        return attempt("sync the folder", parent, Err(e));
    }
    if replaces {
        // The new checkpoint is durable; a remainder of the old one is removed by the next save.
        let _ = disk.remove_dir_all(&aside);
    }
    Ok(())
}

/// After a failure: puts a checkpoint set aside back, removes the unfinished folder, and says how
/// things stand.
fn undo(parent: &Path, name: &str, disk: &dyn Disk) -> String {
    let place = parent.join(name);
    let temp = names::temp_path(parent, name);
    let aside = names::aside_path(parent, name);
    if exists(&aside)
        && !exists(&place)
        && let Err(e) = disk.rename(&aside, &place)
    {
        let aside = aside.display();
        return format!(
            "the previous checkpoint is kept in {aside} ({e}) and goes back to its place when next \
             opened"
        );
    }
    if exists(&aside) {
        return format!(
            "the new checkpoint could not be taken back and may not survive a power cut; the \
             previous one is kept in {}",
            aside.display()
        );
    }
    if exists(&temp)
        && let Err(e) = disk.remove_dir_all(&temp)
    {
        let temp = temp.display();
        return format!(
            "the unfinished copy {temp} could not be removed ({e}) and is ignored; older \
             checkpoints are untouched"
        );
    }
    "the unfinished copy was removed; older checkpoints are untouched".to_owned()
}
