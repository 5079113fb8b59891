//! What the parameters of a model are, as far as import, export and conversion know them. One that
//! is not known here is refused by its name: a matrix that nobody understands must be neither drawn
//! afresh nor left out.

use model::adapters::Part;
use model::params::{Group, ParamSpec};

use crate::ConvertError;
use crate::error::refused;

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KnownParam {
    /// The embedding.
    Embed,
    /// The norm after the last layer.
    LastNorm,
    /// The output matrix, where it is not the embedding.
    Head,
    /// A matrix of a stored layer.
    Matrix { stored: usize, part: Part },
    /// A norm of a stored layer, for one use or for all.
    Norm { stored: usize, recursion: usize, norm: Norm },
    /// What a use adds to its layer, or a factor of the stream.
    Adapter,
    /// A part of a router.
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

/// What a parameter of `model` is; `model` goes into the error.
///
/// # Errors
/// A parameter that is not known.
pub(crate) fn must(model: &str, spec: &ParamSpec) -> Result<KnownParam, ConvertError> {
    match of(spec) {
        Some(known) => Ok(known),
        None => refused(
            format!("{model}: parameter \"{}\"", spec.name),
            "embedding, head, a norm or matrix of a layer, an adapter or a router",
            format!("{:?} of shape {:?}, which is not known here", spec.group, spec.shape),
            "take a model without it",
        ),
    }
}

/// What a parameter is, if it is known.
pub(crate) fn of(spec: &ParamSpec) -> Option<KnownParam> {
    if matches!(spec.group, Group::Router | Group::AuxiliaryRouter) {
        return Some(KnownParam::Router);
    }
    match spec.name.as_str() {
        "embed" => return Some(KnownParam::Embed),
        "norm" => return Some(KnownParam::LastNorm),
        "head" => return Some(KnownParam::Head),
        _ => {}
    }
    let (family, rest) = spec.name.split_once('.')?;
    match family {
        "relax" | "encoding" => Some(KnownParam::Adapter),
        "layers" => of_layer(rest),
        _ => None,
    }
}

/// What follows `layers.`: `3.query` is a matrix, `3.ffn_norm.0` a norm.
fn of_layer(rest: &str) -> Option<KnownParam> {
    let (stored, name) = rest.split_once('.')?;
    let stored = stored.parse().ok()?;
    if let Some(part) = Part::ALL.into_iter().find(|part| part.name() == name) {
        return Some(KnownParam::Matrix { stored, part });
    }
    let (name, recursion) = name.split_once('.')?;
    let norm = Norm::ALL.into_iter().find(|norm| norm.name() == name)?;
    Some(KnownParam::Norm { stored, recursion: recursion.parse().ok()?, norm })
}
