//! Which of several things are alike: groups by complete linkage, and by k-means.

use model::rng::Stream;

/// How often k-means assigns at most.
const ROUNDS: usize = 50;

/// A step of an agglomeration: two groups by their least members, and the largest distance between
/// a member of one and one of the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Union {
    pub(crate) height: f64,
    pub(crate) a: usize,
    pub(crate) b: usize,
}

/// All unions of `n` things by complete linkage, lowest first: always the two groups with the least
/// largest distance, of equal ones those of the least members.
pub(crate) fn unions(distances: &[f64], n: usize) -> Vec<Union> {
    let mut between = distances.to_vec();
    let mut alive: Vec<usize> = (0..n).collect();
    let mut all = Vec::new();
    while alive.len() > 1 {
        let mut best = Union { height: f64::INFINITY, a: alive[0], b: alive[1] };
        for (i, &a) in alive.iter().enumerate() {
            for &b in &alive[i + 1..] {
                if between[a * n + b] < best.height {
                    best = Union { height: between[a * n + b], a, b };
                }
            }
        }
        all.push(best);
        alive.retain(|&x| x != best.b);
        for &x in &alive {
            let largest = between[best.a * n + x].max(between[best.b * n + x]);
            between[best.a * n + x] = largest;
            between[x * n + best.a] = largest;
        }
    }
    all
}

/// The groups after the first `count` of these unions, each ascending, by their least members.
pub(crate) fn groups(n: usize, unions: &[Union]) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
    for union in unions {
        let moved = std::mem::take(&mut all[union.b]);
        all[union.a].extend(moved);
    }
    all.retain(|group| !group.is_empty());
    all.iter_mut().for_each(|group| group.sort_unstable());
    all
}

/// `k` groups of points by k-means, begun by k-means++ (Arthur and Vassilvitskii, 2007); each
/// ascending, by their least members. A group that loses all its points takes the one that is
/// farthest from its own middle.
pub(crate) fn k_means(points: &[Vec<f32>], k: usize, dice: &mut Stream) -> Vec<Vec<usize>> {
    let n = points.len();
    let mut middles: Vec<Vec<f64>> = Vec::new();
    let first = (dice.uniform() * n as f64) as usize;
    middles.push(wide(&points[first.min(n - 1)]));
    while middles.len() < k {
        let far: Vec<f64> = points.iter().map(|point| nearest(point, &middles).1).collect();
        let mut thrown = dice.uniform() * far.iter().sum::<f64>();
        let last = far.iter().rposition(|d| *d > 0.0).unwrap_or(middles.len() % n);
        let at = far.iter().position(|d| {
            thrown -= d;
            thrown < 0.0
        });
        middles.push(wide(&points[at.unwrap_or(last)]));
    }
    let mut of: Vec<usize> = vec![usize::MAX; n];
    for _ in 0..ROUNDS {
        let mut now: Vec<usize> = points.iter().map(|point| nearest(point, &middles).0).collect();
        fill_empty(&mut now, points, &middles);
        if now == of {
            break;
        }
        of = now;
        for (group, middle) in middles.iter_mut().enumerate() {
            let members: Vec<usize> = (0..n).filter(|&i| of[i] == group).collect();
            middle.fill(0.0);
            for &i in &members {
                let sums = middle.iter_mut().zip(&points[i]);
                sums.for_each(|(sum, x)| *sum += f64::from(*x) / members.len() as f64);
            }
        }
    }
    let mut all: Vec<Vec<usize>> =
        (0..k).map(|group| (0..n).filter(|&i| of[i] == group).collect()).collect();
    all.sort();
    all
}

fn wide(point: &[f32]) -> Vec<f64> {
    point.iter().map(|x| f64::from(*x)).collect()
}

