//! Borrowed strided views over `f32` slices: the operands of the matrix products.

use std::ops::Range;

/// Index of the last element plus one, or `None` when it does not fit a `usize`.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    let last_row = (rows - 1).checked_mul(row_stride)?;
    let last_col = (cols - 1).checked_mul(col_stride)?;
    last_row.checked_add(last_col)?.checked_add(1)
}

fn check_extent(
    what: &str,
    len: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
) {
    let need = extent(rows, cols, row_stride, col_stride);
    assert!(
        need.is_some_and(|n| n <= len),
        "{what}: a {rows} x {cols} view with strides ({row_stride}, {col_stride}) reaches past its \
         slice of {len} values; pass a longer slice or smaller sizes"
    );
}

fn check_range(what: &str, range: &Range<usize>, size: usize) {
    assert!(
        range.start <= range.end && range.end <= size,
        "{what}: range {}..{} is not inside 0..{size}",
        range.start,
        range.end
    );
}

/// A read-only matrix `[rows, cols]` whose element `(i, j)` is `data[i * row_stride + j *
/// col_stride]`.
///
/// Every element is inside the borrowed slice: the constructors check it once, so the products need
/// no check per element. Strides may be zero (a repeated row or column).
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// The dense row-major matrix `[rows, cols]` at the start of `data`.
    ///
    /// # Panics
    /// When `data` is shorter than `rows * cols`.
    #[track_caller]
    pub fn rows_major(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols, 1)
    }

    /// The matrix `[rows, cols]` with the given distances, in values, between rows and between
    /// columns.
    ///
    /// # Panics
    /// When the last element lies outside `data`.
    #[track_caller]
    pub fn strided(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        check_extent("Mat", data.len(), rows, cols, row_stride, col_stride);
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The transpose, without moving any value.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Rows of the view, not of what it was cut from.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the view, not of what it was cut from.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance, in values, between an element and the one below it.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Distance, in values, between an element and the one to its right.
    pub fn col_stride(&self) -> usize {
        self.col_stride
    }

    /// The rows of `range`, all columns.
    ///
    /// # Panics
    /// When `range` is not inside `0..rows`.
    #[track_caller]
    pub fn row_range(self, range: Range<usize>) -> Self {
        check_range("Mat::row_range", &range, self.rows);
        let rows = range.len();
        let data = if rows == 0 || self.cols == 0 {
            &[]
        } else {
            &self.data[range.start * self.row_stride..]
        };
        Self { data, rows, ..self }
    }

    /// The columns of `range`, all rows.
    ///
    /// # Panics
    /// When `range` is not inside `0..cols`.
    #[track_caller]
    pub fn col_range(self, range: Range<usize>) -> Self {
        self.t().row_range(range).t()
    }

    /// Element `(i, j)`.
    ///
    /// # Panics
    /// When `(i, j)` is outside the matrix.
    #[track_caller]
    pub fn at(&self, i: usize, j: usize) -> f32 {
        assert!(
            i < self.rows && j < self.cols,
            "Mat::at: ({i}, {j}) is outside {} x {}",
            self.rows,
            self.cols
        );
        self.data[i * self.row_stride + j * self.col_stride]
    }

    /// Row `i`, where its values are adjacent.
    ///
    /// # Panics
    /// When `i` is not below `rows`.
    #[track_caller]
    pub(crate) fn row(&self, i: usize) -> Option<&'a [f32]> {
        assert!(i < self.rows, "Mat::row: row {i} of {}", self.rows);
        let start = if self.cols == 0 { 0 } else { i * self.row_stride };
        (self.col_stride == 1).then(|| &self.data[start..start + self.cols])
    }

    pub(super) fn as_ptr(&self) -> *const f32 {
        self.data.as_ptr()
    }
}

/// A writable matrix `[rows, cols]` whose element `(i, j)` is `data[i * row_stride + j]`.
///
/// The columns are adjacent and the rows do not overlap.
#[derive(Debug)]
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// The dense row-major matrix `[rows, cols]` at the start of `data`.
    ///
    /// # Panics
    /// When `data` is shorter than `rows * cols`.
    #[track_caller]
    pub fn rows_major(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// The matrix `[rows, cols]` with `row_stride` values between the starts of its rows.
    ///
    /// # Panics
    /// When the last element lies outside `data`, or when rows would overlap (`row_stride < cols`
    /// with more than one row).
    #[track_caller]
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check_extent("MatMut", data.len(), rows, cols, row_stride, 1);
        assert!(
            rows <= 1 || row_stride >= cols,
            "MatMut: rows of {cols} values overlap at a row stride of {row_stride}; \
             use a stride of at least {cols}"
        );
        Self { data, rows, cols, row_stride }
    }

    /// Rows of the view, not of what it was cut from.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the view, not of what it was cut from.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `i`.
    ///
    /// # Panics
    /// When `i` is not below `rows`.
    #[track_caller]
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "MatMut::row_mut: row {i} of {}", self.rows);
        let start = if self.cols == 0 { 0 } else { i * self.row_stride };
        &mut self.data[start..start + self.cols]
    }

    /// The rows of `range`, all columns.
    ///
    /// # Panics
    /// When `range` is not inside `0..rows`.
    #[track_caller]
    pub fn row_range(&mut self, range: Range<usize>) -> MatMut<'_> {
        check_range("MatMut::row_range", &range, self.rows);
        let rows = range.len();
        let data = if rows == 0 || self.cols == 0 {
            &mut []
        } else {
            &mut self.data[range.start * self.row_stride..]
        };
        MatMut { data, rows, ..*self }
    }

    /// The columns of `range`, all rows.
    ///
    /// # Panics
    /// When `range` is not inside `0..cols`.
    #[track_caller]
    pub fn col_range(&mut self, range: Range<usize>) -> MatMut<'_> {
        check_range("MatMut::col_range", &range, self.cols);
        let cols = range.len();
        let data =
            if cols == 0 || self.rows == 0 { &mut [] } else { &mut self.data[range.start..] };
        MatMut { data, cols, ..*self }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data.as_mut_ptr()
    }

    pub(super) fn row_stride(&self) -> usize {
        self.row_stride
    }
}
