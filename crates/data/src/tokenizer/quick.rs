//! Encoding without the general pipeline, for vocabularies of the form that training writes; equal
//! to it id for id.

use super::{added_tokens, unspellable};
use crate::DataError;
use crate::words::{for_each_word, to_alphabet};
use std::collections::HashMap;
use std::sync::Mutex;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{Model, Tokenizer as Inner};

const CACHE_SHARDS: usize = 64;
const CACHE_WORDS: usize = 2048;
const CACHE_WORD_BYTES: usize = 64;
/// Above this many added tokens, looking for each of them costs more than the quick path saves.
const MAX_QUICK_ADDED: usize = 16;

type WordIds = HashMap<Box<str>, Box<[u32]>>;

/// Encoding without the general pipeline, for vocabularies of the form that `Tokenizer::train`
/// writes.
pub(super) struct Quick {
    digits: bool,
    pub(super) added: Vec<String>,
    /// Ids of words met before, spread over locks by the word's checksum.
    cache: Vec<Mutex<WordIds>>,
}

impl Quick {
    pub(super) fn for_tokenizer(inner: &Inner) -> Option<Self> {
        let digits = match inner.get_pre_tokenizer()? {
            PreTokenizerWrapper::ByteLevel(b) if is_plain(b) => false,
            PreTokenizerWrapper::Sequence(s) => match s.as_ref() {
                [PreTokenizerWrapper::Digits(d), PreTokenizerWrapper::ByteLevel(b)]
                    if d.individual_digits && is_plain(b) =>
                {
                    true
                }
                _ => return None,
            },
            _ => return None,
        };
        let added = added_tokens(inner);
        let general = inner.get_normalizer().is_some()
            || added.len() > MAX_QUICK_ADDED
            || added.iter().any(String::is_empty);
        if general || !matches!(inner.get_model(), ModelWrapper::BPE(_)) {
            return None;
        }
        let cache = (0..CACHE_SHARDS).map(|_| Mutex::new(HashMap::new())).collect();
        Some(Quick { digits, added, cache })
    }

    pub(super) fn holds_no_added(&self, text: &str, added_are_plain: bool) -> bool {
        added_are_plain || !self.added.iter().any(|token| text.contains(token.as_str()))
    }

    /// Appends the ids of `text` to `ids`.
    pub(super) fn encode(
        &self,
        bpe: &BPE,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), DataError> {
        ids.reserve(text.len() / 3);
        let mut failed = None;
        for_each_word(text, self.digits, |word| {
            if failed.is_none() {
                failed = self.encode_word(bpe, word, ids).err();
            }
        });
        failed.map_or(Ok(()), Err)
    }

    fn encode_word(&self, bpe: &BPE, word: &str, ids: &mut Vec<u32>) -> Result<(), DataError> {
        let shard = &self.cache[crc32c::crc32c(word.as_bytes()) as usize % CACHE_SHARDS];
        // A panic elsewhere cannot leave a half-written entry: take the map as it is.
        let mut cache = shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = cache.get(word) {
            ids.extend_from_slice(known);
            return Ok(());
        }
        let tokens = bpe.tokenize(&to_alphabet(word)).map_err(|e| unspellable("text", e))?;
        let found: Box<[u32]> = tokens.iter().map(|t| t.id).collect();
        ids.extend_from_slice(&found);
        if word.len() <= CACHE_WORD_BYTES && cache.len() < CACHE_WORDS {
            cache.insert(Box::from(word), found);
        }
        Ok(())
    }
}

fn is_plain(byte_level: &ByteLevel) -> bool {
    !byte_level.add_prefix_space && byte_level.use_regex
}
