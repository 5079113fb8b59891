//! A keyed bijection on `0..n`, so that a shuffled order needs no table: a Feistel network (Luby
//! and Rackoff 1988) on the next power of four, walked until the image falls below `n` (cycle
//! walking, Black and Rogaway 2002).

const ROUNDS: u64 = 6;

/// Image of `index < n` under the bijection of `0..n` that belongs to seed and epoch.
pub(crate) fn permute(index: u64, n: u64, seed: u64, epoch: u64) -> u64 {
    debug_assert!(index < n);
    let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
    let half = bits.div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let key = mix(seed ^ mix(epoch.wrapping_add(0x9E37_79B9_7F4A_7C15)));
    let mut image = index;
    loop {
        let (mut left, mut right) = (image >> half, image & mask);
        for round in 0..ROUNDS {
            let scrambled =
                mix(key.wrapping_add(mix(right.wrapping_mul(ROUNDS).wrapping_add(round)))) & mask;
            (left, right) = (right, left ^ scrambled);
        }
        image = left << half | right;
        if image < n {
            return image;
        }
    }
}

/// The finalizer of splitmix64 (Steele, Lea and Flood 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(n: u64, seed: u64, epoch: u64) -> Vec<u64> {
        (0..n).map(|i| permute(i, n, seed, epoch)).collect()
    }

    #[test]
    fn is_a_bijection_for_many_lengths_and_seeds() {
        let lengths = (1..=70).chain([127, 128, 129, 255, 256, 257, 1000, 4096, 4097, 65_537]);
        for n in lengths {
            for seed in [0, 1, 42, u64::MAX] {
                for epoch in [0, 1, 1 << 40] {
                    let mut images = order(n, seed, epoch);
                    images.sort_unstable();
                    assert!(images.into_iter().eq(0..n), "n={n} seed={seed} epoch={epoch}");
                }
            }
        }
    }

    /// A run that continues on another version must meet the order that it began with.
    #[test]
    fn the_order_is_this_one() {
        assert_eq!(order(10, 1, 0), [7, 8, 4, 9, 3, 0, 1, 5, 2, 6]);
        assert_eq!(order(16, u64::MAX, 3), [8, 7, 11, 15, 0, 9, 3, 13, 4, 10, 12, 2, 1, 14, 5, 6]);
    }

    #[test]
    fn stays_in_range_for_huge_lengths() {
        for n in [(1u64 << 40) + 7, 1 << 62] {
            let mut seen = std::collections::HashSet::new();
            for i in (0..1000).map(|k| k * (n / 1000)) {
                let image = permute(i, n, 7, 3);
                assert!(image < n && seen.insert(image));
            }
        }
    }

    #[test]
    fn epochs_and_seeds_give_different_orders() {
        let base = order(500, 1, 0);
        assert_ne!(base, order(500, 1, 1));
        assert_ne!(base, order(500, 2, 0));
        assert_ne!(order(500, 0, 1), order(500, 1, 0));
    }

    #[test]
    fn looks_shuffled() {
        let n = 2000u64;
        let images = order(n, 3, 0);
        let fixed = images.iter().zip(0..).filter(|(image, i)| **image == *i).count();
        let ascents = images.windows(2).filter(|w| w[0] < w[1]).count();
        assert!(fixed < 12, "{fixed} fixed points");
        assert!((900..1100).contains(&ascents), "{ascents} ascents");
    }
}
