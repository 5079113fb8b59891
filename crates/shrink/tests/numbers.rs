//! Rounding that makes up for its errors: nearer to the source than rounding to the nearest, in the
//! very same formats and files.

mod common;

use checkpoint::RealDisk;
use common::{dense, logits, made, of_experts, refusal, rows, stored, stored_with};
use model::params::Group;
use model::{ModelConfig, Sharing};
use serde_json::json;
use shrink::shrink;
use testkit::same_bits;

/// A model of several groups a row.
fn wide() -> ModelConfig {
    ModelConfig {
        width: 96,
        heads: 6,
        kv_heads: 3,
        head_dim: 16,
        ffn: 160,
        ..dense(Sharing::None, 2, 1)
    }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn products_are_nearer_than_with_rounding_to_the_nearest() {
    let folder = tempfile::tempdir().expect("a folder");
    let experts = of_experts(wide(), 4, 2);
    let shared = ModelConfig { layers: 4, sharing: Sharing::Cycle, recursions: 2, ..wide() };
    for (i, config) in [wide(), experts, shared].into_iter().enumerate() {
        for weights in ["int8-row", "int4", "int4-g64", "int3", "int2-g64"] {
            let name = format!("{i}{weights}");
            let from = stored(&folder.path().join(&name), &config);
            let source = logits(&from);
            // The nearest: what loading with these formats does.
            from.model.quantize(&weights.parse().expect("formats")).expect("fits");
            let nearest = logits(&from);
            let from = stored(&folder.path().join(format!("{name}-round")), &config);
            let table = json!({ "kind": "round", "weights": weights });
            let out = folder.path().join(format!("{name}-rounded"));
            let (after, rounded) = made(from, &[table], &out);
            same_bits(&logits(&after), &nearest, "the control rounds as loading does");
            let told = &rounded.passes[0].went;
            let most = format!("matrices in {weights}");
            assert!(told.len() <= 2 && told.iter().any(|told| told.ends_with(&most)), "{told:?}");
            let from = stored(&folder.path().join(format!("{name}-again")), &config);
            let table = json!({ "kind": "gptq", "weights": weights });
            let (after, report) = made(from, &[table], &folder.path().join(format!("{name}-out")));
            let found = logits(&after);
            let [ours, theirs] = [&found, &nearest].map(|logits| distance(logits, &source));
            // With 8 bits much is the rounding of activations, which both have; with 2 bits errors
            // are no longer small enough to add up.
            let share = if ["int8-row", "int2-g64"].contains(&weights) { 0.97 } else { 0.9 };
            assert!(ours < share * theirs, "{name}: {ours}, {theirs} with the nearest");
            assert_eq!(after.rounded.as_ref().map(ToString::to_string), Some(weights.to_owned()));
            let most = if weights == "int8-row" { 0.3 } else { 0.2 };
            assert!((report.bytes_after as f64) < most * report.bytes_before as f64, "{report:?}");
            let control = report.passes[0].control_bits_per_byte;
            assert_eq!(control, rounded.passes[0].bits_per_byte, "{name}: the control");
            assert!(control.is_some() && rounded.passes[0].control_bits_per_byte.is_none());
            assert_eq!(report.bytes_after, rounded.bytes_after, "{name}");
            let layers = &report.passes[0].layers;
            assert!(layers.iter().all(|layer| layer.error.is_some_and(|error| error > 0.0)));
            assert_eq!(layers.len(), 2, "{report:?}");
        }
    }
}

/// Experts that no row takes, or too few, are rounded as they are, by the rule of `quantize`, and
/// are named.
#[test]
fn what_no_row_meets_is_rounded_to_the_nearest() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = of_experts(wide(), 4, 1);
    // Expert 3 is never chosen.
    let never = |spec: &model::params::ParamSpec, data: &mut Vec<f32>| {
        if spec.name.ends_with("router.score") {
            let row = data.len() / 4;
            data.copy_within(2 * row.., row);
            data.copy_within(2 * row..3 * row, 3 * row);
        }
    };
    for (i, weights) in ["int8-row", "int4"].into_iter().enumerate() {
        let from = stored_with(&folder.path().join(i.to_string()), &config, never);
        from.model.quantize(&weights.parse().expect("formats")).expect("fits");
        let nearest = common::weight(&from, "layers.0.experts_down");
        let from = stored_with(&folder.path().join(format!("{i}-again")), &config, never);
        let table = json!({ "kind": "gptq", "weights": weights });
        let (after, report) = made(from, &[table], &folder.path().join(format!("{i}-out")));
        let found = common::weight(&after, "layers.0.experts_down");
        let each = found.len() / 4;
        assert_eq!(found[3 * each..], nearest[3 * each..], "{weights}");
        let unseen = &report.passes[0].layers[0].unseen;
        assert!(
            unseen.contains(&"experts_down 3: rounded to the nearest".to_owned()),
            "{unseen:?}"
        );
        assert_eq!(report.passes[0].layers[0].expert_rows[3], 0);
        let most = report.passes[0].layers[0].expert_rows.iter().max().expect("experts");
        let table = json!({ "kind": "gptq", "weights": weights, "least_rows": most });
        let from = stored_with(&folder.path().join(format!("{i}-enough")), &config, never);
        let (_, enough) = made(from, &[table], &folder.path().join(format!("{i}-enough-out")));
        assert!(
            enough.passes[0].layers[0].unseen.len() < 8,
            "{weights}: as many rows as asked for"
        );
        // More than any expert took, and fewer than attention met.
        let table = json!({ "kind": "gptq", "weights": weights, "least_rows": most + 1 });
        let from = stored_with(&folder.path().join(format!("{i}-few")), &config, never);
        let out = folder.path().join(format!("{i}-few-out"));
        let (after, report) = made(from, &[table], &out);
        assert_eq!(common::weight(&after, "layers.0.experts_down"), nearest, "{weights}");
        let few = format!(" after {most} of {} rows", most + 1);
        let unseen = &report.passes[0].layers[0].unseen;
        assert!(unseen.len() == 8 && unseen.iter().any(|told| told.ends_with(&few)), "{unseen:?}");
    }
}

