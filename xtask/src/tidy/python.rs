//! The Python package is a workspace of its own, so that builds of the program need no Python. What
//! it says a second time for that reason is compared here: profiles, the editions of the language,
//! and the versions of packages.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::Tree;

const OURS: &str = "python/Cargo.toml";
const LOCK: &str = "python/Cargo.lock";

/// The package is built as the program is: in the same profile, by the same language, from the same
/// versions.
pub(super) fn built_alike(tree: &Tree) -> Vec<String> {
    if tree.text(OURS).is_empty() {
        return Vec::new();
    }
    let mut found = profiles(tree);
    found.extend(language(tree));
    found.extend(versions(tree));
    found.extend(rooms(tree));
    found
}

/// The tables of a manifest, each with its lines of values.
fn tables(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut table = "";
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with('[') && line.ends_with(']') {
            table = line;
            found.entry(table).or_default();
        } else if !line.starts_with('#') {
            found.entry(table).or_default().insert(line);
        }
    }
    found
}

/// Every profile of the one is that of the other, but for packages that the Python package has not.
fn profiles(tree: &Tree) -> Vec<String> {
    let (theirs, ours) = (tables(tree.text("Cargo.toml")), tables(tree.text(OURS)));
    let built = locked(tree.text(LOCK));
    let mut found = Vec::new();
    for (table, values) in theirs.iter().filter(|(table, _)| table.starts_with("[profile.")) {
        let package = table.strip_prefix("[profile.release.package.");
        let package = package.map(|name| name.trim_end_matches(']').trim_matches('"'));
        if package.is_some_and(|name| name != "*" && !built.contains_key(name)) {
            continue;
        }
        match ours.get(table) {
            Some(own) if own == values => {}
            Some(_) => found.push(format!("{OURS}: {table} differs from that of Cargo.toml")),
            None => found.push(format!("{OURS}: {table} of Cargo.toml is missing")),
        }
    }
    for table in ours.keys().filter(|table| table.starts_with("[profile.")) {
        if !theirs.contains_key(table) {
            found.push(format!("{OURS}: {table} is not in Cargo.toml"));
        }
    }
    found
}

/// Version, edition and the oldest compiler.
fn language(tree: &Tree) -> Vec<String> {
    let (theirs, ours) = (tables(tree.text("Cargo.toml")), tables(tree.text(OURS)));
    let (Some(theirs), Some(ours)) = (theirs.get("[workspace.package]"), ours.get("[package]"))
    else {
        return vec![format!("{OURS}: no table [package] found; teach this rule where it is")];
    };
    let missing = theirs.difference(ours);
    missing
        .map(|line| format!("{OURS}: expected `{line}` in [package], as in Cargo.toml"))
        .collect()
}

/// Packages of a lock file, each with its versions.
fn locked(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut name = "";
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("name = ") {
            name = value.trim_matches('"');
        } else if let Some(value) = line.strip_prefix("version = ")
            && !name.is_empty()
        {
            found.entry(name).or_default().insert(value.trim_matches('"'));
            name = "";
        }
    }
    found
}

/// What both are built from has one version.
fn versions(tree: &Tree) -> Vec<String> {
    let (theirs, ours) = (locked(tree.text("Cargo.lock")), locked(tree.text(LOCK)));
    let mut found = Vec::new();
    for (name, versions) in &ours {
        let Some(known) = theirs.get(name) else { continue };
        for version in versions.difference(known) {
            let known: Vec<&str> = known.iter().copied().collect();
            found.push(format!(
                "{LOCK}: {name} {version}, in Cargo.lock {}: `cargo update --manifest-path {OURS} \
                 -p {name} --precise {}`",
                known.join(", "),
                known[0]
            ));
        }
    }
    found
}

/// Packages of a lock file that come from this tree, each with what they use.
fn local(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut found = BTreeMap::new();
    for package in text.split("[[package]]").filter(|package| !package.contains("\nsource = ")) {
        let name = package.lines().find_map(|line| line.strip_prefix("name = "));
        let uses = package.lines().filter_map(|line| line.strip_prefix(" \""));
        let uses = uses.filter_map(|line| line.split([' ', '"']).next()).collect();
        found.extend(name.map(|name| (name.trim_matches('"'), uses)));
    }
    found
}

