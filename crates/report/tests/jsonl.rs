//! The run log: cutting back, torn lines, exact bytes.

use std::fs;

use report::{Log, LogError, Record, jsonl};
use serde_json::{Value, json};

fn record(value: Value) -> Record {
    match value {
        Value::Object(record) => record,
        other => panic!("no object: {other}"),
    }
}

fn steps(records: &[Record]) -> Vec<Option<u64>> {
    records.iter().map(|record| record.get("step").and_then(Value::as_u64)).collect()
}

#[test]
fn written_records_read_back_with_order_and_exact_floats() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.jsonl");
    let mut log = Log::open(&path, None).unwrap();
    let first = record(
        json!({"step": 1, "zeta": 0.1 + 0.2, "alpha": 1.0, "tiny": 5e-324, "f": 0.1f32 as f64}),
    );
    let second = record(json!({"event": "done", "note": "a\nb\u{2028}"}));
    log.write(&first).unwrap();
    log.write(&second).unwrap();
    log.sync().unwrap();
    assert_eq!(
        fs::read_to_string(&path).unwrap().lines().next().unwrap(),
        r#"{"step":1,"zeta":0.30000000000000004,"alpha":1.0,"tiny":5e-324,"f":0.10000000149011612}"#
    );
    let contents = jsonl::read(&path).unwrap();
    assert_eq!(contents.records, [first, second]);
    assert_eq!(contents.torn, None);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[test]
fn random_floats_survive_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.jsonl");
    let mut log = Log::open(&path, None).unwrap();
    let mut state = 7u64;
    let mut written = Vec::new();
    for step in 0..5000u64 {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = f64::from_bits(state);
        if value.is_finite() {
            log.write(&record(json!({"step": step, "x": value}))).unwrap();
            written.push(value.to_bits());
        }
    }
    let back: Vec<u64> = jsonl::read(&path)
        .unwrap()
        .records
        .iter()
        .map(|record| record["x"].as_f64().unwrap().to_bits())
        .collect();
    assert_eq!(back, written);
}

#[test]
fn resuming_drops_later_steps_and_continues_identically() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, resumed) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl"));
    let write =
        |path: &std::path::Path, keep: Option<u64>, steps: std::ops::RangeInclusive<u64>| {
            let mut log = Log::open(path, keep).unwrap();
            for step in steps {
                log.write(&record(json!({"step": step, "loss": 1.0 / step as f64}))).unwrap();
            }
        };
    write(&straight, None, 1..=9);
    write(&resumed, None, 1..=6);
    fs::OpenOptions::new()
        .append(true)
        .open(&resumed)
        .map(|mut f| std::io::Write::write_all(&mut f, b"{\"st"))
        .unwrap()
        .unwrap();
    write(&resumed, Some(4), 5..=9);
    assert_eq!(fs::read(&straight).unwrap(), fs::read(&resumed).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside the logs");
}

#[test]
fn cutting_keeps_foreign_bytes_and_events_without_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.jsonl");
    let kept = "{ \"event\":\"start\" }\n{\"step\" : 2,\"x\":1.50}\n";
    fs::write(&path, format!("{kept}{{\"event\":\"eval\",\"step\":3}}\n{{\"step\":4}}\n")).unwrap();
    Log::open(&path, Some(2)).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), kept);
    Log::open(&path, Some(0)).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{ \"event\":\"start\" }\n");
}

#[test]
fn every_cut_of_the_last_line_is_torn_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.jsonl");
    let (head, tail) = ("{\"step\":1}\n", "{\"step\":22,\"loss\":3.5}\n");
    for cut in 1..tail.len() {
        fs::write(&path, format!("{head}{}", &tail[..cut])).unwrap();
        let contents = jsonl::read(&path).unwrap();
        assert_eq!(steps(&contents.records), [Some(1)]);
        assert_eq!(contents.torn, Some(report::TornLine { line: 2, bytes: cut }));
        let mut log = Log::open(&path, None).unwrap();
        log.write(&record(json!({"step": 2}))).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{head}{{\"step\":2}}\n"));
    }
    fs::write(&path, b"{\"step\":1}\n\0\0\0\0\n").unwrap();
    assert_eq!(jsonl::read(&path).unwrap().torn, Some(report::TornLine { line: 2, bytes: 5 }));
}

#[test]
fn a_bad_line_in_the_middle_is_named_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.jsonl");
    for bad in [
        "garbage",
        "[1]",
        "{\"step\":-1}",
        "{\"step\":1.5}",
        "{\"loss\":1}",
        "{\"event\":3}",
        "\u{fffd}",
        "",
    ] {
        let text = format!("{{\"step\":1}}\n{bad}\n{{\"step\":9}}\n");
        fs::write(&path, &text).unwrap();
        let error = jsonl::read(&path).unwrap_err();
        assert!(matches!(&error, LogError::BadLine { line: 2, .. }), "{bad}: {error}");
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(matches!(Log::open(&path, Some(1)), Err(LogError::BadLine { line: 2, .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn records_without_step_or_event_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(&dir.path().join("run.jsonl"), None).unwrap();
    for bad in
        [json!({"loss": 1.0}), json!({"step": -1}), json!({"step": "1"}), json!({"event": 1})]
    {
        assert!(matches!(log.write(&record(bad)), Err(LogError::BadRecord { .. })));
    }
    assert_eq!(fs::metadata(log.path()).unwrap().len(), 0);
}

#[test]
fn missing_files_and_directories() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(jsonl::read(&dir.path().join("none")), Err(LogError::Io { .. })));
    assert!(matches!(Log::open(&dir.path().join("no/run.jsonl"), None), Err(LogError::Io { .. })));
    assert!(Log::open(&dir.path().join("new.jsonl"), Some(3)).is_ok());
}
