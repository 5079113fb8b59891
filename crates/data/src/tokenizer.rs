//! Byte-level BPE: training, loading, encoding and decoding of Hugging Face tokenizer.json files.

mod bounds;
mod check;
mod quick;
mod stream;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;
mod train;

pub use stream::DecodeStream;
pub use train::TrainOptions;

use crate::DataError;
use crate::guard::guarded;
use crate::stretches::{Part, are_lines_apart, stretches};
use crate::words::bytes_of_token;
use quick::Quick;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokenizers::models::ModelWrapper;
use tokenizers::{
    DecoderWrapper, Model as _, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    Tokenizer as Inner,
};

/// End of text: separates documents, id 0 in the vocabularies trained here.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Opens a chat message.
pub const MESSAGE_START: &str = "<|im_start|>";
/// Closes a chat message.
pub const MESSAGE_END: &str = "<|im_end|>";

/// Names under which published vocabularies keep their end-of-text token, in order of preference.
pub(crate) const END_NAMES: [&str; 4] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"];

/// Ids before a continuation that are decoded with it: more than a character takes.
const BEFORE: usize = 16;

const TOO_HARD: &str = "a part of tokenizer.json breaks on it, as a pattern of too many steps does";

const MAX_JSON_BYTES: u64 = 1 << 30;

/// A tokenizer: text to ids and back. Cheap to clone (shared); `Send + Sync`.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Inner,
    /// The same tokenizer with special tokens read as plain text.
    ordinary: Inner,
    json: String,
    sha256: String,
    vocab_size: usize,
    eos_id: Option<u32>,
    tokens: Vec<Option<TokenInfo>>,
    byte_level: bool,
    spells_its_text: bool,
    /// Whether long texts may be cut at line ends without a change of any id.
    lines_apart: bool,
    quick: Option<Quick>,
    /// A token of plain letters, behind which others are decoded as they are within a text.
    anchor: Option<u32>,
}

struct TokenInfo {
    /// Text bytes of a byte-level token, empty for specials; for other decoders the token's own
    /// spelling.
    bytes: Box<[u8]>,
    special: bool,
    /// Beside the model's own vocabulary: it stands for its spelling, letter for letter.
    added: bool,
}

