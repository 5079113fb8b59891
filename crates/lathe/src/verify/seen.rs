//! A probe that remembers everything a case records.

use model::{Choice, Probe, RoutingEvent};
use ops::{Tensor2, read_rows};

/// A probe that remembers everything a case records.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) stream: Vec<Vec<f32>>,
    pub(super) kept: Vec<Vec<u32>>,
    pub(super) depth: Vec<u32>,
    pub(super) logits: Vec<f32>,
    pub(super) losses: Vec<SeenLoss>,
    pub(super) rows: usize,
}

impl Probe for Seen {
    fn stream(&mut self, x_td: &Tensor2) {
        self.rows = x_td.dims()[0];
        self.stream.push(read_rows(x_td));
    }

    fn routed(&mut self, event: &RoutingEvent<'_>) {
        match event.choice {
            Choice::GoOn { kept, .. } => {
                let on = event.candidates.iter().zip(kept).filter(|(_, kept)| **kept);
                self.kept.push(on.map(|(&row, _)| row).collect());
            }
            Choice::Target(depth) => {
                self.depth = depth.to_vec();
                self.logits = event.logits.to_vec();
            }
            Choice::Plan(_) => {}
        }
    }

    fn loss(&mut self, name: &'static str, value: f32, weight: f32) {
        let name = match name {
            "balance" => "loss.balance",
            "z" => "loss.z",
            _ => "loss.aux",
        };
        match self.losses.iter_mut().find(|loss| loss.name == name) {
            Some(loss) => loss.value += value,
            None => self.losses.push(SeenLoss { name, value, weight }),
        }
    }
}

/// A loss beside the cross-entropy, under the name that cases give it.
pub(super) struct SeenLoss {
    pub(super) name: &'static str,
    pub(super) value: f32,
    pub(super) weight: f32,
}
