//! Who hears the sequences of a bench: counts tokens, depths and ends, and can hold all sequences
//! back at their first token until every prompt is through.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use scheduler::{EventSink, Offer, SequenceEvent};

/// What all sequences of a bench share.
#[derive(Default)]
struct Shared {
    /// Whether sequences wait at their first token, and these do not count.
    apart: bool,
    open: AtomicBool,
    /// Sequences whose first token was drawn.
    begun: AtomicUsize,
    tokens: AtomicUsize,
    depth: AtomicU64,
    ended: AtomicUsize,
    first: Mutex<Vec<u32>>,
}

/// The sink of one sequence.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    shared: Arc<Shared>,
    /// Whether this sequence's tokens are kept.
    keeps: bool,
    /// Whether its first token was offered, and was taken.
    offered: bool,
    begun: bool,
}

impl Tally {
    /// With `apart`, decoding is measured apart from prompts: a sequence stops after its first
    /// token until [`Tally::open`], so that all go on from the same place.
    pub(crate) fn new(apart: bool) -> Self {
        let shared = Shared { apart, open: AtomicBool::new(!apart), ..Shared::default() };
        Self { shared: Arc::new(shared), ..Self::default() }
    }

    /// The sink of a sequence, whose tokens are kept if `keeps`.
    pub(crate) fn sink(&self, keeps: bool) -> Self {
        Self { keeps, ..self.clone() }
    }

    /// Lets all sequences go on.
    pub(crate) fn open(&self) {
        self.shared.open.store(true, Ordering::Relaxed);
    }

    /// Sequences whose prompt is through.
    pub(crate) fn begun(&self) -> usize {
        self.shared.begun.load(Ordering::Relaxed)
    }

    /// Sequences that came to their end.
    pub(crate) fn ended(&self) -> usize {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// Tokens that count, and the sum of their depths.
    pub(crate) fn counted(&self) -> (usize, u64) {
        let shared = &self.shared;
        (shared.tokens.load(Ordering::Relaxed), shared.depth.load(Ordering::Relaxed))
    }

    /// All tokens of the sequence that is kept.
    pub(crate) fn kept(&self) -> Vec<u32> {
        self.shared.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl EventSink for Tally {
    fn offer(&mut self, event: &SequenceEvent) -> Offer {
        let shared = &self.shared;
        match event {
            SequenceEvent::Token(token) => {
                if !std::mem::replace(&mut self.offered, true) {
                    shared.begun.fetch_add(1, Ordering::Relaxed);
                }
                if !shared.open.load(Ordering::Relaxed) {
                    return Offer::Full;
                }
                if std::mem::replace(&mut self.begun, true) || !shared.apart {
                    shared.tokens.fetch_add(1, Ordering::Relaxed);
                    shared.depth.fetch_add(u64::from(token.depth), Ordering::Relaxed);
                }
                if self.keeps {
                    let mut first = shared.first.lock().unwrap_or_else(PoisonError::into_inner);
                    first.push(token.scored.id);
                }
            }
            SequenceEvent::Done(_) => drop(shared.ended.fetch_add(1, Ordering::Relaxed)),
            SequenceEvent::Prompt(_) | SequenceEvent::Embedding(_) | SequenceEvent::Routed(_) => {}
        }
        Offer::Taken
    }
}
