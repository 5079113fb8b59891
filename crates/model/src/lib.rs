//! The model family: dense, recursive and Mixture-of-Recursions decoders in one definition.
//!
//! A pass goes: embedding, first layers, then the shared block up to `recursions` times for the
//! rows that the router keeps, then last layers, final norm. The model works on packed [`Rows`];
//! what rows may look at is the business of a [`KvCache`], which is a parameter; which rule decides
//! who goes on is a parameter too. Training, evaluation and generation differ in these parameters
//! only. Read `recursion.rs` first, then `model.rs`.

pub mod adapters;
pub mod attention;
mod attention_settings;
mod block;
mod carry;
pub mod config;
mod context;
pub mod cost;
mod error;
pub mod expert_routers;
pub mod kv;
pub mod latent;
mod layer_set;
pub mod layout;
mod linear;
mod list;
mod matrices;
pub mod mlp;
mod model;
mod multipliers;
pub mod norm;
pub mod params;
mod pass;
pub mod pattern;
pub mod presets;
mod recursion;
mod recursion_state;
pub mod rng;
pub mod rotary;
pub mod routers;
mod rows;
mod sizes;
pub mod table;
mod weight_formats;

pub use attention_settings::{AttentionSettings, QueryKeyNorm};
pub use carry::Carry;
pub use config::ModelConfig;
pub use context::LayerContext;
pub use error::ConfigError;
pub use expert_routers::ExpertRouterConfig;
pub use kv::{KvCache, KvMode, PassCache, SequenceCache};
pub use layer_set::LayerSet;
pub use layout::Sharing;
pub use linear::{Linear, LinearBuilder};
pub use mlp::{MlpActivation, MlpConfig};
pub use model::{ForwardOutput, Model};
pub use multipliers::Multipliers;
pub use norm::{NormKind, NormPlace, NormSettings};
pub use pass::{Address, Choice, NoProbe, Pass, Probe, RoutingEvent};
pub use recursion_state::{RecursionState, RowState};
pub use rotary::{RotaryScaling, RotarySettings};
pub use routers::{CausalThresholds, Causality, RouterConfig, RouterState, Rule};
pub use rows::{DepthLimits, Rows};
pub use sizes::Sizes;
pub use weight_formats::{WeightFormatError, WeightFormats};
