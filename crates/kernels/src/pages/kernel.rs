//! The innermost loops of attention over pages: scores of a block of query rows against one key head, and
//! the sums of its values, both read once from memory.

use super::PAGE;
use super::format::Stored;
use super::pool::{Keys, KvPool, Values};
use crate::dispatch::multiversion;
use std::array::from_fn;

/// Pages whose keys or values are worked on together, few enough for a first-level cache.
const GROUP: usize = 4;

/// One key-value head of one block of query rows that read the same pages.
///
/// A query head of a row is a line: `shared` lines a row.
pub(super) struct Pass<'a, T> {
    pub(super) pool: &'a KvPool,
    pub(super) pages: &'a [u32],
    pub(super) head: usize,
    /// Tokens that each row sees.
    pub(super) counts: &'a [u32],
    pub(super) shared: usize,
    /// `[lines, head_dim]`.
    pub(super) q: &'a [f32],
    /// Scores of a line, at least `PAGE` a page.
    pub(super) stride: usize,
    /// Whether there are registers for many chains at once.
    pub(super) wide: bool,
    pub(super) kind: std::marker::PhantomData<T>,
}

impl<'a, T: Stored> Pass<'a, T> {
    fn lines(&self) -> usize {
        self.counts.len() * self.shared
    }

    /// Tokens that `line` sees.
    #[inline(always)]
    fn count(&self, line: usize) -> usize {
        self.counts[line / self.shared] as usize
    }

    /// Page `at` of the list, the last one for those past it.
    #[inline(always)]
    fn page(&self, at: usize) -> usize {
        self.pages[at.min(self.pages.len() - 1)] as usize
    }

    /// The fewest and the most tokens that `R` lines see.
    #[inline(always)]
    fn seen<const R: usize>(&self, line: usize) -> (usize, usize) {
        (line..line + R).fold((usize::MAX, 0), |(least, most), line| {
            let count = self.count(line);
            (least.min(count), most.max(count))
        })
    }
}

/// Calls `$tile::<.., R>` for consecutive lines, `R` of them at a time.
macro_rules! over_lines {
    ($lines:expr, |$line:ident, $rows:ident| $call:expr) => {
        let mut $line = 0;
        while $line < $lines {
            macro_rules! rows {
                ($r:literal) => {{
                    const $rows: usize = $r;
                    $call;
                    $r
                }};
            }
            $line += match $lines - $line {
                6.. => rows!(6),
                4.. => rows!(4),
                3 => rows!(3),
                2 => rows!(2),
                _ => rows!(1),
            };
        }
    };
}

