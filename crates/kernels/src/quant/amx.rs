//! Products by matrix instructions (AMX): tiles of 32 rows of activations against two panels.
//!
//! Nothing lives in tile registers between two blocks of assembly; only the configuration of the
//! tiles does, which [`Tiles`] holds.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Values of a tile of results, 16 rows of 16.
pub(super) const C_TILE: usize = 256;

/// Whether the processor has the instructions and the system lets this process use them. Asks once.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE
        .get_or_init(|| is_x86_feature_detected!("avx512f") && has_instructions() && permitted())
}

fn has_instructions() -> bool {
    /// AMX-BF16, AMX-TILE and AMX-INT8 in EDX of leaf 7.
    const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS
}

/// Asks the kernel for the tile registers' state; it refuses where it does not know them.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes two numbers and touches no memory of this process.
    unsafe {
        asm!("syscall", inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Tiles configured on this thread: 0 to 3 hold results, 4 and 5 activations, 6 and 7 weights.
pub(super) struct Tiles(());

#[repr(C, align(64))]
struct Config([u8; 64]);

impl Tiles {
    /// `rows` rows of activations of `4 * quads` bytes.
    ///
    /// # Safety
    /// [`available`] said yes; `rows` and `quads` are 1 to 16; no other `Tiles` lives on this
    /// thread.
    pub(super) unsafe fn new(rows: usize, quads: usize) -> Self {
        debug_assert!((1..=16).contains(&rows) && (1..=16).contains(&quads));
        let mut config = Config([0; 64]);
        // Palette 1; bytes of a row from 16 on, two bytes each; rows from 48 on.
        config.0[0] = 1;
        for tile in 0..8 {
            let (height, width) = match tile {
                0..4 => (rows, 64),
                4..6 => (rows, 4 * quads),
                _ => (quads, 64),
            };
            config.0[16 + 2 * tile] = width as u8;
            config.0[48 + tile] = height as u8;
        }
        // SAFETY: the instructions exist, and the configuration is one that they accept.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags))
        };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the value was made where the instructions exist.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Operands of a block: one or two tiles of rows by two panels, which may be the same.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Tiles of activations, those for 64 bytes of k each following one another.
    pub(super) a: [*const i8; 2],
    /// Whether the second tile of rows takes part.
    pub(super) is_tall: bool,
    /// Lines of weights, of the two panels that a step takes.
    pub(super) b: [*const u8; 2],
    /// Tiles of 64 bytes of k.
    pub(super) steps: usize,
    /// Where the results will be written in the end, two panels to a row. Each step asks for two
    /// rows, so that the memory's answer is there in time; any address will do.
    pub(super) y: *mut f32,
    /// Bytes between the rows of Y.
    pub(super) y_stride: usize,
}

/// Results of all steps: clears the tiles, runs the products for each 64 bytes of k, stores.
macro_rules! whole {
    ($t:expr, $c:expr, [$($clear:expr),*], [$($products:expr),*], [$($store:expr),*]) => {
        asm!(
            $($clear,)*
            "2:",
            $($products,)*
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "prefetchw [{y}]",
            "prefetchw [{y} + 64]",
            "prefetchw [{y} + {ys}]",
            "prefetchw [{y} + {ys} + 64]",
            "lea {y}, [{y} + 2 * {ys}]",
            "dec {n}",
            "jnz 2b",
            $($store,)*
            a0 = inout(reg) $t.a[0] => _,
            a1 = inout(reg) $t.a[1] => _,
            b0 = inout(reg) $t.b[0] => _,
            b1 = inout(reg) $t.b[1] => _,
            c = in(reg) $c,
            n = inout(reg) $t.steps => _,
            s = in(reg) 64usize,
            y = inout(reg) $t.y => _,
            ys = in(reg) $t.y_stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// [`whole`] for two tiles of rows and for one.
macro_rules! sums {
    ($t:expr, $c:expr, $dot:literal) => {
        if $t.is_tall {
            whole!(
                $t,
                $c,
                ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"],
                [
                    "tileloadd tmm4, [{a0} + {s}]",
                    "tileloadd tmm6, [{b0} + {s}]",
                    "tileloadd tmm7, [{b1} + {s}]",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm5, [{a1} + {s}]",
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    concat!($dot, " tmm2, tmm5, tmm6"),
                    concat!($dot, " tmm3, tmm5, tmm7")
                ],
                [
                    "tilestored [{c} + {s}], tmm0",
                    "tilestored [{c} + {s} + 1024], tmm1",
                    "tilestored [{c} + {s} + 2048], tmm2",
                    "tilestored [{c} + {s} + 3072], tmm3"
                ]
            )
        } else {
            whole!(
                $t,
                $c,
                ["tilezero tmm0", "tilezero tmm1"],
                [
                    "tileloadd tmm4, [{a0} + {s}]",
                    "tileloadd tmm6, [{b0} + {s}]",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{b1} + {s}]",
                    concat!($dot, " tmm1, tmm4, tmm7")
                ],
                ["tilestored [{c} + {s}], tmm0", "tilestored [{c} + {s} + 1024], tmm1"]
            )
        }
    };
}

/// Sums over all steps of products of bfloat16 pairs: for each block of 32 values of k one chain of
/// fused multiply-adds over the even and one over the odd values, both from zero, whose sum is
/// added to the result. Tile `[i][j]` of `c` is `a[i]` times `b[j]`.
///
/// # Safety
/// A [`Tiles`] of 16 quads lives; the operands hold `steps` tiles; `c` has four tiles of room.
pub(super) unsafe fn bf16(t: &Operands, c: *mut f32) {
    // SAFETY: the caller vouches for the memory; the tile registers are named.
    unsafe { sums!(t, c, "tdpbf16ps") };
}

/// The same for signed bytes, exactly.
///
/// # Safety
/// As [`bf16`].
pub(super) unsafe fn int8(t: &Operands, c: *mut i32) {
    // SAFETY: the caller vouches for the memory; the tile registers are named.
    unsafe { sums!(t, c, "tdpbssd") };
}

/// The products of one group with one tile of rows, and what is given for a second.
macro_rules! products {
    ($a:expr, $b:expr, $c:expr, [$($line:literal),*]) => {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm4, [{a0} + {s}]",
            "tileloadd tmm6, [{b0} + {s}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {s}]",
            "tdpbssd tmm1, tmm4, tmm7",
            $($line,)*
            "tilestored [{c} + {s}], tmm0",
            "tilestored [{c} + {s} + 1024], tmm1",
            // Names an operand that one tile of rows does not need.
            "/* {a1} */",
            a0 = in(reg) $a[0],
            a1 = in(reg) $a[1],
            b0 = in(reg) $b[0],
            b1 = in(reg) $b[1],
            c = in(reg) $c,
            s = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        )
    };
}

/// The products of one group, which begins at `a` and `b`, of as many quads as the tiles have.
///
/// # Safety
/// As [`bf16`], with a group's quads; `a[1]` is read only where `is_tall`.
#[inline(always)]
pub(super) unsafe fn group(a: [*const i8; 2], is_tall: bool, b: [*const u8; 2], c: *mut i32) {
    // SAFETY: the caller vouches for the memory; the tile registers are named.
    unsafe {
        if is_tall {
            products!(
                a,
                b,
                c,
                [
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "tileloadd tmm5, [{a1} + {s}]",
                    "tdpbssd tmm2, tmm5, tmm6",
                    "tdpbssd tmm3, tmm5, tmm7",
                    "tilestored [{c} + {s} + 2048], tmm2",
                    "tilestored [{c} + {s} + 3072], tmm3"
                ]
            );
        } else {
            products!(a, b, c, []);
        }
    }
}
