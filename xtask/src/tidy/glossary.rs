//! GLOSSARY.md is true: every term has a home, and its home uses the term.

use super::markdown::{code_words, table};
use crate::tree::Tree;

const PAGE: &str = "GLOSSARY.md";

/// Every row of the table has a term, a meaning and at least one path; each path is a file, and the
/// first one, the term's home, contains the term.
pub(super) fn glossary(tree: &Tree) -> Vec<String> {
    let rows = table(tree.text(PAGE));
    if rows.is_empty() {
        return vec![format!("{PAGE}: expected a table of term, meaning and home, found none")];
    }
    rows.iter().flat_map(|cells| row(tree, cells)).collect()
}

fn row(tree: &Tree, cells: &[&str]) -> Vec<String> {
    let [term, meaning, homes] = cells else {
        let found = cells.join(" | ");
        return vec![format!("{PAGE}: expected term, meaning and home in a row, found `{found}`")];
    };
    let mut found = Vec::new();
    if meaning.is_empty() {
        found.push(format!("{PAGE}: {term} has no meaning"));
    }
    let paths = code_words(homes);
    for path in paths.iter().filter(|path| !tree.files.contains_key(**path)) {
        found.push(format!("{PAGE}: {term} is said to live in {path}, which does not exist"));
    }
    match paths.first() {
        None => found.push(format!("{PAGE}: {term} has no home")),
        Some(home) if tree.files.contains_key(*home) && !names(tree.text(home), term) => {
            found.push(format!("{PAGE}: {home} does not use the term {term}; name its true home"));
        }
        Some(_) => {}
    }
    found
}

/// Whether `text` contains `term` as words or as a name: `KV cache` is also `KvCache`, `kv_cache`
/// and `kv-cache`.
fn names(text: &str, term: &str) -> bool {
    let (text, term) = (letters(text), letters(term));
    !term.is_empty() && text.contains(&term)
}

/// Letters and digits in lower case, nothing between them.
fn letters(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(row: &str) -> Vec<String> {
        let page = format!("# Glossary\n| term | meaning | home |\n|---|---|---|\n{row}\n");
        let code = "pub trait KvCache {}\n// the final norm\n";
        glossary(&Tree::of(&[(PAGE, &page), ("crates/a/src/kv.rs", code)]))
    }

    #[test]
    fn a_term_in_its_home_passes() {
        assert!(found("| KV cache | Keys. | `crates/a/src/kv.rs` |").is_empty());
        assert!(found("| final norm | Scales. | `crates/a/src/kv.rs` |").is_empty());
    }

    #[test]
    fn lies_are_found() {
        assert!(found("| router | x | `crates/a/src/kv.rs` |")[0].contains("does not use"));
        assert!(found("| KV cache | x | `crates/b.rs` |")[0].contains("does not exist"));
        assert!(found("| KV cache | x | |")[0].contains("no home"));
        assert!(found("| KV cache | | `crates/a/src/kv.rs` |")[0].contains("no meaning"));
        assert!(found("| KV cache | x |")[0].contains("expected term"));
        assert_eq!(glossary(&Tree::default()).len(), 1);
    }
}
