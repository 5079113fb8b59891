//! Experts that take the rows of the layer before (ScMoE, Cai et al., 2024, arXiv 2404.05019; the
//! layer of LongCat-Flash, arXiv 2509.01322): `x' = x + mlp(h) + experts(h_before)`, where `h` are
//! the normed rows of this layer's MLP and `h_before` those of the MLP before it. What the experts
//! write does not wait for the attention between the two.

use ops::Tensor2;

use super::member::Mlp;
use crate::carry::Carry;
use crate::context::LayerContext;
use crate::error::{ConfigError, refuse};
use crate::layout::LayerPlan;

/// What a row carries from a layer to the one behind it.
const BEFORE: &str = "rows of the mlp before";

/// A dense MLP that leaves its rows to the experts of the layer behind it.
#[derive(Debug)]
pub(super) struct Leaving(pub(super) Box<dyn Mlp>);

impl Mlp for Leaving {
    fn carries(&self) -> bool {
        true
    }

    fn forward(
        &self,
        h_td: Tensor2,
        residual_td: Tensor2,
        context: &mut LayerContext<'_, '_>,
    ) -> Tensor2 {
        context.carry.set(BEFORE, h_td.clone());
        self.0.forward(h_td, residual_td, context)
    }
}

/// The rows that the layer before left.
pub(super) fn left(carry: &mut Carry) -> Tensor2 {
    // The check of a config lets no layer of experts stand anywhere else than behind such a layer.
    carry.remove(BEFORE).expect("the layer before leaves its rows")
}

/// Refuses plans in which a layer of experts does not stand behind a dense one each time it is
/// used, or that dense one not ahead of it.
pub(super) fn check(
    plan: &LayerPlan,
    has_experts: impl Fn(usize) -> bool,
) -> Result<(), ConfigError> {
    let stretches = [&plan.before, &plan.after].into_iter().chain(&plan.recursions);
    for uses in stretches {
        for (i, at) in uses.iter().enumerate() {
            let wrong = if has_experts(at.stored) {
                let before = i.checked_sub(1).and_then(|i| uses.get(i));
                before.is_none_or(|it| it.stored + 1 != at.stored || has_experts(it.stored))
            } else {
                let next = uses.get(i + 1).map(|next| next.stored);
                has_experts(at.stored + 1) && next != Some(at.stored + 1)
            };
            if wrong {
                let found = format!("true with stored layer {}", at.stored);
                let expected = "false, or layers of experts that each time stand behind a dense \
                                layer: in the same recursion, the same prelude or the same coda \
                                (mlp.every = 2 with layers in pairs)";
                return refuse("mlp.shortcut", found, expected.into());
            }
        }
    }
    Ok(())
}
