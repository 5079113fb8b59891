//! Limits that keep files readable and the repository small.

use crate::source::Source;
use crate::tree::Tree;

/// Lines of a source file, its tests included.
const FILE_LINES: usize = 600;
/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES: usize = 80;
/// The same in tests, where a table of cases may be long.
const TEST_LINES: usize = 140;
/// Bytes of any file in git.
const FILE_BYTES: u64 = 2_000_000;

/// Files and functions above their limits, with the reason.
const LONG: [(&str, &str); 2] = [
    (
        "crates/lathe/src/verify.rs",
        "the names and settings of another program in one place, so that no other file learns them",
    ),
    ("crates/lathe/src/evaluate.rs::run", "one report with many optional parts"),
];

fn is_exception(place: &str) -> bool {
    LONG.iter().any(|(path, _)| *path == place)
}

/// Exceptions that nothing needs any more.
fn idle_exceptions(tree: &Tree) -> Vec<String> {
    let idle = LONG.iter().filter(|(place, _)| {
        let file = place.split("::").next().unwrap_or(place);
        tree.files.contains_key(file) && !is_long(tree, place)
    });
    idle.map(|(place, reason)| format!("{place} fits the limit: remove its exception ({reason})"))
        .collect()
}

/// Whether the file, or the function `file::name`, is above its limit.
fn is_long(tree: &Tree, place: &str) -> bool {
    match place.split_once("::") {
        None => tree.text(place).lines().count() > FILE_LINES,
        Some((file, name)) => {
            let functions = Source::new(file, tree.text(file)).functions();
            functions.iter().any(|f| f.name == name && f.lines > FUNCTION_LINES)
        }
    }
}

/// Files below `src/` stay within [`FILE_LINES`].
pub(super) fn lengths(tree: &Tree) -> Vec<String> {
    let sources =
        tree.ending(".rs").filter(|(path, _)| path.contains("src/") && !is_exception(path));
    let long = sources
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES);
    let long = long.map(|(path, lines)| {
        format!("{path}: {lines} lines, at most {FILE_LINES}; split it by duty")
    });
    long.chain(idle_exceptions(tree)).collect()
}

/// Functions stay within [`FUNCTION_LINES`], those of tests within [`TEST_LINES`].
pub(super) fn functions(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for source in tree.sources() {
        for function in source.functions() {
            let tested = source.is_test(function.range.start);
            let limit = if tested { TEST_LINES } else { FUNCTION_LINES };
            let (path, name) = (&source.path, &function.name);
            let lines = function.lines;
            if lines > limit && !is_exception(&format!("{path}::{name}")) {
                let line = source.line(function.range.start);
                found.push(format!("{path}:{line}: {name} has {lines} lines, at most {limit}"));
            }
        }
    }
    found
}

/// Text that must show other characters spells them as escapes.
pub(super) fn ascii(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.ending(".rs") {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.is_ascii());
        found.extend(lines.map(|(i, _)| format!("{path}:{}: not ASCII; write \\u{{...}}", i + 1)));
    }
    found
}

/// No file is larger than [`FILE_BYTES`].
pub(super) fn sizes(tree: &Tree) -> Vec<String> {
    let large = tree.files.iter().filter(|(_, file)| file.bytes > FILE_BYTES);
    large
        .map(|(path, file)| format!("{path}: {} bytes, at most {FILE_BYTES}", file.bytes))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_are_found_below_src_only() {
        let text = "\n".repeat(FILE_LINES + 1);
        let tree = Tree::of(&[
            ("crates/a/src/x.rs", &text),
            ("crates/a/tests/x.rs", &text),
            ("xtask/src/ok.rs", "\n"),
        ]);
        let found = lengths(&tree);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("crates/a/src/x.rs: 601"), "{found:?}");
    }

    #[test]
    fn exceptions_end_with_their_need() {
        let found = |lines: usize| lengths(&Tree::of(&[(LONG[0].0, &"\n".repeat(lines))]));
        assert!(found(FILE_LINES + 1).is_empty());
        assert!(found(FILE_LINES)[0].contains("remove its exception"));
    }

    #[test]
    fn long_functions_are_found() {
        let function = |lines: usize| format!("fn f() {{\n{}}}\n", "\n".repeat(lines - 2));
        let (just, over) = (function(FUNCTION_LINES), function(FUNCTION_LINES + 1));
        let table = function(TEST_LINES + 1);
        let tree = Tree::of(&[
            ("crates/a/src/x.rs", &just),
            ("crates/a/src/y.rs", &over),
            ("crates/a/tests/y.rs", &over),
            ("crates/a/tests/z.rs", &table),
        ]);
        let found = functions(&tree);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], "crates/a/src/y.rs:1: f has 81 lines, at most 80");
        assert_eq!(found[1], "crates/a/tests/z.rs:1: f has 141 lines, at most 140");
    }

    #[test]
    fn other_characters_are_found_by_line() {
        let tree =
            Tree::of(&[("crates/a/src/x.rs", "\n// caf\u{e9}\n"), ("README.md", "caf\u{e9}")]);
        assert_eq!(ascii(&tree), ["crates/a/src/x.rs:2: not ASCII; write \\u{...}"]);
    }

    #[test]
    fn large_files_are_found() {
        let mut tree = Tree::of(&[("a.bin", "")]);
        assert!(sizes(&tree).is_empty());
        tree.files
            .insert("b.bin".to_owned(), crate::tree::File { bytes: FILE_BYTES + 1, text: None });
        assert_eq!(sizes(&tree).len(), 1);
    }
}
