//! Cuts the query rows into blocks that share a range of keys, and into groups whose ranges of keys
//! nobody else sees.

use super::Spans;
use std::ops::Range;

/// Most query rows in a block.
const MOST_ROWS: usize = 64;
/// Query rows that a block may hold whatever its range of keys.
const FREE_ROWS: usize = 16;
/// Scores, of all heads that share a key-value head, in a block of more than [`FREE_ROWS`] rows.
const MOST_SCORES: usize = 1 << 17;

/// Consecutive query rows and the smallest range that holds all their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
}

/// Query rows and the range of keys that they alone see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// In ascending order of rows.
    pub(super) blocks: Vec<Block>,
    pub(super) keys: Range<usize>,
}

fn hull(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.clone(),
        (_, true) => a.clone(),
        _ => a.start.min(b.start)..a.end.max(b.end),
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

/// Whether a block of `rows` rows over `keys` keys keeps its scores within the limits.
pub(crate) fn fits(rows: usize, keys: usize, shared: usize) -> bool {
    rows <= FREE_ROWS || (rows <= MOST_ROWS && rows * keys * shared <= MOST_SCORES)
}

/// All rows in blocks; a block never holds rows whose key ranges lie apart. `shared` heads share
/// each key head.
pub(super) fn blocks(spans: &Spans, shared: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for row in 0..spans.start.len() {
        let span = spans.range(row);
        if let Some(last) = blocks.last_mut() {
            let keys = hull(&last.keys, &span);
            let apart = !last.keys.is_empty() && !span.is_empty() && !overlap(&last.keys, &span);
            if !apart && fits(last.rows.len() + 1, keys.len(), shared) {
                *last = Block { rows: last.rows.start..row + 1, keys };
                continue;
            }
        }
        blocks.push(Block { rows: row..row + 1, keys: span });
    }
    blocks
}

/// The blocks gathered into groups with disjoint key ranges, in ascending order of keys; blocks
/// that see no key form one group at the front.
pub(super) fn groups(blocks: Vec<Block>) -> Vec<Group> {
    let (blind, mut seeing): (Vec<Block>, Vec<Block>) =
        blocks.into_iter().partition(|block| block.keys.is_empty());
    let mut groups: Vec<Group> = Vec::new();
    if !blind.is_empty() {
        groups.push(Group { blocks: blind, keys: 0..0 });
    }
    seeing.sort_by_key(|block| (block.keys.start, block.rows.start));
    for block in seeing {
        match groups.last_mut().filter(|group| overlap(&group.keys, &block.keys)) {
            Some(group) => {
                group.keys = hull(&group.keys, &block.keys);
                group.blocks.push(block);
            }
            None => groups.push(Group { keys: block.keys.clone(), blocks: vec![block] }),
        }
    }
    for group in &mut groups {
        group.blocks.sort_by_key(|block| block.rows.start);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(pairs: &[(u32, u32)]) -> Spans {
        Spans {
            start: pairs.iter().map(|p| p.0).collect(),
            end: pairs.iter().map(|p| p.1).collect(),
        }
    }

    #[test]
    fn rows_with_ranges_apart_are_in_different_blocks() {
        let found = blocks(&spans(&[(0, 1), (0, 2), (0, 0), (5, 6), (5, 7)]), 1);
        let expected = [Block { rows: 0..3, keys: 0..2 }, Block { rows: 3..5, keys: 5..7 }];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_block_is_bounded_in_rows_and_in_scores() {
        let short = blocks(&spans(&[(0, 10); 130]), 3);
        assert_eq!(short.iter().map(|b| b.rows.len()).collect::<Vec<_>>(), [64, 64, 2]);
        let long = blocks(&spans(&[(0, 20_000); 40]), 3);
        assert_eq!(long.iter().map(|b| b.rows.len()).collect::<Vec<_>>(), [16, 16, 8]);
    }

    #[test]
    fn overlapping_blocks_that_are_not_neighbours_share_a_group() {
        let block = |row: usize, keys: Range<usize>| Block { rows: row..row + 1, keys };
        let found = groups(vec![
            block(0, 10..20),
            block(1, 0..5),
            block(2, 15..25),
            block(3, 0..0),
            block(4, 5..7),
        ]);
        let expected = [
            Group { blocks: vec![block(3, 0..0)], keys: 0..0 },
            Group { blocks: vec![block(1, 0..5)], keys: 0..5 },
            Group { blocks: vec![block(4, 5..7)], keys: 5..7 },
            Group { blocks: vec![block(0, 10..20), block(2, 15..25)], keys: 10..25 },
        ];
        assert_eq!(found, expected);
    }
}
