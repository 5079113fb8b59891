//! The products on the matrix-instruction path: pairs of panels against pairs of tiles of rows.

use super::activations::Form;
use super::amx::{self, C_TILE, Tiles};
use super::format::{Format, LINE, PANEL};
use super::kernel::{A_TILE, Out};
use super::lanes::{Lanes, Vnni};
use super::product::Job;
use crate::scratch::Scratch;
use std::arch::x86_64::*;
use std::ops::Range;

/// Groups whose integer results are kept at once: 16 KiB of the first-level cache.
const CHUNK: usize = 4;

/// Room for integer results and sums on the stack.
#[repr(C, align(64))]
struct Room {
    results: [i32; CHUNK * 4 * C_TILE],
    sums: [f32; 4 * C_TILE],
}

/// # Safety
/// As `Job::panels`, and the matrix instructions are available.
pub(super) unsafe fn panels(job: &Job<'_>, panels: Range<usize>) {
    let layout = &job.w.layout;
    let quads = if layout.group == 32 { 8 } else { 16 };
    let nibbles = layout.format.bits() == 4;
    let bytes = if nibbles { layout.depth * PANEL } else { 0 };
    let mut scratch = Scratch::take(2 * bytes / 4 + LINE / 4);
    let [wide] = scratch.split([2 * bytes / 4 + LINE / 4]);
    let skip = wide.as_ptr().align_offset(LINE).min(LINE / 4);
    let wide = wide[skip..].as_mut_ptr().cast::<u8>();
    // SAFETY: the instructions are available, and no other `Tiles` lives in this function.
    let _tiles = unsafe { Tiles::new(job.rows().min(16), quads) };
    let mut room = Room { results: [0; CHUNK * 4 * C_TILE], sums: [0.0; 4 * C_TILE] };
    for first in panels.clone().step_by(2) {
        let pair = [first, (first + 1).min(panels.end - 1)];
        let mut b = pair.map(|panel| job.codes(panel));
        if nibbles {
            for (i, b) in b.iter_mut().enumerate() {
                // SAFETY: the room holds two panels of bytes; this one has `depth * 8` bytes of nibbles.
                unsafe {
                    let to = wide.add(i * bytes);
                    widen(*b, layout.depth / 8, job.bias() as i8, to);
                    *b = to;
                }
            }
        }
        let pair = Pair { job, panels: pair, b };
        for tile in (0..job.rows().div_ceil(16)).step_by(2) {
            // SAFETY: the tiles and panels are those of the job, which this thread alone works on.
            unsafe { pair.block(tile, &mut room) }
        }
    }
}

/// Spreads `lines` lines of nibbles over twice as many lines of bytes, `bias` less.
///
/// # Safety
/// AVX-512 is available; `from` and `to` reach that far.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn widen(from: *const u8, lines: usize, bias: i8, to: *mut u8) {
    let (mask, bias) = (_mm512_set1_epi8(15), _mm512_set1_epi8(bias));
    for i in 0..lines {
        // SAFETY: line `i` and lines `2 i` and `2 i + 1` are inside, by the caller's promise.
        unsafe {
            let line = _mm512_loadu_si512(from.add(i * LINE).cast());
            let (low, high) = (_mm512_and_si512(line, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(line), mask));
            _mm512_storeu_si512(to.add(2 * i * LINE).cast(), _mm512_sub_epi8(low, bias));
            _mm512_storeu_si512(to.add((2 * i + 1) * LINE).cast(), _mm512_sub_epi8(high, bias));
        }
    }
}

/// Two panels, their weights as the tiles read them; the second may be the first again.
struct Pair<'a> {
    job: &'a Job<'a>,
    panels: [usize; 2],
    b: [*const u8; 2],
}

