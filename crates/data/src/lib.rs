//! Text to token ids to packed windows. Knows no tensor.

mod error;
pub mod reader;
pub mod tokenizer;

pub use error::{DataError, Result};
