//! What can be wrong with a matrix to quantise or with stored codes.

use super::format::Format;

/// Why a quantised matrix could not be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QuantError {
    /// An unknown format name.
    #[error("format `{found}` is unknown: expected {expected}; choose one of them")]
    Name {
        /// The beginning of the name.
        found: String,
        /// The names that there are.
        expected: String,
    },
    /// Sizes that the address space or the format cannot hold.
    #[error(
        "a matrix [{n}, {d}] is too large for {format}; \
         split it, or check where the sizes come from"
    )]
    Size {
        /// The format asked for.
        format: Format,
        /// Rows of the matrix.
        n: usize,
        /// Columns of the matrix.
        d: usize,
    },
    /// A slice that does not fit the sizes.
    #[error(
        "{what} of a matrix [{n}, {d}]: expected {expected}, found {found}; \
         check that data and sizes belong together"
    )]
    Length {
        /// What the slice holds.
        what: &'static str,
        /// Rows of the matrix.
        n: usize,
        /// Columns of the matrix.
        d: usize,
        /// Elements that the sizes ask for.
        expected: usize,
        /// Elements that were passed.
        found: usize,
    },
    /// A weight that is NaN or infinite, or that overflows the format.
    #[error(
        "weight ({row}, {col}) is {value}, not a finite number that {format} can hold; \
         the weights are damaged"
    )]
    Weight {
        /// The format asked for.
        format: Format,
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// The weight itself: infinite, not a number, or beyond the format.
        value: f32,
    },
    /// A stored scale or minimum that is NaN, infinite, or too large to be multiplied with a code.
    #[error(
        "the scale or minimum of row {row}, group {group} is not finite, or too large for codes; \
         the stored matrix is damaged"
    )]
    Scale {
        /// Row of the group.
        row: usize,
        /// The group within its row.
        group: usize,
    },
    /// What the errors of a column count is no number that can be counted with.
    #[error(
        "the importance of column {column} is {found}, expected a finite number of at least 0; \
         measure it again"
    )]
    Importance {
        /// The number of the column.
        column: usize,
        /// What its errors were to count.
        found: f32,
    },
    /// A stored unit that is no power of two.
    #[error(
        "the unit of a stored {format} matrix is {found}, expected a power of two; \
         the matrix is damaged"
    )]
    Unit {
        /// Format of the matrix.
        format: Format,
        /// The unit that is stored.
        found: f32,
    },
}
