//! Why a recipe of a model is impossible.

use std::fmt::Display;

/// An impossible recipe: which field, what it holds, what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("model.{field} is {found}, expected {expected}")]
pub struct ConfigError {
    /// Path of the field below `model`.
    pub field: String,
    /// The value found there.
    pub found: String,
    /// What would be legal.
    pub expected: String,
}

pub(crate) fn refuse<T>(
    field: &str,
    found: impl Display,
    expected: String,
) -> Result<T, ConfigError> {
    Err(ConfigError { field: field.into(), found: found.to_string(), expected })
}

/// Refuses a number that is below `least`, or none.
pub(crate) fn at_least(field: &str, x: f64, least: f64) -> Result<(), ConfigError> {
    if x.is_finite() && x >= least {
        Ok(())
    } else {
        refuse(field, x, format!("a number from {least}"))
    }
}

/// Refuses a number that changes nothing, `without` saying why, unless it is its default.
pub(crate) fn same(field: &str, x: f64, default: f64, without: &str) -> Result<(), ConfigError> {
    if x == default { Ok(()) } else { refuse(field, x, format!("{default} {without}")) }
}
