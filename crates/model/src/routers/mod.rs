//! Who goes where. A router scores rows and returns a ragged plan: for each target its rows and
//! their weights. The list of depth routers, whose target is the next recursion: a new one is its
//! file and a line here.

mod capacity;
pub mod expert_choice;
pub mod fixed;
pub(crate) mod member;
pub(crate) mod plan;
pub mod random;
pub(crate) mod rule;
pub(crate) mod scorer;
pub(crate) mod state;
pub mod token_choice;
pub(crate) mod top_k;

use serde::{Deserialize, Serialize};

use crate::list::members;

pub use capacity::default_capacities;
pub use member::{Router, RouterSettings, StepRouting};
pub use plan::{AuxLoss, ComparedScores, Dropped, Joins, RouterCall, RoutingPlan, threshold_for};
pub use rule::{CausalThresholds, Causality, Rule, ThresholdsFrom};
pub use scorer::{Network, RouterPlace};
pub use state::RouterState;

members! {
    /// The list of depth routers.
    pub enum RouterConfig: RouterSettings {
        /// Every row takes every recursion: recursive and dense models.
        Fixed(fixed::Config) = "fixed",
        /// At each recursion the best rows of a sequence go on.
        ExpertChoice(expert_choice::Config) = "expert_choice",
        /// Each row is told its depth before the first recursion.
        TokenChoice(token_choice::Config) = "token_choice",
        /// The control: expert-choice with dice for a router.
        Random(random::Config) = "random",
    }
}

impl Default for RouterConfig {
    fn default() -> Self {
        RouterConfig::ExpertChoice(expert_choice::Config::default())
    }
}

impl RouterConfig {
    /// Every row takes every recursion.
    pub const FIXED: Self = RouterConfig::Fixed(fixed::Config {});

    /// Share of the rows of a sequence in each recursion at optimizer step `step`.
    pub fn capacities(&self, recursions: usize, step: u64) -> Vec<f64> {
        self.settings().capacities(recursions, step)
    }

    /// The settings of this kind under which every row takes every recursion with a gate of 1, if
    /// it has such settings.
    pub fn neutral(&self, recursions: usize) -> Option<Self> {
        let mut neutral = self.clone();
        neutral.settings_mut().make_neutral(recursions).then_some(neutral)
    }
}
