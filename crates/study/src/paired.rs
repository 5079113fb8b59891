//! Whether two kinds of runs differ, by runs of the same seeds: differences seed by seed, so that
//! what a seed does to both kinds cancels.

use serde::Serialize;

use crate::distribution::{student_p, student_quantile};

/// The fewest paired seeds with which a difference can count.
pub const FEWEST_SEEDS: usize = 3;
/// A difference counts with a p value below this.
pub const LARGEST_P: f64 = 0.01;
/// A difference of losses counts from this on, in nats a token.
pub const SMALLEST_NATS: f64 = 0.005;
/// All signs of as many differences are tried; of more, [`DRAWS`] are drawn.
const TRIED: usize = 16;
/// Draws of resampled sets of differences.
const DRAWS: usize = 10_000;

/// What differences of paired runs say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// Differences, one a seed, in the order of the seeds.
    pub differences: Vec<f64>,
    /// The mean of the differences.
    pub mean: f64,
    /// Their standard deviation, with `n - 1`; none for a single one.
    pub deviation: Option<f64>,
    /// The interval that holds the true mean with 99 % confidence, by Student's t.
    pub interval: Option<(f64, f64)>,
    /// The interval of the middle 95 % of the means of resampled differences (Efron's percentile
    /// bootstrap).
    pub bootstrap: Option<(f64, f64)>,
    /// How many are below zero, and above.
    pub signs: (usize, usize),
    /// Two-sided p value of the paired t test.
    pub p: Option<f64>,
    /// Two-sided p value of the sign test: it cannot be below `2 / 2^n`.
    pub sign_p: f64,
    /// Two-sided p value of the paired permutation test, in which each difference may have had the
    /// other sign: it cannot be below `2 / 2^n` either.
    pub permutation_p: f64,
    /// Whether the difference counts: [`FEWEST_SEEDS`], [`LARGEST_P`] and [`SMALLEST_NATS`].
    pub counts: bool,
}

/// Judges the differences `a - b` of losses in nats, run by run. `None` without a pair.
pub fn paired(a: &[f64], b: &[f64]) -> Option<Paired> {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    if differences.is_empty() || differences.iter().any(|d| !d.is_finite()) {
        return None;
    }
    let n = differences.len();
    let (mean, deviation) = mean_and_deviation(&differences);
    let error = deviation.map(|deviation| deviation / (n as f64).sqrt());
    let freedom = n as f64 - 1.0;
    // Differences that are all the same have no spread to compare with: seeds changed nothing.
    let p = error.map(|error| match error > 0.0 {
        true => student_p(mean / error, freedom),
        false if mean == 0.0 => 1.0,
        false => 0.0,
    });
    let interval = error.map(|error| {
        let width = student_quantile(LARGEST_P, freedom) * error;
        (mean - width, mean + width)
    });
    let below = differences.iter().filter(|d| **d < 0.0).count();
    let above = differences.iter().filter(|d| **d > 0.0).count();
    Some(Paired {
        mean,
        deviation,
        interval,
        bootstrap: (n > 1).then(|| bootstrap(&differences)),
        signs: (below, above),
        p,
        sign_p: sign_p(below, above),
        permutation_p: permutation_p(&differences),
        counts: n >= FEWEST_SEEDS
            && p.is_some_and(|p| p < LARGEST_P)
            && mean.abs() >= SMALLEST_NATS,
        differences,
    })
}

