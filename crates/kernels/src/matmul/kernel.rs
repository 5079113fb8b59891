//! The innermost loops: one tile of C in registers, and the copies that bring A and B into the
//! layouts that the tile reads.

use super::vector::Vector;

/// Columns in a panel of B, whatever the instruction set, so that packed data fits all of them.
pub(super) const PANEL: usize = 32;
/// Most steps of `k` that a packed tile of A holds.
pub(super) const DEPTH: usize = 512;
/// Distance between the rows of a packed tile in row layout; the odd line count spreads the rows
/// over the sets of the first-level cache.
pub(super) const A_ROW: usize = DEPTH + 16;
/// Distance between the columns of a packed tile in column layout.
pub(super) const A_COL: usize = 32;
/// Most rows of a tile in column layout, for every instruction set.
pub(super) const MAX_ROWS: usize = 28;
/// Most rows of a tile in row layout: few enough that two registers of each fit.
pub(super) const FEW_ROWS: usize = 14;
/// Values that a packed tile of A may take up in either layout.
pub(super) const A_TILE: usize =
    if FEW_ROWS * A_ROW > DEPTH * A_COL { FEW_ROWS * A_ROW } else { DEPTH * A_COL };

/// One tile: `c[i, j] += sum_k a[i, k] b[k, j]` for `M` rows, `cols <= PANEL` columns, `depth`
/// steps.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) depth: usize,
    /// Packed tile of A: rows `A_ROW` apart, or columns `a_step` apart in the column layout.
    pub(super) a: *const f32,
    pub(super) a_step: usize,
    /// Panel of B: `depth` rows of `PANEL` readable values, `b_stride` apart.
    pub(super) b: *const f32,
    pub(super) b_stride: usize,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    pub(super) cols: usize,
    /// Continue from the values in C rather than from zero.
    pub(super) from_c: bool,
    /// Where the next tile's part of C is likely to lie; only ever prefetched.
    pub(super) next_c: *const f32,
}

/// How far ahead, in rows of a panel, B is asked for.
const B_AHEAD: usize = 16;

/// # Safety
/// As [`tile`], for the columns `j..j + width` with `width <= NV * LANES`.
#[inline(always)]
unsafe fn strip<V: Vector, const M: usize, const NV: usize, const BY_COL: bool>(
    t: &Tile,
    j: usize,
    width: usize,
) {
    let (row, step) = if BY_COL { (1, t.a_step) } else { (A_ROW, 1) };
    let full = width == NV * V::LANES;
    // SAFETY: the caller vouches for A and B over `depth` steps and for C over `M` rows of `width`
    // columns from `j`; partial vectors touch only those columns.
    unsafe {
        let c = t.c.add(j);
        let mut acc = [[V::splat(0.0); NV]; M];
        if t.from_c {
            for (i, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    let p = c.add(i * t.c_stride + v * V::LANES);
                    *acc = if full { V::load(p) } else { V::load_n(p, width - v * V::LANES) };
                }
            }
        }
        let mut a = t.a;
        let mut b = t.b.add(j);
        // A row of the next C with each part of the steps: what B needs must not wait for the
        // memory to answer for all.
        let part = t.depth / M;
        for i in 0..=M {
            let mut left = part;
            if i < M {
                for v in 0..NV {
                    V::prefetch(t.next_c.wrapping_add(i * t.c_stride + j + v * V::LANES));
                }
            } else {
                left = t.depth - M * part;
            }
            while left > 0 {
                let mut x = [V::splat(0.0); NV];
                for (v, x) in x.iter_mut().enumerate() {
                    *x = V::load(b.add(v * V::LANES));
                    V::prefetch(b.wrapping_add(B_AHEAD * t.b_stride + v * V::LANES));
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let y = V::splat(*a.add(i * row));
                    for (acc, x) in acc.iter_mut().zip(x) {
                        *acc = y.fma(x, *acc);
                    }
                }
                a = a.wrapping_add(step);
                b = b.wrapping_add(t.b_stride);
                left -= 1;
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                let p = c.add(i * t.c_stride + v * V::LANES);
                if full { acc.store(p) } else { acc.store_n(p, width - v * V::LANES) }
            }
        }
    }
}

/// # Safety
/// The processor has `V`'s instructions; `t.a` holds `M` rows of `depth` values in the layout of
/// `BY_COL`, `t.b` is as its field says, `t.c` is `M` rows of `cols` values that nobody else
/// touches.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, const M: usize, const BY_COL: bool>(t: &Tile) {
    // Many rows of one register each take fewer instructions for a multiply-add (the value of A is
    // an operand in memory) than half as many of two, which need it in a register; few rows need
    // the second one to have enough chains.
    let two = 2 * M + 3 <= V::REGISTERS;
    let mut j = 0;
    while j < t.cols {
        let width = (t.cols - j).min(if two { 2 * V::LANES } else { V::LANES });
        // SAFETY: the caller's promise covers `j..j + width`.
        unsafe {
            if two && width > V::LANES {
                strip::<V, M, 2, BY_COL>(t, j, width);
            } else {
                strip::<V, M, 1, BY_COL>(t, j, width);
            }
        }
        j += width;
    }
}

