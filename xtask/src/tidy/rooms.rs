//! The walls between rooms: the edges, the map, and the one room that knows the tensor library.

use std::collections::{BTreeMap, BTreeSet};

use super::markdown::{code_words, section, table};
use crate::tree::Tree;

const ARCHITECTURE: &str = "ARCHITECTURE.md";
/// The room that every room uses for the features of registry crates; it holds no code.
const FEATURES: &str = "features";
/// What tests share: `[dev-dependencies]` alone may name these.
const FOR_TESTS: [&str; 2] = ["reference", "testkit"];
/// Names of the tensor library's crates, as code spells them.
const BURN: [&str; 7] = [
    "burn",
    "burn_autodiff",
    "burn_backend",
    "burn_cubecl",
    "burn_dispatch",
    "burn_flex",
    "burn_tensor",
];

/// Allowed edges, from the table below `## Allowed edges`: a room, then the rooms that it uses.
fn allowed(tree: &Tree) -> BTreeMap<String, BTreeSet<String>> {
    let rows = section(tree.text(ARCHITECTURE), "Allowed edges").map(table).unwrap_or_default();
    let mut edges = BTreeMap::new();
    for cells in &rows {
        let words: Vec<Vec<&str>> = cells.iter().map(|cell| code_words(cell)).collect();
        if let [room, uses, ..] = words.as_slice()
            && let Some(room) = room.first()
        {
            let uses = uses.iter().map(|word| (*word).to_owned()).collect();
            edges.insert((*room).to_owned(), uses);
        }
    }
    edges
}

/// The folders below `crates/`.
fn folders(tree: &Tree) -> BTreeSet<String> {
    let below = tree.files.keys().filter_map(|path| path.strip_prefix("crates/"));
    below.filter_map(|path| Some(path.split_once('/')?.0.to_owned())).collect()
}

/// The folders below `crates/`, and the Python package, which stands beside them.
fn with_python(tree: &Tree) -> BTreeSet<String> {
    let mut rooms = folders(tree);
    if tree.files.keys().any(|path| path.starts_with("python/src/")) {
        rooms.insert("python".to_owned());
    }
    rooms
}

/// The table of ARCHITECTURE.md and the manifests give the same edges; tests reach down only.
pub(super) fn edges(tree: &Tree) -> Vec<String> {
    let (allowed, rooms) = (allowed(tree), with_python(tree));
    let mut found = Vec::new();
    for package in tree.packages.iter().filter(|package| rooms.contains(&package.name)) {
        let Some(may) = allowed.get(&package.name) else {
            found.push(format!(
                "{ARCHITECTURE}: the table of allowed edges has no row for `{}`",
                package.name
            ));
            continue;
        };
        let mut uses: BTreeSet<String> = package.uses.intersection(&rooms).cloned().collect();
        uses.remove(FEATURES);
        for room in uses.difference(may) {
            found.push(format!(
                "{}: uses `{room}`, which {ARCHITECTURE} does not allow",
                package.manifest
            ));
        }
        for room in may.difference(&uses) {
            found.push(format!(
                "{ARCHITECTURE}: allows `{}` to use `{room}`, which it does not; remove it",
                package.name
            ));
        }
        let below = below(&allowed, &package.name);
        let in_tests = package
            .uses_in_tests
            .intersection(&rooms)
            .filter(|room| !FOR_TESTS.contains(&room.as_str()));
        for room in in_tests.filter(|room| !below.contains(*room)) {
            found.push(format!(
                "{}: tests use `{room}`, which is not below `{}`",
                package.manifest, package.name
            ));
        }
    }
    for room in allowed.keys().filter(|room| !rooms.contains(*room)) {
        found.push(format!(
            "{ARCHITECTURE}: the table of allowed edges names `{room}`, which is not in crates/"
        ));
    }
    found
}

/// Only tests use the rooms that are for tests, and only those of rooms that know what such a room
/// uses: a room that it uses, or one above these. The tests of others would compile it.
pub(super) fn for_tests(tree: &Tree) -> Vec<String> {
    FOR_TESTS.iter().flat_map(|room| for_tests_alone(tree, room)).collect()
}

