//! Products of many matrices at once: rows in groups of any size, each group with a matrix of its
//! own out of a bank. What experts compute, forward and backward, without padding.
//!
//! Every element is the chain of multiply-adds of [`matmul`], so a row's result depends on its
//! values and its matrix alone: not on the sizes of the groups, the threads or the other rows.

use std::sync::Mutex;

use rayon::prelude::*;

use crate::check::check_len;
use crate::matmul::{Mat, MatMut, Packed, PackedColumns, Start, Threads, matmul, matmul_packed};

/// Multiply-adds of a piece of a group: handing it to a thread costs nothing beside them.
const PIECE: usize = 1 << 24;
/// Fewest rows of a piece: each piece brings its matrix into cache order anew.
const LEAST_ROWS: usize = 128;
/// Pieces a thread below which threads share each product instead of taking whole ones.
const PIECES_A_THREAD: usize = 4;

/// Matrices of one shape, one after another: `[groups, n, k]`, row after row.
#[derive(Clone, Copy, Debug)]
pub struct Bank<'a> {
    /// The values of all matrices.
    pub values: &'a [f32],
    /// Rows of each matrix.
    pub n: usize,
    /// Columns of each matrix.
    pub k: usize,
    /// The transpose of all of them side by side in panels, `[k, groups n]`, if it is at hand: it
    /// is read where the matrices begin with panels, and changes no bit.
    pub packed: Option<&'a Packed>,
}

impl<'a> Bank<'a> {
    fn matrix(&self, group: usize) -> Mat<'a> {
        let size = self.n * self.k;
        Mat::rows_major(&self.values[group * size..][..size], self.n, self.k)
    }

    /// What rows of a group meet in the forward product.
    fn transposed(&self, group: usize) -> Factor<'a> {
        let columns = group * self.n..(group + 1) * self.n;
        match self.packed.and_then(|packed| packed.columns(columns)) {
            Some(packed) => Factor::Packed(packed),
            None => Factor::Plain(self.matrix(group).t()),
        }
    }
}

/// The second factor of a product.
#[derive(Clone, Copy)]
enum Factor<'a> {
    Plain(Mat<'a>),
    Packed(PackedColumns<'a>),
}

/// One product, or a part of its rows.
struct Piece<'a> {
    c: MatMut<'a>,
    a: Mat<'a>,
    b: Factor<'a>,
}

impl Piece<'_> {
    fn work(&self) -> usize {
        self.c.rows() * self.c.cols() * self.a.cols()
    }

    fn run(self, start: Start, threads: Threads) {
        match self.b {
            Factor::Plain(b) => matmul(self.c, self.a, b, start, threads),
            Factor::Packed(b) => matmul_packed(self.c, self.a, b, start, threads),
        }
    }
}

/// Largest first, so that what ends last is small.
fn run(mut pieces: Vec<Piece<'_>>, start: Start) {
    let threads = rayon::current_num_threads();
    if pieces.len() < PIECES_A_THREAD * threads {
        for piece in pieces {
            piece.run(start, Threads::All);
        }
        return;
    }
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.work()));
    let queue = Mutex::new(pieces.into_iter());
    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
        loop {
            let next = queue.lock().expect("queue lock").next();
            let Some(piece) = next else { return };
            piece.run(start, Threads::One);
        }
    });
}

/// How groups are cut into pieces.
#[derive(Clone, Copy)]
struct Cut {
    /// Multiply-adds of a piece.
    work: usize,
    /// Fewest rows of a piece.
    least_rows: usize,
}

const CUT: Cut = Cut { work: PIECE, least_rows: LEAST_ROWS };

impl Cut {
    /// Rows of a piece of a group whose rows cost `each` multiply-adds.
    fn rows(self, rows: usize, each: usize) -> usize {
        let pieces = (rows * each).div_ceil(self.work).min(rows / self.least_rows).max(1);
        rows.div_ceil(pieces).max(1)
    }
}

