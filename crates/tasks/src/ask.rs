//! What a task asks of a model, and what the model answers.

/// What stands before texts, as a model was trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// The token that the tokenizer puts before each text, where it puts one.
    pub begin: Option<u32>,
    /// What a text is scored after that follows nothing: begin of text, or else end of text.
    pub prefix: Option<u32>,
}

/// A sequence to score: `ids[from..]`, each given all ids before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The item, from 0.
    pub item: usize,
    /// Its choice, from 0. A document takes several asks of the same item and choice where it is
    /// longer than a window.
    pub choice: usize,
    /// Token ids of the context and of what is scored after it.
    pub ids: Vec<u32>,
    /// First place that is scored, at least 1.
    pub from: usize,
}

/// The score of one [`Ask`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceScore {
    /// Sum over the scored ids of the natural logarithm of their probability.
    pub log_likelihood: f64,
    /// Whether each scored id has the highest probability of its place.
    pub greedy: bool,
}
