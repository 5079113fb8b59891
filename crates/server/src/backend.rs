//! What the server tells clients about the model.

/// What is served, for `/v1/models`, for limits and for answers.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Name under which requests ask for the model.
    pub id: String,
    /// Other names that are accepted.
    pub aliases: Vec<String>,
    /// Names of the model with each of its adapters, by their numbers from 1.
    pub adapters: Vec<String>,
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