/// `y[t] = x[t] W_g^T` for the rows `t` of each group `g`; the groups lie one after another.
///
/// `x_tk` `[T, k]`, `sizes` `[groups]` with sum T, `bank` `[groups, n, k]`, `y_tn` `[T, n]`. A
/// group without rows costs nothing.
///
/// # Panics
/// When the lengths do not fit.
pub fn grouped_forward(x_tk: &[f32], sizes: &[usize], bank: Bank<'_>, y_tn: &mut [f32]) {
    let rows = sizes.iter().sum::<usize>();
    let size = bank.n * bank.k;
    check_len("grouped_forward", "bank", bank.values.len(), sizes.len() * size);
    if let Some(packed) = bank.packed {
        check_len("grouped_forward", "packed", packed.rows() * packed.cols(), sizes.len() * size);
    }
    check_len("grouped_forward", "x_tk", x_tk.len(), rows * bank.k);
    check_len("grouped_forward", "y_tn", y_tn.len(), rows * bank.n);
    let by_rows = |group| bank.transposed(group);
    run(row_pieces(CUT, (x_tk, bank.k), sizes, by_rows, (y_tn, bank.n)), Start::Zero);
}

/// `dx[t] = g[t] W_g` for the rows of each group: the gradient of [`grouped_forward`]'s rows.
///
/// `g_tn` `[T, n]`, `dx_tk` `[T, k]`, the others as there.
///
/// # Panics
/// When the lengths do not fit.
pub fn grouped_input_gradient(g_tn: &[f32], sizes: &[usize], bank: Bank<'_>, dx_tk: &mut [f32]) {
    let rows = sizes.iter().sum::<usize>();
    let size = bank.n * bank.k;
    check_len("grouped_input_gradient", "bank", bank.values.len(), sizes.len() * size);
    check_len("grouped_input_gradient", "g_tn", g_tn.len(), rows * bank.n);
    check_len("grouped_input_gradient", "dx_tk", dx_tk.len(), rows * bank.k);
    let by_rows = |group| Factor::Plain(bank.matrix(group));
    run(row_pieces(CUT, (g_tn, bank.n), sizes, by_rows, (dx_tk, bank.k)), Start::Zero);
}

/// Pieces of products of the rows of each group with its matrix.
fn row_pieces<'a>(
    cut: Cut,
    (a, k): (&'a [f32], usize),
    sizes: &[usize],
    matrix: impl Fn(usize) -> Factor<'a>,
    (mut c, n): (&'a mut [f32], usize),
) -> Vec<Piece<'a>> {
    let (mut pieces, mut a) = (Vec::new(), a);
    for (group, &size) in sizes.iter().enumerate() {
        let most = cut.rows(size, n * k);
        let mut left = size;
        while left > 0 {
            let rows = most.min(left);
            let (here, rest) = a.split_at(rows * k);
            let (there, behind) = std::mem::take(&mut c).split_at_mut(rows * n);
            pieces.push(Piece {
                c: MatMut::rows_major(there, rows, n),
                a: Mat::rows_major(here, rows, k),
                b: matrix(group),
            });
            (a, c, left) = (rest, behind, left - rows);
        }
    }
    pieces
}

/// `dW_g = sum over t of g[t]^T x[t]` over the rows of each group, in ascending order of rows; with
/// [`Start::FromC`] the sums continue from `dbank`. A group without rows gets zeros, or stays.
///
/// `g_tn` `[T, n]`, `x_tk` `[T, k]`, `sizes` `[groups]` with sum T, `dbank_gnk` `[groups, n, k]`.
///
/// # Panics
/// When the lengths do not fit.
pub fn grouped_weight_gradient(
    (g_tn, n): (&[f32], usize),
    (x_tk, k): (&[f32], usize),
    sizes: &[usize],
    dbank_gnk: &mut [f32],
    start: Start,
) {
    let rows = sizes.iter().sum::<usize>();
    check_len("grouped_weight_gradient", "dbank_gnk", dbank_gnk.len(), sizes.len() * n * k);
    check_len("grouped_weight_gradient", "g_tn", g_tn.len(), rows * n);
    check_len("grouped_weight_gradient", "x_tk", x_tk.len(), rows * k);
    run(weight_pieces(CUT, (g_tn, n), (x_tk, k), sizes, dbank_gnk, start), start);
}

