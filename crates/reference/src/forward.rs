//! A whole model over one sequence: who goes how deep, logits, and the losses of routers.

use std::collections::BTreeMap;

use crate::layer::{Layers, Row};
use crate::matrix::{Matrix, add};
use crate::routing::{self, RouterLosses};
use crate::settings::Settings;

/// How a router decides.
#[derive(Clone, Copy)]
pub enum Decide<'a> {
    /// As in training: expert-choice compares the rows of the sequence.
    Training,
    /// Row by row: at each recursion the least logit that goes on; `None` lets every row pass.
    ByThresholds {
        /// One for each recursion of the model.
        thresholds: &'a [Option<f64>],
        /// Whether the logit of the auxiliary router is compared.
        auxiliary: bool,
        /// Whether it is training that decides so: the router is taught by the comparison all the
        /// same.
        taught: bool,
    },
}

impl Decide<'_> {
    pub(crate) fn trains(self) -> bool {
        matches!(self, Self::Training | Self::ByThresholds { taught: true, .. })
    }
}

/// What decides beside weights.
#[derive(Clone, Copy)]
pub struct Decision<'a> {
    /// Whether rows are compared, or each is measured by thresholds.
    pub decide: Decide<'a>,
    /// The optimizer step, from 0: the one that is done, or of which the model is.
    pub step: u64,
    /// The random router's die at a recursion and position, in [0, 1).
    pub die: &'a dyn Fn(usize, usize) -> f64,
    /// Token-choice's bias on the selection; empty for none.
    pub bias: &'a [f64],
    /// The same of the experts of every layer; where experts choose rows, their thresholds.
    pub expert_bias: &'a [f64],
}

/// What a pass gives.
#[derive(Clone, Debug)]
pub struct Found {
    /// For each row the logits of all tokens.
    pub logits: Vec<Vec<f64>>,
    /// Recursions that each row took.
    pub depths: Vec<usize>,
    /// Losses of the router, as means over the rows of this sequence, unweighted.
    pub losses: RouterLosses,
    /// Multiply-adds of all products and of attention, the head's among them.
    pub products: u64,
    /// The least difference that a decision hung on: with less than rounding, f32 may decide
    /// otherwise.
    pub margin: f64,
}

/// The model over one sequence.
pub fn forward(
    config: &Settings,
    weights: &BTreeMap<String, Matrix>,
    ids: &[u32],
    decision: Decision<'_>,
) -> Found {
    let mut layers = Layers::new(config, weights);
    layers.expert_bias = decision.expert_bias.to_vec();
    layers.compares = matches!(decision.decide, Decide::Training);
    let embed = layers.weight("embed");
    let multipliers = config.group("multipliers");
    let entry = multipliers.value("embedding", 1.0);
    let mut rows = Vec::new();
    for (position, &id) in ids.iter().enumerate() {
        let x = embed.row(id as usize).iter().map(|x| entry * x).collect();
        rows.push(Row { id: id as usize, position, x, remembered: Vec::new(), before: Vec::new() });
    }
    let (mut depths, mut losses) = (vec![config.recursions(); ids.len()], RouterLosses::default());
    let count = config.count("layers");
    match config.blocks() {
        None => {
            let ends = usize::from(config.text("sharing") == "middle_sequence");
            (0..count - ends).for_each(|layer| layers.run(layer, &mut rows));
            rows.iter_mut().for_each(|row| row.remembered.clear());
            (count - ends..count).for_each(|layer| layers.run(layer, &mut rows));
        }
        Some(blocks) => {
            let ends = blocks[0][0];
            (0..ends).for_each(|layer| layers.run(layer, &mut rows));
            let mut router = Recursions { layers: &mut layers, blocks: &blocks, decision };
            (depths, losses) = router.run(&mut rows);
            rows.iter_mut().for_each(|row| row.remembered.clear());
            (count - ends..count).for_each(|layer| layers.run(layer, &mut rows));
        }
    }
    let head = if config.flag("tie_embeddings") { "embed" } else { "head" };
    let mut logits = Vec::new();
    for row in &rows {
        let h = layers.stream_norm("norm", "norm_bias", &row.x);
        let (over, cap) =
            (multipliers.value("logits_divisor", 1.0), multipliers.value("logit_cap", 0.0));
        let z = layers.times(head, &h).into_iter().map(|z| z / over);
        let has_bias = config.has("head_bias", false);
        let bias = has_bias.then(|| layers.weight("head_bias").row(0));
        let z = z.enumerate().map(|(v, z)| z + bias.map_or(0.0, |bias| bias[v]));
        logits.push(z.map(|z| if cap > 0.0 { cap * (z / cap).tanh() } else { z }).collect());
    }
    losses.means.extend(layers.pool.loss().map(|loss| ("expert_pooled", loss)));
    layers.adapter_losses();
    losses.means.extend(std::mem::take(&mut layers.losses));
    Found { logits, depths, losses, products: layers.products, margin: layers.margin }
}

