//! SparseMixer (Liu et al., 2023, arXiv 2310.00811) as Phi-3.5-MoE evaluates it: two experts, each
//! weighted by its softmax among those whose logit is not far below its own. A row is routed in
//! training as in evaluation; the noise of the published training is left out.

use std::sync::Arc;

use ops::{Tensor2, read_rows};
use serde::{Deserialize, Serialize};

use super::balance;
use super::choice::{Choices, told};
use super::member::{ExpertCount, ExpertRouterSettings};
use crate::error::{ConfigError, at_least, refuse};
use crate::params::{ParamSpec, Take};
use crate::pass::Pass;
use crate::routers::scorer::Scorer;
use crate::routers::{Network, Router, RouterCall, RouterPlace, RoutingPlan};
use crate::sizes::Sizes;

/// `router = { kind = "sparse_mixer", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// An expert counts in the softmax of the chosen one `m` if `(z_m - z_e) / max(|z_e|, z_m)` is
    /// at most twice this.
    pub jitter: f64,
    /// Weight of a balance loss over all layers together; 0 for none.
    pub pooled_weight: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { jitter: 0.01, pooled_weight: 0.001 }
    }
}

impl ExpertRouterSettings for Config {
    fn check(&self, experts: ExpertCount) -> Result<(), ConfigError> {
        let experts = experts.computing;
        if experts < TAKEN {
            let expected = "2 or more for router \"sparse_mixer\", which takes two of a row".into();
            return refuse("mlp.count", experts, expected);
        }
        at_least("mlp.router.jitter", self.jitter, 0.0)?;
        at_least("mlp.router.pooled_weight", self.pooled_weight, 0.0)
    }

    fn fields_of_training(&self) -> &'static [&'static str] {
        &["pooled_weight"]
    }

    fn taken(&self, _: ExpertCount) -> f64 {
        TAKEN as f64
    }

    fn pools_layers(&self) -> bool {
        self.pooled_weight > 0.0
    }

    fn specs(&self, sizes: &Sizes, place: RouterPlace, experts: ExpertCount) -> Vec<ParamSpec> {
        Network::Linear.specs(place, sizes, experts.computing)
    }

    fn build(&self, place: RouterPlace, experts: ExpertCount, take: &mut Take) -> Box<dyn Router> {
        let experts = experts.computing;
        let scorer = Network::Linear.build(place, take);
        Box::new(SparseMixer { config: self.clone(), place, experts, scorer })
    }
}

/// How many experts a row takes.
const TAKEN: usize = 2;

/// The router of one layer over its weights.
#[derive(Debug)]
struct SparseMixer {
    config: Config,
    place: RouterPlace,
    experts: usize,
    scorer: Scorer,
}

impl Router for SparseMixer {
    fn route(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan {
        let z_te = self.scorer.forward(pass.ops, call.x_cd.clone(), 1.0);
        let logits = read_rows(&z_te);
        let first: Vec<usize> = logits.chunks_exact(self.experts).map(largest).collect();
        let rows = logits.chunks_exact(self.experts).zip(&first);
        let second = rows.map(|(row, first)| {
            let mut rest = row.to_vec();
            rest[*first] = f32::NEG_INFINITY;
            largest(&rest)
        });
        let second: Vec<usize> = second.collect();
        let mut taken = vec![false; logits.len()];
        for (row, (first, second)) in first.iter().zip(&second).enumerate() {
            taken[row * self.experts + first] = true;
            taken[row * self.experts + second] = true;
        }
        let choices = Choices::of(&taken, self.experts);
        let weights = self.weights(&z_te, &logits, &first, &choices, pass);
        let pooled = (self.place.site, TAKEN, self.config.pooled_weight as f32);
        let loss = pass.record.then(|| balance::pooled(&z_te, pooled, call, pass)).flatten();
        let plan =
            RoutingPlan { losses: loss.into_iter().collect(), ..choices.plan(Some(weights)) };
        told(plan, self.place.site, (&logits, &[]), call, pass)
    }
}

impl SparseMixer {
    /// The softmax of each entry's logit among those that count beside it: experts that are not far
    /// below, and for the second choice not the first.
    fn weights(
        &self,
        z_te: &Tensor2,
        logits: &[f32],
        first: &[usize],
        choices: &Choices,
        pass: &Pass<'_>,
    ) -> Tensor2 {
        let (rows, columns): (Vec<u32>, Vec<u32>) = choices.entries().unzip();
        let mut closed = Vec::with_capacity(rows.len() * self.experts);
        for (&row, &chosen) in rows.iter().zip(&columns) {
            let (row, chosen) = (row as usize, chosen as usize);
            let z = &logits[row * self.experts..(row + 1) * self.experts];
            let most = z[chosen];
            closed.extend(z.iter().enumerate().map(|(expert, &z)| {
                let far = f64::from((most - z) / z.abs().max(most)) > 2.0 * self.config.jitter;
                let taken = expert == first[row] && chosen != first[row];
                if far || taken { CLOSED } else { 0.0 }
            }));
        }
        let rows: Arc<[u32]> = rows.into();
        let z_ae = pass.ops.gather_rows(z_te.clone(), &rows);
        let z_ae = ops::add(z_ae, pass.ops.from_rows(closed, rows.len(), self.experts));
        let p_ae = pass.ops.softmax_rows(z_ae, 1.0);
        pass.ops.pick_columns(p_ae, &columns)
    }
}

/// Added to the logits of experts that do not count: their exponential is 0.
const CLOSED: f32 = -1e30;

/// The first of the largest.
fn largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, z) in row.iter().enumerate() {
        if *z > row[best] {
            best = i;
        }
    }
    best
}
