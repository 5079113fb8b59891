//! What a way to rescale the rates of rotary positions is.

use crate::error::{ConfigError, refuse};

/// What the settings of a rescaling answer.
pub trait ScalingSettings {
    /// # Errors
    /// The first impossible setting.
    fn check(&self) -> Result<(), ConfigError>;

    /// The rate of each of `turned / 2` pairs of columns, in radians a position, for the base
    /// `theta`.
    fn rates(&self, theta: f64, turned: usize) -> Vec<f64>;

    /// What turned columns of queries and keys are multiplied by.
    fn factor(&self) -> f64 {
        1.0
    }
}

/// Refuses a number of `field` that is not within `least..=most`.
pub(super) fn within(field: &str, found: f64, least: f64, most: f64) -> Result<(), ConfigError> {
    if found >= least && found <= most {
        return Ok(());
    }
    refuse(&format!("rotary.scaling.{field}"), found, format!("a number from {least} to {most}"))
}

/// Refuses an original context of no length.
pub(super) fn check_context(found: usize) -> Result<(), ConfigError> {
    if (1..=1 << 24).contains(&found) {
        return Ok(());
    }
    refuse("rotary.scaling.original_context", found, format!("between 1 and {}", 1 << 24))
}
