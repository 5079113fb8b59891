//! The experts of a layer read one projection of the row in its place (Mixture of Latent Experts,
//! Liu et al., 2025, arXiv 2503.23100): their gates and ups `W_e` become `A_e B` with one `B` for
//! all, the largest right singular vectors of all `W_e` below each other, and `A_e = W_e B^T`. It
//! is the nearest such product, and nothing is lost where their rows span no more than `B` has.

use model::mlp::experts::{EXPERTS_GATE_UP, EXPERTS_LATENT};
use model::params::ParamPlace;
use model::{MlpConfig, Model, ModelConfig, RouterState};
use serde::{Deserialize, Serialize};

use super::member::{PassSettings, RunningPass};
use crate::algebra::largest_rows;
use crate::bank;
use crate::error::{check_share, nothing_goes, refused};
use crate::seen::Wanted;
use crate::{ModelChange, ShrinkError};

/// `{ kind = "latent", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LatentSettings {
    /// The share of the width of rows that experts do without.
    pub share: f64,
}

impl Default for LatentSettings {
    fn default() -> Self {
        Self { share: 0.5 }
    }
}

impl PassSettings for LatentSettings {
    fn check(&self) -> Result<(), ShrinkError> {
        check_share("latent: share", self.share)
    }

    fn begin(&self, config: &ModelConfig, _: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        bank::experts_of(config)?;
        let width = bank::staying(config.width, self.share);
        if self.share > 0.0 && width == config.width {
            let least = format!("one of the {} columns", config.width);
            return nothing_goes("latent: share", self.share, &least);
        }
        if config.relax.kind() != "none" {
            let expected = "\"none\": adapters belong to the matrices that there are";
            let next = "merge them into the layers first, with lathe convert";
            return refused("the checkpoint: relax", expected, config.relax.kind(), next);
        }
        Ok(Box::new(Latent { width }))
    }
}

struct Latent {
    /// What experts read of a row, in numbers.
    width: usize,
}

impl RunningPass for Latent {
    fn wanted(&self) -> Wanted {
        Wanted::default()
    }

    fn acts_at_the_end(&self) -> bool {
        true
    }

    fn finish(&mut self, model: &Model, _: &RouterState) -> Result<ModelChange, ShrinkError> {
        let (old, mut change) = (model.config(), ModelChange::default());
        let mut experts = bank::experts_of(old)?.clone();
        if self.width == old.width {
            return Ok(change);
        }
        for (stored, count) in bank::layers(old)? {
            let place = ParamPlace::Layer { stored, part: EXPERTS_GATE_UP };
            let all = bank::weight(model, &place).unwrap_or_default();
            let (b, kept) = largest_rows(&all, old.width, self.width);
            let mut products = Vec::with_capacity(all.len() / old.width * self.width);
            for row in all.chunks_exact(old.width) {
                for direction in b.chunks_exact(old.width) {
                    let terms = row.iter().zip(direction);
                    products.push(terms.map(|(w, b)| f64::from(*w) * b).sum::<f64>() as f32);
                }
            }
            let latent = ParamPlace::Layer { stored, part: EXPERTS_LATENT };
            change.weights.insert(place, products);
            change.weights.insert(latent, b.iter().map(|x| *x as f32).collect());
            let went = format!(
                "{count} experts read {} of {} numbers; {:.2} % of the squares of their gates and \
                 ups stay",
                self.width,
                old.width,
                100.0 * kept
            );
            change.of_layers.insert(stored, went);
        }
        experts.latent = self.width;
        change.config = Some(ModelConfig { mlp: MlpConfig::Experts(experts), ..old.clone() });
        Ok(change)
    }
}
