//! Which layers of the source go into the shared block (Mixture-of-Recursions, arXiv 2507.10524,
//! and its published code).

use model::Sharing;
use model::layout::LayerPlan;
use model::rng::{Purpose, Stream, name_place};
use serde::{Deserialize, Serialize};

use crate::ConvertError;
use crate::error::refused;

/// What a shared layer starts from. With S the layers that may be chosen (all, or all but the first
/// and last) and b shared layers:
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Layer `round(linspace(min S, max S, b))[i]`, halves rounded to even. Where the source is
    /// shared in the same way already, each stored layer itself.
    Stepwise,
    /// The mean of the layers that it stands for.
    Average,
    /// The first b of S.
    Lower,
    /// The last b of S.
    Upper,
    /// b layers drawn from S, in order.
    Random,
}

/// `count` numbers from `from` to `to` at equal distances, rounded with halves to even. The last is
/// `to`: what the division loses is far less than a half.
fn steps(from: usize, to: usize, count: usize) -> Vec<usize> {
    let step = if count > 1 { (to - from) as f64 / (count - 1) as f64 } else { 0.0 };
    (0..count).map(|i| (i as f64 * step + from as f64).round_ties_even() as usize).collect()
}

/// The layers of a source of `layers` that are kept so that the shared ones divide by `recursions`:
/// all, or as many as divide, at equal distances, the first and last ones always where they are not
/// shared.
///
/// # Errors
/// Too few layers for this many recursions.
pub fn kept(
    layers: usize,
    sharing: Sharing,
    recursions: usize,
) -> Result<Vec<usize>, ConvertError> {
    let ends = if sharing.keeps_ends() { 2 } else { 0 };
    if sharing == Sharing::None || recursions == 0 || layers < ends + recursions {
        let least = ends + recursions.max(1);
        let expected = format!("at least {least} for {recursions} recursions in this layout");
        let next = "choose fewer recursions, or a layout that shares every layer";
        return refused("the source: layers", expected, layers, next);
    }
    let shared = (layers - ends) / recursions * recursions;
    if shared + ends == layers {
        return Ok((0..layers).collect());
    }
    if ends == 0 {
        return Ok(steps(0, layers - 1, shared));
    }
    let middle = steps(1, layers - 2, shared);
    Ok(std::iter::once(0).chain(middle).chain([layers - 1]).collect())
}

/// For each stored layer of `plan` the layers of the source (numbers among the kept ones) that it
/// is made of: one, or several to be averaged.
pub fn sources(start: Start, sharing: Sharing, plan: &LayerPlan, seed: u64) -> Vec<Vec<usize>> {
    let layers = plan.unrolled().count();
    let offset = usize::from(sharing.keeps_ends());
    let (first, last) = (offset, layers - 1 - offset);
    let b = plan.stored - 2 * offset;
    let count = last + 1 - first;
    let shared: Vec<Vec<usize>> = match start {
        Start::Average => (offset..offset + b).map(|stored| uses_of(plan, stored)).collect(),
        Start::Stepwise => steps(first, last, b).into_iter().map(|l| vec![l]).collect(),
        Start::Lower => (first..first + b).map(|l| vec![l]).collect(),
        Start::Upper => (first + count - b..first + count).map(|l| vec![l]).collect(),
        Start::Random => drawn(first, count, b, seed).into_iter().map(|l| vec![l]).collect(),
    };
    if offset == 0 {
        return shared;
    }
    std::iter::once(vec![0]).chain(shared).chain([vec![layers - 1]]).collect()
}

/// For each stored layer the first unrolled layer that uses it.
pub(crate) fn first_uses(plan: &LayerPlan) -> Vec<Vec<usize>> {
    let uses = (0..plan.stored).map(|stored| plan.uses_of(stored).iter().take(1));
    uses.map(|first| first.map(|at| at.layer).collect()).collect()
}

/// The unrolled layers that use a stored one.
fn uses_of(plan: &LayerPlan, stored: usize) -> Vec<usize> {
    plan.unrolled().filter(|at| at.stored == stored).map(|at| at.layer).collect()
}

/// `b` of the `count` layers from `first` on, ascending.
fn drawn(first: usize, count: usize, b: usize, seed: u64) -> Vec<usize> {
    let mut dice = Stream::at(seed, Purpose::Init, 0, name_place("source layers"));
    let mut layers: Vec<usize> = (first..first + count).collect();
    for i in 0..b {
        let j = i + (dice.uniform() * (count - i) as f64) as usize;
        layers.swap(i, j);
    }
    layers.truncate(b);
    layers.sort_unstable();
    layers
}

/// Reads a list of layers: `0-14,29` is 0 to 14 and 29. It may repeat a layer, but not go back.
///
/// # Errors
/// What is no such list, or names a layer that the source of `layers` does not have.
pub fn parse_layers(text: &str, layers: usize) -> Result<Vec<usize>, ConvertError> {
    let mut list: Vec<usize> = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (Ok(from), Ok(to)) = (from.trim().parse::<usize>(), to.trim().parse::<usize>()) else {
            return bad_list(text, "numbers and ranges, like 0-14,29".into());
        };
        if from > to || to >= layers || list.last().is_some_and(|&last| from < last) {
            return bad_list(text, format!("ascending layers below {layers}"));
        }
        list.extend(from..=to);
        if list.len() > 100_000 {
            return bad_list(text, "at most 100000 layers".into());
        }
    }
    Ok(list)
}

