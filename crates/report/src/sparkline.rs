//! A curve in one line of block characters, for live displays.

/// Eighth blocks, lowest first.
const BLOCKS: [char; 8] = [
    '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}',
];

/// `values` as one line of at most `width` block characters, lowest value to highest over the
/// finite ones.
///
/// More values than `width` are averaged in equal buckets; fewer give a shorter line. A bucket
/// without a finite value is a space, and a flat curve is drawn at the lowest block.
pub fn sparkline(values: &[f64], width: usize) -> String {
    let cells = values.len().min(width);
    let means: Vec<Option<f64>> = (0..cells)
        .map(|cell| {
            mean_finite(
                &values[bucket_start(cell, cells, values.len())
                    ..bucket_start(cell + 1, cells, values.len())],
            )
        })
        .collect();
    let low = means.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    means
        .iter()
        .map(|mean| match mean {
            Some(value) => BLOCKS[block_index(*value, low, high)],
            None => ' ',
        })
        .collect()
}

fn bucket_start(cell: usize, cells: usize, len: usize) -> usize {
    // u128 keeps the product exact for any slice length.
    ((cell as u128 * len as u128) / cells as u128) as usize
}

fn mean_finite(values: &[f64]) -> Option<f64> {
    let mut mean = 0.0;
    let mut count = 0.0;
    for value in values.iter().filter(|value| value.is_finite()) {
        count += 1.0;
        // Dividing before adding keeps the mean of huge values finite.
        mean += value / count - mean / count;
    }
    (count > 0.0).then_some(mean)
}

fn block_index(value: f64, low: f64, high: f64) -> usize {
    // Halving first keeps the span finite at the ends of the f64 range.
    let span = high / 2.0 - low / 2.0;
    if span <= 0.0 {
        return 0;
    }
    let share = (value / 2.0 - low / 2.0) / span;
    ((share * BLOCKS.len() as f64) as usize).min(BLOCKS.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramp_uses_every_block_once() {
        let ramp: Vec<f64> = (0..8).map(f64::from).collect();
        assert_eq!(sparkline(&ramp, 8), BLOCKS.iter().collect::<String>());
        assert_eq!(sparkline(&ramp, 80).chars().count(), 8);
    }

    #[test]
    fn long_curves_are_averaged_to_the_width() {
        let values: Vec<f64> =
            (0..1000).map(|i| f64::from(i % 2) + f64::from(i / 500) * 10.0).collect();
        let line: Vec<char> = sparkline(&values, 10).chars().collect();
        assert_eq!(line.len(), 10);
        assert!(line[..5].iter().all(|block| *block == BLOCKS[0]));
        assert!(line[5..].iter().all(|block| *block == BLOCKS[7]));
    }

    #[test]
    fn odd_inputs_stay_harmless() {
        assert_eq!(sparkline(&[], 10), "");
        assert_eq!(sparkline(&[1.0], 0), "");
        assert_eq!(sparkline(&[2.0, 2.0], 5), "\u{2581}\u{2581}");
        assert_eq!(sparkline(&[0.0, f64::NAN, 1.0], 3), "\u{2581} \u{2588}");
        assert_eq!(sparkline(&[f64::MIN, f64::MAX], 2), "\u{2581}\u{2588}");
        assert_eq!(sparkline(&[f64::MAX, f64::MAX, f64::MIN, f64::MIN], 2), "\u{2588}\u{2581}");
    }
}
