//! Both forms, honest files: what is written is read again, block by block and token by token.

#[path = "../common/mod.rs"]
mod common;
mod folders;
mod ggufs;
mod quants;
mod tokens;
