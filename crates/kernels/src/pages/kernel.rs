//! The innermost loops of attention over pages: scores of a block of query rows against one key
//! head, and the sums of its values, both read once from memory.

use super::PAGE;
use super::format::Stored;
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Lanes, Plain};
use super::pool::KvPool;
#[cfg(target_arch = "x86_64")]
use crate::multiversion::{Width, width};
use std::array::from_fn;
use std::ops::Range;

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
    /// The queries, `[lines, head_dim]`.
    pub(super) q: &'a [f32],
    /// Scores of a line, at least `PAGE` a page.
    pub(super) stride: usize,
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

/// Evaluates `$call` for consecutive lines, `$rows` of them, a constant, from `$line` at a time.
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

/// Registers of stored numbers in a cache line.
const fn per_line<T>() -> usize {
    64 / (PAGE * size_of::<T>())
}

/// Compiles a pass for every instruction set and runs the widest that the machine has.
macro_rules! pass {
    ($(#[$meta:meta])* $name:ident, $body:ident, ($($arg:ident: $ty:ty),*)) => {
        $(#[$meta])*
        pub(super) fn $name<T: Stored>(pass: &Pass<'_, T>, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn wide<T: Stored>(pass: &Pass<'_, T>, $($arg: $ty),*) {
                    // SAFETY: compiled for the instructions of `Avx512`.
                    unsafe { $body::<T, Avx512>(pass, $($arg),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                fn middle<T: Stored>(pass: &Pass<'_, T>, $($arg: $ty),*) {
                    // SAFETY: compiled for the instructions of `Avx2`.
                    unsafe { $body::<T, Avx2>(pass, $($arg),*) }
                }
                match width() {
                    // SAFETY: `width` found every feature that `wide` is compiled for.
                    Width::Wide => return unsafe { wide(pass, $($arg),*) },
                    // SAFETY: `width` found every feature that `middle` is compiled for.
                    Width::Middle => return unsafe { middle(pass, $($arg),*) },
                    Width::Base => {}
                }
            }
            // SAFETY: plain Rust runs everywhere.
            unsafe { $body::<T, Plain>(pass, $($arg),*) }
        }
    };
}

pass! {
    /// `scores[line, j] = q[line] . key[j]`, a chain of multiply-adds over `head_dim`, for every
    /// page that any line of a tile sees.
    key_pass, key_body, (scores: &mut [f32])
}

pass! {
    /// `sums[line] += sum_j p[line, j] value[j]`, a chain of multiply-adds over the tokens that the
    /// line sees.
    value_pass, value_body, (probabilities: &[f32], sums: &mut [f32])
}

/// # Safety
/// The processor has the instructions of `L`, as for every function below.
#[inline(always)]
unsafe fn key_body<T: Stored, L: Lanes>(pass: &Pass<'_, T>, scores: &mut [f32]) {
    let mut first = 0;
    while first < pass.pages.len() {
        let pages = if L::MANY && first + GROUP <= pass.pages.len() { GROUP } else { 1 };
        over_lines!(pass.lines(), |line, R| {
            if pass.seen::<R>(line).1 > first * PAGE {
                // SAFETY: the caller has the instructions.
                unsafe {
                    if L::MANY && pages == GROUP {
                        key_tile::<T, L, R, GROUP>(pass, line, first, scores);
                    } else {
                        key_tile::<T, L, R, 1>(pass, line, first, scores);
                    }
                }
            }
        });
        first += pages;
    }
}

/// # Safety
/// As [`key_body`].
#[inline(always)]
unsafe fn key_tile<T: Stored, L: Lanes, const R: usize, const P: usize>(
    pass: &Pass<'_, T>,
    line: usize,
    first: usize,
    scores: &mut [f32],
) {
    let hd = pass.pool.head_dim();
    let keys = |at: usize| pass.pool.keys::<T>(pass.page(at), pass.head);
    let lines: [&[[T; PAGE]]; P] = from_fn(|p| &keys(first + p).lines[..hd]);
    let next: [&[[T; PAGE]]; P] = from_fn(|p| &keys(first + P + p).lines[..hd]);
    let q: [&[f32]; R] = from_fn(|r| &pass.q[(line + r) * hd..][..hd]);
    // SAFETY: the caller has the instructions; the slices have `hd` elements each.
    unsafe {
        let scales: [L; P] = from_fn(|p| L::load(keys(first + p).scales));
        let mut acc = [[L::splat(0.0); P]; R];
        for d in 0..hd {
            let mut x = scales;
            for p in 0..P {
                x[p] = T::lanes(lines[p].get_unchecked(d), scales[p]);
                if d.is_multiple_of(per_line::<T>()) {
                    L::prefetch(next[p].get_unchecked(d));
                }
            }
            for r in 0..R {
                let y = L::splat(*q[r].get_unchecked(d));
                for p in 0..P {
                    acc[r][p] = y.fma(x[p], acc[r][p]);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            let out = &mut scores[(line + r) * pass.stride + first * PAGE..][..P * PAGE];
            for (acc, out) in acc.iter().zip(out.as_chunks_mut().0) {
                acc.store(out);
            }
        }
    }
}

/// # Safety
/// As [`key_body`].
#[inline(always)]
unsafe fn value_body<T: Stored, L: Lanes>(
    pass: &Pass<'_, T>,
    probabilities: &[f32],
    sums: &mut [f32],
) {
    let mut first = 0;
    while first < pass.pages.len() {
        over_lines!(pass.lines(), |line, R| {
            let (start, end) = (first * PAGE, (first + GROUP) * PAGE);
            let (least, most) = pass.seen::<R>(line);
            let common = least.clamp(start, end);
            // SAFETY: the caller has the instructions.
            unsafe {
                value_rows::<T, L, R>(pass, line, start..common, probabilities, sums);
                for one in if most > common { line..line + R } else { 0..0 } {
                    let rest = common..pass.count(one).clamp(common, end);
                    value_rows::<T, L, 1>(pass, one, rest, probabilities, sums);
                }
            }
        });
        first += GROUP;
    }
}

/// All columns of `R` lines over a range of tokens.
///
/// # Safety
/// As [`key_body`].
#[inline(always)]
unsafe fn value_rows<T: Stored, L: Lanes, const R: usize>(
    pass: &Pass<'_, T>,
    line: usize,
    tokens: Range<usize>,
    probabilities: &[f32],
    sums: &mut [f32],
) {
    if tokens.is_empty() {
        return;
    }
    let vd = pass.pool.value_dim();
    let mut column = 0;
    while column + PAGE <= vd {
        let left = (vd - column) / PAGE;
        // SAFETY: the caller has the instructions.
        let done = unsafe {
            if L::MANY && left >= 4 {
                value_tile::<T, L, R, 4>(pass, line, tokens.clone(), column, probabilities, sums)
            } else if L::MANY && left >= 2 {
                value_tile::<T, L, R, 2>(pass, line, tokens.clone(), column, probabilities, sums)
            } else {
                value_tile::<T, L, R, 1>(pass, line, tokens.clone(), column, probabilities, sums)
            }
        };
        column += done * PAGE;
    }
    for line in if column < vd { line..line + R } else { 0..0 } {
        last_columns(pass, line, tokens.clone(), column, probabilities, sums);
    }
}

/// The columns of one line that fill no register.
fn last_columns<T: Stored>(
    pass: &Pass<'_, T>,
    line: usize,
    tokens: Range<usize>,
    column: usize,
    probabilities: &[f32],
    sums: &mut [f32],
) {
    let vd = pass.pool.value_dim();
    let sums = &mut sums[line * vd + column..(line + 1) * vd];
    for token in tokens {
        let values = pass.pool.values::<T>(pass.page(token / PAGE), pass.head);
        let (row, scale) = (
            &values.rows[token % PAGE * vd + column..][..vd - column],
            values.scales[token % PAGE],
        );
        let p = probabilities[line * pass.stride + token];
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum = p.mul_add(value.widen(scale), *sum);
        }
    }
}

/// `N * 16` columns of `R` lines over a range of tokens; returns `N`.
///
/// # Safety
/// As [`key_body`].
#[inline(always)]
unsafe fn value_tile<T: Stored, L: Lanes, const R: usize, const N: usize>(
    pass: &Pass<'_, T>,
    line: usize,
    tokens: Range<usize>,
    column: usize,
    probabilities: &[f32],
    sums: &mut [f32],
) -> usize {
    let vd = pass.pool.value_dim();
    // SAFETY: the caller has the instructions; `row` and `next` have `N` elements, each of `p` one
    // for each of the `slots` rows.
    unsafe {
        let mut acc = [[L::splat(0.0); N]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            let from = sums[(line + r) * vd + column..][..N * PAGE].as_chunks().0;
            for (acc, from) in acc.iter_mut().zip(from) {
                *acc = L::load(from);
            }
        }
        let mut token = tokens.start;
        while token < tokens.end {
            let (page, slot) = (token / PAGE, token % PAGE);
            let slots = (PAGE - slot).min(tokens.end - token);
            let values = pass.pool.values::<T>(pass.page(page), pass.head);
            let next = pass.pool.values::<T>(pass.page(page + GROUP), pass.head);
            let p: [&[f32]; R] =
                from_fn(|r| &probabilities[(line + r) * pass.stride + token..][..slots]);
            let part = slot * vd..(slot + slots) * vd;
            let rows =
                values.rows[part.clone()].chunks_exact(vd).zip(next.rows[part].chunks_exact(vd));
            for (j, ((row, next), &scale)) in rows.zip(&values.scales[slot..]).enumerate() {
                let row = row[column..column + N * PAGE].as_chunks::<PAGE>().0;
                let next = next[column..column + N * PAGE].as_chunks::<PAGE>().0;
                let mut x = [L::splat(scale); N];
                for (n, x) in x.iter_mut().enumerate() {
                    *x = T::lanes(row.get_unchecked(n), *x);
                    if n.is_multiple_of(per_line::<T>()) {
                        L::prefetch(next.get_unchecked(n));
                    }
                }
                for r in 0..R {
                    let y = L::splat(*p[r].get_unchecked(j));
                    for n in 0..N {
                        acc[r][n] = y.fma(x[n], acc[r][n]);
                    }
                }
            }
            token += slots;
        }
        for (r, acc) in acc.iter().enumerate() {
            let to = sums[(line + r) * vd + column..][..N * PAGE].as_chunks_mut().0;
            for (acc, to) in acc.iter().zip(to) {
                acc.store(to);
            }
        }
    }
    N
}
