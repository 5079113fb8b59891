//! Products with a B whose rows lie ready in panels, packed once beforehand: no step before the
//! arithmetic, every task independent.

use super::blocked::{BLOCK, Operands, block_of, even_part};
use super::isa::{Isa, Kernels};
use super::kernel::{Block, DEPTH, PANEL};
use super::share::{self, Buffer, TileRoom};
use super::start::{Start, Threads};
use super::view::{Mat, MatMut};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// B rearranged once into panels of 32 columns, for products with the same B many times (weights).
///
/// Takes `k * n` values, `n` rounded up to a multiple of 32. The layout is the same for every
/// instruction set.
#[derive(Clone, Debug)]
pub struct Packed {
    rows: usize,
    cols: usize,
    data: Buffer,
}

impl Packed {
    /// Columns of a panel.
    pub const PANEL: usize = PANEL;

    /// Packs `b` `[k, n]`, on all threads of the current rayon pool.
    ///
    /// # Panics
    /// When the packed size does not fit the address space.
    pub fn new(b: Mat<'_>) -> Self {
        let (rows, cols) = (b.rows(), b.cols());
        let size = cols.div_ceil(PANEL).checked_mul(PANEL).and_then(|n| n.checked_mul(rows));
        let mut data = Buffer::default();
        data.grow(size.unwrap_or_else(|| {
            panic!("Packed: {rows} x {cols} values do not fit the address space")
        }));
        let kernels = Isa::best().needed_kernels();
        let job = PackJob {
            kernels,
            b: block_of(&b),
            packed: data.as_mut_ptr(),
            next: AtomicUsize::new(0),
        };
        share::run(share::count(Threads::All, 1, rows, cols), || job.work());
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

    /// The columns `range` of B alone; `None` where they begin or end within a panel.
    ///
    /// # Panics
    /// When B has no such columns.
    pub fn columns(&self, range: Range<usize>) -> Option<PackedColumns<'_>> {
        let Range { start, end } = range;
        assert!(
            start <= end && end <= self.cols,
            "Packed: columns {start}..{end} are not among {}",
            self.cols
        );
        let is_whole =
            start.is_multiple_of(PANEL) && (end.is_multiple_of(PANEL) || end == self.cols);
        is_whole.then(|| PackedColumns { packed: self, first: start / PANEL, cols: end - start })
    }
}

/// Whole panels of a [`Packed`] B: one of several matrices that lie side by side.
#[derive(Clone, Copy, Debug)]
pub struct PackedColumns<'a> {
    packed: &'a Packed,
    /// The panel that these begin with.
    first: usize,
    cols: usize,
}

impl PackedColumns<'_> {
    /// Number of rows, `k`.
    pub fn rows(&self) -> usize {
        self.packed.rows
    }

    /// Number of these columns, `n`.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

impl<'a> From<&'a Packed> for PackedColumns<'a> {
    fn from(packed: &'a Packed) -> Self {
        Self { packed, first: 0, cols: packed.cols }
    }
}

struct PackJob {
    kernels: &'static Kernels,
    b: Block,
    packed: *mut f32,
    next: AtomicUsize,
}

// SAFETY: `work` writes each panel from one thread only.
unsafe impl Sync for PackJob {}

impl PackJob {
    fn work(&self) {
        let b = &self.b;
        loop {
            let panel = self.next.fetch_add(1, Ordering::Relaxed);
            let col = panel * PANEL;
            if col >= b.cols || b.rows == 0 {
                return;
            }
            // SAFETY: the columns are inside B, the panel inside the buffer, and the counter gave
            // it to this thread alone.
            unsafe {
                let from = Block {
                    src: b.src.add(col * b.col_stride),
                    cols: (b.cols - col).min(PANEL),
                    ..*b
                };
                (self.kernels.pack_b)(&from, self.packed.add(panel * PANEL * b.rows));
            }
        }
    }
}

/// B as panels of `PANEL` readable columns.
#[derive(Clone, Copy)]
struct Source {
    b: *const f32,
    /// Values between the beginnings of panels.
    panel_stride: usize,
    /// Distance between the rows of a panel.
    row_stride: usize,
}

/// Tiles of few rows up to which a task takes all rows of its panels, so that B is read once.
const FLAT_TILES: usize = 12;
/// Panels in such a task when several tiles reread them.
const FLAT_PANELS: usize = 8;

struct Job {
    x: Operands,
    source: Source,
    panels: usize,
    tiles: usize,
    threads: usize,
    next: AtomicUsize,
}

// SAFETY: see `Operands`; tasks write disjoint parts of C, and B is only read.
unsafe impl Sync for Job {}

fn run(x: Operands, source: Source, threads: Threads) {
    let (m, n) = (x.a.rows, x.n);
    let k = x.a.cols;
    let threads = share::count(threads, m, n, k);
    let is_flat = m <= FLAT_TILES * x.kernels.few_rows();
    let tiles = m.div_ceil(if is_flat { x.kernels.few_rows() } else { x.kernels.tile_rows() });
    let job =
        Job { x, source, panels: n.div_ceil(PANEL), tiles, threads, next: AtomicUsize::new(0) };
    share::run(threads, || if is_flat { job.work_flat() } else { job.work_tiles() });
}

