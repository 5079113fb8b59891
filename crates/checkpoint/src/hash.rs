//! SHA-256 of files, in chunks.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

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
    let mut file = files::open(path).map_err(|e| LoadError::io(path, "open", e))?;
    sha256_open(&mut file, path)
}

/// The SHA-256 of the rest of an open file.
pub(crate) fn sha256_open(file: &mut File, path: &Path) -> Result<String, LoadError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; CHUNK_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hasher.finalize())),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(LoadError::io(path, "read", e)),
        }
    }
}
