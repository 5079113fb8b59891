//! What a text may look like.

use std::fmt::Write as _;

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use crate::GrammarError;

/// Bytes that a grammar may have.
pub const MOST_BYTES: usize = 64 << 10;
/// Choices that a grammar may have.
pub const MOST_CHOICES: usize = 1000;

/// Lists and objects in each other that a schema may have; the library follows them by recursion.
const MOST_LEVELS: usize = 64;

/// White space between the parts of JSON. Without an end to it, a small model writes nothing else.
const BLANKS: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// The form of a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON object with any content.
    JsonObject,
    /// JSON that fits a schema (JSON Schema; what is understood of it is what `llguidance` does,
    /// and the rest is refused).
    JsonSchema(Value),
    /// All of the text matches this regular expression, in the syntax of the crate `regex` without
    /// look-around.
    Regex(String),
    /// The text is one of these.
    Choices(Vec<String>),
}

impl Grammar {
    pub(crate) fn top_level(&self) -> Result<TopLevelGrammar, GrammarError> {
        match self {
            Self::JsonObject => Ok(of_schema(json!({ "type": "object" }))),
            Self::JsonSchema(schema) => {
                if levels(schema) > MOST_LEVELS {
                    return Err(GrammarError::TooDeep(MOST_LEVELS));
                }
                check_length(schema.to_string().len())?;
                if has_own_setting(schema) {
                    return Err(GrammarError::OwnSetting);
                }
                Ok(of_schema(schema.clone()))
            }
            Self::Regex(pattern) => {
                check_length(pattern.len())?;
                Ok(TopLevelGrammar::from_regex(pattern))
            }
            Self::Choices(choices) => {
                if choices.is_empty() || choices.len() > MOST_CHOICES {
                    let (choices, most) = (choices.len(), MOST_CHOICES);
                    return Err(GrammarError::Choices { choices, most });
                }
                if let Some(at) = choices.iter().position(String::is_empty) {
                    return Err(GrammarError::EmptyChoice(at));
                }
                check_length(choices.iter().map(String::len).sum())?;
                Ok(TopLevelGrammar::from_lark(lark_of(choices)))
            }
        }
    }
}

fn check_length(bytes: usize) -> Result<(), GrammarError> {
    match bytes > MOST_BYTES {
        true => Err(GrammarError::TooLong { bytes, most: MOST_BYTES }),
        false => Ok(()),
    }
}

/// Levels of lists and objects, of which no more than one above the most are looked at.
fn levels(value: &Value) -> usize {
    let mut level: Vec<&Value> = vec![value];
    for levels in 0..=MOST_LEVELS {
        let mut next: Vec<&Value> = Vec::new();
        for value in level {
            match value {
                Value::Array(items) => next.extend(items),
                Value::Object(entries) => next.extend(entries.values()),
                _ => {}
            }
        }
        if next.is_empty() {
            return levels;
        }
        level = next;
    }
    MOST_LEVELS + 1
}

fn has_own_setting(schema: &Value) -> bool {
    schema.as_object().is_some_and(|entries| entries.contains_key("x-guidance"))
}

fn of_schema(mut schema: Value) -> TopLevelGrammar {
    if let Value::Object(entries) = &mut schema {
        entries.insert("x-guidance".into(), json!({ "whitespace_pattern": BLANKS }));
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// One string literal for each choice. The grammar's strings are those of JSON.
fn lark_of(choices: &[String]) -> String {
    let mut text = "start: ".to_owned();
    for (i, choice) in choices.iter().enumerate() {
        let between = if i == 0 { "" } else { " | " };
        let _ = write!(text, "{between}{}", Value::String(choice.clone()));
    }
    text
}
