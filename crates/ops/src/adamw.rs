//! AdamW (Loshchilov and Hutter, 2019) over a weight and its gradient buffer, in place and in one
//! pass.

pub use kernels::adamw::AdamW;
use kernels::adamw::adamw_step;

use crate::Weight;

/// The running first and second moments of one weight's gradient.
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
}

impl Weight {
    /// One AdamW update from the gradient collected so far times `gradient_scale`; the gradient
    /// counts as spent.
    pub fn adamw(&self, hyper: &AdamW, gradient_scale: f32, moments: &mut Moments) {
        self.update(|values, gradient| {
            adamw_step(
                hyper,
                gradient_scale,
                values,
                gradient,
                &mut moments.first,
                &mut moments.second,
            );
        });
    }
}
