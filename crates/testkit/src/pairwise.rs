//! Combinations of options in which every two values meet, instead of all combinations: most faults
//! need two options, and the number of combinations grows with the two longest lists only.

use std::collections::BTreeSet;

/// A value of each of two options: (option, value), the lower option first.
type Pair = [(usize, usize); 2];

/// Every combination for which `legal` holds, each with a value in `0..sizes[option]` for each
/// option; the last option turns fastest.
pub fn combinations(sizes: &[usize], legal: impl Fn(&[usize]) -> bool) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for &size in sizes {
        let longer = all.iter().flat_map(|start: &Vec<usize>| {
            (0..size).map(|value| start.iter().copied().chain([value]).collect())
        });
        all = longer.collect();
    }
    all.retain(|values| legal(values));
    all
}

/// A few of `all`, which have every pair of values that any of them has.
///
/// Greedy and without chance: next comes the combination with most pairs that are still missing,
/// the last of equals.
pub fn pairwise(all: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut missing: BTreeSet<Pair> = all.iter().flat_map(|values| pairs(values)).collect();
    let mut picked: Vec<Vec<usize>> = Vec::new();
    while !missing.is_empty() {
        let best = all.iter().max_by_key(|values| count_missing(values, &missing));
        let best = best.expect("a missing pair belongs to a combination");
        for pair in pairs(best) {
            missing.remove(&pair);
        }
        picked.push(best.clone());
    }
    picked
}

fn count_missing(values: &[usize], missing: &BTreeSet<Pair>) -> usize {
    pairs(values).iter().filter(|pair| missing.contains(*pair)).count()
}

fn pairs(values: &[usize]) -> Vec<Pair> {
    let mut found = Vec::new();
    for second in 1..values.len() {
        for first in 0..second {
            found.push([(first, values[first]), (second, values[second])]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pairs that may meet, by nested loops over two combinations' positions.
    fn covers(picked: &[Vec<usize>], all: &[Vec<usize>]) -> bool {
        let met = |a: usize, x: usize, b: usize, y: usize| {
            picked.iter().any(|values| values[a] == x && values[b] == y)
        };
        let options = all.first().map_or(0, Vec::len);
        all.iter()
            .all(|values| (0..options).all(|a| (0..a).all(|b| met(a, values[a], b, values[b]))))
    }

    #[test]
    fn every_pair_meets_in_fewer_combinations() {
        for sizes in [vec![2, 2, 2], vec![9, 3, 5, 8], vec![1, 4]] {
            let all = combinations(&sizes, |_| true);
            assert_eq!(all.len(), sizes.iter().product::<usize>());
            let picked = pairwise(&all);
            assert!(covers(&picked, &all), "{sizes:?}");
            assert!(picked.iter().all(|values| all.contains(values)));
            assert_eq!(picked, pairwise(&all), "no chance");
        }
        assert_eq!(pairwise(&combinations(&[2, 2, 2], |_| true)).len(), 4);
        let picked = pairwise(&combinations(&[9, 3, 5, 8], |_| true)).len();
        assert!((72..=80).contains(&picked), "{picked} of {}", 9 * 3 * 5 * 8);
    }

    #[test]
    fn pairs_that_are_legal_somewhere_meet_in_legal_combinations() {
        // The first value of the third option goes with the first ones of the others only.
        let legal = |values: &[usize]| values[2] != 0 || (values[0] == 0 && values[1] == 0);
        let all = combinations(&[4, 3, 3], legal);
        assert_eq!(all.len(), 4 * 3 * 2 + 1);
        let picked = pairwise(&all);
        assert!(picked.iter().all(|values| legal(values)) && covers(&picked, &all));
        assert!(picked.len() < all.len());
        // A pair less is noticed.
        let one_less: Vec<Vec<usize>> = picked.iter().skip(1).cloned().collect();
        assert!(!covers(&one_less, &all));
    }

    #[test]
    fn nothing_legal_gives_nothing() {
        assert!(pairwise(&combinations(&[2, 3], |_| false)).is_empty());
    }
}
