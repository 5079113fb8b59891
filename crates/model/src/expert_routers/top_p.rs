//! As many experts as a row needs (Harder Tasks Need More Experts, Huang et al., 2024, arXiv
//! 2403.07652): the smallest set of the most likely ones whose probability exceeds a share. A loss
//! on the entropy of the probabilities keeps the sets small: a row with even ones takes many.

use ops::{ChosenWeights, Tensor2, read_rows};
use serde::{Deserialize, Serialize};

use super::balance;
use super::choice::{Choices, told};
use super::member::{ExpertCount, ExpertRouterSettings};
use crate::error::{ConfigError, at_least, refuse};
use crate::params::{ParamSpec, RouterSite, Take};
use crate::pass::Pass;
use crate::routers::scorer::Scorer;
use crate::routers::{AuxLoss, Network, Router, RouterCall, RouterPlace, RoutingPlan};
use crate::sizes::Sizes;

/// `router = { kind = "top_p", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The probability that the experts of a row exceed together; 1 for all experts.
    pub p: f64,
    /// The most experts that a row takes; 0 for no limit.
    pub limit: usize,
    /// The network that scores rows.
    pub network: Network,
    /// Weight of the balance loss, as `top_k` has it by sequences; 0 for none.
    pub balance_weight: f64,
    /// Weight of the entropy of a row's probabilities, in nats; 0 for none.
    pub entropy_weight: f64,
    /// Weight of the squared log-sum-exp of the logits; 0 for none.
    pub z_weight: f64,
}

impl Default for Config {
    /// The published numbers, without a limit.
    fn default() -> Self {
        Self {
            p: 0.4,
            limit: 0,
            network: Network::Linear,
            balance_weight: 0.01,
            entropy_weight: 1e-4,
            z_weight: 0.0,
        }
    }
}

impl Config {
    /// As many of `experts` as a row with even probabilities takes: no row needs more.
    fn most(&self, experts: usize) -> usize {
        ((self.p * experts as f64) as usize + 1).min(experts)
    }
}

impl ExpertRouterSettings for Config {
    fn check(&self, experts: ExpertCount) -> Result<(), ConfigError> {
        let experts = experts.computing;
        if !(self.p > 0.0 && self.p <= 1.0) {
            return refuse("mlp.router.p", self.p, "above 0 and at most 1".into());
        }
        if self.limit > experts {
            let expected = format!("at most {experts}, the number of experts, or 0 for no limit");
            return refuse("mlp.router.limit", self.limit, expected);
        }
        at_least("mlp.router.balance_weight", self.balance_weight, 0.0)?;
        at_least("mlp.router.entropy_weight", self.entropy_weight, 0.0)?;
        at_least("mlp.router.z_weight", self.z_weight, 0.0)
    }

    fn check_effects(&self, experts: ExpertCount) -> Result<(), ConfigError> {
        let most = self.most(experts.computing);
        if self.limit == 1 {
            let expected = "0 or 2 and more: one expert of each row is router \"top_k\" with \
                            top_k = 1 and normalize = false";
            return refuse("mlp.router.limit", self.limit, expected.into());
        }
        if self.limit >= most {
            let expected = format!("below {most}, which no row exceeds, or 0");
            return refuse("mlp.router.limit", self.limit, expected);
        }
        Ok(())
    }

    /// What a row with even probabilities takes, as rows of a fresh router do; later ones take
    /// fewer.
    fn fields_of_training(&self) -> &'static [&'static str] {
        &["balance_weight", "entropy_weight", "z_weight"]
    }

    fn taken(&self, experts: ExpertCount) -> f64 {
        let most = self.most(experts.computing);
        (if self.limit == 0 { most } else { most.min(self.limit) }) as f64
    }

    fn specs(&self, sizes: &Sizes, place: RouterPlace, experts: ExpertCount) -> Vec<ParamSpec> {
        self.network.specs(place, sizes, experts.computing)
    }

    fn build(&self, place: RouterPlace, experts: ExpertCount, take: &mut Take) -> Box<dyn Router> {
        let (scorer, experts) = (self.network.build(place, take), experts.computing);
        Box::new(TopP { config: self.clone(), site: place.site, experts, scorer })
    }
}

/// The router of one layer over its weights.
#[derive(Debug)]
struct TopP {
    config: Config,
    site: RouterSite,
    experts: usize,
    scorer: Scorer,
}

