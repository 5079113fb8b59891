//! AdamW over all weights of a model, with global gradient clipping per group.

use std::ops::Range;

use model::Model;
use model::params::{Group, ParamSpec};
use ops::{AdamW, Moments, Weight};

use crate::OptimizerConfig;

/// The moments of every weight and the number of updates made. One of several processes updates a
/// part of each weight and holds the moments of that part alone (ZeRO stage 1: Rajbhandari et al.,
/// 2020, arXiv 1910.02054).
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// In the order of the parameter table; `None` for weights that collect no gradient.
    moments: Vec<Option<Moments>>,
    /// The values of each weight that are updated here.
    parts: Vec<Range<usize>>,
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
        let parts = model.weights().iter().map(|(_, w)| 0..w.shape().0 * w.shape().1).collect();
        Self { config: config.clone(), moments, parts, updates: 0 }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The moments, in the order of the parameter table; `None` for weights that are not trained.
    pub fn moments(&self) -> &[Option<Moments>] {
        &self.moments
    }

    /// Leaves the rest of each weight to other processes; the moments are to be those of `parts`.
    pub(crate) fn keep(&mut self, parts: Vec<Range<usize>>) {
        self.parts = parts;
    }

    /// The moments, to be replaced by those of the parts that are updated here.
    pub(crate) fn moments_mut(&mut self) -> &mut [Option<Moments>] {
        &mut self.moments
    }

    /// Takes over how many updates another process has made.
    pub(crate) fn count(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// Puts back what [`Optimizer::moments`] and [`Optimizer::updates`] gave.
    pub fn restore(&mut self, moments: Vec<Option<Moments>>, updates: u64) {
        (self.moments, self.updates) = (moments, updates);
    }

    /// Global norms of gradients whose `squares` these are, each weight's sum in the order of the
    /// parameter table.
    pub fn norms(model: &Model, squares: impl IntoIterator<Item = f64>) -> Norms {
        let (mut main, mut auxiliary) = (0.0, 0.0);
        for ((spec, _), square) in model.weights().iter().zip(squares) {
            if spec.group == Group::AuxiliaryRouter { auxiliary += square } else { main += square }
        }
        Norms { model: f64::sqrt(main), auxiliary: f64::sqrt(auxiliary) }
    }

    /// One update with learning rate `rate`; gradients are scaled so that neither norm exceeds the
    /// limit.
    pub fn update(&mut self, model: &Model, rate: f64, norms: Norms) {
        self.updates += 1;
        let parts = self.moments.iter_mut().zip(&self.parts);
        for ((spec, weight), (moments, part)) in model.weights().iter().zip(parts) {
            let Some(moments) = moments.as_mut().filter(|_| !part.is_empty()) else { continue };
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
            let scale = clip(norm, self.config.clip_norm);
            weight.adamw_part(&hyper, scale, part.clone(), moments);
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
