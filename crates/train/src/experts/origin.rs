//! Where the first process finds experts that it hands out, a weight of a layer at a time, so that
//! it never holds them all.

use checkpoint::TensorFile;
use model::ModelConfig;
use model::mlp::experts::BANKS;
use model::params::{ParamPlace, ParamSpec};

use super::placement;
use crate::TrainError;

/// A weight, or one of its moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Weight,
    First,
    Second,
}

/// What a run's experts are when it begins or goes on.
#[derive(Clone)]
pub(crate) enum Origin {
    /// Those of a seed, with zero moments.
    Fresh(u64),
    /// Those of a checkpoint.
    Stored { weights: TensorFile, optimizer: TensorFile },
}

impl Origin {
    /// The values of all experts.
    pub(super) fn read(&self, spec: &ParamSpec, side: Side) -> Result<Vec<f32>, TrainError> {
        Ok(match (self, side) {
            (Self::Fresh(seed), Side::Weight) => spec.fresh(*seed),
            (Self::Fresh(_), _) => vec![0.0; spec.count()],
            (Self::Stored { weights, .. }, Side::Weight) => weights.read_f32(&spec.name)?,
            (Self::Stored { optimizer, .. }, Side::First) => {
                optimizer.read_f32(&format!("first.{}", spec.name))?
            }
            (Self::Stored { optimizer, .. }, Side::Second) => {
                optimizer.read_f32(&format!("second.{}", spec.name))?
            }
        })
    }
}

/// Whether processes that share out experts share out the weight of this entry.
pub(crate) fn is_of_shared_experts(config: &ModelConfig, spec: &ParamSpec) -> bool {
    match spec.place {
        ParamPlace::Layer { stored, part } if BANKS.contains(&part) => {
            placement::is_shared(config.mlp.settings().computing_experts(stored))
        }
        _ => false,
    }
}