impl Tokenizer {
    /// Reads a Hugging Face tokenizer.json of any kind; truncation, padding and dropout in it are
    /// switched off.
    ///
    /// # Errors
    /// A file that cannot be read, is larger than 1 GiB, or is no consistent tokenizer; the message
    /// names the file.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let file = files::open(path).map_err(DataError::io("read", path))?;
        let length = file.metadata().map_err(DataError::io("read", path))?.len();
        if length > MAX_JSON_BYTES {
            let next = "name a tokenizer.json";
            return Err(DataError::format(
                path,
                "file size",
                "at most 1 GiB",
                format!("{length} bytes"),
                next,
            ));
        }
        let mut bytes =
            files::read_open(file, MAX_JSON_BYTES).map_err(DataError::io("read", path))?;
        files::skip_mark(&mut bytes);
        let json = String::from_utf8(bytes)
            .map_err(|e| damaged(path, "encoding", "UTF-8", e.to_string()))?;
        Self::parse(json, path)
    }

    /// Like [`Tokenizer::load`], from the text of a tokenizer.json.
    ///
    /// # Errors
    /// As [`Tokenizer::load`]; messages name `tokenizer.json`.
    pub fn from_json(json: &str) -> Result<Self, DataError> {
        Self::parse(json.to_owned(), Path::new("tokenizer.json"))
    }

    fn parse(json: String, path: &Path) -> Result<Self, DataError> {
        check::check_json(&json, path)?;
        // The parser indexes by what the file claims; a claim that slips past the checks must not
        // end the program.
        let parsed = guarded(|| Inner::from_bytes(json.as_bytes())).ok_or_else(|| {
            damaged(path, "model", "a consistent vocabulary", "one the parser cannot hold")
        })?;
        let inner = parsed.map_err(|e| {
            damaged(path, "tokenizer", "a Hugging Face tokenizer.json", e.to_string())
        })?;
        let inner = whole_and_alike(inner, path)?;
        bounds::check_time(&inner, path)?;
        Self::wrap(inner, json, path)
    }

    fn wrap(inner: Inner, json: String, path: &Path) -> Result<Self, DataError> {
        let vocab = inner.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        if vocab.is_empty() || vocab_size > 2 * vocab.len() + 1024 {
            let found =
                format!("{} tokens with a largest id of {}", vocab.len(), vocab_size as i64 - 1);
            return Err(damaged(path, "vocab", "ids without large gaps", found));
        }
        let byte_level = inner.get_decoder().is_some_and(is_byte_level);
        let tokens = token_infos(&inner, vocab_size, byte_level);
        let mut ordinary = inner.clone();
        ordinary.set_encode_special_tokens(true);
        let spells_its_text = spells_its_text(&inner);
        if !spells_its_text {
            // It adds no id to a text alone, but moves the places of tokens away from blanks.
            ordinary.with_post_processor(None::<PostProcessorWrapper>);
        }
        let added = added_tokens(&inner);
        Ok(Tokenizer {
            shared: Arc::new(Shared {
                lines_apart: are_lines_apart(|text| parts_of(&inner, text), &added),
                eos_id: END_NAMES.iter().find_map(|name| inner.token_to_id(name)),
                quick: Quick::for_tokenizer(&inner),
                sha256: hex(&Sha256::digest(json.as_bytes())),
                inner,
                ordinary,
                json,
                vocab_size,
                anchor: tokens.iter().zip(0..).find_map(|(token, id)| {
                    token.as_ref().filter(|token| is_word(token)).map(|_| id)
                }),
                tokens,
                byte_level,
                spells_its_text,
            }),
        })
    }

    /// Writes the tokenizer.json, beside and renamed.
    ///
    /// # Errors
    /// What the file system refuses.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        files::write_whole(path, self.shared.json.as_bytes()).map_err(DataError::io("write", path))
    }

    /// Ids of `text`. Special tokens written out in the text become their ids; none is added.
    ///
    /// # Errors
    /// A vocabulary without a way to spell the text (never for byte-level ones).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.encode_with(&self.shared.inner, text)
    }

    /// Ids of `text` with special tokens read as plain characters, so that a document cannot forge
    /// an end of text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.encode_with(&self.shared.ordinary, text)
    }

    /// Whether the ids of every text spell exactly its bytes, so that [`Tokenizer::token_bytes`]
    /// says how many bytes of text an id stands for wherever it stands.
    pub fn spells_its_text(&self) -> bool {
        self.shared.spells_its_text
    }

    /// [`Tokenizer::encode_ordinary`], and for each id how many bytes of `text` are complete with
    /// it and were not before: a character that several tokens spell counts with the last of them,
    /// and what no token stands for counts with the next, or with none.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_counting(&self, text: &str) -> Result<(Vec<u32>, Vec<u32>), DataError> {
        let ordinary = &self.shared.ordinary;
        let (mut ids, mut counts) = (Vec::new(), Counts::default());
        let mut before = 0;
        for stretch in stretches(text, self.shared.lines_apart) {
            let encoding = guarded(|| ordinary.encode(stretch, false));
            let Some(encoding) = encoding else { return Err(unspellable("text", TOO_HARD.into())) };
            let encoding = encoding.map_err(|e| unspellable("text", e))?;
            ids.extend_from_slice(encoding.get_ids());
            for &(start, end) in encoding.get_offsets() {
                counts.token(before + start, before + end);
            }
            before += stretch.len();
        }
        Ok((ids, counts.finish()))
    }

    /// [`Tokenizer::encode`] of many texts in parallel, in their order.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], for the first text that fails.
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, DataError> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    fn encode_with(&self, inner: &Inner, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = Vec::new();
        for stretch in stretches(text, self.shared.lines_apart) {
            self.encode_stretch(inner, stretch, &mut ids)?;
        }
        Ok(ids)
    }

    /// [`Tokenizer::encode`], or with `ordinary` [`Tokenizer::encode_ordinary`], given up when
    /// `until` has passed; a stretch of up to 1 MiB is not divided.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_until(
        &self,
        text: &str,
        ordinary: bool,
        until: Instant,
    ) -> Result<Option<Vec<u32>>, DataError> {
        let inner = if ordinary { &self.shared.ordinary } else { &self.shared.inner };
        let mut ids = Vec::new();
        for stretch in stretches(text, self.shared.lines_apart) {
            if Instant::now() >= until {
                return Ok(None);
            }
            self.encode_stretch(inner, stretch, &mut ids)?;
        }
        Ok(Some(ids))
    }

    fn encode_stretch(
        &self,
        inner: &Inner,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), DataError> {
        if let Some(quick) = &self.shared.quick
            && let ModelWrapper::BPE(bpe) = inner.get_model()
            && quick
                .holds_no_added(text, inner.get_encode_special_tokens() && self.added_are_special())
        {
            return match guarded(|| quick.encode(bpe, text, ids)) {
                Some(result) => result,
                None => Err(unspellable("text", TOO_HARD.into())),
            };
        }
        let encoding = guarded(|| inner.encode_fast(text, false));
        let Some(encoding) = encoding else { return Err(unspellable("text", TOO_HARD.into())) };
        ids.extend_from_slice(encoding.map_err(|e| unspellable("text", e))?.get_ids());
        Ok(())
    }

    fn added_are_special(&self) -> bool {
        self.shared.quick.as_ref().is_some_and(|q| {
            let special = |t: &String| self.token_to_id(t).is_some_and(|id| self.is_special(id));
            q.added.iter().all(special)
        })
    }

    /// Text of `ids`: special tokens are left out, bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// An id that names no token.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        if self.shared.byte_level {
            let mut bytes = Vec::new();
            for &id in ids {
                bytes.extend_from_slice(&self.info(id)?.bytes);
            }
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        for &id in ids {
            self.info(id)?;
        }
        match guarded(|| self.shared.inner.decode(ids, true)) {
            Some(text) => text.map_err(|e| unspellable("ids", e)),
            None => Err(unspellable("ids", TOO_HARD.into())),
        }
    }

    /// Decodes ids one at a time.
    pub fn decode_stream(&self) -> DecodeStream {
        DecodeStream::new(self.clone())
    }

    /// Decodes ids that follow `before`, one at a time: a blank that begins the first of them is no
    /// blank that begins a text, and it may complete a character.
    pub fn decode_stream_after(&self, before: &[u32]) -> DecodeStream {
        let mut stream = self.decode_stream();
        for &id in &before[before.len().saturating_sub(BEFORE)..] {
            // What cannot be decoded is no text that something could follow.
            let _ = stream.push(id);
        }
        stream
    }

    fn info(&self, id: u32) -> Result<&TokenInfo, DataError> {
        self.shared.tokens.get(id as usize).and_then(Option::as_ref).ok_or_else(|| {
            let expected = format!("the id of a token, below {}", self.shared.vocab_size);
            DataError::argument("token id", expected, id)
        })
    }

    /// Largest id plus one: the number of rows an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab_size
    }

    /// The end-of-text token, where the vocabulary has one under a known name.
    pub fn eos_id(&self) -> Option<u32> {
        self.shared.eos_id
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.shared.inner.token_to_id(token)
    }

    /// The spelling of a token in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.shared.inner.id_to_token(id)
    }

    /// The bytes of text that a token stands for within a text: the spelling of special and other
    /// added tokens, what the decoder makes of all others. Nothing for an unused id.
    pub fn bytes_of(&self, id: u32) -> Vec<u8> {
        let (Ok(info), Some(spelling)) = (self.info(id), self.id_to_token(id)) else {
            return Vec::new();
        };
        if info.special || info.added {
            return spelling.into_bytes();
        }
        if self.shared.byte_level {
            return info.bytes.to_vec();
        }
        if self.shared.inner.get_decoder().is_some_and(holds_byte_level) {
            return bytes_of_token(&spelling);
        }
        if let Some(byte) = lone_byte(&spelling) {
            return vec![byte];
        }
        self.behind_anchor(id).unwrap_or_else(|| info.bytes.to_vec())
    }

    /// What the decoder adds for `id` to the text of a token before it: alone at the beginning of a
    /// text, decoders drop blanks.
    fn behind_anchor(&self, id: u32) -> Option<Vec<u8>> {
        let inner = &self.shared.inner;
        let decode = |ids: &[u32]| guarded(|| inner.decode(ids, false))?.ok();
        let anchor = self.shared.anchor?;
        let (before, both) = (decode(&[anchor])?, decode(&[anchor, id])?);
        both.strip_prefix(before.as_str()).map(|text| text.as_bytes().to_vec())
    }

    /// The spellings of special tokens, with their ids.
    pub fn specials(&self) -> Vec<(String, u32)> {
        let ids = (0..self.shared.vocab_size as u32).filter(|&id| self.is_special(id));
        ids.filter_map(|id| Some((self.id_to_token(id)?, id))).collect()
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.info(id).is_ok_and(|info| info.special)
    }

    /// Bytes of text each id stands for, `vocab_size` entries; 0 for specials and unused ids.
    ///
    /// Exact where [`Tokenizer::spells_its_text`]; otherwise the length of the token's spelling,
    /// with U+2581 as one space.
    pub fn token_bytes(&self) -> Vec<u32> {
        self.shared.tokens.iter().map(|t| t.as_ref().map_or(0, |t| t.bytes.len() as u32)).collect()
    }

    /// SHA-256 of [`Tokenizer::to_json`] in lower-case hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.shared.sha256
    }

    /// The tokenizer.json, byte for byte as loaded or trained.
    pub fn to_json(&self) -> &str {
        &self.shared.json
    }

    /// The general pipeline's answer, which the quick path must equal.
    #[cfg(test)]
    pub(crate) fn encode_slowly(&self, text: &str, ordinary: bool) -> Vec<u32> {
        let inner = if ordinary { &self.shared.ordinary } else { &self.shared.inner };
        inner.encode(text, false).unwrap().get_ids().to_vec()
    }
}

