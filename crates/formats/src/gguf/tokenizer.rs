//! The tokenizer inside a GGUF file as a Hugging Face tokenizer.json.

use std::collections::{HashMap, HashSet};

use data::{SpecialTokens, ends_by_name};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::merges;
use super::metadata::Metadata;
use super::pre::Pre;
use crate::error::quote;
use crate::{FormatError, Result};

/// Kinds of tokens, `tokenizer.ggml.token_type`.
pub(super) const NORMAL: i64 = 1;
pub(super) const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const SPACE: &str = "\u{2581}";

/// The text of the token that fills row `id` of an embedding larger than the vocabulary.
pub(super) fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

/// The ids with a meaning of their own; not yet held against the vocabulary.
pub(super) fn special(metadata: &Metadata<'_>) -> Result<SpecialTokens> {
    let bos = token_id(metadata, "bos")?;
    let mut eos: Vec<u32> = Vec::new();
    for name in ["eos", "eot", "eom"] {
        eos.extend(token_id(metadata, name)?.filter(|id| !eos.contains(id)));
    }
    for id in ends_by_convention(metadata)? {
        eos.extend(Some(id).filter(|id| !eos.contains(id)));
    }
    let usual = match metadata.string(MODEL)? {
        Some("llama") => true,
        _ => metadata.string(PRE)?.and_then(Pre::by_name).is_some_and(|pre| pre.add_bos),
    };
    let add_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(usual && bos.is_some());
    let chat_template = metadata.string("tokenizer.chat_template")?.map(str::to_owned);
    // Nothing here pads: an id without a token is no reason against the model.
    let count = metadata.strings(TOKENS)?.map_or(0, |tokens| tokens.len());
    let pad = token_id(metadata, "padding")?.filter(|&id| (id as usize) < count);
    Ok(SpecialTokens { bos, eos, pad, chat_template, add_bos })
}

fn token_id(metadata: &Metadata<'_>, name: &str) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = metadata.unsigned(&key)? else { return Ok(None) };
    match u32::try_from(id) {
        Ok(id) => Ok(Some(id)),
        Err(_) => {
            Err(FormatError::damaged(metadata.path(), key, "an id of 32 bits", id.to_string()))
        }
    }
}

/// Control tokens whose names end a text or a turn by convention: most files give one id alone,
/// and a model for conversations would go on past the others. What is wrong with the vocabulary is
/// for [`to_json`] to say.
fn ends_by_convention(metadata: &Metadata<'_>) -> Result<Vec<u32>> {
    let (Some(tokens), Some(types)) = (metadata.strings(TOKENS)?, metadata.integers(TYPES)?) else {
        return Ok(Vec::new());
    };
    let all = tokens.iter().zip(&types).zip(0..);
    let ends = all.filter(|((name, kind), _)| **kind == CONTROL && ends_by_name(name));
    Ok(ends.map(|(_, id)| id).collect())
}

/// A tokenizer.json, written without a copy of the vocabulary.
#[derive(Serialize)]
struct Root<'a> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<Added<'a>>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Model<'a>,
}

#[derive(Serialize)]
struct Added<'a> {
    id: usize,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Serialize)]
struct Model<'a> {
    r#type: &'static str,
    dropout: Option<f32>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<()>,
    end_of_word_suffix: Option<()>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: &'a Vocabulary<'a>,
    merges: Vec<(&'a str, &'a str)>,
}

/// The tokenizer.json; the vocabulary must have `vocab` tokens.
///
/// Byte-level BPE (`gpt2`) takes over the merges, SentencePiece BPE (`llama`) rebuilds them from
/// the scores. Control tokens become special, user-defined ones added tokens; fillers of unused
/// rows are left out.
pub(super) fn to_json(
    metadata: &Metadata<'_>,
    vocab: usize,
    special: &SpecialTokens,
) -> Result<Vec<u8>> {
    let path = metadata.path();
    if metadata.bool("tokenizer.ggml.add_eos_token")? == Some(true) {
        return Err(FormatError::unsupported(
            path,
            "tokenizer.ggml.add_eos_token",
            "false",
            "true",
        ));
    }
    let words = Vocabulary::read(metadata, vocab)?;
    let root = match metadata.string(MODEL)? {
        Some("gpt2") => byte_level(metadata, &words, special)?,
        Some("llama") => sentence_piece(metadata, &words, special)?,
        other => {
            let found = other.map_or("no such setting".into(), quote);
            return Err(FormatError::unsupported(path, MODEL, "\"gpt2\" or \"llama\"", found));
        }
    };
    serde_json::to_vec(&root)
        .map_err(|e| FormatError::damaged(path, TOKENS, "what JSON can hold", e.to_string()))
}

/// The vocabulary as the file gives it.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i64>,
    ids: HashMap<&'a str, usize>,
}

/// The map from token to id, without the fillers.
impl Serialize for Vocabulary<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let used =
            |&(id, token): &(usize, &&str)| self.types[id] != UNUSED || **token != *filler(id);
        to.collect_map(self.tokens.iter().enumerate().filter(used).map(|(id, token)| (*token, id)))
    }
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Metadata<'a>, vocab: usize) -> Result<Self> {
        let path = metadata.path();
        let tokens = must(metadata, TOKENS, metadata.strings(TOKENS)?)?;
        same_length(metadata, TOKENS, tokens.len(), vocab, "the rows of the embedding")?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(*token, id) {
                let found = format!("{}, which is also token {first}", quote(token));
                return Err(FormatError::damaged(
                    path,
                    format!("{TOKENS}[{id}]"),
                    "each token once",
                    found,
                ));
            }
        }
        let types = metadata.integers(TYPES)?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        same_length(metadata, TYPES, types.len(), tokens.len(), "one a token")?;
        if let Some(id) = types.iter().position(|kind| !(NORMAL..=BYTE).contains(kind)) {
            let field = format!("{TYPES}[{id}]");
            return Err(FormatError::damaged(
                path,
                field,
                "a type of 1 to 6",
                types[id].to_string(),
            ));
        }
        Ok(Self { tokens, types, ids })
    }

    /// Control tokens (and the unknown one), and what the user defined.
    fn added(&self) -> Vec<Added<'a>> {
        let mut added = Vec::new();
        for (id, (token, kind)) in self.tokens.iter().zip(&self.types).enumerate() {
            if matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED) {
                added.push(Added {
                    id,
                    content: token,
                    single_word: false,
                    lstrip: false,
                    rstrip: false,
                    normalized: false,
                    special: *kind != USER_DEFINED,
                });
            }
        }
        added
    }
}

