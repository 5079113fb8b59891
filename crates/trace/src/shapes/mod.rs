//! Traces in the forms of other programs. Each holds less than a trace does; what it cannot hold
//! is refused, and what it does not say is 0.

mod megatron;
mod sglang;
mod vllm;

use std::collections::BTreeMap;
use std::path::Path;

use crate::read::MOST_TARGETS;
use crate::table::{RoutingDecision, Trace};
use crate::{TraceError, read, write};

pub use megatron::{from_megatron, to_megatron};
pub use sglang::{from_sglang, to_sglang};
pub use vllm::{from_vllm, to_vllm};

/// The form of a file of decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceForm {
    /// A table of decisions; the only form that holds all.
    Parquet,
    /// JSON lines of Megatron-Core's router traces.
    Megatron,
    /// The routed experts in a response of vLLM.
    Vllm,
    /// Counts of SGLang's recorder of expert distributions.
    Sglang,
}

/// Most bytes of a JSON file.
const MOST_BYTES: u64 = 1 << 30;

/// What a file tells.
#[expect(clippy::large_enum_variant, reason = "there is one for each file that is read")]
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Decisions about single rows.
    Trace(Trace),
    /// How often experts were chosen, `[steps][layers][experts]`, and nothing of rows.
    Counts(Vec<Vec<Vec<u64>>>),
}

/// Reads a file by what it holds: Parquet, JSON lines of Megatron, a response of vLLM, or counts of
/// SGLang.
///
/// # Errors
/// A file that is none of these.
pub fn open(path: &Path) -> Result<Told, TraceError> {
    let bytes = files::open(path).and_then(|mut file| {
        let mut first = [0; 4];
        let read = std::io::Read::read(&mut file, &mut first)?;
        Ok(first[..read].to_vec())
    });
    if bytes.map_err(TraceError::io("reading", path))? == *b"PAR1" {
        return read(path).map(Told::Trace);
    }
    let text = files::read_text(path, MOST_BYTES).map_err(TraceError::io("reading", path))?;
    let first: serde_json::Value = match serde_json::from_str(&text) {
        Ok(whole) => whole,
        Err(_) => text
            .lines()
            .next()
            .and_then(|line| serde_json::from_str(line).ok())
            .ok_or_else(|| unknown(path, "neither Parquet nor JSON"))?,
    };
    if first.get("logical_count").is_some() {
        return from_sglang(&first, path).map(Told::Counts);
    }
    if first.get("top_indices").is_some() {
        return from_megatron(&text, path).map(Told::Trace);
    }
    if first.get("choices").is_some() {
        return from_vllm(&first, path).map(Told::Trace);
    }
    Err(unknown(path, "JSON without logical_count, top_indices and choices"))
}

fn unknown(path: &Path, found: &str) -> TraceError {
    let expected = "Parquet, JSON lines of Megatron, a response of vLLM or counts of SGLang";
    TraceError::format(path, "file", expected, found, "see docs/traces.md for the forms")
}

/// Writes a trace in some form.
///
/// # Errors
/// What the form cannot hold, what the file system refuses.
pub fn save(trace: &Trace, form: TraceForm, path: &Path) -> Result<(), TraceError> {
    let text = match form {
        TraceForm::Parquet => return write(trace, path),
        TraceForm::Megatron => to_megatron(trace)?,
        TraceForm::Vllm => to_vllm(trace)?.to_string(),
        TraceForm::Sglang => to_sglang(trace).to_string(),
    };
    files::write_whole(path, text.as_bytes()).map_err(TraceError::io("writing", path))
}

/// Decisions of routers over experts by step, then by place among all layers that rows go through.
type ByLayer<'a> = BTreeMap<Option<u64>, BTreeMap<(u32, u32), Vec<RoutingDecision<'a>>>>;

fn by_layer(trace: &Trace) -> ByLayer<'_> {
    let mut all = ByLayer::new();
    for decision in trace.iter() {
        let Some(layer) = decision.layer else { continue };
        let place = trace.place(layer, decision.recursion);
        all.entry(decision.step).or_default().entry(place).or_default().push(decision);
    }
    all
}

/// What a row chose, served or not, ascending.
fn chosen(decision: &RoutingDecision<'_>) -> Vec<u32> {
    let mut all = [decision.targets, decision.dropped].concat();
    all.sort_unstable();
    all
}

/// Numbers of a JSON list, each one that a router's target may have and none twice, ascending.
fn experts(list: &serde_json::Value) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for value in list.as_array()? {
        all.push(value.as_u64().filter(|&number| number < MOST_TARGETS.into())? as u32);
    }
    all.sort_unstable();
    all.windows(2).all(|pair| pair[0] < pair[1]).then_some(all)
}

#[cfg(test)]
mod tests;
