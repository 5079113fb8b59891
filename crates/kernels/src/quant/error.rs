//! What can be wrong with a matrix to quantise or with stored codes.

use super::Format;

/// Why a quantised matrix could not be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QuantError {
    /// A group size that no kernel has.
    #[error("groups of {found} values: expected 32 or 64; choose one of them")]
    Group {
        /// The size asked for.
        found: usize,
    },
    /// An unknown format name.
    #[error(
        "format `{found}` is unknown: expected bf16, int8, int8-g64, int8-row, int4 or int4-g64; choose one of them"
    )]
    Name {
        /// The beginning of the name.
        found: String,
    },
    /// Sizes that the address space or the format cannot hold.
    #[error(
        "a matrix [{n}, {d}] is too large for {format}; split it, or check where the sizes come from"
    )]
    Size {
        /// The format asked for.
        format: Format,
        /// Rows.
        n: usize,
        /// Columns.
        d: usize,
    },
    /// A slice that does not fit the sizes.
    #[error(
        "{what} of a matrix [{n}, {d}]: expected {expected}, found {found}; check that data and sizes belong together"
    )]
    Length {
        /// What the slice holds.
        what: &'static str,
        /// Rows.
        n: usize,
        /// Columns.
        d: usize,
        /// Elements that the sizes ask for.
        expected: usize,
        /// Elements passed.
        found: usize,
    },
    /// Blocks of 32 values for rows that are not made of them.
    #[error("rows of {d} values are not whole blocks of 32; these blocks belong to another shape")]
    Blocks {
        /// Columns.
        d: usize,
    },
    /// A weight that is NaN or infinite, or that overflows the format.
    #[error(
        "weight ({row}, {col}) is {value}, not a finite number that {format} can hold; the weights are damaged"
    )]
    Weight {
        /// The format asked for.
        format: Format,
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// The weight.
        value: f32,
    },
    /// A stored scale or minimum that is NaN, infinite, or too large to be multiplied with a code.
    #[error(
        "the scale or minimum of row {row}, group {group} is not finite, or too large for codes; the stored matrix is damaged"
    )]
    Scale {
        /// Row of the group.
        row: usize,
        /// The group within its row.
        group: usize,
    },
    /// A stored unit that is no power of two.
    #[error(
        "the unit of a stored {format} matrix is {found}, expected a power of two (1 for bf16); the matrix is damaged"
    )]
    Unit {
        /// Its format.
        format: Format,
        /// The unit.
        found: f32,
    },
}
