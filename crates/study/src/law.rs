//! How a loss falls with compute, over several budgets.

use serde::Serialize;

/// The fewest budgets over which a law is fitted: with one fewer it is predicted.
pub const FEWEST_BUDGETS: usize = 3;

/// `loss = factor * flops^-exponent`, fitted by least squares of logarithms. Nothing that cannot be
/// learned is subtracted from the loss, so that the exponent holds near these budgets alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PowerLaw {
    /// The loss at one FLOP, by the line.
    pub factor: f64,
    /// How fast the loss falls.
    pub exponent: f64,
}

/// A law and how well the one without the largest budget knew that budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CheckedLaw {
    /// Fitted to all budgets.
    pub law: PowerLaw,
    /// What the law of the smaller budgets says of the largest one.
    pub predicted: f64,
    /// The loss that was found there, the mean of the seeds.
    pub found: f64,
}

impl CheckedLaw {
    /// The error of the prediction over what was found.
    pub fn held_out_error(&self) -> f64 {
        self.predicted / self.found - 1.0
    }
}

impl PowerLaw {
    /// The loss at a budget.
    pub fn at(&self, flops: f64) -> f64 {
        self.factor * flops.powf(-self.exponent)
    }

    /// The line through the logarithms of points `(flops, loss)`, at least two of different FLOPs.
    fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let n = points.len() as f64;
        let (mut x, mut y) = (0.0, 0.0);
        for (flops, loss) in points {
            x += flops.ln() / n;
            y += loss.ln() / n;
        }
        let (mut xx, mut xy) = (0.0, 0.0);
        for (flops, loss) in points {
            xx += (flops.ln() - x).powi(2);
            xy += (flops.ln() - x) * (loss.ln() - y);
        }
        let slope = xy / xx;
        slope.is_finite().then(|| Self { factor: (y - slope * x).exp(), exponent: -slope })
    }
}

/// Fits points `(flops, loss)`, one for each run. `None` with fewer than [`FEWEST_BUDGETS`]
/// different budgets.
pub fn power_law(points: &[(f64, f64)]) -> Option<CheckedLaw> {
    let mut budgets: Vec<f64> = points.iter().map(|point| point.0).collect();
    budgets.sort_by(f64::total_cmp);
    budgets.dedup();
    let largest = *budgets.last().filter(|_| budgets.len() >= FEWEST_BUDGETS)?;
    let held: Vec<_> = points.iter().filter(|point| point.0 == largest).collect();
    let smaller: Vec<_> = points.iter().copied().filter(|point| point.0 != largest).collect();
    let found = held.iter().map(|point| point.1).sum::<f64>() / held.len() as f64;
    let predicted = PowerLaw::fit(&smaller)?.at(largest);
    Some(CheckedLaw { law: PowerLaw::fit(points)?, predicted, found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_law_is_found_again_and_a_broken_one_is_noticed() {
        let law = PowerLaw { factor: 40.0, exponent: 0.08 };
        let mut points: Vec<(f64, f64)> =
            [1e12, 3e12, 1e13, 3e13].map(|flops| (flops, law.at(flops))).to_vec();
        let found = power_law(&points).expect("four budgets");
        assert!((found.law.exponent - 0.08).abs() < 1e-9, "{found:?}");
        assert!((found.law.factor / 40.0 - 1.0).abs() < 1e-6, "{found:?}");
        assert!(found.held_out_error().abs() < 1e-9, "{found:?}");
        // Two seeds around the law say the same.
        let both: Vec<(f64, f64)> =
            points.iter().flat_map(|(x, y)| [(*x, y * 1.01), (*x, y / 1.01)]).collect();
        let two = power_law(&both).expect("four budgets");
        assert!((two.law.exponent - 0.08).abs() < 1e-9, "{two:?}");
        // The largest budget does not keep to it.
        points[3].1 *= 1.1;
        let broken = power_law(&points).expect("four budgets");
        assert!((broken.held_out_error() + 1.0 - 1.0 / 1.1).abs() < 1e-9, "{broken:?}");
        assert_eq!(power_law(&points[..2]), None);
        assert_eq!(power_law(&[(1e12, 3.0); 5]), None);
    }
}
