//! Rules that the compiler does not know. Each is a function from the tree to its violations, with
//! its own test; to add one, write the function and put it on the list.

mod files;
mod glossary;
mod imports;
mod invariants;
mod links;
mod lists;
mod markdown;
mod names;
mod plain;
mod python;
mod rooms;
mod safety;
mod words;

use std::path::Path;

use anyhow::{Result, bail};

use crate::say;
use crate::tree::Tree;

/// A name and what finds violations, one line each, place first.
type Rule = (&'static str, fn(&Tree) -> Vec<String>);

const RULES: [Rule; 18] = [
    ("rooms depend on each other as ARCHITECTURE.md allows", rooms::edges),
    ("only tests use the rooms for tests", rooms::for_tests),
    ("only ops knows the tensor library", rooms::tensor_library),
    ("the map shows the rooms that exist", rooms::map),
    ("unsafe code is in its place and explained", safety::unsafe_code),
    ("source files are short", files::lengths),
    ("functions are short", files::functions),
    ("Rust files are ASCII", files::ascii),
    ("nothing large is kept", files::sizes),
    ("no shortcuts outside tests", words::forbidden),
    ("links lead somewhere", links::relative),
    ("every member of a list is documented", lists::documented),
    ("the witnesses of invariants exist", invariants::witnesses),
    ("the glossary names terms where they live", glossary::glossary),
    ("a public type has a name of its own", names::types),
    ("few files import each other in a circle", imports::circles),
    ("no room becomes less plain", plain::ratchet),
    ("the Python package is built as the program is", python::built_alike),
];

/// Applies every rule.
///
/// # Errors
/// Any violation; all of them are printed.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    let mut count = 0;
    for (name, rule) in RULES {
        let found = rule(&tree);
        say(&format!("{} {name}", if found.is_empty() { "ok  " } else { "FAIL" }));
        found.iter().for_each(|violation| say(&format!("     {violation}")));
        count += found.len();
    }
    match count {
        0 => Ok(()),
        _ => bail!(
            "tidy found {count} violations; mend them, or change the rule and say why in the commit"
        ),
    }
}
