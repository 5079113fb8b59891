//! Gradients of losses over the head: they are made in the forward, while logits are at hand, which
//! costs less than making the logits twice.

use std::sync::Arc;

use crate::output_head::HeadSinks;
use crate::seam::{Raw, values, values_mut};

/// Gradients of a loss for a factor of 1.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// That of the rows, if something before them learns.
    pub(crate) dx_td: Option<Raw>,
    /// That of the head, if it learns.
    pub(crate) de_vd: Option<Arc<Vec<f32>>>,
}

impl Kept {
    /// Hands both on, times the gradient `g` of the loss, a single number: the head's to `sinks`.
    pub(crate) fn handed_on(self, g: &Raw, sinks: &HeadSinks) -> [Option<Raw>; 1] {
        let factor = values(g)[0];
        if let Some(de) = &self.de_vd {
            sinks.add(factor, de);
        }
        [self.dx_td.map(|mut dx| {
            if factor != 1.0 {
                kernels::rows::scale(values_mut(&mut dx), factor);
            }
            dx
        })]
    }
}
