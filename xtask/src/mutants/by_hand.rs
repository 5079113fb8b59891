//! Changes of a list in place of a sample.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::find::{Kind, Mutant};
use super::plant::{apart, plant};

/// The changes that the file at `path` lists for a room, by number from 1. Each line is an object
/// with `room`, `file` (below the room's `src`), `old` and `new`: whole expressions, or whole
/// statements with their semicolon, which declare nothing. `old` stands once in the file, or in the
/// text `within`, which does.
///
/// # Errors
/// A line that is no such object, or a change that the code does not have room for.
pub(super) fn read(root: &Path, room: &str, path: &Path) -> Result<BTreeMap<usize, Mutant>> {
    let list = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut found: Vec<Mutant> = Vec::new();
    for (number, line) in list.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("{}, line {}", path.display(), number + 1);
        let change: Value = serde_json::from_str(line).with_context(|| place.clone())?;
        let text = |key: &str| {
            let text = change[key].as_str().map(str::to_owned);
            text.with_context(|| format!("{place}: no `{key}`"))
        };
        if text("room")? != room {
            continue;
        }
        let file = format!("crates/{room}/src/{}", text("file")?);
        let code = fs::read_to_string(root.join(&file)).with_context(|| file.clone())?;
        let within = change["within"].as_str();
        let change = planned(file, &code, within, text("old")?, text("new")?);
        let change = change.with_context(|| place.clone())?;
        if let Some(other) = found.iter().find(|other| !apart(other, &change)) {
            bail!(
                "{} and {} overlap: ask for them one after the other",
                other.name(),
                change.name()
            );
        }
        found.push(change);
    }
    if found.is_empty() {
        bail!("{} lists no change of {room}", path.display());
    }
    Ok((1..).zip(found).collect())
}

/// The change of `old` into `new` where `old` stands in `code`.
fn planned(
    file: String,
    code: &str,
    within: Option<&str>,
    old: String,
    new: String,
) -> Result<Mutant> {
    let at = match within {
        None => only(&file, code, &old)?,
        Some(within) => only(&file, code, within)? + only(&file, within, &old)?,
    };
    let before = &code[..at];
    let line = before.matches('\n').count() + 1;
    let column = at - before.rfind('\n').map_or(0, |end| end + 1) + 1;
    let kind =
        if old.trim_end().ends_with(';') { Kind::Statements(new) } else { Kind::Expression(new) };
    let mutant = Mutant { file, line, column, range: at..at + old.len(), old, kind };
    check(code, &mutant)?;
    Ok(mutant)
}

/// Refuses a change with which the file would be no Rust, or without what a statement declares.
fn check(code: &str, mutant: &Mutant) -> Result<()> {
    if matches!(mutant.kind, Kind::Statements(_)) && mutant.old.trim_start().starts_with("let ") {
        bail!("`{}` declares a name: list the expression in it", mutant.old);
    }
    let planted = plant(code, &[(1, mutant)]).text;
    let file = &mutant.file;
    syn::parse_file(&planted)
        .with_context(|| format!("`{}` in {file}: no whole expression or statement", mutant.old))?;
    Ok(())
}

/// Where `part` stands in `text`, which is (of) the file.
fn only(file: &str, text: &str, part: &str) -> Result<usize> {
    let places: Vec<usize> = text.match_indices(part).map(|(at, _)| at).collect();
    match places.as_slice() {
        &[at] => Ok(at),
        places => bail!("`{part}` stands {} times in {file}, expected once", places.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_stands_where_its_text_stands() {
        let code = "fn f(a: u32) -> u32 {\n    a + 2\n}\n";
        let of = |within, old: &str| planned("x.rs".into(), code, within, old.into(), "a".into());
        let found = of(None, "a + 2").expect("stands once");
        assert_eq!((found.line, found.column, &code[found.range.clone()]), (2, 5, "a + 2"));
        assert_eq!(found.name(), "x.rs:2:5: a + 2 => a");
        let found = of(Some("a + 2"), "2").expect("stands once");
        assert_eq!((found.line, found.column, &code[found.range.clone()]), (2, 9, "2"));
        for old in ["u32", "a + 3"] {
            let error = of(None, old).expect_err(old).to_string();
            assert!(error.contains(old) && error.contains("expected once"), "{error}");
        }
    }

    /// A statement has its semicolon in the list, and the file that holds both forms is Rust.
    #[test]
    fn statements_are_planted_as_statements() {
        let code = "fn f(v: &mut Vec<u8>) -> usize {\n    v.clear();\n    v.push(1);\n    \
                    let n = v.len();\n    n\n}\n";
        let of = |old: &str, new: &str| planned("x.rs".into(), code, None, old.into(), new.into());
        for (old, new) in
            [("v.clear();", "v.pop();"), ("    v.push(1);", "    "), ("v.len()", "v.len() + 1")]
        {
            let found = of(old, new).expect("stands once");
            let planted = plant(code, &[(4, &found)]).text;
            syn::parse_file(&planted).expect("Rust");
            assert!(planted.contains("wakes(4)") && planted.contains(old.trim()), "{planted}");
        }
        for (old, reason) in [("let n = v.len();", "declares a name"), ("v.push(", "no whole")] {
            let error = format!("{:#}", of(old, "v.pop();").expect_err(old));
            assert!(error.contains(old) && error.contains(reason), "{error}");
        }
    }
}
