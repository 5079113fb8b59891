//! The packages that the program is built from: licences, versions, where they come from. What is
//! allowed stands in `deny.toml`, in the form of cargo-deny, which is asked for advisories where it
//! is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

use crate::{command, say};

/// Where the lists stand.
const LISTS: &str = "deny.toml";

/// A package of the build and the licence expression of its manifest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    licence: String,
    /// Where it comes from, if it is neither ours nor the registry's.
    elsewhere: Option<String>,
}

/// Holds all packages of the build to `deny.toml`, then asks for advisories.
pub(crate) fn check(root: &Path) -> Result<()> {
    let lists = std::fs::read_to_string(root.join(LISTS)).with_context(|| LISTS.to_owned())?;
    let lists: Table = lists.parse().with_context(|| LISTS.to_owned())?;
    let packages = packages(root)?;
    let mut faults = licences(&packages, &lists)?;
    faults.extend(versions(&packages, &lists)?);
    for package in &packages {
        if let Some(place) = &package.elsewhere {
            faults.push(format!("{} comes from {place}, expected the registry", package.name));
        }
    }
    if !faults.is_empty() {
        bail!("{}: {}", LISTS, faults.join("; "));
    }
    say(&format!("ok   {} packages: licences, versions, sources", packages.len()));
    advisories(root)
}

/// `cargo deny check advisories`, or a word that nobody looked.
fn advisories(root: &Path) -> Result<()> {
    let asked = Command::new("cargo")
        .args(["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !asked.is_ok_and(|status| status.success()) {
        say("SKIPPED: advisories of packages; `cargo install cargo-deny` brings the program");
        return Ok(());
    }
    command(root, "cargo", &["deny", "check", "advisories"], &[])
}

/// What cargo builds for this machine, with the devices that builds may ask for.
fn packages(root: &Path) -> Result<BTreeSet<Package>> {
    let arguments = ["tree", "--locked", "--workspace", "-e", "normal,build,dev", "--prefix"];
    let listed = Command::new("cargo")
        .args(arguments)
        .args(["none", "--format", "{p}\t{l}", "--features", "lathe/gpu,lathe/cuda"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo tree")?;
    ensure!(listed.status.success(), "`cargo tree` failed with {}", listed.status);
    let text = String::from_utf8(listed.stdout).context("what cargo tree says")?;
    text.lines().filter(|line| !line.is_empty()).map(package).collect()
}

/// A line of the tree: `NAME vVERSION (WHERE)`, a tab, the licence, perhaps ` (*)`.
fn package(line: &str) -> Result<Package> {
    let (what, licence) = line.split_once('\t').with_context(|| format!("a line {line:?}"))?;
    let mut words = what.splitn(3, ' ');
    let (name, version) = (words.next(), words.next());
    let (Some(name), Some(version)) = (name, version) else { bail!("a package {what:?}") };
    let place = words.next().filter(|place| place.contains("://"));
    Ok(Package {
        name: name.to_owned(),
        version: version.trim_start_matches('v').to_owned(),
        licence: licence.trim_end_matches("(*)").trim().to_owned(),
        elsewhere: place.map(str::to_owned),
    })
}

/// Packages whose licence is not allowed, and exceptions that nothing needs.
fn licences(packages: &BTreeSet<Package>, lists: &Table) -> Result<Vec<String>> {
    let section = table(lists, "licenses")?;
    let allowed = strings(section.get("allow"));
    let mut faults = Vec::new();
    let mut exceptions = BTreeMap::new();
    for entry in entries(section.get("exceptions")) {
        exceptions.insert(text(entry, "crate")?, strings(entry.get("allow")));
    }
    for package in packages {
        let own = exceptions.remove(&*package.name);
        let mut all = allowed.clone();
        all.extend(own.unwrap_or_default());
        if !suffices(&package.licence, &all) {
            faults.push(format!(
                "{} {} has the licence \"{}\", expected one of licenses.allow",
                package.name, package.version, package.licence
            ));
        }
    }
    faults.extend(exceptions.keys().map(|name| format!("no package {name} needs its exception")));
    Ok(faults)
}

/// Whether some licence that `expression` offers is allowed. `/` is an old way to write `OR`; an
/// `AND` asks for both sides.
fn suffices(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let found = any(&words, &mut at, allowed);
    found && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut found = both(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        found |= both(words, at, allowed);
    }
    found
}

fn both(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut found = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        found &= one(words, at, allowed);
    }
    found
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let found = any(words, at, allowed);
        let closed = words.get(*at) == Some(&")");
        *at += usize::from(closed);
        return found && closed;
    }
    let mut name = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        name = format!("{word} WITH {exception}");
        *at = words.len().min(*at + 2);
    }
    allowed.contains(&name)
}