/// What a room needs is in the lock file of the Python package: `--locked` would refuse it.
fn rooms(tree: &Tree) -> Vec<String> {
    let ours = local(tree.text(LOCK));
    let mut found = Vec::new();
    for package in &tree.packages {
        let Some(known) = ours.get(package.name.as_str()) else { continue };
        for needed in package.needs.iter().filter(|needed| !known.contains(needed.as_str())) {
            found.push(format!(
                "{LOCK}: {} uses {needed}, which it does not say: run `cargo update --workspace \
                 --manifest-path {OURS}`",
                package.name
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Package;

    const THEIRS: &str = "[workspace.package]\nedition = \"2024\"\n\
        [profile.release]\nopt-level = 3\n\
        # A reason.\n[profile.release.package.\"*\"]\nopt-level = 0\n\
        [profile.release.package.rayon]\nopt-level = 3\n\
        [profile.release.package.clap]\nopt-level = 0\n";
    const SAME: &str = "[package]\nname = \"python\"\nedition = \"2024\"\n\
        [profile.release]\nopt-level = 3\n[profile.release.package.\"*\"]\nopt-level = 0\n\
        [profile.release.package.rayon]\nopt-level = 3\n";
    const LOCKED: &str = "version = 4\n[[package]]\nname = \"rayon\"\nversion = \"1.12.0\"\n\
        [[package]]\nname = \"syn\"\nversion = \"2.0.1\"\n";

    fn found(ours: &str, lock: &str) -> Vec<String> {
        let more = "[[package]]\nname = \"syn\"\nversion = \"3.0.0\"\n";
        let theirs = format!("{LOCKED}{more}");
        built_alike(&Tree::of(&[
            ("Cargo.toml", THEIRS),
            ("Cargo.lock", &theirs),
            (OURS, ours),
            (LOCK, lock),
        ]))
    }

    #[test]
    fn what_is_alike_is_clean_and_without_the_package_nothing_is_asked() {
        let own = "[[package]]\nname = \"pyo3\"\nversion = \"9.0.0\"\n";
        assert!(found(SAME, &format!("{LOCKED}{own}")).is_empty());
        assert!(built_alike(&Tree::of(&[("Cargo.toml", THEIRS)])).is_empty());
    }

    #[test]
    fn a_room_that_needs_more_than_the_lock_says_is_found() {
        let lock = "[[package]]\nname = \"ops\"\nversion = \"0.1.0\"\ndependencies = [\n \
                    \"rayon\",\n \"syn 2.0.1\",\n]\n\
                    [[package]]\nname = \"rayon\"\nsource = \"x\"\n";
        let said = |room: &str, needs: &[&str]| {
            let needs = needs.iter().map(|name| (*name).to_owned()).collect();
            let mut tree = Tree::of(&[(LOCK, lock)]);
            tree.packages = vec![Package { name: room.to_owned(), needs, ..Package::default() }];
            rooms(&tree)
        };
        assert!(said("ops", &["rayon", "syn"]).is_empty());
        assert!(said("rayon", &["libc"]).is_empty() && said("lathe", &["clap"]).is_empty());
        let found = said("ops", &["rayon", "libc"]);
        assert!(found.len() == 1 && found[0].contains("ops uses libc"), "{found:?}");
    }

    #[test]
    fn each_difference_is_found() {
        for (from, to, lock, needle) in [
            ("rayon]\nopt-level = 3", "rayon]\nopt-level = 2", LOCKED, "rayon] differs"),
            (
                "[profile.release.package.rayon]\nopt-level = 3\n",
                "",
                LOCKED,
                "rayon] of Cargo.toml",
            ),
            ("package.rayon", "package.clip", LOCKED, "clip] is not in Cargo.toml"),
            ("edition = \"2024\"", "edition = \"2021\"", LOCKED, "expected `edition"),
            ("[package]", "[other]", LOCKED, "no table [package]"),
            ("name", "name", "[[package]]\nname = \"syn\"\nversion = \"2.0.2\"\n", "syn 2.0.2"),
        ] {
            let found = found(&SAME.replace(from, to), lock);
            assert!(found.iter().any(|line| line.contains(needle)), "{needle}: {found:?}");
        }
    }
}
