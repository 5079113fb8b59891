//! How plain the code of a room is, counted: lines that are too long, doc comments that say too
//! little, closures with names. A ratchet: a room may become plainer than the table says, not less.

use std::collections::BTreeMap;

use crate::source::Source;
use crate::tree::{Tree, room_of};

/// Characters of a line.
const COLUMNS: usize = 100;
/// Words of a doc comment of one line that say too little.
const THIN: usize = 3;

/// What is counted in one room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Lines of more than [`COLUMNS`] characters, tests too.
    long: usize,
    /// Doc comments of at most [`THIN`] words, outside of tests.
    thin: usize,
    /// Named closures outside of tests.
    closures: usize,
    /// Lines of code outside of tests.
    lines: usize,
}

impl Counts {
    /// Named closures in 1000 lines, rounded up.
    fn closure_rate(&self) -> usize {
        (self.closures * 1000).div_ceil(self.lines.max(1))
    }
}

/// What a room may have at most: long lines, thin docs, named closures in 1000 lines.
type Limit = (&'static str, usize, usize, usize);

/// Rooms that are not listed may have [`OTHERS`].
const LIMITS: &[Limit] = &[
    ("checkpoint", 7, 24, 8),
    ("convert", 1, 1, 3),
    ("data", 4, 0, 2),
    ("formats", 13, 35, 11),
    ("kernels", 1, 0, 3),
    ("scheduler", 0, 0, 0),
    ("server", 39, 0, 1),
    ("tasks", 0, 0, 0),
];
const OTHERS: Limit = ("", 0, 0, 3);

/// No room is less plain than [`LIMITS`] says.
pub(super) fn ratchet(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (room, counts) in count(tree) {
        let limit = LIMITS.iter().find(|limit| limit.0 == room).unwrap_or(&OTHERS);
        found.extend(judge(&room, "lines over 100 characters", counts.long, limit.1));
        found.extend(judge(&room, "doc comments of three words or less", counts.thin, limit.2));
        let what = "named closures in 1000 lines";
        found.extend(judge(&room, what, counts.closure_rate(), limit.3));
    }
    found
}

fn judge(room: &str, what: &str, found: usize, limit: usize) -> Option<String> {
    (found > limit).then(|| format!("{room}: {found} {what}, at most {limit}: write plainer"))
}

fn count(tree: &Tree) -> BTreeMap<String, Counts> {
    let mut rooms: BTreeMap<String, Counts> = BTreeMap::new();
    for source in tree.sources() {
        let Some(room) = room_of(&source.path) else { continue };
        add(rooms.entry(room.to_owned()).or_default(), &source);
    }
    rooms
}

fn add(counts: &mut Counts, source: &Source) {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut at = 0;
    for (i, (text, code)) in lines.iter().zip(source.code.lines()).enumerate() {
        counts.long += usize::from(text.chars().count() > COLUMNS);
        if !source.is_test(at) {
            counts.lines += usize::from(!code.trim().is_empty());
            counts.closures += usize::from(names_a_closure(code));
            let above = i.checked_sub(1).map_or("", |above| lines[above]);
            let below = lines.get(i + 1).copied().unwrap_or("");
            counts.thin += usize::from(is_thin(above, text, below));
        }
        at += text.len() + 1;
    }
}

/// Whether the line is `let name = |...|`, perhaps with `mut`, a type or `move`.
fn names_a_closure(code: &str) -> bool {
    let Some((name, value)) =
        code.trim_start().strip_prefix("let ").and_then(|l| l.split_once('='))
    else {
        return false;
    };
    let value = value.trim_start();
    let value = value.strip_prefix("move").map_or(value, str::trim_start);
    value.starts_with('|') && !name.contains('(')
}

/// Whether the line is a doc comment alone between its neighbours and has at most [`THIN`] words.
fn is_thin(above: &str, line: &str, below: &str) -> bool {
    let alone = is_doc(line) && !is_doc(above) && !is_doc(below);
    let words = line.trim_start().trim_start_matches('/');
    alone && !words.trim_start().starts_with('#') && words.split_whitespace().count() <= THIN
}

fn is_doc(line: &str) -> bool {
    line.trim_start().starts_with("///")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(text: &str) -> Counts {
        count(&Tree::of(&[("crates/a/src/x.rs", text)]))["a"]
    }

    #[test]
    fn each_kind_is_counted() {
        let long = format!("// {}\n", "x".repeat(COLUMNS));
        let text = format!(
            "/// Whose.\nstruct A;\n/// Says what it is for.\nfn f() {{\n    let g = |x| x;\n    \
             let h: Fn = move |x| x;\n    let y = a || b;\n}}\n{long}"
        );
        assert_eq!(counts(&text), Counts { long: 1, thin: 1, closures: 2, lines: 6 });
        assert_eq!(counts(&text).closure_rate(), 334);
    }

    #[test]
    fn docs_of_several_lines_and_tests_are_free() {
        let text = "/// One.\n///\n/// Two.\nstruct A;\n#[cfg(test)]\nmod tests {\n    /// B.\n    \
                    fn b() { }\n    let c = || 1;\n}\n";
        assert_eq!(counts(text), Counts { lines: 1, ..Counts::default() });
    }

    #[test]
    fn more_than_the_limit_is_found() {
        assert_eq!(judge("a", "lines", 3, 3), None);
        assert!(judge("a", "lines", 4, 3).is_some_and(|line| line.contains("4 lines, at most 3")));
        let tree = Tree::of(&[("crates/new/src/x.rs", "/// Whose.\nstruct A;\n")]);
        assert_eq!(ratchet(&tree).len(), 1, "{:?}", ratchet(&tree));
    }
}
