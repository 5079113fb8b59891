//! GGUF, the file form of llama.cpp: one memory-mapped file with settings, tokenizer and
//! (quantised) weights.
//!
//! Layout, little-endian: magic `GGUF`, u32 version, u64 counts of tensors and settings; settings
//! as (string key, u32 type, value); tensors as (string name, u32 dimensions, u64 sizes with the
//! fastest first, u32 type, u64 offset); then, at a multiple of `general.alignment` (32), the data,
//! to which the offsets are relative.

mod cursor;
mod export;
mod file;
mod llama;
mod merges;
mod metadata;
mod parse;
mod pre;
mod quants;
mod tokenizer;
mod types;
mod vocab;
mod write;

pub use export::{Export, WeightType, export};
pub(crate) use export::{check_count, too_large};
pub use file::{Gguf, TensorInfo};
pub use llama::{Blocks, Llama};
pub use metadata::Metadata;
pub use quants::{dequantise, quantise_q8_0};
pub use types::GgmlType;
pub(crate) use write::beside;
pub use write::{Tensor, Value, write};
