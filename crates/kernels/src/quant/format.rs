//! What a weight format is. The formats themselves are the files of `formats/`.

use super::codes::Codes;
use std::fmt;

/// How a quantised matrix stores its weights; one of [`Format::ALL`].
#[derive(Clone, Copy)]
pub struct Format(pub(super) &'static WeightFormat);

/// A weight is `unit * (scale * (code - zero) + min)`, where scale and min are those of its group:
/// consecutive values of a row of W `[n, d]`.
pub(super) struct WeightFormat {
    /// As it is named on command lines and in checkpoints.
    pub(super) name: &'static str,
    /// One line for help texts.
    pub(super) about: &'static str,
    /// What the codes are, and with that, which kernels multiply them.
    pub(super) codes: Codes,
    pub(super) groups: Groups,
    /// Whether each group has a minimum beside its scale.
    pub(super) has_minima: bool,
    /// What is taken from each code; 0 where codes are bytes or stand for themselves.
    pub(super) zero: i32,
    /// The least and the largest code; of no meaning where codes stand for themselves.
    pub(super) levels: (i32, i32),
    /// The power of two for a matrix, from its largest magnitude.
    pub(super) unit: fn(f32) -> f32,
    /// Whether several scales are tried for a group, so that the importance of its values counts.
    pub(super) searches: bool,
    /// Scale and minimum for a group, given the unit.
    pub(super) scale: fn(unit: f32, w: &[f32], importance: Importance<'_>) -> GroupScale,
    /// The format of embedding and head in a model of this format, if it is another: errors there
    /// reach every token.
    pub(super) embedding: Option<Format>,
}

/// Values that share a scale: the sizes that the kernels have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Groups {
    /// Codes stand for themselves, without scales.
    None,
    /// 32 values; the last group of a row may be shorter.
    Of32,
    /// 64 values; the last group of a row may be shorter.
    Of64,
    /// The whole row is one group.
    Row,
}

/// How much the square of each value's error counts; equally where nothing is said. The numbers are
/// finite and not negative.
pub(super) type Importance<'a> = Option<&'a [f32]>;

/// Half-precision bits that belong to one group; of no meaning where the format has none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct GroupScale {
    pub(super) scale: u16,
    pub(super) min: u16,
}

impl Format {
    /// Its name, as [`str::parse`] reads it.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// What it is, in one line.
    pub fn about(self) -> &'static str {
        self.0.about
    }

    /// Bits of one code; scales come on top.
    pub fn bits(self) -> usize {
        self.0.codes.bits()
    }

    /// The format of embedding and head when a model is rounded to this one: errors there reach
    /// every token, so few bits are not enough.
    pub fn of_embedding(self) -> Format {
        self.0.embedding.unwrap_or(self)
    }

    /// Whether the importance of columns changes how weights are rounded to it.
    pub fn counts_importance(self) -> bool {
        self.0.searches
    }

    /// Standard deviation of a product from that with the stored weights in `f32`, relative to its
    /// size, for normal values: what the rounding of activations does.
    pub fn product_error(self) -> f64 {
        self.0.codes.product_error()
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Format {}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.name)
    }
}

/// The power of two that puts the largest scale or minimum of a matrix near the upper end of half
/// precision, so that groups 2^28 times smaller still have scales of full precision.
pub(super) fn unit_for(largest: f32) -> f32 {
    // The exponent is that of 2^14 times the unit; kept inside the normal numbers.
    let exponent = (largest.to_bits() >> 23).saturating_sub(14);
    f32::from_bits(exponent.clamp(1, 253) << 23)
}

/// `1 / x`, or zero where there is nothing to divide.
pub(super) fn inverse(x: f32) -> f64 {
    if x == 0.0 { 0.0 } else { 1.0 / f64::from(x) }
}
