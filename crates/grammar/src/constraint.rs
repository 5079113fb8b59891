//! One sequence on its way through a grammar.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use llguidance::Matcher;
use scheduler::{Constrained, Constraint};

use crate::vocabulary::{Counters, one_line};

/// A grammar that is ready to be followed, by as many sequences as are made of it.
pub struct Compiled {
    fresh: Arc<Matcher>,
    end: u32,
    counters: Arc<Counters>,
}

impl Compiled {
    pub(crate) fn new(fresh: Matcher, end: u32, counters: Arc<Counters>) -> Self {
        Self { fresh: Arc::new(fresh), end, counters }
    }

    /// A sequence's own way through the grammar.
    pub fn sequence(&self) -> Constrained {
        let state = Way { matcher: self.fresh.deep_clone(), taken: Vec::new() };
        Constrained(Arc::new(Sequence {
            fresh: Arc::clone(&self.fresh),
            way: Mutex::new(state),
            end: self.end,
            counters: Arc::clone(&self.counters),
        }))
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled").finish_non_exhaustive()
    }
}

/// The way so far is kept so that a token costs what it adds. What is allowed follows from the
/// tokens alone: after others than those taken, it begins anew.
struct Sequence {
    fresh: Arc<Matcher>,
    way: Mutex<Way>,
    end: u32,
    counters: Arc<Counters>,
}

struct Way {
    matcher: Matcher,
    taken: Vec<u32>,
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sequence").finish_non_exhaustive()
    }
}

impl Constraint for Sequence {
    fn restrict(
        &self,
        generated: &[u32],
        stop_ids: &[u32],
        logits: &mut [f32],
    ) -> Result<(), String> {
        let begun = Instant::now();
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if !generated.starts_with(&way.taken) {
            *way = Way { matcher: self.fresh.deep_clone(), taken: Vec::new() };
        }
        let more = &generated[way.taken.len()..];
        way.matcher.consume_tokens(more).map_err(|e| stuck(&e.to_string()))?;
        way.taken.extend_from_slice(more);
        let allowed = way.matcher.compute_mask_or_eos().map_err(|e| stuck(&e.to_string()))?;
        let may_end = allowed.get(self.end as usize);
        for (id, logit) in logits.iter_mut().enumerate() {
            if !(id < self.end as usize && allowed.get(id)) {
                *logit = match may_end && stop_ids.contains(&(id as u32)) {
                    true => *logit,
                    false => f32::NEG_INFINITY,
                };
            }
        }
        self.counters.masked(begun);
        match logits.iter().any(|&z| z > f32::NEG_INFINITY) {
            true => Ok(()),
            false => Err("no token of the vocabulary goes on with the grammar".into()),
        }
    }
}

fn stuck(why: &str) -> String {
    format!("the grammar cannot go on: {}", one_line(why))
}
