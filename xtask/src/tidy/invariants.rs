//! The tests that ARCHITECTURE.md calls its witnesses are there.

use std::collections::BTreeSet;

use super::markdown::{code_words, section, table};
use crate::tree::Tree;

/// Every lower-case name in the second column below `## Invariants` is a function that exists for
/// tests.
pub(super) fn witnesses(tree: &Tree) -> Vec<String> {
    let rows = section(tree.text("ARCHITECTURE.md"), "Invariants").map(table).unwrap_or_default();
    let mut tests = BTreeSet::new();
    for source in tree.sources() {
        tests.extend(
            source
                .functions()
                .into_iter()
                .filter(|f| source.is_test(f.range.start))
                .map(|f| f.name),
        );
    }
    let named = rows.iter().filter_map(|cells| cells.get(1)).flat_map(|cell| code_words(cell));
    let missing = named.filter(|name| is_function_name(name) && !tests.contains(*name));
    missing
        .map(|name| format!("ARCHITECTURE.md: names the test {name}, which does not exist"))
        .collect()
}

fn is_function_name(word: &str) -> bool {
    word.contains('_')
        && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_witnesses_are_found() {
        let page = "## Invariants\n| a | b |\n|---|---|\n\
                    | x | `is_there` and `is_not`, `crates/a/tests`, `T::f` |\n";
        let code = "fn is_not() {}\n#[cfg(test)]\nmod tests {\n    fn is_there() {}\n}\n";
        let found =
            witnesses(&Tree::of(&[("ARCHITECTURE.md", page), ("crates/a/src/lib.rs", code)]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("is_not"));
    }
}
