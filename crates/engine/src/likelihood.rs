//! The log-likelihood of the ends of some sequences, for evaluation tasks.

use std::sync::Arc;

use model::{Address, Model, NoProbe, Pass, PassCache, RouterState, Rows, Rule};
use ops::{Ops, read_rows};
use rayon::prelude::*;

/// Rows that a pass takes at most (one sequence may have more).
const PASS_ROWS: usize = 2048;
/// Rows whose logits are held at a time.
const LOGIT_ROWS: usize = 64;

/// A sequence of which the tokens from `from` on are scored, each given all tokens before it.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'a> {
    /// All tokens.
    pub ids: &'a [u32],
    /// First scored one, at least 1.
    pub from: usize,
}

/// What a stretch got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Sum of natural log-probabilities; each term is the f32 number that the server reports.
    pub log_likelihood: f64,
    /// Whether every scored token is a most likely one of its place.
    pub greedy: bool,
}

/// Scores `stretches` under a causal `rule`; `done` hears how many are through.
pub fn likelihoods(
    model: &Model,
    rule: &Rule,
    state: &RouterState,
    stretches: &[Stretch<'_>],
    done: &mut dyn FnMut(usize),
) -> Vec<Likelihood> {
    let mut found = Vec::with_capacity(stretches.len());
    while found.len() < stretches.len() {
        let (mut rows, mut count) = (0, 0);
        for stretch in &stretches[found.len()..] {
            if count > 0 && rows + stretch.ids.len() > PASS_ROWS {
                break;
            }
            (rows, count) = (rows + stretch.ids.len(), count + 1);
        }
        found.extend(together(model, rule, state, &stretches[found.len()..found.len() + count]));
        done(found.len());
    }
    found
}

/// Stretches in one pass. The last token of each predicts nothing and stays out.
fn together(
    model: &Model,
    rule: &Rule,
    state: &RouterState,
    stretches: &[Stretch<'_>],
) -> Vec<Likelihood> {
    let mut parts = Vec::new();
    // Row, its target, and whose it is.
    let mut asked: Vec<(u32, u32, usize)> = Vec::new();
    let mut ids = Vec::new();
    for (number, stretch) in stretches.iter().enumerate() {
        let length = stretch.ids.len() - 1;
        let first = ids.len();
        ids.extend_from_slice(&stretch.ids[..length]);
        asked.extend(
            (stretch.from..=length).map(|t| ((first + t - 1) as u32, stretch.ids[t], number)),
        );
        parts.push(Rows::stretch(number as u32, 0, length));
    }
    let rows = Rows::stack(parts.iter());
    let mut kv = PassCache::new(model.config().kv != model::KvMode::RecursionWise);
    let mut pass = Pass {
        ops: Ops::Fast,
        kv: &mut kv,
        rule,
        state,
        probe: &mut NoProbe,
        record: false,
        recompute: false,
        max_depth: None,
        address: Address { seed: 0, step: u64::MAX, place: 0 },
        sequences: stretches.len(),
    };
    let passed = model.forward(&ids.into(), &rows, &mut pass);
    let mut found = vec![Likelihood { log_likelihood: 0.0, greedy: true }; stretches.len()];
    let vocab = model.config().vocab_size;
    for chunk in asked.chunks(LOGIT_ROWS) {
        let numbers: Arc<[u32]> = chunk.iter().map(|(row, _, _)| *row).collect();
        let mut log =
            read_rows(&model.logits(Ops::Fast.gather_rows(passed.x_td.clone(), &numbers), &pass));
        let scores: Vec<(f32, bool)> = log
            .par_chunks_exact_mut(vocab)
            .zip(chunk)
            .map(|(row, (_, target, _))| {
                ops::log_softmax_rows(row, vocab);
                let own = row[*target as usize];
                (own, row.iter().all(|&other| other <= own))
            })
            .collect();
        for ((score, best), (_, _, number)) in scores.into_iter().zip(chunk) {
            found[*number].log_likelihood += f64::from(score);
            found[*number].greedy &= best;
        }
    }
    found
}
