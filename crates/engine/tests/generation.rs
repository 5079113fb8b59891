//! Generation gives what the plain loop and what a full pass over all tokens gives, token by token,
//! bit by bit; and requests that make no sense are refused before anything runs.

mod common;

use std::sync::Arc;

use common::{batch, config, fresh, models, name, rule};
use engine::{
    GenerateError, Generated, Generation, Sampler, Scoring, generate, log_probabilities, oracle,
    score,
};
use model::{KvMode, Model, NoProbe, RouterConfig, RouterState, Rule};
use testkit::{VOCAB, ids, with_auxiliary_router};

struct Ask<'a> {
    prompt: &'a [u32],
    max_tokens: usize,
    stop: &'a [u32],
    sampler: Sampler,
    max_depth: Option<usize>,
    choice: u64,
}

impl<'a> Ask<'a> {
    fn of(prompt: &'a [u32]) -> Self {
        let sampler = Sampler { seed: 4, ..Sampler::default() };
        Self { prompt, max_tokens: 12, stop: &[], sampler, max_depth: None, choice: 0 }
    }

    fn run(&self, model: &Arc<Model>, rule: &Rule) -> Result<Generated, GenerateError> {
        let state = RouterState::default();
        let what = Generation {
            prompt: self.prompt,
            max_tokens: self.max_tokens,
            stop: self.stop,
            sampler: &self.sampler,
            rule,
            state: &state,
            max_depth: self.max_depth,
            choice: self.choice,
            constraint: None,
        };
        let found = generate(model, &what, &mut |_| true);
        let mut plain = oracle::generate(model, &what, &mut |_| true);
        if let (Ok(found), Ok(plain), KvMode::SharedUpdate) =
            (&found, &mut plain, model.config().kv)
        {
            // Pages hold every row in every recursion at once, the loop when a later row asks.
            assert!(found.kv_bytes >= plain.kv_bytes, "{}", name(model));
            plain.kv_bytes = found.kv_bytes;
        }
        assert_eq!(found, plain, "{}", name(model));
        found
    }
}

/// Fails unless every new token is what full passes over everything before it say.
fn check(model: &Model, rule: &Rule, ask: &Ask<'_>, found: &Generated) {
    let state = RouterState::default();
    let how =
        Scoring { max_depth: ask.max_depth, seed: ask.sampler.seed, ..Scoring::by(rule, &state) };
    let mut tokens = ask.prompt.to_vec();
    assert_eq!(found.tokens.len(), ask.max_tokens, "{}", name(model));
    for token in &found.tokens {
        let all = batch(&tokens, tokens.len());
        let logs = log_probabilities(model, &all, &how);
        let last = &logs[(tokens.len() - 1) * VOCAB..];
        let what = format!("{} token {}", name(model), tokens.len());
        assert_eq!(token.log_probability.to_bits(), last[token.id as usize].to_bits(), "{what}");
        assert_eq!(
            token.depth,
            score(model, &all, &how, &mut NoProbe)[tokens.len() - 1].depth,
            "{what}"
        );
        assert_eq!(token.id, ask.sampler.draw(last, ask.choice, tokens.len() as u64), "{what}");
        tokens.push(token.id);
    }
    let prompt = score(model, &batch(ask.prompt, ask.prompt.len()), &how, &mut NoProbe);
    assert_eq!(found.prompt_depths, prompt.iter().map(|row| row.depth).collect::<Vec<_>>());
}

#[test]
fn the_cache_changes_no_bit() {
    let prompt = ids(9, 7);
    for model in models() {
        let rule = rule(&model);
        for max_depth in [None, Some(2)] {
            for sampler in [Sampler::greedy(), Sampler { seed: 4, top_k: 20, ..Sampler::default() }]
            {
                let ask = Ask { sampler, max_depth, ..Ask::of(&prompt) };
                let found = ask.run(&model, &rule).expect("a fair request");
                check(&model, &rule, &ask, &found);
                assert!(found.kv_bytes > 0);
            }
        }
    }
}

/// Each of them alone, in the engine and in the plain loop; none is without effect.
#[test]
fn penalties_act_on_both_roads() {
    let prompt = ids(9, 7);
    let mut changed = [0; 3];
    for model in models() {
        let rule = rule(&model);
        let ask = |sampler| Ask { sampler, max_tokens: 16, ..Ask::of(&prompt) };
        let text = |sampler| {
            let found = ask(sampler).run(&model, &rule).expect("a fair request");
            found.tokens.iter().map(|token| token.id).collect::<Vec<_>>()
        };
        let plain = text(Sampler::greedy());
        for (count, sampler) in changed.iter_mut().zip([
            Sampler { presence_penalty: 2.0, ..Sampler::greedy() },
            Sampler { frequency_penalty: -2.0, ..Sampler::greedy() },
            Sampler { repetition_penalty: 2.0, ..Sampler::greedy() },
        ]) {
            *count += usize::from(text(sampler) != plain);
        }
    }
    assert!(changed.iter().all(|count| *count > 0), "{changed:?}");
}

