//! Checks of arguments.

/// Panics, naming the argument, when a slice has not the length that its shape asks for.
#[track_caller]
pub(crate) fn check_len(function: &str, argument: &str, found: usize, expected: usize) {
    assert!(
        found == expected,
        "{function}: `{argument}` holds {found} values where its shape needs {expected}"
    );
}
