//! Depth under load: the cap of new tokens falls under pressure and rises at ease, one step at a
//! time.

use crate::Brownout;

/// The cap in force, a function of the loads seen so far.
#[derive(Debug)]
pub(crate) struct DepthCap {
    rule: Option<Brownout>,
    full: u32,
    cap: u32,
    pressed: u64,
    eased: u64,
}

impl DepthCap {
    /// Full depth `full` to begin with.
    pub(crate) fn new(rule: Option<Brownout>, full: u32) -> Self {
        Self { rule, full, cap: full, pressed: 0, eased: 0 }
    }

    /// Looks at one tick: requests waiting, pages to be had. Between pressure and ease the cap
    /// stays and both counts begin anew.
    pub(crate) fn observe(&mut self, waiting: usize, pages: usize) {
        let Some(rule) = self.rule else { return };
        let pressure = waiting > rule.waiting || pages < rule.pages;
        let ease = !pressure && waiting <= rule.ease && pages >= rule.pages.saturating_mul(2);
        self.pressed = if pressure { self.pressed + 1 } else { 0 };
        self.eased = if ease { self.eased + 1 } else { 0 };
        if self.pressed >= rule.fall {
            self.cap = self.cap.saturating_sub(1).max(rule.floor.min(self.full));
            self.pressed = 0;
        }
        if self.eased >= rule.rise {
            self.cap = (self.cap + 1).min(self.full);
            self.eased = 0;
        }
    }

    pub(crate) fn cap(&self) -> u32 {
        self.cap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Brownout =
        Brownout { floor: 2, waiting: 10, pages: 100, ease: 3, fall: 4, rise: 6 };

    /// The cap after each of `ticks` ticks under one load.
    fn caps(cap: &mut DepthCap, waiting: usize, pages: usize, ticks: usize) -> Vec<u32> {
        let mut one = || {
            cap.observe(waiting, pages);
            cap.cap()
        };
        (0..ticks).map(|_| one()).collect()
    }

    #[test]
    fn falls_under_pressure_rises_at_ease_and_stays_between() {
        let mut cap = DepthCap::new(Some(RULE), 4);
        assert_eq!(
            caps(&mut cap, 11, 1000, 13),
            [4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2],
            "no deeper than the floor"
        );
        assert_eq!(caps(&mut cap, 10, 1000, 50), [2; 50], "neither pressure nor ease");
        assert_eq!(caps(&mut cap, 4, 1000, 50), [2; 50]);
        assert_eq!(caps(&mut cap, 3, 1000, 13), [2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4]);
        assert_eq!(caps(&mut cap, 0, 1000, 20), [4; 20]);
    }

    #[test]
    fn pages_press_and_ease_too() {
        let mut cap = DepthCap::new(Some(RULE), 3);
        assert_eq!(caps(&mut cap, 0, 99, 4), [3, 3, 3, 2]);
        assert_eq!(caps(&mut cap, 0, 199, 20), [2; 20], "not yet twice as many");
        assert_eq!(caps(&mut cap, 0, 200, 6), [2, 2, 2, 2, 2, 3]);
    }

    #[test]
    fn a_moment_of_rest_begins_the_count_anew() {
        let mut cap = DepthCap::new(Some(RULE), 4);
        for _ in 0..20 {
            caps(&mut cap, 11, 1000, 3);
            caps(&mut cap, 10, 1000, 1);
        }
        assert_eq!(cap.cap(), 4);
    }

    #[test]
    fn without_a_rule_nothing_happens_and_no_floor_is_above_full_depth() {
        let mut cap = DepthCap::new(None, 4);
        assert_eq!(caps(&mut cap, usize::MAX, 0, 10), [4; 10]);
        let mut cap = DepthCap::new(Some(Brownout { floor: 9, ..RULE }), 4);
        assert_eq!(caps(&mut cap, usize::MAX, 0, 10), [4; 10]);
    }

    /// The rule of `--brownout 1`: more than 16 waiting for 8 ticks is a step down, at most 2 for
    /// 64 ticks a step up, and pages do not count.
    #[test]
    fn the_rule_that_nobody_changed() {
        let mut cap = DepthCap::new(Some(Brownout::default()), 3);
        assert_eq!(caps(&mut cap, 16, 0, 40), [3; 40]);
        let falling: Vec<u32> = [[3; 7].as_slice(), &[2; 8], &[1; 20]].concat();
        assert_eq!(caps(&mut cap, 17, 0, 35), falling);
        assert_eq!(caps(&mut cap, 3, 0, 200), [1; 200]);
        let rising: Vec<u32> = [[1; 63].as_slice(), &[2; 64], &[3; 10]].concat();
        assert_eq!(caps(&mut cap, 2, 0, 137), rising);
    }
}
