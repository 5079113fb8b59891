//! Experts out of dense MLPs: copies of them (sparse upcycling, Komatsuzaki et al., 2022, arXiv
//! 2212.05055), copies of which each forgets some neurons (drop-upcycling, Nakamura et al., 2025,
//! arXiv 2502.19261), or their neurons shared out (LLaMA-MoE, Zhu et al., 2024, arXiv 2406.16554).

use model::mlp::dense::{DOWN, GATE_UP};
use model::mlp::experts::{self, EXPERTS_DOWN, EXPERTS_GATE_UP};
use model::params::{ParamPlace, Part};
use model::rng::{Purpose, Stream, name_place};
use model::{ExpertRouterConfig, MlpConfig, ModelConfig};
use serde::{Deserialize, Serialize};

use crate::ConvertError;
use crate::error::refused;
use crate::words::{mlp_in_words, router_in_words};

/// What the experts of a layer start from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertStart {
    /// Each is the MLP; as their weights sum to 1, the model computes what the dense one does.
    Copies,
    /// Each is the MLP with a share of its neurons drawn anew, other ones in each expert, from the
    /// normal distribution with mean and deviation of the numbers that they replace.
    Drop {
        /// The share of the neurons.
        share: f64,
    },
    /// Each is `1/E` of the neurons. With all experts of a row, and weights of 1, the model
    /// computes what the dense one does.
    Split,
}

/// What dense MLPs become.
#[derive(Clone, Debug, PartialEq)]
pub struct Upcycling {
    /// The layers' new MLPs.
    pub experts: experts::Config,
    /// What each expert starts from.
    pub start: ExpertStart,
}

impl Upcycling {
    /// # Errors
    /// A source whose MLPs are not plain dense ones, and experts that cannot be made of them: of
    /// another width, with parts of their own, or weighted so that nothing like the dense model
    /// comes out.
    pub(crate) fn check(&self, source: &ModelConfig) -> Result<(), ConvertError> {
        let Self { experts, start } = self;
        if source.mlp != MlpConfig::default() {
            let expected = "dense MLPs with SiLU and without biases";
            let next = "convert a model that has them";
            return refused("the source: mlp", expected, mlp_in_words(&source.mlp), next);
        }
        let width = if experts.width == 0 { source.ffn } else { experts.width };
        let needed = match start {
            ExpertStart::Split => source.ffn / experts.count.max(1),
            _ => source.ffn,
        };
        let whole = *start != ExpertStart::Split || source.ffn.is_multiple_of(experts.count.max(1));
        if width != needed || !whole {
            let expected = match start {
                ExpertStart::Split => {
                    format!("ffn / count with a count that divides {}", source.ffn)
                }
                _ => format!("{}, the width of the dense MLP, or 0", source.ffn),
            };
            let found = format!("{width} with {} experts", experts.count);
            return refused("--mlp: width", expected, found, "give that width");
        }
        let others = experts.identity_experts + experts.zero_experts + experts.constant_experts;
        // A shortcut adds a second MLP to the dense one, and experts of it take other rows.
        let biased = experts.biases || experts.dense_biases;
        let made_of_mlps = experts.shared == 0 && !biased && experts.limit == 0.0;
        let plain = made_of_mlps && !experts.shortcut && experts.latent == 0 && !experts.modulated;
        if !plain || others > 0 || !experts.counts.is_empty() {
            let expected = "experts without shared, biases, limit, shortcut, latent, modulated and \
                            zero-computation ones, which dense MLPs lack, and as many in each \
                            layer (no counts)";
            let found = mlp_in_words(&MlpConfig::Experts(experts.clone()));
            return refused("--mlp", expected, found, "leave these out");
        }
        if let ExpertStart::Drop { share } = start
            && !((share * source.ffn as f64).round() >= 1.0 && *share <= 1.0)
        {
            let expected = format!("at most 1, and one of {} neurons at least", source.ffn);
            return refused("--drop", expected, share, "give such a share");
        }
        self.check_weights()
    }

    /// Weights of a row sum to 1, or, where experts have a part of the neurons each, to their
    /// number.
    fn check_weights(&self) -> Result<(), ConvertError> {
        let sum = match self.start {
            ExpertStart::Split => self.experts.count as f64,
            _ => 1.0,
        };
        let found = match &self.experts.router {
            ExpertRouterConfig::TopK(router) if router.normalize && router.least == 0.0 => {
                router.scale
            }
            ExpertRouterConfig::Hash(_) => 1.0,
            other => {
                let expected = "\"top_k\" with normalize and least = 0, or \"hash\": the weights \
                                of a row have one sum";
                let next = "choose one of these";
                return refused("--mlp: router", expected, router_in_words(other), next);
            }
        };
        if found == sum {
            return Ok(());
        }
        let expected = format!("{sum}, so that results are as large as those of the dense MLP");
        refused("--mlp: router.scale", expected, found, "set it")
    }

