//! The ways through which a product can go on this processor, and the choice among them.

use super::codes::Codes;
use super::kernel::{self, BfTask, IntTask, RoundTask};
use super::lanes;

/// A way to compute a product. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductPath {
    /// Matrix instructions on tiles (AMX), with AVX-512 for scales.
    Amx,
    /// AVX-512 with byte products (VNNI).
    Avx512,
    /// AVX2 with FMA, eight lanes at once.
    Avx2,
    /// What the build's target has by itself.
    Plain,
}

impl ProductPath {
    /// The ways that this processor can go; never empty.
    pub fn available() -> Vec<ProductPath> {
        let all = [ProductPath::Amx, ProductPath::Avx512, ProductPath::Avx2, ProductPath::Plain];
        all.into_iter().filter(|path| path.kernels().is_some()).collect()
    }

    /// The fastest way for products of `rows` rows of activations.
    pub(super) fn best(codes: Codes, rows: usize) -> ProductPath {
        let all = [ProductPath::Amx, ProductPath::Avx512, ProductPath::Avx2];
        let tried = if rows >= codes.least_tile_rows() { &all[..] } else { &all[1..] };
        let found = tried.iter().find(|path| path.kernels().is_some());
        found.copied().unwrap_or(ProductPath::Plain)
    }

    /// The kernels of this way without tiles, or `None` where the processor cannot go it.
    pub(super) fn kernels(self) -> Option<&'static Kernels> {
        match self {
            #[cfg(target_arch = "x86_64")]
            ProductPath::Amx => {
                super::amx::available().then(|| ProductPath::Avx512.kernels()).flatten()
            }
            #[cfg(target_arch = "x86_64")]
            ProductPath::Avx512 => {
                let wide = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni");
                wide.then_some(&vnni::KERNELS)
            }
            #[cfg(target_arch = "x86_64")]
            ProductPath::Avx2 => {
                let middle = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                middle.then_some(&avx2::KERNELS)
            }
            #[cfg(not(target_arch = "x86_64"))]
            ProductPath::Amx | ProductPath::Avx512 | ProductPath::Avx2 => None,
            ProductPath::Plain => Some(&plain::KERNELS),
        }
    }
}

/// Panels that the products without tiles take together: as many streams from memory.
pub(super) const TOGETHER: usize = 4;

/// A kernel for one number of rows, against one panel and against as many as its registers hold:
/// several streams get more from the memory than one.
pub(super) struct Kernel<T> {
    pub(super) one: unsafe fn(&T),
    /// Panels of `many`, which divide [`TOGETHER`].
    pub(super) panels: usize,
    pub(super) many: unsafe fn(&T),
}

/// The kernels compiled for one instruction set; number `i` of a list takes `2^i` rows. A reference
/// is proof that the processor has the instructions, since [`ProductPath::kernels`] is the only
/// source.
pub(super) struct Kernels {
    pub(super) bytes: &'static [Kernel<IntTask>],
    pub(super) nibbles: &'static [Kernel<IntTask>],
    pub(super) triples: &'static [Kernel<IntTask>],
    pub(super) pairs: &'static [Kernel<IntTask>],
    pub(super) bf16: &'static [Kernel<BfTask>],
    pub(super) round_row: unsafe fn(&RoundTask),
    /// What `bytes` sees added to each code.
    pub(super) byte_bias: i32,
}

macro_rules! kernels_for {
    ($module:ident, $lanes:ident, [$($attr:meta)?], [$($r:literal rows $p:literal panels),*]) => {
        mod $module {
            use super::{BfTask, IntTask, Kernel, Kernels, RoundTask, TOGETHER, kernel, lanes};

            // Each function below only adds the instruction set to the generic body; its contract
            // is the body's contract.

            $(#[$attr])?
            unsafe fn int_rows<const R: usize, const P: usize, const BITS: usize>(t: &IntTask) {
                const {
                    assert!(R * P <= <lanes::$lanes as lanes::Lanes>::SUMS);
                    assert!(TOGETHER.is_multiple_of(P));
                };
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::int_rows::<lanes::$lanes, R, P, BITS>(t) }
            }

            $(#[$attr])?
            unsafe fn bf_rows<const R: usize, const P: usize>(t: &BfTask) {
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::bf_rows::<lanes::$lanes, R, P>(t) }
            }

            $(#[$attr])?
            unsafe fn round_row(t: &RoundTask) {
                // SAFETY: the caller keeps the contract of the body.
                unsafe { kernel::round_row::<lanes::$lanes>(t) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                bytes: &[$(Kernel {
                    one: int_rows::<$r, 1, 8>,
                    panels: $p,
                    many: int_rows::<$r, $p, 8>,
                }),*],
                nibbles: &[$(Kernel {
                    one: int_rows::<$r, 1, 4>,
                    panels: $p,
                    many: int_rows::<$r, $p, 4>,
                }),*],
                triples: &[$(Kernel {
                    one: int_rows::<$r, 1, 3>,
                    panels: $p,
                    many: int_rows::<$r, $p, 3>,
                }),*],
                pairs: &[$(Kernel {
                    one: int_rows::<$r, 1, 2>,
                    panels: $p,
                    many: int_rows::<$r, $p, 2>,
                }),*],
                bf16: &[$(Kernel { one: bf_rows::<$r, 1>, panels: $p, many: bf_rows::<$r, $p> }),*],
                round_row,
                byte_bias: <lanes::$lanes as lanes::Lanes>::BYTE_BIAS,
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels_for!(
    vnni,
    Vnni,
    [target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")],
    [1 rows 4 panels, 2 rows 4 panels, 4 rows 2 panels, 8 rows 1 panels]
);
#[cfg(target_arch = "x86_64")]
kernels_for!(
    avx2,
    Avx2,
    [target_feature(enable = "avx2,fma,f16c")],
    [1 rows 2 panels, 2 rows 1 panels]
);
kernels_for!(plain, Plain, [], [1 rows 1 panels, 2 rows 1 panels]);
