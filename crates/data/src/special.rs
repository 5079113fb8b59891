//! What a model says about text beside its tokenizer: ids with a meaning of their own, and the chat
//! template. Evaluation, data, generation and serving all ask here which id begins a text, which
//! ones end it and which one stands between documents.

use serde::{Deserialize, Serialize};

use crate::tokenizer::Tokenizer;

/// Names of control tokens that end a text or a turn in published vocabularies, beside those of
/// the end of text.
const TURN_ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|end|>",
    "<EOT>",
    "_<EOT>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// Whether a control token of this name ends a text or a turn by convention, for files that name
/// only one such id.
pub fn ends_by_name(name: &str) -> bool {
    crate::tokenizer::END_NAMES.contains(&name) || TURN_ENDS.contains(&name)
}

/// `text.json` of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpecialTokens {
    /// The id that begins a text, where the tokenizer has one.
    pub bos: Option<u32>,
    /// Each of them ends generation; the first is the main one, which templates call `eos_token`.
    pub eos: Vec<u32>,
    /// The id that pads the rows of a batch, carried from an import to an export.
    pub pad: Option<u32>,
    /// The model expects `bos` before every text.
    pub add_bos: bool,
    /// Jinja source that turns messages into a prompt.
    pub chat_template: Option<String>,
}

impl SpecialTokens {
    /// What is known of a model, with the tokenizer's own end of text where nothing is said of an
    /// end: a run that began here ends its documents so.
    pub fn of(known: Option<&Self>, tokenizer: &Tokenizer) -> Self {
        let mut special = known.cloned().unwrap_or_default();
        if special.eos.is_empty() {
            special.eos.extend(tokenizer.eos_id());
        }
        special
    }

    /// The first id that is not below `vocab`, with its field.
    pub fn outside(&self, vocab: usize) -> Option<(&'static str, u32)> {
        let named = [("bos", self.bos), ("pad", self.pad)].into_iter();
        let named = named.filter_map(|(name, id)| Some((name, id?)));
        let ends = self.eos.iter().map(|&id| ("eos", id));
        named.chain(ends).find(|(_, id)| *id as usize >= vocab)
    }

    /// The id that the model expects before every text.
    pub fn begin(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    /// Puts [`begin`](Self::begin) before the ids of a text that does not spell it; whether it did.
    pub fn put_begin(&self, ids: &mut Vec<u32>) -> bool {
        let begin = self.begin().filter(|begin| ids.first() != Some(begin));
        if let Some(begin) = begin {
            ids.insert(0, begin);
        }
        begin.is_some()
    }

    /// What the first token of a text is predicted from where nothing stands before it: the begin
    /// of text, else the end of text, as lm-evaluation-harness takes them.
    pub fn prefix(&self) -> Option<u32> {
        self.bos.or(self.eos.first().copied())
    }

    /// The id behind each document of training text: the tokenizer's end of text if it is a control
    /// token or one of the ends that are known, else the main one of these. A model for
    /// conversations has an end of turn as its main one, and ended the documents that it was made
    /// of by the other.
    pub fn document_end(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let named = tokenizer
            .eos_id()
            .filter(|id| self.eos.is_empty() || self.eos.contains(id) || tokenizer.is_special(*id));
        named.or(self.eos.first().copied())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    /// Words `w0` to `w3`, then these as added tokens.
    fn tokenizer(added: &[(&str, bool)]) -> Tokenizer {
        let vocab: Map<String, Value> = (0..4).map(|i| (format!("w{i}"), i.into())).collect();
        let added: Vec<Value> = added
            .iter()
            .enumerate()
            .map(|(i, (content, special))| {
                json!({
                    "id": 4 + i, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": special,
                })
            })
            .collect();
        let root = json!({
            "version": "1.0", "added_tokens": added, "normalizer": null,
            "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
        });
        Tokenizer::from_json(&root.to_string()).expect("a tokenizer")
    }

    fn known(bos: Option<u32>, eos: &[u32], add_bos: bool) -> SpecialTokens {
        SpecialTokens { bos, eos: eos.to_vec(), add_bos, ..SpecialTokens::default() }
    }

    #[test]
    fn ends_are_those_that_are_known_or_the_tokenizers() {
        let with = tokenizer(&[("<s>", true), ("</s>", true)]);
        let without = tokenizer(&[("<s>", true)]);
        let ends = |known: Option<&SpecialTokens>, of| SpecialTokens::of(known, of).eos;
        assert_eq!(ends(None, &with), [5]);
        assert_eq!(ends(Some(&known(Some(4), &[], true)), &with), [5]);
        assert_eq!(ends(Some(&known(None, &[4, 5], false)), &with), [4, 5]);
        assert_eq!(ends(None, &without), [0; 0]);
    }

    #[test]
    fn documents_end_as_those_did_that_the_model_was_made_of() {
        // An end of turn is the main end of a model for conversations.
        let chat = tokenizer(&[("<|im_end|>", true), ("<|endoftext|>", true)]);
        assert_eq!(known(None, &[4], false).document_end(&chat), Some(5));
        assert_eq!(known(None, &[], false).document_end(&chat), Some(5));
        // Of two names the one that is an end of this model; a word of the vocabulary is none.
        let word = tokenizer(&[("<end>", true), ("</s>", false)]);
        assert_eq!(known(None, &[4], false).document_end(&word), Some(4));
        assert_eq!(known(None, &[4, 5], false).document_end(&word), Some(5));
        assert_eq!(known(None, &[], false).document_end(&word), Some(5));
        let none = tokenizer(&[("<end>", true)]);
        assert_eq!(known(None, &[], false).document_end(&none), None);
        assert_eq!(known(None, &[4], false).document_end(&none), Some(4));
    }

    #[test]
    fn a_text_begins_as_the_model_expects() {
        let begun = |special: &SpecialTokens, mut ids: Vec<u32>| {
            let put = special.put_begin(&mut ids);
            (put, ids)
        };
        let asks = known(Some(4), &[5], true);
        assert_eq!(begun(&asks, vec![1]), (true, vec![4, 1]));
        assert_eq!(begun(&asks, vec![4, 1]), (false, vec![4, 1]));
        assert_eq!(begun(&asks, vec![]), (true, vec![4]));
        let has = known(Some(4), &[5], false);
        assert_eq!(begun(&has, vec![1]), (false, vec![1]));
        assert_eq!((asks.begin(), has.begin()), (Some(4), None));
        assert_eq!((has.prefix(), known(None, &[5, 6], false).prefix()), (Some(4), Some(5)));
        assert_eq!(known(None, &[], false).prefix(), None);
    }

    #[test]
    fn ids_without_a_row_are_named() {
        let special = SpecialTokens { pad: Some(9), ..known(Some(1), &[2, 8], false) };
        for (vocab, expected) in
            [(10, None), (9, Some(("pad", 9))), (2, Some(("pad", 9))), (1, Some(("bos", 1)))]
        {
            assert_eq!(special.outside(vocab), expected);
        }
        assert_eq!(known(None, &[2, 8], false).outside(8), Some(("eos", 8)));
        assert!(ends_by_name("</s>") && ends_by_name("<|im_end|>") && !ends_by_name("<s>"));
    }
}
