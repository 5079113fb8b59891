//! What the server tells clients about the model, and where it gets adapters from.

use std::fmt::Debug;

/// What is served, for `/v1/models`, for limits and for answers.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Name under which requests ask for the model.
    pub id: String,
    /// Other names that are accepted.
    pub aliases: Vec<String>,
    /// The model with each of its adapters.
    pub adapters: Vec<AdapterInfo>,
    /// Model family: `mor`, `recursive`, `dense`, `moe` and the like.
    pub family: String,
    /// Most block applications a token can have; 1 for a model without recursion.
    pub recursions: u32,
    /// How the depth of a token is chosen.
    pub routing: String,
    /// How keys and values are kept across recursions.
    pub kv_mode: String,
    /// Layers a token of full depth goes through.
    pub layers: usize,
    /// Trained numbers in all weights, each counted once where recursions share it.
    pub parameters: u64,
    /// Longest sequence, prompt and new tokens together.
    pub context: usize,
    /// Rows of the embedding: token ids below this are valid.
    pub vocab: usize,
    /// When the weights were made, in seconds since 1970.
    pub created: u64,
    /// Build and hash of the weights, `system_fingerprint` of every answer.
    pub fingerprint: String,
}

/// The model with an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Name under which requests ask for it.
    pub name: String,
    /// Its number in the engine, from 1; 0 is the model as it is.
    pub number: u32,
    /// Build and hash of all weights, `system_fingerprint` of its answers.
    pub fingerprint: String,
}

/// Loads adapters while the server runs.
pub trait AdapterSource: Debug + Send + Sync {
    /// Takes in the adapter of a folder, `instead` of the one with this number if there is one;
    /// answers its number and its fingerprint. Takes as long as it takes, and is asked for one
    /// adapter at a time.
    ///
    /// # Errors
    /// Why there is none.
    fn load(&self, path: &str, instead: Option<u32>) -> Result<(u32, String), AdapterRefusal>;

    /// Nobody asks for this adapter any more.
    fn unload(&self, number: u32);
}

/// Why an adapter was not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdapterRefusal {
    /// There is no such folder where adapters may come from.
    Missing(String),
    /// The folder is damaged, does not fit the model, or is too large.
    Unusable(String),
    /// There are as many adapters as there may be.
    Full(String),
}
