//! Products of `f32` matrices in which every element is one chain of fused multiply-adds in
//! ascending `k`, so its bits depend on nothing but its row of A and its column of B.

mod blocked;
mod isa;
mod kernel;
mod panels;
mod share;
mod start;
#[cfg(test)]
mod tests;
mod vector;
mod view;

pub use isa::Isa;
pub use panels::{Packed, PackedColumns};
pub use start::{Start, Threads};
pub use view::{Mat, MatMut};

use std::sync::atomic::{AtomicU64, Ordering};

static DONE: AtomicU64 = AtomicU64::new(0);

/// Multiply-adds of all `f32` products of this process so far: what a formula for their number is
/// checked against.
pub fn multiply_adds() -> u64 {
    DONE.load(Ordering::Relaxed)
}

fn check_shapes(c: &MatMut<'_>, a: &Mat<'_>, b: (usize, usize)) {
    let (m, n) = (c.rows(), c.cols());
    assert!(
        a.cols() == b.0 && m == a.rows() && n == b.1,
        "matmul: C {m} x {n} is not A {} x {} times B {} x {}; \
         the inner sizes must agree and the outer ones be C's",
        a.rows(),
        a.cols(),
        b.0,
        b.1
    );
}

/// Counts a product, and deals with one that has no multiply-add; returns whether this was one.
fn is_empty(c: &mut MatMut<'_>, k: usize, start: Start) -> bool {
    if k == 0 && start == Start::Zero {
        for i in 0..c.rows() {
            c.row_mut(i).fill(0.0);
        }
    }
    let products = c.rows() as u64 * c.cols() as u64 * k as u64;
    DONE.fetch_add(products, Ordering::Relaxed);
    products == 0
}

/// `c = a b` or `c += a b`, with `a` `[m, k]`, `b` `[k, n]`, `c` `[m, n]`.
///
/// Element `(i, j)` is `acc = fma(a[i, l], b[l, j], acc)` over `l = 0..k` in this order, from
/// `start`. Its bits do not depend on the other rows and columns, the threads or the instruction
/// set (of a NaN only that it is one). With `k = 0` the sum is empty: zeros, or C unchanged.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul(c: MatMut<'_>, a: Mat<'_>, b: Mat<'_>, start: Start, threads: Threads) {
    matmul_with(Isa::best(), c, a, b, start, threads);
}

/// [`matmul`] with a chosen instruction set.
///
/// # Panics
/// When the shapes do not fit or the processor lacks the instructions.
#[doc(hidden)]
pub fn matmul_with(
    isa: Isa,
    mut c: MatMut<'_>,
    a: Mat<'_>,
    b: Mat<'_>,
    start: Start,
    threads: Threads,
) {
    check_shapes(&c, &a, (b.rows(), b.cols()));
    if is_empty(&mut c, a.cols(), start) {
        return;
    }
    let kernels = isa.needed_kernels();
    if b.col_stride() != 1 || a.rows() > 2 * kernels.few_rows() {
        return blocked::run(kernels, c, a, b, start, threads);
    }
    // With one or two tiles of rows every value of B is used about once: packing whole panels would
    // only add work.
    let whole = b.cols() / kernel::PANEL * kernel::PANEL;
    if whole > 0 {
        panels::run_direct(
            kernels,
            c.col_range(0..whole),
            a,
            b.col_range(0..whole),
            start,
            threads,
        );
    }
    if whole < b.cols() {
        blocked::run(
            kernels,
            c.col_range(whole..b.cols()),
            a,
            b.col_range(whole..b.cols()),
            start,
            threads,
        );
    }
}

/// The same product, bit for bit, as [`matmul`] with the matrix, or the columns of it, that `b` was
/// packed from.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul_packed<'b>(
    c: MatMut<'_>,
    a: Mat<'_>,
    b: impl Into<PackedColumns<'b>>,
    start: Start,
    threads: Threads,
) {
    matmul_packed_with(Isa::best(), c, a, b.into(), start, threads);
}

/// [`matmul_packed`] with a chosen instruction set.
///
/// # Panics
/// When the shapes do not fit or the processor lacks the instructions.
#[doc(hidden)]
pub fn matmul_packed_with(
    isa: Isa,
    mut c: MatMut<'_>,
    a: Mat<'_>,
    b: PackedColumns<'_>,
    start: Start,
    threads: Threads,
) {
    check_shapes(&c, &a, (b.rows(), b.cols()));
    if !is_empty(&mut c, a.cols(), start) {
        panels::run_packed(isa.needed_kernels(), c, a, b, start, threads);
    }
}
