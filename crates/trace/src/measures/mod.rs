//! What a trace says: loads, drops, what experts depend on, what changed. Functions of decisions
//! alone, in f64.
//!
//! Most of these numbers are far from zero on any finite trace, also where a router throws dice. So
//! each comes as [`Controlled`], beside what it is after a shuffle that breaks exactly what it
//! measures and keeps the rest.

mod change;
mod choices;
mod coactivation;
mod depth;
mod drops;
mod going;
mod information;
mod load;
mod words;

use model::rng::{Purpose, Stream};

pub use change::{RoutingChange, change};
pub use choices::{ChoiceRow, Choices, TokenSample};
pub use coactivation::{CoActivation, coactivation};
pub use depth::{Between, DepthRow, DepthRows, between_recursions, depths};
pub use drops::{Drops, drops};
pub use going::{
    DepthChange, DepthGroup, DepthLabel, DepthSaid, DepthToken, depth_change, depth_groups,
    depth_said, depth_tokens, rank_correlation,
};
pub use information::{
    Affinity, affinity, information, parts_of_positions, previous_tokens, tokens,
};
pub use load::{Load, entropy, load, max_violation};
pub use words::{InWord, WordKind, WordRole};

/// A number beside what it is by chance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Controlled {
    /// The number of the trace.
    pub value: f64,
    /// Its mean over the shuffled traces.
    pub by_chance: f64,
    /// Share of the shuffled traces, with the true one, whose number is at least as large.
    pub p: f64,
}

/// How often a trace is shuffled, and with which dice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shuffles {
    /// How many shuffled traces a number is set beside; `p` is at least `1 / (count + 1)`.
    pub count: usize,
    /// The seed of all dice.
    pub seed: u64,
}

impl Default for Shuffles {
    fn default() -> Self {
        Self { count: 19, seed: 1 }
    }
}

impl Shuffles {
    /// `value` beside what `shuffled` gives with fresh dice each time.
    pub fn beside(self, value: f64, mut shuffled: impl FnMut(&mut Stream) -> f64) -> Controlled {
        let (mut sum, mut reached) = (0.0, 0usize);
        for number in 0..self.count {
            let mut dice = Stream::at(self.seed, Purpose::Shuffle, 0, number as u64);
            let found = shuffled(&mut dice);
            sum += found;
            reached += usize::from(found >= value);
        }
        // No zero with a sign, which a sum of nothing has.
        let by_chance = sum / self.count.max(1) as f64 + 0.0;
        Controlled {
            value: value + 0.0,
            by_chance,
            p: (1 + reached) as f64 / (1 + self.count) as f64,
        }
    }
}

/// A number from 0 and below `count`.
fn below(count: usize, dice: &mut Stream) -> usize {
    ((dice.uniform() * count as f64) as usize).min(count.saturating_sub(1))
}

/// Puts items in a random order, each as likely as any other.
fn shuffle<T>(items: &mut [T], dice: &mut Stream) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(last + 1, dice));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_keep_items_and_count_those_that_reach_the_value() {
        let mut dice = Stream::at(3, Purpose::Shuffle, 0, 0);
        let mut first = vec![0usize; 6];
        for _ in 0..6000 {
            let mut items = vec![0, 1, 2, 3, 4, 5];
            shuffle(&mut items, &mut dice);
            first[items[0]] += 1;
            items.sort_unstable();
            assert_eq!(items, [0, 1, 2, 3, 4, 5]);
        }
        assert!(first.iter().all(|&n| (880..1120).contains(&n)), "{first:?}");
        let mut number = 0.0;
        let how = Shuffles { count: 4, seed: 1 };
        let found = how.beside(3.0, |_| {
            number += 1.0;
            number
        });
        // 1, 2, 3, 4: two of them reach 3.
        assert_eq!(found, Controlled { value: 3.0, by_chance: 2.5, p: 0.6 });
    }
}
