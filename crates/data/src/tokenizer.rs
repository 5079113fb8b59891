//! Byte-level BPE: training, loading, encoding and decoding of Hugging Face tokenizer.json files.
#![allow(unused_variables, clippy::todo, missing_docs)]

use crate::Result;
use std::path::Path;

#[derive(Clone)]
pub struct Tokenizer {}

impl Tokenizer {
    pub fn train(texts: impl Iterator<Item = String> + Send, options: &TrainOptions) -> Result<Self> { todo!() }
    pub fn load(path: &Path) -> Result<Self> { todo!() }
    pub fn from_json(json: &str) -> Result<Self> { todo!() }
    pub fn save(&self, path: &Path) -> Result<()> { todo!() }
    /// Special tokens written out in the text become their ids; none is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> { todo!() }
    /// Like `encode`, but special tokens in the text are plain characters (documents cannot forge an end of text).
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> { todo!() }
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> { todo!() }
    /// Special tokens are left out; invalid UTF-8 becomes U+FFFD; an id outside the vocabulary is an error.
    pub fn decode(&self, ids: &[u32]) -> Result<String> { todo!() }
    pub fn decode_stream(&self) -> DecodeStream<'_> { todo!() }
    /// Largest id + 1.
    pub fn vocab_size(&self) -> usize { todo!() }
    pub fn eos_id(&self) -> Option<u32> { todo!() }
    pub fn token_to_id(&self, token: &str) -> Option<u32> { todo!() }
    pub fn id_to_token(&self, id: u32) -> Option<String> { todo!() }
    /// Bytes of text each id stands for; specials 0.
    pub fn token_bytes(&self) -> Vec<u32> { todo!() }
    /// Lower-case hex of `to_json`.
    pub fn sha256(&self) -> &str { todo!() }
    pub fn to_json(&self) -> &str { todo!() }
}

#[derive(Clone, Debug)]
pub struct TrainOptions {
    pub vocab_size: usize,
    pub special_tokens: Vec<String>,
    pub max_bytes: Option<u64>,
}

pub struct DecodeStream<'a> { tokenizer: &'a Tokenizer }

impl DecodeStream<'_> {
    pub fn push(&mut self, id: u32) -> Result<Option<String>> { todo!() }
    pub fn finish(self) -> Option<String> { todo!() }
}
