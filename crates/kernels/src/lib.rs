//! Arithmetic on slices: matrix products, attention, norms. Knows no tensor.

pub mod adamw;
pub mod adapted;
pub mod attend;
pub mod clamped_swiglu;
pub mod cross_entropy;
pub mod divergence;
pub mod exp;
pub mod gated;
pub mod gelu;
pub mod grouped;
pub mod latent;
pub mod layer_norm;
pub mod machine;
pub mod matmul;
pub mod memory;
pub mod pages;
pub mod quant;
pub mod rms_norm;
pub mod rotary;
pub mod rows;
pub mod softmax;
pub mod swiglu;

mod check;
#[cfg(all(test, target_arch = "x86_64"))]
mod every_width;
mod gate_rows;
mod multiversion;
mod reduce;
mod scratch;
#[cfg(test)]
mod testing;
