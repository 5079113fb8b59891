//! The kinds of tasks. A new kind is one file here and one line in `KINDS`; being in that list
//! brings it into the reference, the common tests and the search for a misspelt name.

mod last_word;
mod multiple_choice;
mod pairs;
mod rolling;
mod varying_context;

use std::fmt::Write;

use crate::error::{TaskError, excerpt, hint};
use crate::kind::{Key, Kind, REQUIRED};
use crate::settings::TaskSettings;

/// Every kind of task; a new one is added here.
const KINDS: [&Kind; 5] = [
    &multiple_choice::KIND,
    &pairs::KIND,
    &rolling::KIND,
    &last_word::KIND,
    &varying_context::KIND,
];

/// Keys that every kind has.
const COMMON: [Key; 4] = [
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

/// The kind that a task file names; every key of the file is one of that kind's.
///
/// # Errors
/// A kind or a key that is not known, by its line.
pub(crate) fn of(settings: &TaskSettings) -> Result<&'static Kind, TaskError> {
    let name = settings.text("kind")?;
    let Some(kind) = KINDS.into_iter().find(|kind| kind.name == name) else {
        let names = kind_names();
        let near = hint(&name, names.iter().copied());
        return Err(settings.wrong(
            "kind",
            format!("one of {}", names.join(", ")),
            format!("{}{near}", excerpt(&name)),
        ));
    };
    let known: Vec<&str> = COMMON.iter().chain(kind.keys).map(|key| key.name).collect();
    settings.check_keys(kind.name, &known)?;
    Ok(kind)
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

#[cfg(test)]
mod tests {
    use super::*;

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
