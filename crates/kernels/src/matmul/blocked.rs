//! The product of two plain matrices: blocks of B are packed once by all threads together, while
//! tiles of C from the previous block are computed.

use super::isa::Kernels;
use super::kernel::{A_COL, A_TILE, Block, DEPTH, PANEL, Tile};
use super::share::{self, TileRoom};
use super::start::{Start, Threads};
use super::view::{Mat, MatMut};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Values in a packed block of B: half of a second-level cache of 2 MiB.
pub(super) const BLOCK: usize = 256 << 10;
/// Cycles, about, to load and store a tile of C, and to copy a step of a tile of A from rows and
/// from columns.
const PASS_COST: usize = 120;
const ROW_COST: usize = 12;
const COLUMN_COST: usize = 15;
/// Most tiles that are packed together, where A lies in columns.
const LUMP: usize = 2;
/// Tasks per thread and block below which rows of tiles are cut into groups of panels.
const TASKS: usize = 6;
/// Fewest panels in such a group: each group copies its part of A.
const LEAST_GROUP: usize = 4;

/// Panels up to which A is used too few times to be worth much copying: rows are then copied as
/// they are, and columns of a matrix that is close at hand, of at most so many values, are read
/// where they lie.
const NARROW: usize = 2;
const CLOSE: usize = 1 << 17;
/// Most parts of the tasks of a stage.
const MOST_PARTS: usize = 16;

/// Row tiles of nearly equal height: tile `i` of `count` in `rows`.
pub(super) fn even_part(rows: usize, count: usize, i: usize) -> Range<usize> {
    let (height, extra) = (rows / count, rows % count);
    let start = i * height + i.min(extra);
    start..start + height + usize::from(i < extra)
}

/// The operands as raw parts, shared by the threads of one product.
pub(super) struct Operands {
    pub(super) kernels: &'static Kernels,
    pub(super) a: Block,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    pub(super) n: usize,
    pub(super) from_c: bool,
}

// SAFETY: A and B are only read; the users of C and of the packing buffer give each element to one
// thread at a time, ordered by the counters of `Job` or by disjoint tasks.
unsafe impl Sync for Operands {}

pub(super) fn block_of(mat: &Mat<'_>) -> Block {
    Block {
        src: mat.as_ptr(),
        rows: mat.rows(),
        cols: mat.cols(),
        row_stride: mat.row_stride(),
        col_stride: mat.col_stride(),
    }
}

impl Operands {
    pub(super) fn new(
        kernels: &'static Kernels,
        c: &mut MatMut<'_>,
        a: &Mat<'_>,
        start: Start,
    ) -> Self {
        Self {
            kernels,
            a: block_of(a),
            c_stride: c.row_stride(),
            n: c.cols(),
            c: c.as_mut_ptr(),
            from_c: start == Start::FromC,
        }
    }

    /// Packs rows `rows`, steps `steps` of A into `room`; returns the kernel that reads that
    /// layout.
    ///
    /// # Safety
    /// The ranges are inside A and at most a tile; the operands are still borrowed.
    pub(super) unsafe fn pack_a(
        &self,
        rows: Range<usize>,
        steps: Range<usize>,
        room: *mut f32,
    ) -> unsafe fn(&Tile) {
        let (height, a) = (rows.len(), &self.a);
        // SAFETY: the ranges are inside A, and `room` has a tile's size.
        unsafe {
            let src = a.src.add(rows.start * a.row_stride + steps.start * a.col_stride);
            let block = Block { src, rows: height, cols: steps.len(), ..*a };
            (self.kernels.pack_a)(&block, room);
            let tiles =
                if block.by_col() { self.kernels.tile_by_col } else { self.kernels.tile_by_row };
            tiles[height - 1]
        }
    }

    /// Packs the tiles `tiles` of `count`, steps `steps` of A, which lies in columns, into `room`.
    ///
    /// # Safety
    /// As [`Operands::pack_a`], for at most `LUMP` tiles.
    unsafe fn pack_lump(
        &self,
        tiles: Range<usize>,
        count: usize,
        steps: Range<usize>,
        room: *mut f32,
    ) {
        let rows = self.a.rows;
        let first = even_part(rows, count, tiles.start).start;
        let end = even_part(rows, count, tiles.end - 1).end;
        let mut heights = [0; LUMP];
        for (height, tile) in heights.iter_mut().zip(tiles.clone()) {
            *height = even_part(rows, count, tile).len();
        }
        // SAFETY: the rows and steps are inside A, and `room` has the size of all tiles.
        unsafe {
            let src = self.a.src.add(first * self.a.row_stride + steps.start * self.a.col_stride);
            let block = Block { src, rows: end - first, cols: steps.len(), ..self.a };
            (self.kernels.pack_columns)(&block, &heights[..tiles.len()], room);
        }
    }

