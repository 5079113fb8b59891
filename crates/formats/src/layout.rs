//! Whether a file's tensors are exactly those of the model that its settings describe.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use crate::error::quote;
use crate::{ArchConfig, FormatError, LayerRole, Result, TensorRole};

/// How many tensors of each kind a message names.
const NAMED_AT_MOST: usize = 8;

/// What an architecture's form of file calls the tensor of a role. Roles that follow each other
/// under one name stand in one tensor, one below the other.
pub(crate) type Naming = fn(TensorRole) -> Option<String>;

/// A tensor of a file.
#[derive(Debug)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// What stands in it, one below the other.
    pub(crate) roles: Vec<TensorRole>,
}

/// What an architecture's form of file, given as `tensor`, calls the tensor of a role.
///
/// # Errors
/// The architecture has no such tensor.
pub(crate) fn name(
    path: &Path,
    architecture: &str,
    tensor: Naming,
    role: TensorRole,
) -> Result<String> {
    tensor(role).ok_or_else(|| {
        let expected = format!("a weight of the {architecture} architecture");
        FormatError::unwritable(path, format!("weights of {role}"), expected, "none of its")
    })
}

/// The tensors of a model in the order of their roles, as they are asked for.
pub(crate) fn tensors<'a>(
    path: &'a Path,
    architecture: &'a str,
    settings: &'a ArchConfig,
    tensor: Naming,
) -> impl Iterator<Item = Result<StoredTensor>> + use<'a> {
    let mut roles = TensorRole::all(settings).peekable();
    std::iter::from_fn(move || {
        let role = roles.next()?;
        let name = match name(path, architecture, tensor, role) {
            Ok(name) => name,
            Err(error) => return Some(Err(error)),
        };
        let (mut shape, mut all) = (role.shape(settings), vec![role]);
        while let Some(next) = roles.next_if(|next| tensor(*next).as_ref() == Some(&name)) {
            shape[0] += next.shape(settings)[0];
            all.push(next);
        }
        Some(Ok(StoredTensor { name, shape, roles: all }))
    })
}

/// Which values of its tensor are those of `role`.
pub(crate) fn range(settings: &ArchConfig, tensor: Naming, role: TensorRole) -> Range<usize> {
    let count = |role: TensorRole| role.shape(settings).iter().product::<usize>();
    let mut start = 0;
    if let TensorRole::Layer(layer, _) = role {
        let name = tensor(role);
        let before = LayerRole::all(settings).into_iter().map(|r| TensorRole::Layer(layer, r));
        let before = before.take_while(|other| *other != role);
        start = before.filter(|other| tensor(*other) == name).map(count).sum();
    }
    start..start + count(role)
}

/// Checks that `found` (name to shape) has every tensor of the model with its shape and no other.
///
/// # Errors
/// Names the first missing, wrongly shaped and extra tensors.
pub(crate) fn check(
    path: &Path,
    architecture: &str,
    settings: &ArchConfig,
    tensor: Naming,
    found: &BTreeMap<&str, &[usize]>,
) -> Result<()> {
    let mut missing = Vec::new();
    let mut misshapen = Vec::new();
    let mut matched = 0;
    for wanted in tensors(path, architecture, settings, tensor) {
        let StoredTensor { name: wanted, shape, .. } = wanted?;
        match found.get(wanted.as_str()) {
            None => missing.push(quote(&wanted)),
            Some(&is) if is != shape => {
                matched += 1;
                misshapen.push(format!("{} (expected {shape:?}, found {is:?})", quote(&wanted)));
            }
            Some(_) => matched += 1,
        }
        // A count of layers far above the file's needs no longer list.
        if missing.len() + misshapen.len() > NAMED_AT_MOST {
            break;
        }
    }
    let complete = missing.len() + misshapen.len() <= NAMED_AT_MOST;
    let extra =
        if complete && matched < found.len() { extra(settings, tensor, found) } else { Vec::new() };
    let not_of = format!("not of a plain {architecture} model");
    let kinds = [("missing", missing), ("wrongly shaped", misshapen), (not_of.as_str(), extra)];
    let details: Vec<_> =
        kinds.iter().filter(|(_, names)| !names.is_empty()).map(summary).collect();
    if details.is_empty() {
        return Ok(());
    }
    let expected = format!("those of {} blocks of width {}", settings.layers, settings.width);
    Err(FormatError::unsupported(path, "tensors", expected, details.join("; ")))
}

/// Only called when the file has nearly all tensors of the settings, so the list below is of the
/// file's size.
fn extra(settings: &ArchConfig, tensor: Naming, found: &BTreeMap<&str, &[usize]>) -> Vec<String> {
    let wanted: BTreeSet<String> = TensorRole::all(settings).filter_map(tensor).collect();
    found.keys().filter(|name| !wanted.contains(**name)).map(|name| quote(name)).collect()
}

fn summary((what, names): &(&str, Vec<String>)) -> String {
    let more = names.len().saturating_sub(NAMED_AT_MOST);
    let named = names[..names.len() - more].join(", ");
    let tail = if more == 0 { "" } else { " and more" };
    format!("{what}: {named}{tail}")
}
