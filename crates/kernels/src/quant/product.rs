//! Products with quantised matrices: activations are rounded once by all threads together, then
//! each thread takes contiguous ranges of panels.

use super::activations::{ActivationForm, Activations};
use super::codes::{Codes, PANEL};
use super::kernel::{A_ROW, BfTask, IntTask, Out};
use super::matrix::Quantized;
use super::path::{Kernel, Kernels, ProductPath, TOGETHER};
use crate::matmul::{Mat, MatMut, Start, Threads};
use crate::scratch::Scratch;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Products with fewer multiply-adds than this stay on the calling thread: waking another costs
/// more.
const WORTH_SHARING: usize = 1 << 17;
/// Bytes of activations that are kept at once, for a share of the second-level cache.
const KEPT: usize = 1 << 20;

/// `y = x w^T` or `y += x w^T`, with `x` `[t, d]`, `w` `[n, d]`, `y` `[t, n]`.
///
/// `bf16`: activations are rounded to bfloat16 too. In each block of 32 values of `d` the even and
/// the odd products form one chain of fused multiply-adds each, from zero; then `acc += even +
/// odd`.
///
/// Other formats: each group `g` of a row of activations, of the size of the format's groups, is
/// rounded to bytes, `a = max |x| / 127` and `q = round(x * (127 / max |x|))`, ties to even. Then
/// in ascending `g`, with `s` the scale and `m` the minimum of the weights, `acc = fma(fl(s sum(q
/// w_q)), a, acc)`, and with minima `acc = fma(m, fl(a sum(q)), acc)`; sums of codes are exact.
///
/// In the end `y = unit acc` or `y = fma(acc, unit, y)`. The bits of an element depend on its row
/// of `x` and its row of `w` alone: not on other rows, the threads or the instruction set (of a NaN
/// only that it is one). An activation that is not finite makes its whole row of `y` NaN, save that
/// with `bf16` it takes part as it is.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul_quantized(y: MatMut<'_>, x: Mat<'_>, w: &Quantized, start: Start, threads: Threads) {
    matmul_quantized_with(ProductPath::best(w.format().0.codes, x.rows()), y, x, w, start, threads);
}

/// [`matmul_quantized`] with the rows `w_rows` of W alone, as if they were the whole matrix: one of
/// several that lie one after another. Where they begin or end within a panel, columns of the
/// neighbours are computed too, and left out.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul_quantized_rows(
    mut y: MatMut<'_>,
    x: Mat<'_>,
    w: &Quantized,
    w_rows: Range<usize>,
    start: Start,
    threads: Threads,
) {
    let path = ProductPath::best(w.format().0.codes, x.rows());
    let (n, rows) = (w.shape().0, x.rows());
    assert!(
        w_rows.start <= w_rows.end
            && w_rows.end <= n
            && y.cols() == w_rows.len()
            && y.rows() == rows,
        "matmul_quantized_rows: Y {} x {} is not X {rows} x {} times the transpose of rows \
         {w_rows:?} of the {n} of W",
        y.rows(),
        y.cols(),
        x.cols()
    );
    let whole = |row: usize| row.is_multiple_of(PANEL) || row == n;
    if whole(w_rows.start) && whole(w_rows.end) {
        return of_rows(path, y, x, (w, w_rows), start, threads);
    }
    let first = w_rows.start / PANEL * PANEL;
    let wide = first..w_rows.end.next_multiple_of(PANEL).min(n);
    let mut scratch = Scratch::take(rows * wide.len());
    let [room] = scratch.split([rows * wide.len()]);
    let own = w_rows.start - first..w_rows.end - first;
    if start == Start::FromC {
        room.fill(0.0);
        for (i, room) in room.chunks_exact_mut(wide.len()).enumerate() {
            room[own.clone()].copy_from_slice(y.row_mut(i));
        }
    }
    let all = MatMut::rows_major(room, rows, wide.len());
    of_rows(path, all, x, (w, wide.clone()), start, threads);
    for (i, found) in room.chunks_exact(wide.len()).enumerate() {
        y.row_mut(i).copy_from_slice(&found[own.clone()]);
    }
}

