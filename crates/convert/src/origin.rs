//! What a parameter of a converted model is made of. A parameter that is not known here is refused
//! by its name: a matrix that conversion does not understand must not be drawn afresh.

use model::adapters::Part;
use model::params::{Group, ParamSpec};

use crate::ConvertError;
use crate::error::refused;

/// What a parameter is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Embedding, last norm or head: the source's, as it is.
    Kept,
    /// A matrix of a stored layer: that of the source's layers.
    Matrix { stored: usize, part: Part },
    /// A norm of a stored layer: that of the source's layers, for one use or for all.
    Norm { stored: usize, recursion: usize, norm: Norm },
    /// What a use adds to its layer, or a factor of the stream: fitted to the source, or fresh.
    Adapter,
    /// Part of a router: fresh.
    Router,
}

/// Which of a layer's two norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    Attention,
    FeedForward,
}

impl Norm {
    const ALL: [Norm; 2] = [Norm::Attention, Norm::FeedForward];

    /// Its name in the parameter table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention_norm",
            Self::FeedForward => "ffn_norm",
        }
    }
}

/// What a parameter of the table of `model` is made of.
///
/// # Errors
/// A parameter that conversion does not know.
pub(crate) fn of(model: &str, spec: &ParamSpec) -> Result<Origin, ConvertError> {
    match known(spec) {
        Some(origin) => Ok(origin),
        None => refused(
            format!("{model}: parameter \"{}\"", spec.name),
            "embedding, head, a norm or matrix of a layer, an adapter or a router",
            format!("{:?} of shape {:?}, which conversion does not know", spec.group, spec.shape),
            "convert a model without it",
        ),
    }
}

fn known(spec: &ParamSpec) -> Option<Origin> {
    if matches!(spec.group, Group::Router | Group::AuxiliaryRouter) {
        return Some(Origin::Router);
    }
    if matches!(spec.name.as_str(), "embed" | "norm" | "head") {
        return Some(Origin::Kept);
    }
    let (family, rest) = spec.name.split_once('.')?;
    match family {
        "relax" | "encoding" => Some(Origin::Adapter),
        "layers" => of_layer(rest),
        _ => None,
    }
}

/// What follows `layers.`: `3.query` is a matrix, `3.ffn_norm.0` a norm.
fn of_layer(rest: &str) -> Option<Origin> {
    let (stored, name) = rest.split_once('.')?;
    let stored = stored.parse().ok()?;
    if let Some(part) = Part::ALL.into_iter().find(|part| part.name() == name) {
        return Some(Origin::Matrix { stored, part });
    }
    let (name, recursion) = name.split_once('.')?;
    let norm = Norm::ALL.into_iter().find(|norm| norm.name() == name)?;
    Some(Origin::Norm { stored, recursion: recursion.parse().ok()?, norm })
}
