//! Arithmetic on slices: matrix products, attention, norms. Knows no tensor.

pub mod machine;
pub mod matmul;
