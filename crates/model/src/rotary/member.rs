//! What a way to rescale the rates of rotary positions is.

use crate::error::{ConfigError, refuse};

/// What the settings of a rescaling answer.
pub trait ScalingSettings {
    /// # Errors
    /// The first setting that is impossible where `turned` columns of a head turn.
    fn check(&self, turned: usize) -> Result<(), ConfigError>;

    /// The rate of each of `turned / 2` pairs of columns, in radians a position, for the base
    /// `theta` in a model that is meant for `context` tokens.
    fn rates(&self, theta: f64, turned: usize, context: usize) -> Vec<f64>;

    /// Refuses what changes nothing in a model that is meant for `context` tokens.
    ///
    /// # Errors
    /// The first such setting.
    fn check_effects(&self, _context: usize) -> Result<(), ConfigError> {
        Ok(())
    }

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

/// Refuses fewer than `least` pairs that turn, for the rescaling `kind`.
pub(super) fn at_least_pairs(kind: &str, turned: usize, least: usize) -> Result<(), ConfigError> {
    if turned / 2 >= least {
        return Ok(());
    }
    let expected = format!("another kind, or heads of which {least} pairs of columns turn");
    refuse("rotary.scaling.kind", format!("\"{kind}\" of {} pairs", turned / 2), expected)
}

/// Refuses an original context of no length.
pub(super) fn check_context(found: usize) -> Result<(), ConfigError> {
    if (1..=1 << 24).contains(&found) {
        return Ok(());
    }
    refuse("rotary.scaling.original_context", found, format!("between 1 and {}", 1 << 24))
}
