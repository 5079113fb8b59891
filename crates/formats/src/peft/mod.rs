//! Folders of adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors.
//!
//! [`AdapterFolder::open`] reads settings and names, [`AdapterFolder::over`] puts the adapters on
//! the tensors of a base. What each kind computes is one file in `kinds`; whatever changes what is
//! computed and is not known there is refused by its name.

mod folder;
mod kinds;
mod leaves;
mod settings;
mod write;

pub use kernels::adapted::{AdapterChange, Affine, LeafGradients};

pub use folder::{AdapterFolder, Placed, PlacedAdapters, Replacement, is_adapter};
pub use kinds::kinds;
pub use write::{WrittenLeaf, write_adapters};
