//! AdamW (Loshchilov and Hutter, 2019) over a weight and its gradient buffer, in place and in one
//! pass.

use std::ops::Range;

pub use kernels::adamw::AdamW;
use kernels::adamw::adamw_step;

use crate::Weight;

/// The running first and second moments of one weight's gradient, or of a part of it.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// Mean of the gradient.
    pub first: Vec<f32>,
    /// Mean of its square.
    pub second: Vec<f32>,
}

impl Moments {
    /// Zero moments for `weight`.
    pub fn of(weight: &Weight) -> Self {
        let n = weight.shape().0 * weight.shape().1;
        Self { first: vec![0.0; n], second: vec![0.0; n] }
    }

    /// Those of a part of the weight alone. Panics outside of it.
    pub fn part(&self, range: Range<usize>) -> Self {
        Self { first: self.first[range.clone()].to_vec(), second: self.second[range].to_vec() }
    }
}

impl Weight {
    /// One AdamW update from the gradient collected so far times `gradient_scale`; the gradient
    /// counts as spent.
    pub fn adamw(&self, hyper: &AdamW, gradient_scale: f32, moments: &mut Moments) {
        self.adamw_part(hyper, gradient_scale, 0..self.shape().0 * self.shape().1, moments);
    }

    /// The same of the values in `range` alone, of which these are the moments; the whole gradient
    /// counts as spent. Panics where range and moments do not fit.
    pub fn adamw_part(
        &self,
        hyper: &AdamW,
        gradient_scale: f32,
        range: Range<usize>,
        moments: &mut Moments,
    ) {
        self.update(|values, gradient| {
            adamw_step(
                hyper,
                gradient_scale,
                &mut values[range.clone()],
                &gradient[range],
                &mut moments.first,
                &mut moments.second,
            );
        });
    }
}
