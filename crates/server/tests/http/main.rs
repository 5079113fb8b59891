//! The HTTP contract against a fake engine.

mod client;
mod contract;
mod fake;
mod hostile;
mod lifecycle;
mod metrics;
mod options;
mod scores;
mod streams;
