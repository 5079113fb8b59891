//! Token ids in, token ids and numbers out: scoring with any routing rule, calibration of the causal rule, generation
//! with a cache. Knows no text and no files.

mod batch;
mod calibrate;
mod census;
mod desk;
mod draw;
mod engine;
mod flight;
mod generate;
mod likelihood;
mod live;
mod paged;
mod sampler;
mod score;

pub use batch::{Batch, Sequence};
pub use calibrate::{calibrate, causal_rule, disagreement};
pub use census::{Census, Recursed};
pub use desk::Desk;
pub use draw::{Draw, Sampling};
pub use engine::{Engine, EngineError, Options};
pub use generate::{GenerateError, Generated, Generation, Token, generate};
pub use likelihood::{Likelihood, Stretch, likelihoods};
pub use live::Live;
pub use sampler::{Sampler, SamplerError};
pub use score::{RowScore, Scoring, log_probabilities, score};
