//! GGUF, the file form of llama.cpp: one file with settings, tokenizer and
//! (quantised) weights.
//!
//! Layout, little-endian: magic `GGUF`, u32 version, u64 counts of tensors and settings; settings
//! as (string key, u32 type, value); tensors as (string name, u32 dimensions, u64 sizes with the
//! fastest first, u32 type, u64 offset); then, at a multiple of `general.alignment` (32), the data,
//! to which the offsets are relative.

mod cursor;
mod export;
pub(crate) mod file;
mod imatrix;
pub(crate) mod keys;
mod merges;
pub(crate) mod metadata;
mod model;
mod parse;
mod pieces;
mod pre;
mod quants;
mod tokenizer;
mod types;
mod vocab;
pub(crate) mod write;

pub use export::{GgufOptions, GgufWeightType, export};
pub use file::{Gguf, GgufTensor, has_magic};
pub use imatrix::{Imatrix, ImatrixEntry};

pub use metadata::Metadata;
pub use model::GgufModel;
pub use quants::{dequantise, quantise_q4_0, quantise_q8_0};
pub use types::GgmlType;
pub use write::{GgufSettings, GgufValue, TensorToWrite, write};
