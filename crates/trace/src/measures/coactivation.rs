//! Which experts rows take together.

use model::rng::Stream;

use super::choices::Choices;
use super::{Controlled, Shuffles, below, shuffle};

/// Pairs of experts in the same rows.
#[derive(Clone, Debug, PartialEq)]
pub struct CoActivation {
    /// Rows that chose both, `[targets, targets]`; on the diagonal the rows that chose one at all.
    pub counts: Vec<u64>,
    /// Root mean square over pairs of `observed / expected - 1`, where `n_i n_j / rows` is
    /// expected; beside the same where rows have traded experts, so that each row has as many and
    /// each expert its load.
    pub excess: Controlled,
}

/// Pairs of the experts of a layer.
pub fn coactivation(choices: &Choices, how: Shuffles) -> CoActivation {
    let sets: Vec<Vec<u32>> = choices.rows.iter().map(|row| row.chosen.clone()).collect();
    let counts = pairs(&sets, choices.targets);
    let value = excess(&counts, choices.targets, sets.len());
    let mut traded = sets;
    let excess = how.beside(value, |dice| {
        trade(&mut traded, dice);
        excess(&pairs(&traded, choices.targets), choices.targets, traded.len())
    });
    CoActivation { counts, excess }
}

fn pairs(sets: &[Vec<u32>], targets: usize) -> Vec<u64> {
    let mut counts = vec![0; targets * targets];
    for set in sets {
        for &a in set {
            set.iter().for_each(|&b| counts[a as usize * targets + b as usize] += 1);
        }
    }
    counts
}

fn excess(counts: &[u64], targets: usize, rows: usize) -> f64 {
    let (mut sum, mut number) = (0.0, 0usize);
    for a in 0..targets {
        for b in a + 1..targets {
            let (of_a, of_b) = (counts[a * targets + a] as f64, counts[b * targets + b] as f64);
            let expected = of_a * of_b / rows.max(1) as f64;
            if expected > 0.0 {
                sum += (counts[a * targets + b] as f64 / expected - 1.0).powi(2);
                number += 1;
            }
        }
    }
    (sum / number.max(1) as f64).sqrt()
}

/// Pairs of rows put what only one of them has together and deal it out anew (the curveball
/// algorithm, Strona et al., 2014, doi 10.1038/ncomms5114), four times as many pairs as rows.
fn trade(sets: &mut [Vec<u32>], dice: &mut Stream) {
    if sets.len() < 2 {
        return;
    }
    for _ in 0..4 * sets.len() {
        let first = below(sets.len(), dice);
        let second = (first + 1 + below(sets.len() - 1, dice)) % sets.len();
        let (own, others) = (sets[first].clone(), sets[second].clone());
        let mut pool: Vec<u32> = own.iter().filter(|e| !others.contains(e)).copied().collect();
        let count = pool.len();
        pool.extend(others.iter().filter(|e| !own.contains(e)));
        if count == 0 || count == pool.len() {
            continue;
        }
        shuffle(&mut pool, dice);
        let common: Vec<u32> = own.into_iter().filter(|e| others.contains(e)).collect();
        sets[first] = [&common[..], &pool[..count]].concat();
        sets[second] = [&common[..], &pool[count..]].concat();
    }
}

#[cfg(test)]
mod tests {
    use super::super::choices::ChoiceRow;
    use super::*;

    fn choices(of: impl Fn(u32) -> Vec<u32>) -> Choices {
        let row = |i: u32| ChoiceRow {
            sequence: (None, 0),
            position: i,
            token: 0,
            recursion: 0,
            chosen: of(i),
            dropped: 0,
        };
        Choices { targets: 4, computing: 4, rows: (0..600).map(row).collect() }
    }

    #[test]
    fn pairs_that_stay_together_are_seen() {
        let found = coactivation(
            &choices(|i| if i % 2 == 0 { vec![0, 1] } else { vec![2, 3] }),
            Shuffles::default(),
        );
        assert_eq!((found.counts[0], found.counts[1], found.counts[2]), (300, 300, 0));
        // Expected are 150 of each: two pairs have twice that, four have none.
        assert!((found.excess.value - 1.0).abs() < 1e-12);
        assert!(found.excess.by_chance < 0.6 && found.excess.p == 0.05, "{:?}", found.excess);
    }

    #[test]
    fn trades_keep_rows_and_loads() {
        let mut sets: Vec<Vec<u32>> =
            (0..200u32).map(|i| (0..4).filter(|e| i >> e & 1 == 1).collect()).collect();
        let (sizes, before): (Vec<usize>, _) =
            (sets.iter().map(Vec::len).collect(), pairs(&sets, 4));
        trade(&mut sets, &mut Stream::at(1, model::rng::Purpose::Shuffle, 0, 0));
        let after = pairs(&sets, 4);
        assert_eq!(sets.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
        (0..4).for_each(|e| assert_eq!(before[e * 5], after[e * 5]));
        assert_ne!(before, after);
    }
}