/// The shared block with its router.
struct Recursions<'r, 'a> {
    layers: &'r mut Layers<'a>,
    blocks: &'r [Vec<usize>],
    decision: Decision<'r>,
}

impl Recursions<'_, '_> {
    fn run(&mut self, rows: &mut [Row]) -> (Vec<usize>, RouterLosses) {
        let router = self.layers.config.table("router");
        match router.text("kind") {
            "fixed" => {
                for block in self.blocks {
                    block.iter().for_each(|&layer| self.layers.run(layer, rows));
                }
                (vec![self.blocks.len(); rows.len()], RouterLosses::default())
            }
            "token_choice" => self.by_row(&router, rows),
            _ => self.by_recursion(&router, rows),
        }
    }

    /// The block on some of the rows: the results in their order.
    fn block(&mut self, r: usize, rows: &[Row]) -> Vec<Row> {
        let mut some = rows.to_vec();
        self.blocks[r].iter().for_each(|&layer| self.layers.run(layer, &mut some));
        some
    }

    /// Expert-choice and its control: at each recursion those of the rows kept so far.
    fn by_recursion(&mut self, router: &Settings, rows: &mut [Row]) -> (Vec<usize>, RouterLosses) {
        let (mut depths, mut losses) = (vec![0; rows.len()], RouterLosses::default());
        let mut kept: Vec<usize> = (0..rows.len()).collect();
        for r in 0..self.blocks.len() {
            let candidates: Vec<Row> = kept.iter().map(|&t| rows[t].clone()).collect();
            let choice = routing::choose(
                self.layers,
                router,
                self.decision,
                routing::Candidates { recursion: r, rows: &candidates, length: rows.len() },
                &mut losses,
            );
            kept = choice.kept.iter().map(|&i| kept[i]).collect();
            let some: Vec<Row> = kept.iter().map(|&t| rows[t].clone()).collect();
            let done = self.block(r, &some);
            for ((&t, done), gate) in kept.iter().zip(done).zip(choice.gates) {
                depths[t] = r + 1;
                rows[t].remembered = done.remembered;
                for (x, y) in rows[t].x.iter_mut().zip(done.x) {
                    *x = match choice.gating.as_str() {
                        "weighted" => *x + gate * y,
                        "additive" => *x + y,
                        "blend" => *x + gate * (y - *x),
                        "replace" => y,
                        other => panic!("gating {other}"),
                    };
                }
            }
        }
        (depths, losses)
    }

    /// Token-choice: a depth and a gate for each row, then `x + g B^depth(x)`.
    fn by_row(&mut self, router: &Settings, rows: &mut [Row]) -> (Vec<usize>, RouterLosses) {
        let mut losses = RouterLosses::default();
        let choices = routing::assign(self.layers, router, self.decision, rows, &mut losses);
        let every = router.text("gate_on") == "every_pass";
        let mut going: Vec<(usize, Row)> = rows.iter().cloned().enumerate().collect();
        for r in 0..self.blocks.len() {
            going.retain(|(t, _)| choices[*t].0 > r);
            let some: Vec<Row> = going.iter().map(|(_, row)| row.clone()).collect();
            let done = self.block(r, &some);
            for ((t, row), done) in going.iter_mut().zip(done) {
                let (depth, gate) = choices[*t];
                *row = done;
                if every {
                    row.x.iter_mut().for_each(|y| *y *= gate);
                }
                if depth == r + 1 {
                    let factor = if every { 1.0 } else { gate };
                    let y: Vec<f64> = row.x.iter().map(|y| factor * y).collect();
                    add(&mut rows[*t].x, &y);
                }
            }
        }
        (choices.into_iter().map(|(depth, _)| depth).collect(), losses)
    }
}
