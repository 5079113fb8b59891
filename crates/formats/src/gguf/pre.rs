//! The pre-tokenizers that byte-level vocabularies name, as steps of a tokenizer.json, in both
//! directions.

use serde_json::{Value, json};

/// One step of splitting text before merges are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Each digit stands alone.
    Digits,
    /// Matches of the pattern and what is between them become pieces.
    Split(&'static str),
    /// Bytes become letters, after a split by GPT-2's pattern or not.
    Bytes { split: bool },
}

/// How text is cut and cleaned before merges are applied.
pub(super) struct Pre {
    /// Values of `tokenizer.ggml.pre` that mean it; the first is written.
    pub(super) names: &'static [&'static str],
    steps: &'static [Step],
    /// Text is brought into Unicode's normal form C.
    nfc: bool,
    /// A word that is a token needs no merges.
    pub(super) ignore_merges: bool,
    /// Whether a begin-of-text token is prepended where the file does not say.
    pub(super) add_bos: bool,
}

const LETTERS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const LETTERS_ONE_DIGIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

const ALL: [Pre; 5] = [
    Pre {
        names: &["smollm"],
        steps: &[Step::Digits, Step::Bytes { split: true }],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["gpt-2"],
        steps: &[Step::Bytes { split: true }],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        steps: &[Step::Split(LETTERS), Step::Bytes { split: false }],
        nfc: false,
        ignore_merges: true,
        add_bos: true,
    },
    Pre {
        names: &["qwen2"],
        steps: &[Step::Split(LETTERS_ONE_DIGIT), Step::Bytes { split: false }],
        nfc: true,
        ignore_merges: false,
        add_bos: false,
    },
    Pre {
        names: &["default"],
        steps: &[
            Step::Split(r"[\p{P}\$\+<=>\^~\|]+"),
            Step::Split(GPT2),
            Step::Split(r"\p{N}+"),
            Step::Split("[0-9][0-9][0-9]"),
            Step::Bytes { split: false },
        ],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
];

impl Pre {
    pub(super) fn by_name(name: &str) -> Option<&'static Pre> {
        ALL.iter().find(|pre| pre.names.contains(&name))
    }

    pub(super) fn names() -> String {
        ALL.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ")
    }

    /// The entry that cuts text like `root`, a tokenizer.json.
    pub(super) fn of_json(root: &Value) -> Option<&'static Pre> {
        let ignore_merges = root["model"]["ignore_merges"].as_bool().unwrap_or(false);
        let nfc = match &root["normalizer"] {
            Value::Null => false,
            normalizer if normalizer["type"] == "NFC" => true,
            _ => return None,
        };
        let steps = match &root["pre_tokenizer"] {
            sequence if sequence["type"] == "Sequence" => {
                sequence["pretokenizers"].as_array()?.as_slice()
            }
            single => std::slice::from_ref(single),
        };
        ALL.iter().find(|pre| {
            (pre.ignore_merges, pre.nfc) == (ignore_merges, nfc)
                && pre.steps.len() == steps.len()
                && pre.steps.iter().zip(steps).all(|(step, json)| step.is(json))
        })
    }

    pub(super) fn normalizer(&self) -> Value {
        if self.nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    pub(super) fn pre_tokenizer(&self) -> Value {
        match self.steps {
            [step] => step.to_json(),
            steps => {
                let steps: Vec<Value> = steps.iter().map(|step| step.to_json()).collect();
                json!({"type": "Sequence", "pretokenizers": steps})
            }
        }
    }
}

impl Step {
    fn to_json(self) -> Value {
        match self {
            Self::Digits => json!({"type": "Digits", "individual_digits": true}),
            Self::Split(pattern) => {
                json!({
                    "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                    "invert": false,
                })
            }
            Self::Bytes { split } => {
                json!({
                    "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": split,
                })
            }
        }
    }

    fn is(self, json: &Value) -> bool {
        match self {
            Self::Digits => json["type"] == "Digits" && json["individual_digits"] == true,
            Self::Split(pattern) => {
                json["type"] == "Split"
                    && json["pattern"]["Regex"] == pattern
                    && json["behavior"] == "Isolated"
                    && json["invert"] == false
            }
            Self::Bytes { split } => {
                json["type"] == "ByteLevel"
                    && json["add_prefix_space"] == false
                    && json["use_regex"].as_bool().unwrap_or(true) == split
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_again_in_its_own_json() {
        for pre in &ALL {
            let root = json!({
                "normalizer": pre.normalizer(),
                "pre_tokenizer": pre.pre_tokenizer(),
                "model": {"ignore_merges": pre.ignore_merges},
            });
            let found = Pre::of_json(&root).expect("one of the table");
            assert_eq!(found.names, pre.names);
        }
        assert!(Pre::of_json(&json!({"pre_tokenizer": {"type": "Whitespace"}})).is_none());
        assert!(
            Pre::of_json(&json!({
                "normalizer": {"type": "Lowercase"}, "pre_tokenizer": Step::Digits.to_json(),
            }))
            .is_none()
        );
    }
}