#[inline(always)]
fn prefetch<T>(p: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and cannot fault.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(p).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

#[inline(always)]
fn widen<T: Stored>(numbers: &[T; PAGE], scales: &[f32; PAGE]) -> [f32; PAGE] {
    from_fn(|lane| numbers[lane].widen(scales[lane]))
}

/// `scores[line, j] = q[line] . key[j]`, a chain of multiply-adds over `head_dim`, for every page that any
/// line of a tile sees.
#[inline(always)]
fn key_pass<T: Stored>(pass: &Pass<'_, T>, scores: &mut [f32]) {
    let mut first = 0;
    while first < pass.pages.len() {
        let pages = if pass.wide && first + GROUP <= pass.pages.len() { GROUP } else { 1 };
        over_lines!(pass.lines(), |line, R| {
            if pass.seen::<R>(line).1 > first * PAGE {
                if pages == GROUP {
                    key_tile::<T, R, GROUP>(pass, line, first, scores);
                } else {
                    key_tile::<T, R, 1>(pass, line, first, scores);
                }
            }
        });
        first += pages;
    }
}

#[inline(always)]
fn key_tile<T: Stored, const R: usize, const P: usize>(
    pass: &Pass<'_, T>,
    line: usize,
    first: usize,
    scores: &mut [f32],
) {
    let hd = pass.pool.head_dim();
    let keys: [Keys<'_, T>; P] = from_fn(|p| pass.pool.keys(pass.page(first + p), pass.head));
    let next: [&[[T; PAGE]]; P] = from_fn(|p| &pass.pool.keys(pass.page(first + P + p), pass.head).lines[..hd]);
    let lines: [&[[T; PAGE]]; P] = from_fn(|p| &keys[p].lines[..hd]);
    let q: [&[f32]; R] = from_fn(|r| &pass.q[(line + r) * hd..][..hd]);
    let mut acc = [[[0.0f32; PAGE]; P]; R];
    for d in 0..hd {
        let x: [[f32; PAGE]; P] = from_fn(|p| widen(&lines[p][d], keys[p].scales));
        for next in next {
            prefetch(&next[d]);
        }
        for r in 0..R {
            let y = q[r][d];
            for p in 0..P {
                for lane in 0..PAGE {
                    acc[r][p][lane] = y.mul_add(x[p][lane], acc[r][p][lane]);
                }
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        let out = &mut scores[(line + r) * pass.stride + first * PAGE..][..P * PAGE];
        out.copy_from_slice(acc.as_flattened());
    }
}

/// `sums[line] += sum_j p[line, j] value[j]`, a chain of multiply-adds over the tokens that the line sees.
#[inline(always)]
fn value_pass<T: Stored>(pass: &Pass<'_, T>, probabilities: &[f32], sums: &mut [f32]) {
    let mut first = 0;
    while first < pass.pages.len() {
        over_lines!(pass.lines(), |line, R| {
            let (start, end) = (first * PAGE, (first + GROUP) * PAGE);
            let (least, most) = pass.seen::<R>(line);
            let common = least.clamp(start, end);
            value_rows::<T, R>(pass, line, start..common, probabilities, sums);
            if most > common {
                for one in line..line + R {
                    value_rows::<T, 1>(pass, one, common..pass.count(one).clamp(common, end), probabilities, sums);
                }
            }
        });
        first += GROUP;
    }
}

/// All columns of `R` lines over a range of tokens.
#[inline(always)]
fn value_rows<T: Stored, const R: usize>(
    pass: &Pass<'_, T>,
    line: usize,
    tokens: std::ops::Range<usize>,
    probabilities: &[f32],
    sums: &mut [f32],
) {
    if tokens.is_empty() {
        return;
    }
    let hd = pass.pool.head_dim();
    let mut column = 0;
    while column + PAGE <= hd {
        let left = (hd - column) / PAGE;
        column += PAGE
            * if pass.wide && left >= 4 {
                value_tile::<T, R, 4>(pass, line, tokens.clone(), column, probabilities, sums)
            } else if pass.wide && left >= 2 {
                value_tile::<T, R, 2>(pass, line, tokens.clone(), column, probabilities, sums)
            } else {
                value_tile::<T, R, 1>(pass, line, tokens.clone(), column, probabilities, sums)
            };
    }
    for line in if column < hd { line..line + R } else { 0..0 } {
        let sums = &mut sums[line * hd + column..(line + 1) * hd];
        for token in tokens.clone() {
            let values: Values<'_, T> = pass.pool.values(pass.page(token / PAGE), pass.head);
            let (row, scale) = (&values.rows[token % PAGE * hd + column..][..hd - column], values.scales[token % PAGE]);
            let p = probabilities[line * pass.stride + token];
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum = p.mul_add(value.widen(scale), *sum);
            }
        }
    }
}

/// `N * 16` columns of `R` lines over a range of tokens; returns `N`.
#[inline(always)]
fn value_tile<T: Stored, const R: usize, const N: usize>(
    pass: &Pass<'_, T>,
    line: usize,
    tokens: std::ops::Range<usize>,
    column: usize,
    probabilities: &[f32],
    sums: &mut [f32],
) -> usize {
    let hd = pass.pool.head_dim();
    let mut acc: [[[f32; PAGE]; N]; R] =
        from_fn(|r| from_fn(|n| *sums[(line + r) * hd + column + n * PAGE..].first_chunk().expect("whole columns")));
    let mut token = tokens.start;
    while token < tokens.end {
        let (page, slot) = (token / PAGE, token % PAGE);
        let slots = (PAGE - slot).min(tokens.end - token);
        let values: Values<'_, T> = pass.pool.values(pass.page(page), pass.head);
        let next: Values<'_, T> = pass.pool.values(pass.page(page + GROUP), pass.head);
        let p: [&[f32]; R] = from_fn(|r| &probabilities[(line + r) * pass.stride + token..][..slots]);
        let scales = &values.scales[slot..slot + slots];
        let rows = values.rows[slot * hd..].chunks_exact(hd).zip(next.rows[slot * hd..].chunks_exact(hd));
        for (j, (row, next)) in rows.enumerate().take(slots) {
            let row = row[column..column + N * PAGE].as_chunks::<PAGE>().0;
            for next in next[column..column + N * PAGE].as_chunks::<PAGE>().0 {
                prefetch(next);
            }
            let x: [[f32; PAGE]; N] = from_fn(|n| widen(&row[n], &[scales[j]; PAGE]));
            for r in 0..R {
                let y = p[r][j];
                for n in 0..N {
                    for lane in 0..PAGE {
                        acc[r][n][lane] = y.mul_add(x[n][lane], acc[r][n][lane]);
                    }
                }
            }
        }
        token += slots;
    }
    for (r, acc) in acc.iter().enumerate() {
        sums[(line + r) * hd + column..][..N * PAGE].copy_from_slice(acc.as_flattened());
    }
    N
}

macro_rules! passes {
    ($stored:ty, $keys:ident, $values:ident) => {
        multiversion! {
            pub(super) fn $keys(pass: &Pass<'_, $stored>, scores: &mut [f32]) {
                key_pass(pass, scores);
            }
        }
        multiversion! {
            pub(super) fn $values(pass: &Pass<'_, $stored>, probabilities: &[f32], sums: &mut [f32]) {
                value_pass(pass, probabilities, sums);
            }
        }
    };
}
passes!(f32, key_pass_f32, value_pass_f32);
passes!(u16, key_pass_bf16, value_pass_bf16);
passes!(i8, key_pass_int8, value_pass_int8);
