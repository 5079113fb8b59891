//! Whether a file's tensors are exactly those of the model that its settings describe.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::Path;

use crate::error::quote;
use crate::piece::Piece;
use crate::{ArchConfig, FormatError, LayerRole, Result, TensorRole};

/// How many tensors of each kind a message names.
const NAMED_AT_MOST: usize = 8;

/// What an architecture's form of file calls the tensor of a role. Roles that follow each other
/// under one name stand in one tensor, one below the other.
pub(crate) type Naming = fn(TensorRole) -> Option<String>;

/// Where roles stand within larger tensors than rows below each other make; `None` for other roles.
pub(crate) type Banks = fn(TensorRole, &ArchConfig) -> Option<Piece>;

/// How files hold the weights of an architecture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holding {
    pub(crate) tensor: Naming,
    pub(crate) banks: Option<Banks>,
}

/// A tensor of a file.
#[derive(Debug)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// What stands in it, and where.
    pub(crate) pieces: Vec<(TensorRole, Piece)>,
}

impl Holding {
    /// The tensor of a role.
    fn name(&self, settings: &ArchConfig, role: TensorRole) -> Option<String> {
        let piece = self.banks.and_then(|banks| banks(role, settings));
        piece.map(|piece| piece.name).or_else(|| (self.tensor)(role))
    }

    /// Where the weights of a role stand; `None` for a role that the architecture lacks.
    pub(crate) fn piece(&self, settings: &ArchConfig, role: TensorRole) -> Option<Piece> {
        if let Some(piece) = self.banks.and_then(|banks| banks(role, settings)) {
            return Some(piece);
        }
        let (name, mut piece) = ((self.tensor)(role)?, None);
        let layer = match role {
            TensorRole::Layer(layer, of_layer) if !of_layer.is_of_one_expert() => layer,
            _ => return Some(Piece::whole(name, role.shape(settings))),
        };
        let others = LayerRole::all(settings, layer).into_iter();
        let others = others.filter(|other| !other.is_of_one_expert());
        let mut shape: Vec<usize> = Vec::new();
        for other in others.map(|other| TensorRole::Layer(layer, other)) {
            if (self.tensor)(other).as_ref() != Some(&name) {
                continue;
            }
            let own = other.shape(settings);
            let before = if shape.is_empty() { 0 } else { shape.iter().product() };
            match shape.first_mut() {
                Some(rows) => *rows += own[0],
                None => shape.clone_from(&own),
            }
            if other == role {
                piece = Some(Piece { first: before, ..Piece::whole(name.clone(), own) });
            }
        }
        piece.map(|piece| Piece { shape, ..piece })
    }
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

/// The tensors of a model in the order of their first roles, block by block as they are asked for.
pub(crate) fn tensors<'a>(
    path: &'a Path,
    architecture: &'a str,
    settings: &'a ArchConfig,
    holding: Holding,
) -> impl Iterator<Item = Result<StoredTensor>> + use<'a> {
    let mut roles = TensorRole::all(settings).peekable();
    let mut ready = VecDeque::new();
    std::iter::from_fn(move || {
        if ready.is_empty() {
            let mut together = vec![roles.next()?];
            if let TensorRole::Layer(layer, _) = together[0] {
                let same =
                    |next: &TensorRole| matches!(next, TensorRole::Layer(l, _) if *l == layer);
                while let Some(next) = roles.next_if(same) {
                    together.push(next);
                }
            }
            ready.extend(stored(path, architecture, settings, holding, &together));
        }
        ready.pop_front()
    })
}

/// The tensors in which some roles stand, each with all that stand in it.
fn stored(
    path: &Path,
    architecture: &str,
    settings: &ArchConfig,
    holding: Holding,
    roles: &[TensorRole],
) -> Vec<Result<StoredTensor>> {
    let mut found: Vec<Result<StoredTensor>> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for &role in roles {
        let Some(piece) = holding.piece(settings, role) else {
            let refused = name(path, architecture, holding.tensor, role);
            let (shape, pieces) = (role.shape(settings), Vec::new());
            found.push(refused.map(|name| StoredTensor { name, shape, pieces }));
            continue;
        };
        let at = *places.entry(piece.name.clone()).or_insert(found.len());
        if at == found.len() {
            let (name, shape) = (piece.name.clone(), piece.shape.clone());
            found.push(Ok(StoredTensor { name, shape, pieces: Vec::new() }));
        }
        if let Ok(tensor) = &mut found[at] {
            tensor.pieces.push((role, piece));
        }
    }
    found
}

/// Checks that `found` (name to shape) has every tensor of the model with its shape and no other.
///
/// # Errors
/// Names the first missing, wrongly shaped and extra tensors.
pub(crate) fn check(
    path: &Path,
    architecture: &str,
    settings: &ArchConfig,
    holding: Holding,
    found: &BTreeMap<&str, &[usize]>,
) -> Result<()> {
    let mut missing = Vec::new();
    let mut misshapen = Vec::new();
    let mut matched = 0;
    for wanted in tensors(path, architecture, settings, holding) {
        let StoredTensor { name: wanted, shape, pieces } = wanted?;
        let unused = |(role, _): &(TensorRole, Piece)| match role {
            TensorRole::Layer(_, role) => role.is_unused(),
            _ => false,
        };
        match found.get(wanted.as_str()) {
            None if pieces.iter().all(unused) => {}
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
    let has_more = complete && matched < found.len();
    let extra = if has_more { extra(settings, holding, found) } else { Vec::new() };
    let is_more = !extra.is_empty();
    let not_of = format!("not of a plain {architecture} model");
    let kinds = [("missing", missing), ("wrongly shaped", misshapen), (not_of.as_str(), extra)];
    let details: Vec<_> =
        kinds.iter().filter(|(_, names)| !names.is_empty()).map(summary).collect();
    if details.is_empty() {
        return Ok(());
    }
    let expected = format!("those of {} blocks of width {}", settings.layers, settings.width);
    let found = details.join("; ");
    // Tensors of another kind are a model of another kind; what the settings promise and the file
    // lacks is damage.
    Err(match is_more {
        true => FormatError::unsupported(path, "tensors", expected, found),
        false => FormatError::damaged(path, "tensors", expected, found),
    })
}

/// Only called when the file has nearly all tensors of the settings, so the list below is of the
/// file's size.
fn extra(settings: &ArchConfig, holding: Holding, found: &BTreeMap<&str, &[usize]>) -> Vec<String> {
    let names = TensorRole::all(settings).filter_map(|role| holding.name(settings, role));
    let wanted: BTreeSet<String> = names.collect();
    found.keys().filter(|name| !wanted.contains(**name)).map(|name| quote(name)).collect()
}

fn summary((what, names): &(&str, Vec<String>)) -> String {
    let more = names.len().saturating_sub(NAMED_AT_MOST);
    let named = names[..names.len() - more].join(", ");
    let tail = if more == 0 { "" } else { " and more" };
    format!("{what}: {named}{tail}")
}
