//! What a model and its training cost, as numbers that results carry.

use anyhow::Result;
use model::cost::{
    Convention, forward_flops, head_flops, kv_bytes_per_token, nominal_capacities, parameters,
    row_flops,
};
use serde::Serialize;
use train::{Forecast, Recipe};

use crate::memory;

/// What one run's model costs, and its training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Costs {
    /// Numbers that are stored: layers, norms, routers, embedding and head.
    pub(crate) stored_parameters: u64,
    /// Of these, those that one token of full depth meets, embedding and head among them.
    pub(crate) active_parameters: u64,
    /// Of the stored ones, embedding and head.
    pub(crate) embedding_parameters: u64,
    /// Tokens of all steps of training.
    pub(crate) tokens: u64,
    /// Forward FLOPs of a token of training, every product counted.
    pub(crate) forward_flops: f64,
    /// The same as the paper counts, without head, routers and adapters.
    pub(crate) forward_flops_paper: f64,
    /// FLOPs of all steps of training, every product counted, those of a teacher among them;
    /// backward is twice forward.
    pub(crate) training_flops: f64,
    /// The same as the paper counts, without a teacher.
    pub(crate) training_flops_paper: f64,
    /// FLOPs of a decoded token but those of attention, every product counted.
    pub(crate) decode_flops: f64,
    /// Bytes of f32 weights that a decoded token of mean depth reads, again for each recursion.
    pub(crate) decode_bytes: f64,
    /// Bytes of f32 keys and values that a token of context holds.
    pub(crate) kv_bytes: f64,
}

impl Costs {
    /// Counts at the sequence length of the recipe and nominal capacities; the vocabulary must be
    /// known.
    ///
    /// # Errors
    /// An impossible model, a teacher that cannot be read.
    pub(crate) fn of(recipe: &Recipe) -> Result<Self> {
        let (config, n) = (&recipe.model, recipe.data.sequence_length);
        let plan = config.check()?;
        let count = parameters(config, &plan);
        let shares = nominal_capacities(config);
        let [full, paper] = [Convention::Full, Convention::Paper]
            .map(|convention| forward_flops(config, &plan, n, &shares, convention));
        let tokens = recipe.train.steps * (recipe.train.batch * n) as u64;
        let mut decode = row_flops(config, &plan, 0) + head_flops(config, &plan);
        for (r, share) in shares.iter().enumerate().take(plan.recursions.len()) {
            decode += share * (row_flops(config, &plan, r + 1) - row_flops(config, &plan, r));
        }
        Ok(Self {
            stored_parameters: count.unique + count.embedding,
            active_parameters: count.active + count.embedding,
            embedding_parameters: count.embedding,
            tokens,
            forward_flops: full,
            forward_flops_paper: paper,
            training_flops: training_flops(recipe)?,
            training_flops_paper: 3.0 * paper * tokens as f64,
            decode_flops: decode,
            // Two FLOPs for each number of four bytes.
            decode_bytes: 2.0 * decode,
            kv_bytes: kv_bytes_per_token(config, &plan, &shares, 4),
        })
    }
}

/// FLOPs of all steps, every product counted, with the capacities that each step has, and those of
/// the teacher.
pub(crate) fn training_flops(recipe: &Recipe) -> Result<f64> {
    let teacher = memory::teacher(recipe)?;
    let work = Forecast { recipe, teacher: teacher.as_ref(), valid_windows: None }.work()?;
    Ok(work.steps + work.teacher)
}