/// [`matmul_quantized`] on a chosen path.
///
/// # Panics
/// When the shapes do not fit or the processor cannot go this path.
#[doc(hidden)]
pub fn matmul_quantized_with(
    path: ProductPath,
    y: MatMut<'_>,
    x: Mat<'_>,
    w: &Quantized,
    start: Start,
    threads: Threads,
) {
    of_rows(path, y, x, (w, 0..w.shape().0), start, threads);
}

/// The product with rows of W that begin and end with panels.
fn of_rows(
    path: ProductPath,
    mut y: MatMut<'_>,
    x: Mat<'_>,
    (w, w_rows): (&Quantized, Range<usize>),
    start: Start,
    threads: Threads,
) {
    let rows = x.rows();
    let (n, d) = (w_rows.len(), w.shape().1);
    assert!(
        y.rows() == rows && y.cols() == n && x.cols() == d,
        "matmul_quantized: Y {} x {} is not X {rows} x {} times the transpose of W {n} x {d}; \
         the inner sizes must agree and the outer ones be Y's",
        y.rows(),
        y.cols(),
        x.cols()
    );
    let Some(kernels) = path.kernels() else {
        panic!(
            "matmul_quantized: this processor lacks what {path:?} needs; \
             choose from ProductPath::available()"
        )
    };
    if d == 0 && start == Start::Zero {
        (0..rows).for_each(|i| y.row_mut(i).fill(0.0));
    }
    if d == 0 || rows == 0 || n == 0 {
        return;
    }
    let format = w.format().0;
    let bias = format.zero + if format.codes == Codes::Bytes { kernels.byte_bias } else { 0 };
    let form = match (format.codes, path) {
        (Codes::Bf16, ProductPath::Amx) => ActivationForm::Halves,
        (Codes::Bf16, _) => ActivationForm::Wide,
        (Codes::Bytes | Codes::Nibbles | Codes::Triples | Codes::Pairs, _) => {
            ActivationForm::Bytes { group: w.layout.group, bias }
        }
    };
    let row_bytes = Activations::len(form, 16, w.layout.depth) / 4;
    let most = (KEPT / row_bytes / 32 * 32).max(64);
    for first in (0..rows).step_by(most) {
        let range = first..(first + most).min(rows);
        let panels = w_rows.start / PANEL..w_rows.end.div_ceil(PANEL);
        let call = Call { path, kernels, form, start, panels };
        call.run(y.row_range(range.clone()), x.row_range(range), w, threads);
    }
}

/// What the parts of one product share.
struct Call {
    path: ProductPath,
    kernels: &'static Kernels,
    form: ActivationForm,
    start: Start,
    /// Panels of W whose rows are those of this product.
    panels: Range<usize>,
}

impl Call {
    fn run(&self, mut y: MatMut<'_>, x: Mat<'_>, w: &Quantized, threads: Threads) {
        let rows = x.rows();
        let (n, d) = (y.cols(), w.shape().1);
        let threads = match threads {
            Threads::All if rows.saturating_mul(n).saturating_mul(d) >= WORTH_SHARING => {
                rayon::current_num_threads()
            }
            _ => 1,
        };
        let len = Activations::len(self.form, rows, w.layout.depth);
        let mut scratch = Scratch::take(len);
        let [buffer] = scratch.split([len]);
        let stride = match rows {
            1 => n,
            _ => (y.row_mut(1).as_ptr().addr() - y.row_mut(0).as_ptr().addr()) / size_of::<f32>(),
        };
        let job = Job {
            path: self.path,
            kernels: self.kernels,
            x,
            w,
            activations: Activations::new(self.form, rows, w.layout.depth, buffer),
            y: y.row_mut(0).as_mut_ptr().wrapping_sub(self.panels.start * PANEL),
            stride,
            add: self.start == Start::FromC,
            threads,
            next_row: AtomicUsize::new(0),
            rows_done: AtomicUsize::new(0),
            next_panel: AtomicUsize::new(self.panels.start),
            last_panel: self.panels.end,
        };
        if threads == 1 {
            return job.work();
        }
        rayon::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|_| job.work());
            }
            job.work();
        });
    }
}