/// One row of A against `P` full panels at once, which gives a single row enough independent chains
/// (and the memory enough parallel streams).
///
/// # Safety
/// As [`tile`] with `M = 1`, for `P` panels `panel_stride` apart and `P * PANEL` columns of C.
#[inline(always)]
pub(super) unsafe fn row_tile<V: Vector, const P: usize, const NV: usize>(
    t: &Tile,
    panel_stride: usize,
) {
    const { assert!(NV * V::LANES == PANEL) };
    // Two KiB ahead covers the latency of memory at the rate one core can take.
    const AHEAD: usize = 16;
    // SAFETY: the caller vouches for `P` panels and `P * PANEL` columns.
    unsafe {
        let mut acc = [[V::splat(0.0); NV]; P];
        if t.from_c {
            for (p, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = V::load(t.c.add(p * PANEL + v * V::LANES));
                }
            }
        }
        for k in 0..t.depth {
            let y = V::splat(*t.a.add(k));
            let b = t.b.add(k * t.b_stride);
            for (p, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    let b = b.add(p * panel_stride + v * V::LANES);
                    V::prefetch(b.wrapping_add(AHEAD * t.b_stride));
                    *acc = y.fma(V::load(b), *acc);
                }
            }
        }
        for (p, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                acc.store(t.c.add(p * PANEL + v * V::LANES));
            }
        }
    }
}

/// A block of a strided matrix to copy: element `(i, j)` at `src[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) src: *const f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl Block {
    /// Whether the values of a column are adjacent, and those of a row are not.
    pub(super) fn lies_in_columns(&self) -> bool {
        self.row_stride == 1 && self.col_stride != 1
    }

    /// Whether [`pack_a`] puts this block into the column layout.
    pub(super) fn by_col(&self) -> bool {
        self.lies_in_columns() || self.rows > FEW_ROWS
    }
}

/// How far ahead, in columns of A, their values are asked for: the processor's own prefetching does
/// not see strides.
const A_AHEAD: usize = 24;
/// Values in a cache line.
const LINE: usize = 16;

/// Copies tiles of A that lie below each other, of `heights` rows each, into the column layout,
/// `A_TILE` values apart. Together they use the whole of each line that comes from far away.
///
/// # Safety
/// The processor has `V`'s instructions, the block is readable, has unit row stride, at most
/// `DEPTH` columns and as many rows as the heights say, each at most `MAX_ROWS`; `dst` has `A_TILE`
/// writable values for each height.
#[inline(always)]
pub(super) unsafe fn pack_columns<V: Vector>(from: &Block, heights: &[usize], dst: *mut f32) {
    debug_assert!(
        from.row_stride == 1 && from.cols <= DEPTH && heights.iter().sum::<usize>() == from.rows
    );
    for k in 0..from.cols {
        let mut src = from.src.wrapping_add(k * from.col_stride);
        let ahead = src.wrapping_add(A_AHEAD * from.col_stride);
        for line in (0..from.rows).step_by(LINE) {
            V::prefetch(ahead.wrapping_add(line));
        }
        V::prefetch(ahead.wrapping_add(from.rows - 1));
        let mut left = from.rows;
        for (tile, &height) in heights.iter().enumerate() {
            let dst = dst.wrapping_add(tile * A_TILE + k * A_COL);
            for v in (0..height).step_by(V::LANES) {
                // SAFETY: the column has `left` values from `src`, and `dst` `A_COL` for each step.
                // The values of further tiles that come along are not used.
                unsafe {
                    let x = if v + V::LANES <= left {
                        V::load(src.add(v))
                    } else {
                        V::load_n(src.add(v), left - v)
                    };
                    x.store(dst.add(v));
                }
            }
            left -= height;
            src = src.wrapping_add(height);
        }
    }
}

