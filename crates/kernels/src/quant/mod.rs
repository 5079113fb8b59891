//! Weight matrices in 16, 8 or 4 bits, and their products with rows of activations, for inference.
//!
//! A product's bits depend on its row of activations and its row of weights alone, as everywhere
//! here.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
mod error;
mod format;
mod gguf;
mod half;
mod kernel;
mod lanes;
mod matrix;
mod parts;
mod path;
mod product;
mod round;
mod row_codes;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use error::QuantError;
pub use format::Format;
pub use matrix::Quantized;
pub use parts::{Parts, RowParts};
#[doc(hidden)]
pub use path::Path;
pub use product::matmul_quantized;
#[doc(hidden)]
pub use product::matmul_quantized_with;
