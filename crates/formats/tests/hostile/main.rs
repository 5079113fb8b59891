//! Both forms, files that lie: every one is refused with its file and field, without a panic and
//! without more memory than its size allows.

mod changes;
mod classes;
#[path = "../common/mod.rs"]
mod common;
mod expert_ggufs;
mod experts;
mod folders;
mod ggufs;
mod memory;
