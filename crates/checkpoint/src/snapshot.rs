//! What a checkpoint holds, borrowed from its owner for the time of a save.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// One tensor: row-major f32 values under a name.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor<'a> {
    /// Any text but `__metadata__`, which the file format keeps for itself.
    pub name: String,
    /// Size of each dimension; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the product of `shape`, all finite.
    pub data: Cow<'a, [f32]>,
}

/// Everything that one checkpoint holds.
///
/// Keys are file names (stems for tensors and JSON): ASCII letters, digits, `-`, `_` and `.`, not
/// starting with `.`, at most 128 bytes.
#[derive(Debug, Clone, Default)]
pub struct Snapshot<'a> {
    /// Written as `<key>.safetensors`, the tensors in the given order.
    pub tensors: BTreeMap<String, Vec<NamedTensor<'a>>>,
    /// Written as `<key>.json`.
    pub json: BTreeMap<String, serde_json::Value>,
    /// Written under the key itself, byte for byte.
    pub files: BTreeMap<String, Vec<u8>>,
}
