//! What goes to the terminal. A closed pipe ends output quietly; a result that is lost otherwise,
//! as on a full disk, makes the command fail.

use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
pub(crate) use opening::notes::causes;
use report::{Table, sanitize, steers};
use serde::Serialize;

/// The first failure of standard output.
static LOST: Mutex<Option<std::io::Error>> = Mutex::new(None);

/// One line to standard output. Lines quote what files say, so that characters that steer a
/// terminal are written out and what is very long is cut; [`json`] is for what programs read.
pub(crate) fn line(text: impl AsRef<str>) {
    raw_line(&harmless(text.as_ref()));
}

fn raw_line(text: &str) {
    remember(writeln!(std::io::stdout().lock(), "{text}"));
}

/// A value as JSON to standard output, whole.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    raw_line(&harmless_json(&serde_json::to_string_pretty(value)?));
    Ok(())
}

/// A table to standard output; its own cells are harmless and of one line.
pub(crate) fn table(table: &Table) {
    piece(&table.to_text());
}

/// Text that a model or a user wrote, without a line end, at once: as it is where a program reads
/// it, and harmless on a terminal.
pub(crate) fn text(text: &str) {
    piece(&as_read(text, std::io::stdout().is_terminal()));
}

fn as_read(text: &str, by_terminal: bool) -> String {
    if by_terminal { sanitize(text) } else { text.to_owned() }
}

/// Text that is harmless, without a line end, at once.
pub(crate) fn piece(text: &str) {
    let mut out = std::io::stdout().lock();
    remember(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

fn remember(done: std::io::Result<()>) {
    if let Err(error) = done {
        LOST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Whether nobody gets what is written from now on.
pub(crate) fn is_lost() -> bool {
    LOST.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Whether everything that was written to standard output got there, or nobody wanted more of it.
///
/// # Errors
/// What the system said to the first part that was lost.
pub(crate) fn finish() -> std::io::Result<()> {
    remember(std::io::stdout().lock().flush());
    match LOST.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// One line to standard error: what is not the result. As harmless as [`line()`].
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", harmless(text.as_ref()));
}

/// A number of recursions.
pub(crate) fn recursions(count: usize) -> String {
    match count {
        1 => "1 recursion".to_owned(),
        count => format!("{count} recursions"),
    }
}

/// The most characters of a line or a note.
const LONGEST: usize = 8000;

/// `text` with the characters written out that steer a terminal, and cut where it is longer than a
/// line may be.
pub(crate) fn harmless(text: &str) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == LONGEST {
            shown.push_str(" ... (cut)");
            break;
        }
        match steers(character) {
            true => shown.extend(character.escape_unicode()),
            false => shown.push(character),
        }
    }
    shown
}

/// JSON with the characters escaped that steer a terminal; the same value to who parses it.
fn harmless_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for character in json.chars() {
        match steers(character) {
            // Outside of strings there is none, and all of them have four digits.
            true => shown.push_str(&format!("\\u{:04x}", u32::from(character))),
            false => shown.push(character),
        }
    }
    shown
}

/// Whether colours make sense on standard output.
pub(crate) fn colors() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Sends diagnostics to standard error: warnings, or more with each `-v`. `RUST_LOG` has the last
/// word.
pub(crate) fn logging(verbose: u8) {
    let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Harmless)
        .with_ansi(false)
        .with_target(false)
        .init();
}

/// Writes a page. What is there already is replaced only if it is a page itself: the argument may
/// be the name of a text, a log or a checkpoint's file by mistake.
///
/// # Errors
/// Something else than a page there; what the file system refuses.
pub(crate) fn page(path: &Path, html: &str) -> Result<()> {
    is_page_or_free(path)?;
    files::write_whole(path, html.as_bytes()).with_context(|| format!("writing {}", path.display()))
}

/// Refuses two options that name one file.
pub(crate) fn are_different(one: (&str, &Path), other: (&str, &Path)) -> Result<()> {
    let folder = |path: &Path| files::folder_of(path).canonicalize().ok();
    let same = one.1.file_name() == other.1.file_name() && folder(one.1) == folder(other.1);
    ensure!(
        !same,
        "{} and {} both name {}: expected a file for each",
        one.0,
        other.0,
        one.1.display()
    );
    Ok(())
}

/// Refuses a path where something else than a page is.
pub(crate) fn is_page_or_free(path: &Path) -> Result<()> {
    if path.metadata().is_ok_and(|found| found.is_file() && found.len() > 0) {
        let mut begin = Vec::new();
        files::open(path)?.take(PAGE.len() as u64).read_to_end(&mut begin)?;
        ensure!(
            begin.eq_ignore_ascii_case(PAGE),
            "{} is there and is no page: choose another name, or remove it",
            path.display()
        );
    }
    Ok(())
}

/// Refuses a path where something else than a page of this title is: a report of a run is a page
/// too, and no picture of a trace.
pub(crate) fn is_page_of(path: &Path, titles: &[&str]) -> Result<()> {
    is_page_or_free(path)?;
    if path.metadata().is_ok_and(|found| found.is_file() && found.len() > 0) {
        let mut head = Vec::new();
        files::open(path)?.take(HEAD).read_to_end(&mut head)?;
        let head = String::from_utf8_lossy(&head);
        ensure!(
            titles.iter().any(|title| head.contains(&format!("<title>{title}</title>"))),
            "{} is there and is a page about something else: choose another name, or remove it",
            path.display()
        );
    }
    Ok(())
}

/// Bytes of a page in which its title stands.
const HEAD: u64 = 4096;
/// The first bytes of every page that this program writes.
const PAGE: &[u8] = b"<!doctype html>";

/// Standard error for log lines, which quote what clients and files say.
struct Harmless;

impl Write for Harmless {
    /// Log lines come whole.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        let shown = harmless(line.trim_end_matches('\n')) + "\n";
        std::io::stderr().lock().write_all(shown.as_bytes()).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_do_nothing_to_a_terminal() {
        assert_eq!(harmless("a\tb\nc"), "a\tb\nc");
        assert_eq!(harmless("\u{1b}[31mred\r\u{9b}2J"), "\\u{1b}[31mred\\u{d}\\u{9b}2J");
        assert_eq!(harmless("left\u{202e}right"), "left\\u{202e}right");
        let cut = harmless(&"x".repeat(1_000_000));
        assert!(cut.len() < LONGEST + 20 && cut.ends_with("(cut)"));
        assert_eq!(harmless(&"x".repeat(LONGEST)).len(), LONGEST);
    }

    #[test]
    fn json_is_the_same_value_and_steers_nothing() {
        let value = serde_json::json!({ "a\u{9b}": "x\u{1b}[2J\u{202e}\u{7f}\n\u{e9}" });
        let shown = harmless_json(&serde_json::to_string_pretty(&value).expect("JSON"));
        assert!(!shown.chars().any(steers), "{shown:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"), value);
    }

    #[test]
    fn programs_read_what_was_written_and_terminals_do_not() {
        let text = "one\n\ttwo \u{1b}]0;title\u{7}";
        assert_eq!(as_read(text, false), text);
        assert!(!as_read(text, true).chars().any(steers));
        assert!(as_read(text, true).starts_with("one\n\ttwo "));
    }
}
