//! What goes to the terminal. A closed pipe ends output quietly.

use std::io::{IsTerminal, Write};

/// One line to standard output.
pub(crate) fn line(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout().lock(), "{}", text.as_ref());
}

/// Text without a line end, at once.
pub(crate) fn piece(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_ref().as_bytes());
    let _ = out.flush();
}

/// One line to standard error: what is not the result. Notes quote what files say, so that control
/// characters in them are written out and what is very long is cut.
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

/// The most characters of a note.
const LONGEST_NOTE: usize = 8000;

/// `text` with control characters written out, but for ends of lines and tabs, and cut where it is
/// longer than a note may be.
pub(crate) fn harmless(text: &str) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == LONGEST_NOTE {
            shown.push_str(" ... (cut)");
            break;
        }
        match character {
            '\n' | '\t' => shown.push(character),
            _ if is_hidden(character) => shown.extend(character.escape_unicode()),
            _ => shown.push(character),
        }
    }
    shown
}

/// Whether a character moves the cursor, changes the terminal or the direction of text.
fn is_hidden(character: char) -> bool {
    character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
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
        assert!(cut.len() < LONGEST_NOTE + 20 && cut.ends_with("(cut)"));
        assert_eq!(harmless(&"x".repeat(LONGEST_NOTE)).len(), LONGEST_NOTE);
    }
}