/// The mean of some numbers, and their standard deviation with `n - 1` where there are several.
pub fn mean_and_deviation(numbers: &[f64]) -> (f64, Option<f64>) {
    let n = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    let squares: f64 = numbers.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (numbers.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}

/// Twice the probability that of `below + above` fair coins the rarer side comes up as seldom.
fn sign_p(below: usize, above: usize) -> f64 {
    let n = below + above;
    let (mut term, mut sum) = (0.5_f64.powi(n as i32), 0.0);
    for k in 0..=below.min(above) {
        sum += term;
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    (2.0 * sum).min(1.0)
}

/// The share of all signs of the differences, or of many drawn ones, with which their sum is as far
/// from zero as it is.
fn permutation_p(differences: &[f64]) -> f64 {
    let n = differences.len();
    let sum: f64 = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers in the same order, so that the signs as they are count.
    let enough = sum * (1.0 - 1e-12);
    let (mut far, mut tried) = (0_usize, 0_usize);
    if n <= TRIED {
        for signs in 0..1_u64 << n {
            tried += 1;
            far += usize::from(signed_sum(differences, signs).abs() >= enough);
        }
        return far as f64 / tried as f64;
    }
    let mut draws = Draws(0);
    for _ in 0..DRAWS {
        let signs: Vec<f64> =
            differences.iter().map(|d| if draws.next() & 1 == 0 { *d } else { -d }).collect();
        far += usize::from(signs.iter().sum::<f64>().abs() >= enough);
        tried += 1;
    }
    // The signs as they are count as one of the draws.
    (far + 1) as f64 / (tried + 1) as f64
}

fn signed_sum(differences: &[f64], signs: u64) -> f64 {
    let signed = differences.iter().enumerate();
    signed.map(|(i, d)| if signs >> i & 1 == 0 { *d } else { -d }).sum()
}

/// The middle 95 % of the means of differences drawn with repetition.
fn bootstrap(differences: &[f64]) -> (f64, f64) {
    let n = differences.len();
    let mut draws = Draws(1);
    let mut means = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        let sum: f64 = (0..n).map(|_| differences[(draws.next() % n as u64) as usize]).sum();
        means.push(sum / n as f64);
    }
    means.sort_by(f64::total_cmp);
    (means[DRAWS / 40], means[DRAWS - 1 - DRAWS / 40])
}

/// The same numbers in every process: splitmix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeros(n: usize) -> Vec<f64> {
        vec![0.0; n]
    }

    /// Hours of sleep gained (Cushny and Peebles, 1905), the example of Student, 1908.
    #[test]
    fn the_data_of_student() {
        let gains = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4];
        let found = paired(&gains, &zeros(10)).expect("pairs");
        assert!((found.mean - 1.58).abs() < 1e-12);
        assert!((found.deviation.expect("ten") - 1.229_995_5).abs() < 1e-6);
        assert!((found.p.expect("ten") - 0.002_832_9).abs() < 1e-6);
        assert_eq!(found.signs, (0, 9));
        assert!((found.sign_p - 2.0 / 512.0).abs() < 1e-15);
        let (low, high) = found.interval.expect("ten");
        // 95 %: 0.7001 to 2.4599, with 2.262 standard errors; 99 % has 3.250.
        assert!((low - 0.315_94).abs() < 1e-4 && (high - 2.844_06).abs() < 1e-4, "{low} {high}");
        let (low, high) = found.bootstrap.expect("ten");
        assert!(low > 0.8 && low < 1.1 && high > 2.1 && high < 2.6, "{low} {high}");
        assert!(found.counts);
    }

    /// Heights of maize (Darwin, 1876), of which Fisher counted all 2^15 signs in 1935: 1726 of
    /// them are as far from zero.
    #[test]
    fn the_data_of_darwin() {
        let eighths = [49., -67., 8., 16., 6., 23., 28., 41., 14., 29., 56., 24., 75., 60., -48.];
        let found = paired(&eighths, &zeros(15)).expect("pairs");
        assert_eq!((found.permutation_p * 32768.0).round() as u64, 1726);
        assert!((found.p.expect("fifteen") - 0.049_7).abs() < 1e-4);
        assert!(!found.counts);
        // Of more than can be tried, draws give nearly the same.
        let twice = [eighths, eighths].concat();
        let (all, drawn) = (paired(&twice, &zeros(30)), paired(&twice, &zeros(30)));
        assert_eq!(all, drawn);
        assert!(all.expect("pairs").permutation_p < 0.02);
    }

    /// Three seeds, so that the sign and permutation tests cannot say more than a quarter.
    #[test]
    fn three_seeds_of_one_sign() {
        let found = paired(&[1.020, 1.031, 1.012], &[1.010, 1.020, 1.002]).expect("pairs");
        assert_eq!((found.sign_p, found.permutation_p), (0.25, 0.25));
        assert!((found.mean - 0.010_333_3).abs() < 1e-6 && found.counts, "{found:?}");
    }

    #[test]
    fn what_does_not_count() {
        for (a, why) in [
            (vec![0.01, 0.0101], "two seeds"),
            (vec![0.001, 0.0011, 0.001], "too small"),
            (vec![0.01, 0.03, 0.002], "too much spread"),
            (vec![0.0, 0.0, 0.0], "nothing"),
        ] {
            let found = paired(&a, &zeros(a.len())).expect("pairs");
            assert!(!found.counts, "{why}: {found:?}");
        }
        // Seeds that change nothing leave no doubt.
        assert!(paired(&[0.01; 3], &zeros(3)).expect("pairs").counts);
        let alone = paired(&[0.01], &[0.0]).expect("a pair");
        assert_eq!((alone.p, alone.interval, alone.sign_p), (None, None, 1.0));
        assert_eq!(paired(&[], &[]), None);
        assert_eq!(paired(&[f64::NAN], &[0.0]), None);
    }
}
