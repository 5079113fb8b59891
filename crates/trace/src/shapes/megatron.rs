//! JSON lines of `--moe-routing-trace-path` of Megatron-Core: one record for each step and layer,
//! `{"step", "stage", "block", "layer", "rank", "num_tokens", "topk", "top_indices"}`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::{by_layer, chosen, experts};
use crate::TraceError;
use crate::table::{RoutingDecision, Trace};

/// The records of a trace: layers are numbered as rows go through them, rows stand by sequence and
/// position, and depth routers are left out. Outside of training the step is 0.
///
/// # Errors
/// A layer of which rows took different numbers of experts: a record has one `topk`.
pub fn to_megatron(trace: &Trace) -> Result<String, TraceError> {
    let mut text = String::new();
    for (step, layers) in by_layer(trace) {
        for ((_, layer), rows) in layers {
            let all: Vec<Vec<u32>> = rows.iter().map(chosen).collect();
            let topk = all.first().map_or(0, Vec::len);
            if let Some(other) = all.iter().find(|experts| experts.len() != topk) {
                let reason = format!(
                    "rows of layer {layer} take {topk} experts and {}, expected one number; \
                     write Parquet",
                    other.len()
                );
                return Err(TraceError::Shape { form: "Megatron's JSON lines", reason });
            }
            let record = json!({
                "step": step.map_or(0, |step| step.saturating_sub(1)), "stage": "pre_dispatch",
                "block": "decoder", "layer": layer, "rank": 0,
                "num_tokens": all.len(), "topk": topk, "top_indices": all,
            });
            let _ = writeln!(text, "{record}");
        }
    }
    Ok(text)
}

/// The decisions in such records: ranks become sequences, rows of a record positions, which go on
/// counting through further records of the same step, rank and layer; the token is not known.
///
/// # Errors
/// A line that is no such record, or one of layers that predict several tokens.
pub fn from_megatron(text: &str, path: &Path) -> Result<Trace, TraceError> {
    let mut trace = Trace::default();
    let mut met = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = Line { path, number: number + 1 };
        let record: Value =
            serde_json::from_str(line).map_err(|e| at.bad("record", "JSON", &e.to_string()))?;
        if record["block"].as_str() != Some("decoder") {
            return Err(at.bad("block", "\"decoder\"", &record["block"].to_string()));
        }
        let step = at.whole(&record, "step", 1 << 62)?;
        let rank = at.whole(&record, "rank", 1 << 31)?;
        let layer = at.whole(&record, "layer", 1 << 16)? as u32;
        let rows = record["top_indices"].as_array();
        let rows = rows.ok_or_else(|| at.bad("top_indices", "a list of lists", "none"))?;
        // Several records of a layer in one step are its microbatches: their rows go on counting.
        let next = met.entry((step, rank, layer)).or_insert(0usize);
        let first = *next;
        *next += rows.len();
        for (position, row) in (first..).zip(rows) {
            let targets = experts(row).ok_or_else(|| {
                at.bad("top_indices", "numbers of experts, each once", &row.to_string())
            })?;
            trace.widen(Some(layer), targets.last().map_or(0, |last| last + 1));
            trace.push(RoutingDecision {
                step: Some(step + 1),
                sequence: rank,
                position: position as u32,
                token: 0,
                layer: Some(layer),
                recursion: 0,
                targets: &targets,
                weights: &[],
                dropped: &[],
            });
        }
    }
    Ok(trace)
}

/// A line of a file of records.
struct Line<'a> {
    path: &'a Path,
    number: usize,
}

impl Line<'_> {
    fn bad(&self, field: &str, expected: &str, found: &str) -> TraceError {
        let field = format!("line {}: {field}", self.number);
        let next = "give the router_trace_rank*.jsonl of Megatron-Core as it is";
        TraceError::format(self.path, field, expected, found, next)
    }

    fn whole(&self, record: &Value, name: &str, most: u64) -> Result<u64, TraceError> {
        record[name].as_u64().filter(|&number| number < most).ok_or_else(|| {
            let expected = format!("a whole number below {most}");
            self.bad(name, &expected, &record[name].to_string())
        })
    }
}
