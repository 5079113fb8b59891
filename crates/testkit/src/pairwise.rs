//! Combinations of options in which every two values meet, instead of all combinations: most faults
//! need two options, and the number of combinations grows with the two longest lists only.

use std::collections::{BTreeSet, HashMap};

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

/// A few legal combinations in which every two values meet that meet in a legal one, found without
/// going through all combinations, which are too many where lists are long.
///
/// Two values meet in the first legal combination of these: the first values of the other options;
/// the same with one of them changed; a combination found before in which one of the two values is,
/// with the other put in. A value that is legal with two others changed is in one that is found.
/// Each takes, option by option, the legal value that brings most further pairs. Without chance.
pub fn covering(sizes: &[usize], legal: impl Fn(&[usize]) -> bool) -> Vec<Vec<usize>> {
    let mut search = Search { sizes, legal, known: HashMap::new(), found: Vec::new() };
    let mut missing = BTreeSet::new();
    for second in 1..sizes.len() {
        for first in 0..second {
            for value in 0..sizes[first] {
                missing.extend((0..sizes[second]).map(|other| [(first, value), (second, other)]));
            }
        }
    }
    for changed in 0..=1 {
        for pair in missing.iter().copied().collect::<Vec<_>>() {
            if missing.contains(&pair) {
                search.meet(pair, changed, &mut missing);
            }
        }
    }
    search.meet_values(&mut missing);
    loop {
        let before = search.found.len();
        for pair in missing.iter().copied().collect::<Vec<_>>() {
            if missing.contains(&pair) {
                search.meet_in_found(pair, &mut missing);
            }
        }
        if search.found.len() == before {
            return search.found;
        }
    }
}

/// Combinations found so far, and which of those asked about are legal.
struct Search<'a, L> {
    sizes: &'a [usize],
    legal: L,
    known: HashMap<Vec<usize>, bool>,
    found: Vec<Vec<usize>>,
}

impl<L: Fn(&[usize]) -> bool> Search<'_, L> {
    fn is_legal(&mut self, values: &[usize]) -> bool {
        if let Some(&known) = self.known.get(values) {
            return known;
        }
        let legal = (self.legal)(values);
        self.known.insert(values.to_vec(), legal);
        legal
    }

    /// Looks for a combination with this pair in which `changed` other options, none or one, have
    /// another value than the first.
    fn meet(&mut self, pair: Pair, changed: usize, missing: &mut BTreeSet<Pair>) {
        let mut start = vec![0; self.sizes.len()];
        pair.iter().for_each(|&(option, value)| start[option] = value);
        if changed == 0 {
            if self.is_legal(&start) {
                self.take(start, &pair.map(|(at, _)| at), missing);
            }
            return;
        }
        for option in (0..start.len()).filter(|option| pair.iter().all(|(at, _)| at != option)) {
            for value in 1..self.sizes[option] {
                let mut values = start.clone();
                values[option] = value;
                if self.is_legal(&values) {
                    return self.take(values, &pair.map(|(at, _)| at), missing);
                }
            }
        }
    }

    /// Looks for a combination with each value that none was found with, two others changed.
    fn meet_values(&mut self, missing: &mut BTreeSet<Pair>) {
        for option in 0..self.sizes.len() {
            for value in 0..self.sizes[option] {
                if self.found.iter().all(|values| values[option] != value) {
                    self.meet_value(option, value, missing);
                }
            }
        }
    }

    fn meet_value(&mut self, option: usize, value: usize, missing: &mut BTreeSet<Pair>) {
        let others: Vec<usize> = (0..self.sizes.len()).filter(|at| *at != option).collect();
        for (at, &second) in others.iter().enumerate() {
            for &first in &others[..at] {
                for one in 1..self.sizes[first] {
                    for other in 1..self.sizes[second] {
                        let mut values = vec![0; self.sizes.len()];
                        (values[option], values[first], values[second]) = (value, one, other);
                        if self.is_legal(&values) {
                            return self.take(values, &[option], missing);
                        }
                    }
                }
            }
        }
    }

    /// Looks for a combination with this pair among those found before, with one value put in.
    fn meet_in_found(&mut self, pair: Pair, missing: &mut BTreeSet<Pair>) {
        let [first, second] = pair;
        for at in 0..self.found.len() {
            for ((has, value), (gets, other)) in [(first, second), (second, first)] {
                if self.found[at][has] == value {
                    let mut values = self.found[at].clone();
                    values[gets] = other;
                    if self.is_legal(&values) {
                        return self.take(values, &pair.map(|(at, _)| at), missing);
                    }
                }
            }
        }
    }

    /// Keeps a legal combination, after it took in what else is missing where it is not `held`.
    fn take(&mut self, mut values: Vec<usize>, held: &[usize], missing: &mut BTreeSet<Pair>) {
        for option in (0..values.len()).filter(|option| !held.contains(option)) {
            let mut best = (count_missing(&values, missing), values[option]);
            for value in 0..self.sizes[option] {
                let mut changed = values.clone();
                changed[option] = value;
                let count = count_missing(&changed, missing);
                if count > best.0 && self.is_legal(&changed) {
                    best = (count, value);
                }
            }
            values[option] = best.1;
        }
        for pair in pairs(&values) {
            missing.remove(&pair);
        }
        self.found.push(values);
    }
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

    /// Against all combinations, where these are few enough: values that meet in a legal one.
    #[test]
    fn covering_finds_the_pairs_of_legal_combinations() {
        let sizes = [5, 3, 6, 4, 2];
        let rules: [fn(&[usize]) -> bool; 5] = [
            |_| true,
            |_| false,
            // Wants another value of an option that neither of two others is.
            |v| (v[0] < 2 || v[4] == 1) && (v[2] != 3 || v[1] == 2),
            // Wants two others.
            |v| v[3] != 3 || (v[0] == 4 && v[1] == 2),
            |v| v[0] + v[2] != 4 && (v[1] == 0 || v[3] > 1) && (v[2] < 4 || v[3] != 2),
        ];
        for (at, legal) in rules.into_iter().enumerate() {
            let (all, some) = (combinations(&sizes, legal), covering(&sizes, legal));
            assert!(covers(&some, &all), "rule {at}");
            assert!(some.iter().all(|values| legal(values)), "rule {at}");
            assert!(some.len() <= 60, "rule {at}: {} combinations", some.len());
            assert_eq!(some, covering(&sizes, legal), "no chance");
        }
    }
}