#[test]
fn packed_weights_change_no_bit() {
    let prompt = ids(9, 7);
    for model in models() {
        let rule = rule(&model);
        let plain = Ask::of(&prompt).run(&model, &rule).expect("a fair request");
        model.pack();
        let packed = Ask::of(&prompt).run(&model, &rule).expect("a fair request");
        assert_eq!(packed, plain, "{}", name(&model));
        check(&model, &rule, &Ask::of(&prompt), &packed);
    }
}

#[test]
fn seeds_repeat_and_choices_differ() {
    let prompt = ids(8, 5);
    let model = fresh(&config(RouterConfig::default(), KvMode::RecursionWise));
    let rule = rule(&model);
    let of = |seed, choice| {
        let sampler = Sampler { seed, temperature: 3.0, ..Sampler::default() };
        let found =
            Ask { sampler, choice, ..Ask::of(&prompt) }.run(&model, &rule).expect("a fair request");
        found.tokens.iter().map(|t| t.id).collect::<Vec<u32>>()
    };
    assert_eq!(of(1, 0), of(1, 0));
    assert_ne!(of(1, 0), of(2, 0));
    assert_ne!(of(1, 0), of(1, 1));
}

#[test]
fn generation_ends_where_it_should() {
    let prompt = ids(7, 5);
    let model = fresh(&config(RouterConfig::FIXED, KvMode::RecursionWise));
    let rule = Rule::NonCausal;
    let all = Ask::of(&prompt).run(&model, &rule).expect("fixed depth compares nothing");
    assert_eq!(all.tokens.len(), 12);
    let stop = [all.tokens[4].id];
    let first = all.tokens.iter().position(|t| t.id == stop[0]).expect("there");
    let stopped =
        Ask { stop: &stop, ..Ask::of(&prompt) }.run(&model, &rule).expect("a fair request");
    assert_eq!(stopped.tokens, all.tokens[..=first], "the stop token is the last");
    let none =
        Ask { max_tokens: 0, ..Ask::of(&prompt) }.run(&model, &rule).expect("a fair request");
    assert!(none.tokens.is_empty() && none.prompt_depths == [3; 5]);
    // Exactly the context fits.
    let full = Ask { max_tokens: 59, ..Ask::of(&prompt) }.run(&model, &rule).expect("64 positions");
    assert_eq!(full.tokens.len(), 59);
    let (state, mut heard) = (RouterState::default(), 0);
    let sampler = Ask::of(&prompt).sampler;
    let what = Generation {
        prompt: &prompt,
        max_tokens: 12,
        stop: &[],
        sampler: &sampler,
        rule: &rule,
        state: &state,
        max_depth: None,
        choice: 0,
        constraint: None,
    };
    let cut = generate(&model, &what, &mut |token| {
        heard += 1;
        *token == all.tokens[heard - 1] && heard < 3
    });
    assert_eq!(cut.expect("a fair request").tokens, all.tokens[..3]);
}

#[test]
fn nonsense_is_refused() {
    let prompt = ids(7, 5);
    let expert = fresh(&config(RouterConfig::default(), KvMode::RecursionWise));
    let causal = rule(&expert);
    let of = |ask: Ask<'_>, rule: &Rule| ask.run(&expert, rule).expect_err("a foul request");
    assert_eq!(of(Ask::of(&[]), &causal), GenerateError::EmptyPrompt);
    let unknown = of(Ask::of(&[1, VOCAB as u32]), &causal);
    assert_eq!(unknown, GenerateError::UnknownId { index: 1, id: VOCAB as u32, vocab: VOCAB });
    let long = of(Ask { max_tokens: 60, ..Ask::of(&prompt) }, &causal);
    assert_eq!(long, GenerateError::TooLong { prompt: 5, new: 60, total: 65, context: 64 });
    assert!(matches!(
        of(Ask { max_tokens: usize::MAX, ..Ask::of(&prompt) }, &causal),
        GenerateError::TooLong { .. }
    ));
    assert_eq!(of(Ask::of(&prompt), &Rule::NonCausal), GenerateError::NotCausal);
    assert_eq!(of(Ask { max_depth: Some(0), ..Ask::of(&prompt) }, &causal), GenerateError::NoDepth);
    for sampler in [
        Sampler { temperature: f32::NAN, ..Sampler::default() },
        Sampler { top_p: 0.0, ..Sampler::default() },
    ] {
        assert!(matches!(
            of(Ask { sampler, ..Ask::of(&prompt) }, &causal),
            GenerateError::Sampler(_)
        ));
    }
    for router in [with_auxiliary_router(), RouterConfig::Random(Default::default())] {
        let model = fresh(&config(router, KvMode::Shared));
        assert_eq!(Ask::of(&prompt).run(&model, &Rule::NonCausal), Err(GenerateError::NotCausal));
    }
    let token = fresh(&config(RouterConfig::TokenChoice(Default::default()), KvMode::Shared));
    assert!(
        Ask::of(&prompt).run(&token, &Rule::NonCausal).is_ok(),
        "depths of tokens compare nothing"
    );
}
