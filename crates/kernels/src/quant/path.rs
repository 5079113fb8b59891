//! The ways through which a product can go on this processor, and the choice among them.

use super::format::Format;
use super::kernel::{self, BfTask, IntTask};
use super::lanes;

/// A way to compute a product. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Matrix instructions on tiles (AMX), with AVX-512 for scales.
    Amx,
    /// AVX-512 with byte products (VNNI).
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// What the build's target has by itself.
    Plain,
}

impl Path {
    /// The ways that this processor can go; never empty.
    pub fn available() -> Vec<Path> {
        let all = [Path::Amx, Path::Avx512, Path::Avx2, Path::Plain];
        all.into_iter().filter(|path| path.kernels().is_some()).collect()
    }

    /// The fastest way for products of `rows` rows of activations.
    pub(super) fn best(format: Format, rows: usize) -> Path {
        // Below, a kernel that keeps its sums in registers is as fast as memory.
        let least = if format == Format::Bf16 { 9 } else { 17 };
        let all = [Path::Amx, Path::Avx512, Path::Avx2];
        let fits = |path: &Path| (*path != Path::Amx || rows >= least) && path.kernels().is_some();
        all.into_iter().find(fits).unwrap_or(Path::Plain)
    }

    /// The kernels of this way without tiles, or `None` where the processor cannot go it.
    pub(super) fn kernels(self) -> Option<&'static Kernels> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Path::Amx => super::amx::available().then(|| Path::Avx512.kernels()).flatten(),
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => {
                let wide = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni");
                wide.then_some(&vnni::KERNELS)
            }
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => {
                let middle = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                middle.then_some(&avx2::KERNELS)
            }
            #[cfg(not(target_arch = "x86_64"))]
            Path::Amx | Path::Avx512 | Path::Avx2 => None,
            Path::Plain => Some(&plain::KERNELS),
        }
    }
}

/// The kernels compiled for one instruction set; number `i` of a list takes `2^i` rows. A reference is
/// proof that the processor has the instructions, since [`Path::kernels`] is the only source.
pub(super) struct Kernels {
    pub(super) bytes: &'static [unsafe fn(&IntTask)],
    pub(super) nibbles: &'static [unsafe fn(&IntTask)],
    pub(super) bf16: &'static [unsafe fn(&BfTask)],
}

macro_rules! kernels_for {
    ($module:ident, $lanes:ident, [$($attr:meta)?], rows: [$($r:literal)*]) => {
        mod $module {
            use super::{BfTask, IntTask, Kernels, kernel, lanes};

            // Each function below only adds the instruction set to the generic body; its contract is
            // the body's contract.

            $(#[$attr])?
            unsafe fn int_rows<const R: usize, const NIBBLES: bool>(t: &IntTask) {
                const { assert!(R <= <lanes::$lanes as lanes::Lanes>::ROWS) };
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::int_rows::<lanes::$lanes, R, NIBBLES>(t) }
            }

            $(#[$attr])?
            unsafe fn bf_rows<const R: usize>(t: &BfTask) {
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::bf_rows::<lanes::$lanes, R>(t) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                bytes: &[$(int_rows::<$r, false>),*],
                nibbles: &[$(int_rows::<$r, true>),*],
                bf16: &[$(bf_rows::<$r>),*],
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels_for!(vnni, Vnni, [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")], rows: [1 2 4 8]);
#[cfg(target_arch = "x86_64")]
kernels_for!(avx2, Avx2, [target_feature(enable = "avx2,fma,f16c")], rows: [1 2]);
kernels_for!(plain, Plain, [], rows: [1 2 4]);
