//! Bounds of a scheduler: how much waits, how much runs, how large a tick may be, and when depth is
//! given up for load.

use crate::KvShape;

/// How much may wait, how much may run, and how large a tick may be.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerLimits {
    /// Requests that may wait.
    pub queue_requests: usize,
    /// Prompt tokens that may wait; a request alone in the queue may exceed it.
    pub queue_tokens: usize,
    /// Sequences under way at most; also the number of slots.
    pub max_seqs: usize,
    /// Rows that a tick takes through a recursion at most. Rows in the recursions go on in any
    /// case, then come rows of newest tokens, prompts get what is left; the most important prompt
    /// gets [`crate::PAGE`] rows at least.
    pub max_batch_tokens: usize,
    /// Prompt rows of one sequence that a tick takes up at most.
    pub prefill_chunk: usize,
    /// Unit pages of the pool.
    pub pages: usize,
    /// The last layers wait for this many rows that are ready, so that they run on a fuller batch;
    /// 1 never waits.
    pub coda_batch: usize,
    /// But no chunk waits for more than this many ticks.
    pub coda_wait: u64,
    /// Positions that the model was made for: prompt and new tokens together.
    pub context: usize,
    /// A paused sequence may keep its slot from waiting ones for this many ticks.
    pub pause_grace: u64,
    /// Depth under pressure; `None` for full depth always.
    pub brownout: Option<Brownout>,
}

impl Default for SchedulerLimits {
    fn default() -> Self {
        Self {
            queue_requests: 256,
            queue_tokens: 1 << 18,
            max_seqs: 32,
            max_batch_tokens: 256,
            prefill_chunk: 128,
            pages: 4096,
            coda_batch: 1,
            coda_wait: 1,
            context: 2048,
            pause_grace: 64,
            brownout: None,
        }
    }
}

/// Under pressure the depth cap of new tokens falls step by step, and rises again when the load
/// falls. It concerns rows of generated tokens only: what a prompt's rows hold never depends on
/// load, so the prefix cache serves all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brownout {
    /// The cap falls to this depth at most; at least 1.
    pub floor: u32,
    /// Pressure: more requests than this wait.
    pub waiting: usize,
    /// Pressure, too: fewer pages than this are free or held by the prefix cache only.
    pub pages: usize,
    /// Ease: no more requests than this wait, and at least twice `pages` are to be had. Must not
    /// exceed `waiting`.
    pub ease: usize,
    /// Ticks of unbroken pressure before each step down.
    pub fall: u64,
    /// Ticks of unbroken ease before each step up.
    pub rise: u64,
}

impl Default for Brownout {
    fn default() -> Self {
        Self { floor: 1, waiting: 16, pages: 0, ease: 2, fall: 8, rise: 64 }
    }
}

/// A bound that cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit {field} is {found}, expected {expected}: change it")]
pub struct LimitError {
    /// The field of [`SchedulerLimits`].
    pub field: &'static str,
    /// The value that it has.
    pub found: usize,
    /// Values that can be kept.
    pub expected: String,
}

impl SchedulerLimits {
    /// Of `recursions` recursions, `planned` are planned one by one.
    pub(crate) fn check(
        &self,
        shape: &KvShape,
        planned: usize,
        recursions: usize,
    ) -> Result<(), LimitError> {
        at_least("queue_requests", self.queue_requests, 1)?;
        at_least("max_seqs", self.max_seqs, 1)?;
        at_least("max_batch_tokens", self.max_batch_tokens, 1)?;
        at_least("prefill_chunk", self.prefill_chunk, 1)?;
        at_least("context", self.context, 1)?;
        at_least("recursions", recursions, 1)?;
        at_least("pages", self.pages, shape.pages_for(1))?;
        if shape.layers.len() != planned + 1 {
            let expected = format!("{} tiers, one more than recursions", planned + 1);
            return Err(LimitError { field: "shape", found: shape.layers.len(), expected });
        }
        if let Some(b) = &self.brownout {
            at_least("brownout.floor", b.floor as usize, 1)?;
            at_least("brownout.fall", b.fall as usize, 1)?;
            at_least("brownout.rise", b.rise as usize, 1)?;
            at_least("brownout.waiting", b.waiting, b.ease)?;
            if planned < recursions {
                // Every row takes every recursion: there is no depth to give up.
                at_least("brownout.floor", b.floor as usize, recursions)?;
            }
        }
        Ok(())
    }
}

fn at_least(field: &'static str, found: usize, least: usize) -> Result<(), LimitError> {
    if found >= least {
        return Ok(());
    }
    Err(LimitError { field, found, expected: format!("at least {least}") })
}
