//! Worked examples before each prompt: the first items of a file, the same ones for every item.

use crate::error::TaskError;
use crate::items::{self, Row};
use crate::kind::Key;
use crate::settings::TaskSettings;

/// The keys that give a kind its shots.
pub(crate) const FILE: Key = Key {
    name: "shots_from",
    without: "no shots",
    about: "file of worked examples beside the task",
};
/// How many of them.
pub(crate) const COUNT: Key = Key {
    name: "shots",
    without: "0",
    about: "how many of its first items come before each prompt",
};
/// What stands between them.
pub(crate) const BETWEEN: Key =
    Key { name: "shots_between", without: "\\n\\n", about: "text after each worked example" };

/// What comes before every context: `render` makes the text of one worked example.
///
/// # Errors
/// A file that is the one of the items themselves, is not there, or has too few items.
pub(crate) fn before(
    settings: &TaskSettings,
    render: impl Fn(&Row) -> Result<String, TaskError>,
) -> Result<String, TaskError> {
    let count = settings.count(COUNT.name)?.unwrap_or(0);
    if count == 0 {
        for key in [FILE.name, BETWEEN.name] {
            if settings.optional_text(key)?.is_some() {
                return Err(settings.wrong(
                    key,
                    "`shots` of at least 1 beside it",
                    "no shots; drop this key or set `shots`",
                ));
            }
        }
        return Ok(String::new());
    }
    let path = settings.beside(FILE.name, None)?;
    if path == settings.items()? {
        return Err(settings.wrong(
            FILE.name,
            "another file than `items`, or items see their own answer",
            "the same file",
        ));
    }
    let rows = items::read(&path, count)?;
    if rows.len() < count {
        let found = format!("{} of them in {}", rows.len(), path.display());
        return Err(settings.wrong(COUNT.name, format!("a file of at least {count} items"), found));
    }
    let between = settings.optional_text(BETWEEN.name)?.unwrap_or_else(|| "\n\n".to_owned());
    let mut text = String::new();
    for row in &rows {
        text.push_str(&render(row)?);
        text.push_str(&between);
    }
    Ok(text)
}
