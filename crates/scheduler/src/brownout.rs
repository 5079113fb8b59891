//! Depth under load: the cap of new tokens falls under pressure and rises at ease, one step at a time.

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

    /// Looks at one tick: requests waiting, pages to be had. Between pressure and ease the cap stays and both counts
    /// begin anew.
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
