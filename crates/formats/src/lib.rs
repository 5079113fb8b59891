//! Checkpoint files of others: Hugging Face folders and GGUF, read as named tensors and settings,
//! and written for them.
//!
//! [`ModelFile::open`] takes either form and gives [`ArchConfig`], the weights by [`TensorRole`] as
//! row-major f32 matrices in Hugging Face's rotary order, a tokenizer.json and its
//! [`data::SpecialTokens`].
//! What an architecture calls its settings and tensors is said by its member of
//! [`architectures::ALL`]. Whatever the arithmetic of [`ArchConfig`] does not cover is refused by
//! name, never ignored. Nothing is sized
//! by a number from a file before that number was held against the file's length.

mod additions;
mod arch_config;
pub mod architectures;
mod error;
mod experts;
pub mod gguf;
pub mod hf;
mod json;
mod layout;
mod open;
pub mod peft;
mod piece;
mod rotary;
mod special;
mod tensors;
mod writing;

pub use additions::{
    Additions, HeadNorm, HiddenActivation, LatentAttention, NormPosition, SlidingWindow,
};
pub use arch_config::{ArchConfig, RopeScaling};
pub use architectures::Architecture;
pub use error::{FormatError, Result};
pub use experts::{ClampedProduct, ExpertScores, Experts};
pub use open::ModelFile;
pub use tensors::{LayerRole, RoundedRows, Rounding, TensorRole, TensorSource};
