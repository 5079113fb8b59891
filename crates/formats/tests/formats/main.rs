//! Both forms, honest files: what is written is read again, block by block and token by token.

mod adapters;
#[path = "../common/mod.rs"]
mod common;
mod folders;
mod ggufs;
mod packed;
mod quants;
mod tokens;
