//! SHA-256 of files, in chunks.

use std::io;
use std::path::Path;

use files::FixedFile;
use sha2::{Digest, Sha256};

use crate::LoadError;

/// Bytes read or written at a time.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// Lower-case hexadecimal digits of a digest.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a file's contents as 64 lower-case hexadecimal digits, read 1 MiB at a time.
///
/// # Errors
/// [`LoadError::Io`] if the file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String, LoadError> {
    let file = FixedFile::open(path).map_err(|e| LoadError::io(path, "open", e))?;
    sha256_fixed(&file).map_err(|e| LoadError::reading(path, e))
}

pub(crate) fn sha256_fixed(file: &FixedFile) -> io::Result<String> {
    let mut hasher = Sha256::new();
    file.pieces((0, file.length()), |piece| {
        hasher.update(piece);
        io::Result::Ok(())
    })?;
    Ok(hex(&hasher.finalize()))
}
