//! Which weights each unrolled layer uses (Mixture-of-Recursions, arXiv 2507.10524, table of
//! sharing strategies).

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, refuse};

/// How unrolled layers share weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// Every layer has its own weights.
    None,
    /// `(0 1 2)(0 1 2)(0 1 2)`
    Cycle,
    /// `(0 0 0)(1 1 1)(2 2 2)`
    Sequence,
    /// First and last layers of their own, the middle as in a cycle.
    MiddleCycle,
    /// First and last layers of their own, the middle as in a sequence.
    MiddleSequence,
}

/// One layer of the unrolled model: a use of a stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerUse {
    /// Its number in the unrolled model.
    pub layer: usize,
    /// Which stored layer's weights it uses.
    pub stored: usize,
    /// How often these weights have been used before.
    pub recursion: usize,
    /// The unrolled layer that used these weights first.
    pub first: usize,
}

impl LayerUse {
    /// The only use of stored layer `stored`.
    fn single(layer: usize, stored: usize) -> Self {
        Self { layer, stored, recursion: 0, first: layer }
    }
}

/// Which use of its weights a layer is to each row: runs of rows in row order, shallower recursions
/// first. One run where all rows are equally deep, several where a pass mixes depths.
#[derive(Clone, Debug)]
pub struct DepthRuns(Vec<(LayerUse, usize)>);

impl DepthRuns {
    /// The same use for `rows` rows.
    pub fn one(at: LayerUse, rows: usize) -> Self {
        Self(vec![(at, rows)])
    }

    /// Runs of rows, each a use and how many rows it has.
    pub fn mixed(runs: Vec<(LayerUse, usize)>) -> Self {
        Self(runs)
    }

    /// The use of all rows. Panics where depths are mixed: only a paged cache takes such passes.
    pub fn only(&self) -> LayerUse {
        assert_eq!(self.0.len(), 1, "this cache takes passes of one depth only");
        self.0[0].0
    }

    /// Each run with its row numbers.
    pub fn runs(&self) -> impl Iterator<Item = (LayerUse, std::ops::Range<usize>)> {
        let mut start = 0;
        self.0.iter().map(move |&(at, rows)| {
            start += rows;
            (at, start - rows..start)
        })
    }

    /// How many depths the rows are at.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// How many rows meet these weights for the first time; they come first.
    pub(crate) fn fresh(&self) -> usize {
        self.0.iter().take_while(|(at, _)| at.recursion == 0).map(|(_, rows)| rows).sum()
    }

    /// The runs of the first `rows` rows, and those of the others. The cut is between runs.
    pub(crate) fn split(&self, rows: usize) -> (Self, Self) {
        let cut = self.runs().position(|(_, range)| range.start >= rows).unwrap_or(self.0.len());
        (Self(self.0[..cut].to_vec()), Self(self.0[cut..].to_vec()))
    }
}

/// The unrolled model as three stretches. Recursions are runs of the shared block; models whose
/// sharing is not a repeated block have everything in `before`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    /// Layers that every row goes through first.
    pub before: Vec<LayerUse>,
    /// The shared block, once for each recursion.
    pub recursions: Vec<Vec<LayerUse>>,
    /// Layers that every row goes through last.
    pub after: Vec<LayerUse>,
    /// How many layers' weights are stored.
    pub stored: usize,
    /// The uses of each stored layer, first to last.
    uses: Vec<Vec<LayerUse>>,
}

impl LayerPlan {
    fn new(
        before: Vec<LayerUse>,
        recursions: Vec<Vec<LayerUse>>,
        after: Vec<LayerUse>,
        stored: usize,
    ) -> Self {
        let mut plan = Self { before, recursions, after, stored, uses: vec![Vec::new(); stored] };
        let all: Vec<LayerUse> = plan.unrolled().collect();
        for at in all {
            plan.uses[at.stored].push(at);
        }
        plan
    }

    /// The uses of stored layer `stored`, first to last.
    pub fn uses_of(&self, stored: usize) -> &[LayerUse] {
        &self.uses[stored]
    }

    /// Every layer in order.
    pub fn unrolled(&self) -> impl Iterator<Item = LayerUse> {
        self.before.iter().chain(self.recursions.iter().flatten()).chain(&self.after).copied()
    }
}

impl Display for Sharing {
    /// Its name in recipes.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sharing::None => "none",
            Sharing::Cycle => "cycle",
            Sharing::Sequence => "sequence",
            Sharing::MiddleCycle => "middle_cycle",
            Sharing::MiddleSequence => "middle_sequence",
        })
    }
}

impl Sharing {
    /// Whether the first and last layers keep their own weights.
    pub fn keeps_ends(self) -> bool {
        matches!(self, Sharing::MiddleCycle | Sharing::MiddleSequence)
    }