    /// Fills in the part of a [`Tile`] that lies in C: rows from `row`, columns of panel `panel`.
    ///
    /// # Safety
    /// `row` and the panel's first column are inside C.
    pub(super) unsafe fn tile_at(&self, row: usize, panel: usize, first_steps: bool) -> Tile {
        let col = panel * PANEL;
        // SAFETY: the element `(row, col)` is inside C.
        let c = unsafe { self.c.add(row * self.c_stride + col) };
        Tile {
            depth: 0,
            a: std::ptr::null(),
            a_step: A_COL,
            b: std::ptr::null(),
            b_stride: PANEL,
            c,
            c_stride: self.c_stride,
            cols: (self.n - col).min(PANEL),
            from_c: self.from_c || !first_steps,
            next_c: c.wrapping_add(PANEL),
        }
    }
}

/// How B is cut.
struct Cut {
    /// Steps of `k` in a layer.
    depth: usize,
    /// Panels in a block.
    width: usize,
    /// Layers in a block.
    span: usize,
}

/// Narrow blocks copy A more often, flat ones pass over C more often; the cheaper cut is taken, and
/// then as many layers as there is room.
fn cut(panels: usize, k: usize, by_col: bool) -> Cut {
    let (room, copy) = (BLOCK / PANEL, if by_col { COLUMN_COST } else { ROW_COST });
    let narrowest = (room / k.clamp(4, DEPTH)).min(panels);
    let widths = (panels.div_ceil(room / 4)..=panels.div_ceil(narrowest))
        .map(|aside| panels.div_ceil(aside));
    let cheapest = widths.min_by_key(|&width| {
        panels.div_ceil(width) * k * copy + k.div_ceil(depth_beside(width, k)) * panels * PASS_COST
    });
    let width = cheapest.unwrap_or(narrowest);
    let depth = depth_beside(width, k);
    Cut { depth, width, span: (room / (depth * width)).clamp(1, k.div_ceil(depth)) }
}

/// Steps in a layer of a block that is `width` panels wide: as many as there is room, in layers of
/// equal depth.
fn depth_beside(width: usize, k: usize) -> usize {
    let most = (BLOCK / PANEL / width / 4 * 4).clamp(4, DEPTH);
    k.div_ceil(k.div_ceil(most)).next_multiple_of(4).min(DEPTH)
}

/// Tasks that a counter says are taken, if its upper half is the block's `stamp`; else none.
fn used(value: u64, stamp: u64) -> usize {
    if value & !0xFFFF_FFFF == stamp { (value - stamp) as usize } else { 0 }
}

/// One product's plan. B is cut into blocks of `span` layers of `depth` rows and `width` panels,
/// numbered down the columns first. Stage `s` packs block `s` and computes with block `s - 1`; all
/// its tasks may run at once, and they start when stage `s - 1` is complete.
struct Job {
    x: Operands,
    b: Block,
    /// Two packed blocks, `half` values each.
    packed: *mut f32,
    half: usize,
    tiles: usize,
    /// Groups of tiles that one task packs and computes: of one tile, where A lies in rows.
    lumps: usize,
    depth: usize,
    span: usize,
    /// Blocks one below the other, until `k` is covered.
    stack: usize,
    panels: usize,
    is_narrow: bool,
    width: usize,
    /// Panels that one task computes.
    group: usize,
    /// Threads that have come to work.
    workers: AtomicUsize,
    /// Parts into which the compute tasks of a stage are cut, one for each thread to begin with.
    parts: usize,
    /// Of each part, the block it was last used for (upper half) and how many of its tasks are
    /// taken.
    taken: [AtomicU64; MOST_PARTS],
    next: AtomicUsize,
    done: AtomicUsize,
}

// SAFETY: see `Operands`; `packed` is written by the pack tasks of one stage, one panel each, and
// read only in the next stage, which starts after the `done` counter has passed all of them.
unsafe impl Sync for Job {}

