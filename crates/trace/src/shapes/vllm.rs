//! `prompt_routed_experts` and `choices[].routed_experts` of vLLM's responses
//! (`--enable-return-routed-experts`, as of 0.21): `[tokens][layers][top_k]`, where the last token
//! that was generated went through no layer.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{chosen, experts};
use crate::TraceError;
use crate::table::{RoutingDecision, Trace};

/// The token of a row, and what it chose at each place among the layers.
type PlacedRow = (u32, BTreeMap<(u32, u32), Vec<u32>>);

/// The whole of each sequence as a choice of a response, with its tokens: a trace does not say
/// where prompts end. Layers are numbered as rows go through them; depth routers are left out.
///
/// # Errors
/// Rows that went through different numbers of layers, or took different numbers of experts: the
/// lists are rectangular.
pub fn to_vllm(trace: &Trace) -> Result<Value, TraceError> {
    let mut sequences: BTreeMap<_, BTreeMap<u32, PlacedRow>> = BTreeMap::new();
    for decision in trace.iter() {
        let Some(layer) = decision.layer else { continue };
        let rows = sequences.entry((decision.step, decision.sequence)).or_default();
        let row = rows.entry(decision.position).or_insert((decision.token, BTreeMap::new()));
        row.1.insert(trace.place(layer, decision.recursion), chosen(&decision));
    }
    let mut choices = Vec::new();
    for (index, ((_, sequence), rows)) in sequences.iter().enumerate() {
        let (mut tokens, mut routed) = (Vec::new(), Vec::new());
        for (expected, (&position, (token, layers))) in rows.iter().enumerate() {
            if position as usize != expected {
                let found = format!("sequence {sequence} has no position {expected}");
                return Err(refused(found));
            }
            tokens.push(*token);
            routed.push(layers.values().collect::<Vec<_>>());
        }
        let first = routed.first().map(|row| widths(row)).unwrap_or_default();
        if let Some(at) = routed.iter().position(|row| widths(row) != first) {
            return Err(refused(format!(
                "row {at} of sequence {sequence} took other numbers of layers or experts than its \
                 first row"
            )));
        }
        choices.push(json!({ "index": index, "token_ids": tokens, "routed_experts": routed }));
    }
    Ok(json!({ "choices": choices }))
}

/// The decisions in a response: its choices become sequences, each behind the prompt. Tokens are
/// known where the response has `prompt_token_ids` and `token_ids`.
///
/// # Errors
/// Something else than lists `[tokens][layers][top_k]`, or a response without any.
pub fn from_vllm(value: &Value, path: &Path) -> Result<Trace, TraceError> {
    let mut trace = Trace::default();
    let none = Vec::new();
    let choices = value["choices"].as_array().unwrap_or(&none);
    for (number, choice) in choices.iter().enumerate() {
        let mut position = 0u32;
        // vLLM tells of the prompt beside the choices, Lathe's server in each of them.
        let own = !choice["prompt_routed_experts"].is_null();
        let parts = [
            ("prompt_routed_experts", if own { choice } else { value }, "prompt_token_ids"),
            ("routed_experts", choice, "token_ids"),
        ];
        for (field, of, tokens) in parts {
            if of[field].is_null() {
                continue;
            }
            let rows = of[field].as_array().ok_or_else(|| no_lists(path, field, &of[field]))?;
            for (i, row) in rows.iter().enumerate() {
                let token = of[tokens].get(i).and_then(Value::as_u64).unwrap_or(0) as u32;
                for (layer, list) in
                    row.as_array().ok_or_else(|| no_lists(path, field, row))?.iter().enumerate()
                {
                    let targets = experts(list).ok_or_else(|| no_lists(path, field, list))?;
                    let layer = Some(layer as u32);
                    trace.widen(layer, targets.last().map_or(0, |last| last + 1));
                    trace.push(RoutingDecision {
                        step: None,
                        sequence: number as u64,
                        position,
                        token,
                        layer,
                        recursion: 0,
                        targets: &targets,
                        weights: &[],
                        dropped: &[],
                    });
                }
                position += 1;
            }
        }
    }
    if trace.is_empty() {
        let next = "serve with --enable-return-routed-experts (vLLM), or ask a server of Lathe \
                    with lathe.return_routed_experts";
        let expected = "experts [tokens][layers][top_k]";
        return Err(TraceError::format(path, "routed_experts", expected, "none", next));
    }
    Ok(trace)
}

fn refused(reason: String) -> TraceError {
    TraceError::Shape { form: "vLLM's routed_experts", reason: format!("{reason}; write Parquet") }
}

/// How many experts a row took in each layer.
fn widths(row: &[&Vec<u32>]) -> Vec<usize> {
    row.iter().map(|experts| experts.len()).collect()
}

fn no_lists(path: &Path, field: &str, found: &Value) -> TraceError {
    let next = "give a response of vLLM 0.21 with nested lists";
    TraceError::format(path, field, "experts [tokens][layers][top_k]", found.to_string(), next)
}
