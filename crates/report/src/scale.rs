//! Axes: ranges, round tick positions, their labels, and the thinning of long curves.

/// Values beyond this are drawn as gaps, so that spans and paddings stay finite.
const LIMIT: f64 = 1e300;
/// Sizes below this count as zero, so that steps and powers of ten stay normal numbers.
const TINY: f64 = 1e-290;

/// A map from values to pixels along one axis.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    start_px: f64,
    end_px: f64,
}

impl Axis {
    pub(crate) fn new(range: (f64, f64), log: bool, start_px: f64, end_px: f64) -> Self {
        Self { low: range.0, high: range.1, log, start_px, end_px }
    }

    /// Where the value lies, 0 at the start of the axis and 1 at its end.
    pub(crate) fn share(&self, value: f64) -> f64 {
        if self.log {
            (value.log10() - self.low.log10()) / (self.high.log10() - self.low.log10())
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    pub(crate) fn pixel(&self, value: f64) -> f64 {
        self.start_px + self.share(value) * (self.end_px - self.start_px)
    }

    /// Tick positions with their labels, about `target` of them.
    pub(crate) fn ticks(&self, target: usize) -> Vec<(f64, String)> {
        if self.log {
            let ticks = log_ticks(self.low, self.high, target);
            return ticks.into_iter().map(|tick| (tick, short(tick, 4))).collect();
        }
        let (ticks, step) = nice_ticks(self.low, self.high, target);
        let largest = ticks.iter().fold(0.0, |largest: f64, tick| largest.max(tick.abs()));
        ticks.iter().map(|tick| (*tick, tick_label(*tick, step, largest))).collect()
    }
}

/// Whether a value can be drawn at all.
pub(crate) fn drawable(value: f64) -> bool {
    value.is_finite() && value.abs() <= LIMIT
}

/// The range of the drawable values, widened where it is empty or too narrow to tell apart.
pub(crate) fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| drawable(*value))
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    if low > high {
        return (0.0, 1.0);
    }
    let size = low.abs().max(high.abs());
    if high - low > (size * 1e-9).max(TINY) {
        return (low, high);
    }
    let pad = if size > TINY { size * 0.05 } else { 0.5 };
    (low - pad, high + pad)
}

/// The range with a margin of this share of its span at both ends.
pub(crate) fn padded((low, high): (f64, f64), share: f64) -> (f64, f64) {
    let pad = (high - low) * share;
    (low - pad, high + pad)
}

/// Multiples of a step of 1, 2 or 5 times a power of ten that lie within `low..=high`, and that
/// step.
///
/// The step is the smallest one that gives no more than about `target` ticks: raw = span / target,
/// then the next larger of {1, 2, 5, 10} * 10^floor(log10 raw).
pub(crate) fn nice_ticks(low: f64, high: f64, target: usize) -> (Vec<f64>, f64) {
    let raw = (high - low) / target.max(1) as f64;
    if !(raw > 0.0 && raw.is_finite()) {
        return (vec![low], 1.0);
    }
    let exponent = raw.log10().floor() as i32;
    let fraction = raw / 10f64.powi(exponent);
    // The slack absorbs the rounding of the power, so that a raw step of exactly 2 stays 2.
    let (mantissa, exponent) = match fraction {
        f if f <= 1.000_000_1 => (1.0, exponent),
        f if f <= 2.000_000_1 => (2.0, exponent),
        f if f <= 5.000_000_1 => (5.0, exponent),
        _ => (1.0, exponent + 1),
    };
    let step = decimal(mantissa, exponent);
    let first = (low / step - 1e-9).ceil();
    let count = ((high / step + 1e-9).floor() - first).clamp(0.0, 4.0 * target as f64) as usize;
    let multiples = (0..=count).map(|index| (first + index as f64) * mantissa);
    (multiples.map(|multiple| decimal(multiple, exponent) + 0.0).collect(), step)
}

/// `x * 10^exponent`. Dividing by a positive power keeps 0.3 at 3 / 10 rather than 3 * 0.1.
fn decimal(x: f64, exponent: i32) -> f64 {
    if exponent < 0 { x / 10f64.powi(-exponent) } else { x * 10f64.powi(exponent) }
}

/// Ticks for a logarithmic axis: 1, 2 and 5 in each decade where they fit, else whole decades,
/// thinned to `target`; a range of less than three such ticks falls back to [`nice_ticks`].
pub(crate) fn log_ticks(low: f64, high: f64, target: usize) -> Vec<f64> {
    let dense = in_decades(low, high, &[1.0, 2.0, 5.0]);
    if dense.len() < 3 {
        let (ticks, _) = nice_ticks(low, high, target);
        return ticks.into_iter().filter(|tick| *tick > 0.0).collect();
    }
    if dense.len() <= target + 2 {
        return dense;
    }
    let whole = in_decades(low, high, &[1.0]);
    let stride = whole.len().div_ceil(target.max(1)).max(1);
    whole.into_iter().step_by(stride).collect()
}

