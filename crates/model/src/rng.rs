//! Random numbers by address: a number is a pure function of (seed, purpose, step, place), so
//! nothing has to be saved or kept in order.

/// What a random number is for. Two purposes never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights; place = hash of the parameter's name.
    Init = 1,
    /// The random router; place = sequence and position, part = recursion.
    Router = 2,
    /// Drawing tokens; place = position.
    Sample = 3,
    /// The order of windows in an epoch, lengths and arrival times of benches.
    Shuffle = 4,
    /// Who finds room at an expert; place = sequence and position, parts = layer, recursion and
    /// expert.
    Room = 5,
    /// Experts by dice; place = sequence and position, parts = layer and use of it.
    Experts = 6,
}

/// The stream of numbers at one address.
#[derive(Clone, Debug)]
pub struct Stream(u64);

/// Mixes one word (the finaliser of SplitMix64; Steele, Lea and Flood, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The address `state` with a further word.
fn absorb(state: u64, word: u64) -> u64 {
    mix(state.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ mix(word.wrapping_add(0x2545_f491_4f6c_dd1d)))
}

/// A stable 64-bit hash of a name (FNV-1a), for use as a place.
pub fn name_place(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl Stream {
    /// The stream at an address.
    pub fn at(seed: u64, purpose: Purpose, step: u64, place: u64) -> Self {
        let mut state = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
        for word in [purpose as u64, step, place] {
            state = absorb(state, word);
        }
        Self(state)
    }

    /// The stream at number `part` of this address, for what is numbered once more.
    pub fn part(self, part: u64) -> Self {
        Self(absorb(self.0, part))
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in [0, 1) with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_independent_and_stable() {
        let first = |seed, step, place| Stream::at(seed, Purpose::Init, step, place).next_u64();
        assert_eq!(first(1, 2, 3), first(1, 2, 3));
        let all: std::collections::BTreeSet<u64> = (0..20)
            .flat_map(|a| (0..20).flat_map(move |b| (0..20).map(move |c| (a, b, c))))
            .map(|(a, b, c)| first(a, b, c))
            .collect();
        assert_eq!(all.len(), 8000);
        assert_ne!(
            Stream::at(1, Purpose::Init, 0, 0).next_u64(),
            Stream::at(1, Purpose::Sample, 0, 0).next_u64()
        );
    }

    /// Weights, dice and tokens of a seed are the same in every version: numbers worked out apart.
    #[test]
    fn addresses_stay() {
        let mut plain = Stream::at(1, Purpose::Init, 2, 3);
        assert_eq!(plain.next_u64(), 0x5293_0718_1e18_6c6f);
        let mut part = Stream::at(1, Purpose::Router, 2, 3).part(4);
        assert_eq!(part.next_u64(), 0x6768_d381_ae6a_c446);
        assert_eq!(name_place("embed"), 0x0b0e_48b4_160d_ca6e);
    }

    /// Streams of seeds and parts that are neighbours share no number.
    #[test]
    fn parts_of_neighbouring_seeds_do_not_overlap() {
        let mut all = std::collections::BTreeSet::new();
        for seed in 0..20 {
            for part in 0..20 {
                let mut stream = Stream::at(seed, Purpose::Router, 5, 7).part(part);
                all.extend([stream.next_u64(), stream.next_u64()]);
            }
        }
        assert_eq!(all.len(), 800);
    }

    #[test]
    fn moments_are_right() {
        let mut stream = Stream::at(7, Purpose::Init, 0, 0);
        let normals: Vec<f64> = (0..100_000).map(|_| stream.normal()).collect();
        let mean = normals.iter().sum::<f64>() / 1e5;
        let variance = normals.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(
            mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02,
            "mean {mean}, variance {variance}"
        );
    }
}