impl Pair<'_> {
    /// Rows of tiles `tile` and `tile + 1`.
    ///
    /// # Safety
    /// As [`panels`]; the tiles are configured.
    unsafe fn block(&self, tile: usize, room: &mut Room) {
        let job = self.job;
        let tiles = [tile, (tile + 1).min(job.rows().div_ceil(16) - 1)];
        let a = tiles.map(|tile| job.activations.tile(tile));
        let steps = match job.activations.form {
            Form::Bytes { .. } => job.activations.depth / 64,
            _ => job.activations.depth / 32,
        };
        let operands = amx::Operands { a, b: self.b, steps };
        // SAFETY: the operands hold whole rows and panels; `room` holds four tiles for each of `CHUNK` groups.
        unsafe {
            match job.w.format() {
                Format::Bf16 => amx::bf16(&operands, room.sums.as_mut_ptr()),
                Format::Int8Rows => {
                    amx::int8(&operands, room.results.as_mut_ptr());
                    self.scale(tiles, 0..1, room);
                }
                _ => self.groups(operands, tiles, room),
            }
        }
        for (i, &tile) in tiles.iter().enumerate().take(if tiles[0] == tiles[1] { 1 } else { 2 }) {
            for (j, &panel) in self.panels.iter().enumerate().take(if self.panels[0] == self.panels[1] { 1 } else { 2 })
            {
                let rows = (job.rows() - tile * 16).min(16);
                let out = job.out(tile * 16, panel);
                // SAFETY: the sums of 16 rows lie there; the rows and columns are this thread's.
                unsafe { write(&out, rows, room.sums.as_ptr().add((2 * i + j) * C_TILE)) };
            }
        }
    }

    /// # Safety
    /// As [`Pair::block`].
    unsafe fn groups(&self, whole: amx::Operands, tiles: [usize; 2], room: &mut Room) {
        let layout = &self.job.w.layout;
        let per_step = 64 / layout.group;
        for step in (0..whole.steps).step_by(CHUNK / per_step) {
            let steps = (CHUNK / per_step).min(whole.steps - step);
            let part = amx::Operands {
                a: whole.a.map(|a| a.wrapping_add(step * A_TILE)),
                b: whole.b.map(|b| b.wrapping_add(step * 16 * LINE)),
                steps,
            };
            // SAFETY: the part lies inside the whole, and its results are at most `CHUNK` groups.
            unsafe {
                match per_step {
                    1 => amx::groups_of_64(&part, room.results.as_mut_ptr()),
                    _ => amx::groups_of_32(&part, room.results.as_mut_ptr()),
                }
                self.scale(tiles, step * per_step..(step + steps) * per_step, room);
            }
        }
    }

    /// Adds the scaled results of groups `groups` to the sums, or starts the sums with them.
    ///
    /// # Safety
    /// As [`Pair::block`]; the results hold these groups.
    unsafe fn scale(&self, tiles: [usize; 2], groups: Range<usize>, room: &mut Room) {
        let job = self.job;
        for (i, tile) in tiles.into_iter().enumerate() {
            for (j, panel) in self.panels.into_iter().enumerate() {
                let (scales, mins) = job.scales(panel);
                let at = (tile * job.activations.groups + groups.start) * 16;
                // SAFETY: the pointers are those of the groups; the results of tile `[i][j]` lie there.
                unsafe {
                    let mins = if mins.is_null() { mins } else { mins.add(groups.start * PANEL) };
                    let task = Scale {
                        results: room.results.as_ptr().add((2 * i + j) * C_TILE),
                        groups: groups.len(),
                        scales: scales.add(groups.start * PANEL),
                        mins,
                        a_scales: job.activations.scales.add(at),
                        a_offsets: job.activations.offsets.add(at),
                        sums: room.sums.as_mut_ptr().add((2 * i + j) * C_TILE),
                        first: groups.start == 0,
                    };
                    scale_tile(&task);
                }
            }
        }
    }
}

/// A tile's integer results of several groups, four tiles apart, and what scales them.
struct Scale {
    results: *const i32,
    groups: usize,
    scales: *const u16,
    mins: *const u16,
    a_scales: *const f32,
    a_offsets: *const f32,
    sums: *mut f32,
    first: bool,
}

/// The sums of `kernel::int_rows`, continued.
///
/// # Safety
/// AVX-512 is available, and the pointers reach as far as `groups` say.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn scale_tile(t: &Scale) {
    // SAFETY: all offsets are those of 16 rows of 16 values for each group.
    unsafe {
        let mut acc = [Vnni::splat(0.0); 16];
        if !t.first {
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = Vnni::load(t.sums.add(r * 16));
            }
        }
        for g in 0..t.groups {
            let scale = Vnni::load_f16(t.scales.add(g * PANEL));
            for (r, acc) in acc.iter_mut().enumerate() {
                let sum = _mm512_loadu_si512(t.results.add(g * 4 * C_TILE + r * 16).cast());
                let scaled = Vnni::mul(Vnni::to_f(sum), scale);
                *acc = Vnni::fma(scaled, Vnni::splat(*t.a_scales.add(g * 16 + r)), *acc);
            }
            if !t.mins.is_null() {
                let min = Vnni::load_f16(t.mins.add(g * PANEL));
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = Vnni::fma(min, Vnni::splat(*t.a_offsets.add(g * 16 + r)), *acc);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            Vnni::store(acc, t.sums.add(r * 16));
        }
    }
}

/// # Safety
/// AVX-512 is available; `sums` holds 16 values for each row, which nobody else uses in Y.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn write(out: &Out, rows: usize, sums: *const f32) {
    for row in 0..rows {
        // SAFETY: the caller's promise.
        unsafe { out.write::<Vnni>(row, Vnni::load(sums.add(row * 16))) }
    }
}
