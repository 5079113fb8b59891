//! The products on the matrix-instruction path: pairs of panels against pairs of tiles of rows.

use super::activations::ActivationForm;
use super::amx::{self, C_TILE, Tiles};
use super::codes::{Codes, LINE, PANEL};
use super::format::Groups;
use super::kernel::{A_TILE, Out};
use super::lanes::{Lanes, Vnni};
use super::product::Job;
use crate::scratch::Scratch;
use std::arch::x86_64::*;
use std::ops::Range;

/// Groups whose integer results are kept at once, a third of the first-level cache: products in
/// tiles and in vectors do not overlap, and going from one to the other costs.
const CHUNK: usize = 4;
/// Rows that are scaled at once, whose sums in two panels fit the registers.
const PART: usize = 8;
/// Most pairs of panels that one pair of tiles of activations meets before the next does: Y is
/// written in strips of this width, and a chunk of activations is read from the second-level cache
/// once for all of them.
const PAIRS: usize = 4;

/// Room for integer results and sums on the stack.
#[repr(C, align(64))]
struct Room {
    results: [i32; CHUNK * 4 * C_TILE],
    sums: [[f32; 4 * C_TILE]; PAIRS],
}

/// # Safety
/// As `Job::panels`, and the matrix instructions are available.
pub(super) unsafe fn panels(job: &Job<'_>, panels: Range<usize>) {
    let layout = &job.w.layout;
    let quads = if layout.group == 32 { 8 } else { 16 };
    // SAFETY: the instructions are available, and no other `Tiles` lives in this function.
    let _tiles = unsafe { Tiles::new(job.rows().min(16), quads) };
    let codes = layout.format.0.codes;
    let packed = matches!(codes, Codes::Nibbles | Codes::Triples | Codes::Pairs);
    let bytes = if packed { layout.depth * PANEL } else { 0 };
    let len = 2 * PAIRS * bytes / size_of::<f32>() + LINE / size_of::<f32>();
    let mut scratch = Scratch::take(len);
    let [wide] = scratch.split([len]);
    let skip = wide.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
    let wide = wide[skip..].as_mut_ptr().cast::<u8>();
    let mut room = Room { results: [0; CHUNK * 4 * C_TILE], sums: [[0.0; 4 * C_TILE]; PAIRS] };
    // Activations of one block stay in the first-level cache; then reading the weights in order is
    // worth more.
    let width = if job.rows() > 32 { 2 * PAIRS } else { 2 };
    for first in panels.clone().step_by(width) {
        let strip = first..(first + width).min(panels.end);
        if bytes > 0 {
            let bias = layout.format.0.zero as i8;
            for (i, panel) in strip.clone().enumerate() {
                let from = (codes, job.codes(panel));
                // SAFETY: the room holds the panels of a strip; this one has `depth / 32` segments.
                unsafe { widen(from, layout.depth / 32, bias, wide.add(i * bytes)) };
            }
        }
        let lines = |panel: usize| match bytes {
            0 => job.codes(panel),
            _ => wide.wrapping_add((panel - strip.start) * bytes),
        };
        let pairs: [Pair<'_>; PAIRS] = std::array::from_fn(|i| {
            let panels = [0, 1].map(|j| (strip.start + 2 * i + j).min(strip.end - 1));
            Pair {
                job,
                width,
                panels,
                b: panels.map(lines),
                scales: panels.map(|panel| job.scales(panel)),
            }
        });
        for tile in (0..job.rows().div_ceil(16)).step_by(2) {
            // SAFETY: the tiles and panels are those of the job, which this thread alone works on.
            unsafe { block(&pairs[..strip.len().div_ceil(2)], tile, &mut room) }
        }
    }
}

