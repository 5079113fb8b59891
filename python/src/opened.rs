//! A checkpoint in memory, ready to run.

use std::sync::Arc;

use anyhow::Result;
use model::Rule;
use opening::open;
use train::Stored;

use crate::tokenizer::TextSide;

/// A checkpoint in memory, which several threads may use.
pub(crate) struct Opened {
    pub(crate) stored: Stored,
    pub(crate) text: Arc<TextSide>,
    rule: Result<Rule, String>,
}

impl Opened {
    pub(crate) fn new(stored: Stored, text: TextSide) -> Self {
        let rule = open::causal(&stored).map_err(|error| error.to_string());
        Self { stored, text: Arc::new(text), rule }
    }

    /// The causal rule, by which everything but `rule="training"` runs.
    pub(crate) fn rule(&self) -> Result<&Rule> {
        self.rule.as_ref().map_err(|why| anyhow::anyhow!("{why}"))
    }
}