/// One product of a limited number of rows.
pub(super) struct Job<'a> {
    path: ProductPath,
    kernels: &'static Kernels,
    x: Mat<'a>,
    pub(super) w: &'a Quantized,
    pub(super) activations: Activations,
    /// Where the first row of W would stand in the first row of Y.
    y: *mut f32,
    stride: usize,
    add: bool,
    threads: usize,
    next_row: AtomicUsize,
    rows_done: AtomicUsize,
    next_panel: AtomicUsize,
    last_panel: usize,
}

// SAFETY: the counters give each row of activations and each panel of Y to one thread; activations
// are read only after `rows_done` has counted all of them.
unsafe impl Sync for Job<'_> {}

impl Job<'_> {
    pub(super) fn rows(&self) -> usize {
        self.x.rows()
    }

    fn work(&self) {
        self.round_rows();
        let panels = self.last_panel;
        let next = &self.next_panel;
        while let Ok(first) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |first| {
            (first < panels).then(|| self.share_end(first, panels))
        }) {
            // SAFETY: the counter gave these panels to this thread alone; all activations are
            // there.
            unsafe { self.panels(first..self.share_end(first, panels)) }
        }
    }

    /// Where the share of panels that begins at `first` ends: half of what is left for each thread,
    /// in pairs, as the tiles take two panels at once.
    fn share_end(&self, first: usize, panels: usize) -> usize {
        let share = (panels - first).div_ceil(2 * self.threads).next_multiple_of(2);
        (first + share).min(panels)
    }

    /// Takes part in rounding the activations, and returns when all rows are done.
    fn round_rows(&self) {
        let depth = self.w.layout.depth;
        let mut scratch = Scratch::take(depth);
        let [room] = scratch.split([depth]);
        loop {
            let row = self.next_row.fetch_add(1, Ordering::Relaxed);
            if row >= self.rows() {
                break;
            }
            let x = padded_row(&self.x, row, room);
            // SAFETY: the counter gave this row to this thread alone.
            unsafe { self.activations.put(self.kernels, row, x) };
            self.rows_done.fetch_add(1, Ordering::Release);
        }
        let mut tries = 0u32;
        // Only threads that run hold rows, so this ends.
        while self.rows_done.load(Ordering::Acquire) < self.rows() {
            tries += 1;
            if tries.is_multiple_of(256) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }

    /// # Safety
    /// Nobody else uses these panels of Y, and the activations are complete.
    unsafe fn panels(&self, panels: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if self.path == ProductPath::Amx {
            // SAFETY: `kernels` proves that the instructions exist; the rest is the caller's
            // promise.
            return unsafe { super::tiles::panels(self, panels) };
        }
        for first in panels.clone().step_by(TOGETHER) {
            let set = first..(first + TOGETHER).min(panels.end);
            match self.w.format().0.codes {
                // SAFETY: the caller's promise.
                Codes::Bf16 => unsafe { self.bf16_panels(set) },
                // SAFETY: the caller's promise.
                Codes::Bytes => unsafe { self.int_panels(set, self.kernels.bytes) },
                // SAFETY: the caller's promise.
                Codes::Nibbles => unsafe { self.int_panels(set, self.kernels.nibbles) },
                // SAFETY: the caller's promise.
                Codes::Triples => unsafe { self.int_panels(set, self.kernels.triples) },
                // SAFETY: the caller's promise.
                Codes::Pairs => unsafe { self.int_panels(set, self.kernels.pairs) },
            }
        }
    }

    /// Y from row `row` on in panel `panel`.
    pub(super) fn out(&self, row: usize, panel: usize) -> Out {
        Out {
            y: self.y.wrapping_add(row * self.stride + panel * PANEL),
            stride: self.stride,
            cols: self.w.layout.n - panel * PANEL,
            unit: self.w.unit,
            add: self.add,
        }
    }

    pub(super) fn codes(&self, panel: usize) -> *const u8 {
        self.w.codes()[panel * self.w.layout.panel_bytes()..].as_ptr()
    }

    /// Scales and minima of a panel; no minima are a null pointer.
    pub(super) fn scales(&self, panel: usize) -> (*const u16, *const u16) {
        let layout = &self.w.layout;
        let at = panel * layout.groups * PANEL;
        let mins = if layout.mins { self.w.mins[at..].as_ptr() } else { std::ptr::null() };
        (self.w.scales[at..].as_ptr(), mins)
    }

    /// # Safety
    /// As [`Job::panels`].
    unsafe fn bf16_panels(&self, set: Range<usize>) {
        let depth = self.activations.depth;
        for_blocks(self.rows(), set, self.kernels.bf16, |row, panel, kernel| {
            let a = self.activations.base.cast::<f32>().wrapping_add(row * depth);
            let task = BfTask {
                codes: self.codes(panel),
                depth,
                a,
                a_stride: depth,
                out: self.out(row, panel),
            };
            // SAFETY: the pointers are those of these panels and these rows.
            unsafe { kernel(&task) }
        });
    }

    /// # Safety
    /// As [`Job::panels`].
    unsafe fn int_panels(&self, set: Range<usize>, kernels: &[Kernel<IntTask>]) {
        let (layout, activations) = (&self.w.layout, &self.activations);
        for_blocks(self.rows(), set, kernels, |row, panel, kernel| {
            let at = row / 16 * layout.groups * 16 + row % 16;
            let (scales, mins) = self.scales(panel);
            let task = IntTask {
                codes: self.codes(panel),
                scales,
                mins,
                groups: layout.groups,
                group: layout.group,
                a: activations.tile(row / 16).wrapping_add(row % 16 * A_ROW),
                a_scales: activations.scales.wrapping_add(at),
                a_starts: activations.starts.wrapping_add(at),
                a_offsets: activations.offsets.wrapping_add(at),
                out: self.out(row, panel),
            };
            // SAFETY: the pointers are those of these panels and these rows, which share a tile.
            unsafe { kernel(&task) }
        });
    }
}

