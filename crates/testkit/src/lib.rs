//! What tests of several rooms share: small models of every kind, one way to run a pass,
//! combinations of options, and comparisons that name the first difference.
//!
//! Other rooms name this one in `[dev-dependencies]` alone; `cargo xtask tidy` checks that. It uses
//! `expect` and panics as tests do.

mod adapters;
mod compare;
mod models;
mod pairwise;
mod passes;

pub use adapters::{adapters, takes_adapters};
pub use compare::{close, close_above, same_bits};
pub use models::{
    Form, MODES, SHARINGS, VOCAB, by_context, forms, fresh, ids, mlps, routers, tiny, tokens,
    uneven_uses, with_auxiliary_router, with_shortcuts,
};
pub use pairwise::{combinations, covering, pairwise};
pub use passes::{How, Out, Watch, at_once, cached, causal, run, same, state, transient};
