//! Attention over pages against attention over the same keys in one piece, bit for bit, and the
//! store against what was written.

use super::*;
use crate::attend::{Heads, Spans, attend_forward};
use crate::testing::{bits, in_pools, values};

const SIZES: [Heads; 9] = [
    Heads { scale: Some(0.2), cap: Some(1.5), ..Heads::new(4, 2, 24) },
    Heads::new(9, 3, 64),
    Heads::new(6, 3, 32),
    Heads::new(5, 1, 40),
    Heads::new(2, 2, 100),
    Heads::new(4, 1, 6),
    Heads::new(7, 1, 128),
    Heads { value_dim: 37, ..Heads::new(6, 3, 24) },
    Heads { value_dim: 70, ..Heads::new(4, 4, 10) },
];

/// Sequences whose keys lie in scattered pages of a pool, and rows that look at them.
struct World {
    heads: Heads,
    pool: KvPool,
    /// Keys and values of each sequence in one piece, as given to the pool.
    kv: Vec<Vec<f32>>,
    pages: Vec<u32>,
    /// Where each sequence's pages begin in `pages`.
    lists: Vec<u32>,
}

impl World {
    fn new(format: KvFormat, heads: Heads, lengths: &[usize]) -> Self {
        let needs: Vec<usize> = lengths.iter().map(|length| length.div_ceil(PAGE)).collect();
        let total: usize = needs.iter().sum::<usize>() + 3;
        // A stride prime to the number of pages visits each once, far from its neighbours.
        let step = (total / 2..)
            .find(|step| (2..=total).all(|p| !step.is_multiple_of(p) || !total.is_multiple_of(p)))
            .unwrap_or(1);
        let mut pool = KvPool::new(format, heads, total);
        // What was left in a page must not be seen.
        let all: Vec<u32> = (0..(total * PAGE) as u32).collect();
        pool.write(&all, &vec![f32::NAN; all.len() * heads.kv_width()]);
        let (mut pages, mut lists) = (vec![], vec![]);
        let (mut kv, mut next) = (vec![], 1);
        for (i, (&length, &need)) in lengths.iter().zip(&needs).enumerate() {
            lists.push(pages.len() as u32);
            let own: Vec<u32> = (0..need).map(|at| ((next + at) * step % total) as u32).collect();
            next += need;
            let places: Vec<u32> =
                (0..length).map(|j| own[j / PAGE] * PAGE as u32 + (j % PAGE) as u32).collect();
            let rows = values(10 + i as u64, length * heads.kv_width());
            pool.write(&places, &rows);
            pages.extend(own);
            kv.push(rows);
        }
        Self { heads, pool, kv, pages, lists }
    }

    /// Attention of rows `(sequence, count)`.
    fn attend(&self, q: &[f32], rows: &[(usize, u32)]) -> Vec<f32> {
        self.attend_within(u32::MAX, q, rows)
    }

    /// The same where a row sees the last `window` of its tokens.
    fn attend_within(&self, window: u32, q: &[f32], rows: &[(usize, u32)]) -> Vec<f32> {
        let first: Vec<u32> = rows.iter().map(|row| self.lists[row.0]).collect();
        let count: Vec<u32> = rows.iter().map(|row| row.1).collect();
        let mut out = vec![f32::NAN; rows.len() * self.heads.out_width()];
        let skip: Vec<u32> = count.iter().map(|count| count.saturating_sub(window)).collect();
        let skip = if window == u32::MAX { &[] } else { skip.as_slice() };
        let tables = Tables { pages: &self.pages, first: &first, count: &count, skip };
        attend_pages(q, &self.pool, tables, self.heads, &mut out);
        out
    }

    /// The same from keys in one piece.
    fn expected(&self, q: &[f32], rows: &[(usize, u32)], kv: &[Vec<f32>]) -> Vec<f32> {
        self.expected_within(u32::MAX, q, rows, kv)
    }

    fn expected_within(
        &self,
        window: u32,
        q: &[f32],
        rows: &[(usize, u32)],
        kv: &[Vec<f32>],
    ) -> Vec<f32> {
        let (mut all, mut starts) = (vec![], vec![]);
        for kv in kv {
            starts.push((all.len() / self.heads.kv_width()) as u32);
            all.extend_from_slice(kv);
        }
        let mut spans = Spans::default();
        for row in rows {
            spans.start.push(starts[row.0] + row.1.saturating_sub(window));
            spans.end.push(starts[row.0] + row.1);
        }
        let (mut out, mut lse) = (
            vec![f32::NAN; rows.len() * self.heads.out_width()],
            vec![0.0; rows.len() * self.heads.heads],
        );
        attend_forward(q, &all, &spans, self.heads, &mut out, &mut lse);
        out
    }

