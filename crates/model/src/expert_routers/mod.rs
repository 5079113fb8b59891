//! Which experts a row goes to. The list of routers over experts: a new one is its file and a line
//! here, and being on the list brings recipe schema, costs, tests and docs.

mod balance;
mod choice;
pub mod hash;
mod member;
mod room;
pub mod sparse_mixer;
pub mod top_k;

use serde::{Deserialize, Serialize};

use crate::list::members;

pub use balance::Balance;
pub use member::{ExpertCount, ExpertRouterSettings};
pub use room::RoomPriority;

members! {
    /// The list of routers over experts.
    pub enum ExpertRouterConfig: ExpertRouterSettings {
        /// The experts with the highest scores of each row.
        TopK(top_k::Config) = "top_k",
        /// The two experts with the highest logits, each weighted among its near rivals.
        SparseMixer(sparse_mixer::Config) = "sparse_mixer",
        /// The control: experts by a hash of the token or of its position, nothing learned.
        Hash(hash::Config) = "hash",
    }
}

impl Default for ExpertRouterConfig {
    fn default() -> Self {
        Self::TopK(top_k::Config::default())
    }
}
