//! The lists of members are complete: each member has its file, and its place in the documents
//! under its name in recipes.

use crate::tree::Tree;

/// A list that `members!` makes.
struct List {
    code: &'static str,
    /// The name of its enum.
    name: &'static str,
    /// Where the files of members are.
    folder: &'static str,
    page: &'static str,
    /// How a line of the page begins that is about a member, with `NAME` for its name.
    line: &'static str,
}

const LISTS: [List; 4] = [
    List {
        code: "crates/model/src/routers/mod.rs",
        name: "RouterConfig",
        folder: "crates/model/src/routers",
        page: "docs/routers.md",
        line: "## `NAME`",
    },
    List {
        code: "crates/model/src/expert_routers/mod.rs",
        name: "ExpertRouterConfig",
        folder: "crates/model/src/expert_routers",
        page: "docs/experts.md",
        line: "### `NAME`",
    },
    List {
        code: "crates/model/src/adapters/mod.rs",
        name: "Relaxation",
        folder: "crates/model/src/adapters",
        page: "docs/conversion.md",
        line: "| `NAME` |",
    },
    List {
        code: "crates/shrink/src/passes/mod.rs",
        name: "PassConfig",
        folder: "crates/shrink/src/passes",
        page: "docs/shrinking.md",
        line: "### `NAME`",
    },
];

/// Every line of the lists has a file and a place in its page.
pub(super) fn documented(tree: &Tree) -> Vec<String> {
    LISTS.iter().flat_map(|list| gaps(list, tree)).collect()
}

fn gaps(list: &List, tree: &Tree) -> Vec<String> {
    let List { code, name, folder, page, line } = list;
    let members = members(tree.text(code), name);
    let mut found = Vec::new();
    if members.is_empty() {
        found.push(format!("{code}: no `enum {name}` found; teach this rule where it is"));
    }
    for member in members {
        let file = format!("{folder}/{member}.rs");
        if !tree.files.contains_key(&file) {
            found.push(format!("{code}: {member} has no file {file}"));
        }
        let start = line.replace("NAME", &member);
        if !tree.text(page).lines().any(|line| line.starts_with(&start)) {
            found.push(format!("{page}: no line that begins with {start}"));
        }
    }
    found
}

/// The names in recipes of the members of a list: `Variant(settings) = "name",`.
fn members(code: &str, list: &str) -> Vec<String> {
    let Some((_, body)) = code.split_once(&format!("enum {list}:")) else { return Vec::new() };
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
        let list = &LISTS[0];
        let tree = Tree::of(&[
            (list.code, code),
            ("crates/model/src/routers/fixed.rs", ""),
            ("crates/model/src/routers/by_dice.rs", ""),
            (list.page, page),
        ]);
        gaps(list, &tree)
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