/// Spreads codes of 4, 3 or 2 bits, `segments` times 32 values of each lane, over lines of bytes,
/// `bias` less.
///
/// # Safety
/// AVX-512 with VNNI is available; `from` and `to` reach that far.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn widen((codes, from): (Codes, *const u8), segments: usize, bias: i8, to: *mut u8) {
    for i in 0..segments {
        let (line, to) =
            (from.wrapping_add(i * codes.bits() * LINE), to.wrapping_add(i * 8 * LINE));
        // SAFETY: segment `i` is as many lines as a code has bits, and 8 of bytes, all of which are
        // inside by the caller's promise.
        unsafe {
            match codes {
                Codes::Triples => put_lines(Vnni::triples(line), bias, to),
                Codes::Pairs => {
                    put_lines(Vnni::pairs_of_bits(line), bias, to);
                    put_lines(Vnni::pairs_of_bits(line.add(LINE)), bias, to.add(4 * LINE));
                }
                _ => {
                    for k in 0..4 {
                        let w = Vnni::nibbles(line.add(k * LINE));
                        put_lines(w, bias, to.add(2 * k * LINE));
                    }
                }
            }
        }
    }
}

/// # Safety
/// AVX-512 is available; `to` has room for the lines.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn put_lines<const Q: usize>(lines: [__m512i; Q], bias: i8, to: *mut u8) {
    let bias = _mm512_set1_epi8(bias);
    for (i, line) in lines.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.add(i * LINE).cast(), _mm512_sub_epi8(line, bias)) };
    }
}

/// Two panels, their weights as the tiles read them; the second may be the first again.
struct Pair<'a> {
    job: &'a Job<'a>,
    /// Panels between this one and the one that the same pair of a strip is next.
    width: usize,
    panels: [usize; 2],
    b: [*const u8; 2],
    /// Scales and minima, or null.
    scales: [(*const u16, *const u16); 2],
}

/// Rows of tiles `tile` and `tile + 1` in some pairs of panels.
///
/// # Safety
/// As [`panels`]; the tiles are configured.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn block(pairs: &[Pair<'_>], tile: usize, room: &mut Room) {
    let Some(Pair { job, .. }) = pairs.first() else { return };
    let rows = (job.rows() - tile * 16).min(32);
    let size = job.w.format().0.groups;
    let grouped = matches!(size, Groups::Of32 | Groups::Of64);
    let groups = if grouped { job.w.layout.groups } else { 0 };
    for first in (0..groups).step_by(CHUNK) {
        for (pair, sums) in pairs.iter().zip(&mut room.sums) {
            // SAFETY: the groups exist, the results have room for a chunk.
            unsafe {
                pair.groups(tile, rows, first..(first + CHUNK).min(groups), &mut room.results, sums)
            };
        }
    }
    for (i, pair) in pairs.iter().enumerate() {
        let sums = &mut room.sums[if grouped { i } else { 0 }];
        // SAFETY: the sums hold four tiles, the results more.
        unsafe {
            match size {
                Groups::None => amx::bf16(&pair.operands(tile, rows), sums.as_mut_ptr()),
                Groups::Row => {
                    amx::int8(&pair.operands(tile, rows), room.results.as_mut_ptr());
                    for part in 0..rows.div_ceil(PART) {
                        pair.scale(tile, part, 0..1, &room.results, sums);
                    }
                }
                Groups::Of32 | Groups::Of64 => {}
            }
            pair.write(tile, rows, sums);
        }
    }
}

