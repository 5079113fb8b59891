//! The networks by which routers score rows.

use std::sync::Arc;

use ops::{Ops, Tensor2, Weight};
use serde::{Deserialize, Serialize};

use crate::params::{Group, Init, ParamPlace, ParamSpec, RouterSite, Take};
use crate::sizes::Sizes;

/// The shape of a scoring network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// `d -> out`: one matrix.
    Linear,
    /// `d -> 2d -> GELU -> out`
    Mlp,
    /// `d -> 4d -> GELU -> out`: what the paper calls a wide MLP. (The reference code's `wide_mlp`
    /// is its `mlp`.)
    WideMlp,
}

/// As in a recipe.
impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Linear => "\"linear\"",
            Self::Mlp => "\"mlp\"",
            Self::WideMlp => "\"wide_mlp\"",
        })
    }
}

/// Where a router and its scoring network stand in the table.
#[derive(Clone, Copy, Debug)]
pub struct RouterPlace {
    /// Whose rows it decides about.
    pub site: RouterSite,
    /// Whether it is one that is trained on its own beside another.
    pub auxiliary: bool,
    /// The recursion that it decides about; `None` where one router serves all.
    pub recursion: Option<usize>,
}

impl RouterPlace {
    pub(crate) fn of(self, factor: &'static str) -> ParamPlace {
        let Self { site, auxiliary, recursion } = self;
        ParamPlace::Router { site, auxiliary, recursion, factor }
    }
}

impl Network {
    fn hidden(self, width: usize) -> Option<usize> {
        match self {
            Network::Linear => None,
            Network::Mlp => Some(2 * width),
            Network::WideMlp => Some(4 * width),
        }
    }

    /// Its weights: `score` `[outputs, d]`, or `up` `[hidden, d]` and `down` `[outputs, hidden]`.
    pub(crate) fn specs(self, place: RouterPlace, sizes: &Sizes, outputs: usize) -> Vec<ParamSpec> {
        let (d, normal) = (sizes.width, Init::Normal(sizes.init_std));
        let group = if place.auxiliary { Group::AuxiliaryRouter } else { Group::Router };
        match self.hidden(d) {
            None => vec![ParamSpec::new(place.of("score"), (outputs, d), normal, group)],
            Some(hidden) => vec![
                ParamSpec::new(place.of("up"), (hidden, d), normal, group),
                ParamSpec::new(place.of("down"), (outputs, hidden), normal, group),
            ],
        }
    }

    pub(crate) fn build(self, place: RouterPlace, take: &mut Take) -> Scorer {
        match self {
            Network::Linear => Scorer { up: None, out: take.take(&place.of("score")) },
            _ => Scorer { up: Some(take.take(&place.of("up"))), out: take.take(&place.of("down")) },
        }
    }
}

/// A built scoring network.
#[derive(Debug)]
pub(crate) struct Scorer {
    up: Option<Arc<Weight>>,
    out: Arc<Weight>,
}

impl Scorer {
    /// `[t, d] -> [t, outputs]` logits of `x / temperature`.
    pub(crate) fn forward(&self, ops: Ops, x_td: Tensor2, temperature: f32) -> Tensor2 {
        let x_td = if temperature == 1.0 { x_td } else { ops::scale(x_td, 1.0 / temperature) };
        match &self.up {
            None => ops.linear(x_td, &self.out),
            Some(up) => ops.linear(ops.gelu(ops.linear(x_td, up)), &self.out),
        }
    }
}