/// Pieces of the products that make the gradient of each matrix; those without rows are done here.
fn weight_pieces<'a>(
    cut: Cut,
    (g_tn, n): (&'a [f32], usize),
    (x_tk, k): (&'a [f32], usize),
    sizes: &[usize],
    dbank_gnk: &'a mut [f32],
    start: Start,
) -> Vec<Piece<'a>> {
    let (mut pieces, mut first, mut bank) = (Vec::new(), 0, dbank_gnk);
    for &size in sizes {
        let (matrix, rest) = std::mem::take(&mut bank).split_at_mut(n * k);
        bank = rest;
        let g = Mat::rows_major(&g_tn[first * n..], size, n).t();
        let x = Mat::rows_major(&x_tk[first * k..], size, k);
        first += size;
        if size == 0 {
            if start == Start::Zero {
                matrix.fill(0.0);
            }
            continue;
        }
        let most = cut.rows(n, size * k);
        for (i, part) in matrix.chunks_mut((most * k).max(1)).enumerate() {
            let rows = part.len() / k;
            let a = g.row_range(i * most..i * most + rows);
            pieces.push(Piece { c: MatMut::rows_major(part, rows, k), a, b: Factor::Plain(x) });
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, in_pools, values, wide};

    /// Even, skewed, empty at both ends, one for all.
    const LOADS: [&[usize]; 5] =
        [&[5, 5, 5], &[0, 40, 0, 1, 700, 0], &[1], &[0, 0], &[3, 0, 2, 1, 1, 1, 9, 2, 1, 30]];

    /// The three results of the groups.
    fn run_all(sizes: &[usize], n: usize, k: usize) -> [Vec<f32>; 3] {
        let rows: usize = sizes.iter().sum();
        let (x, g) = (values(1, rows * k), values(2, rows * n));
        let bank = values(3, sizes.len() * n * k);
        let bank = Bank { values: &bank, n, k, packed: None };
        let (mut y, mut dx) = (vec![9.0; rows * n], vec![9.0; rows * k]);
        let mut dw = values(4, sizes.len() * n * k);
        grouped_forward(&x, sizes, bank, &mut y);
        grouped_input_gradient(&g, sizes, bank, &mut dx);
        grouped_weight_gradient((&g, n), (&x, k), sizes, &mut dw, Start::FromC);
        [y, dx, dw]
    }

    /// The same, row by row and sum by sum in f64.
    fn plain(sizes: &[usize], n: usize, k: usize) -> [Vec<f64>; 3] {
        let rows: usize = sizes.iter().sum();
        let (x, g) = (wide(&values(1, rows * k)), wide(&values(2, rows * n)));
        let bank = wide(&values(3, sizes.len() * n * k));
        let (mut y, mut dx) = (vec![0.0; rows * n], vec![0.0; rows * k]);
        let mut dw = wide(&values(4, sizes.len() * n * k));
        let mut t = 0;
        for (group, &size) in sizes.iter().enumerate() {
            for _ in 0..size {
                for i in 0..n {
                    for j in 0..k {
                        let at = (group * n + i) * k + j;
                        y[t * n + i] += x[t * k + j] * bank[at];
                        dx[t * k + j] += g[t * n + i] * bank[at];
                        dw[at] += g[t * n + i] * x[t * k + j];
                    }
                }
                t += 1;
            }
        }
        [y, dx, dw]
    }

    #[test]
    fn groups_are_products_of_their_own() {
        for sizes in LOADS {
            for (n, k) in [(24, 16), (33, 7), (1, 1), (80, 65)] {
                let (found, expected) = (run_all(sizes, n, k), plain(sizes, n, k));
                for (found, expected) in found.iter().zip(&expected) {
                    assert_close(found, expected, 2e-5);
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_in_any_group_and_on_any_threads() {
        for sizes in LOADS {
            let runs = in_pools(1..=3, || run_all(sizes, 48, 40).map(|x| bits(&x)));
            assert!(runs[0] == runs[1] && runs[1] == runs[2], "{sizes:?}");
        }
        // The last row of a large group, alone.
        let (n, k, rows) = (48, 40, 900);
        let (x, bank) = (values(1, rows * k), values(3, n * k));
        let bank = Bank { values: &bank, n, k, packed: None };
        let (mut all, mut one) = (vec![0.0; rows * n], vec![0.0; n]);
        grouped_forward(&x, &[rows], bank, &mut all);
        grouped_forward(&x[(rows - 1) * k..], &[1], bank, &mut one);
        assert_eq!(bits(&all[(rows - 1) * n..]), bits(&one));
    }

    /// Also where matrices begin within a panel, which packing is no use to.
    #[test]
    fn a_packed_bank_gives_the_same_bits() {
        for sizes in LOADS {
            for (n, k) in [(32, 7), (96, 65), (33, 7)] {
                let rows: usize = sizes.iter().sum();
                let (x, bank) = (values(1, rows * k), values(3, sizes.len() * n * k));
                let packed = Packed::new(Mat::rows_major(&bank, sizes.len() * n, k).t());
                let [plain, packed] = [None, Some(&packed)].map(|packed| {
                    let mut y = vec![9.0; rows * n];
                    let bank = Bank { values: &bank, n, k, packed };
                    let is_packed = matches!(bank.transposed(0), Factor::Packed(_));
                    let is_whole = n.is_multiple_of(Packed::PANEL) || sizes.len() == 1;
                    assert_eq!(is_packed, packed.is_some() && is_whole);
                    grouped_forward(&x, sizes, bank, &mut y);
                    bits(&y)
                });
                assert!(plain == packed, "{sizes:?} {n} x {k}");
            }
        }
    }

    #[test]
    fn large_groups_are_cut_and_small_ones_are_not() {
        assert_eq!(CUT.rows(2048, 576 * 1536), 128);
        assert_eq!(CUT.rows(200, 576 * 1536), 200);
        assert_eq!(CUT.rows(4096, 16), 4096);
        assert_eq!(CUT.rows(0, 16), 1);
    }

    /// However small the pieces, the results have the same bits.
    #[test]
    fn pieces_of_any_size_give_the_same_bits() {
        let (n, k) = (48, 40);
        for sizes in LOADS {
            let [y, dx, dw] = run_all(sizes, n, k).map(|x| bits(&x));
            let rows: usize = sizes.iter().sum();
            let (x, g) = (values(1, rows * k), values(2, rows * n));
            let bank = values(3, sizes.len() * n * k);
            let bank = Bank { values: &bank, n, k, packed: None };
            for cut in [Cut { work: 1 << 12, least_rows: 3 }, Cut { work: 1, least_rows: 1 }] {
                let (mut c, mut d) = (vec![9.0; rows * n], vec![9.0; rows * k]);
                let by_rows = |group| bank.transposed(group);
                let pieces = row_pieces(cut, (&x, k), sizes, by_rows, (&mut c, n));
                assert!(rows < 40 || pieces.len() > sizes.len());
                run(pieces, Start::Zero);
                let of = |group| Factor::Plain(bank.matrix(group));
                run(row_pieces(cut, (&g, n), sizes, of, (&mut d, k)), Start::Zero);
                let mut e = values(4, sizes.len() * n * k);
                let (g, x) = ((&g[..], n), (&x[..], k));
                run(weight_pieces(cut, g, x, sizes, &mut e, Start::FromC), Start::FromC);
                assert_eq!([bits(&c), bits(&d), bits(&e)], [y.clone(), dx.clone(), dw.clone()]);
            }
        }
    }

    #[test]
    fn gradients_without_rows_are_zero_or_stay() {
        let mut dw = vec![3.0; 2 * 4];
        let (g, x) = ([1.0, 2.0], [0.5, 0.25]);
        grouped_weight_gradient((&g, 2), (&x, 2), &[0, 1], &mut dw, Start::Zero);
        assert_eq!(dw, [0.0, 0.0, 0.0, 0.0, 0.5, 0.25, 1.0, 0.5]);
        grouped_weight_gradient((&g, 2), (&x, 2), &[0, 1], &mut dw, Start::FromC);
        assert_eq!(dw, [0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 2.0, 1.0]);
    }

    #[test]
    #[should_panic(expected = "grouped_forward: `bank` holds 4 values")]
    fn a_bank_that_does_not_fit_is_named() {
        let bank = Bank { values: &[0.0; 4], n: 2, k: 2, packed: None };
        grouped_forward(&[0.0; 2], &[1, 0], bank, &mut [0.0; 2]);
    }
}
