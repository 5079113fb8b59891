//! Remarks beside results, and errors with their causes, as one line each.

use std::sync::OnceLock;

/// Who hears the remarks of this process.
static LISTENER: OnceLock<fn(&str)> = OnceLock::new();

/// Hands all remarks of this process to `listener` from here on. The first call counts.
pub fn listen(listener: fn(&str)) {
    let _ = LISTENER.set(listener);
}

/// A remark that is not the result: a line of text, which quotes what files say. Nobody hears it
/// where nobody listens.
pub fn note(text: impl AsRef<str>) {
    if let Some(listener) = LISTENER.get() {
        listener(text.as_ref());
    }
}

/// What went wrong and why, each cause once: some errors name theirs and hold it, too.
pub fn causes(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_named_once() {
        let disk = || std::io::Error::other("the disk is full");
        let held = anyhow::Error::new(disk()).context("a: the disk is full; free space");
        assert_eq!(
            causes(&held.context("writing a")),
            "writing a: a: the disk is full; free space"
        );
        let apart = anyhow::Error::new(disk()).context("writing a");
        assert_eq!(causes(&apart), "writing a: the disk is full");
    }
}
