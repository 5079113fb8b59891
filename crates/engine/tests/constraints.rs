//! Requests whose text has a form, beside others: the form is kept, nobody else notices.

mod common;

use std::sync::Arc;

use common::serving::{Inbox, alone, engine, limits, request, requests, run, same};
use common::{models, name, rule};
use ops::KvFormat;
use scheduler::{Constrained, Constraint, Finish, Request, SchedulerLimits};
use testkit::{VOCAB, ids};

const STOP: u32 = 7;

/// Each token is one above the one before or two, in a circle, and after `length` tokens the text
/// ends. Breaks at `breaks` tokens.
#[derive(Debug)]
struct Steps {
    length: usize,
    breaks: usize,
}

impl Constraint for Steps {
    fn restrict(
        &self,
        generated: &[u32],
        stop_ids: &[u32],
        logits: &mut [f32],
    ) -> Result<(), String> {
        if generated.len() == self.breaks {
            return Err("the staircase ends".into());
        }
        let last = generated.last().copied().unwrap_or(0) as usize;
        for (id, logit) in logits.iter_mut().enumerate() {
            let step = (id + VOCAB - last) % VOCAB;
            let fits = match generated.len() < self.length {
                true => [1, 2].contains(&step) && id as u32 != STOP,
                false => stop_ids.contains(&(id as u32)),
            };
            if !fits {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }
}

fn constrained(request: Request, length: usize, breaks: usize) -> Request {
    let mut request = Request { stop_ids: vec![STOP], ..request };
    request.sampling.constraint = Some(Constrained(Arc::new(Steps { length, breaks })));
    request
}

#[test]
fn the_form_is_kept_and_neighbours_do_not_notice() {
    for model in models() {
        let rule = rule(&model);
        let mut requests = requests();
        let lengths = [5, 9];
        for (request, length) in requests.iter_mut().zip(lengths) {
            // No bias and no penalty is stronger than the form.
            request.sampling.logit_bias = vec![(3, 100.0), (STOP, -100.0)];
            request.sampling.frequency_penalty = 2.0;
            request.sampling.repetition_penalty = 1.5;
            request.max_tokens = 20;
            *request = constrained(request.clone(), length, 99);
        }
        let few = SchedulerLimits { max_seqs: 3, prefill_chunk: 5, ..limits() };
        let mut seen = Vec::new();
        for limits in [limits(), few] {
            let mut engine = engine(&model, &rule, limits, KvFormat::F32);
            let inboxes = run(&mut engine, &requests, &[0, 3, 1, 9, 4, 4]);
            for (i, inbox) in inboxes.iter().enumerate().skip(lengths.len()) {
                let what = format!("{} request {i}", name(&model));
                same(&inbox.tokens(), &alone(&model, &rule, &requests[i]), &what);
            }
            let drawn: Vec<Vec<u32>> = inboxes[..lengths.len()]
                .iter()
                .map(|inbox| inbox.tokens().iter().map(|token| token.scored.id).collect())
                .collect();
            for ((text, inbox), length) in drawn.iter().zip(&inboxes).zip(lengths) {
                assert_eq!(text.len(), length + 1, "{}", name(&model));
                assert_eq!(inbox.done().map(|d| d.finish), Some(Finish::Stop(STOP)));
                let mut last = 0;
                for &id in &text[..length] {
                    assert!([1, 2].contains(&((id + VOCAB as u32 - last) % VOCAB as u32)));
                    last = id;
                }
            }
            seen.push(drawn);
        }
        assert_eq!(seen[0], seen[1], "{}", name(&model));
    }
}

#[test]
fn a_form_that_breaks_ends_its_own_request_alone() {
    let model = &models()[0];
    let rule = rule(model);
    let plain = request(1, ids(3, 6), 12);
    let broken = constrained(request(2, ids(4, 6), 12), 99, 3);
    let mut engine = engine(model, &rule, limits(), KvFormat::F32);
    let inboxes = run(&mut engine, &[plain.clone(), broken], &[0, 0]);
    same(&inboxes[0].tokens(), &alone(model, &rule, &plain), "the neighbour");
    assert_eq!(inboxes[1].tokens().len(), 3);
    let refused = |request: Request| {
        let told = engine.handle().submit(request, Box::new(Inbox::default()), 0);
        told.expect_err("a refusal").to_string()
    };
    let early = Request { min_tokens: 2, ..constrained(request(3, ids(4, 6), 12), 99, 3) };
    assert!(refused(early).starts_with("min_tokens is 2, expected 0"));
    let endless = Request { stop_ids: Vec::new(), ..constrained(request(4, vec![1], 5), 9, 9) };
    assert!(refused(endless).starts_with("stop_ids is none, expected a token that ends"));
    let finish = inboxes[1].done().map(|done| done.finish);
    assert_eq!(finish, Some(Finish::Failed("the staircase ends".into())));
}
