//! What changed between two traces of the same text.

use std::collections::BTreeMap;

use super::choices::Choices;
use super::{Controlled, Shuffles, shuffle};

/// Choices of the same rows by one router in two traces.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingChange {
    /// Rows that both traces have, with the same token.
    pub rows: usize,
    /// Rows that only one of them has, or that have another token there.
    pub unmatched: usize,
    /// Share of the rows that chose the same targets; beside the same with the rows of the second
    /// trace dealt out anew, which is what the loads alone bring about.
    pub same: Controlled,
    /// Mean share of a row's targets that both have, of all that either has (Jaccard).
    pub overlap: Controlled,
}

/// Mean over pairs of rows.
pub(super) fn mean(before: &[&[u32]], after: &[&[u32]], of: impl Fn(&[u32], &[u32]) -> f64) -> f64 {
    let sum: f64 = before.iter().zip(after).map(|(a, b)| of(a, b)).sum();
    sum / before.len().max(1) as f64
}

/// 1 for equal sets.
pub(super) fn identical(a: &[u32], b: &[u32]) -> f64 {
    f64::from(u8::from(a == b))
}

/// 1 for sets without a common member.
pub(super) fn disjoint(a: &[u32], b: &[u32]) -> f64 {
    f64::from(u8::from(!a.iter().any(|target| b.contains(target))))
}

/// Common members as a share of all members; 1 of nothing.
fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let both = a.iter().filter(|target| b.contains(target)).count();
    let all = a.len() + b.len() - both;
    if all == 0 { 1.0 } else { both as f64 / all as f64 }
}

/// A measure of pairs, beside itself with the second of each dealt out anew.
pub(super) fn beside_dealt(
    before: &[&[u32]],
    after: &[&[u32]],
    of: fn(&[u32], &[u32]) -> f64,
    how: Shuffles,
) -> Controlled {
    let mut dealt = after.to_vec();
    how.beside(mean(before, after, of), |dice| {
        shuffle(&mut dealt, dice);
        mean(before, &dealt, of)
    })
}

/// What two lists have under the same keys, in the order of the first. An entry meets one of the
/// other list at most: of equal keys there, the last.
pub(super) fn matched<K: Ord, T>(
    before: impl Iterator<Item = (K, T)>,
    after: impl Iterator<Item = (K, T)>,
) -> (Vec<T>, Vec<T>) {
    let mut at: BTreeMap<K, T> = after.collect();
    before.filter_map(|(key, one)| Some((one, at.remove(&key)?))).unzip()
}

/// What changed from one trace to another, whose steps may differ: rows are the same by sequence,
/// position, use and token.
pub fn change(before: &Choices, after: &Choices, how: Shuffles) -> RoutingChange {
    let [one, other] = [before, after].map(|choices| {
        choices
            .rows
            .iter()
            .map(|row| ((row.sequence.1, row.position, row.recursion, row.token), &row.chosen[..]))
    });
    let (first, second) = matched(one, other);
    let rows = first.len();
    RoutingChange {
        rows,
        unmatched: before.rows.len() + after.rows.len() - 2 * rows,
        same: beside_dealt(&first, &second, identical, how),
        overlap: beside_dealt(&first, &second, jaccard, how),
    }
}

#[cfg(test)]
mod tests {
    use super::super::choices::ChoiceRow;
    use super::*;

    fn rows(count: u32, of: impl Fn(u32) -> Vec<u32>) -> Choices {
        let row = |i: u32| ChoiceRow {
            sequence: (None, 0),
            position: i,
            token: i % 9,
            recursion: 0,
            chosen: of(i),
            dropped: 0,
        };
        Choices { targets: 8, computing: 8, rows: (0..count).map(row).collect() }
    }

    #[test]
    fn what_stayed_and_what_chance_would_leave() {
        // Each row has two of eight experts; every second row changes one of both.
        let before = rows(1000, |i| vec![i % 4, 4 + i % 3]);
        let after = rows(900, |i| vec![i % 4, if i % 2 == 0 { 4 + i % 3 } else { 7 }]);
        let found = change(&before, &after, Shuffles::default());
        assert_eq!((found.rows, found.unmatched), (900, 100));
        assert_eq!(found.same.value, 0.5);
        assert!((found.overlap.value - (0.5 + 0.5 / 3.0)).abs() < 1e-12);
        assert!(found.same.by_chance < 0.1 && found.same.p == 0.05, "{:?}", found.same);
        // Loads on one expert alone are the same by chance, too.
        let one = rows(50, |_| vec![3]);
        let found = change(&one, &one, Shuffles::default());
        assert_eq!((found.same.value, found.same.by_chance, found.same.p), (1.0, 1.0, 1.0));
    }

    #[test]
    fn sets_by_hand() {
        assert_eq!((identical(&[1, 2], &[1, 2]), identical(&[1], &[1, 2])), (1.0, 0.0));
        assert_eq!((disjoint(&[1, 2], &[0, 3]), disjoint(&[1, 2], &[2])), (1.0, 0.0));
        assert_eq!((jaccard(&[1, 2], &[2, 3]), jaccard(&[], &[])), (1.0 / 3.0, 1.0));
    }
}
