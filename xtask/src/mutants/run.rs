//! Runs test programs with one mutant awake.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::build::Program;
use super::plant::VARIABLE;

/// A program that runs this much longer than without a mutant hangs.
const PATIENCE: u32 = 4;
const LEAST: Duration = Duration::from_secs(20);

/// A test program and how long it takes.
pub(super) struct Timed {
    pub(super) program: Program,
    usual: Duration,
}

/// Runs every program once with all mutants asleep.
///
/// # Errors
/// One that fails: then nothing could be learned from its failing.
pub(super) fn timed(programs: Vec<Program>, packages: &[String]) -> Result<Vec<Timed>> {
    let mut found = Vec::new();
    for program in programs {
        let start = Instant::now();
        if let Some(how) = failure(&program, 0, Duration::from_secs(900))? {
            bail!("{}: {how} without any mutant; mend it first", program.path.display());
        }
        found.push(Timed { program, usual: start.elapsed() });
    }
    let place = |timed: &Timed| packages.iter().position(|p| *p == timed.program.package);
    found.sort_by_key(|timed| (place(timed), timed.usual));
    Ok(found)
}

/// The first program that fails with mutant `number` awake, and how; `None` if none does.
pub(super) fn noticed(programs: &[Timed], number: usize) -> Result<Option<String>> {
    for Timed { program, usual } in programs {
        if let Some(how) = failure(program, number, (*usual * PATIENCE).max(LEAST))? {
            let name = program.path.file_stem().unwrap_or_default().to_string_lossy();
            let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
            return Ok(Some(format!("{} {name} {how}", program.package)));
        }
    }
    Ok(None)
}

/// How a program fails with mutant `number` awake: the first test that does, or that none came to
/// its end.
fn failure(program: &Program, number: usize, most: Duration) -> Result<Option<String>> {
    let Program { path, folder, .. } = program;
    let scratch = std::env::temp_dir().join(format!("lathe-mutants-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let said = scratch.join("said");
    let mut child = start(path, folder, number, &scratch, fs::File::create(&said)?)?;
    let end = Instant::now() + most;
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            if status.success() {
                break None;
            }
            let said = fs::read(&said)?;
            break Some(format!("fails ({})", first_failed(&String::from_utf8_lossy(&said))));
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            break Some("takes too long".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    fs::remove_dir_all(&scratch)?;
    Ok(ended)
}

/// The name of the first test that failed, by what its program said.
fn first_failed(said: &str) -> &str {
    let results = said.lines().filter_map(|line| line.strip_prefix("test "));
    let mut failed = results.filter_map(|line| line.strip_suffix(" ... FAILED"));
    failed.next().unwrap_or("before any test ended")
}

/// What tests leave behind goes to `scratch`, which is removed, and what they say to `said`.
fn start(
    path: &Path,
    folder: &Path,
    number: usize,
    scratch: &Path,
    said: fs::File,
) -> Result<Child> {
    Command::new(path)
        .current_dir(folder)
        .env(VARIABLE, number.to_string())
        .env("CARGO_MANIFEST_DIR", folder)
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .stdout(said)
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_that_failed_is_named() {
        let said = "running 2 tests\ntest a::b ... ok\ntest c ... FAILED\ntest d ... FAILED\n";
        assert_eq!(first_failed(said), "c");
        assert_eq!(first_failed("running 2 tests\n"), "before any test ended");
    }
}
