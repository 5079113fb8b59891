//! Each expert takes the rows that score highest for it (Zhou et al., 2022, arXiv 2202.09368), so
//! that loads are exactly equal and rows take different numbers of experts. Training compares the
//! rows of a sequence; elsewhere a row takes the experts whose threshold its score reaches, a
//! moving average of what the comparisons of training needed.

use ops::{ChosenWeights, read_rows};
use serde::{Deserialize, Serialize};

use super::balance;
use super::choice::{Choices, told};
use super::member::{ExpertCount, ExpertRouterSettings, LayerRouting};
use crate::error::{ConfigError, at_least, refuse};
use crate::params::{BufferSpec, ParamSpec, RouterSite, Take};
use crate::pass::Pass;
use crate::routers::scorer::Scorer;
use crate::routers::top_k::top_k;
use crate::routers::{Network, Router, RouterCall, RouterPlace, RouterState, RoutingPlan};
use crate::rows::Rows;
use crate::sizes::Sizes;

/// `router = { kind = "expert_choice", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many experts a row takes in the mean.
    pub capacity: f64,
    /// The network that scores rows.
    pub network: Network,
    /// Memory of the thresholds, per step.
    pub running_decay: f64,
    /// Weight of the squared log-sum-exp of the logits; 0 for none.
    pub z_weight: f64,
}

impl Default for Config {
    /// As published, with thresholds as depth routers have them.
    fn default() -> Self {
        Self { capacity: 2.0, network: Network::Linear, running_decay: 0.99, z_weight: 0.0 }
    }
}

/// The thresholds of the experts of one router of a layer.
fn thresholds_name(site: RouterSite, recursion: Option<usize>) -> String {
    let layer = match site {
        RouterSite::Depth => String::new(),
        RouterSite::Layer(stored) => format!(".{stored}"),
    };
    let router = recursion.map_or(String::new(), |r| format!(".{r}"));
    format!("experts{layer}{router}.thresholds")
}

impl ExpertRouterSettings for Config {
    fn check(&self, experts: ExpertCount) -> Result<(), ConfigError> {
        let most = experts.computing;
        if !(self.capacity > 0.0 && self.capacity <= most as f64) {
            let expected = format!("above 0 and at most {most}, the number of experts");
            return refuse("mlp.router.capacity", self.capacity, expected);
        }
        if !(0.0..1.0).contains(&self.running_decay) {
            let expected = "from 0 to below 1".into();
            return refuse("mlp.router.running_decay", self.running_decay, expected);
        }
        at_least("mlp.router.z_weight", self.z_weight, 0.0)
    }

    fn check_effects(&self, experts: ExpertCount) -> Result<(), ConfigError> {
        let most = experts.computing;
        if self.capacity < most as f64 || most == 1 {
            return Ok(());
        }
        let expected = format!(
            "below {most}, with which every expert takes every row: that is router \"top_k\" with \
             top_k = {most}"
        );
        refuse("mlp.router.capacity", self.capacity, expected)
    }

