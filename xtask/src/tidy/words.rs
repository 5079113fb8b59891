//! Shortcuts that belong in tests: they end the program or print past the one place that prints.

use crate::tree::Tree;

/// What may not stand in code, and what to write instead.
const FORBIDDEN: [(&str, &str); 8] = [
    (".unwrap()", "return an error, or `expect` with a proof that it cannot happen"),
    ("print!", "return the text; `lathe` prints through output.rs"),
    ("println!", "return the text; `lathe` prints through output.rs"),
    ("eprint!", "return an error; `lathe` prints through output.rs"),
    ("eprintln!", "return an error; `lathe` prints through output.rs"),
    ("dbg!", "remove it"),
    ("todo!", "write it"),
    ("unimplemented!", "write it, or refuse the input with an error"),
];

/// Code below `src/` that is not for tests holds none of [`FORBIDDEN`].
pub(super) fn forbidden(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for source in tree.sources().iter().filter(|source| source.path.contains("src/")) {
        for (word, instead) in FORBIDDEN {
            let places: Vec<usize> = match word.starts_with('.') {
                true => source.code.match_indices(word).map(|(at, _)| at).collect(),
                false => source.words(word).collect(),
            };
            for at in places.into_iter().filter(|&at| !source.is_test(at)) {
                found.push(format!("{}:{}: {word}: {instead}", source.path, source.line(at)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortcuts_are_found_outside_of_tests_only() {
        let text = "fn f() {\n    x.unwrap();\n    eprintln!(\"println!\"); // dbg!(1)\n}\n\
                    #[cfg(test)]\nmod tests {\n    fn g() { x.unwrap() }\n}\n";
        let tree = Tree::of(&[
            ("crates/a/src/x.rs", text),
            ("crates/a/tests/x.rs", "fn f() { todo!() }"),
            ("crates/a/src/lib.rs", "#[cfg(test)]\nmod testing;\n"),
            ("crates/a/src/testing.rs", "fn f() { x.unwrap() }"),
        ]);
        let found = forbidden(&tree);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("crates/a/src/x.rs:2: .unwrap()")
                && found[1].starts_with("crates/a/src/x.rs:3: eprintln!")
        );
    }

    #[test]
    fn longer_names_are_free() {
        let tree = Tree::of(&[("crates/a/src/x.rs", "fn f() { x.unwrap_or(1); my_todo!(); }")]);
        assert!(forbidden(&tree).is_empty(), "{:?}", forbidden(&tree));
    }
}