/// `c = a b` or `c += a b` for non-empty operands of fitting shapes.
pub(super) fn run(
    kernels: &'static Kernels,
    mut c: MatMut<'_>,
    a: Mat<'_>,
    b: Mat<'_>,
    start: Start,
    threads: Threads,
) {
    let (m, n) = (a.rows(), b.cols());
    let k = a.cols();
    let threads = share::count(threads, m, n, k);
    let (panels, by_col) = (n.div_ceil(PANEL), block_of(&a).lies_in_columns());
    let is_narrow = panels <= NARROW && (!by_col || m * k <= CLOSE);
    let tiles =
        m.div_ceil(if is_narrow && !by_col { kernels.few_rows() } else { kernels.tile_rows() });
    let Cut { depth, width, span } = cut(panels, k, by_col);
    let groups = if threads == 1 {
        1
    } else {
        (TASKS * threads).div_ceil(tiles).min(width / LEAST_GROUP).max(1)
    };
    let half = span * depth * PANEL * width;
    let lumps = match by_col {
        true => {
            tiles.div_ceil(LUMP).max(tiles.min(2 * threads)).next_multiple_of(threads).min(tiles)
        }
        false => tiles,
    };
    share::with_scratch(2 * half, |packed| {
        let job = Job {
            x: Operands::new(kernels, &mut c, &a, start),
            b: block_of(&b),
            packed,
            half,
            tiles,
            lumps,
            depth,
            span,
            stack: k.div_ceil(span * depth),
            panels,
            is_narrow,
            width,
            group: width.div_ceil(groups),
            workers: AtomicUsize::new(0),
            parts: threads.min(MOST_PARTS),
            taken: [const { AtomicU64::new(0) }; MOST_PARTS],
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        };
        share::run(threads, || job.work());
    });
}

impl Job {
    fn blocks(&self) -> usize {
        self.stack * self.panels.div_ceil(self.width)
    }

    fn panels_of(&self, block: usize) -> Range<usize> {
        let first = block / self.stack * self.width;
        first..(first + self.width).min(self.panels)
    }

    /// The layers of a block, as steps of `k`.
    fn layers_of(&self, block: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
        let first = block % self.stack * self.span;
        let (depth, k) = (self.depth, self.b.rows);
        (first..(first + self.span).min(k.div_ceil(depth)))
            .map(move |at| at * depth..((at + 1) * depth).min(k))
    }

    /// Tasks of stage `s`: how many pack, how many compute.
    fn stage(&self, s: usize) -> (usize, usize) {
        let packs =
            if s < self.blocks() { self.panels_of(s).len() * self.layers_of(s).len() } else { 0 };
        let computes =
            if s > 0 { self.lumps * self.panels_of(s - 1).len().div_ceil(self.group) } else { 0 };
        (packs, computes)
    }

    /// Takes tasks in order until none is left. Waiting cannot lock: a task waits only for tasks
    /// before it, which running threads have taken.
    fn work(&self) {
        let mut room = TileRoom::<LUMP>::new();
        let worker = self.workers.fetch_add(1, Ordering::Relaxed);
        let (mut stage, mut first) = (0, 0);
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            let (mut packs, mut computes) = self.stage(stage);
            while task >= first + packs + computes {
                first += packs + computes;
                stage += 1;
                if stage > self.blocks() {
                    return;
                }
                (packs, computes) = self.stage(stage);
            }
            self.wait_for(first);
            let at = task - first;
            // SAFETY: every task before this stage is done (Acquire above, Release below), each
            // task is taken once, and tasks of one stage write different panels or tiles of C.
            unsafe {
                if at < packs {
                    self.pack(stage, at);
                } else {
                    self.compute(stage - 1, self.take(worker, stage - 1, computes), &mut room);
                }
            }
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    /// A compute task of `block` that nobody has taken, of this worker's own part while there is
    /// one: so each thread goes down its own rows of C, and what it asks for ahead is what it needs
    /// next. The caller's turn at the counter `next` is the right to one of the tasks, so one is
    /// left in a part not yet looked at.
    fn take(&self, worker: usize, block: usize, computes: usize) -> usize {
        let stamp = (block as u64 + 1) << 32;
        for i in 0..self.parts {
            let part = (worker + i) % self.parts;
            let (start, end) = (part * computes / self.parts, (part + 1) * computes / self.parts);
            let taken = &self.taken[part];
            if let Ok(value) = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| {
                let used = used(value, stamp);
                (start + used < end).then(|| stamp + used as u64 + 1)
            }) {
                return start + used(value, stamp);
            }
        }
        unreachable!("a turn for which no task is left")
    }

