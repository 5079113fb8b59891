//! From logits to a token: penalties, temperature, cuts, and a random number addressed by (seed,
//! choice, position). The order of the steps is that of the table in `docs/serving.md`.

use model::rng::{Purpose, Stream};

/// How to draw a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Only the k most likely; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that make up this much probability, in (0, 1].
    pub top_p: f32,
    /// Only tokens at least this likely relative to the most likely one, in [0, 1].
    pub min_p: f32,
    /// Seed of the draws.
    pub seed: u64,
    /// Taken once from the logit of each token that the text holds, -2 to 2.
    pub presence_penalty: f32,
    /// Taken from it for each time that the text holds the token, -2 to 2.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and text, above 0 and at
    /// most 100.
    pub repetition_penalty: f32,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
        }
    }
}

/// A setting out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} is {found}, expected {expected}")]
pub struct SamplerError {
    /// The field of [`Sampler`].
    pub field: &'static str,
    /// The value that it has.
    pub found: String,
    /// The range that it must be in.
    pub expected: &'static str,
}

impl Sampler {
    /// The most likely token always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses values out of range.
    ///
    /// # Errors
    /// The first one.
    pub fn check(&self) -> Result<(), SamplerError> {
        if !(self.temperature >= 0.0 && self.temperature <= 100.0) {
            return refuse("temperature", self.temperature, "0 (greedy) to 100");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "above 0 and at most 1");
        }
        if !(self.min_p >= 0.0 && self.min_p <= 1.0) {
            return refuse("min_p", self.min_p, "0 to 1");
        }
        for (field, found) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            if !(-2.0..=2.0).contains(&found) {
                return refuse(field, found, "-2 to 2");
            }
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty <= 100.0) {
            return refuse(
                "repetition_penalty",
                self.repetition_penalty,
                "above 0 and at most 100",
            );
        }
        Ok(())
    }

    /// Whether [`penalise`](Self::penalise) changes anything.
    pub(crate) fn penalises(&self) -> bool {
        let both = [self.presence_penalty, self.frequency_penalty];
        both != [0.0; 2] || self.repetition_penalty != 1.0
    }

    /// Repetition over prompt and text, presence and frequency over the text, as in the OpenAI
    /// interface.
    pub(crate) fn penalise(&self, logits: &mut [f32], prompt: &[u32], text: &[u32]) {
        if self.repetition_penalty != 1.0 {
            let mut seen: Vec<u32> = prompt.iter().chain(text).copied().collect();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                let z = &mut logits[id as usize];
                *z = if *z > 0.0 {
                    *z / self.repetition_penalty
                } else {
                    *z * self.repetition_penalty
                };
            }
        }
        let mut counted = text.to_vec();
        counted.sort_unstable();
        for run in counted.chunk_by(|a, b| a == b) {
            let count = run.len() as f32;
            logits[run[0] as usize] -= self.presence_penalty + self.frequency_penalty * count;
        }
    }

    /// Draws from `logits` for the token at `position` of choice `choice`. The result depends on
    /// these alone.
    pub fn draw(&self, logits: &[f32], choice: u64, position: u64) -> u32 {
        let top = largest(logits);
        if self.temperature == 0.0 {
            return top as u32;
        }
        let weight =
            |i: usize| (f64::from(logits[i] - logits[top]) / f64::from(self.temperature)).exp();
        let mut kept: Vec<(f64, usize)> = (0..logits.len()).map(|i| (weight(i), i)).collect();
        if self.top_k > 0 && self.top_k < kept.len() {
            kept.select_nth_unstable_by(self.top_k - 1, likelier);
            kept.truncate(self.top_k);
        }
        // Top-k and min-p leave beginnings of one order, so they may come in any; top-p is a share
        // of what they leave.
        if self.min_p > 0.0 {
            kept.retain(|(w, _)| *w >= f64::from(self.min_p));
        }
        if self.top_p < 1.0 {
            likeliest_share(&mut kept, f64::from(self.top_p));
        }
        // One order for all cuts: a draw is a point on the line of the kept weights.
        kept.sort_unstable_by_key(|(_, i)| *i);
        let total: f64 = kept.iter().map(|(w, _)| w).sum();
        let mut at = Stream::at(self.seed, Purpose::Sample, choice, position).uniform() * total;
        for (w, i) in &kept {
            at -= w;
            if at < 0.0 {
                return *i as u32;
            }
        }
        // Rounding may leave the point behind the line; what has no weight is never drawn.
        kept.iter().rfind(|(w, _)| *w > 0.0).map_or(top, |(_, i)| *i) as u32
    }
}

fn refuse(field: &'static str, found: f32, expected: &'static str) -> Result<(), SamplerError> {
    Err(SamplerError { field, found: found.to_string(), expected })
}