#[test]
fn what_cannot_be_rounded_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases = [
        (json!({ "kind": "gptq", "weights": "int5" }), ["gptq: weights", "int5"]),
        (json!({ "kind": "gptq", "weights": "f32" }), ["gptq: weights", "fewer bits"]),
        (json!({ "kind": "gptq", "weights": "int4,absent.*=int8" }), ["gptq: weights", "absent"]),
        (json!({ "kind": "gptq", "damping": 0.0 }), ["gptq: damping", "above 0"]),
        (json!({ "kind": "gptq", "damping": 1.5 }), ["gptq: damping", "at most 1"]),
        (json!({ "kind": "gptq", "least_rows": 0 }), ["gptq: least_rows", "1 or more"]),
        (json!({ "kind": "gptq", "least_rows": 1u64 << 40 }), ["calibration text", "least_rows"]),
        (json!({ "kind": "gptq", "weights": "int2,embed=int3" }), ["gptq: weights", "embed"]),
        (json!({ "kind": "round", "weights": "int9" }), ["round: weights", "int9"]),
        (json!({ "kind": "round", "weights": "f32" }), ["round: weights", "fewer bits"]),
        (json!({ "kind": "round", "weights": "int4,no=int8" }), ["round: weights", "no"]),
    ];
    for (i, (table, needles)) in cases.into_iter().enumerate() {
        let from = stored(&folder.path().join(i.to_string()), &wide());
        let said = refusal(from, table.clone(), &rows(), &folder.path().join("out"));
        assert!(needles.iter().all(|needle| said.contains(needle)), "{table}: {said}");
    }
    let from = stored(&folder.path().join("two"), &wide());
    let passes = ["gptq", "slim"].map(|kind| common::pass(json!({ "kind": kind })));
    let out = folder.path().join("out");
    let error =
        shrink(from, &passes, &rows(), 1, &out, &RealDisk).expect_err("rounded").to_string();
    assert!(error.contains("slim") && error.contains("last") && !out.exists(), "{error}");
}

/// Within the budget, and between the formats that are mixed: nearer than all in the smaller.
#[test]
fn mixed_formats_meet_their_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    for (i, config) in [wide(), of_experts(wide(), 4, 2)].into_iter().enumerate() {
        let run = |name: &str, table: serde_json::Value| {
            let from = stored(&folder.path().join(format!("{i}{name}")), &config);
            let source = logits(&from);
            let (after, report) =
                made(from, &[table], &folder.path().join(format!("{i}{name}-out")));
            (distance(&logits(&after), &source), report, after.rounded.map(|f| f.to_string()))
        };
        let (four, small, _) = run("four", json!({ "kind": "gptq", "weights": "int4" }));
        let (eight, large, _) = run("eight", json!({ "kind": "gptq", "weights": "int8" }));
        let (mixed, report, formats) = run("mixed", json!({ "kind": "mixed", "bits": 6.5 }));
        let formats = formats.expect("rounded");
        assert!(formats.contains("int4") && formats.contains("int8"), "{formats}");
        assert!(mixed < four && mixed > eight, "{four} {mixed} {eight}");
        let control = report.passes[0].control_bits_per_byte;
        assert!(control.is_some_and(|control| control > 0.0), "{report:?}");
        let bytes = report.bytes_after;
        assert!(bytes > small.bytes_after && bytes < large.bytes_after, "{report:?}");
        let weights = model::table::specs(&config, &config.check().expect("legal"));
        let numbers: usize =
            weights.iter().filter(|spec| spec.group == Group::Block).map(|spec| spec.count()).sum();
        // Embedding, norms and routers are the same with all of int4.
        let rest = small.bytes_after as f64
            - weights
                .iter()
                .filter(|spec| spec.group == Group::Block)
                .map(|spec| {
                    let format = "int4".parse().expect("a format");
                    train::stored_bytes(spec, Some(format)).expect("fits") as f64
                })
                .sum::<f64>();
        assert!((bytes as f64 - rest) * 8.0 / numbers as f64 <= 6.5 + 1e-9, "{report:?}");
    }
    let cases = [
        (json!({ "kind": "mixed", "formats": ["int4"] }), ["mixed: formats", "two"]),
        (json!({ "kind": "mixed", "formats": ["int4", "int4"] }), ["mixed: formats", "once"]),
        (json!({ "kind": "mixed", "formats": ["int4", "int5"] }), ["mixed: formats", "int5"]),
        (json!({ "kind": "mixed", "bits": 3.0 }), ["mixed: bits", "5.0"]),
        (json!({ "kind": "mixed", "least_rows": 0 }), ["least_rows", "1 or more"]),
        (json!({ "kind": "mixed", "damping": -1.0 }), ["damping", "above 0"]),
    ];
    for (i, (table, needles)) in cases.into_iter().enumerate() {
        let from = stored(&folder.path().join(format!("bad{i}")), &wide());
        let said = refusal(from, table.clone(), &rows(), &folder.path().join("out"));
        assert!(needles.iter().all(|needle| said.contains(needle)), "{table}: {said}");
    }
}
