//! What may go wrong between processes.

/// A process that could not be reached or understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// The others did not come to what all of them do.
    #[error(
        "process {rank} of {size}: expected the others within {seconds} s, found one of them \
         silent: it has ended, is stopped, or cannot be reached; end what is left of them, and \
         start them again: the run goes on from its newest checkpoint"
    )]
    Silent {
        /// Who waited, from 0.
        rank: usize,
        /// How many processes there are.
        size: usize,
        /// How long it waited.
        seconds: u64,
    },
    /// One of the others has ended.
    #[error(
        "process {rank} of {size}: expected an answer of process {from}, found that it has ended; \
         start all of them again: the run goes on from its newest checkpoint"
    )]
    Ended {
        /// Who waited, from 0.
        rank: usize,
        /// How many processes there are.
        size: usize,
        /// The process that has ended.
        from: usize,
    },
    /// One of the others does something else.
    #[error(
        "process {rank}: expected {expected} from process {from}, found {found}; all processes \
         must run the same program on the same recipe and data"
    )]
    Unequal {
        /// Who received, from 0.
        rank: usize,
        /// The process that sent it.
        from: usize,
        /// What was to come.
        expected: String,
        /// What came in its place.
        found: String,
    },
    /// The processes cannot begin to work together.
    #[error("{0}")]
    Start(String),
}
