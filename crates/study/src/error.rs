//! What is wrong with a study.

/// Why a study is refused, before anything of it runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StudyError {
    /// The text is not TOML.
    #[error("{0}")]
    Syntax(String),
    /// A field that is impossible, or whose values are.
    #[error("{field} is {found}, expected {expected}")]
    Field {
        /// Path of the field in the study.
        field: String,
        /// What stands there instead.
        found: String,
        /// What could stand there.
        expected: String,
    },
}

/// The refusal of a field.
pub(crate) fn refuse<T>(
    field: impl Into<String>,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> Result<T, StudyError> {
    let (field, found, expected) = (field.into(), found.into(), expected.into());
    Err(StudyError::Field { field, found, expected })
}
