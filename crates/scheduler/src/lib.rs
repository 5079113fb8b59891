//! Who runs next: requests, the queue, pages of keys and values, the prefix cache. Pure bookkeeping: no tensor, no clock
//! (time comes in as a number), so that millions of steps can be tested in seconds.

mod request;

pub use request::{
    Dial, Done, Event, Finish, Gauges, Offer, Priority, Refusal, Request, Sampling, Scored, Sink, TokenOut, Usage,
};
