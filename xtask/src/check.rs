//! Everything that a push must pass, cheapest first, each step announced.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{command, packages, say, tidy};

/// What cargo runs before the tests. All of it uses the release profile, so that build scripts and
/// procedural macros are compiled once.
const STEPS: [(&str, &[&str]); 3] = [
    ("format", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--release", "--", "-D", "warnings"]),
    ("docs", &["doc", "--workspace", "--no-deps", "--release"]),
];

const TESTS: [&str; 3] = ["test", "--release", "--workspace"];

/// A room in the middle: built alone after the whole workspace, it must find every crate of the
/// registry as it wants it.
const ALONE: [&str; 7] =
    ["build", "--release", "-p", "model", "--tests", "--message-format", "json"];

/// Crates that may be compiled again, as they take seconds: the compiler of build scripts has more
/// features where a C library is built in parallel, and what it builds follows it. `xtask` reads
/// Rust with the crates that procedural macros use, and asks for more of their features.
const GRANTED: [&str; 6] = ["cc", "libmimalloc-sys", "mimalloc", "proc-macro2", "quote", "syn"];

/// Runs all steps; the first failure ends it.
pub(crate) fn run(root: &Path) -> Result<()> {
    say("== tidy");
    tidy::run(root)?;
    say("== packages");
    packages::check(root)?;
    for (name, arguments) in STEPS {
        say(&format!("== {name}: cargo {}", arguments.join(" ")));
        let deny = [("RUSTDOCFLAGS", "-D warnings")];
        command(root, "cargo", arguments, &deny)?;
    }
    say(&format!("== tests: cargo {}", TESTS.join(" ")));
    command(root, "cargo", &TESTS, &[])?;
    say(&format!("== one set of features: cargo {}", ALONE.join(" ")));
    one_set_of_features(root)?;
    say("== all checks passed");
    Ok(())
}

/// Builds one room alone and fails if that compiles a crate of the registry.
fn one_set_of_features(root: &Path) -> Result<()> {
    let built = Command::new("cargo")
        .args(ALONE)
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo build")?;
    if !built.status.success() {
        bail!("`cargo {}` failed with {}", ALONE.join(" "), built.status);
    }
    let again = compiled_again(&String::from_utf8_lossy(&built.stdout));
    if !again.is_empty() {
        bail!(
            "`cargo {}` after the whole workspace compiled {} again: its features differ; name \
             those of the workspace in crates/features/Cargo.toml (`cargo tree -f '{{p}} {{f}}'` \
             shows them)",
            ALONE.join(" "),
            again.join(", ")
        );
    }
    Ok(())
}

/// Packages of the registry that cargo's messages call built and not fresh.
fn compiled_again(messages: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let package = message["package_id"].as_str().unwrap_or("");
        let name = package.rsplit('#').next().unwrap_or(package);
        let granted = GRANTED.iter().any(|granted| name.split('@').next() == Some(granted));
        if message["fresh"] == false && package.starts_with("registry+") && !granted {
            found.push(name.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_built_again_are_found() {
        let line = |package: &str, fresh: bool| {
            let reason = "compiler-artifact";
            serde_json::json!({"reason": reason, "package_id": package, "fresh": fresh}).to_string()
        };
        let messages = [
            line("registry+https://github.com/x#serde@1.0.0", true),
            line("registry+https://github.com/x#burn-flex@0.22.1", false),
            line("registry+https://github.com/x#cc@1.11.1", false),
            line("path+file:///x/crates/model#0.1.0", false),
            r#"{"reason": "build-finished", "success": true}"#.to_owned(),
        ];
        assert_eq!(compiled_again(&messages.join("\n")), ["burn-flex@0.22.1"]);
    }
}
