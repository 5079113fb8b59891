//! Checkpoint files of others: Hugging Face folders and GGUF, read as named tensors and settings,
//! and written for them.
//!
//! [`ModelFile::open`] takes either form and gives [`ArchConfig`], the weights by [`TensorRole`] as
//! row-major f32 matrices in Hugging Face's rotary order, a tokenizer.json and the [`Special`]
//! tokens. Whatever the arithmetic of a plain Llama model does not cover (biases, experts, other
//! activations, sliding windows) is refused by name, never ignored. Nothing is sized by a number
//! from a file before that number was held against the file's length.

mod error;
pub mod gguf;
pub mod hf;
mod json;
mod layout;
mod open;
mod parts;
mod rotary;
mod settings;
mod special;

pub use error::{FormatError, Result};
pub use open::ModelFile;
pub use parts::{LayerRole, TensorRole, TensorSource};
pub use settings::{ArchConfig, RopeScaling};
pub use special::Special;
