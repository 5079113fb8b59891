//! Weight matrices in 16 to 2 bits, and their products with rows of activations, for inference.
//!
//! A product's bits depend on its row of activations and its row of weights alone, as everywhere
//! here.
//!
//! A format (`format.rs`, `formats/`) says how weights are rounded to codes and scales. The codes
//! are of one of a few kinds (`codes.rs`), and each kind has its kernels.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
mod codes;
mod compensate;
mod error;
mod exact;
mod format;
mod formats;
mod half;
mod kernel;
mod lanes;
mod layout;
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

pub use codes::Element;
pub use error::QuantError;
pub use exact::{matmul_exact, matmul_exact_back};
pub use format::Format;
pub use matrix::Quantized;
pub use parts::StoredPart;
#[doc(hidden)]
pub use path::ProductPath;
#[doc(hidden)]
pub use product::matmul_quantized_with;
pub use product::{matmul_quantized, matmul_quantized_rows};