fn must<T>(metadata: &Metadata<'_>, key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| FormatError::damaged(metadata.path(), key, "a value", "no such setting"))
}

fn same_length(
    metadata: &Metadata<'_>,
    key: &str,
    found: usize,
    expected: usize,
    why: &str,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let (expected, found) = (format!("{expected} items, {why}"), found.to_string());
    Err(FormatError::damaged(metadata.path(), key, expected, found))
}

fn byte_level<'a>(
    metadata: &Metadata<'a>,
    words: &'a Vocabulary<'a>,
    special: &SpecialTokens,
) -> Result<Root<'a>> {
    let path = metadata.path();
    let name = metadata.string(PRE)?.unwrap_or("default");
    let pre = Pre::by_name(name).ok_or_else(|| {
        FormatError::unsupported(path, PRE, format!("one of {}", Pre::names()), quote(name))
    })?;
    if metadata.bool("tokenizer.ggml.add_space_prefix")? == Some(true) {
        return Err(FormatError::unsupported(
            path,
            "tokenizer.ggml.add_space_prefix",
            "false",
            "true",
        ));
    }
    Ok(Root {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: words.added(),
        normalizer: pre.normalizer(),
        pre_tokenizer: pre.pre_tokenizer(),
        post_processor: post_processor(words, special),
        decoder: json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        }),
        model: Model {
            r#type: "BPE",
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: pre.ignore_merges,
            vocab: words,
            merges: stored_merges(metadata, words)?,
        },
    })
}

fn stored_merges<'a>(
    metadata: &Metadata<'a>,
    words: &Vocabulary<'a>,
) -> Result<Vec<(&'a str, &'a str)>> {
    let merges = must(metadata, MERGES, metadata.strings(MERGES)?)?;
    let mut pairs = Vec::with_capacity(merges.len());
    let mut known = HashSet::with_capacity(merges.len());
    let mut union = String::new();
    for (rank, merge) in merges.into_iter().enumerate() {
        let field = format!("{MERGES}[{rank}]");
        let Some((left, right)) = merge.split_once(' ') else {
            let expected = "two tokens with a space between";
            return Err(FormatError::damaged(metadata.path(), field, expected, quote(merge)));
        };
        union.clear();
        union.extend([left, right]);
        if ![left, right, &union].iter().all(|token| words.ids.contains_key(token)) {
            let expected = "two tokens of the vocabulary whose union is one too";
            return Err(FormatError::damaged(metadata.path(), field, expected, quote(merge)));
        }
        if !known.insert(merge) {
            let expected = "each merge once";
            return Err(FormatError::damaged(metadata.path(), field, expected, quote(merge)));
        }
        pairs.push((left, right));
    }
    Ok(pairs)
}

/// Most merges a piece of a SentencePiece vocabulary may have on average; published ones have about
/// two.
const MERGES_A_PIECE: usize = 16;

fn sentence_piece<'a>(
    metadata: &Metadata<'a>,
    words: &'a Vocabulary<'a>,
    special: &SpecialTokens,
) -> Result<Root<'a>> {
    let path = metadata.path();
    let scores = must(metadata, SCORES, metadata.floats(SCORES)?)?;
    same_length(metadata, SCORES, scores.len(), words.tokens.len(), "one a token")?;
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(FormatError::damaged(path, format!("{SCORES}[{id}]"), "a number", "NaN"));
    }
    let most = MERGES_A_PIECE * words.tokens.len();
    let merges = merges::from_scores(&words.tokens, &scores, |id| words.types[id] != NORMAL, most);
    let merges = merges.ok_or_else(|| {
        FormatError::unsupported(
            path,
            TOKENS,
            format!("at most {most} ways to join two into a third"),
            "more",
        )
    })?;
    let unknown = words.types.iter().position(|&kind| kind == UNKNOWN);
    let (normalizer, decoder) =
        spaces(metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true));
    Ok(Root {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: words.added(),
        normalizer,
        pre_tokenizer: Value::Null,
        post_processor: post_processor(words, special),
        decoder,
        model: Model {
            r#type: "BPE",
            dropout: None,
            unk_token: unknown.map(|id| words.tokens[id]),
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab: words,
            merges,
        },
    })
}

/// Normalizer and decoder of SentencePiece's marks for spaces, one of which may be put before the
/// text.
pub(super) fn spaces(prefix: bool) -> (Value, Value) {
    let mut normalizers =
        vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    (
        json!({"type": "Sequence", "normalizers": normalizers}),
        json!({"type": "Sequence", "decoders": decoders}),
    )
}

/// Prepends the begin-of-text token where the model was trained with it.
fn post_processor(words: &Vocabulary<'_>, special: &SpecialTokens) -> Value {
    let bos = special
        .bos
        .filter(|_| special.add_bos)
        .and_then(|id| Some((id, words.tokens.get(id as usize)?)));
    let Some((id, token)) = bos else { return Value::Null };
    json!({
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {*token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}