    fn fields_of_training(&self) -> &'static [&'static str] {
        &["z_weight"]
    }

    fn taken(&self, _: ExpertCount) -> f64 {
        self.capacity
    }

    fn trains_otherwise(&self) -> bool {
        true
    }

    fn specs(&self, sizes: &Sizes, place: RouterPlace, experts: ExpertCount) -> Vec<ParamSpec> {
        self.network.specs(place, sizes, experts.computing)
    }

    fn buffers(
        &self,
        site: RouterSite,
        experts: ExpertCount,
        places: &[RouterPlace],
    ) -> Vec<BufferSpec> {
        let mut buffers = Vec::new();
        for place in places {
            buffers.push(BufferSpec {
                name: thresholds_name(site, place.recursion),
                length: experts.computing,
                range: (0.0, 1.0),
                // A recursion to which no row came yet has none.
                every_step: place.recursion.is_none(),
            });
        }
        buffers
    }

    /// `m t + (1 - m) needed` for each expert, beginning with the first one; an expert that took
    /// every row needed none.
    fn after_step(
        &self,
        site: RouterSite,
        experts: ExpertCount,
        did: &LayerRouting<'_>,
        state: &mut RouterState,
    ) {
        for (recursion, compared) in &did.compared {
            let name = thresholds_name(site, *recursion);
            let before = state.get(&name).map(<[f32]>::to_vec);
            let moved = (0..experts.computing).map(|expert| {
                let needed = f64::from(compared.needed(expert).unwrap_or(0.0));
                let before = before.as_ref().map_or(needed, |all| f64::from(all[expert]));
                (self.running_decay * before + (1.0 - self.running_decay) * needed) as f32
            });
            let moved = moved.collect();
            state.set(&name, moved);
        }
    }

    fn build(&self, place: RouterPlace, experts: ExpertCount, take: &mut Take) -> Box<dyn Router> {
        let (scorer, experts) = (self.network.build(place, take), experts.computing);
        Box::new(ExpertChoice { config: self.clone(), place, experts, scorer })
    }
}

/// The router of one layer over its weights.
#[derive(Debug)]
struct ExpertChoice {
    config: Config,
    place: RouterPlace,
    experts: usize,
    scorer: Scorer,
}

impl Router for ExpertChoice {
    fn route(&self, call: &RouterCall<'_>, pass: &mut Pass<'_>) -> RoutingPlan {
        let z_te = self.scorer.forward(pass.ops, call.x_cd.clone(), 1.0);
        let p_te = pass.ops.softmax_rows(z_te.clone(), 1.0);
        let (logits, scores) = (read_rows(&z_te), read_rows(&p_te));
        let compared = pass.compares_rows();
        let taken = match compared {
            true => self.best(&scores, call.rows),
            false => self.by_thresholds(&scores, pass.state),
        };
        let choices = Choices::of(&taken, self.experts);
        let how = ChosenWeights { normalize: None, least: 0.0, scale: 1.0 };
        let weights = Some(choices.weights(pass.ops, p_te, how));
        let z_weight = self.config.z_weight as f32;
        let loss = pass.record.then(|| balance::z_loss(z_te, call.rows, z_weight, pass));
        let losses = loss.flatten().into_iter().collect();
        let plan = RoutingPlan { losses, compared, ..choices.plan(weights) };
        told(plan, self.place.site, (&logits, &scores), call, pass)
    }
}

impl ExpertChoice {
    /// For each row and expert whether it is among the best `max(1, floor(c T / E))` of its
    /// sequence.
    fn best(&self, scores: &[f32], rows: &Rows) -> Vec<bool> {
        let experts = self.experts;
        let mut taken = vec![false; scores.len()];
        for run in rows.sequences() {
            let share = self.config.capacity * run.len() as f64 / experts as f64;
            let count = (share as usize).clamp(1, run.len());
            for expert in 0..experts {
                let of: Vec<f32> = run.clone().map(|row| scores[row * experts + expert]).collect();
                let rows = run.clone().zip(top_k(&of, count));
                rows.for_each(|(row, best)| taken[row * experts + expert] = best);
            }
        }
        taken
    }

    /// For each row and expert whether its score reaches the expert's threshold. Before the first
    /// step there is none, and a row takes as many of its best experts as the capacity says.
    fn by_thresholds(&self, scores: &[f32], state: &RouterState) -> Vec<bool> {
        let experts = self.experts;
        let name = thresholds_name(self.place.site, self.place.recursion);
        let rows = scores.chunks_exact(experts);
        match state.get(&name).filter(|own| own.len() == experts) {
            Some(own) => {
                rows.flat_map(|row| row.iter().zip(own).map(|(score, t)| score >= t)).collect()
            }
            None => {
                let count = (self.config.capacity.round() as usize).clamp(1, experts);
                rows.flat_map(|row| top_k(row, count)).collect()
            }
        }
    }
}