impl Pair<'_> {
    fn operands(&self, tile: usize, rows: usize) -> amx::Operands {
        let job = self.job;
        let second = if rows > 16 { tile + 1 } else { tile };
        let first = job.out(tile * 16, self.panels[0]);
        let steps = match job.activations.form {
            ActivationForm::Bytes { .. } => job.activations.depth / 64,
            _ => job.activations.depth / 32,
        };
        amx::Operands {
            a: [job.activations.tile(tile), job.activations.tile(second)],
            is_tall: rows > 16,
            b: self.b,
            steps,
            y: first.y,
            y_stride: first.stride * size_of::<f32>(),
        }
    }

    /// Integer results of a chunk of groups, which are then scaled.
    ///
    /// # Safety
    /// As [`block`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn groups(
        &self,
        tile: usize,
        rows: usize,
        groups: Range<usize>,
        results: &mut [i32; CHUNK * 4 * C_TILE],
        sums: &mut [f32; 4 * C_TILE],
    ) {
        let whole = self.operands(tile, rows);
        for (i, group) in groups.clone().enumerate() {
            let size = self.job.w.layout.group;
            let k = group * size;
            let at = k / 64 * A_TILE + k % 64;
            // SAFETY: the group lies inside the operands; the results hold four tiles for each of a
            // chunk.
            unsafe {
                let a = [whole.a[0].add(at), whole.a[1].add(at)];
                let b = [whole.b[0].add(k * PANEL), whole.b[1].add(k * PANEL)];
                amx::group(a, whole.is_tall, b, results.as_mut_ptr().add(i * 4 * C_TILE));
            }
            // The first rows bring the weights from memory, and the processor's own prefetching
            // does not follow the jumps from panel to panel.
            if tile == 0 {
                let bytes = self.job.w.layout.depth * PANEL;
                let later = (k + if self.width == 2 { 2 } else { 1 } * CHUNK * size) * PANEL;
                let later = if later < bytes { later } else { later + (self.width - 1) * bytes };
                for line in 0..2 * size / 4 {
                    Vnni::prefetch(whole.b[line % 2].wrapping_add(later + line / 2 * LINE));
                }
            }
            for row in 4 * group..(4 * group + 4).min(32) {
                prefetch(whole.y.wrapping_byte_add(row * whole.y_stride));
            }
        }
        for part in 0..rows.div_ceil(PART) {
            // SAFETY: the results of the chunk are complete.
            unsafe { self.scale(tile, part, groups.clone(), results, sums) };
        }
    }

    /// Adds the scaled results of groups `groups` to the sums of part `part` of the rows, or starts
    /// the sums with them.
    ///
    /// # Safety
    /// As [`block`]; the results hold these groups.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn scale(
        &self,
        tile: usize,
        part: usize,
        groups: Range<usize>,
        results: &[i32; CHUNK * 4 * C_TILE],
        sums: &mut [f32; 4 * C_TILE],
    ) {
        let activations = &self.job.activations;
        let (i, row) = (part * PART / 16, part * PART % 16);
        let at = ((tile + i) * activations.groups + groups.start) * 16 + row;
        let skip = groups.start * PANEL;
        let [(scales_0, mins_0), (scales_1, mins_1)] = self.scales;
        // SAFETY: the pointers are those of the groups; the results of the rows lie there.
        unsafe {
            scale_rows(&Scale {
                results: results.as_ptr().add(2 * i * C_TILE + row * 16),
                groups: groups.len(),
                scales: [scales_0.add(skip), scales_1.add(skip)],
                mins: (!mins_0.is_null()).then(|| [mins_0.add(skip), mins_1.add(skip)]),
                a_scales: activations.scales.add(at),
                a_offsets: activations.offsets.add(at),
                sums: sums.as_mut_ptr().add(2 * i * C_TILE + row * 16),
                first: groups.start == 0,
            });
        }
    }

    /// Writes the rows of the block to Y.
    ///
    /// # Safety
    /// As [`block`]; the sums are complete.
    unsafe fn write(&self, tile: usize, rows: usize, sums: &[f32; 4 * C_TILE]) {
        for row in (0..rows).step_by(16) {
            for j in 0..if self.panels[0] == self.panels[1] { 1 } else { 2 } {
                let out = self.job.out(tile * 16 + row, self.panels[j]);
                // SAFETY: the sums of 16 rows lie there; the rows and columns are this thread's.
                unsafe {
                    write(&out, (rows - row).min(16), sums.as_ptr().add((row / 8 + j) * C_TILE))
                };
            }
        }
    }
}

