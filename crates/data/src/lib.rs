//! Text to token ids to packed windows. Knows no tensor.

mod bpe;
pub mod build;
mod columns;
pub mod documents;
mod error;
mod folder;
mod guard;
mod loss_mask;
pub mod manifest;
pub mod packages;
mod parquet_pages;
mod permutation;
pub mod reader;
pub mod shard;
mod side_file;
mod special;
mod stretches;
mod text_bytes;
pub mod tokenizer;
mod words;

pub use columns::{NumberColumn, NumberColumns, Numbers};
pub use error::DataError;
pub use loss_mask::LossMaskEntry;
pub use manifest::{Manifest, Split};
pub use reader::{Corpus, Window, Windows};
pub use special::{SpecialTokens, ends_by_name};
pub use text_bytes::TextBytesEntry;
pub use tokenizer::{DecodeStream, Tokenizer, TrainOptions};