    /// What the pool says that it stores of sequence `i`.
    fn stored(&self, i: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.kv[i].len()];
        for (j, out) in out.chunks_exact_mut(self.heads.kv_width()).enumerate() {
            let page = self.pages[self.lists[i] as usize + j / PAGE];
            self.pool.read(page * PAGE as u32 + (j % PAGE) as u32, out);
        }
        out
    }
}

fn queries(rows: usize, heads: Heads) -> Vec<f32> {
    values(1, rows * heads.q_width()).iter().map(|x| 3.0 * x).collect()
}

/// Decoding rows, a blind row, two chunks, and rows of one sequence with counts that fall.
fn ragged_rows() -> (Vec<usize>, Vec<(usize, u32)>) {
    let lengths = vec![1, 16, 17, 130, 300, 75];
    let mut rows = vec![(0, 1), (1, 16), (2, 17), (3, 130), (0, 0)];
    rows.extend((120..300).map(|i| (4, i + 1)));
    rows.extend((0..75).map(|i| (5, i + 1)));
    rows.extend([(4, 200), (4, 3), (4, 64), (4, 0), (3, 65), (2, 16), (1, 1)]);
    (lengths, rows)
}

#[test]
fn f32_has_the_bits_of_keys_in_one_piece() {
    let (lengths, rows) = ragged_rows();
    for heads in SIZES {
        let world = World::new(KvFormat::F32, heads, &lengths);
        let q = queries(rows.len(), heads);
        assert_eq!(
            bits(&world.attend(&q, &rows)),
            bits(&world.expected(&q, &rows, &world.kv)),
            "{heads:?}"
        );
    }
}

#[test]
fn windows_have_the_bits_of_shorter_spans() {
    let (lengths, rows) = ragged_rows();
    for heads in SIZES {
        let world = World::new(KvFormat::F32, heads, &lengths);
        let q = queries(rows.len(), heads);
        for window in [1, 5, 16, 40, 250] {
            let expected = world.expected_within(window, &q, &rows, &world.kv);
            assert_eq!(
                bits(&world.attend_within(window, &q, &rows)),
                bits(&expected),
                "{heads:?} {window}"
            );
        }
        let alone = world.attend_within(40, &q[..heads.q_width()], &[(4, 300)]);
        assert_ne!(bits(&alone), bits(&world.attend(&q[..heads.q_width()], &[(4, 300)])));
    }
}

#[test]
fn other_formats_have_the_bits_of_what_they_store() {
    let (lengths, rows) = ragged_rows();
    for format in [KvFormat::Bf16, KvFormat::Int8] {
        for heads in SIZES {
            let world = World::new(format, heads, &lengths);
            let stored: Vec<Vec<f32>> = (0..lengths.len()).map(|i| world.stored(i)).collect();
            let q = queries(rows.len(), heads);
            assert_eq!(
                bits(&world.attend(&q, &rows)),
                bits(&world.expected(&q, &rows, &stored)),
                "{format} {heads:?}"
            );
        }
    }
}

#[test]
fn chunks_equal_rows_one_by_one() {
    let heads = SIZES[0];
    for format in KvFormat::ALL {
        let world = World::new(format, heads, &[150, 40]);
        let rows: Vec<(usize, u32)> =
            (0..150).map(|i| (0, i + 1)).chain((0..40).map(|i| (1, i + 1))).collect();
        let q = queries(rows.len(), heads);
        let whole = world.attend(&q, &rows);
        for (i, row) in rows.iter().enumerate() {
            let at = i * heads.q_width()..(i + 1) * heads.q_width();
            assert_eq!(
                bits(&world.attend(&q[at.clone()], &[*row])),
                bits(&whole[at]),
                "{format} row {i}"
            );
        }
        let cut = 37 * heads.q_width();
        let parts =
            [world.attend(&q[..cut], &rows[..37]), world.attend(&q[cut..], &rows[37..])].concat();
        assert_eq!(bits(&parts), bits(&whole));
    }
}

#[test]
fn thread_counts_do_not_change_a_bit() {
    let (lengths, rows) = ragged_rows();
    let heads = SIZES[0];
    let q = queries(rows.len(), heads);
    for format in KvFormat::ALL {
        let runs = in_pools(1..=3, || {
            let world = World::new(format, heads, &lengths);
            (
                bits(&world.attend(&q, &rows)),
                (0..lengths.len()).map(|i| bits(&world.stored(i))).collect::<Vec<_>>(),
            )
        });
        assert!(runs[0] == runs[1] && runs[1] == runs[2], "{format}");
    }
}

