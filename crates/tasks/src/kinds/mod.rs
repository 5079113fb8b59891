//! The kinds of tasks. A new kind is one file here and one line in `KINDS`; being in that list
//! brings it into the reference, the common tests and the search for a misspelt name.

mod last_word;
mod multiple_choice;
mod pairs;
mod rolling;
mod varying_context;

use std::fmt::Write;

use crate::error::Result;
use crate::items::Row;
use crate::report::{Score, Shape};
use crate::settings::Settings;
use crate::split;
use crate::task::Answer;

/// Every kind of task; a new one is added here.
const KINDS: [&Kind; 5] = [
    &multiple_choice::KIND,
    &pairs::KIND,
    &rolling::KIND,
    &last_word::KIND,
    &varying_context::KIND,
];

/// What stands in the place of a default.
pub(crate) const REQUIRED: &str = "must be there";

/// Keys that every kind has.
pub(crate) const COMMON: [Key; 4] = [
    Key { name: "kind", without: REQUIRED, about: "one of the kinds below" },
    Key {
        name: "name",
        without: "the file's name without .toml",
        about: "what reports call the task",
    },
    Key { name: "about", without: "none", about: "where the items come from, under which licence" },
    Key {
        name: "items",
        without: "the file's name with .jsonl",
        about: "file of items beside the task",
    },
];

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
    pub(crate) read: fn(&Settings) -> Result<Form>,
    /// One item, with one answer for each of its texts.
    pub(crate) judge: fn(&Item, &[Answer]) -> Judged,
}

/// Makes an item of a row.
pub(crate) type Form = Box<dyn Fn(&Row) -> Result<Item>>;

/// A key of a task file.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// What holds where the key is not given, or [`REQUIRED`].
    pub(crate) without: &'static str,
    pub(crate) about: &'static str,
}

/// A metric of a kind.
#[derive(Debug)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
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

pub(crate) fn find(name: &str) -> Option<&'static Kind> {
    KINDS.into_iter().find(|kind| kind.name == name)
}

/// Names of the kinds of tasks.
pub fn kind_names() -> Vec<&'static str> {
    KINDS.iter().map(|kind| kind.name).collect()
}

/// Describes task files in Markdown: every kind with its keys and metrics.
pub fn reference() -> String {
    let mut out = String::from(include_str!("reference.md"));
    write_keys(&mut out, "key of every kind", &COMMON);
    for kind in KINDS {
        let _ = write!(out, "\n## {}\n\n{}\n\n", kind.name, kind.about);
        write_keys(&mut out, "key", kind.keys);
        out.push_str("\n| metric | |\n| --- | --- |\n");
        for measure in kind.measures {
            let _ = writeln!(out, "| {} | {} |", measure.name, measure.about);
        }
    }
    out
}

fn write_keys(out: &mut String, title: &str, keys: &[Key]) {
    let _ = write!(out, "| {title} | without it | |\n| --- | --- | --- |\n");
    for key in keys {
        let _ = writeln!(out, "| `{}` | {} | {} |", key.name, key.without, key.about);
    }
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
pub(crate) fn after(row: &Row, context: String, continuation: String) -> Result<Text> {
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
pub(crate) fn delimiter(settings: &Settings) -> Result<String> {
    Ok(settings.optional_text(DELIMITER.name)?.unwrap_or_else(|| " ".to_owned()))
}

/// The answer of a row by the key `answer`, which is one field.
pub(crate) fn label(
    template: &crate::template::Template,
    row: &Row,
    choices: &[String],
) -> Result<usize> {
    let (field, origin) = template.only_field().expect("`Settings::field` admits nothing else");
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

    #[test]
    fn names_are_single_and_every_kind_measures() {
        let names = kind_names();
        for (at, kind) in KINDS.iter().enumerate() {
            assert!(!names[..at].contains(&kind.name), "{}", kind.name);
            assert!(
                !kind.measures.is_empty() && !kind.keys.is_empty() && kind.about.ends_with('.'),
                "{}",
                kind.name
            );
            let mut keys: Vec<&str> = COMMON.iter().chain(kind.keys).map(|key| key.name).collect();
            keys.sort_unstable();
            assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "{}", kind.name);
        }
    }
}
