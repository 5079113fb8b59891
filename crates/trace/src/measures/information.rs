//! What experts depend on: mutual information, and affinity between layers.

use std::collections::BTreeMap;

use super::choices::Choices;
use super::{Controlled, Shuffles, shuffle};
use crate::table::Trace;

/// Numbers that stand for labels, from 0 in the order in which labels are met.
fn dense<T: Ord>(labels: impl Iterator<Item = T>) -> (Vec<usize>, usize) {
    let mut numbers = BTreeMap::new();
    let mut each = Vec::new();
    for label in labels {
        let next = numbers.len();
        each.push(*numbers.entry(label).or_insert(next));
    }
    (each, numbers.len())
}

/// `sum p(a, b) ln(p(a, b) / (p(a) p(b)))` of counts `[rows, columns]`, nats.
pub(super) fn of_counts(counts: &[u64], columns: usize) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let mut of_column = vec![0u64; columns];
    for row in counts.chunks_exact(columns.max(1)) {
        of_column.iter_mut().zip(row).for_each(|(sum, count)| *sum += count);
    }
    let mut sum = 0.0;
    for row in counts.chunks_exact(columns.max(1)) {
        let of_row = row.iter().sum::<u64>() as f64;
        for (&count, &of_column) in row.iter().zip(&of_column).filter(|(count, _)| **count > 0) {
            let count = count as f64;
            sum += count / total * (count * total / (of_row * of_column as f64)).ln();
        }
    }
    sum
}

/// Mutual information in nats between the target of a choice and the label of its row, of the rows
/// that have one; beside the same with labels dealt out anew, which is what so many rows show by
/// chance.
pub fn information(choices: &Choices, labels: &[Option<u32>], how: Shuffles) -> Controlled {
    let (mut rows, mut given) = (Vec::new(), Vec::new());
    for (row, label) in choices.rows.iter().zip(labels) {
        if let Some(label) = label {
            rows.push(&row.chosen);
            given.push(*label);
        }
    }
    let (mut labels, count) = dense(given.into_iter());
    let value = of_counts(&by_label(&rows, &labels, count, choices.targets), choices.targets);
    how.beside(value, |dice| {
        shuffle(&mut labels, dice);
        of_counts(&by_label(&rows, &labels, count, choices.targets), choices.targets)
    })
}

/// How often each of `targets` was chosen by rows of each label, `[labels, targets]`.
fn by_label(rows: &[&Vec<u32>], labels: &[usize], count: usize, targets: usize) -> Vec<u64> {
    let mut counts = vec![0; count * targets];
    for (chosen, &label) in rows.iter().zip(labels) {
        chosen.iter().for_each(|&target| counts[label * targets + target as usize] += 1);
    }
    counts
}

/// The token of each row.
pub fn tokens(choices: &Choices) -> Vec<Option<u32>> {
    choices.rows.iter().map(|row| Some(row.token)).collect()
}

/// The token before each row, where `trace` has it.
pub fn previous_tokens(choices: &Choices, trace: &Trace) -> Vec<Option<u32>> {
    let mut known = BTreeMap::new();
    for decision in trace.iter() {
        known.insert((decision.step, decision.sequence, decision.position), decision.token);
    }
    let mut labels = Vec::with_capacity(choices.rows.len());
    for row in &choices.rows {
        let before = row.position.checked_sub(1);
        let before = before.map(|position| (row.sequence.0, row.sequence.1, position));
        labels.push(before.and_then(|key| known.get(&key).copied()));
    }
    labels
}

/// In which of `parts` equal stretches of the longest sequence each row stands.
pub fn parts_of_positions(choices: &Choices, parts: usize) -> Vec<Option<u32>> {
    let longest = choices.rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(1);
    choices.rows.iter().map(|row| Some((row.position as usize * parts / longest) as u32)).collect()
}

/// Which experts of a later layer rows go to behind each expert of an earlier one.
#[derive(Clone, Debug, PartialEq)]
pub struct Affinity {
    /// Rows that chose both, `[earlier, later]`.
    pub counts: Vec<u64>,
    /// Rows that came by both layers.
    pub rows: usize,
    /// Mutual information of the two choices, nats; beside the same with the rows of the later
    /// layer dealt out anew.
    pub information: Controlled,
}

