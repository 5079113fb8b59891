//! This program once more, in a process of its own: its memory and its threads are its own then.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A command that runs this program.
pub(crate) fn command() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("finding this program")?))
}

/// Runs the command to its end; what it printed, as JSON.
///
/// # Errors
/// A process that does not start, or that fails, with the command and what it said.
pub(crate) fn json(command: &mut Command) -> Result<Value> {
    let output = command.output().context("starting a process")?;
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`lathe {}` failed:\n{}", words.join(" "), said.trim_end());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