/// `c = a b` or `c += a b` for non-empty operands of fitting shapes.
pub(super) fn run_packed(
    kernels: &'static Kernels,
    mut c: MatMut<'_>,
    a: Mat<'_>,
    b: PackedColumns<'_>,
    start: Start,
    threads: Threads,
) {
    let panel_stride = b.packed.rows * PANEL;
    // Inside the buffer, or just behind it where there are no columns.
    let first = b.packed.data.as_ptr().wrapping_add(b.first * panel_stride);
    let source = Source { b: first, panel_stride, row_stride: PANEL };
    run(Operands::new(kernels, &mut c, &a, start), source, threads);
}

/// The same with an unpacked B whose columns are adjacent and fill whole panels.
pub(super) fn run_direct(
    kernels: &'static Kernels,
    mut c: MatMut<'_>,
    a: Mat<'_>,
    b: Mat<'_>,
    start: Start,
    threads: Threads,
) {
    assert!(
        b.col_stride() == 1 && b.cols().is_multiple_of(PANEL),
        "run_direct: not whole panels of adjacent columns"
    );
    let source = Source { b: b.as_ptr(), panel_stride: PANEL, row_stride: b.row_stride() };
    run(Operands::new(kernels, &mut c, &a, start), source, threads);
}

impl Job {
    /// Tasks of all rows and a shrinking share of the panels left.
    fn work_flat(&self) {
        let mut room = TileRoom::<1>::new();
        let least = if self.x.a.rows == 1 { self.x.kernels.row_panels } else { 1 };
        let most = if self.tiles == 1 { usize::MAX } else { FLAT_PANELS };
        while let Ok(first) =
            self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |first| {
                (first < self.panels).then(|| self.share_end(first, least, most))
            })
        {
            let share = first..self.share_end(first, least, most);
            // SAFETY: the counter gave these panels to this thread alone.
            unsafe { self.region(0..self.tiles, share, &mut room) }
        }
    }

    /// Where the share that begins at panel `first` ends: half of what is left for each thread, at
    /// most `most` panels, a multiple of `least` but for the last.
    fn share_end(&self, first: usize, least: usize, most: usize) -> usize {
        let share = (self.panels - first).div_ceil(2 * self.threads).min(most);
        (first + share.next_multiple_of(least)).min(self.panels)
    }

    /// Tasks of one row tile and as many panels as the second-level cache keeps for the next tile.
    fn work_tiles(&self) {
        let mut room = TileRoom::<1>::new();
        let width = (BLOCK / (self.x.a.cols * PANEL)).max(1);
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            let (first, tile) = (task / self.tiles * width, task % self.tiles);
            if first >= self.panels {
                return;
            }
            // SAFETY: the counter gave this tile of these panels to this thread alone.
            unsafe {
                self.region(tile..tile + 1, first..(first + width).min(self.panels), &mut room)
            }
        }
    }

    /// Computes the given row tiles and panels.
    ///
    /// # Safety
    /// The ranges are inside the product, and nobody else uses this part of C.
    unsafe fn region(&self, tiles: Range<usize>, panels: Range<usize>, room: &mut TileRoom<1>) {
        let a = &self.x.a;
        // A single row with adjacent values needs no copy, and so no limit on the depth.
        let in_place = a.rows == 1 && a.col_stride == 1;
        let layers = if in_place { 1 } else { a.cols.div_ceil(DEPTH) };
        for layer in 0..layers {
            let steps = even_part(a.cols, layers, layer);
            for tile in tiles.clone() {
                let rows = even_part(a.rows, self.tiles, tile);
                // SAFETY: the caller's promise; the ranges are inside the operands.
                unsafe {
                    let (kernel, packed) = if in_place {
                        (self.x.kernels.tile_by_row[0], a.src)
                    } else {
                        let room = room.as_mut_ptr();
                        (self.x.pack_a(rows.clone(), steps.clone(), room), room.cast_const())
                    };
                    self.row_of_tiles(
                        rows.start,
                        rows.len(),
                        steps.clone(),
                        panels.clone(),
                        kernel,
                        packed,
                    );
                }
            }
        }
    }

    /// # Safety
    /// As [`Job::region`]; `packed` holds the rows and steps of A as `kernel` reads them.
    unsafe fn row_of_tiles(
        &self,
        row: usize,
        height: usize,
        steps: Range<usize>,
        panels: Range<usize>,
        kernel: unsafe fn(&super::kernel::Tile),
        packed: *const f32,
    ) {
        let wide = self.x.kernels.row_panels;
        let by_row = height == 1 && !self.x.a.lies_in_columns();
        let mut panel = panels.start;
        while panel < panels.end {
            let is_wide =
                by_row && panel + wide <= panels.end && (panel + wide) * PANEL <= self.x.n;
            // SAFETY: the panels are inside B and C; `row_tile` gets whole panels and one row whose
            // values are adjacent.
            unsafe {
                let mut tile = self.x.tile_at(row, panel, steps.start == 0);
                tile.depth = steps.len();
                tile.a = packed;
                tile.b_stride = self.source.row_stride;
                tile.b = self
                    .source
                    .b
                    .add(panel * self.source.panel_stride + steps.start * self.source.row_stride);
                if is_wide {
                    (self.x.kernels.row_tile)(&tile, self.source.panel_stride);
                } else {
                    kernel(&tile);
                }
            }
            panel += if is_wide { wide } else { 1 };
        }
    }
}
