//! The k largest of some scores. Among equal scores the choice is that of `std::nth_element` in the
//! GNU C++ library, which PyTorch's `topk` runs on a CPU where k is more than a 64th of the scores:
//! saturated gates tie often, and the reference cases were computed with these choices.

/// For each score whether it is among the `k` largest (`k` from 1 to their number). NaN counts as
/// largest.
pub(crate) fn top_k(scores: &[f32], k: usize) -> Vec<bool> {
    let mut queue: Vec<(f32, usize)> = scores.iter().copied().zip(0..).collect();
    select(&mut queue, k - 1);
    let mut chosen = vec![false; scores.len()];
    queue[..k].iter().for_each(|(_, i)| chosen[*i] = true);
    chosen
}

type Scored = (f32, usize);

fn before(a: &Scored, b: &Scored) -> bool {
    (a.0.is_nan() && !b.0.is_nan()) || a.0 > b.0
}

/// Introspective selection (Musser, 1997): afterwards nobody behind `nth` comes before anybody up
/// to it.
fn select(queue: &mut [Scored], nth: usize) {
    let (mut first, mut last) = (0, queue.len());
    if nth >= last {
        return;
    }
    let mut depth = 2 * last.ilog2();
    while last - first > 3 {
        if depth == 0 {
            queue[first..last].sort_by(|a, b| b.0.total_cmp(&a.0));
            return;
        }
        depth -= 1;
        let cut = partition(&mut queue[first..last]) + first;
        if cut <= nth { first = cut } else { last = cut }
    }
    insertion_sort(&mut queue[first..last]);
}

/// Splits by the median of three; returns where the second part begins.
fn partition(queue: &mut [Scored]) -> usize {
    let a = 1;
    let b = queue.len() / 2;
    let c = queue.len() - 1;
    let median = if before(&queue[a], &queue[b]) {
        if before(&queue[b], &queue[c]) {
            b
        } else if before(&queue[a], &queue[c]) {
            c
        } else {
            a
        }
    } else if before(&queue[a], &queue[c]) {
        a
    } else if before(&queue[b], &queue[c]) {
        c
    } else {
        b
    };
    queue.swap(0, median);
    let (mut low, mut high) = (1, queue.len());
    loop {
        while before(&queue[low], &queue[0]) {
            low += 1;
        }
        high -= 1;
        while before(&queue[0], &queue[high]) {
            high -= 1;
        }
        if low >= high {
            return low;
        }
        queue.swap(low, high);
        low += 1;
    }
}

fn insertion_sort(queue: &mut [Scored]) {
    for i in 1..queue.len() {
        let mut j = i;
        while j > 0 && before(&queue[j], &queue[j - 1]) {
            queue.swap(j, j - 1);
            j -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    #[test]
    fn takes_the_largest() {
        let mut stream = Stream::at(3, Purpose::Router, 0, 0);
        for n in [1usize, 2, 3, 4, 5, 17, 100, 1000] {
            let scores: Vec<f32> =
                (0..n).map(|_| (stream.uniform() * 20.0).floor() as f32).collect();
            for k in [1, n.div_ceil(3), n] {
                let chosen = top_k(&scores, k);
                assert_eq!(chosen.iter().filter(|c| **c).count(), k);
                let least = scores
                    .iter()
                    .zip(&chosen)
                    .filter(|(_, c)| **c)
                    .map(|(s, _)| *s)
                    .fold(f32::MAX, f32::min);
                let most = scores
                    .iter()
                    .zip(&chosen)
                    .filter(|(_, c)| !**c)
                    .map(|(s, _)| *s)
                    .fold(f32::MIN, f32::max);
                assert!(least >= most, "{n} {k}");
            }
        }
    }

    /// Scores that tie often, and what `torch.topk` of PyTorch 2.15 takes of them on a CPU: a digit
    /// a score, then whether it is taken.
    #[test]
    fn takes_those_of_equal_scores_that_pytorch_takes() {
        for line in include_str!("top_k_ties.txt").lines() {
            let (scores, taken) = line.split_once(' ').expect("two columns");
            let scores: Vec<f32> = scores.bytes().map(|digit| f32::from(digit - b'0')).collect();
            let taken: Vec<bool> = taken.bytes().map(|digit| digit == b'1').collect();
            let k = taken.iter().filter(|taken| **taken).count();
            assert_eq!(top_k(&scores, k), taken, "{line}");
        }
    }

    #[test]
    fn survives_nan_and_orderly_input() {
        assert_eq!(top_k(&[1.0, f32::NAN, 2.0], 1), [false, true, false]);
        let ascending: Vec<f32> = (0..5000).map(|i| i as f32).collect();
        assert!(top_k(&ascending, 10)[4990..].iter().all(|c| *c));
        assert_eq!(top_k(&vec![0.0; 5000], 77).iter().filter(|c| **c).count(), 77);
    }
}