/// The nearest middle and the square of its distance.
fn nearest(point: &[f32], middles: &[Vec<f64>]) -> (usize, f64) {
    let mut best = (0, f64::INFINITY);
    for (group, middle) in middles.iter().enumerate() {
        let pairs = point.iter().zip(middle);
        let square: f64 = pairs.map(|(x, m)| (f64::from(*x) - m).powi(2)).sum();
        if square < best.1 {
            best = (group, square);
        }
    }
    best
}

fn fill_empty(of: &mut [usize], points: &[Vec<f32>], middles: &[Vec<f64>]) {
    for group in 0..middles.len() {
        if of.contains(&group) {
            continue;
        }
        let mut farthest: Option<(usize, f64)> = None;
        for (i, point) in points.iter().enumerate() {
            if of.iter().filter(|g| **g == of[i]).count() == 1 {
                continue;
            }
            let (_, far) = nearest(point, &middles[of[i]..=of[i]]);
            if farthest.is_none_or(|(_, most)| far > most) {
                farthest = Some((i, far));
            }
        }
        if let Some((i, _)) = farthest {
            of[i] = group;
        }
    }
}

/// The cosine of the angle between two lists of numbers; 0 where one of them is zero.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    if aa > 0.0 && bb > 0.0 { ab / (aa * bb).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::rng::{Purpose, Stream};

    fn line(points: &[f64]) -> Vec<f64> {
        points.iter().flat_map(|a| points.iter().map(move |b| (a - b).abs())).collect()
    }

    /// On a line with a pencil: 0 and 1 join at 1, 10 and 12 at 2, then all at 12.
    #[test]
    fn complete_linkage_joins_by_the_largest_distance() {
        let all = unions(&line(&[0.0, 1.0, 10.0, 12.0]), 4);
        let heights: Vec<f64> = all.iter().map(|union| union.height).collect();
        assert_eq!(heights, [1.0, 2.0, 12.0]);
        assert_eq!(groups(4, &all[..2]), [vec![0, 1], vec![2, 3]]);
        // 4 lies nearer to 2 than to 7, but 0 and 4 are farther apart than 4 and 7.
        let all = unions(&line(&[0.0, 2.0, 4.9, 7.9]), 4);
        assert_eq!(groups(4, &all[..2]), [vec![0, 1], vec![2, 3]]);
    }

    /// Each height is the largest distance between the members of the two groups.
    #[test]
    fn heights_are_largest_distances() {
        let n = 7;
        for seed in 0..20 {
            let mut dice = Stream::at(seed, Purpose::Init, 0, 2);
            let mut distances = vec![0.0; n * n];
            for a in 0..n {
                for b in 0..a {
                    let far = dice.uniform();
                    (distances[a * n + b], distances[b * n + a]) = (far, far);
                }
            }
            let all = unions(&distances, n);
            for (made, union) in all.iter().enumerate() {
                let now = groups(n, &all[..made]);
                let of = |member| now.iter().find(|group| group.contains(&member)).expect("in one");
                let (a, b) = (of(union.a), of(union.b));
                let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
                let most = pairs.map(|(a, b)| distances[a * n + b]).fold(0.0, f64::max);
                assert_eq!(union.height, most, "{seed}: union {made}");
            }
        }
    }

    #[test]
    fn k_means_finds_groups_that_lie_apart_and_fills_every_group() {
        let points: Vec<Vec<f32>> =
            [0.0, 0.1, 5.0, 5.1, 9.0].iter().map(|x| vec![*x, -*x]).collect();
        for seed in 0..20 {
            let mut dice = Stream::at(seed, Purpose::Init, 0, 1);
            assert_eq!(k_means(&points, 3, &mut dice), [vec![0, 1], vec![2, 3], vec![4]]);
            let same = vec![vec![1.0f32]; 4];
            let found = k_means(&same, 3, &mut dice);
            assert!(found.len() == 3 && found.iter().all(|group| !group.is_empty()), "{found:?}");
        }
    }

    #[test]
    fn cosines() {
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 2.0]), 0.0);
        assert!((cosine(&[1.0, 1.0], &[2.0, 2.0]) - 1.0).abs() < 1e-12);
    }
}