/// Likelier first; ties go to the smaller id, so that cuts are the same everywhere.
fn likelier(a: &(f64, usize), b: &(f64, usize)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the likeliest entries that make up `share` of the weight. Only as many as needed are
/// sorted.
fn likeliest_share(kept: &mut Vec<(f64, usize)>, share: f64) {
    let total: f64 = kept.iter().map(|(w, _)| w).sum();
    let mut sorted = 256.min(kept.len());
    loop {
        if sorted < kept.len() {
            kept.select_nth_unstable_by(sorted - 1, likelier);
        }
        kept[..sorted].sort_unstable_by(likelier);
        let mut reached = 0.0;
        let cut = kept[..sorted].iter().position(|(w, _)| {
            reached += w / total;
            reached >= share
        });
        match cut {
            Some(cut) => return kept.truncate(cut + 1),
            None if sorted == kept.len() => return,
            None => sorted = (4 * sorted).min(kept.len()),
        }
    }
}

/// The index of the largest value; the first of equals. NaN counts as smallest.
fn largest(logits: &[f32]) -> usize {
    // Lanes, so that the search for the value runs on vectors.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (blocks, tail) = logits.as_chunks::<16>();
    for block in blocks {
        for (lane, &z) in lanes.iter_mut().zip(block) {
            *lane = if z > *lane { z } else { *lane };
        }
    }
    let most = lanes.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&z| z == most).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sampler: &Sampler, logits: &[f32], draws: u64) -> Vec<u64> {
        let mut counts = vec![0; logits.len()];
        (0..draws).for_each(|i| counts[sampler.draw(logits, 0, i) as usize] += 1);
        counts
    }

    #[test]
    fn greedy_takes_the_first_largest() {
        assert_eq!(Sampler::greedy().draw(&[1.0, 3.0, 3.0], 0, 0), 1);
        assert_eq!(Sampler::greedy().draw(&[f32::NAN, -3.0], 0, 0), 1);
        for position in 0..50 {
            assert_eq!(Sampler::greedy().draw(&[0.0, 0.1, 0.0], 0, position), 1);
        }
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let found = counts(&Sampler::default(), &logits, 40_000);
        for (found, expected) in found.iter().zip([0.5, 0.3, 0.15, 0.05]) {
            assert!((*found as f64 / 40_000.0 - expected).abs() < 0.01, "{found} for {expected}");
        }
    }

    #[test]
    fn cuts_cut() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let some = |sampler: Sampler| {
            counts(&sampler, &logits, 4000).iter().map(|c| *c > 0).collect::<Vec<_>>()
        };
        assert_eq!(some(Sampler { top_k: 2, ..Sampler::default() }), [true, true, false, false]);
        assert_eq!(some(Sampler { top_p: 0.75, ..Sampler::default() }), [true, true, false, false]);
        assert_eq!(some(Sampler { min_p: 0.29, ..Sampler::default() }), [true, true, true, false]);
        assert_eq!(
            some(Sampler { temperature: 0.01, ..Sampler::default() }),
            [true, false, false, false]
        );
    }

    #[test]
    fn addresses_decide() {
        let logits = [0.0f32; 50];
        let sampler = Sampler { seed: 9, ..Sampler::default() };
        assert_eq!(sampler.draw(&logits, 1, 2), sampler.draw(&logits, 1, 2));
        let other: Vec<u32> = (0..20).map(|p| sampler.draw(&logits, 2, p)).collect();
        assert_ne!(other, (0..20).map(|p| sampler.draw(&logits, 1, p)).collect::<Vec<_>>());
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            Sampler { temperature: -1.0, ..Sampler::default() },
            Sampler { temperature: f32::NAN, ..Sampler::default() },
            Sampler { temperature: 100.1, ..Sampler::default() },
            Sampler { top_p: 0.0, ..Sampler::default() },
            Sampler { top_p: 1.5, ..Sampler::default() },
            Sampler { min_p: -0.1, ..Sampler::default() },
            Sampler { min_p: 1.1, ..Sampler::default() },
            Sampler { presence_penalty: 2.1, ..Sampler::default() },
            Sampler { frequency_penalty: f32::NAN, ..Sampler::default() },
            Sampler { repetition_penalty: 0.0, ..Sampler::default() },
            Sampler { repetition_penalty: 101.0, ..Sampler::default() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        let last = Sampler { temperature: 100.0, top_p: 1.0, min_p: 1.0, ..Sampler::default() };
        assert_eq!(last.check(), Ok(()), "the ends of the ranges");
        assert_eq!(Sampler { min_p: 0.0, ..Sampler::greedy() }.check(), Ok(()));
    }
}
