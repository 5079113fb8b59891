//! What the server needs of an engine, and what it tells clients about the model.

use scheduler::{Gauges, Refusal, Request, Sink};

/// An engine that continues and scores token sequences. Every call returns at once; results arrive
/// at the sink.
pub trait Backend: Send + Sync + 'static {
    /// Takes a request into the queue. Every event goes to `sink`, the last one is
    /// [`scheduler::Event::Done`]; a sink that is dropped without it tells the client of an
    /// internal error (or, after [`Backend::cancel`], nothing).
    ///
    /// # Errors
    /// The queue is full, the engine is draining, or the request makes no sense for the model.
    fn submit(&self, request: Request, sink: Box<dyn Sink>) -> Result<(), Refusal>;

    /// Ends a request as soon as possible; unknown and finished ids are ignored.
    fn cancel(&self, id: u64);

    /// What the engine is doing.
    fn gauges(&self) -> Gauges;

    /// The engine's clock in microseconds, for [`Request::deadline`].
    fn now_us(&self) -> u64;

    /// Microseconds since the last tick while work waits; 0 when nothing waits.
    fn idle_for_us(&self) -> u64;

    /// From now on refuse new requests; those in flight go on.
    fn drain(&self);
}

/// What is served, for `/v1/models`, for limits and for answers.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Name under which requests ask for the model.
    pub id: String,
    /// Other names that are accepted.
    pub aliases: Vec<String>,
    /// Model family: `mor`, `recursive`, `dense`, `moe` and the like.
    pub family: String,
    /// Most block applications a token can have; 1 for a model without recursion.
    pub recursions: u32,
    /// How the depth of a token is chosen.
    pub routing: String,
    /// How keys and values are kept across recursions.
    pub kv_mode: String,
    /// Layers a token of full depth goes through.
    pub layers: usize,
    /// Number of weights.
    pub parameters: u64,
    /// Longest sequence, prompt and new tokens together.
    pub context: usize,
    /// Rows of the embedding: token ids below this are valid.
    pub vocab: usize,
    /// When the weights were made, in seconds since 1970.
    pub created: u64,
    /// Build and hash of the weights, `system_fingerprint` of every answer.
    pub fingerprint: String,
}
