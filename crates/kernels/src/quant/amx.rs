//! Products by matrix instructions (AMX): tiles of 32 rows of activations against two panels.
//!
//! Nothing lives in tile registers between two blocks of assembly; only the configuration of the tiles
//! does, which [`Tiles`] holds.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Values of a tile of results, 16 rows of 16.
pub(super) const C_TILE: usize = 256;

/// Whether the processor has the instructions and the system lets this process use them. Asks once.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| is_x86_feature_detected!("avx512f") && has_instructions() && permitted())
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
        asm!("syscall", inlateout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
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
    /// [`available`] said yes; `rows` and `quads` are 1 to 16; no other `Tiles` lives on this thread.
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
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the value was made where the instructions exist.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Operands of a block: two tiles of rows by two panels. Both of a pair may be the same.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Tiles of activations, those for 64 bytes of k each following one another.
    pub(super) a: [*const i8; 2],
    /// Lines of weights.
    pub(super) b: [*const u8; 2],
    /// Tiles of 64 bytes of k.
    pub(super) steps: usize,
}

/// Runs `$before`, then `$body` for each 64 bytes of k, then `$after`; `{c}` moves by `$c_step` bytes a round.
macro_rules! block {
    ($t:expr, $c:expr, [$($before:expr),*], [$($body:expr),*], $c_step:literal, [$($after:expr),*]) => {
        asm!(
            $($before,)*
            "2:",
            $($body,)*
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            concat!("add {c}, ", $c_step),
            "dec {n}",
            "jnz 2b",
            $($after,)*
            a0 = inout(reg) $t.a[0] => _,
            a1 = inout(reg) $t.a[1] => _,
            b0 = inout(reg) $t.b[0] => _,
            b1 = inout(reg) $t.b[1] => _,
            c = inout(reg) $c => _,
            n = inout(reg) $t.steps => _,
            s = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// The whole sum in tile registers.
macro_rules! whole {
    ($t:expr, $c:expr, $dot:literal) => {
        block!(
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
            "0",
            [
                "tilestored [{c} + {s}], tmm0",
                "tilestored [{c} + {s} + 1024], tmm1",
                "tilestored [{c} + {s} + 2048], tmm2",
                "tilestored [{c} + {s} + 3072], tmm3"
            ]
        )
    };
}

/// The four products of one group of k: `$a` and `$b` bytes into the operands, results `$c` bytes into C.
macro_rules! group {
    ($a:literal, $b:literal, $c:literal) => {
        concat!(
            "tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3\n",
            "tileloadd tmm4, [{a0} + {s} + ",
            $a,
            "]\n",
            "tileloadd tmm6, [{b0} + {s} + ",
            $b,
            "]\n",
            "tdpbssd tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{b1} + {s} + ",
            $b,
            "]\n",
            "tdpbssd tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{a1} + {s} + ",
            $a,
            "]\n",
            "tilestored [{c} + {s} + ",
            $c,
            "], tmm0\n",
            "tdpbssd tmm2, tmm5, tmm6\n",
            "tilestored [{c} + {s} + ",
            $c,
            " + 1024], tmm1\n",
            "tdpbssd tmm3, tmm5, tmm7\n",
            "tilestored [{c} + {s} + ",
            $c,
            " + 2048], tmm2\n",
            "tilestored [{c} + {s} + ",
            $c,
            " + 3072], tmm3"
        )
    };
}

/// Sums over all steps of products of bfloat16 pairs: for each block of 32 values of k one chain of fused
/// multiply-adds over the even and one over the odd values, both from zero, whose sum is added to the
/// result. Tile `[i][j]` of `c` is `a[i]` times `b[j]`.
///
/// # Safety
/// A [`Tiles`] of 16 quads lives; the operands hold `steps` tiles; `c` has four tiles of room.
pub(super) unsafe fn bf16(t: &Operands, c: *mut f32) {
    // SAFETY: the caller vouches for the memory; the tile registers are named.
    unsafe { whole!(t, c, "tdpbf16ps") };
}

/// The same for signed bytes, exactly.
///
/// # Safety
/// As [`bf16`].
pub(super) unsafe fn int8(t: &Operands, c: *mut i32) {
    // SAFETY: the caller vouches for the memory; the tile registers are named.
    unsafe { whole!(t, c, "tdpbssd") };
}

/// One result of four tiles for each group of 64 values.
///
/// # Safety
/// As [`bf16`], with room for `4 * steps` tiles.
pub(super) unsafe fn groups_of_64(t: &Operands, c: *mut i32) {
    // SAFETY: the caller vouches for the memory; the tile registers are named.
    unsafe { block!(t, c, [], [group!("0", "0", "0")], "4096", []) };
}

/// One result of four tiles for each group of 32 values, two in each step.
///
/// # Safety
/// As [`bf16`], but with a [`Tiles`] of 8 quads and room for `8 * steps` tiles.
pub(super) unsafe fn groups_of_32(t: &Operands, c: *mut i32) {
    // SAFETY: the caller vouches for the memory; the tile registers are named.
    unsafe { block!(t, c, [], [group!("0", "0", "0"), group!("32", "512", "4096")], "8192", []) };
}
