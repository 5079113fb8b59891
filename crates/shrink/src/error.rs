//! Why a checkpoint was not changed.

use std::borrow::Cow;

use checkpoint::Misfit;

/// Why a checkpoint was not changed. Nothing is written then.
#[derive(Debug, thiserror::Error)]
pub enum ShrinkError {
    /// A setting, a model or a text with which a pass can do nothing.
    #[error(transparent)]
    Refused(#[from] Misfit),
    /// A config that no model of the family has.
    #[error(transparent)]
    Model(#[from] model::ConfigError),
    /// A checkpoint that was refused, or could not be written.
    #[error(transparent)]
    Train(#[from] train::TrainError),
    /// Costs that could not be counted.
    #[error(transparent)]
    Convert(#[from] convert::ConvertError),
    /// Weights that cannot be rounded.
    #[error("{weight}: {source}")]
    Quantize {
        /// The weight's name in the parameter table.
        weight: String,
        /// What about the weight does not fit the format.
        source: ops::QuantError,
    },
}

/// The error [`ShrinkError::Refused`] for `what`.
pub(crate) fn refused<T>(
    what: impl Into<String>,
    expected: impl Into<String>,
    found: impl ToString,
    next: impl Into<Cow<'static, str>>,
) -> Result<T, ShrinkError> {
    Err(Misfit::new(what, expected, found.to_string(), next).into())
}

/// Refuses a share that is none, or that leaves nothing.
pub(crate) fn check_share(field: &str, share: f64) -> Result<(), ShrinkError> {
    if (0.0..1.0).contains(&share) {
        return Ok(());
    }
    refused(field, "a share from 0 to below 1", share, "give such a share")
}

/// The error of a share above 0 of which nothing goes; `least` is the least that can go.
pub(crate) fn nothing_goes<T>(field: &str, share: f64, least: &str) -> Result<T, ShrinkError> {
    let expected = format!("0, or a share of which at least {least} goes");
    refused(field, expected, share, "raise it")
}

/// Refuses a setting that changes nothing beside the others.
pub(crate) fn unused(field: &str, is_default: bool, beside: &str) -> Result<(), ShrinkError> {
    if is_default {
        return Ok(());
    }
    refused(field, format!("it left out {beside}"), "it set", "leave it out")
}
