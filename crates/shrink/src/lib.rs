//! Passes over a checkpoint that make it smaller or larger: a pass walks the model layer by layer,
//! each layer behind those that it has changed already, sees the rows of a calibration text, scores
//! what stands there, shares its target out, and changes the layer. What comes out is an ordinary
//! checkpoint with a report.
//!
//! [`shrink()`] runs passes in a row and writes the checkpoint; the list of passes is
//! [`PassConfig`] in `passes/mod.rs`, and what a pass is stands in `passes/member.rs`.

mod algebra;
mod bank;
mod calibration;
mod change;
mod cluster;
mod error;
mod passes;
mod report;
mod seen;
mod walk;

pub use calibration::{Calibration, HeldOut};
pub use change::ModelChange;
pub use error::ShrinkError;
pub use passes::{LayerCall, PassConfig, PassSettings, RunningPass, Survey};
pub use passes::{
    dense, drop, gptq, grow, latent, layers, merge, mixed, recursions, round, slim, wanda,
};
pub use report::{LayerReport, PassReport, ShrinkReport};
pub use seen::{ExpertsSeen, GroupSeen, Seen, Wanted};
pub use walk::{check, importance, shrink};
