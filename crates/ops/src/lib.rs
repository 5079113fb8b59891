//! Differentiable operations on Burn tensors, each with a plain version and a fast one. The only room that names a backend.
