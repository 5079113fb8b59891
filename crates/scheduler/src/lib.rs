//! Who runs next: requests, the queue, pages of keys and values, the prefix cache. Pure
//! bookkeeping: no tensor, no clock (time comes in as a number), so that millions of steps can be
//! tested in seconds.

mod backend;
mod brownout;
mod coda;
mod limits;
mod pages;
mod plan;
mod prefix;
mod queue;
mod request;
mod scheduler;
mod sequence;
mod tick;

pub use backend::Backend;
pub use limits::{Brownout, LimitError, SchedulerLimits};
pub use pages::{Full, Imbalance, KvShape, PAGE, PageCopy, Pages, Shared, TableId};
pub use request::{
    Constrained, Constraint, DepthOptions, Done, EventSink, Finish, Gauges, Offer, Pooling,
    Priority, Refusal, Request, RoutedRows, RowExperts, SamplingParams, Scored, SequenceEvent,
    TokenOut, Usage,
};
pub use scheduler::Scheduler;
pub use sequence::{Chunk, ChunkStage, Running, Sequence, SlotId};
pub use tick::{After, CodaChunk, Ended, Misuse, PreludeChunk, RecurChunk, Tick};
