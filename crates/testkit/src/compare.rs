//! Comparisons whose failure names the first entry that differs.

/// Fails unless all of `found` is within `tolerance` times the largest magnitude in `expected`.
///
/// # Panics
/// At the first entry that is further away, or if the two differ in length.
pub fn close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    close_above(1e-6, found, expected, tolerance, what);
}

/// As [`close`], where `least` counts as the largest magnitude if all are smaller: for numbers that
/// ought to be zero, found by two ways of rounding.
///
/// # Panics
/// As [`close`].
pub fn close_above(least: f32, found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: number of entries");
    let largest = expected.iter().fold(least, |m, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f - e).abs() <= tolerance * largest,
            "{what}: entry {i} is {f}, expected {e} (largest {largest})"
        );
    }
}

/// Fails unless the two have the same bits.
///
/// # Panics
/// At the first entry that differs, or if the two differ in length.
pub fn same_bits(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: number of entries");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert_eq!(f.to_bits(), e.to_bits(), "{what}: entry {i} is {f:e}, expected {e:e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_are_close() {
        close(&[1.0, 10.01], &[1.0, 10.0], 2e-3, "within");
    }

    #[test]
    #[should_panic(expected = "x: entry 1 is 10.5")]
    fn large_differences_are_not() {
        close(&[1.0, 10.5], &[1.0, 10.0], 2e-3, "x");
    }

    #[test]
    fn zeros_are_close_to_what_rounding_leaves() {
        close_above(1e-3, &[1e-8], &[0.0], 1e-4, "beside zero");
        assert!(std::panic::catch_unwind(|| close(&[1e-8], &[0.0], 1e-4, "zero")).is_err());
    }

    #[test]
    fn bits_tell_zeros_apart() {
        same_bits(&[0.0, 1.0], &[0.0, 1.0], "equal");
        assert!(std::panic::catch_unwind(|| same_bits(&[-0.0], &[0.0], "sign")).is_err());
    }
}
