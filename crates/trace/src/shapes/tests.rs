//! Each form by hand, there and back, and what they refuse.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::table::Site;

/// Two sequences of two rows through layer 0 once and layer 1 twice, in the order 0, 1, 1.
fn trace() -> Trace {
    let mut trace = Trace::default();
    let site = |uses: &[u32]| Site { targets: 4, computing: 4, uses: uses.to_vec() };
    trace.sites.insert(Some(0), site(&[2]));
    trace.sites.insert(Some(1), site(&[0, 1]));
    for sequence in 0..2u32 {
        for position in 0..2u32 {
            for (layer, recursion) in [(1, 0), (1, 1), (0, 0)] {
                let first = sequence + recursion;
                trace.push(RoutingDecision {
                    step: None,
                    sequence: sequence.into(),
                    position,
                    token: 10 * sequence + position,
                    layer: Some(layer),
                    recursion,
                    targets: &[first, 3],
                    weights: &[0.75, 0.25],
                    dropped: &[],
                });
            }
        }
    }
    trace
}

fn sets(trace: &Trace) -> Vec<(u64, u32, u32, Vec<u32>)> {
    let one =
        |d: RoutingDecision<'_>| (d.sequence, d.position, d.layer.unwrap_or(9), d.targets.to_vec());
    trace.iter().map(one).collect()
}

#[test]
fn megatron_has_a_record_for_each_layer_that_rows_go_through() {
    let text = to_megatron(&trace()).expect("rectangular");
    let records: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(
        records[1],
        json!({
            "step": 0, "stage": "pre_dispatch", "block": "decoder", "layer": 1, "rank": 0,
            "num_tokens": 4, "topk": 2, "top_indices": [[1, 3], [1, 3], [2, 3], [2, 3]],
        }),
    );
    assert_eq!(records[2]["top_indices"], json!([[0, 3], [0, 3], [1, 3], [1, 3]]));
    let back = from_megatron(&text, Path::new("t.jsonl")).expect("its own form");
    assert_eq!((back.len(), back.get(0).step, back.sites[&Some(2)].targets), (12, Some(1), 4));
    assert_eq!(sets(&back)[6], (0, 2, 1, vec![2, 3]));
    // A second record of the same step and layer goes on where the first ended.
    let twice = from_megatron(&text.repeat(2), Path::new("t.jsonl")).expect("microbatches");
    let positions: Vec<u32> =
        twice.iter().filter(|d| d.layer == Some(0)).map(|d| d.position).collect();
    assert_eq!(positions, (0..8).collect::<Vec<_>>());
    for (from, to, told) in [
        ("\"decoder\"", "\"mtp\"", "block"),
        ("[[0,3]", "[[0,0]", "each once"),
        ("\"layer\":2", "\"layer\":-1", "layer"),
        ("\"step\":0", "\"step\":0.5", "step"),
        ("[[0,3]", "[[0,99999]", "each once"),
        ("[[0,3]", "[[0,3", "JSON"),
    ] {
        let error = from_megatron(&text.replace(from, to), Path::new("t")).expect_err(to);
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[test]
fn rows_of_different_widths_are_refused() {
    let mut ragged = trace();
    ragged.push(RoutingDecision { sequence: 9, targets: &[1], weights: &[], ..trace().get(0) });
    let error = to_megatron(&ragged).expect_err("ragged").to_string();
    assert!(error.contains("2 experts and 1") && error.contains("Parquet"), "{error}");
    let mut ragged = trace();
    ragged.push(RoutingDecision { sequence: 0, position: 2, ..trace().get(0) });
    let error = to_vllm(&ragged).expect_err("ragged").to_string();
    assert!(error.contains("row 2 of sequence 0"), "{error}");
}

#[test]
fn vllm_has_tokens_layers_and_experts() {
    let value = to_vllm(&trace()).expect("rectangular");
    let second = &value["choices"][1];
    assert_eq!(second["token_ids"], json!([10, 11]));
    assert_eq!(second["routed_experts"][0], json!([[1, 3], [2, 3], [1, 3]]));
    let response = json!({
        "prompt_token_ids": [5, 6], "prompt_routed_experts": [[[1, 0]], [[2, 0]]],
        "choices": [
            { "token_ids": [7, 8], "routed_experts": [[[3, 2]]] },
            { "routed_experts": null },
        ],
    });
    let back = from_vllm(&response, Path::new("r.json")).expect("as documented");
    let rows: Vec<_> = back.iter().map(|d| (d.sequence, d.position, d.token)).collect();
    assert_eq!(rows, [(0, 0, 5), (0, 1, 6), (0, 2, 7), (1, 0, 5), (1, 1, 6)]);
    assert_eq!(sets(&back)[2], (0, 2, 0, vec![2, 3]));
    let saved = json!({ "choices": [{ "text": "the" }] });
    let error = from_vllm(&saved, Path::new("r.json")).expect_err("no experts").to_string();
    assert!(error.contains("routed_experts") && error.contains("found none"), "{error}");
    let bad = json!({ "choices": [{ "routed_experts": "AAEC" }] });
    let error = from_vllm(&bad, Path::new("r.json")).expect_err("base64").to_string();
    assert!(error.contains("routed_experts") && error.contains("nested lists"), "{error}");
}

#[test]
fn sglang_has_counts() {
    let value = to_sglang(&trace());
    assert_eq!(
        value,
        json!({ "logical_count": [[[2, 2, 0, 4], [0, 2, 2, 4], [2, 2, 0, 4]]] }),
        "in the order of layers"
    );
    let counts = from_sglang(&value, Path::new("c.json")).expect("its own form");
    assert_eq!((counts.len(), counts[0].len(), &counts[0][2][..]), (1, 3, &[2, 2, 0, 4][..]));
    let flat = json!({ "logical_count": [[1, 2], [3, 4]] });
    assert_eq!(from_sglang(&flat, Path::new("c")).expect("one step"), [[[1, 2], [3, 4]]]);
    for bad in [
        json!([[1, 2], [3]]),
        json!([[-1]]),
        json!("x"),
        json!([[[1]], [[1], [2]]]),
        json!([]),
        json!([[]]),
        json!([[u64::MAX, 1]]),
        json!([[1u64 << 63, 1]]),
    ] {
        let value = json!({ "logical_count": bad });
        let error = from_sglang(&value, Path::new("c.json")).expect_err("no counts").to_string();
        assert!(error.contains("logical_count"), "{error}");
    }
}
