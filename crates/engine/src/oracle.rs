//! The plain loop: the prompt in one pass, then token by token with a cache that grows. No
//! scheduler, no pages, no mixed depths. Tests hold the engine against it; nothing else runs it.

use std::sync::Arc;

use model::{Address, Model, NoProbe, Pass, Rows, SequenceCache};
use ops::{Ops, read_rows};
use scheduler::Constrained;

use crate::driver::RunError;
use crate::generate::{GenerateError, Generated, Generation, Token, check};
use crate::score::limits;

/// Gives what [`crate::generate`] must give.
///
/// # Errors
/// Before anything runs, if the request makes no sense.
pub fn generate(
    model: &Model,
    what: &Generation<'_>,
    each: &mut dyn FnMut(&Token) -> bool,
) -> Result<Generated, GenerateError> {
    check(model, what)?;
    let mut cache = SequenceCache::new(1);
    let (mut logits, prompt_depths) = advance(model, what, &mut cache, what.prompt, 0);
    let mut depth = prompt_depths.last().copied().unwrap_or(0);
    let mut tokens = Vec::new();
    while tokens.len() < what.max_tokens {
        let position = what.prompt.len() + tokens.len();
        let mut drawn_from = logits.clone();
        let text: Vec<u32> = tokens.iter().map(|token: &Token| token.id).collect();
        if let Some(Constrained(constraint)) = &what.constraint {
            let restricted = constraint.restrict(&text, what.stop, &mut drawn_from);
            restricted.map_err(RunError::Failed)?;
        }
        if what.sampler.penalises() {
            what.sampler.penalise(&mut drawn_from, what.prompt, &text);
        }
        let id = what.sampler.draw(&drawn_from, what.choice, position as u64);
        ops::log_softmax_rows(&mut logits, model.config().vocab_size);
        let token = Token { id, depth, log_probability: logits[id as usize] };
        tokens.push(token);
        if !each(&token) || what.stop.contains(&id) || tokens.len() == what.max_tokens {
            break;
        }
        let depths;
        (logits, depths) = advance(model, what, &mut cache, &[id], position as u32);
        depth = depths[0];
    }
    Ok(Generated { tokens, prompt_depths, kv_bytes: cache.bytes() })
}

/// Runs `ids` from position `first` on; gives the last row's logits and every row's depth.
fn advance(
    model: &Model,
    what: &Generation<'_>,
    cache: &mut SequenceCache,
    ids: &[u32],
    first: u32,
) -> (Vec<f32>, Vec<u32>) {
    let mut rows = Rows::stretch(0, first, ids.len());
    rows.limits = limits(what.max_depth, ids.len());
    let mut probe = NoProbe;
    let mut pass = Pass {
        ops: Ops::Fast,
        kv: cache,
        rule: what.rule,
        state: what.state,
        probe: &mut probe,
        record: false,
        recompute: false,
        address: Address { seed: what.sampler.seed, step: u64::MAX, place: 0 },
        sequences: 1,
        loads: &[],
        pool: Default::default(),
    };
    let passed = model.forward(&Arc::from(ids), &rows, &mut pass);
    let last = passed.x_td.narrow(0, ids.len() - 1, 1);
    (read_rows(&model.logits(last, &pass)), passed.depth_t)
}
