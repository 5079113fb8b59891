//! Text to token ids to packed windows. Knows no tensor.

mod bpe;
mod error;
mod files;
pub mod reader;
pub mod tokenizer;
mod words;

pub use error::{DataError, Result};