/// Asks for a row of Y in two panels, to be written soon.
fn prefetch(y: *mut f32) {
    for panel in 0..2 {
        // SAFETY: a prefetch reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(y.wrapping_add(panel * PANEL).cast()) };
    }
}

/// Integer results of some rows in two panels for several groups, four tiles apart, and what scales
/// them.
struct Scale {
    results: *const i32,
    groups: usize,
    scales: [*const u16; 2],
    mins: Option<[*const u16; 2]>,
    a_scales: *const f32,
    a_offsets: *const f32,
    sums: *mut f32,
    first: bool,
}

/// The sums of `kernel::int_rows`, continued.
///
/// # Safety
/// AVX-512 is available, and the pointers reach as far as `groups` say.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn scale_rows(t: &Scale) {
    // SAFETY: all offsets are those of `PART` rows of 16 values in two tiles for each group.
    unsafe {
        let mut acc = [[Vnni::splat(0.0); 2]; PART];
        if !t.first {
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = [Vnni::load(t.sums.add(r * 16)), Vnni::load(t.sums.add(C_TILE + r * 16))];
            }
        }
        for g in 0..t.groups {
            let scales = [
                Vnni::load_f16(t.scales[0].add(g * PANEL)),
                Vnni::load_f16(t.scales[1].add(g * PANEL)),
            ];
            for (r, acc) in acc.iter_mut().enumerate() {
                let a_scale = Vnni::splat(*t.a_scales.add(g * 16 + r));
                for j in 0..2 {
                    let sum =
                        _mm512_loadu_si512(t.results.add((4 * g + j) * C_TILE + r * 16).cast());
                    acc[j] = Vnni::fma(Vnni::mul(Vnni::to_f(sum), scales[j]), a_scale, acc[j]);
                }
            }
            if let Some(mins) = t.mins {
                let mins = [
                    Vnni::load_f16(mins[0].add(g * PANEL)),
                    Vnni::load_f16(mins[1].add(g * PANEL)),
                ];
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a_offset = Vnni::splat(*t.a_offsets.add(g * 16 + r));
                    for j in 0..2 {
                        acc[j] = Vnni::fma(mins[j], a_offset, acc[j]);
                    }
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            Vnni::store(acc[0], t.sums.add(r * 16));
            Vnni::store(acc[1], t.sums.add(C_TILE + r * 16));
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

#[cfg(test)]
mod tests {
    use super::super::path::ProductPath;
    use super::*;

    /// What the tiles read of codes of few bits, which needs no matrix instructions.
    #[test]
    fn packed_codes_are_spread_over_bytes() {
        if ProductPath::Avx512.kernels().is_none() {
            return;
        }
        let depth = 96;
        for codes in [Codes::Nibbles, Codes::Triples, Codes::Pairs] {
            let code = |lane: usize, k: usize| (7 * lane + 5 * k + k / 8) % (1 << codes.bits());
            let places = || (0..PANEL).flat_map(|lane| (0..depth).map(move |k| (lane, k)));
            let mut panel = vec![0; depth * PANEL * codes.bits() / 8];
            places().for_each(|(lane, k)| codes.put(&mut panel, lane, k, code(lane, k) as u16));
            for bias in [0i8, 8] {
                let mut wide = vec![0; depth * PANEL];
                // SAFETY: the path is proof of the instructions; both are as long as 96 codes of
                // each lane need.
                unsafe { widen((codes, panel.as_ptr()), depth / 32, bias, wide.as_mut_ptr()) };
                for (lane, k) in places() {
                    let found = Codes::Bytes.value(Codes::Bytes.get(&wide, lane, k));
                    let want = code(lane, k) as f32 - f32::from(bias);
                    assert_eq!(found, want, "{codes:?} {lane} {k}");
                }
            }
        }
    }
}
