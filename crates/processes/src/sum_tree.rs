//! Sums in the shape of a binary tree over a fixed number of parts, whoever holds which of them.
//!
//! The parts are numbered. Two neighbours `2i` and `2i + 1` of a level make part `i` of the next
//! one; a last one without a neighbour waits, and what is left over at the end is added from the
//! right. So the shape follows from the number of parts alone. Whoever holds a run of parts adds up
//! those subtrees that lie in it whole ([`forest`]) and hands the partial sums on; the receiver
//! goes on in the same tree. The sum of two numbers does not depend on their order, so the shape
//! fixes every bit.

use std::ops::Range;

/// The consecutive parts, of `parts` in all, that fall to `rank` of `size`: as equally many for
/// each as there can be.
pub fn share(parts: usize, rank: usize, size: usize) -> Range<usize> {
    rank * parts / size..(rank + 1) * parts / size
}

/// A subtree: its level, the parts themselves being level 0, and its number in the level.
pub type Subtree = (u32, usize);

/// The largest whole subtrees that a run of parts makes up, in order.
pub fn forest(parts: Range<usize>) -> Vec<Subtree> {
    let mut tree = SumTree::default();
    parts.for_each(|part| tree.push((0, part), (), |(), ()| ()));
    tree.waiting.into_iter().map(|(subtree, ())| subtree).collect()
}

/// Partial sums that wait for their neighbours.
#[derive(Clone, Debug)]
pub struct SumTree<T> {
    waiting: Vec<(Subtree, T)>,
}

impl<T> Default for SumTree<T> {
    fn default() -> Self {
        Self { waiting: Vec::new() }
    }
}

impl<T> SumTree<T> {
    /// Adds the sum of a subtree, behind those that stand left of it. `add(left, right)` is called
    /// for every two neighbours that are both there.
    pub fn push(&mut self, subtree: Subtree, sum: T, mut add: impl FnMut(T, T) -> T) {
        let (mut at, mut sum) = (subtree, sum);
        while at.1 % 2 == 1
            && let Some((_, left)) =
                self.waiting.pop_if(|((level, number), _)| (*level, *number + 1) == at)
        {
            (at, sum) = ((at.0 + 1, at.1 / 2), add(left, sum));
        }
        self.waiting.push((at, sum));
    }

    /// The partial sums, those of [`forest`] if the parts of a run were pushed.
    pub fn partial(self) -> Vec<T> {
        self.waiting.into_iter().map(|(_, sum)| sum).collect()
    }

    /// The sum of all parts, once all have come; `None` if there are none.
    pub fn sum(self, mut add: impl FnMut(T, T) -> T) -> Option<T> {
        self.partial().into_iter().rev().reduce(|right, left| add(left, right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum as it is spelled: brackets show its shape.
    fn spelled(parts: usize, size: usize) -> String {
        let add = |left: String, right: String| format!("({left}+{right})");
        let mut whole = SumTree::default();
        for rank in 0..size {
            let mine = share(parts, rank, size);
            let subtrees = forest(mine.clone());
            let mut tree = SumTree::default();
            mine.for_each(|part| tree.push((0, part), part.to_string(), add));
            let partial = tree.partial();
            assert_eq!(partial.len(), subtrees.len(), "{parts} parts, process {rank} of {size}");
            for (subtree, sum) in subtrees.into_iter().zip(partial) {
                whole.push(subtree, sum, add);
            }
        }
        whole.sum(add).unwrap_or_default()
    }

    #[test]
    fn the_shape_follows_from_the_number_of_parts_alone() {
        assert_eq!(spelled(1, 1), "0");
        assert_eq!(spelled(4, 1), "((0+1)+(2+3))");
        assert_eq!(spelled(7, 1), "(((0+1)+(2+3))+((4+5)+6))");
        for parts in 0..40 {
            for size in 1..=9 {
                assert_eq!(spelled(parts, size), spelled(parts, 1), "{parts} parts, {size}");
            }
        }
    }

    #[test]
    fn shares_are_consecutive_and_nearly_equal() {
        for parts in 0..50 {
            for size in 1..=9 {
                let mut next = 0;
                for rank in 0..size {
                    let mine = share(parts, rank, size);
                    assert_eq!(mine.start, next);
                    assert!((parts / size..=parts.div_ceil(size)).contains(&mine.len()));
                    next = mine.end;
                }
                assert_eq!(next, parts);
            }
        }
    }

    #[test]
    fn few_partial_sums_wait() {
        for parts in 1..200usize {
            let levels = parts.ilog2() as usize + 1;
            assert!(forest(0..parts).len() <= levels, "{parts}");
            assert!(forest(parts..2 * parts + 1).len() <= 2 * levels, "{parts}");
        }
    }
}
