//! A curve in one line of block characters, for live displays.

/// `values` in at most `width` characters.
pub fn sparkline(values: &[f64], width: usize) -> String {
    todo!()
}
