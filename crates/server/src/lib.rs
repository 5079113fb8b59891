//! The HTTP contract over any engine. Knows no tensor.

mod answer;
mod ask;
mod backend;
mod body;
mod calendar;
mod chat;
mod choice;
mod connection;
mod error;
mod fields;
mod flight;
mod generate;
mod json;
mod keys;
mod lexicon;
mod metrics;
mod openapi;
mod random;
mod routes;
mod serve;
mod settings;
mod state;
mod stops;
mod stream;
mod tables;
mod template;
mod views;

pub use backend::{Backend, Facts};
pub use lexicon::Text;
pub use serve::serve;
pub use settings::{Limits, ServeError, Settings};
