//! `cargo xtask tidy` holds the tree to ARCHITECTURE.md and to the house rules; `cargo xtask check`
//! runs everything that a push must pass; `cargo xtask mutants` asks whether tests notice a broken
//! line; `cargo xtask siege` attacks the program for as long as one likes.

mod check;
mod mutants;
mod packages;
mod siege;
mod source;
mod tidy;
mod tree;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let done = match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy::run(&root()),
        Some("check") => check::run(&root()),
        Some("mutants") => mutants::run(&root(), &arguments),
        Some("siege") => siege::run(&root(), &arguments),
        other => {
            let found = other.unwrap_or("nothing");
            Err(anyhow::anyhow!(
                "cargo xtask got {found}, expected `tidy` (seconds), \
                 `check` (tidy, format, lints, docs, tests), \
                 `mutants ROOM` (do its tests notice a broken line) \
                 or `siege` (kills, faults, damaged files, hostile requests for minutes)"
            ))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The folder that holds ARCHITECTURE.md: the parent of this package.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// One line for whoever ran the task; a closed pipe ends output quietly.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Runs `program` in `root` with `variables` set, and fails with the whole command if it does.
fn command(
    root: &Path,
    program: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Result<()> {
    let mut run = std::process::Command::new(program);
    run.args(arguments).envs(variables.iter().copied()).current_dir(root);
    let status = run.status()?;
    if !status.success() {
        bail!(
            "`{program} {}` failed with {status}; its output above names the cause",
            arguments.join(" ")
        );
    }
    Ok(())
}
