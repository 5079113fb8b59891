//! The model family: dense, recursive and Mixture-of-Recursions decoders in one definition.
//!
//! A pass goes: embedding, first layers, then the shared block up to `recursions` times for the
//! rows that the router keeps, then last layers, final norm. The model works on packed [`Rows`];
//! what rows may look at is the business of a [`KvCache`], which is a parameter; which rule decides
//! who goes on is a parameter too. Training, evaluation and generation differ in these parameters
//! only. Read `recursion.rs` first, then `model.rs`.

pub mod adapters;
pub mod attention;
mod block;
pub mod config;
mod context;
pub mod cost;
pub mod kv;
pub mod layout;
mod list;
pub mod mlp;
mod model;
pub mod params;
mod pass;
pub mod pattern;
pub mod presets;
mod recursion;
mod recursion_state;
pub mod rng;
pub mod routers;
mod rows;
mod weight_formats;

pub use config::{ConfigError, KvMode, ModelConfig, Sharing};
pub use context::{Carry, LayerContext};
pub use kv::{KvCache, PassCache, SequenceCache};
pub use mlp::MlpConfig;
pub use model::{ForwardOutput, Model};
pub use pass::{Address, Choice, NoProbe, Pass, Probe, RoutingEvent};
pub use recursion_state::{RecursionState, RowState};
pub use routers::{CausalThresholds, Causality, RouterConfig, RouterState, Rule};
pub use rows::{DepthLimits, Rows};
pub use weight_formats::{WeightFormatError, WeightFormats};
