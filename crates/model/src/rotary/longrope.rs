//! LongRoPE (Ding et al., 2024, arXiv 2402.13753), as Phi-3 has it: the rate of each pair is
//! divided by a factor of its own, from one list up to the original context and from another
//! beyond it; turned columns of queries and keys are multiplied by
//! `sqrt(1 + ln(long / original) / ln(original))`.
//!
//! In Hugging Face's library the length of a text says which list counts, for all its positions.
//! Here a model has one set of rates, those of its `context`: up to the original context it
//! computes what the library does, and with a longer one what the library computes for texts longer
//! than the original context.

use serde::{Deserialize, Serialize};

use super::member::{ScalingSettings, check_context, within};
use crate::error::{ConfigError, refuse};

/// `scaling = { kind = "longrope", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the rate of each pair is divided by in a context up to the original one; empty for 1.
    pub short_factor: Vec<f64>,
    /// The same in a longer context.
    pub long_factor: Vec<f64>,
    /// The context up to which the short factors count, in tokens.
    pub original_context: usize,
    /// The context that the long factors were made for, in tokens; it sets what turned columns are
    /// multiplied by.
    pub long_context: usize,
    /// What turned columns are multiplied by; 0 for the formula.
    pub attention_factor: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            short_factor: Vec::new(),
            long_factor: Vec::new(),
            original_context: 4096,
            long_context: 131_072,
            attention_factor: 0.0,
        }
    }
}

impl ScalingSettings for Config {
    fn check(&self, turned: usize) -> Result<(), ConfigError> {
        for (field, list) in
            [("short_factor", &self.short_factor), ("long_factor", &self.long_factor)]
        {
            if !(list.is_empty() || list.len() == turned / 2) {
                let expected = format!("a factor for each of the {} pairs that turn", turned / 2);
                let found = format!("a list of {}", list.len());
                return refuse(&format!("rotary.scaling.{field}"), found, expected);
            }
            list.iter().try_for_each(|&factor| within(field, factor, 1e-6, 1e6))?;
        }
        check_context(self.original_context)?;
        if !(2..=1 << 24).contains(&self.original_context) {
            let expected = "2 or more: the formula divides by its logarithm".to_owned();
            return refuse("rotary.scaling.original_context", self.original_context, expected);
        }
        if !(1..=1 << 24).contains(&self.long_context) {
            let expected = format!("between 1 and {}", 1 << 24);
            return refuse("rotary.scaling.long_context", self.long_context, expected);
        }
        within("attention_factor", self.attention_factor, 0.0, 1e6)
    }

    fn check_effects(&self, context: usize) -> Result<(), ConfigError> {
        let original = self.original_context;
        let (field, list, far) = match context > original {
            true => ("short_factor", &self.short_factor, "beyond"),
            false => ("long_factor", &self.long_factor, "within"),
        };
        if list.is_empty() {
            return Ok(());
        }
        let expected = format!(
            "none in a context of {context}, which is {far} original_context = {original}: the \
             other list counts"
        );
        refuse(&format!("rotary.scaling.{field}"), format!("a list of {}", list.len()), expected)
    }

    fn rates(&self, theta: f64, turned: usize, context: usize) -> Vec<f64> {
        let is_long = context > self.original_context;
        let factors = if is_long { &self.long_factor } else { &self.short_factor };
        let mut rates = ops::rates(theta, turned);
        rates.iter_mut().zip(factors).for_each(|(rate, factor)| *rate /= factor);
        rates
    }

    fn factor(&self) -> f64 {
        let (original, long) = (self.original_context as f64, self.long_context as f64);
        if self.attention_factor > 0.0 {
            self.attention_factor
        } else if long <= original {
            1.0
        } else {
            (1.0 + (long / original).ln() / original.ln()).sqrt()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: [f64; 8] = [1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0];
    const LONG: [f64; 8] = [1.0, 1.5, 2.5, 4.0, 8.0, 12.0, 20.0, 32.0];

    fn near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
        }
    }

    /// By `_compute_longrope_parameters` of transformers 5.24, in f32, for texts up to the original
    /// context and longer ones.
    #[test]
    fn rates_and_factor_are_those_of_the_library() {
        let config = Config {
            short_factor: SHORT.to_vec(),
            long_factor: LONG.to_vec(),
            original_context: 64,
            long_context: 2048,
            attention_factor: 0.0,
        };
        config.check(16).expect("8 pairs");
        near(
            &config.rates(1e4, 16, 64),
            &[
                1.0,
                0.301169306,
                0.0909090936,
                0.0263523124,
                0.00740740728,
                0.00210818532,
                0.000571428565,
                0.000158113893,
            ],
        );
        near(
            &config.rates(1e4, 16, 65),
            &[
                1.0,
                0.210818499,
                0.0399999991,
                0.00790569466,
                0.00124999997,
                0.000263523165,
                4.99999987e-05,
                9.88211832e-06,
            ],
        );
        near(&[config.factor()], &[1.354_006_400_772_660_2]);
        for (context, field) in [(64, "long_factor"), (65, "short_factor")] {
            let error = config.check_effects(context).expect_err("a list that counts for nothing");
            assert_eq!(error.field, format!("rotary.scaling.{field}"));
        }
        // Half of the columns turn; a factor of 16 stands beside contexts of 128 and 2048.
        let half = Config {
            short_factor: SHORT[..4].to_vec(),
            long_factor: LONG[..4].to_vec(),
            original_context: 128,
            ..config.clone()
        };
        near(&half.rates(5e5, 8, 128), &[1.0, 0.0358152688, 0.00128564867, 4.43191348e-05]);
        near(&half.rates(5e5, 8, 129), &[1.0, 0.0250706859, 0.00056568539, 1.32957412e-05]);
        near(&[half.factor()], &[1.253_566_341_056_017_4]);
        assert_eq!(Config { attention_factor: 1.5, ..half.clone() }.factor(), 1.5);
        assert_eq!(Config { long_context: 128, ..half.clone() }.factor(), 1.0);
        for (config, field) in [
            (Config { short_factor: vec![1.0; 3], ..half.clone() }, "short_factor"),
            (Config { long_factor: vec![0.0; 4], ..half.clone() }, "long_factor"),
            (Config { original_context: 1, ..half.clone() }, "original_context"),
            (Config { long_context: 0, ..half.clone() }, "long_context"),
            (Config { attention_factor: -1.0, ..half }, "attention_factor"),
        ] {
            let error = config.check(8).expect_err(field);
            assert_eq!(error.field, format!("rotary.scaling.{field}"));
        }
    }

    #[test]
    fn empty_lists_divide_by_one() {
        let config = Config::default();
        config.check(16).expect("no list");
        config.check_effects(64).expect("nothing idle");
        assert_eq!(config.rates(1e4, 16, 64), ops::rates(1e4, 16));
    }
}
