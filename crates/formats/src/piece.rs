//! Where the weights of a role stand within a larger tensor of a file: banks of experts, gate and
//! up in one matrix, banks that are stored transposed.

/// Some numbers of a tensor, as rows and columns: row `i`, column `j` is the number `first + i
/// row_step + j column_step`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// What the file calls the tensor.
    pub(crate) name: String,
    /// Its axes, the slowest first: one of a vector, two of a matrix, three of a bank of experts.
    pub(crate) shape: Vec<usize>,
    /// The place of the first number.
    pub(crate) first: usize,
    /// From a row to the next.
    pub(crate) row_step: usize,
    /// From a column to the next.
    pub(crate) column_step: usize,
    /// Rows and columns; a vector has one column.
    pub(crate) size: (usize, usize),
}

impl Piece {
    /// A whole tensor.
    pub(crate) fn whole(name: String, shape: Vec<usize>) -> Self {
        let columns = if shape.len() < 2 { 1 } else { shape.last().copied().unwrap_or(1) };
        let count: usize = shape.iter().product();
        let size = (count.checked_div(columns).unwrap_or(0), columns);
        Self { name, shape, first: 0, row_step: columns, column_step: 1, size }
    }

    /// Rows `rows` of matrix number `at` of a bank `[matrices, rows, columns]`, or of the only
    /// matrix `[rows, columns]`.
    pub(crate) fn rows(
        name: String,
        shape: Vec<usize>,
        at: usize,
        rows: std::ops::Range<usize>,
    ) -> Self {
        let columns = shape.last().copied().unwrap_or(1);
        let of_matrix = shape.iter().rev().nth(1).copied().unwrap_or(1);
        let first = (at * of_matrix + rows.start) * columns;
        Self { name, shape, first, row_step: columns, column_step: 1, size: (rows.len(), columns) }
    }

    /// The places that it lies between.
    pub(crate) fn span(&self) -> std::ops::Range<usize> {
        let (rows, columns) = self.size;
        if rows == 0 || columns == 0 {
            return self.first..self.first;
        }
        let last = self.first + (rows - 1) * self.row_step + (columns - 1) * self.column_step;
        self.first..last + 1
    }

    /// Whether its numbers follow each other.
    pub(crate) fn is_dense(&self) -> bool {
        let (rows, columns) = self.size;
        self.span().len() == rows * columns && (columns < 2 || self.column_step == 1)
    }

    /// The numbers of the piece out of those of [`Piece::span`].
    pub(crate) fn out_of(&self, span: Vec<f32>) -> Vec<f32> {
        if self.is_dense() {
            return span;
        }
        let (rows, columns) = self.size;
        let mut values = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            let places = (0..columns).map(|column| row * self.row_step + column * self.column_step);
            values.extend(places.map(|place| span[place]));
        }
        values
    }

    /// Writes the piece's numbers, row after row, to their places in the whole tensor.
    pub(crate) fn put_into(&self, whole: &mut [f32], values: &[f32]) {
        let columns = self.size.1.max(1);
        for (i, value) in values.iter().enumerate() {
            let (row, column) = (i / columns, i % columns);
            whole[self.first + row * self.row_step + column * self.column_step] = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_in_and_come_out() {
        // A bank of two matrices [3, 4] that are stored transposed, their rows alternating between
        // two halves of two rows each: [2, 4, 3] with columns gate, up, gate.
        let name = || "bank".to_owned();
        let bank = vec![2, 4, 6];
        let half = |matrix: usize, which: usize| Piece {
            name: name(),
            shape: bank.clone(),
            first: matrix * 24 + which,
            row_step: 2,
            column_step: 6,
            size: (3, 4),
        };
        let mut whole = vec![f32::NAN; 48];
        for (number, piece) in [half(0, 0), half(0, 1), half(1, 0), half(1, 1)].iter().enumerate() {
            let values: Vec<f32> = (0..12).map(|i| (100 * number + i) as f32).collect();
            piece.put_into(&mut whole, &values);
            assert!(!piece.is_dense());
        }
        assert!(whole.iter().all(|x| x.is_finite()), "each place once");
        assert_eq!(whole[..6], [0.0, 100.0, 4.0, 104.0, 8.0, 108.0]);
        let piece = half(1, 1);
        let found = piece.out_of(whole[piece.span()].to_vec());
        assert_eq!(found, (0..12).map(|i| (300 + i) as f32).collect::<Vec<_>>());
        let rows = Piece::rows(name(), bank, 1, 2..4);
        assert_eq!((rows.span(), rows.is_dense(), rows.size), (36..48, true, (2, 6)));
        assert_eq!(rows.out_of(whole[rows.span()].to_vec()), whole[36..48]);
        let vector = Piece::whole(name(), vec![5]);
        assert_eq!((vector.span(), vector.is_dense(), vector.size), (0..5, true, (5, 1)));
        let one = Piece::whole(name(), vec![1, 5]);
        assert_eq!((one.span(), one.size), (0..5, (1, 5)));
    }
}
