//! Hugging Face folders: config.json, safetensors (one file or shards with an index),
//! tokenizer.json and their companions.

mod config;
mod folder;
mod shards;
mod special;
mod write;

pub use folder::Folder;
pub use write::{Dtype, Extras, write};
