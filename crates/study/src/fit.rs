//! The size at which something costs what it may cost.

use std::ops::RangeInclusive;

/// A size and what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fitted {
    /// The size that was asked about.
    pub size: usize,
    /// What a thing of this size costs.
    pub cost: f64,
}

/// The multiple of `step` in `sizes` whose cost is nearest to `target`, by halving the range;
/// `cost` must not fall where the size grows. `None` where the range holds no multiple.
///
/// # Errors
/// What `cost` refuses.
pub fn nearest_size<E>(
    target: f64,
    sizes: RangeInclusive<usize>,
    step: usize,
    mut cost: impl FnMut(usize) -> Result<f64, E>,
) -> Result<Option<Fitted>, E> {
    let step = step.max(1);
    let (mut low, mut high) = (sizes.start().div_ceil(step), sizes.end() / step);
    if low > high {
        return Ok(None);
    }
    // The smallest one that costs at least the target, or the largest of all.
    while low < high {
        let middle = low + (high - low) / 2;
        if cost(middle * step)? >= target { high = middle } else { low = middle + 1 }
    }
    let above = Fitted { size: low * step, cost: cost(low * step)? };
    if low == 0 || (low - 1) * step < *sizes.start() {
        return Ok(Some(above));
    }
    let below = Fitted { size: above.size - step, cost: cost(above.size - step)? };
    let nearer = (target - below.cost).abs() < (above.cost - target).abs();
    Ok(Some(if nearer { below } else { above }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(target: f64, sizes: RangeInclusive<usize>, step: usize) -> Option<Fitted> {
        let cost = |size: usize| Ok::<f64, ()>(100.0 + 3.0 * size as f64);
        nearest_size(target, sizes, step, cost).expect("costs")
    }

    #[test]
    fn the_nearest_of_all_sizes_is_found() {
        for (least, most, step) in [(1, 50, 1), (8, 200, 8), (3, 40, 7), (5, 5, 1)] {
            for target in (50..800).step_by(7).map(f64::from) {
                let all = (least..=most).filter(|size| size % step == 0);
                let cost = |size: usize| 100.0 + 3.0 * size as f64;
                let best = all.map(|size| (cost(size) - target).abs()).fold(f64::MAX, f64::min);
                let found = linear(target, least..=most, step).expect("some");
                assert!(found.size.is_multiple_of(step) && (least..=most).contains(&found.size));
                assert!(((found.cost - target).abs() - best).abs() < 1e-9, "{target}: {found:?}");
            }
        }
        assert_eq!(linear(500.0, 9..=15, 8), None);
        assert_eq!(nearest_size(1.0, 1..=9, 1, |_| Err::<f64, i32>(7)), Err(7));
    }
}
