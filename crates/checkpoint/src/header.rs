//! The safetensors header.
/// A stored element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Dtype { F32, F16, Bf16 }
