//! What is asked of an engine and what comes back: the words that scheduler, engine and server
//! share.

use std::sync::Arc;

/// Higher runs first; equal ones in the order of arrival.
pub type Priority = i32;

/// How tokens are drawn. The order of the steps is that of the table in `docs/serving.md`.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits, 0 to 100; 0 takes the largest.
    pub temperature: f32,
    /// Only the k most likely; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that make up this much probability, in (0, 1].
    pub top_p: f32,
    /// Only tokens at least this likely relative to the most likely one, in [0, 1].
    pub min_p: f32,
    /// Seed of the draws: a draw is a function of (seed, choice, position).
    pub seed: u64,
    /// Number of this continuation among several of one prompt.
    pub choice: u64,
    /// Subtracted once from the logit of each distinct token generated so far, -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted for each time the token was generated so far, -2 to 2.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and text so far, above
    /// 0.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens, -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// What form the text has; `None` for any.
    pub constraint: Option<Constrained>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            choice: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            constraint: None,
        }
    }
}

/// Which tokens may follow, so that a text has a form.
pub trait Constraint: Send + Sync + std::fmt::Debug {
    /// Sets the logits of tokens that may not follow `generated` to minus infinity. A token of
    /// `stop_ids` may follow where the text may end. Depends on the arguments alone.
    ///
    /// # Errors
    /// No token may follow, or the text so far breaks the form.
    fn restrict(
        &self,
        generated: &[u32],
        stop_ids: &[u32],
        logits: &mut [f32],
    ) -> Result<(), String>;
}

/// The constraint of one sequence; equal to itself alone.
#[derive(Clone, Debug)]
pub struct Constrained(pub Arc<dyn Constraint>);

impl PartialEq for Constrained {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What a request asks of depth: how many recursions its tokens may and must have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DepthOptions {
    /// No token gets more recursions than this.
    pub max_depth: Option<u32>,
    /// Every token gets at least this many.
    pub min_depth: u32,
    /// Added to the router's thresholds (a logit): above 0 fewer tokens go deep, below 0 more. An
    /// engine without thresholds refuses all but 0.
    pub threshold: f32,
    /// The mean depth that the generated tokens may have at most, at least 1 and at least
    /// `min_depth`: a row's cap falls when the text has spent more. The depth of a token is that of
    /// the row that predicted it, for the first one the prompt's last row.
    pub mean_depth: Option<f32>,
}

impl Default for DepthOptions {
    fn default() -> Self {
        Self { max_depth: None, min_depth: 0, threshold: 0.0, mean_depth: None }
    }
}

/// How the vectors of a prompt's rows become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean over the prompt.
    Mean,
    /// That of the last row, which has seen the whole prompt.
    Last,
}

/// One sequence to continue or to score.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Unique among the requests that wait or run.
    pub id: u64,
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// At most this many new tokens; 0 only scores (with [`Request::prompt_scores`])
    /// or embeds (with [`Request::embedding`]).
    pub max_tokens: usize,
    /// Stop tokens are not drawn before this many new tokens, and do not count if they are.
    pub min_tokens: usize,
    /// Tokens that end the text; the one drawn is still reported.
    pub stop_ids: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// How deep they may go.
    pub depth_options: DepthOptions,
    /// Report this many most likely tokens beside each generated (and scored) one; `None` for none
    /// at all.
    pub top: Option<usize>,
    /// Report log-probabilities of the prompt's tokens from this index on (0 for all of them),
    /// which must be below the prompt's length. Rows that they need do not come from the prefix
    /// cache.
    pub prompt_scores: Option<usize>,
    /// Report one vector for the prompt. Rows that it needs do not come from the prefix cache.
    pub embedding: Option<Pooling>,
    /// Report the experts that every row of prompt and text took. No row comes from the prefix
    /// cache then.
    pub routed_experts: bool,
    /// Which adapter of the engine the text is of, from 1; 0 for the model as it is. Texts of
    /// different adapters share no prefix.
    pub adapter: u32,
    /// Runs before requests of lower priority.
    pub priority: Priority,
    /// Ends with [`Finish::Deadline`] at this time (microseconds of the engine's clock).
    pub deadline: Option<u64>,
}

/// The log-probability of one token, with the most likely ones beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The id of the token.
    pub id: u32,
    /// Natural logarithm of its probability under the raw logits; `None` for the first token of a
    /// prompt.
    pub log_probability: Option<f32>,
    /// The most likely tokens, best first, as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// A token that was drawn or scored.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenOut {
    /// The token with its log-probability.
    pub scored: Scored,
    /// Recursions of the row whose logits it was drawn from or scored by, the row of the token
    /// before it; 0 for the first token of a prompt, which no row predicts.
    pub depth: u32,
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was drawn.
    Stop(u32),
    /// As many tokens as asked for.
    Length,
    /// Whoever asked went away or said so.
    Cancelled,
    /// Its time was over.
    Deadline,
    /// Something went wrong inside; the text says what.
    Failed(String),
}