/// Without what cuts a text, fills it up, or spells it by dice.
fn whole_and_alike(mut inner: Inner, path: &Path) -> Result<Inner, DataError> {
    inner.with_truncation(None).map_err(|e| damaged(path, "truncation", "none", e.to_string()))?;
    inner.with_padding(None);
    if let ModelWrapper::BPE(bpe) = inner.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        inner.with_model(bpe);
    }
    Ok(inner)
}

/// Whether every byte of a text comes back in the spelling of its ids: a byte-level vocabulary, and
/// nothing before it that changes, adds or leaves out characters.
fn spells_its_text(inner: &Inner) -> bool {
    let keeps = inner.get_pre_tokenizer().is_some_and(keeps_text);
    let strips = |token: &tokenizers::AddedToken| token.lstrip || token.rstrip;
    let byte_level = inner.get_decoder().is_some_and(is_byte_level);
    let added = inner.get_added_tokens_decoder();
    byte_level && inner.get_normalizer().is_none() && keeps && !added.values().any(strips)
}

fn keeps_text(step: &PreTokenizerWrapper) -> bool {
    match step {
        PreTokenizerWrapper::ByteLevel(bytes) => !bytes.add_prefix_space,
        PreTokenizerWrapper::Digits(_) => true,
        PreTokenizerWrapper::Split(split) => split.behavior != SplitDelimiterBehavior::Removed,
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref().iter().all(keeps_text),
        _ => false,
    }
}

