//! No row may know the future: under a causal rule, a changed token moves no earlier logit by a
//! single bit. The rule of expert-choice training does see the future, which shows that these tests
//! can fail.

mod common;

use common::{by_thresholds, fresh, name, variants};
use model::{Model, ModelConfig, RouterConfig, Rows, Rule};
use testkit::{How, Out, VOCAB, at_once, causal, ids, same};

const LENGTH: usize = 24;
const PLACES: [usize; 4] = [1, 9, 17, 23];

/// `tokens` with another one at `place`.
fn changed(tokens: &[u32], place: usize) -> Vec<u32> {
    let mut tokens = tokens.to_vec();
    tokens[place] = (tokens[place] + 13) % VOCAB as u32;
    tokens
}

/// How rows before and after a change move.
struct Moved {
    before: usize,
    after: usize,
}

fn moved(base: &Out, other: &Out, place: usize) -> Moved {
    let differs = |t: &usize| {
        base.depth[*t] != other.depth[*t]
            || base.row(*t).iter().zip(other.row(*t)).any(|(a, b)| a.to_bits() != b.to_bits())
    };
    Moved {
        before: (0..place).filter(differs).count(),
        after: (place..LENGTH).filter(differs).count(),
    }
}

fn depths(config: &ModelConfig) -> Vec<Option<usize>> {
    let routed = config.sharing.is_cycle();
    if routed { vec![None, Some(1), Some(2), Some(3)] } else { vec![None] }
}

#[test]
fn no_row_sees_the_future() {
    let tokens = ids(1, LENGTH);
    let rows = Rows::batch(1, LENGTH);
    for config in variants() {
        let model = fresh(&config);
        let rule = causal(&model, &tokens);
        for max_depth in depths(&config) {
            let how = How { max_depth, ..How::by(&rule) };
            let base = at_once(&model, &tokens, &rows, &how);
            if config.router != RouterConfig::FIXED && max_depth.is_none() {
                let deep = base.depth.iter().max();
                assert!(
                    base.depth.iter().min() < deep,
                    "{}: some rows must stop early",
                    name(&config)
                );
            }
            for place in PLACES {
                let other = at_once(&model, &changed(&tokens, place), &rows, &how);
                let moved = moved(&base, &other, place);
                assert_eq!(
                    moved.before,
                    0,
                    "{} at {max_depth:?}: rows before {place} moved",
                    name(&config)
                );
                assert!(
                    moved.after > 0,
                    "{} at {max_depth:?}: the change at {place} is invisible",
                    name(&config)
                );
            }
        }
    }
}

/// Training by the causal rule compares rows for its losses; that must not reach the logits.
#[test]
fn a_recorded_causal_pass_sees_no_future() {
    let tokens = ids(2, LENGTH);
    let rows = Rows::batch(1, LENGTH);
    for config in variants().into_iter().filter(by_thresholds) {
        let model = fresh(&config);
        let rule = causal(&model, &tokens);
        let how = How { record: true, ..How::by(&rule) };
        let base = at_once(&model, &tokens, &rows, &how);
        same(
            &base,
            &at_once(&model, &tokens, &rows, &How::by(&rule)),
            &format!("{}: recording", name(&config)),
        );
        let other = at_once(&model, &changed(&tokens, 17), &rows, &how);
        assert_eq!(moved(&base, &other, 17).before, 0, "{}", name(&config));
    }
}

/// Rows before the last that a change anywhere after them moves, under the rule of training.
fn leaks(model: &Model) -> usize {
    let rows = Rows::batch(1, LENGTH);
    let mut leaks = 0;
    for seed in 0..4 {
        let tokens = ids(seed, LENGTH);
        let base = at_once(model, &tokens, &rows, &How::by(&Rule::NonCausal));
        for place in PLACES {
            let other = at_once(model, &changed(&tokens, place), &rows, &How::by(&Rule::NonCausal));
            leaks += moved(&base, &other, place).before;
        }
    }
    leaks
}

#[test]
fn only_the_comparing_rule_of_expert_choice_leaks() {
    for config in variants() {
        let found = leaks(&fresh(&config));
        let compares = by_thresholds(&config);
        assert_eq!(found > 0, compares, "{}: {found} leaks", name(&config));
    }
}

/// A prefix alone gives what it gives inside the whole: the same in other words, and for all
/// lengths.
#[test]
fn a_prefix_is_the_whole_cut_off() {
    let tokens = ids(3, LENGTH);
    for config in variants() {
        let model = fresh(&config);
        let how = How::by(&causal(&model, &tokens));
        let whole = at_once(&model, &tokens, &Rows::batch(1, LENGTH), &how);
        for length in [1, 2, 7, 16, 23] {
            let part = at_once(&model, &tokens[..length], &Rows::batch(1, length), &how);
            same(
                &part,
                &whole.rows(0..length),
                &format!("{}: the first {length} rows", name(&config)),
            );
        }
    }
}
