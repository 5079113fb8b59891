//! The model family: dense, recursive and Mixture-of-Recursions decoders in one definition.
//!
//! A pass goes: embedding, first layers, then the shared block up to `recursions` times for the rows that the router
//! keeps, then last layers, final norm. The model works on packed [`Rows`]; what rows may look at is the business of a
//! [`Kv`], which is a parameter; which rule decides who goes on is a parameter too. Training, evaluation and generation
//! differ in these parameters only. Read `recursion.rs` first, then `model.rs`.

mod block;
pub mod config;
pub mod cost;
pub mod kv;
mod model;
mod pass;
pub mod presets;
mod recursion;
pub mod relax;
pub mod rng;
pub mod routing;
mod rows;
pub mod sharing;
pub mod spec;
mod turning;

pub use config::{ConfigError, KvMode, ModelConfig, Sharing};
pub use kv::{Cache, Kv, Transient};
pub use model::{Model, Passed};
pub use pass::{Address, NoProbe, Pass, Probe, Routed};
pub use routing::{Decision, RouterConfig, RouterState, Rule, Terms};
pub use rows::{Dial, Rows};
pub use turning::{Aside, Turning};
