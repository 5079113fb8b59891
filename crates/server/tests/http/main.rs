//! The HTTP contract against a fake engine.

mod client;
mod clients;
mod contract;
mod embeddings;
mod fake;
mod forms;
mod hostile;
mod lifecycle;
mod metrics;
mod options;
mod origins;
mod responses;
mod scores;
mod streams;
mod templates;