fn bad_list<T>(text: &str, expected: String) -> Result<T, ConvertError> {
    let next = "list the source's layers that shall stay";
    refused("--keep: list of layers", expected, format!("\"{text}\""), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(start: Start, sharing: Sharing, layers: usize, recursions: usize) -> Vec<Vec<usize>> {
        let plan = sharing.plan(layers, recursions).expect("a legal layout");
        sources(start, sharing, &plan, 1)
    }

    fn one(start: Start, sharing: Sharing, layers: usize, recursions: usize) -> Vec<usize> {
        of(start, sharing, layers, recursions)
            .into_iter()
            .map(|l| {
                assert_eq!(l.len(), 1);
                l[0]
            })
            .collect()
    }

    /// Numbers from `np.round(np.linspace(a, b, n)).astype(int)`.
    #[test]
    fn steps_round_halves_to_even() {
        assert_eq!(steps(0, 5, 2), [0, 5]);
        assert_eq!(steps(0, 8, 3), [0, 4, 8]);
        assert_eq!(steps(0, 5, 3), [0, 2, 5]);
        assert_eq!(steps(0, 7, 3), [0, 4, 7]);
        assert_eq!(steps(1, 28, 9), [1, 4, 8, 11, 14, 18, 21, 25, 28]);
        assert_eq!(steps(1, 30, 10), [1, 4, 7, 11, 14, 17, 20, 24, 27, 30]);
        assert_eq!(steps(3, 9, 1), [3]);
        for (to, count) in (1..200).flat_map(|to| (2..to + 2).map(move |count| (to, count))) {
            assert_eq!(steps(0, to, count).last(), Some(&to), "{count} numbers up to {to}");
        }
    }

    #[test]
    fn starts_of_the_paper() {
        assert_eq!(one(Start::Stepwise, Sharing::Cycle, 9, 3), [0, 4, 8]);
        assert_eq!(
            one(Start::Stepwise, Sharing::MiddleCycle, 29, 3),
            [0, 1, 4, 8, 11, 14, 17, 20, 24, 27, 28]
        );
        assert_eq!(one(Start::Lower, Sharing::Sequence, 9, 3), [0, 1, 2]);
        assert_eq!(one(Start::Upper, Sharing::MiddleSequence, 8, 3), [0, 5, 6, 7]);
        assert_eq!(of(Start::Average, Sharing::Cycle, 6, 3), [[0, 2, 4], [1, 3, 5]]);
        assert_eq!(
            of(Start::Average, Sharing::MiddleCycle, 8, 3),
            [vec![0], vec![1, 3, 5], vec![2, 4, 6], vec![7]]
        );
        assert_eq!(
            of(Start::Average, Sharing::MiddleSequence, 6, 2),
            [vec![0], vec![1, 2], vec![3, 4], vec![5]]
        );
        let drawn = one(Start::Random, Sharing::MiddleCycle, 29, 3);
        assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]), "{drawn:?}");
        assert_eq!((drawn[0], drawn[10], drawn.len()), (0, 28, 11));
        let plan = Sharing::Cycle.plan(30, 3).expect("a legal layout");
        let of = |seed| sources(Start::Random, Sharing::Cycle, &plan, seed).concat();
        // A conversion is the same in every version, and another for another seed.
        assert_eq!(of(1), [3, 5, 14, 17, 18, 19, 20, 22, 25, 26]);
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn layers_are_dropped_until_they_divide() {
        assert_eq!(kept(9, Sharing::Cycle, 3).expect("fits"), (0..9).collect::<Vec<_>>());
        assert_eq!(kept(10, Sharing::Cycle, 3).expect("fits"), [0, 1, 2, 3, 4, 6, 7, 8, 9]);
        let found = kept(30, Sharing::MiddleCycle, 3).expect("fits");
        assert_eq!((found.len(), found[0], found[1], found[27], found[28]), (29, 0, 1, 28, 29));
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
        for (layers, sharing, recursions) in
            [(2, Sharing::Cycle, 3), (4, Sharing::MiddleCycle, 3), (4, Sharing::Cycle, 0)]
        {
            assert!(kept(layers, sharing, recursions).is_err());
        }
    }

    #[test]
    fn lists_of_layers() {
        assert_eq!(parse_layers("0-3,3,7", 8).expect("a list"), [0, 1, 2, 3, 3, 7]);
        for bad in ["", "a", "3-1", "0-8", "4,2", "1-", "-", "0,,1", "0-99999999999999999999"] {
            let error = parse_layers(bad, 8).expect_err(bad).to_string();
            assert!(error.contains("--keep"), "{error}");
        }
    }
}
