//! `logical_count` of SGLang's recorder of expert distributions, `[steps, layers, experts]`, as the
//! JSON that its `--init-expert-location` reads.

use std::path::Path;

use serde_json::{Value, json};

use super::{by_layer, chosen};
use crate::TraceError;
use crate::table::Trace;

/// How often each expert was chosen, by step and by layer in the order in which rows go through
/// them. Layers with fewer experts than others have zeros behind theirs.
pub fn to_sglang(trace: &Trace) -> Value {
    let all = by_layer(trace);
    let experts = trace.sites.iter().filter(|(layer, _)| layer.is_some());
    let experts = experts.map(|(_, site)| site.targets as usize).max().unwrap_or(0);
    let mut places: Vec<(u32, u32)> =
        all.values().flat_map(|layers| layers.keys().copied()).collect();
    places.sort_unstable();
    places.dedup();
    let mut steps = Vec::new();
    for layers in all.values() {
        let mut counts = vec![vec![0u64; experts]; places.len()];
        for (counts, place) in counts.iter_mut().zip(&places) {
            for decision in layers.get(place).into_iter().flatten() {
                chosen(decision).iter().for_each(|&target| counts[target as usize] += 1);
            }
        }
        steps.push(counts);
    }
    json!({ "logical_count": steps })
}

/// The counts in such a file; a file of one step may leave the axis of steps out.
///
/// # Errors
/// Something else than counts of equally many layers and experts.
pub fn from_sglang(value: &Value, path: &Path) -> Result<Vec<Vec<Vec<u64>>>, TraceError> {
    let counts = &value["logical_count"];
    let steps: Result<Vec<Vec<Vec<u64>>>, _> = serde_json::from_value(counts.clone());
    let steps = steps.or_else(|_| serde_json::from_value(counts.clone()).map(|one| vec![one]));
    let steps = steps.map_err(|error| no_counts(path, error.to_string()))?;
    let widths = steps.iter().map(|step| step.iter().map(Vec::len).collect::<Vec<_>>());
    let widths: Vec<Vec<usize>> = widths.collect();
    let whole = widths.windows(2).all(|pair| pair[0] == pair[1])
        && widths.iter().all(|one| one.windows(2).all(|pair| pair[0] == pair[1]));
    if !whole {
        return Err(no_counts(path, "lists of different lengths".into()));
    }
    if widths.iter().flatten().all(|&experts| experts == 0) {
        return Err(no_counts(path, "no count at all".into()));
    }
    let mut all = steps.iter().flatten().flatten().copied();
    if all.try_fold(0u64, u64::checked_add).is_none_or(|sum| sum > 1 << 63) {
        return Err(no_counts(path, "counts whose sum is above 2^63".into()));
    }
    Ok(steps)
}

fn no_counts(path: &Path, found: String) -> TraceError {
    let expected = "counts [steps, layers, experts]";
    TraceError::format(path, "logical_count", expected, found, "write it as nested lists")
}
