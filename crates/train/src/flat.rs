//! All trained weights as one row of values, and which process updates which of them.

use std::ops::Range;

use model::Model;
use ops::SQUARES_CHUNK;

/// The weights that collect gradients, one behind the other in the order of the parameter table,
/// and cut into as many consecutive parts as there are processes, of nearly equal length. Cuts
/// stand where sums of squares are cut, so no sum begins in one part and ends in another.
#[derive(Clone, Debug)]
pub(crate) struct FlatWeights {
    /// The number of each weight in the table, and where it stands in the row.
    weights: Vec<(usize, Range<usize>)>,
    /// Where the part of each process begins, and the end of the last.
    bounds: Vec<usize>,
}

impl FlatWeights {
    /// For those weights of `model`, by their numbers, that `holds`, in `parts` parts.
    pub(crate) fn new(model: &Model, parts: usize, holds: impl Fn(usize) -> bool) -> Self {
        let mut weights = Vec::new();
        let mut end = 0;
        for (i, (_, weight)) in model.weights().iter().enumerate() {
            if weight.collects_gradient() && holds(i) {
                let start = end;
                end += weight.shape().0 * weight.shape().1;
                weights.push((i, start..end));
            }
        }
        Self::of(weights, parts)
    }

    fn of(weights: Vec<(usize, Range<usize>)>, parts: usize) -> Self {
        let end = weights.last().map_or(0, |(_, range)| range.end);
        let cuts = weights.iter().flat_map(|(_, range)| range.clone().step_by(SQUARES_CHUNK));
        let cuts: Vec<usize> = cuts.chain([end]).collect();
        let bound = |part: usize| {
            let wanted = (part as u128 * end as u128 / parts as u128) as usize;
            // The last cut is the end, beyond which nothing is wanted.
            cuts[cuts.partition_point(|&cut| cut < wanted)]
        };
        Self { weights, bounds: (0..=parts).map(bound).collect() }
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.bounds[self.bounds.len() - 1]
    }

    /// The part of process `rank`.
    pub(crate) fn part(&self, rank: usize) -> Range<usize> {
        self.bounds[rank]..self.bounds[rank + 1]
    }

    /// How many values each process has.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.bounds.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// The numbers of the weights in the table and where each stands in the row.
    pub(crate) fn weights(&self) -> &[(usize, Range<usize>)] {
        &self.weights
    }

    /// The pieces of weights that lie in a range of the row, in order: the number of each weight,
    /// and the range of the weight's own values.
    pub(crate) fn pieces(&self, range: Range<usize>) -> Vec<(usize, Range<usize>)> {
        let within = self.weights.iter().map(|(i, at)| {
            let (start, end) = (range.start.max(at.start), range.end.min(at.end));
            (*i, start.saturating_sub(at.start)..end.saturating_sub(at.start))
        });
        within.filter(|(_, piece)| !piece.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of these lengths, numbered by twos as if every other one were frozen.
    fn row(lengths: &[usize], parts: usize) -> FlatWeights {
        let mut weights = Vec::new();
        let mut end = 0;
        for (i, length) in lengths.iter().enumerate() {
            weights.push((2 * i, end..end + length));
            end += length;
        }
        FlatWeights::of(weights, parts)
    }

    #[test]
    fn parts_cover_all_and_are_nearly_equal() {
        const C: usize = SQUARES_CHUNK;
        for lengths in [vec![10, 20 * C + 7, 3, C, 5 * C], vec![1], vec![7; 40], vec![]] {
            let all: usize = lengths.iter().sum();
            for parts in 1..=9 {
                let flat = row(&lengths, parts);
                assert_eq!(flat.len(), all);
                assert_eq!(flat.lengths().iter().sum::<usize>(), all);
                let mut seen = vec![0; lengths.len()];
                for rank in 0..parts {
                    let part = flat.part(rank);
                    assert!(part.len() <= all / parts + C, "{lengths:?} {parts}");
                    for (i, piece) in flat.pieces(part) {
                        // No sum of squares is cut.
                        assert!(piece.start == seen[i / 2] && piece.start.is_multiple_of(C));
                        let whole = piece.end == lengths[i / 2];
                        assert!(whole || piece.end.is_multiple_of(C));
                        seen[i / 2] = piece.end;
                    }
                }
                assert_eq!(seen, lengths);
            }
        }
    }
}
