//! The instruction sets that the kernels are compiled for, and the choice among them at run time.

use super::kernel::{self, Block, Tile};
use super::vector;
use std::sync::OnceLock;

/// A vector instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512F, with sixteen lanes.
    Avx512,
    /// AVX2 with FMA, eight lanes.
    Avx2,
    /// What the build's target has by itself (NEON on aarch64).
    Plain,
}

impl Isa {
    /// The sets that this processor can run, best first; never empty.
    pub fn available() -> Vec<Isa> {
        [Isa::Avx512, Isa::Avx2, Isa::Plain]
            .into_iter()
            .filter(|isa| isa.kernels().is_some())
            .collect()
    }

    /// The best set of this processor, found once.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available().first().copied().unwrap_or(Isa::Plain))
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512f",
            Isa::Avx2 => "avx2+fma",
            Isa::Plain if cfg!(target_arch = "aarch64") => "neon",
            Isa::Plain => "plain",
        }
    }

    /// The kernels of this set, or `None` when the processor cannot run them.
    pub(crate) fn kernels(self) -> Option<&'static Kernels> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => is_x86_feature_detected!("avx512f").then_some(&avx512::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"))
                .then_some(&avx2::KERNELS),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => None,
            Isa::Plain => Some(&plain::KERNELS),
        }
    }

    /// The kernels of this set.
    ///
    /// # Panics
    /// When the processor cannot run them.
    pub(super) fn needed_kernels(self) -> &'static Kernels {
        self.kernels().unwrap_or_else(|| {
            panic!("matmul: this processor lacks {}; choose from Isa::available()", self.name())
        })
    }
}

/// The kernels compiled for one instruction set. A reference to one is proof that the processor has
/// the instructions, since [`Isa::kernels`] is the only source.
pub(crate) struct Kernels {
    /// `tile_by_row[m - 1]` computes a tile of `m` rows from A in row layout.
    pub(super) tile_by_row: &'static [unsafe fn(&Tile)],
    /// The same from A in column layout.
    pub(super) tile_by_col: &'static [unsafe fn(&Tile)],
    /// Panels that `row_tile` takes at once.
    pub(super) row_panels: usize,
    pub(super) row_tile: unsafe fn(&Tile, usize),
    pub(super) pack_a: unsafe fn(&Block, *mut f32),
    pub(super) pack_columns: unsafe fn(&Block, &[usize], *mut f32),
    pub(super) pack_b: unsafe fn(&Block, *mut f32),
    fma_burst: unsafe fn(usize, f32) -> f32,
    lanes: usize,
}

impl Kernels {
    /// Most rows of a tile.
    pub(super) fn tile_rows(&self) -> usize {
        self.tile_by_col.len()
    }

    /// Most rows of a tile that needs no transposition of a row-major A.
    pub(super) fn few_rows(&self) -> usize {
        self.tile_by_row.len()
    }

    /// Performs `steps` rounds of independent multiply-adds and returns how many operations on
    /// single values that was (two each).
    pub(crate) fn burst(&self, steps: usize) -> f64 {
        // SAFETY: `self` proves that the processor has the instructions.
        std::hint::black_box(unsafe { (self.fma_burst)(steps, std::hint::black_box(0.5)) });
        (steps * 12 * self.lanes * 2) as f64
    }
}

macro_rules! kernels_for {
    (
        $module:ident, $vector:ty, [$($attr:meta)?],
        rows: [$($m:literal)*], columns: [$($c:literal)*],
        panels: $p:literal, registers: $nv:literal
    ) => {
        mod $module {
            use super::{Block, Kernels, Tile, kernel, vector};
            use vector::Vector;

            // Each function below only adds the instruction set to the generic body; its contract
            // is the body's contract.

            $(#[$attr])?
            unsafe fn tile<const M: usize, const BY_COL: bool>(t: &Tile) {
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::tile::<$vector, M, BY_COL>(t) }
            }

            $(#[$attr])?
            unsafe fn row_tile(t: &Tile, panel_stride: usize) {
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::row_tile::<$vector, $p, $nv>(t, panel_stride) }
            }

            $(#[$attr])?
            unsafe fn pack_a(from: &Block, dst: *mut f32) {
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::pack_a::<$vector>(from, dst) }
            }

            $(#[$attr])?
            unsafe fn pack_columns(from: &Block, heights: &[usize], dst: *mut f32) {
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::pack_columns::<$vector>(from, heights, dst) }
            }

            $(#[$attr])?
            unsafe fn pack_b(from: &Block, dst: *mut f32) {
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::pack_b::<$vector>(from, dst) }
            }

            $(#[$attr])?
            unsafe fn fma_burst(steps: usize, x: f32) -> f32 {
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::fma_burst::<$vector>(steps, x) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                tile_by_row: &[$(tile::<$m, false>),*],
                tile_by_col: &[$(tile::<$c, true>),*],
                row_panels: $p,
                row_tile,
                pack_a,
                pack_columns,
                pack_b,
                fma_burst,
                lanes: <$vector>::LANES,
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels_for!(avx512, vector::Avx512, [target_feature(enable = "avx512f")],
    rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14],
    columns: [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28],
    panels: 4, registers: 2);
#[cfg(target_arch = "x86_64")]
kernels_for!(avx2, vector::Avx2, [target_feature(enable = "avx2,fma")],
    rows: [1 2 3 4 5 6], columns: [1 2 3 4 5 6], panels: 2, registers: 4);
kernels_for!(plain, vector::Plain, [],
    rows: [1 2 3 4 5 6], columns: [1 2 3 4 5 6], panels: 1, registers: 4);
