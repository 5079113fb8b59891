//! Checkpoints in, out, and from one family into another.
//!
//! [`import()`] turns a checkpoint of others into one of ours, [`export_hugging_face`],
//! [`export_gguf`] and [`export_own`] go the other way, [`convert()`] makes a recursive or
//! Mixture-of-Recursions model out of a dense one, and [`quantize()`] stores the weights of any
//! model in 16 bits or fewer. Which of their weights make up which of ours stands once, in
//! `roles.rs`; shapes come from the parameter table.

mod adapters;
mod additions;
mod branches;
mod costs;
mod error;
mod experts;
mod export;
mod import;
mod importance;
mod layers;
mod mergekit;
mod modeling;
mod native;
mod peft;
mod peft_out;
mod quantize;
mod report;
mod roles;
mod share_layers;
mod source;
mod svd;
mod tokenizer;
mod upcycle;
mod words;
mod yaml;

pub use branches::{BranchReport, join_branches};
pub use costs::Costs;
pub use error::ConvertError;
pub use export::{export_gguf, export_hugging_face, has_class};
pub use formats::gguf::GgufWeightType;
pub use formats::hf::HfWeightType;
pub use import::{
    Foreign, ForeignText, Imported, ImportedModel, Piece, import, imported_model, is_foreign,
};
pub use importance::{ColumnSums, Importance, ImportanceNames, bank_size};
pub use layers::{Start, kept, parse_layers, sources};
pub use mergekit::{Branch, BranchDtype, BranchPlan, GateMode, is_branch_plan};
pub use modeling::Card;
pub use native::{export_own, export_with_code};
pub use peft::{AdaptedModel, adapted_model, base_of_adapter};
pub use peft_out::export_adapters;
pub use quantize::{Quantization, RoundedKind, quantize};
pub use report::{ConversionReport, Copied};
pub use share_layers::{ConversionTarget, convert};
pub use svd::eigen;
pub use upcycle::{ExpertStart, Upcycling};
pub use words::mlp_in_words;
