//! Evaluation tasks: items, prompts, metrics. Knows no tensor.
//!
//! A task is a TOML file with a JSONL file of items beside it. [`Task::requests`] turns it into
//! sequences of token ids to score, whoever scores them gives back one [`SequenceScore`] for each,
//! and [`Task::judge`] makes metrics with standard errors and one record an item of them.
//!
//! Prompts, cuts and metrics are those of lm-evaluation-harness 0.4.13 with its `local-completions`
//! model, so that both programs can be compared item by item. [`reference()`] describes the files.

mod ask;
mod error;
mod items;
mod kind;
mod kinds;
mod report;
mod settings;
mod shots;
mod split;
mod task;
mod template;

pub use ask::{Ask, Before, SequenceScore};
pub use error::TaskError;
pub use kinds::{kind_names, reference};
pub use report::{ItemRecord, Metric, TaskReport};
pub use task::{Encode, Task};
