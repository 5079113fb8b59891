//! Hugging Face folders: config.json, safetensors (one file or shards with an index),
//! tokenizer.json and their companions.

mod all_tensors;
mod folder;
mod packed;
pub(crate) mod rope;
mod rounded;
mod shards;
mod special;
mod write;

pub use all_tensors::AllTensors;
pub use folder::Folder;
pub use write::{FolderOptions, HfWeightType, companions, write};
