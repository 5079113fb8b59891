//! Comparing messages.

/// Insists that the message of an error holds every one of `words`.
pub(crate) fn assert_names(case: &str, error: impl ToString, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{case}: {word:?} is missing in: {message}");
    }
}
