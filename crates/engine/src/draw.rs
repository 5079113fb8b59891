//! From the logits of a row to a token with its log-probability.

use scheduler::{Request, Scored, TokenOut};

use crate::Sampler;

/// How tokens are drawn. A parameter of the engine, so that tests can draw badly.
pub trait Draw: Send + Sync {
    /// The token that follows `generated` in the text of `request`, given the raw `logits` `[v]`.
    fn draw(&self, logits: &[f32], request: &Request, generated: &[u32]) -> u32;
}

/// Penalties, bias, no stop token before [`Request::min_tokens`], then the [`Sampler`], with random
/// numbers addressed by (seed, choice, position). A
/// [`Constraint`](scheduler::Constraint) has been applied to the logits before.
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultDraw;

impl Draw for DefaultDraw {
    fn draw(&self, logits: &[f32], request: &Request, generated: &[u32]) -> u32 {
        let s = &request.sampling;
        let sampler = Sampler {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            seed: s.seed,
            presence_penalty: s.presence_penalty,
            frequency_penalty: s.frequency_penalty,
            repetition_penalty: s.repetition_penalty,
        };
        let position = (request.prompt.len() + generated.len()) as u64;
        let too_early = generated.len() < request.min_tokens && !request.stop_ids.is_empty();
        if !sampler.penalises() && !too_early && s.logit_bias.is_empty() {
            return sampler.draw(logits, s.choice, position);
        }
        let mut logits = logits.to_vec();
        sampler.penalise(&mut logits, &request.prompt, generated);
        for &(id, bias) in &s.logit_bias {
            logits[id as usize] += bias;
        }
        for &id in request.stop_ids.iter().filter(|_| too_early) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        sampler.draw(&logits, s.choice, position)
    }
}

/// Token `id` with its log-probability under the raw logits, and with the most likely tokens if
/// `top` asks for some.
pub(crate) fn scored(logits: &[f32], id: u32, top: Option<usize>) -> Scored {
    let mut log = logits.to_vec();
    ops::log_softmax_rows(&mut log, logits.len());
    let top = top.map_or_else(Vec::new, |k| most_likely(&log, k));
    Scored { id, log_probability: Some(log[id as usize]), top }
}

/// The `k` most likely tokens, best first, equal ones by id.
fn most_likely(log: &[f32], k: usize) -> Vec<(u32, f32)> {
    let order = |a: &u32, b: &u32| log[*b as usize].total_cmp(&log[*a as usize]).then(a.cmp(b));
    let k = k.min(log.len());
    if k < 2 {
        let best = (0..log.len() as u32).min_by(order).filter(|_| k == 1);
        return best.map(|id| (id, log[id as usize])).into_iter().collect();
    }
    let mut ids: Vec<u32> = (0..log.len() as u32).collect();
    ids.select_nth_unstable_by(k - 1, order);
    ids.truncate(k);
    ids.sort_unstable_by(order);
    ids.into_iter().map(|id| (id, log[id as usize])).collect()
}

/// The scores that a request asks for: nothing is known of the first token of a prompt.
pub(crate) fn prompt_scores(request: &Request, rest: Vec<TokenOut>) -> Vec<TokenOut> {
    if request.prompt_scores != Some(0) {
        return rest;
    }
    let first = Scored { id: request.prompt[0], log_probability: None, top: Vec::new() };
    std::iter::once(TokenOut { scored: first, depth: 0 }).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use scheduler::{DepthOptions, SamplingParams};

    use super::*;

    fn request(prompt_scores: Option<usize>) -> Request {
        Request {
            id: 0,
            prompt: vec![3, 1],
            max_tokens: 1,
            min_tokens: 0,
            stop_ids: Vec::new(),
            sampling: SamplingParams::default(),
            depth_options: DepthOptions::default(),
            top: None,
            prompt_scores,
            embedding: None,
            routed_experts: false,
            adapter: 0,
            priority: 0,
            deadline: None,
        }
    }

    #[test]
    fn the_most_likely_tokens_come_best_first_and_equal_ones_by_id() {
        let log = [-3.0, -1.0, -2.0, -1.0, -5.0, -0.5];
        let ids = |k| most_likely(&log, k).iter().map(|(id, _)| *id).collect::<Vec<_>>();
        for k in 0..9 {
            assert_eq!(ids(k), [5, 1, 3, 2, 0, 4][..k.min(6)], "{k}");
        }
        assert_eq!(most_likely(&log, 1), [(5, -0.5)]);
    }

    /// Nothing is known of a prompt's first token; later ones are as they were scored.
    #[test]
    fn only_scores_from_the_first_token_on_have_one_without_a_number() {
        let token = |id| TokenOut {
            scored: Scored { id, log_probability: Some(-1.0), top: Vec::new() },
            depth: 2,
        };
        let first = Scored { id: 3, log_probability: None, top: Vec::new() };
        let first = TokenOut { scored: first, depth: 0 };
        assert_eq!(prompt_scores(&request(Some(0)), vec![token(1)]), [first, token(1)]);
        assert_eq!(prompt_scores(&request(Some(1)), vec![token(1)]), [token(1)]);
        assert_eq!(prompt_scores(&request(None), Vec::new()), []);
    }

    #[test]
    fn nothing_ends_the_text_before_its_least_length() {
        let mut request = Request {
            prompt: vec![0],
            max_tokens: 9,
            min_tokens: 2,
            stop_ids: vec![3, 1],
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            ..request(None)
        };
        let logits = [1.0, 8.0, 2.0, 9.0];
        let drawn = |request: &Request, before: &[u32]| DefaultDraw.draw(&logits, request, before);
        assert_eq!(drawn(&request, &[]), 2);
        assert_eq!(drawn(&request, &[2]), 2);
        assert_eq!(drawn(&request, &[2, 2]), 3);
        // No chance is too small, and no bias too large.
        request.sampling.temperature = 100.0;
        request.sampling.logit_bias = vec![(3, 100.0)];
        for seed in 0..200 {
            request.sampling.seed = seed;
            assert!([0, 2].contains(&drawn(&request, &[])));
        }
        (request.min_tokens, request.sampling.temperature) = (0, 1.0);
        assert_eq!(drawn(&request, &[]), 3);
    }
}