    fn wait_for(&self, tasks: usize) {
        let mut turns = 0u32;
        while self.done.load(Ordering::Acquire) < tasks {
            turns += 1;
            if turns < 300 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }

    /// Where panel `at` of a layer of `block` is packed.
    fn panel(&self, block: usize, layer: usize, at: usize) -> *mut f32 {
        self.packed
            .wrapping_add(block % 2 * self.half + (layer * self.width + at) * self.depth * PANEL)
    }

    /// # Safety
    /// Nobody else uses this part of this half.
    unsafe fn pack(&self, block: usize, task: usize) {
        let panels = self.panels_of(block);
        let (layer, at) = (task / panels.len(), task % panels.len());
        let first = (panels.start + at) * PANEL;
        let Some(steps) = self.layers_of(block).nth(layer) else { return };
        // SAFETY: the steps and columns are inside B; the panel has `depth * PANEL` values, at
        // least `steps.len() * PANEL`.
        unsafe {
            let src = self.b.src.add(steps.start * self.b.row_stride + first * self.b.col_stride);
            let from =
                Block { src, rows: steps.len(), cols: (self.b.cols - first).min(PANEL), ..self.b };
            (self.x.kernels.pack_b)(&from, self.panel(block, layer, at));
        }
    }

    /// # Safety
    /// `block` is packed and stays; nobody else uses this task's part of C.
    unsafe fn compute(&self, block: usize, task: usize, room: &mut TileRoom<LUMP>) {
        let panels = self.panels_of(block);
        let groups = panels.len().div_ceil(self.group);
        let tiles = even_part(self.tiles, self.lumps, task / groups);
        let mine = task % groups * self.group..((task % groups + 1) * self.group).min(panels.len());
        let room = room.as_mut_ptr();
        let by_col = self.x.a.lies_in_columns();
        for (layer, steps) in self.layers_of(block).enumerate() {
            // SAFETY: rows, steps and panels are inside the operands, a lump has at most `LUMP`
            // tiles (one, where A lies in rows), and a tile at most `tile_rows` rows and `DEPTH`
            // steps.
            unsafe {
                let a = &self.x.a;
                if by_col && !self.is_narrow {
                    self.x.pack_lump(tiles.clone(), self.tiles, steps.clone(), room);
                }
                for (at, tile) in tiles.clone().enumerate() {
                    let rows = even_part(a.rows, self.tiles, tile);
                    let by_col_kernel = self.x.kernels.tile_by_col[rows.len() - 1];
                    let (kernel, from, a_step) = match (by_col, self.is_narrow) {
                        (true, true) => {
                            let in_place =
                                a.src.wrapping_add(rows.start + steps.start * a.col_stride);
                            (by_col_kernel, in_place, a.col_stride)
                        }
                        (true, false) => {
                            (by_col_kernel, room.wrapping_add(at * A_TILE).cast_const(), A_COL)
                        }
                        (false, _) => {
                            (self.x.pack_a(rows, steps.clone(), room), room.cast_const(), A_COL)
                        }
                    };
                    self.row_of_tiles(
                        tile,
                        block,
                        layer,
                        steps.clone(),
                        mine.clone(),
                        kernel,
                        (from, a_step),
                    );
                }
            }
        }
    }

    /// One tile of A against the panels `mine` of a layer of a block.
    ///
    /// # Safety
    /// `a` holds the tile's steps, as `kernel` reads them; nobody else uses this part of C.
    unsafe fn row_of_tiles(
        &self,
        tile: usize,
        block: usize,
        layer: usize,
        steps: Range<usize>,
        mine: Range<usize>,
        kernel: unsafe fn(&Tile),
        (a, a_step): (*const f32, usize),
    ) {
        let rows = even_part(self.x.a.rows, self.tiles, tile);
        let first = self.panels_of(block).start;
        for at in mine.clone() {
            // SAFETY: the tile's rows and the panel are inside C.
            unsafe {
                let mut tile = self.x.tile_at(rows.start, first + at, steps.start == 0);
                tile.depth = steps.len();
                (tile.a, tile.a_step) = (a, a_step);
                tile.b = self.panel(block, layer, at);
                if at + 1 == mine.end {
                    let back = (mine.len() - 1) * PANEL;
                    tile.next_c =
                        tile.c.wrapping_add(rows.len() * self.x.c_stride).wrapping_sub(back);
                }
                kernel(&tile);
            }
        }
    }
}
