//! The model, the losses of its routers and its counts once more: in f64, row by row, from the
//! formulas of the documents. It shares no code and no shape of code with the rooms
//! that it is held against, and knows a model as what a checkpoint is: a `config.json` and named
//! matrices.
//!
//! Other rooms name this one in `[dev-dependencies]` alone. It panics on anything that no checked
//! config says.

mod adapted;
mod experts;
mod forward;
mod layer;
mod matrix;
mod routing;
mod settings;
pub mod shrink;

pub use forward::{Decide, Decision, Found, forward};
pub use matrix::Matrix;
pub use routing::{RouterLosses, needed_thresholds, pooled_balance};
pub use settings::Settings;