/// Copies a tile of A, at most `MAX_ROWS` x `DEPTH`, into the layout that [`Block::by_col`] names.
///
/// # Safety
/// The processor has `V`'s instructions, the block is readable, `dst` has `A_TILE` writable values.
#[inline(always)]
pub(super) unsafe fn pack_a<V: Vector>(from: &Block, dst: *mut f32) {
    debug_assert!(from.rows <= MAX_ROWS && from.cols <= DEPTH);
    // SAFETY: reads stay inside the block; writes reach at most `rows * A_ROW` or `cols * A_COL`.
    unsafe {
        if from.lies_in_columns() {
            pack_columns::<V>(from, &[from.rows], dst);
        } else if from.by_col() && from.col_stride == 1 && from.rows >= V::LANES {
            // The last rows are taken together with some before them, which get the same values
            // twice.
            for first in (0..from.rows).step_by(V::LANES) {
                let first = first.min(from.rows - V::LANES);
                transpose::<V, A_COL>(
                    from.src.add(first * from.row_stride),
                    from.row_stride,
                    from.cols,
                    dst.add(first),
                );
            }
        } else if from.col_stride == 1 && !from.by_col() {
            let whole = from.cols / V::LANES * V::LANES;
            for i in 0..from.rows {
                let (src, dst) = (from.src.add(i * from.row_stride), dst.add(i * A_ROW));
                for k in (0..whole).step_by(V::LANES) {
                    V::load(src.add(k)).store(dst.add(k));
                }
                V::load_n(src.wrapping_add(whole), from.cols - whole)
                    .store_n(dst.add(whole), from.cols - whole);
            }
        } else {
            let (row, col) = if from.by_col() { (1, A_COL) } else { (A_ROW, 1) };
            for i in 0..from.rows {
                for k in 0..from.cols {
                    *dst.add(i * row + k * col) =
                        *from.src.add(i * from.row_stride + k * from.col_stride);
                }
            }
        }
    }
}

/// Copies up to `PANEL` columns of B into a panel of `rows` rows of `PANEL` values, missing columns
/// zero.
///
/// # Safety
/// The processor has `V`'s instructions, the block is readable, `dst` has `rows * PANEL` writable
/// values.
#[inline(always)]
pub(super) unsafe fn pack_b<V: Vector>(from: &Block, dst: *mut f32) {
    debug_assert!(from.cols <= PANEL);
    // SAFETY: reads stay inside the block; writes stay inside `rows` rows of `PANEL`.
    unsafe {
        if from.col_stride == 1 {
            for k in 0..from.rows {
                let (src, dst) = (from.src.add(k * from.row_stride), dst.add(k * PANEL));
                for v in (0..PANEL).step_by(V::LANES) {
                    let x = if v + V::LANES <= from.cols {
                        V::load(src.add(v))
                    } else {
                        V::load_n(src.wrapping_add(v), from.cols.saturating_sub(v))
                    };
                    x.store(dst.add(v));
                }
            }
            return;
        }
        let whole = if from.row_stride == 1 { from.cols / V::LANES * V::LANES } else { 0 };
        for j in (0..whole).step_by(V::LANES) {
            transpose::<V, PANEL>(
                from.src.add(j * from.col_stride),
                from.col_stride,
                from.rows,
                dst.add(j),
            );
        }
        for k in 0..from.rows {
            for j in whole..PANEL {
                let x = if j < from.cols {
                    *from.src.add(k * from.row_stride + j * from.col_stride)
                } else {
                    0.0
                };
                *dst.add(k * PANEL + j) = x;
            }
        }
    }
}

/// `dst[k * TO + j] = src[j * stride + k]` for `j < LANES`, `k < depth`.
///
/// # Safety
/// As the formula says, and the processor has `V`'s instructions.
#[inline(always)]
unsafe fn transpose<V: Vector, const TO: usize>(
    src: *const f32,
    stride: usize,
    depth: usize,
    dst: *mut f32,
) {
    let whole = depth / 4 * 4;
    // SAFETY: rows `0..LANES` of `depth` values are read, `LANES` values of `depth` rows written.
    unsafe {
        for k in (0..whole).step_by(4) {
            let src = src.add(k);
            let r = [
                V::load_quads(src, stride),
                V::load_quads(src.add(stride), stride),
                V::load_quads(src.add(2 * stride), stride),
                V::load_quads(src.add(3 * stride), stride),
            ];
            for (i, x) in V::transpose_quads(r).into_iter().enumerate() {
                x.store(dst.add((k + i) * TO));
            }
        }
        for k in whole..depth {
            for j in 0..V::LANES {
                *dst.add(k * TO + j) = *src.add(j * stride + k);
            }
        }
    }
}

/// `steps` rounds of sixteen independent multiply-adds on whole registers, for measuring their
/// rate. Returns a value that depends on all of them.
///
/// # Safety
/// The processor has `V`'s instructions.
#[inline(always)]
pub(super) unsafe fn fma_burst<V: Vector>(steps: usize, x: f32) -> f32 {
    // SAFETY: the caller has the instructions; the store goes to a local array of enough lanes.
    unsafe {
        let (scale, shift) = (V::splat(x), V::splat(1.0 - x));
        // Different values, or the compiler would see twelve times the same chain and keep one.
        let mut acc: [V; 12] = std::array::from_fn(|i| V::splat(x * i as f32));
        for _ in 0..steps {
            for a in &mut acc {
                *a = a.fma(scale, shift);
            }
        }
        let sum = acc.into_iter().fold(shift, |sum, a| a.fma(scale, sum));
        let mut out = [0.0f32; 16];
        sum.store(out.as_mut_ptr());
        out[0]
    }
}
