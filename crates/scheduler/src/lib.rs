//! Who runs next: requests, the queue, pages of keys and values, the prefix cache. Pure
//! bookkeeping: no tensor, no clock (time comes in as a number), so that millions of steps can be
//! tested in seconds.

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

pub use limits::{Brownout, LimitError, Limits};
pub use pages::{Full, Imbalance, PAGE, PageCopy, Pages, Shape, Shared, TableId};
pub use request::{
    DepthOptions, Done, Event, Finish, Gauges, Offer, Priority, Refusal, Request, SamplingParams,
    Scored, Sink, TokenOut, Usage,
};
pub use scheduler::Scheduler;
pub use sequence::{Chunk, Running, Sequence, Slot, Stage};
pub use tick::{After, CodaChunk, Ended, Misuse, PreludeChunk, RecurChunk, Tick};
