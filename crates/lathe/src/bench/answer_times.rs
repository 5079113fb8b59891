//! When the tokens of answers came, and which answers kept the limits of goodput.

use serde_json::{Value, json};

use super::arguments::BenchServe;
use super::load_client::Answer;

/// Seconds from the first piece with tokens to the last, over the tokens after the first; unknown
/// when all came at once.
pub(crate) fn time_per_token(answer: &Answer) -> Option<f64> {
    let new = answer.new_tokens.or(answer.ids.as_ref().map(Vec::len))?;
    match answer.arrivals.as_slice() {
        [first, .., last] if new > 1 => Some((last - first) / (new - 1) as f64),
        _ => None,
    }
}

/// Seconds between each token and the next; none where it is not known when tokens came.
pub(crate) fn gaps(answer: &Answer) -> Vec<f64> {
    let times = answer.token_arrivals().unwrap_or_default();
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Answers within the limits that were given.
pub(crate) struct Goodput {
    within: usize,
    /// Answers of which a limited time is not known: without streaming there is no first token, and
    /// tokens that came at once have no time for each. They keep no limit.
    unmeasured: usize,
    /// Whether the times of some answer are known, or no answer is good.
    measured: bool,
}

impl Goodput {
    /// `None` without a limit.
    pub(crate) fn of<'a>(
        options: &BenchServe,
        good: impl Iterator<Item = &'a Answer>,
    ) -> Option<Self> {
        options.slo_ttft.or(options.slo_tpot)?;
        let kept: Vec<Option<bool>> = good.map(|answer| keeps(options, answer)).collect();
        let unmeasured = kept.iter().filter(|kept| kept.is_none()).count();
        Some(Self {
            within: kept.iter().filter(|kept| **kept == Some(true)).count(),
            unmeasured,
            measured: unmeasured < kept.len() || kept.is_empty(),
        })
    }

    pub(crate) fn json(&self, options: &BenchServe, sent: usize, seconds: f64) -> Value {
        let known = |value: f64| self.measured.then_some(value);
        json!({
            "slo_ttft_ms": options.slo_ttft, "slo_tpot_ms": options.slo_tpot,
            "requests": self.measured.then_some(self.within), "unmeasured": self.unmeasured,
            "share": known(self.within as f64 / sent as f64),
            "requests_per_second": known(self.within as f64 / seconds),
            "reason": (self.unmeasured > 0).then_some(UNMEASURED),
        })
    }

    pub(crate) fn words(&self, seconds: f64) -> String {
        if !self.measured {
            return format!(", goodput unknown: {UNMEASURED}");
        }
        let mut text = format!(", goodput {:.2} requests/s", self.within as f64 / seconds);
        if self.unmeasured > 0 {
            text.push_str(&format!(" without {} answers: {UNMEASURED}", self.unmeasured));
        }
        text
    }
}

/// Why answers have no time to compare with a limit.
const UNMEASURED: &str = "a time that was not measured keeps no limit (whole answers have no first \
                          token, tokens that came at once no time for each)";

/// Whether an answer came within the limits that were given; `None` if one of its times is not
/// known.
fn keeps(options: &BenchServe, answer: &Answer) -> Option<bool> {
    let first = is_within(options.slo_ttft, answer.arrivals.first().copied());
    let one = answer.new_tokens.or(answer.ids.as_ref().map(Vec::len)).is_some_and(|new| new < 2);
    // An answer of one token has no further ones that could be late.
    let further =
        if one { Some(true) } else { is_within(options.slo_tpot, time_per_token(answer)) };
    match (first, further) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (first, further) => first.and(further),
    }
}

/// Whether `seconds` are at most a limit in milliseconds; `None` if there is a limit and no time.
fn is_within(limit: Option<f64>, seconds: Option<f64>) -> Option<bool> {
    let Some(limit) = limit else { return Some(true) };
    seconds.map(|s| s * 1e3 <= limit)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::Command;
    use crate::bench::arguments::BenchCommand;

    /// An answer of so many tokens, which came at these seconds, each piece with so many.
    fn came(new: usize, pieces: &[(f64, usize)]) -> Answer {
        Answer {
            status: 200,
            new_tokens: Some(new),
            arrivals: pieces.iter().map(|piece| piece.0).collect(),
            brought: pieces.iter().map(|piece| Some(piece.1)).collect(),
            ..Answer::default()
        }
    }

    #[test]
    fn between_tokens_is_between_tokens() {
        let gaps = gaps(&came(6, &[(0.5, 1), (0.75, 3), (1.5, 2)]));
        assert_eq!(gaps, [0.25, 0.0, 0.0, 0.75, 0.0]);
        assert!(super::gaps(&came(1, &[(0.5, 1)])).is_empty());
    }

    #[test]
    fn what_was_not_measured_keeps_no_limit() {
        let limited = |more: &[&str]| {
            let all = [&["lathe", "bench", "serve", "cpu-1m-dense"], more].concat();
            let parsed = crate::arguments::Arguments::try_parse_from(all).unwrap();
            match parsed.command {
                Command::Bench(BenchCommand::Serve(options)) => options,
                other => panic!("{other:?}"),
            }
        };
        let both = limited(&["--slo-ttft", "600", "--slo-tpot", "300"]);
        let first = limited(&["--slo-ttft", "600"]);
        let whole = came(5, &[]);
        for (answer, by_both, by_first) in [
            (came(3, &[(0.5, 1), (1.0, 2)]), Some(true), Some(true)),
            (came(3, &[(0.7, 1), (1.0, 2)]), Some(false), Some(false)),
            (came(3, &[(0.5, 1), (1.2, 2)]), Some(false), Some(true)),
            (came(1, &[(0.5, 1)]), Some(true), Some(true)),
            // All at once: nobody knows how long a token took.
            (came(3, &[(0.5, 3)]), None, Some(true)),
            (came(3, &[(0.7, 3)]), Some(false), Some(false)),
            (whole.clone(), None, None),
        ] {
            assert_eq!((keeps(&both, &answer), keeps(&first, &answer)), (by_both, by_first));
        }
        let quick = came(3, &[(0.5, 1), (1.0, 2)]);
        let of = |good: &[&Answer]| {
            Goodput::of(&both, good.iter().copied()).unwrap().json(&both, 4, 2.0)
        };
        let mixed = of(&[&quick, &whole]);
        assert_eq!((&mixed["requests"], &mixed["share"]), (&json!(1), &json!(0.25)));
        assert_eq!((&mixed["requests_per_second"], &mixed["unmeasured"]), (&json!(0.5), &json!(1)));
        let none = of(&[&whole, &whole]);
        assert!(none["requests"].is_null() && none["share"].is_null());
        assert!(none["requests_per_second"].is_null() && none["reason"].is_string());
        assert_eq!(of(&[])["share"], json!(0.0), "no good answer is no goodput");
        assert!(Goodput::of(&limited(&[]), std::iter::once(&quick)).is_none());
    }

    #[test]
    fn a_time_per_token_needs_two_tokens() {
        let mut answer =
            Answer { arrivals: vec![0.5, 0.6, 0.9], new_tokens: Some(5), ..Answer::default() };
        assert!((time_per_token(&answer).unwrap() - 0.1).abs() < 1e-12);
        answer.arrivals.truncate(1);
        assert_eq!(time_per_token(&answer), None);
    }
}
