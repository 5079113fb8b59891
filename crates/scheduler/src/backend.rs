//! What a server needs of an engine.

use crate::{EventSink, Gauges, Refusal, Request};

/// An engine that continues and scores token sequences. Every call returns at once; results arrive
/// at the sink.
pub trait Backend: Send + Sync + 'static {
    /// Takes a request into the queue. Every event goes to `sink`, the last one is
    /// [`crate::SequenceEvent::Done`]; a sink that is dropped without it tells the client of an
    /// internal error (or, after [`Backend::cancel`], nothing).
    ///
    /// # Errors
    /// The queue is full, the engine is draining, or the request makes no sense for the model.
    fn submit(&self, request: Request, sink: Box<dyn EventSink>) -> Result<(), Refusal>;

    /// Ends a request as soon as possible; unknown and finished ids are ignored.
    fn cancel(&self, id: u64);

    /// What the engine is doing.
    fn gauges(&self) -> Gauges;

    /// The engine's clock in microseconds, for [`Request::deadline`].
    fn now_us(&self) -> u64;

    /// Microseconds since the last tick while work waits; 0 when nothing waits.
    fn idle_for_us(&self) -> u64;

    /// From now on refuse new requests; those accepted go on.
    fn drain(&self);
}