/// Affinity between two layers, or two uses of one, over the rows that came by both in the same
/// recursion.
pub fn affinity(earlier: &Choices, later: &Choices, how: Shuffles) -> Affinity {
    let mut at = BTreeMap::new();
    for (i, row) in later.rows.iter().enumerate() {
        at.insert((row.sequence, row.position, row.recursion), i);
    }
    let mut pairs: (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for (i, row) in earlier.rows.iter().enumerate() {
        if let Some(&j) = at.get(&(row.sequence, row.position, row.recursion)) {
            pairs.0.push(i);
            pairs.1.push(j);
        }
    }
    let columns = later.targets;
    let counts = joint((earlier, &pairs.0), (later, &pairs.1));
    let mut to = pairs.1.clone();
    let information = how.beside(of_counts(&counts, columns), |dice| {
        shuffle(&mut to, dice);
        of_counts(&joint((earlier, &pairs.0), (later, &to)), columns)
    });
    Affinity { counts, rows: pairs.0.len(), information }
}

/// How often each pair of targets was chosen by paired rows, `[earlier, later]`.
fn joint((earlier, from): (&Choices, &[usize]), (later, to): (&Choices, &[usize])) -> Vec<u64> {
    let mut counts = vec![0; earlier.targets * later.targets];
    for (&i, &j) in from.iter().zip(to) {
        for &a in &earlier.rows[i].chosen {
            for &b in &later.rows[j].chosen {
                counts[a as usize * later.targets + b as usize] += 1;
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::super::choices::ChoiceRow;
    use super::*;

    /// Rows with the tokens `0..4` in turns, that choose by `of`.
    fn rows(count: u32, of: impl Fn(u32) -> Vec<u32>) -> Choices {
        let row = |i: u32| ChoiceRow {
            sequence: (None, u64::from(i / 50)),
            position: i % 50,
            token: i % 4,
            recursion: 0,
            chosen: of(i),
            dropped: 0,
        };
        Choices { targets: 4, computing: 4, rows: (0..count).map(row).collect() }
    }

    #[test]
    fn experts_of_tokens_know_the_token() {
        let how = Shuffles::default();
        let choices = rows(2000, |i| vec![i % 4]);
        let found = information(&choices, &tokens(&choices), how);
        assert!((found.value - 4f64.ln()).abs() < 1e-9, "{found:?}");
        assert!(found.by_chance < 0.01 && found.p == 0.05);
        // Two of the tokens behind one expert: half of what is to be known.
        let halves = rows(2000, |i| vec![i % 4 / 2]);
        let found = information(&halves, &tokens(&halves), how);
        assert!((found.value - 2f64.ln()).abs() < 1e-9);
        // An expert for all knows nothing, and nothing is found.
        let found = information(&rows(2000, |_| vec![1]), &tokens(&choices), how);
        assert_eq!((found.value, found.by_chance, found.p), (0.0, 0.0, 1.0));
    }

    #[test]
    fn labels_that_a_row_lacks_leave_it_out() {
        let choices = rows(100, |i| vec![i % 4]);
        let mut trace = Trace::default();
        for row in &choices.rows {
            trace.push(crate::RoutingDecision {
                step: None,
                sequence: row.sequence.1,
                position: row.position,
                token: row.token,
                layer: Some(0),
                recursion: 0,
                targets: &row.chosen,
                weights: &[],
                dropped: &[],
            });
        }
        let before = previous_tokens(&choices, &trace);
        assert_eq!(before[..3], [None, Some(0), Some(1)]);
        assert_eq!(before[50], None, "another sequence begins");
        let parts = parts_of_positions(&choices, 5);
        assert_eq!((parts[9], parts[10], parts[99]), (Some(0), Some(1), Some(4)));
        // 98 rows have a token before them, which says all.
        let found = information(&choices, &before, Shuffles::default());
        assert!(found.value > 1.38 && found.p == 0.05, "{found:?}");
    }

    #[test]
    fn affinity_is_of_the_same_rows() {
        let earlier = rows(1000, |i| vec![i % 3]);
        let later = rows(900, |i| vec![(i % 3 + 1) % 4]);
        let found = affinity(&earlier, &later, Shuffles::default());
        assert_eq!((found.rows, found.counts[1], found.counts[4 + 2]), (900, 300, 300));
        assert!((found.information.value - 3f64.ln()).abs() < 1e-9);
        assert!(found.information.by_chance < 0.02 && found.information.p == 0.05);
        // The other direction of rows that have nothing to do with each other.
        let other = rows(1000, |i| vec![i / 7 % 4]);
        assert!(affinity(&earlier, &other, Shuffles::default()).information.value < 0.02);
    }
}