/// Every `mantissa * 10^decade` from `low` to `high`.
fn in_decades(low: f64, high: f64, mantissas: &[f64]) -> Vec<f64> {
    let mut ticks = Vec::new();
    for decade in low.log10().floor() as i32..=high.log10().ceil() as i32 {
        ticks.extend(mantissas.iter().map(|mantissa| mantissa * 10f64.powi(decade)));
    }
    ticks.retain(|tick| *tick >= low * (1.0 - 1e-9) && *tick <= high * (1.0 + 1e-9));
    ticks
}

/// The label of a linear tick, with the decimals its step needs; large axes count in k, M, B and T.
fn tick_label(tick: f64, step: f64, largest: f64) -> String {
    if tick == 0.0 {
        return "0".to_string();
    }
    if largest >= 1e15 || step < 0.999e-5 {
        let digits = (largest.log10().floor() - step.log10().floor()).clamp(0.0, 15.0) as usize;
        return minus(&short(tick, digits + 1));
    }
    let (unit, suffix) = unit_of(if largest < 1e4 { 1.0 } else { largest });
    let decimals = (-((step / unit).log10() + 1e-9).floor()).max(0.0) as usize;
    minus(&format!("{:.decimals$}{suffix}", tick / unit))
}

fn unit_of(size: f64) -> (f64, &'static str) {
    match size {
        s if s >= 1e12 => (1e12, "T"),
        s if s >= 1e9 => (1e9, "B"),
        s if s >= 1e6 => (1e6, "M"),
        s if s >= 1e3 => (1e3, "k"),
        _ => (1.0, ""),
    }
}

/// A value with at most `digits` significant digits, in a unit of k to T from 10 000 on, in powers
/// of ten far outside.
pub(crate) fn short(value: f64, digits: usize) -> String {
    let rounded = round_to(value, digits);
    if rounded != 0.0 && !(1e-5..1e15).contains(&rounded.abs()) {
        return format!("{rounded:e}");
    }
    let (unit, suffix) = unit_of(if rounded.abs() < 1e4 { 1.0 } else { rounded.abs() });
    // Dividing may leave a tail of digits behind.
    format!("{}{suffix}", round_to(rounded / unit, digits))
}

/// A value with at most `digits` significant digits, whole numbers in full.
pub(crate) fn exact(value: f64, digits: usize) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{:.0}", value + 0.0);
    }
    let rounded = round_to(value, digits);
    if (1e-5..1e15).contains(&rounded.abs()) { rounded.to_string() } else { format!("{rounded:e}") }
}

fn round_to(value: f64, digits: usize) -> f64 {
    let digits = digits.saturating_sub(1);
    // Decimal rounding through text is exact where scaling by powers of ten is not.
    format!("{value:.digits$e}").parse().unwrap_or(value)
}

/// A number with a true minus sign.
fn minus(number: &str) -> String {
    number.replacen('-', "\u{2212}", usize::from(number.starts_with('-')))
}

/// At most `limit` of the points, with the lowest and the highest of each bucket and both ends of
/// the curve.
///
/// Buckets are equal stretches of `share`, the position along the axis in `0..=1`, so a logarithmic
/// axis keeps its left end; a curve that runs back and forth in x is bucketed by index.
pub(crate) fn decimate<P: Copy>(
    points: &[P],
    limit: usize,
    share: impl Fn(P) -> f64,
    height: impl Fn(P) -> f64,
) -> Vec<P> {
    let limit = limit.max(4);
    if points.len() <= limit {
        return points.to_vec();
    }
    let buckets = (limit - 2) / 2;
    let most = buckets as f64 - 1.0;
    let thinned = min_max(
        points,
        |index| (share(points[index]) * buckets as f64).clamp(0.0, most) as usize,
        &height,
    );
    if thinned.len() <= limit {
        return thinned;
    }
    min_max(
        points,
        |index| (index as u128 * buckets as u128 / points.len() as u128) as usize,
        &height,
    )
}

