//! Answers of a given form: a JSON schema, a regular expression or a list of choices becomes, token
//! after token, the set of tokens that may come next.
//!
//! The parser is that of the crate `llguidance`. A [`Vocabulary`] is made once for each tokenizer,
//! a [`Grammar`] is compiled once for each request, and each sequence follows its own
//! [`Constraint`](scheduler::Constraint).

mod constraint;
mod error;
mod grammar;
mod vocabulary;

pub use constraint::Compiled;
pub use error::GrammarError;
pub use grammar::{Grammar, MOST_BYTES, MOST_CHOICES};
pub use vocabulary::{GrammarTimes, Vocabulary};
