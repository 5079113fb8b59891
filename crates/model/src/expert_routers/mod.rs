//! Which experts a row goes to. The list of routers over experts: a new one is its file and a line
//! here, and being on the list brings recipe schema, costs, tests and docs.

mod balance;
mod choice;
pub mod expert_choice;
pub mod hash;
mod member;
mod memory;
pub mod random;
mod room;
pub mod sparse_mixer;
pub mod top_k;
pub mod top_p;

use serde::{Deserialize, Serialize};

use crate::list::members;

pub use balance::Balance;
pub use member::{ExpertCount, ExpertRouterSettings, LayerRouting};
pub use room::RoomPriority;

members! {
    /// The list of routers over experts.
    pub enum ExpertRouterConfig: ExpertRouterSettings {
        /// The experts with the highest scores of each row.
        TopK(top_k::Config) = "top_k",
        /// The most likely experts of each row, until their probability exceeds a share.
        TopP(top_p::Config) = "top_p",
        /// The best rows of a sequence for each expert.
        ExpertChoice(expert_choice::Config) = "expert_choice",
        /// The two experts with the highest logits, each weighted among its near rivals.
        SparseMixer(sparse_mixer::Config) = "sparse_mixer",
        /// The control: experts by a hash of the token or of its position, nothing learned.
        Hash(hash::Config) = "hash",
        /// The other control: experts by dice, thrown anew in each step of training.
        Random(random::Config) = "random",
    }
}

impl Default for ExpertRouterConfig {
    fn default() -> Self {
        Self::TopK(top_k::Config::default())
    }
}
