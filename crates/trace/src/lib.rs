//! Decisions of routers: which rows went to which experts and recursions.
//!
//! A [`Recorder`] is a probe of passes, so training, evaluation, generation and the server are
//! recorded by one definition. A [`Trace`] holds what it heard, one [`RoutingDecision`] for each
//! row that a router decided about; [`write()`] and [`read`] keep it as a Parquet file, and
//! [`shapes`] has the forms of other programs. [`measures`] are functions of a trace alone.

mod error;
pub mod measures;
mod read;
mod recorder;
pub mod shapes;
mod table;
mod write;

pub use error::TraceError;
pub use read::{is_own, read};
pub use recorder::Recorder;
pub use table::{RoutingDecision, Site, TokenFacts, Trace};
pub use write::{TraceWriter, write};