    /// What the matrix of a router with `outputs` rows starts from, `count` numbers; `None` for a
    /// fresh one. Where a row takes all parts of an MLP, logits of zero weigh them alike; matrices
    /// ahead of the last one start fresh, as nothing would move them otherwise.
    pub(crate) fn router(&self, outputs: usize, count: usize) -> Option<Vec<f32>> {
        let ExpertRouterConfig::TopK(router) = &self.experts.router else { return None };
        let all = self.start == ExpertStart::Split && router.top_k == self.experts.count;
        (all && outputs == self.experts.count).then(|| vec![0.0; count])
    }

    /// The bank `part` of stored layer `stored`, made of the layer's dense matrix, and the place of
    /// that; `None` for another part.
    pub(crate) fn source_of(&self, place: &ParamPlace) -> Option<(ParamPlace, Bank)> {
        let ParamPlace::Layer { stored, part } = *place else { return None };
        let (part, kind): (Part, Bank) = match part {
            EXPERTS_GATE_UP => (GATE_UP, Bank::GateUp),
            EXPERTS_DOWN => (DOWN, Bank::Down),
            _ => return None,
        };
        Some((ParamPlace::Layer { stored, part }, kind))
    }

    /// The bank of stored layer `stored`, expert after expert, out of the dense matrix: gate and up
    /// `[2 f, d]`, or down `[d, f]`.
    pub(crate) fn bank(
        &self,
        dense: &[f32],
        kind: Bank,
        stored: usize,
        seed: u64,
        ffn: usize,
    ) -> Vec<f32> {
        let count = self.experts.count;
        let mut all = Vec::new();
        for expert in 0..count {
            let neurons = match self.start {
                ExpertStart::Split => {
                    let width = ffn / count;
                    expert * width..(expert + 1) * width
                }
                _ => 0..ffn,
            };
            let mut own = kind.of_neurons(dense, neurons, ffn);
            if let ExpertStart::Drop { share } = self.start {
                let lost = lost(share, ffn, seed, stored, expert);
                kind.draw(&mut own, &lost, ffn, (seed, stored, expert));
            }
            all.extend(own);
        }
        all
    }
}

/// The neurons that an expert forgets, the same in all its matrices.
fn lost(share: f64, ffn: usize, seed: u64, stored: usize, expert: usize) -> Vec<usize> {
    let place = name_place(&format!("layers.{stored}.experts.{expert}"));
    let mut dice = Stream::at(seed, Purpose::Init, 1, place);
    let mut left: Vec<usize> = (0..ffn).collect();
    let count = (share * ffn as f64).round() as usize;
    let mut lost = Vec::new();
    for _ in 0..count.min(ffn) {
        let at = (dice.uniform() * left.len() as f64) as usize;
        lost.push(left.swap_remove(at));
    }
    lost.sort_unstable();
    lost
}

/// Which matrices of an MLP a bank holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bank {
    GateUp,
    Down,
}

impl Bank {
    /// The part of a dense matrix that belongs to some neurons.
    fn of_neurons(self, dense: &[f32], neurons: std::ops::Range<usize>, ffn: usize) -> Vec<f32> {
        match self {
            Self::GateUp => {
                let (gate, up) = dense.split_at(dense.len() / 2);
                let d = gate.len() / ffn;
                let rows = neurons.start * d..neurons.end * d;
                [&gate[rows.clone()], &up[rows]].concat()
            }
            Self::Down => {
                let rows = dense.chunks_exact(ffn);
                rows.flat_map(|row| row[neurons.clone()].iter().copied()).collect()
            }
        }
    }

    /// Draws the numbers of some neurons anew, as large and as spread as they were.
    fn draw(
        self,
        own: &mut [f32],
        lost: &[usize],
        ffn: usize,
        (seed, stored, expert): (u64, usize, usize),
    ) {
        let places: Vec<Vec<usize>> = match self {
            Self::GateUp => {
                let d = own.len() / (2 * ffn);
                let rows = |from: usize| {
                    lost.iter().flat_map(|&f| (from + f) * d..(from + f + 1) * d).collect()
                };
                vec![rows(0), rows(ffn)]
            }
            Self::Down => {
                let rows = own.len() / ffn;
                vec![(0..rows).flat_map(|i| lost.iter().map(move |&f| i * ffn + f)).collect()]
            }
        };
        for (which, places) in places.into_iter().enumerate() {
            let count = places.len().max(1) as f64;
            let mean = places.iter().map(|&at| f64::from(own[at])).sum::<f64>() / count;
            let square: f64 = places.iter().map(|&at| (f64::from(own[at]) - mean).powi(2)).sum();
            let deviation = (square / count).sqrt();
            let name = format!("layers.{stored}.experts.{expert}.{self:?}.{which}");
            let mut dice = Stream::at(seed, Purpose::Init, 2, name_place(&name));
            for at in places {
                own[at] = (mean + deviation * dice.normal()) as f32;
            }
        }
    }
}
