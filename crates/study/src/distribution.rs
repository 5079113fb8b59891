//! Student's distribution, from the incomplete beta function.

/// Coefficients of the Lanczos approximation of the logarithm of the gamma function, with g = 7.
const LANCZOS: [f64; 8] = [
    676.520_368_121_885_1,
    -1_259.139_216_722_402_8,
    771.323_428_777_653_1,
    -176.615_029_162_140_6,
    12.507_343_278_686_905,
    -0.138_571_095_265_720_12,
    9.984_369_578_019_572e-6,
    1.505_632_735_149_311_6e-7,
];

/// `ln(gamma(x))` for `x > 0`.
fn ln_gamma(x: f64) -> f64 {
    if x < 0.5 {
        let pi = std::f64::consts::PI;
        return (pi / (pi * x).sin()).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let mut sum = 0.999_999_999_999_809_9;
    for (i, coefficient) in LANCZOS.iter().enumerate() {
        sum += coefficient / (x + i as f64 + 1.0);
    }
    let t = x + 7.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

/// The regularized incomplete beta function `I_x(a, b)`, by its continued fraction, evaluated by
/// Lentz's method.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges fast below the mean; above it the other tail is taken.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front = ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln();
    let (mut c, mut d) = (1.0, 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in 1..400 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + term * d);
            c = away_from_zero(1.0 + term / c);
            change = c * d;
            fraction *= change;
        }
        if (change - 1.0_f64).abs() < 1e-15 {
            break;
        }
    }
    front.exp() * fraction / a
}

/// A divisor that is never zero.
fn away_from_zero(x: f64) -> f64 {
    if x.abs() < 1e-300 { 1e-300 } else { x }
}

/// The probability that a variable of Student's distribution with `freedom` degrees is at least `t`
/// away from zero: the p value of a two-sided test.
pub fn student_p(t: f64, freedom: f64) -> f64 {
    if t.is_nan() || freedom <= 0.0 {
        return f64::NAN;
    }
    incomplete_beta(0.5 * freedom, 0.5, freedom / (freedom + t * t))
}

/// The `t` of which [`student_p`] is `p`, by halving an interval: what an interval of confidence
/// `1 - p` is wide, in standard errors.
pub fn student_quantile(p: f64, freedom: f64) -> f64 {
    if !(p > 0.0 && p <= 1.0 && freedom > 0.0) {
        return f64::NAN;
    }
    let (mut low, mut high) = (0.0, 1.0);
    while student_p(high, freedom) > p && high < 1e12 {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if student_p(middle, freedom) > p { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of printed tables of the t distribution, two-sided.
    #[test]
    fn quantiles_are_those_of_printed_tables() {
        for (p, freedom, t) in [
            (0.05, 1.0, 12.706_2),
            (0.05, 2.0, 4.302_653),
            (0.01, 2.0, 9.924_843),
            (0.05, 4.0, 2.776_445),
            (0.05, 10.0, 2.228_139),
            (0.001, 10.0, 4.586_894),
            (0.01, 30.0, 2.749_996),
            (0.05, 1e6, 1.959_966),
        ] {
            let found = student_quantile(p, freedom);
            assert!((found / t - 1.0).abs() < 2e-6, "{p} {freedom}: {found}, printed {t}");
            assert!((student_p(t, freedom) / p - 1.0).abs() < 2e-5, "{p} {freedom}");
        }
    }

    /// With 1 and 2 degrees of freedom the distribution has a closed form.
    #[test]
    fn closed_forms_agree() {
        for t in [0.0_f64, 0.1, 1.0, 3.0, 50.0, 1e4] {
            let one = 1.0 - 2.0 / std::f64::consts::PI * t.atan();
            let two = 1.0 - t / (2.0 + t * t).sqrt();
            assert!((student_p(t, 1.0) - one).abs() < 1e-12, "{t}");
            assert!((student_p(t, 2.0) - two).abs() < 1e-12, "{t}");
        }
        assert!(student_p(f64::NAN, 2.0).is_nan() && student_quantile(0.0, 2.0).is_nan());
    }

    #[test]
    fn gamma_is_the_factorial() {
        for (x, factorial) in [(1.0, 1.0), (2.0, 1.0), (5.0, 24.0), (11.0, 3_628_800.0)] {
            assert!((ln_gamma(x) - f64::ln(factorial)).abs() < 1e-12, "{x}");
        }
        let half = 0.5 * std::f64::consts::PI.ln();
        assert!((ln_gamma(0.5) - half).abs() < 1e-12);
        assert!((ln_gamma(0.25) - 1.288_022_524_698_077_5).abs() < 1e-11);
    }
}
