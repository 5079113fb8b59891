//! The list of depth routers is complete: each has its file and its section in docs/routers.md.

use crate::tree::Tree;

const LIST: &str = "crates/model/src/routers/mod.rs";
const PAGE: &str = "docs/routers.md";

/// Every line of the list has a file and a section under its name in recipes.
pub(super) fn documented(tree: &Tree) -> Vec<String> {
    let names = names(tree.text(LIST));
    let mut found = Vec::new();
    if names.is_empty() {
        found.push(format!("{LIST}: no `enum RouterConfig` found; teach this rule where it is"));
    }
    for name in names {
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

/// The names in recipes of the members of `enum RouterConfig`: `Variant(settings) = "name",`.
fn names(list: &str) -> Vec<String> {
    let Some((_, body)) = list.split_once("enum RouterConfig") else { return Vec::new() };
    let lines = body.lines().skip(1).take_while(|line| line.trim() != "}");
    let member = lines.filter(|line| line.trim().starts_with(char::is_uppercase));
    member.filter_map(|line| Some(line.split('"').nth(1)?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "members! {\n    pub enum RouterConfig: RouterSettings {\n\
        \x20       /// Everyone.\n        \
        Fixed(fixed::Config) = \"fixed\",\n        ByDice(dice::Config) = \"by_dice\",\n    }\n}\n";

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
        let unwritten = CODE.replace("by_dice", "by_coin");
        assert_eq!(found(&unwritten, "## `fixed`\n## `by_coin`\n").len(), 1);
        assert_eq!(found("", "").len(), 1);
    }
}
