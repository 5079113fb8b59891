//! Everything that a push must pass, cheapest first, each step announced.

use std::path::Path;

use anyhow::Result;

use crate::{command, say, tidy};

/// Runs all steps; the first failure ends it.
pub(crate) fn run(root: &Path) -> Result<()> {
    let cargo: [(&str, &[&str]); 2] = [
        ("format", &["fmt", "--all", "--check"]),
        ("lints", &["clippy", "--workspace", "--all-targets", "--release", "--", "-D", "warnings"]),
    ];
    for (name, arguments) in cargo {
        say(&format!("== {name}: cargo {}", arguments.join(" ")));
        command(root, "cargo", arguments)?;
    }
    say("== tidy");
    tidy::run(root)?;
    let tests = ["test", "--release", "--workspace"];
    say(&format!("== tests: cargo {}", tests.join(" ")));
    command(root, "cargo", &tests)?;
    say("== all checks passed");
    Ok(())
}