    /// Whether the shared layers form one block that is applied again and again.
    pub fn is_cycle(self) -> bool {
        matches!(self, Sharing::Cycle | Sharing::MiddleCycle)
    }

    /// Lays out `layers` unrolled layers with `recursions` uses of each shared one.
    ///
    /// # Errors
    /// If the shared layers do not divide by `recursions`, or there are none.
    pub fn plan(self, layers: usize, recursions: usize) -> Result<LayerPlan, ConfigError> {
        let ends = if self.keeps_ends() { 2 } else { 0 };
        if layers <= ends || layers > 100_000 {
            return refuse(
                "layers",
                layers,
                format!("between {} and 100000 with this sharing", ends + 1),
            );
        }
        if self == Sharing::None {
            if recursions != 1 {
                return refuse(
                    "recursions",
                    recursions,
                    "1 where nothing is shared (sharing = \"none\")".into(),
                );
            }
            let before = (0..layers).map(|layer| LayerUse::single(layer, layer)).collect();
            return Ok(LayerPlan::new(before, Vec::new(), Vec::new(), layers));
        }
        let shared = layers - ends;
        if recursions == 0 || recursions > shared || !shared.is_multiple_of(recursions) {
            let expected = format!("a divisor of the {shared} shared layers");
            return refuse("recursions", recursions, expected);
        }
        let b = shared / recursions;
        let offset = ends / 2;
        let middle: Vec<LayerUse> = (0..shared)
            .map(|m| {
                let (i, r) =
                    if self.is_cycle() { (m % b, m / b) } else { (m / recursions, m % recursions) };
                let first = if self.is_cycle() { i } else { i * recursions };
                LayerUse {
                    layer: m + offset,
                    stored: i + offset,
                    recursion: r,
                    first: first + offset,
                }
            })
            .collect();
        let mut before = vec![LayerUse::single(0, 0); offset];
        let after = vec![LayerUse::single(layers - 1, b + 1); offset];
        let mut blocks = Vec::new();
        if self.is_cycle() {
            blocks = middle.chunks(b).map(<[LayerUse]>::to_vec).collect();
        } else {
            before.extend(middle);
        }
        Ok(LayerPlan::new(before, blocks, after, b + ends))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(sharing: Sharing, layers: usize, recursions: usize) -> Vec<usize> {
        sharing
            .plan(layers, recursions)
            .expect("a legal layout")
            .unrolled()
            .map(|u| u.stored)
            .collect()
    }

    #[test]
    fn index_maps_of_the_paper() {
        assert_eq!(stored(Sharing::Cycle, 9, 3), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        assert_eq!(stored(Sharing::Sequence, 9, 3), [0, 0, 0, 1, 1, 1, 2, 2, 2]);
        assert_eq!(stored(Sharing::MiddleCycle, 8, 3), [0, 1, 2, 1, 2, 1, 2, 3]);
        assert_eq!(stored(Sharing::MiddleSequence, 8, 2), [0, 1, 1, 2, 2, 3, 3, 4]);
        assert_eq!(stored(Sharing::None, 3, 1), [0, 1, 2]);
    }

    #[test]
    fn layers_are_numbered_and_first_uses_known() {
        for (sharing, layers, recursions) in [
            (Sharing::Cycle, 12, 4),
            (Sharing::Sequence, 12, 4),
            (Sharing::MiddleCycle, 14, 3),
            (Sharing::MiddleSequence, 14, 6),
            (Sharing::None, 5, 1),
        ] {
            let plan = sharing.plan(layers, recursions).expect("a legal layout");
            let all: Vec<LayerUse> = plan.unrolled().collect();
            assert_eq!(all.len(), layers);
            for (l, u) in all.iter().enumerate() {
                assert_eq!(u.layer, l);
                assert_eq!(
                    u.first,
                    all.iter().find(|v| v.stored == u.stored).expect("itself").layer
                );
                assert_eq!(u.recursion, all[..l].iter().filter(|v| v.stored == u.stored).count());
                assert!(u.stored < plan.stored);
            }
        }
    }

    #[test]
    fn impossible_layouts_are_refused() {
        for (sharing, layers, recursions) in [
            (Sharing::Cycle, 10, 3),
            (Sharing::MiddleCycle, 2, 1),
            (Sharing::Cycle, 4, 0),
            (Sharing::Cycle, 4, 1_000_000_000),
            (Sharing::None, 4, 2),
            (Sharing::None, 0, 1),
            (Sharing::None, usize::MAX, 1),
        ] {
            assert!(sharing.plan(layers, recursions).is_err(), "{sharing:?} {layers} {recursions}");
        }
    }
}
