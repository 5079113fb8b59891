//! AdamW over all weights of a model, with global gradient clipping per group.

use model::Model;
use model::params::{Group, ParamSpec};
use ops::{AdamW, Moments, Weight};

use crate::OptimizerConfig;

/// The moments of every weight and the number of updates made.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// In the order of the parameter table; `None` for weights that collect no gradient.
    moments: Vec<Option<Moments>>,
    updates: u64,
}

/// Gradient norms before clipping.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norms {
    /// Of everything but auxiliary routers.
    pub model: f64,
    /// Of auxiliary routers, which are trained and clipped apart.
    pub auxiliary: f64,
}

impl Optimizer {
    /// Zero moments for the weights of `model` that collect gradients.
    pub fn new(model: &Model, config: &OptimizerConfig) -> Self {
        let moments = model.weights().iter().map(|(_, weight)| moments_of(weight)).collect();
        Self { config: config.clone(), moments, updates: 0 }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The moments, in the order of the parameter table; `None` for weights that are not trained.
    pub fn moments(&self) -> &[Option<Moments>] {
        &self.moments
    }

    /// Puts back what [`Optimizer::moments`] and [`Optimizer::updates`] gave.
    pub fn restore(&mut self, moments: Vec<Option<Moments>>, updates: u64) {
        (self.moments, self.updates) = (moments, updates);
    }

    /// Global norms of the gradients that the weights hold.
    pub fn norms(model: &Model) -> Norms {
        let (mut main, mut auxiliary) = (0.0, 0.0);
        for (spec, weight) in model.weights() {
            let square = weight.gradient_square();
            if spec.group == Group::AuxiliaryRouter { auxiliary += square } else { main += square }
        }
        Norms { model: f64::sqrt(main), auxiliary: f64::sqrt(auxiliary) }
    }

    /// One update with learning rate `rate`; gradients are scaled so that neither norm exceeds the
    /// limit.
    pub fn update(&mut self, model: &Model, rate: f64, norms: Norms) {
        self.updates += 1;
        for ((spec, weight), moments) in model.weights().iter().zip(&mut self.moments) {
            let Some(moments) = moments else { continue };
            let apart = spec.group == Group::AuxiliaryRouter;
            let norm = if apart { norms.auxiliary } else { norms.model };
            let lr = if apart { rate * self.config.auxiliary_router_scale } else { rate };
            let hyper = AdamW {
                lr,
                beta1: self.config.beta1,
                beta2: self.config.beta2,
                eps: self.config.eps,
                weight_decay: if decays(spec) { self.config.weight_decay } else { 0.0 },
                step: self.updates,
            };
            weight.adamw(&hyper, clip(norm, self.config.clip_norm), moments);
        }
    }
}

fn moments_of(weight: &Weight) -> Option<Moments> {
    weight.collects_gradient().then(|| Moments::of(weight))
}

/// Everything decays but norm scales.
fn decays(spec: &ParamSpec) -> bool {
    spec.group != Group::Norm
}

/// What to multiply gradients of norm `norm` by so that it is at most `limit` (0: no limit).
fn clip(norm: f64, limit: f64) -> f32 {
    if limit > 0.0 && norm > limit { (limit / (norm + 1e-6)) as f32 } else { 1.0 }
}