/// The tokens of a short text; nothing where it cannot be encoded.
fn parts_of(inner: &Inner, text: &str) -> Option<Vec<Part>> {
    let encoding = guarded(|| inner.encode(text, false))?.ok()?;
    let ids = encoding.get_ids().iter().copied();
    Some(ids.zip(encoding.get_word_ids().iter().copied()).collect())
}

fn added_tokens(inner: &Inner) -> Vec<String> {
    inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect()
}

/// How many bytes of a text are complete with each of its tokens.
#[derive(Default)]
struct Counts {
    bytes: Vec<u32>,
    reached: usize,
    /// Where the token ends that is not counted yet: the next one may begin before.
    open: Option<usize>,
}

impl Counts {
    fn token(&mut self, start: usize, end: usize) {
        if let Some(last) = self.open.replace(end) {
            self.count(start.min(last));
        }
    }

    fn count(&mut self, complete: usize) {
        let new = complete.saturating_sub(self.reached);
        self.bytes.push(u32::try_from(new).unwrap_or(u32::MAX));
        self.reached = self.reached.max(complete);
    }

    fn finish(mut self) -> Vec<u32> {
        if let Some(last) = self.open {
            self.count(last);
        }
        self.bytes
    }
}

fn token_infos(inner: &Inner, vocab_size: usize, byte_level: bool) -> Vec<Option<TokenInfo>> {
    let added = inner.get_added_tokens_decoder();
    let info = |id: u32| {
        let token = inner.id_to_token(id)?;
        let known = added.get(&id);
        let special = known.is_some_and(|t| t.special);
        // One that the model's vocabulary has too is spelled as its other tokens are, but not in
        // the alphabet of bytes: files whose vocabulary holds all tokens name added ones as texts.
        let added =
            known.is_some() && (byte_level || inner.get_model().token_to_id(&token).is_none());
        let bytes = match lone_byte(&token) {
            _ if special => Vec::new(),
            _ if added => token.into_bytes(),
            _ if byte_level => bytes_of_token(&token),
            Some(byte) => vec![byte],
            None => token.replace('\u{2581}', " ").into_bytes(),
        };
        Some(TokenInfo { bytes: bytes.into(), special, added })
    };
    (0..vocab_size as u32).map(info).collect()
}

/// Whether texts are the bytes that the tokens spell in the printable alphabet, and nothing else.
fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(steps) => {
            let plain = |step: &DecoderWrapper| {
                is_byte_level(step) || matches!(step, DecoderWrapper::Fuse(_))
            };
            holds_byte_level(decoder) && steps.get_decoders().iter().all(plain)
        }
        _ => false,
    }
}

fn holds_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(steps) => steps.get_decoders().iter().any(holds_byte_level),
        _ => false,
    }
}

/// The byte that a token such as `<0xE2>` stands for.
fn lone_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|rest| rest.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// Whether a token is a few plain letters.
fn is_word(token: &TokenInfo) -> bool {
    !token.added && !token.bytes.is_empty() && token.bytes.iter().all(u8::is_ascii_alphanumeric)
}

fn damaged(path: &Path, field: &str, expected: &str, found: impl Into<String>) -> DataError {
    DataError::format(
        path,
        field,
        expected,
        found,
        "use the tokenizer.json as published, or train one",
    )
}

fn unspellable(name: &'static str, error: tokenizers::Error) -> DataError {
    DataError::argument(name, "what the vocabulary can spell", error)
}

/// Two lower-case hexadecimal digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
