//! What stands behind a path or a recipe, opened in one way for the command line and for Python.
//! Knows no command line and no terminal: remarks go to whoever listens ([`notes`]), text to
//! whoever asked for it ([`continuation`]).
//!
//! Errors are [`anyhow::Error`]s, whose causes [`notes::causes`] puts into one line: both front
//! ends say the same. Texts name the flags of the command line, as most who read them use it.

pub mod cache;
pub mod continuation;
pub mod conversation;
pub mod foreign;
pub mod memory;
pub mod notes;
pub mod open;
pub mod recipe;
mod renamed_fields;
pub mod render_templates;
pub mod runs;
pub mod threads;