fn for_tests_alone(tree: &Tree, kit: &str) -> Vec<String> {
    let allowed = allowed(tree);
    let uses = allowed.get(kit).cloned().unwrap_or_default();
    let mut found = Vec::new();
    for (room, _) in allowed.iter().filter(|(_, uses)| uses.contains(kit)) {
        found.push(format!("{ARCHITECTURE}: allows `{room}` to use `{kit}`; only tests may"));
    }
    for package in &tree.packages {
        let (name, manifest) = (&package.name, &package.manifest);
        if package.uses.contains(kit) {
            found.push(format!("{manifest}: names `{kit}` outside of [dev-dependencies]"));
        }
        let below = below(&allowed, name);
        let knows = uses.is_empty() || uses.contains(name) || !below.is_disjoint(&uses);
        if package.uses_in_tests.contains(kit) && !knows {
            found.push(format!("{manifest}: tests use `{kit}`, which brings them the model"));
        }
    }
    found
}

/// Every room that `room` reaches.
fn below(allowed: &BTreeMap<String, BTreeSet<String>>, room: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![room.to_owned()];
    while let Some(room) = next.pop() {
        for lower in allowed.get(&room).into_iter().flatten() {
            if reached.insert(lower.clone()) {
                next.push(lower.clone());
            }
        }
    }
    reached
}

/// No package but `ops` depends on Burn, and no source file outside of it names Burn.
pub(super) fn tensor_library(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for package in tree.packages.iter().filter(|package| package.name != "ops") {
        for name in
            package.uses.union(&package.uses_in_tests).filter(|name| name.starts_with("burn"))
        {
            found.push(format!("{}: depends on {name}; go through `ops`", package.manifest));
        }
    }
    for source in tree.sources().iter().filter(|source| !source.path.starts_with("crates/ops/")) {
        for word in BURN {
            let lines = source.words(word).map(|at| source.line(at));
            found.extend(
                lines.map(|line| format!("{}:{line}: names {word}; go through `ops`", source.path)),
            );
        }
    }
    found
}

