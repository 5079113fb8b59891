//! Reading a checkpoint back.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use crate::{LoadError, TensorFile};
/// A verified checkpoint.
pub struct Loaded {
    /// Its folder.
    pub path: PathBuf,
    /// Its JSON state, by key.
    pub json: BTreeMap<String, serde_json::Value>,
    /// Its further files, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}
impl Loaded {
    /// Maps `<stem>.safetensors`.
    pub fn tensors(&self, stem: &str) -> Result<TensorFile, LoadError> { todo!() }
}
/// Verifies the manifest and every checksum.
pub fn load(path: &Path) -> Result<Loaded, LoadError> { todo!() }