/// Crates in several versions that are not listed, and listed ones that are not there.
fn versions(packages: &BTreeSet<Package>, lists: &Table) -> Result<Vec<String>> {
    let mut skipped = BTreeMap::new();
    for entry in entries(table(lists, "bans")?.get("skip")) {
        let (name, reason) = (text(entry, "crate")?, text(entry, "reason")?);
        ensure!(!reason.is_empty(), "{LISTS}: bans.skip {name:?} has no reason");
        let parts = name.split_once('@').with_context(|| format!("{LISTS}: {name:?}, no @"))?;
        skipped.insert(parts, false);
    }
    let mut counted: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        counted.entry(&package.name).or_default().insert(&package.version);
    }
    let mut faults = Vec::new();
    for (name, found) in counted {
        let mut left = found.clone();
        for ((skip, version), used) in &mut skipped {
            let here = found.iter().filter(|v| *skip == name && begins(v, version));
            for version in here {
                *used = left.remove(version);
            }
        }
        if left.len() > 1 {
            let all: Vec<&str> = found.into_iter().collect();
            faults.push(format!("{name} is built in versions {}", all.join(" and ")));
        }
    }
    let idle = skipped.iter().filter(|(_, used)| !**used);
    faults.extend(idle.map(|((name, version), _)| format!("no package {name}@{version} to skip")));
    Ok(faults)
}

/// Whether `version` is `wanted` or a later part of it: 0.9.5 of 0.9, not 0.95.
fn begins(version: &str, wanted: &str) -> bool {
    version.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn table<'a>(lists: &'a Table, name: &str) -> Result<&'a Table> {
    let found = lists.get(name).and_then(Value::as_table);
    found.with_context(|| format!("{LISTS}: no section [{name}]"))
}

fn entries(list: Option<&Value>) -> impl Iterator<Item = &Table> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table)
}

fn strings(list: Option<&Value>) -> BTreeSet<String> {
    let all = list.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn text<'a>(entry: &'a Table, key: &str) -> Result<&'a str> {
    let found = entry.get(key).and_then(Value::as_str);
    found.with_context(|| format!("{LISTS}: an entry without `{key}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(text: &str) -> Table {
        text.parse().expect("TOML")
    }

    fn built(lines: &[&str]) -> BTreeSet<Package> {
        lines.iter().map(|line| package(line).expect("a package")).collect()
    }

    #[test]
    fn a_licence_expression_is_read_as_it_is_meant() {
        let allowed = ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("GPL-3.0 AND MIT", false),
            ("(GPL-3.0 OR MIT) AND Zlib", true),
            ("GPL-3.0 OR MIT AND Zlib", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("MIT WITH", false),
            ("(MIT", false),
            ("MIT Zlib", false),
            ("", false),
        ] {
            assert_eq!(suffices(expression, &allowed), expected, "{expression:?}");
        }
    }

    #[test]
    fn licences_and_needless_exceptions_are_named() {
        let text = "[licenses]\nallow = [\"MIT\"]\n\
                    exceptions = [{ crate = \"b\", allow = [\"MPL-2.0\"] }, { crate = \"c\" }]";
        let packages = built(&["a v1.0.0\tGPL-3.0", "b v1.0.0\tMPL-2.0 (*)", "d v1.0.0\t"]);
        let faults = licences(&packages, &lists(text)).expect("readable");
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].contains("a 1.0.0") && faults[1].contains("d 1.0.0"), "{faults:?}");
        assert!(faults[2].contains("no package c"), "{faults:?}");
    }

    #[test]
    fn versions_that_nobody_listed_are_named() {
        let text = "[bans]\nskip = [{ crate = \"b@0.9\", reason = \"x\" }, \
                    { crate = \"c@1\", reason = \"x\" }]";
        let packages = built(&[
            "a v1.0.0\tMIT",
            "a v2.0.0 (proc-macro)\tMIT",
            "b v0.9.5\tMIT",
            "b v0.10.0\tMIT",
        ]);
        let faults = versions(&packages, &lists(text)).expect("readable");
        let expected = ["a is built in versions 1.0.0 and 2.0.0", "no package c@1 to skip"];
        assert_eq!(faults, expected);
        let b = built(&["b v0.95.0\tMIT", "b v0.9.5\tMIT", "c v1.0.0\tMIT", "c v1.5.0\tMIT"]);
        assert_eq!(versions(&b, &lists(text)).expect("readable"), Vec::<String>::new());
    }

    #[test]
    fn other_sources_are_seen() {
        let git = package("a v1.0.0 (https://example.org/a#12)\tMIT").expect("a package");
        assert!(git.elsewhere.is_some());
        let own = package("a v1.0.0 (/home/a)\tMIT").expect("a package");
        assert_eq!(own.elsewhere, None);
    }

    /// The lists say what is true of this tree.
    #[test]
    fn this_tree_passes() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent");
        check(root).expect("licences, versions and sources as listed");
    }
}