/// What a sequence cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Of these, found in the prefix cache.
    pub cached: u64,
    /// Tokens drawn for it.
    pub generated: u64,
    /// Block applications of all rows that ran for this request and count (recomputed ones count
    /// once).
    pub recursion_steps: u64,
    /// What a model that gives every row every recursion would have spent on the same rows.
    pub dense_steps: u64,
    /// Microseconds from submission to the first row that ran, or to the end if none did.
    pub queued_us: u64,
    /// Microseconds from the beginning of the tick of its first row to the end of the tick that
    /// completed its prompt, which is the one that draws the first token; `None` if the prompt was
    /// never complete.
    pub prefill_us: Option<u64>,
    /// How often its pages were taken away and computed again.
    pub preemptions: u32,
    /// Keys and values that it held at its end: tokens, summed over the layers that hold them.
    pub kv_tokens: u64,
}

/// The end of a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Why it goes no further.
    pub finish: Finish,
    /// Rows, tokens and time that it took.
    pub usage: Usage,
}

/// The experts of a row at each layer with experts that it went through, in order: their numbers,
/// ascending.
pub type RowExperts = Vec<Vec<u32>>;

/// The experts that consecutive rows took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutedRows {
    /// The position of the first of them.
    pub first: usize,
    /// Those of each row.
    pub experts: Vec<RowExperts>,
}

/// What comes back, in this order: prompt scores and the prompt's vector if asked for, tokens, the
/// end.
#[derive(Clone, Debug, PartialEq)]
pub enum SequenceEvent {
    /// Scores and depths of the prompt tokens that [`Request::prompt_scores`] asks for.
    Prompt(Vec<TokenOut>),
    /// The vector `[width]` that [`Request::embedding`] asks for: what the prompt's rows are behind
    /// the last norm, pooled, and scaled to length 1.
    Embedding(Vec<f32>),
    /// The experts of rows that are done, which [`Request::routed_experts`] asks for: of all rows,
    /// each once and in order, ahead of the token that the last of them predicts.
    Routed(RoutedRows),
    /// A token was drawn.
    Token(TokenOut),
    /// The request has ended; no event follows.
    Done(Done),
}

/// What a receiver said to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The event was handed over.
    Taken,
    /// Not now: the sequence pauses and offers the same event again later.
    Full,
    /// Nobody is listening any more: the sequence is cancelled.
    Gone,
}

/// Where the events of one request go. Called on the engine's thread: must not block.
pub trait EventSink: Send {
    /// Takes the event, or says why not. Must take [`SequenceEvent::Done`] or be gone.
    fn offer(&mut self, event: &SequenceEvent) -> Offer;
}

/// Why a request was not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The queue is full.
    #[error(
        "the queue holds {waiting} requests and {tokens} tokens, its bound; \
         try again in {retry_after_s} s"
    )]
    Overloaded {
        /// Requests in the queue.
        waiting: usize,
        /// Prompt tokens in the queue.
        tokens: usize,
        /// A guess at when there is room.
        retry_after_s: u64,
    },
    /// The engine finishes what it has accepted and takes no more.
    #[error("the engine is draining and takes no new requests")]
    Draining,
    /// The request makes no sense for this model.
    #[error("{field} is {found}, expected {expected}")]
    Invalid {
        /// The part of the request that makes no sense.
        field: &'static str,
        /// The value that it has.
        found: String,
        /// Values that make sense.
        expected: String,
    },
}

/// What the engine is doing, for metrics. Counters only grow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Sequences that have a slot.
    pub running: usize,
    /// Requests in the queue.
    pub waiting: usize,
    /// Unit pages in all (one layer of 16 tokens).
    pub pages: usize,
    /// Blocks of [`crate::PAGE`] tokens of full depth that these can hold.
    pub blocks: usize,
    /// Pages held by sequences or the prefix cache, by tier: first the layers outside the
    /// recursions, then each recursion.
    pub pages_used: Vec<usize>,
    /// Pages held by nothing but the prefix cache.
    pub pages_cached: usize,
    /// Most pages that sequences held at a time since the start.
    pub pages_held_most: usize,
    /// Bytes of one unit page.
    pub page_bytes: usize,
    /// Prefix cache: tokens looked up, and found.
    pub prefix_tokens: (u64, u64),
    /// Times a sequence lost its pages.
    pub preemptions: u64,
    /// Prompt tokens computed, new tokens drawn.
    pub tokens: (u64, u64),
    /// Rows by the depth they had: entry `d` counts rows of depth `d`.
    pub depths: Vec<u64>,
    /// Block applications done, and what full depth would have cost for the same rows.
    pub recursion_steps: (u64, u64),
    /// Ticks since the start.
    pub ticks: u64,
    /// Microseconds from the beginning to the end of each tick, summed.
    pub tick_us: u64,
    /// Microseconds of these inside passes of the model: embedding, layers, routers and head, with
    /// the writes to pages that layers make. What is left of a tick is planning and drawing.
    pub operation_us: u64,
    /// Rows that took each recursion, of those that were completed.
    pub rows_by_recursion: Vec<u64>,
    /// The depth cap in force under brown-out; the model's recursions when there is none.
    pub depth_cap: u32,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests that failed inside.
    pub failed: u64,
    /// Requests refused because the queue was full.
    pub refused: u64,
    /// How often rows went to each expert that computes, by stored layer; those computed again too.
    pub experts: Vec<(usize, Vec<u64>)>,
}

impl Gauges {
    /// Share of the pages that sequences hold, 0 to 1: what the prefix cache alone holds is free
    /// for them.
    pub fn kv_usage(&self) -> f64 {
        let used: usize = self.pages_used.iter().sum();
        used.saturating_sub(self.pages_cached) as f64 / self.pages.max(1) as f64
    }
}
