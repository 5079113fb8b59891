//! Token ids in, token ids and numbers out: scoring with any routing rule, calibration of the
//! causal rule, generation with a cache. Knows no text and no files.

mod batch;
mod calibrate;
mod coda;
mod draw;
mod driver;
mod engine;
mod error;
mod generate;
mod handle;
mod in_flight;
mod likelihood;
pub mod oracle;
mod paged_cache;
mod pooling;
mod routed;
mod sampler;
mod score;
mod shelf;
mod stats;
mod thread;
mod watch;

pub use batch::{Batch, BatchSequence};
pub use calibrate::{calibrate, causal_rule, causal_rule_with, deciding_logits, disagreement};
pub use draw::{DefaultDraw, Draw};
pub use driver::{Driver, Finished, RunError, run_requests};
pub use engine::{CompletedRows, Engine, EngineOptions, PartRuns};
pub use error::EngineError;
pub use generate::{GenerateError, Generated, Generation, Token, generate, generate_watched};
pub use handle::EngineHandle;
pub use likelihood::{Likelihood, Stretch, likelihoods};
pub use sampler::{Sampler, SamplerError};
pub use score::{RowScore, RowValues, Scoring, hidden, log_probabilities, logits, score};
pub use stats::{LossSum, RecursionStats, RoutingStats, add_each};
pub use thread::EngineThread;
pub use watch::SharedProbe;