/// The rooms in the map with their duties: lines `  name/  duty` below `crates/`, longer duties go
/// on in the next line.
fn drawn(tree: &Tree) -> BTreeMap<String, String> {
    let map = section(tree.text(ARCHITECTURE), "Map").unwrap_or("");
    let lines = map.lines().skip_while(|line| !line.starts_with("crates/")).skip(1);
    let mut rooms: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    for line in lines.take_while(|line| line.starts_with("  ")) {
        let (head, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        if let Some(name) = head.strip_suffix('/') {
            last = name.to_owned();
            rooms.insert(last.clone(), rest.trim().to_owned());
        } else if let Some(duty) = rooms.get_mut(&last) {
            *duty = format!("{duty} {}", line.trim());
        }
    }
    rooms
}

/// The map names exactly the rooms that exist, each with the description in its manifest.
pub(super) fn map(tree: &Tree) -> Vec<String> {
    let (drawn, rooms) = (drawn(tree), folders(tree));
    let mut found = Vec::new();
    for room in rooms.iter().filter(|room| !drawn.contains_key(*room)) {
        found.push(format!("{ARCHITECTURE}: the map does not show crates/{room}/"));
    }
    for room in drawn.keys().filter(|room| !rooms.contains(*room)) {
        found.push(format!("{ARCHITECTURE}: the map shows crates/{room}/, which does not exist"));
    }
    for package in &tree.packages {
        if let Some(duty) = drawn.get(&package.name).filter(|duty| **duty != package.description) {
            let (room, description) = (&package.name, &package.description);
            found.push(format!(
                "{ARCHITECTURE}: the map says of {room} \"{duty}\", its manifest \"{description}\""
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Package;

    const TEXT: &str = "## Map\n```text\ncrates/\n  ops/    operations.\n\
        \x20 train/  the loop, and\n          what it needs.\nxtask/  checks\n```\n\
        ## Allowed edges\n| room | uses |\n|---|---|\n| `ops` | nothing |\n| `train` | `ops` |\n";

    fn package(name: &str, description: &str, uses: &[&str], uses_in_tests: &[&str]) -> Package {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let (name, description) = (name.to_owned(), description.to_owned());
        let manifest = format!("crates/{name}/Cargo.toml");
        let (uses, uses_in_tests) = (set(uses), set(uses_in_tests));
        Package { name, description, manifest, uses, uses_in_tests, ..Package::default() }
    }

    fn tree(packages: Vec<Package>) -> Tree {
        let mut tree = Tree::of(&[
            (ARCHITECTURE, TEXT),
            ("crates/ops/src/lib.rs", "use burn_tensor::Tensor;\n"),
            ("crates/train/src/lib.rs", "// burn is not code here\nfn f() {}\n"),
        ]);
        tree.packages = packages;
        tree
    }

    #[test]
    fn the_tree_of_the_text_is_clean() {
        let ops = package("ops", "operations.", &["burn-tensor", "serde"], &[]);
        let train = package("train", "the loop, and what it needs.", &["ops", "serde"], &["ops"]);
        let tree = tree(vec![ops, train]);
        assert!(edges(&tree).is_empty() && tensor_library(&tree).is_empty(), "{:?}", edges(&tree));
        assert!(map(&tree).is_empty(), "{:?}", map(&tree));
    }

    #[test]
    fn edges_up_and_edges_unused_are_found() {
        let ops = package("ops", "", &["train"], &["train"]);
        let train = package("train", "", &[], &[]);
        let found = edges(&tree(vec![ops, train]));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].contains("does not allow")
                && found[1].contains("not below")
                && found[2].contains("remove it")
        );
    }

    #[test]
    fn the_testkit_is_for_tests_alone() {
        let rows = "| `kernels` | nothing |\n| `testkit` | `ops` |\n";
        let found = |package: Package, more: &str| {
            let mut tree = tree(vec![package]);
            let text = format!("{TEXT}{rows}{more}");
            for (path, text) in [(ARCHITECTURE, text.as_str()), ("crates/testkit/src/lib.rs", "")] {
                let file = crate::tree::File { bytes: 0, text: Some(text.to_owned()) };
                tree.files.insert(path.to_owned(), file);
            }
            let edges = edges(&tree).into_iter().filter(|line| line.contains("Cargo.toml"));
            edges.chain(for_tests(&tree)).collect::<Vec<_>>()
        };
        for room in ["ops", "train"] {
            let uses: &[&str] = if room == "train" { &["ops"] } else { &[] };
            assert!(found(package(room, "", uses, &["testkit"]), "").is_empty(), "{room}");
        }
        let outside = found(package("train", "", &["ops", "testkit"], &[]), "");
        assert!(outside.iter().any(|line| line.contains("does not allow")), "{outside:?}");
        assert!(outside.iter().any(|line| line.contains("outside of [dev")), "{outside:?}");
        // A row that allows it does not help.
        let listed = found(package("new", "", &["testkit"], &[]), "| `new` | `testkit` |\n");
        assert_eq!(listed.len(), 2, "{listed:?}");
        let check = found(package("xtask", "", &["testkit"], &[]), "");
        assert!(check.len() == 1 && check[0].contains("outside of [dev"), "{check:?}");
        let low = found(package("kernels", "", &[], &["testkit"]), "");
        assert!(low.len() == 1 && low[0].contains("brings them the model"), "{low:?}");
    }

    #[test]
    fn a_room_without_row_or_place_is_found() {
        let mut tree = tree(vec![package("new", "", &[], &[])]);
        tree.files.insert("crates/new/src/lib.rs".to_owned(), Default::default());
        assert!(edges(&tree)[0].contains("no row for `new`"));
        assert!(map(&tree)[0].contains("crates/new/"));
        tree.files.retain(|path, _| !path.starts_with("crates/ops"));
        assert!(map(&tree).iter().any(|line| line.contains("does not exist")));
        assert!(edges(&tree).iter().any(|line| line.contains("not in crates/")));
    }

    #[test]
    fn another_duty_is_found() {
        let found = map(&tree(vec![package("ops", "operations and more.", &[], &[])]));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("operations and more."));
    }

    #[test]
    fn burn_outside_of_ops_is_found() {
        let mut tree = tree(vec![package("train", "", &["burn-flex"], &[])]);
        let text = "fn f() -> burn::Tensor { burn_flex::new() }\n".to_owned();
        tree.files.insert(
            "crates/train/src/x.rs".to_owned(),
            crate::tree::File { bytes: 0, text: Some(text) },
        );
        assert_eq!(tensor_library(&tree).len(), 3, "{:?}", tensor_library(&tree));
    }
}
