//! What an engine refuses.

/// Why an engine cannot be set up.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The rule of training looks into the future.
    #[error(
        "the routing rule compares rows of the whole sequence, which serving cannot: \
         calibrate the checkpoint"
    )]
    NotCausal,
    /// A model with adapters that is not the same model in all but its weights.
    #[error("adapter {number}: expected the base's {what}, found another")]
    Adapter {
        /// Its number among the adapters, from 1.
        number: usize,
        /// What is not as in the base.
        what: &'static str,
    },
    /// More adapters than there are numbers for.
    #[error("adapters: expected fewer than 2^32 in the life of an engine; start a new one")]
    Adapters,
    /// A bound that cannot be kept.
    #[error(transparent)]
    Limit(#[from] scheduler::LimitError),
}
