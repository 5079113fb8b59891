//! Where FourierFT and WaveFT put their numbers: the first of a permutation that torch draws.
//!
//! torch's generator on a CPU is MT19937 (Matsumoto and Nishimura, 1998), and its `randperm` swaps
//! each place with one behind it, `i + number % (n - i)`.

use crate::Result;
use crate::peft::settings::Settings;

/// Above it torch draws numbers of 64 bits, which are other permutations.
const MOST: usize = (u32::MAX / 20) as usize;

/// Rows and columns of `count` places of a matrix `[out, into]`.
pub(super) fn drawn(
    settings: &Settings,
    count: usize,
    out: usize,
    into: usize,
) -> Result<Vec<(usize, usize)>> {
    let config = settings.object();
    let seed = config.size("random_loc_seed")?;
    let seed = config.must("random_loc_seed", seed)? as u32;
    let all = out * into;
    if all >= MOST {
        let expected = format!("modules of less than {MOST} weights, of which torch draws places");
        return Err(config.unsupported("random_loc_seed", expected));
    }
    if count > all {
        return Err(config.wrong("n_frequency", format!("at most the {all} weights of a module")));
    }
    let mut generator = Twister::new(seed);
    let mut places: Vec<u32> = (0..all as u32).collect();
    for i in 0..count.min(all.saturating_sub(1)) {
        let at = i + generator.next() as usize % (all - i);
        places.swap(i, at);
    }
    let place = |&place: &u32| (place as usize / into, place as usize % into);
    Ok(places[..count].iter().map(place).collect())
}

/// MT19937 with the usual start from one number.
struct Twister {
    state: [u32; 624],
    at: usize,
}

impl Twister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let before = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = before.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, at: 624 }
    }

    fn turn(&mut self) {
        for i in 0..624 {
            let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + 397) % 624] ^ (mixed >> 1) ^ odd;
        }
        self.at = 0;
    }

    fn next(&mut self) -> u32 {
        if self.at == 624 {
            self.turn();
        }
        let mut x = self.state[self.at];
        self.at += 1;
        x ^= x >> 11;
        x ^= (x << 7) & 0x9d2c_5680;
        x ^= (x << 15) & 0xefc6_0000;
        x ^ (x >> 18)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the published generator from its usual seed, and the ten-thousandth.
    #[test]
    fn numbers_of_the_published_generator() {
        let mut generator = Twister::new(5489);
        let first: Vec<u32> = (0..3).map(|_| generator.next()).collect();
        assert_eq!(first, [3_499_211_612, 581_869_302, 3_890_346_734]);
        let last = (3..10_000).map(|_| generator.next()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
