//! Limits that keep files readable and the repository small.

use crate::tree::Tree;

/// Lines of a source file, its tests included.
const FILE_LINES: usize = 600;
/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES: usize = 80;
/// The same in tests, where a table of cases may be long.
const TEST_LINES: usize = 140;
/// Bytes of any file in git.
const FILE_BYTES: u64 = 2_000_000;

/// Files below `src/` stay within [`FILE_LINES`].
pub(super) fn lengths(tree: &Tree) -> Vec<String> {
    let sources = tree.ending(".rs").filter(|(path, _)| path.contains("src/"));
    let long = sources
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES);
    long.map(|(path, lines)| {
        format!("{path}: {lines} lines, at most {FILE_LINES}; split it by duty")
    })
    .collect()
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
            if lines > limit {
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
