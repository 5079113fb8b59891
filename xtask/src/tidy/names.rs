//! One name, one type: a reader who searches for a public type finds one definition.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Source;
use crate::tree::{Tree, room_of};

/// Names that several rooms define, with the reason.
const SHARED: &[(&str, &str)] =
    &[("Start", "where a conversion starts, and where a product starts from")];

/// No public type has a name that another room's public type has, but for [`SHARED`].
pub(super) fn types(tree: &Tree) -> Vec<String> {
    judge(&defined(tree), SHARED)
}

/// Public types by name, each with the rooms that define it.
fn defined(tree: &Tree) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in tree.sources() {
        let Some(room) = room_of(&source.path) else { continue };
        for name in public_types(&source) {
            found.entry(name).or_default().insert(room.to_owned());
        }
    }
    found
}

/// Names after `pub struct`, `pub enum`, `pub trait` and `pub type` outside of tests; what is
/// public in its own room alone does not count.
fn public_types(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for at in source.words("pub").filter(|&at| !source.is_test(at)) {
        let rest = &source.code[at + "pub".len()..];
        if rest.starts_with('(') {
            continue;
        }
        let mut words = rest.split_whitespace();
        if let (Some("struct" | "enum" | "trait" | "type"), Some(rest)) =
            (words.next(), words.next())
        {
            let name = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_');
            found.push(name.collect());
        }
    }
    found
}

fn judge(defined: &BTreeMap<String, BTreeSet<String>>, shared: &[(&str, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, rooms) in defined.iter().filter(|(_, rooms)| rooms.len() > 1) {
        if !shared.iter().any(|(known, _)| known == name) {
            let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
            let rooms = rooms.join(", ");
            found.push(format!("{name} is a public type of {rooms}: give it a name of its own"));
        }
    }
    for (name, reason) in shared {
        if defined.get(*name).is_none_or(|rooms| rooms.len() < 2) {
            found.push(format!("{name} is defined once: remove its exception ({reason})"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        Tree::of(&[
            ("crates/a/src/x.rs", "pub struct Kind<T>(T);\npub(crate) enum Local {}\n"),
            ("crates/a/src/y.rs", "pub struct Once;\n#[cfg(test)]\npub struct Tested;\n"),
            (
                "crates/b/src/x.rs",
                "pub enum Kind { A }\npub(crate) enum Local {}\npub struct Tested;\n",
            ),
            ("crates/b/tests/x.rs", "pub struct Once;\n"),
        ])
    }

    #[test]
    fn a_name_of_two_rooms_is_found() {
        let found = judge(&defined(&tree()), &[]);
        assert_eq!(found, ["Kind is a public type of a, b: give it a name of its own"]);
    }

    #[test]
    fn exceptions_end_with_their_need() {
        let defined = defined(&tree());
        assert!(judge(&defined, &[("Kind", "why")]).is_empty());
        let found = judge(&defined, &[("Kind", "why"), ("Once", "old")]);
        assert_eq!(found, ["Once is defined once: remove its exception (old)"]);
    }
}
