//! How evenly rows are spread over experts.

use model::rng::Stream;

use super::choices::Choices;
use super::{Controlled, Shuffles, below};

/// Loads of the experts of a layer, and how uneven they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// How often each target was chosen, those that compute nothing behind the others.
    pub loads: Vec<u64>,
    /// Entropy of the shares of the computing experts, nats; at most `ln E`. Its `p` counts the
    /// shuffles whose entropy is at most as high.
    pub entropy: Controlled,
    /// `(max - mean) / mean` of their loads (MaxVio, arXiv 2408.15664).
    pub violation: Controlled,
    /// How many of them nobody chose.
    pub dead: Controlled,
}

/// `-sum p ln p` of shares of the whole, nats; 0 of nothing.
pub fn entropy(loads: &[u64]) -> f64 {
    let total: u64 = loads.iter().sum();
    let shares = loads.iter().filter(|load| **load > 0).map(|&load| load as f64 / total as f64);
    shares.map(|p| -p * p.ln()).sum::<f64>() + 0.0
}

/// `(max - mean) / mean`; 0 of nothing.
pub fn max_violation(loads: &[u64]) -> f64 {
    let total: u64 = loads.iter().sum();
    let mean = total as f64 / loads.len().max(1) as f64;
    let most = loads.iter().max().copied().unwrap_or(0) as f64;
    if total == 0 { 0.0 } else { (most - mean) / mean }
}

fn dead(loads: &[u64]) -> f64 {
    loads.iter().filter(|load| **load == 0).count() as f64
}

/// Loads of a layer beside those of rows that choose as many experts each by dice.
pub fn load(choices: &Choices, how: Shuffles) -> Load {
    let loads = choices.loads();
    let computing = choices.computing.min(loads.len());
    let counts: Vec<usize> = choices
        .rows
        .iter()
        .map(|row| row.chosen.iter().filter(|target| (**target as usize) < computing).count())
        .collect();
    let found = &loads[..computing];
    // The same dice for all three numbers: rows are dealt out once.
    let mut dealt = Vec::new();
    // What chance seldom reaches is a low entropy.
    let low = how.beside(-entropy(found), |dice| {
        dealt.push(drawn(&counts, computing, dice));
        dealt.last().map_or(0.0, |loads| -entropy(loads))
    });
    let entropy = Controlled { value: 0.0 - low.value, by_chance: 0.0 - low.by_chance, p: low.p };
    let beside_dealt = |of: fn(&[u64]) -> f64| {
        let mut loads = dealt.iter();
        how.beside(of(found), |_| loads.next().map_or(0.0, |loads| of(loads)))
    };
    let (violation, dead) = (beside_dealt(max_violation), beside_dealt(dead));
    Load { entropy, violation, dead, loads }
}

/// Loads of rows that take `counts` of the experts, each set as likely as any other.
fn drawn(counts: &[usize], experts: usize, dice: &mut Stream) -> Vec<u64> {
    let mut order: Vec<usize> = (0..experts).collect();
    let mut loads = vec![0; experts];
    for &count in counts {
        // The first of a shuffled order, of which only so many are shuffled.
        for place in 0..count.min(experts) {
            let other = place + below(experts - place, dice);
            order.swap(place, other);
            loads[order[place]] += 1;
        }
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::super::choices::ChoiceRow;
    use super::*;

    fn choices(chosen: &[&[u32]], targets: usize, computing: usize) -> Choices {
        let rows = chosen.iter().enumerate().map(|(i, chosen)| ChoiceRow {
            sequence: (None, 0),
            position: i as u32,
            token: 0,
            recursion: 0,
            chosen: chosen.to_vec(),
            dropped: 0,
        });
        Choices { targets, computing, rows: rows.collect() }
    }

    #[test]
    fn loads_by_hand() {
        // Five choices of four experts, and two of one that computes nothing.
        let rows: [&[u32]; 4] = [&[0, 1], &[0, 4], &[0, 2], &[4]];
        let found = load(&choices(&rows, 5, 4), Shuffles::default());
        assert_eq!(found.loads, [3, 1, 1, 0, 2]);
        let expected = -(0.6 * 0.6f64.ln() + 0.4 * 0.2f64.ln());
        assert!((found.entropy.value - expected).abs() < 1e-12);
        assert!((found.violation.value - (3.0 - 1.25) / 1.25).abs() < 1e-12);
        assert_eq!(found.dead.value, 1.0);
        assert_eq!((entropy(&[]), max_violation(&[0, 0])), (0.0, 0.0));
        let none = load(&choices(&[], 5, 4), Shuffles::default());
        for number in [entropy(&[]), none.entropy.value, none.entropy.by_chance] {
            assert!(number.is_sign_positive(), "no zero with a sign");
        }
    }

    #[test]
    fn chance_is_what_dice_do() {
        // All rows take the same of 8 experts: dice would spread them evenly.
        let rows: Vec<&[u32]> = vec![&[2, 5]; 4000];
        let found = load(&choices(&rows, 8, 8), Shuffles::default());
        assert_eq!((found.violation.value, found.dead.value), (3.0, 6.0));
        assert!(found.violation.by_chance < 0.1 && found.violation.p == 0.05);
        assert_eq!((found.dead.by_chance, found.dead.p), (0.0, 0.05));
        assert!(found.entropy.by_chance > 0.999 * 8f64.ln());
        assert_eq!(found.entropy.p, 0.05);
        // Rows that take turns are as even as can be.
        let turns: Vec<[u32; 1]> = (0..800).map(|i| [i % 8]).collect();
        let turns: Vec<&[u32]> = turns.iter().map(|one| &one[..]).collect();
        let found = load(&choices(&turns, 8, 8), Shuffles::default());
        assert!(found.violation.value == 0.0 && found.violation.p == 1.0);
        assert!(found.violation.by_chance > 0.05);
    }
}
