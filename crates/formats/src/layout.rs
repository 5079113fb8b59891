//! Whether a file's tensors are exactly those of the model that its settings describe.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::error::quote;
use crate::{ArchConfig, FormatError, Result, TensorRole};

/// How many tensors of each kind a message names.
const NAMED_AT_MOST: usize = 8;

/// What an architecture's form of file, given as `tensor`, calls the tensor of a role.
///
/// # Errors
/// The architecture has no such tensor.
pub(crate) fn name(
    path: &Path,
    architecture: &str,
    tensor: fn(TensorRole) -> Option<String>,
    role: TensorRole,
) -> Result<String> {
    tensor(role).ok_or_else(|| {
        let expected = format!("a weight of the {architecture} architecture");
        FormatError::unwritable(path, format!("weights of {role}"), expected, "none of its")
    })
}

/// Checks that `found` (name to shape) has every tensor of the model with its shape and no other.
///
/// # Errors
/// Names the first missing, wrongly shaped and extra tensors.
pub(crate) fn check(
    path: &Path,
    architecture: &str,
    settings: &ArchConfig,
    tensor: fn(TensorRole) -> Option<String>,
    found: &BTreeMap<&str, &[usize]>,
) -> Result<()> {
    let mut missing = Vec::new();
    let mut misshapen = Vec::new();
    let mut matched = 0;
    for role in TensorRole::all(settings) {
        let wanted = name(path, architecture, tensor, role)?;
        let shape = role.shape(settings);
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
fn extra(
    settings: &ArchConfig,
    tensor: fn(TensorRole) -> Option<String>,
    found: &BTreeMap<&str, &[usize]>,
) -> Vec<String> {
    let wanted: BTreeSet<String> = TensorRole::all(settings).filter_map(tensor).collect();
    found.keys().filter(|name| !wanted.contains(**name)).map(|name| quote(name)).collect()
}

fn summary((what, names): &(&str, Vec<String>)) -> String {
    let more = names.len().saturating_sub(NAMED_AT_MOST);
    let named = names[..names.len() - more].join(", ");
    let tail = if more == 0 { "" } else { " and more" };
    format!("{what}: {named}{tail}")
}
