//! A built data folder as a stream of tokens, and the windows a model trains on.
#![allow(unused_variables, clippy::todo, missing_docs)]

use crate::Result;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split { Train, Validation }

/// Cheap to clone (shared); Send + Sync + 'static.
#[derive(Clone)]
pub struct Corpus {}

impl Corpus {
    pub fn open(dir: &Path, split: Split) -> Result<Self> { todo!() }
    /// Number of tokens in the split.
    pub fn tokens(&self) -> u64 { todo!() }
    pub fn documents(&self) -> u64 { todo!() }
    pub fn sources(&self) -> &[String] { todo!() }
    pub fn vocab_size(&self) -> usize { todo!() }
    pub fn token_bytes(&self) -> &[u32] { todo!() }
    pub fn tokenizer_sha256(&self) -> &str { todo!() }
    pub fn tokenizer_path(&self) -> std::path::PathBuf { todo!() }
    /// Hex digest that names this split's content (goes into checkpoints).
    pub fn fingerprint(&self) -> &str { todo!() }
}

/// Holds a clone of the corpus: no lifetime.
#[derive(Clone)]
pub struct Windows {}

impl Windows {
    pub fn new(corpus: &Corpus, seq_len: usize, seed: u64) -> Result<Self> { todo!() }
    /// Windows per epoch.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 { todo!() }
    pub fn seq_len(&self) -> usize { todo!() }
    /// Tokens at the end of the stream that fill no window.
    pub fn dropped_tokens(&self) -> u64 { todo!() }
    /// The window at `position`, counted in windows since the start of training.
    pub fn at(&self, position: u64) -> Window { todo!() }
    /// Window `index` of the stream, in stream order; `index < len()`.
    pub fn unshuffled(&self, index: u64) -> Result<Window> { todo!() }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub ids: Vec<u32>,
    pub targets: Vec<u32>,
    /// Running number of the document inside the window, per input row.
    pub document: Vec<u32>,
    pub target_same_document: Vec<bool>,
    /// Source of the target token, per row.
    pub source: Vec<u16>,
    pub index: u64,
    pub epoch: u64,
}
