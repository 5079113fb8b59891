//! What a router over experts remembers of a row's way (RMoE, Qiu et al., 2024, arXiv 2408.06793):
//! `h' = GRU(P x, h)`, and the logits are `S h'`. The cell is one for all layers; `P` and `S` are
//! of the layer. A row carries `h` from layer to layer and from recursion to recursion; it is zero
//! ahead of the first layer and of the first behind the recursions.

use std::sync::Arc;

use ops::{Tensor2, Weight};

use crate::carry::Carry;
use crate::error::{ConfigError, refuse};
use crate::params::{Group, Init, ParamPlace, ParamSpec, Take};
use crate::pass::Pass;
use crate::routers::RouterPlace;
use crate::sizes::Sizes;

/// What a row carries: `h`.
pub(super) const STATE: &str = "expert router state";

/// `[w, d]`: `P`, into the cell.
const PROJECT: &str = "project";
/// `[E, w]`: `S`, out of the state.
const SCORE: &str = "score";
/// `[3 w, w]` and `[1, 3 w]`: the cell's product of its input, in the order `r`, `z`, `n`.
const INPUT: (&str, &str) = ("cell_input", "cell_input_bias");
/// `[3 w, w]` and `[1, 3 w]`: the cell's product of the state, in the same order.
const OLD: (&str, &str) = ("cell_state", "cell_state_bias");

/// Refuses a width that no memory has.
pub(super) fn check(width: usize) -> Result<(), ConfigError> {
    if width > 1 << 14 {
        return refuse("mlp.router.memory", width, format!("at most {}", 1 << 14));
    }
    Ok(())
}

/// The weights of a layer's router at `place` beside the cell.
pub(super) fn specs(
    width: usize,
    sizes: &Sizes,
    place: RouterPlace,
    experts: usize,
) -> Vec<ParamSpec> {
    let normal = Init::Normal(sizes.init_std);
    let matrices = [(PROJECT, (width, sizes.width)), (SCORE, (experts, width))];
    let specs = matrices
        .map(|(factor, shape)| ParamSpec::new(place.of(factor), shape, normal, Group::Router));
    specs.into()
}

/// The cell of all layers.
pub(super) fn cell(width: usize, sizes: &Sizes) -> Vec<ParamSpec> {
    let mut table = Vec::new();
    for (matrix, bias) in [INPUT, OLD] {
        let (place, normal) =
            (ParamPlace::Routers { factor: matrix }, Init::Normal(sizes.init_std));
        table.push(ParamSpec::new(place, (3 * width, width), normal, Group::Router));
        let place = ParamPlace::Routers { factor: bias };
        table.push(ParamSpec::new(place, (1, 3 * width), Init::Zeros, Group::Norm));
    }
    table
}

/// A matrix with its bias.
type Product = (Arc<Weight>, Arc<Weight>);

/// The memory of a layer's router over its weights.
#[derive(Debug)]
pub(super) struct Memory {
    width: usize,
    project: Arc<Weight>,
    input: Product,
    old: Product,
    score: Arc<Weight>,
}

impl Memory {
    pub(super) fn build(width: usize, place: RouterPlace, take: &mut Take) -> Self {
        let [input, old] = [INPUT, OLD].map(|(matrix, bias)| {
            [matrix, bias].map(|factor| take.take_shared(&ParamPlace::Routers { factor })).into()
        });
        let [project, score] = [PROJECT, SCORE].map(|factor| take.take(&place.of(factor)));
        Self { width, project, input, old, score }
    }

    /// The logits of rows `x` that carry what they remember, and what they remember now.
    pub(super) fn forward(
        &self,
        x_td: Tensor2,
        carry: &Carry,
        pass: &Pass<'_>,
    ) -> (Tensor2, Tensor2) {
        let (ops, rows) = (pass.ops, x_td.dims()[0]);
        let old_tw = match carry.get(STATE) {
            Some(state_tw) => state_tw.clone(),
            None => pass.nothing(rows, self.width),
        };
        let input_tw = ops.linear(x_td, &self.project);
        let input_t3w = ops.add_bias(ops.linear(input_tw, &self.input.0), &self.input.1);
        let state_t3w = ops.add_bias(ops.linear(old_tw.clone(), &self.old.0), &self.old.1);
        let new_tw = ops.gru(input_t3w, state_t3w, old_tw);
        (ops.linear(new_tw.clone(), &self.score), new_tw)
    }
}
