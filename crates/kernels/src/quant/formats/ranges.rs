//! Scale and minimum of a group whose codes count up from the minimum: the range between the least
//! and the largest value is cut, as cutting off the extremes makes the steps between the others
//! smaller, and the cut with the least square error is taken.

use crate::quant::format::{GroupScale, Importance, inverse};
use crate::quant::half::{f16_to_f32, f32_to_f16};

/// The ranges that are tried for a group.
pub(super) struct Search<'a> {
    /// Steps from the least to the largest code.
    pub(super) steps: f32,
    /// Ranges that the least and largest value are cut to, as shares of their distance.
    pub(super) shares: &'a [f32],
    /// Whether each range is also moved to where the line through its codes fits best, by least
    /// squares.
    pub(super) fits: bool,
}

/// A group with what its errors count.
struct Group<'a> {
    unit: f32,
    steps: f64,
    w: &'a [f32],
    importance: Importance<'a>,
}

/// Of the ranges of a search, the one with the least sum of square errors, times importance where
/// that is given.
pub(super) fn found(
    search: &Search<'_>,
    unit: f32,
    w: &[f32],
    importance: Importance<'_>,
) -> GroupScale {
    let Search { steps, shares, fits } = *search;
    let least = w.iter().copied().fold(f32::INFINITY, f32::min);
    let most = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let group = Group { unit, steps: f64::from(steps), w, importance };
    let (mut best, mut chosen) = (f64::INFINITY, GroupScale::default());
    for share in shares {
        let cut = (most / 2.0 - least / 2.0) * (1.0 - share);
        let scale = f32_to_f16((most / steps - least / steps) * share / unit);
        let min = f32_to_f16((least + cut) / unit);
        let cut = GroupScale { scale, min };
        let fitted = if fits { group.fitted(cut) } else { None };
        for scale in std::iter::once(cut).chain(fitted) {
            let error = group.error(scale);
            if error < best {
                (best, chosen) = (error, scale);
            }
        }
    }
    chosen
}

impl Group<'_> {
    /// The nearest codes, each with its value and what it counts.
    fn coded(&self, scale: GroupScale) -> impl Iterator<Item = (f64, f64, f64)> {
        let min = f64::from(f16_to_f32(scale.min) * self.unit);
        let inverse = inverse(f16_to_f32(scale.scale) * self.unit);
        self.w.iter().enumerate().map(move |(i, &w)| {
            let w = f64::from(w);
            let q = ((w - min) * inverse).round_ties_even().clamp(0.0, self.steps);
            (q, w, self.importance.map_or(1.0, |all| f64::from(all[i])))
        })
    }

    fn error(&self, scale: GroupScale) -> f64 {
        let min = f64::from(f16_to_f32(scale.min) * self.unit);
        let step = f64::from(f16_to_f32(scale.scale) * self.unit);
        self.coded(scale).map(|(q, w, counts)| (q * step + min - w).powi(2) * counts).sum()
    }

    /// Scale and minimum with the least square error for the codes that `scale` gives; `None` where
    /// these are all the same, or the line is out of range.
    fn fitted(&self, scale: GroupScale) -> Option<GroupScale> {
        let mut sums = [0.0f64; 5];
        for (q, w, counts) in self.coded(scale) {
            let of_value = [1.0, q, q * q, w, q * w];
            sums.iter_mut().zip(of_value).for_each(|(sum, x)| *sum += counts * x);
        }
        let [all, of_q, of_squares, of_w, of_both] = sums;
        let apart = all * of_squares - of_q * of_q;
        let step = (all * of_both - of_q * of_w) / apart;
        let min = (of_w - step * of_q) / all;
        let unit = f64::from(self.unit);
        let halves = [step / unit, min / unit].map(|x| f32_to_f16(x as f32));
        let finite = halves.iter().all(|half| f16_to_f32(*half).is_finite());
        (apart > 0.0 && step > 0.0 && finite)
            .then_some(GroupScale { scale: halves[0], min: halves[1] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::format::Format;
    use crate::testing::values;

    const SHARES: [f32; 8] = [1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79];

    /// The sum of square errors of `w` in 16 steps, by the formula.
    fn error(unit: f32, w: &[f32], scale: GroupScale) -> f64 {
        let [step, min] = [scale.scale, scale.min].map(|x| f64::from(f16_to_f32(x) * unit));
        let nearest = |w: f64| {
            (0..16).map(|q| (f64::from(q) * step + min - w).powi(2)).fold(f64::INFINITY, f64::min)
        };
        w.iter().map(|w| nearest(f64::from(*w))).sum()
    }

    /// Of ranges with the same middle the best is taken; a line that is fitted is better still, and
    /// `int4` asks for one by importance alone.
    #[test]
    fn the_best_cut_is_taken_and_fitted() {
        let (unit, even) = (0.25, [1.0; 32]);
        let scale_of = "int4".parse::<Format>().expect("known").0.scale;
        let mut sums = [0.0; 2];
        for seed in 0..20 {
            let mut w = values(seed, 32);
            w[7] *= 2.5;
            let least = w.iter().copied().fold(f32::INFINITY, f32::min);
            let most = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let cut = |share: f32| GroupScale {
                scale: f32_to_f16((most - least) * share / 15.0 / unit),
                min: f32_to_f16((least + (most - least) * (1.0 - share) / 2.0) / unit),
            };
            let cuts = SHARES.map(|share| error(unit, &w, cut(share)));
            let best = cuts.into_iter().fold(f64::INFINITY, f64::min);
            let plain = error(unit, &w, scale_of(unit, &w, None));
            assert!((plain / best - 1.0).abs() < 0.01, "{seed}: {plain}, {best} of {cuts:?}");
            let search = Search { steps: 15.0, shares: &SHARES, fits: true };
            let fitted = found(&search, unit, &w, None);
            assert_eq!(scale_of(unit, &w, Some(&even)), fitted, "{seed}");
            sums[0] += plain;
            sums[1] += error(unit, &w, fitted);
        }
        assert!(sums[1] < 0.98 * sums[0], "{sums:?}");
    }
}