/// The heads of rows of keys and values, one by one.
fn of_heads(heads: Heads, rows: &[f32]) -> impl Iterator<Item = &[f32]> {
    rows.chunks(heads.kv_width()).flat_map(move |row| {
        let (keys, values) = row.split_at(heads.kv_heads * heads.head_dim);
        keys.chunks(heads.head_dim).chain(values.chunks(heads.value_dim))
    })
}

#[test]
fn formats_store_what_they_promise() {
    for heads in SIZES {
        for format in KvFormat::ALL {
            let world = World::new(format, heads, &[40]);
            let stored = world.stored(0);
            for (found, given) in of_heads(heads, &stored).zip(of_heads(heads, &world.kv[0])) {
                let most = given.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                for (found, given) in found.iter().zip(given) {
                    let bound = match format {
                        KvFormat::F32 => 0.0,
                        KvFormat::Bf16 => given.abs() / 256.0,
                        KvFormat::Int8 => most / 127.0 * 0.500_001,
                    };
                    assert!((found - given).abs() <= bound, "{format}: {found} for {given}");
                }
            }
        }
    }
}

#[test]
fn copied_tokens_are_the_same_and_nothing_else_moves() {
    let heads = SIZES[1];
    for format in KvFormat::ALL {
        let mut pool = KvPool::new(format, heads, 5);
        let width = heads.kv_width();
        let places: Vec<u32> = (0..80).collect();
        let kv = values(3, 80 * width);
        pool.write(&places, &kv);
        let read = |pool: &KvPool| -> Vec<Vec<u32>> {
            let mut out = vec![0.0; width];
            let one = |place: &u32| {
                pool.read(*place, &mut out);
                bits(&out)
            };
            places.iter().map(one).collect()
        };
        let mut expected = read(&pool);
        // The last copy reads what the first wrote.
        let (from, to) = ([3, 17, 70], [70, 1, 33]);
        pool.copy(&from, &to);
        for (from, to) in from.iter().zip(to) {
            expected[to as usize] = expected[*from as usize].clone();
        }
        assert_eq!(read(&pool), expected, "{format}");
        // Two rows for one place: the later stays, and no neighbour changes.
        pool.write(&[5, 5], &values(4, 2 * width));
        let mut alone = KvPool::new(format, heads, 1);
        alone.write(&[5], &values(4, 2 * width)[width..]);
        let mut row = vec![0.0; width];
        alone.read(5, &mut row);
        expected[5] = bits(&row);
        assert_eq!(read(&pool), expected, "{format}");
    }
}

#[test]
fn bytes_are_what_is_stored() {
    let heads = Heads::new(3, 3, 64);
    let bytes = |format| (KvPool::token_bytes(format, heads), KvPool::page_bytes(format, heads));
    assert_eq!(bytes(KvFormat::F32), (1536, 24576));
    assert_eq!(bytes(KvFormat::Bf16), (768, 12288));
    assert_eq!(bytes(KvFormat::Int8), (408, 6528));
    // 3 (64 + 10) numbers, and 6 scales.
    let narrow = Heads { value_dim: 10, ..heads };
    let of_narrow = KvFormat::ALL.map(|format| KvPool::token_bytes(format, narrow));
    assert_eq!(of_narrow, [888, 444, 246]);
    let pool = KvPool::new(KvFormat::Int8, heads, 1 << 20);
    assert_eq!(
        (pool.format(), pool.kv_heads(), pool.head_dim(), pool.pages()),
        (KvFormat::Int8, 3, 64, 1 << 20)
    );
}

#[test]
fn nothing_to_do_is_fine() {
    let heads = SIZES[0];
    let world = World::new(KvFormat::F32, heads, &[4]);
    assert!(world.attend(&[], &[]).is_empty());
    assert!(world.attend(&queries(3, heads), &[(0, 0); 3]).iter().all(|x| x.to_bits() == 0));
    let mut empty = KvPool::new(KvFormat::Bf16, Heads::new(1, 1, 4), 0);
    empty.write(&[], &[]);
    empty.copy(&[], &[]);
}

#[test]
#[should_panic(expected = "page 9 of row 0, but there are 4 pages")]
fn a_page_out_of_range_is_named() {
    let mut world = World::new(KvFormat::F32, SIZES[0], &[4]);
    world.pages[0] = 9;
    world.attend(&queries(1, SIZES[0]), &[(0, 1)]);
}

#[test]
#[should_panic(expected = "see 17 tokens, but 1 pages follow 0")]
fn a_short_list_is_named() {
    let world = World::new(KvFormat::F32, SIZES[0], &[4]);
    world.attend(&queries(1, SIZES[0]), &[(0, 17)]);
}

#[test]
#[should_panic(expected = "place 64 is in page 4, but there are 4 pages")]
fn a_place_out_of_range_is_named() {
    KvPool::new(KvFormat::F32, Heads::new(1, 1, 2), 4).write(&[64], &[0.0; 4]);
}