/// Row `i` of `x`, in `room` where it has to be gathered or padded with zeros.
fn padded_row<'a>(x: &Mat<'a>, i: usize, room: &'a mut [f32]) -> &'a [f32] {
    let cols = x.cols();
    match x.row(i) {
        Some(row) if room.len() == cols => return row,
        Some(row) => room[..cols].copy_from_slice(row),
        None => room[..cols].iter_mut().enumerate().for_each(|(j, value)| *value = x.at(i, j)),
    }
    room[cols..].fill(0.0);
    room
}

/// Cuts `rows` into blocks of powers of two, none across a multiple of 16, and a whole set of
/// panels into as many as a kernel takes; `kernels[i]` takes `2^i` rows.
fn for_blocks<T>(
    rows: usize,
    set: Range<usize>,
    kernels: &[Kernel<T>],
    mut work: impl FnMut(usize, usize, unsafe fn(&T)),
) {
    let mut row = 0;
    while row < rows {
        let power = ((rows - row).ilog2() as usize).min(kernels.len() - 1);
        let kernel = &kernels[power];
        let (step, run) =
            if set.len() == TOGETHER { (kernel.panels, kernel.many) } else { (1, kernel.one) };
        for panel in set.clone().step_by(step) {
            work(row, panel, run);
        }
        row += 1 << power;
    }
}
