//! Training of a byte-level BPE vocabulary, and the deterministic sample it may learn from.

use super::{END_OF_TEXT, MESSAGE_END, MESSAGE_START, Tokenizer, damaged};
use crate::{DataError, bpe};
use sha2::{Digest, Sha256};
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer as Inner};

const TRAIN_BATCH_BYTES: usize = 16 << 20;

/// What [`Tokenizer::train`] should learn.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Tokens in all: specials, 256 bytes, merges. Fewer come out where the text holds too few
    /// repeated pairs.
    pub vocab_size: usize,
    /// Ids 0, 1, ...; by default end of text, message start, message end.
    pub special_tokens: Vec<String>,
    /// Learn from at most this many bytes: the texts with the smallest SHA-256 are kept, whatever
    /// their order.
    pub max_bytes: Option<u64>,
}

impl TrainOptions {
    /// The usual three specials, all of the text.
    pub fn new(vocab_size: usize) -> Self {
        let special_tokens = [END_OF_TEXT, MESSAGE_START, MESSAGE_END].map(str::to_owned).to_vec();
        TrainOptions { vocab_size, special_tokens, max_bytes: None }
    }

    fn check(&self) -> Result<(), DataError> {
        let least = self.special_tokens.len() + 256;
        if self.vocab_size < least || self.vocab_size > 1 << 24 {
            let expected = format!("{least} (specials and bytes) to {}", 1 << 24);
            return Err(DataError::argument("vocab_size", expected, self.vocab_size));
        }
        for (i, token) in self.special_tokens.iter().enumerate() {
            if token.chars().count() < 2 || self.special_tokens[..i].contains(token) {
                return Err(DataError::argument(
                    "special_tokens",
                    "distinct tokens of two or more characters",
                    format!("{token:?}"),
                ));
            }
        }
        Ok(())
    }
}

impl Tokenizer {
    /// Learns a byte-level BPE vocabulary from texts: GPT-2's word pattern, every digit on its own,
    /// all 256 bytes in the alphabet, no prefix space.
    ///
    /// The same multiset of texts gives the same bytes of tokenizer.json, whatever the order and
    /// the number of threads.
    ///
    /// # Errors
    /// A vocabulary that cannot hold specials and bytes, repeated or one-character specials.
    pub fn train(
        texts: impl Iterator<Item = String>,
        options: &TrainOptions,
    ) -> Result<Self, DataError> {
        options.check()?;
        let mut counts = HashMap::new();
        match options.max_bytes {
            Some(max_bytes) => {
                bpe::add_counts(&mut counts, bpe::count_words(&sample(texts, max_bytes)))
            }
            None => {
                let mut batch = Vec::new();
                let mut bytes = 0;
                for text in texts {
                    bytes += text.len();
                    batch.push(text);
                    if bytes >= TRAIN_BATCH_BYTES {
                        bpe::add_counts(&mut counts, bpe::count_words(&batch));
                        batch.clear();
                        bytes = 0;
                    }
                }
                bpe::add_counts(&mut counts, bpe::count_words(&batch));
            }
        }
        let learned = bpe::learn(counts, &options.special_tokens, options.vocab_size);
        assemble(learned, &options.special_tokens)
    }
}

/// What messages call a tokenizer that is in no file yet.
const TRAINED: &str = "tokenizer.json";

fn assemble(learned: bpe::Merges, specials: &[String]) -> Result<Tokenizer, DataError> {
    let vocab: Vocab = learned.tokens.into_iter().zip(0..).collect();
    let model = BPE::builder().vocab_and_merges(vocab, learned.merges);
    let mut inner = Inner::new(model.build().map_err(inconsistent)?);
    inner.with_pre_tokenizer(Some(Sequence::new(vec![
        Digits::new(true).into(),
        ByteLevel::new(false, true, true).into(),
    ])));
    inner.with_decoder(Some(ByteLevel::new(false, true, true)));
    inner
        .add_special_tokens(specials.iter().map(|s| AddedToken::from(s.as_str(), true)))
        .map_err(inconsistent)?;
    let json = inner.to_string(true).map_err(inconsistent)?;
    Tokenizer::wrap(inner, json, Path::new(TRAINED))
}

fn inconsistent(error: tokenizers::Error) -> DataError {
    let expected = "a consistent vocabulary";
    damaged(Path::new(TRAINED), "trained model", expected, error.to_string())
}

/// The texts with the smallest digests, in digest order until one does not fit into `max_bytes`; at
/// least one.
pub(super) fn sample(texts: impl Iterator<Item = String>, max_bytes: u64) -> Vec<String> {
    let mut kept: BinaryHeap<([u8; 32], String)> = BinaryHeap::new();
    let mut bytes = 0u64;
    let mut cut = None;
    for text in texts {
        let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        if cut.is_some_and(|cut| digest >= cut) {
            continue;
        }
        bytes += text.len() as u64;
        kept.push((digest, text));
        while bytes > max_bytes && kept.len() > 1 {
            if let Some((dropped, text)) = kept.pop() {
                bytes -= text.len() as u64;
                cut = Some(dropped);
            }
        }
    }
    kept.into_iter().map(|(_, text)| text).collect()
}
