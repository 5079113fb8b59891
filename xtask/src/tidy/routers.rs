//! The list of depth routers is complete: each has its file and its section in docs/routers.md.

use std::collections::BTreeSet;

use crate::source::Source;
use crate::tree::Tree;

const LIST: &str = "crates/model/src/routers/mod.rs";
const PAGE: &str = "docs/routers.md";

/// `RouterConfig::all()` names every variant; each has a file of its name and a section of its
/// name.
pub(super) fn documented(tree: &Tree) -> Vec<String> {
    let source = Source::new(LIST, tree.text(LIST));
    let (variants, listed) = (variants(&source), listed(&source));
    let mut found = Vec::new();
    if variants.is_empty() {
        found.push(format!("{LIST}: no `enum RouterConfig` found; teach this rule where it is"));
    }
    for name in variants.symmetric_difference(&listed) {
        found.push(format!("{LIST}: RouterConfig::all() and the variants differ in {name}"));
    }
    for name in variants.iter().map(|name| snake_case(name)) {
        let file = format!("crates/model/src/routers/{name}.rs");
        if !tree.files.contains_key(&file) {
            found.push(format!("{LIST}: router {name} has no file {file}"));
        }
        let heading = format!("## `{name}`");
        if !tree.text(PAGE).lines().any(|line| line == heading) {
            found.push(format!("{PAGE}: no section `{heading}`"));
        }
    }
    found
}

/// The variants of `enum RouterConfig`: names at the start of a line of its body.
fn variants(source: &Source) -> BTreeSet<String> {
    let Some((_, body)) = source.code.split_once("enum RouterConfig") else {
        return BTreeSet::new();
    };
    let lines = body.lines().skip(1).take_while(|line| !line.starts_with('}')).map(str::trim);
    lines.filter(|line| line.starts_with(char::is_uppercase)).map(first_name).collect()
}

/// What the body of `all` names.
fn listed(source: &Source) -> BTreeSet<String> {
    let functions = source.functions();
    let Some(all) = functions.iter().find(|f| f.name == "all") else { return BTreeSet::new() };
    source.code[all.range.clone()].split("RouterConfig::").skip(1).map(first_name).collect()
}

fn first_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric()).collect()
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "pub enum RouterConfig {\n    /// Everyone.\n    Fixed,\n    ByDice(dice::Config),\n}\n\
        impl RouterConfig {\n    pub fn all() -> Vec<Self> {\n        vec![RouterConfig::Fixed, RouterConfig::ByDice(Default::default())]\n    }\n}\n";

    fn found(code: &str, page: &str) -> Vec<String> {
        let file = "crates/model/src/routers/by_dice.rs";
        documented(&Tree::of(&[
            (LIST, code),
            ("crates/model/src/routers/fixed.rs", ""),
            (file, ""),
            (PAGE, page),
        ]))
    }

    #[test]
    fn a_complete_list_passes() {
        let page = "## `fixed`\n## `by_dice`\n";
        assert!(found(CODE, page).is_empty(), "{:?}", found(CODE, page));
    }

    #[test]
    fn gaps_are_found() {
        assert_eq!(found(CODE, "## `fixed`\n").len(), 1);
        let unlisted = CODE.replace("vec![RouterConfig::Fixed, ", "vec![");
        assert!(found(&unlisted, "## `fixed`\n## `by_dice`\n")[0].contains("differ in Fixed"));
        let unwritten = CODE.replace("ByDice", "ByCoin");
        assert_eq!(found(&unwritten, "## `fixed`\n## `by_coin`\n").len(), 1);
        assert_eq!(found("", "").len(), 1);
    }
}
