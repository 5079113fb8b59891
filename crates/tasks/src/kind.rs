//! What a kind of tasks is made of, and what several kinds do alike.

use crate::ask::SequenceScore;
use crate::error::TaskError;
use crate::items::Row;
use crate::report::{Measure, Score};
use crate::settings::TaskSettings;
use crate::split;
use crate::template::Template;

/// What stands in the place of a default.
pub(crate) const REQUIRED: &str = "must be there";

/// The delimiter between a context and its continuation.
pub(crate) const DELIMITER: Key = Key {
    name: "delimiter",
    without: "one space",
    about: "text between the context and the continuation",
};

/// What a kind is.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// One sentence for the reference of task files.
    pub(crate) about: &'static str,
    /// Beside the common ones.
    pub(crate) keys: &'static [Key],
    /// The first one is what the kind is known for.
    pub(crate) measures: &'static [Measure],
    /// From the keys to what makes items of rows.
    pub(crate) read: fn(&TaskSettings) -> Result<Form, TaskError>,
    /// One item, with one answer for each of its texts.
    pub(crate) judge: fn(&Item, &[SequenceScore]) -> Judged,
}

/// Makes an item of a row.
pub(crate) type Form = Box<dyn Fn(&Row) -> Result<Item, TaskError>>;

/// A key of a task file.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// What holds where the key is not given, or [`REQUIRED`].
    pub(crate) without: &'static str,
    pub(crate) about: &'static str,
}

/// An item, ready to be scored.
#[derive(Debug)]
pub(crate) struct Item {
    /// Line of the file, from 1.
    pub(crate) line: usize,
    /// A text to score for each choice, in order.
    pub(crate) texts: Vec<Text>,
    /// The choices themselves, where their lengths matter.
    pub(crate) choices: Vec<String>,
    /// Index of the right choice, if there is one.
    pub(crate) answer: Option<usize>,
}

/// A context and the continuation whose likelihood is scored.
#[derive(Debug)]
pub(crate) enum Text {
    /// A continuation of a context, which may be empty.
    After { context: String, continuation: String },
    /// A document from its first token.
    Whole(String),
}

/// What a kind says about one item.
pub(crate) struct Judged {
    pub(crate) prediction: Option<usize>,
    pub(crate) correct: Option<bool>,
    /// A score for each measure of the kind, in order.
    pub(crate) scores: Vec<Score>,
}

/// The first place of the highest value, as numpy's argmax gives it.
pub(crate) fn first_highest(values: impl IntoIterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (at, value) in values.into_iter().enumerate() {
        if value > best.1 {
            best = (at, value);
        }
    }
    best.0
}

/// A continuation of a context, refused where one of them says nothing that could be scored.
pub(crate) fn after(row: &Row, context: String, continuation: String) -> Result<Text, TaskError> {
    if continuation.chars().all(split::is_space) {
        return Err(row.wrong("continuation", "a text", format!("{continuation:?}")));
    }
    if !context.is_empty() && context.chars().all(split::is_space) {
        let found = format!("only space: {context:?}");
        return Err(row.wrong("context", "a text, or nothing at all", found));
    }
    Ok(Text::After { context, continuation })
}

/// The delimiter of a task.
pub(crate) fn delimiter(settings: &TaskSettings) -> Result<String, TaskError> {
    Ok(settings.optional_text(DELIMITER.name)?.unwrap_or_else(|| " ".to_owned()))
}

/// The answer of a row by the key `answer`, which is one field.
pub(crate) fn label(
    template: &Template,
    row: &Row,
    choices: &[String],
) -> Result<usize, TaskError> {
    let (field, origin) = template.only_field().expect("`TaskSettings::field` admits nothing else");
    row.label(field, origin, choices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_first() {
        assert_eq!(first_highest([-2.0, -1.0, -1.0]), 1);
        assert_eq!(first_highest([-1.0, -1.0]), 0);
        assert_eq!(first_highest([0.0, -0.0]), 0);
        assert_eq!(first_highest([-3.0]), 0);
    }
}