/// The first and last point, and of each run of equal buckets between them the lowest and the
/// highest.
fn min_max<P: Copy>(
    points: &[P],
    bucket: impl Fn(usize) -> usize,
    height: &impl Fn(P) -> f64,
) -> Vec<P> {
    let last = points.len() - 1;
    let mut kept = vec![points[0]];
    let mut start = 1;
    while start < last {
        let number = bucket(start);
        let (mut low, mut high) = (start, start);
        let mut end = start + 1;
        while end < last && bucket(end) == number {
            if height(points[end]) < height(points[low]) {
                low = end;
            }
            if height(points[end]) > height(points[high]) {
                high = end;
            }
            end += 1;
        }
        kept.push(points[low.min(high)]);
        if low != high {
            kept.push(points[low.max(high)]);
        }
        start = end;
    }
    kept.push(points[last]);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, log: bool) -> Vec<String> {
        Axis::new((low, high), log, 0.0, 1.0).ticks(6).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_inside_and_neither_few_nor_many() {
        for (low, high) in [
            (0.0, 1.0),
            (2.31, 10.82),
            (-7.0, 3.0),
            (0.0, 20_000.0),
            (1e-9, 3e-9),
            (1e12, 1.000001e12),
        ] {
            let (ticks, step) = nice_ticks(low, high, 6);
            let mantissa = step / 10f64.powf(step.log10().floor() + 1e-12);
            assert!(
                [1.0, 2.0, 5.0, 10.0].iter().any(|m| (m - mantissa).abs() < 1e-6),
                "step {step}"
            );
            assert!((3..=8).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
            let slack = step * 1e-6;
            assert!(
                ticks.iter().all(|tick| *tick >= low - slack && *tick <= high + slack),
                "{ticks:?}"
            );
            assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]));
        }
        assert_eq!(nice_ticks(0.0, 1.0, 5).0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(nice_ticks(0.0, 0.5, 5).0, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]);
    }

    #[test]
    fn tick_labels_carry_the_decimals_of_the_step() {
        assert_eq!(labels(0.0, 20_000.0, false), ["0", "5k", "10k", "15k", "20k"]);
        assert_eq!(
            labels(0.0, 3000.0, false),
            ["0", "500", "1000", "1500", "2000", "2500", "3000"]
        );
        assert_eq!(labels(2.5, 3.1, false), ["2.5", "2.6", "2.7", "2.8", "2.9", "3.0", "3.1"]);
        assert_eq!(labels(-1.0, 1.0, false), ["\u{2212}1.0", "\u{2212}0.5", "0", "0.5", "1.0"]);
        assert_eq!(labels(0.0, 5e-7, false), ["0", "1e-7", "2e-7", "3e-7", "4e-7", "5e-7"]);
    }

    #[test]
    fn labels_of_one_axis_differ() {
        for (low, high) in
            [(1e12, 1.000001e12), (9_999.0, 10_003.0), (1e-5, 1.2e-5), (-1e9, 1e9), (0.0, 1e300)]
        {
            let names = labels(low, high, false);
            let mut unique = names.clone();
            unique.dedup();
            assert_eq!(names, unique);
        }
    }

    #[test]
    fn log_ticks_follow_decades() {
        assert_eq!(labels(1.0, 100.0, true), ["1", "2", "5", "10", "20", "50", "100"]);
        assert_eq!(
            labels(1.0, 1e6, true),
            ["1", "10", "100", "1000", "10k", "100k", "1M"]
                .iter()
                .step_by(2)
                .copied()
                .collect::<Vec<_>>()
        );
        assert!(log_ticks(1e-3, 1e9, 6).len() <= 7);
        assert_eq!(log_ticks(11.0, 18.0, 6), [12.0, 14.0, 16.0, 18.0]);
    }

    #[test]
    fn degenerate_ranges_are_widened() {
        assert_eq!(range([f64::NAN, f64::INFINITY, 1e308].into_iter()), (0.0, 1.0));
        assert_eq!(range([0.0].into_iter()), (-0.5, 0.5));
        assert_eq!(range([f64::MIN_POSITIVE].into_iter()), (-0.5, 0.5));
        let (low, high) = range([3.0, 3.0].into_iter());
        assert!(low < 3.0 && high > 3.0);
        let (low, high) = range([-LIMIT, LIMIT].into_iter());
        assert!((high - low).is_finite());
    }

    #[test]
    fn numbers_are_short_but_true() {
        assert_eq!(short(12_345.678, 3), "12.3k");
        assert_eq!(short(0.000_001_234, 2), "1.2e-6");
        assert_eq!(short(2.0, 4), "2");
        assert_eq!(exact(123_456.0, 4), "123456");
        assert_eq!(exact(3.214_159, 5), "3.2142");
        assert_eq!(exact(-0.0, 5), "0");
        assert_eq!(exact(2.5e-9, 5), "2.5e-9");
    }

    #[test]
    fn decimation_keeps_ends_and_extremes() {
        let mut points: Vec<(f64, f64)> =
            (0..100_000).map(|i| (f64::from(i), (f64::from(i) * 0.01).sin())).collect();
        points[51_234].1 = 40.0;
        points[77_777].1 = -40.0;
        let kept = decimate(&points, 1000, |p| p.0 / 99_999.0, |p| p.1);
        assert!((500..=1000).contains(&kept.len()), "{}", kept.len());
        assert!(kept.contains(&points[51_234]) && kept.contains(&points[77_777]));
        assert_eq!((kept[0], kept[kept.len() - 1]), (points[0], points[99_999]));
        assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(decimate(&points[..1000], 1000, |p| p.0, |p| p.1), &points[..1000]);
    }

    #[test]
    fn decimation_bounds_a_curve_that_runs_back_and_forth() {
        let points: Vec<(f64, f64)> = (0..5000).map(|i| (f64::from(i % 2), f64::from(i))).collect();
        let kept = decimate(&points, 1000, |p| p.0, |p| p.1);
        assert!(kept.len() <= 1000);
        assert_eq!(kept[kept.len() - 1], points[4999]);
    }
}