impl Router for TopP {
    fn route(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan {
        let z_te = self.scorer.forward(pass.ops, call.x_cd.clone(), 1.0);
        let p_te = pass.ops.softmax_rows(z_te.clone(), 1.0);
        let (logits, scores) = (read_rows(&z_te), read_rows(&p_te));
        let taken = scores.chunks_exact(self.experts).flat_map(|row| self.chosen(row));
        let choices = Choices::of(&taken.collect::<Vec<_>>(), self.experts);
        let how = ChosenWeights { normalize: None, least: 0.0, scale: 1.0 };
        // The only expert has probability 1.
        let weights = (self.experts > 1).then(|| choices.weights(pass.ops, p_te.clone(), how));
        let losses = match pass.record {
            true => self.losses(z_te, p_te, &choices, call, pass),
            false => Vec::new(),
        };
        let plan = RoutingPlan { losses, ..choices.plan(weights) };
        told(plan, self.site, (&logits, &scores), call, pass)
    }
}

impl TopP {
    /// Whether a row with these probabilities takes each expert: the most likely ones, until their
    /// sum exceeds `p` or there are as many as the limit. The lower expert comes first among
    /// equals.
    fn chosen(&self, scores: &[f32]) -> Vec<bool> {
        let limit = if self.config.limit == 0 { scores.len() } else { self.config.limit };
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        let (mut taken, mut sum) = (vec![false; scores.len()], 0.0);
        for &expert in &order[..limit] {
            taken[expert] = true;
            sum += f64::from(scores[expert]);
            // Rounding may take a sum past 1 before the last one.
            if self.config.p < 1.0 && sum > self.config.p {
                break;
            }
        }
        taken
    }

    fn losses(
        &self,
        z_te: Tensor2,
        p_te: Tensor2,
        choices: &Choices,
        call: &RouterCall<'_>,
        pass: &Pass<'_>,
    ) -> Vec<AuxLoss> {
        let Config { balance_weight, entropy_weight, z_weight, .. } = self.config;
        let of = (self.experts, 1, choices);
        let named = ("expert_balance", balance_weight);
        let loss = balance::load_loss(named, &p_te, of, call.rows, pass);
        let mut losses: Vec<AuxLoss> = loss.into_iter().collect();
        if entropy_weight > 0.0 {
            let each = balance::mean_weights(call.rows, pass);
            let value_11 = pass.ops.entropy_loss(z_te.clone(), each);
            losses.push(AuxLoss {
                name: "expert_entropy",
                value_11,
                weight: entropy_weight as f32,
            });
        }
        losses.extend(balance::z_loss(z_te, call.rows, z_weight as f32, pass));
        losses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ops::Weight;
    use std::sync::Arc;

    fn chosen(p: f64, limit: usize, scores: &[f32]) -> Vec<usize> {
        let config = Config { p, limit, ..Config::default() };
        let place = RouterPlace { site: RouterSite::Layer(0), auxiliary: false, recursion: None };
        let weights: Vec<(ParamSpec, Arc<Weight>)> = Vec::new();
        let scorer = Network::Linear.build(place, &mut Take::new(&weights));
        let router = TopP { config, site: place.site, experts: scores.len(), scorer };
        let taken = router.chosen(scores);
        (0..scores.len()).filter(|&e| taken[e]).collect()
    }

    #[test]
    fn the_smallest_set_that_exceeds_p() {
        let scores = [0.125, 0.5, 0.25, 0.125];
        assert_eq!(chosen(0.4, 0, &scores), [1]);
        // The sum must exceed p: a half alone does not.
        assert_eq!(chosen(0.5, 0, &scores), [1, 2]);
        assert_eq!(chosen(0.76, 0, &scores), [0, 1, 2], "the lower one among equals");
        assert_eq!(chosen(0.76, 2, &scores), [1, 2]);
        assert_eq!(chosen(1.0, 0, &scores), [0, 1, 2, 3]);
        assert_eq!(chosen(1e-6, 0, &scores), [1]);
        // Even probabilities need the most.
        for (p, most) in [(0.4, 2), (0.25, 2), (0.24, 1), (1.0, 4)] {
            let config = Config { p, ..Config::default() };
            assert_eq!((config.most(4), chosen(p, 0, &[0.25; 4]).len()), (most, most), "{p}");
        }
    }
}
