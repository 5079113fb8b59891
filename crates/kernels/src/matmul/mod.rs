//! Products of `f32` matrices in which every element is one chain of fused multiply-adds in
//! ascending `k`, so its bits depend on nothing but its row of A and its column of B.

mod view;

pub use view::{Mat, MatMut};

/// Where each element's chain of multiply-adds begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At zero: `C = A B`; the old values are not read.
    Zero,
    /// At the old value: `C += A B`, as a continued chain.
    FromC,
}

/// Which threads share a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone, for use inside a loop that is already parallel.
    One,
    /// All threads of the current rayon pool.
    All,
}

fn check_shapes(c: (usize, usize), a: (usize, usize), b: (usize, usize)) {
    assert!(
        a.1 == b.0 && c == (a.0, b.1),
        "matmul: C {} x {} is not A {} x {} times B {} x {}",
        c.0, c.1, a.0, a.1, b.0, b.1
    );
}

/// `c = a b` or `c += a b`, with `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul(mut c: MatMut<'_>, a: Mat<'_>, b: Mat<'_>, start: Start, _threads: Threads) {
    check_shapes((c.rows(), c.cols()), (a.rows(), a.cols()), (b.rows(), b.cols()));
    for i in 0..c.rows() {
        let row = c.row_mut(i);
        if start == Start::Zero {
            row.fill(0.0);
        }
        for k in 0..a.cols() {
            let x = a.at(i, k);
            for (j, y) in row.iter_mut().enumerate() {
                *y = x.mul_add(b.at(k, j), *y);
            }
        }
    }
}

/// B rearranged once into panels, for products with the same B many times.
#[derive(Clone, Debug)]
pub struct Packed {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Packed {
    /// Packs `b` `[k, n]`.
    pub fn new(b: Mat<'_>) -> Self {
        let (rows, cols) = (b.rows(), b.cols());
        let data = (0..rows * cols).map(|at| b.at(at / cols, at % cols)).collect();
        Self { rows, cols, data }
    }

    /// Number of rows of B, `k`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns of B, `n`.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// The same product, bit for bit, as [`matmul`] with the matrix that `b` was packed from.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul_packed(c: MatMut<'_>, a: Mat<'_>, b: &Packed, start: Start, threads: Threads) {
    matmul(c, a, Mat::rows_major(&b.data, b.rows, b.cols), start, threads);
}
