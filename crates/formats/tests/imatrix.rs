//! Importance matrices in the file form of llama.cpp: what is written is read, and files that lie
//! are refused by field.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use formats::gguf::{GgmlType, Gguf, GgufValue, Imatrix, ImatrixEntry, TensorToWrite, write};

const KIND: &str = "general.type";
const IMATRIX: &str = "imatrix";

fn some() -> Imatrix {
    let entry = |m: usize, d: usize| ImatrixEntry {
        counts: (0..m).map(|i| i as f32 * 7.0).collect(),
        sums: (0..m * d).map(|i| if i < d { 0.0 } else { i as f32 * 0.25 }).collect(),
    };
    let one = ImatrixEntry { counts: vec![512.0], sums: vec![0.5, 0.0, 3.25] };
    Imatrix {
        datasets: vec!["data/corpus".to_owned()],
        chunk_count: 2,
        chunk_size: 256,
        entries: BTreeMap::from([
            ("blk.0.attn_q.weight".to_owned(), one),
            ("blk.0.ffn_up_exps.weight".to_owned(), entry(4, 6)),
        ]),
    }
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("some.gguf");
    some().write(&path).expect("writes");
    assert_eq!(Imatrix::read(&path).expect("reads"), some());
    let file = Gguf::open(&path).expect("a GGUF file");
    assert_eq!(file.tensor("blk.0.ffn_up_exps.weight.in_sum2").expect("there").shape, [4, 6]);
    assert_eq!(file.tensor("blk.0.ffn_up_exps.weight.counts").expect("there").shape, [4, 1]);
    let none = Imatrix { entries: BTreeMap::new(), ..some() };
    let said = none.write(&path).expect_err("taken").to_string();
    assert!(said.contains("choose another path"), "{said}");
    assert_eq!(Imatrix::read(&path).expect("as it was"), some());
    fs::remove_file(&path).expect("goes");
    none.write(&path).expect("writes");
    let said = Imatrix::read(&path).expect_err("nothing in it").to_string();
    assert!(said.contains("at least one entry"), "{said}");
    let mut uneven = some();
    uneven.entries.insert("x".into(), ImatrixEntry { counts: vec![1.0; 2], sums: vec![1.0; 3] });
    let said = uneven.write(&path).expect_err("no whole rows").to_string();
    assert!(said.contains("each of 2 matrices"), "{said}");
}

/// A file of these settings and F32 tensors.
fn file(path: &Path, kind: &str, tensors: &[(&str, &[usize], &[f32])]) {
    let settings = [(KIND.to_owned(), GgufValue::String(kind.to_owned()))];
    let listed: Vec<TensorToWrite> = tensors
        .iter()
        .map(|(name, shape, _)| TensorToWrite {
            name: (*name).to_owned(),
            kind: GgmlType::F32,
            shape: shape.to_vec(),
        })
        .collect();
    // Each case in the place of the one before.
    let _ = fs::remove_file(path);
    write(path, &settings, &listed, |i| {
        Ok(tensors[i].2.iter().flat_map(|value| value.to_le_bytes()).collect())
    })
    .expect("writes");
}

#[test]
fn files_that_lie_are_refused() {
    type Tensors<'a> = &'a [(&'a str, &'a [usize], &'a [f32])];
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bad.gguf");
    let sums: (&str, &[usize], &[f32]) = ("a.in_sum2", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let counts: (&str, &[usize], &[f32]) = ("a.counts", &[2, 1], &[5.0, 6.0]);
    let cases: &[(&str, Tensors<'_>, &[&str])] = &[
        ("model", &[sums, counts], &["general.type", "\"model\"", "imatrix"]),
        (IMATRIX, &[], &["at least one entry"]),
        (IMATRIX, &[sums], &["a.in_sum2", "no \"a.counts\""]),
        (IMATRIX, &[counts], &["\"a.counts\"", "NAME.in_sum2"]),
        (IMATRIX, &[sums, counts, ("b.weight", &[1], &[1.0])], &["b.weight"]),
        (IMATRIX, &[sums, ("a.counts", &[1, 2], &[1.0, 1.0])], &["[m, 1]", "[1, 2]"]),
        (IMATRIX, &[sums, ("a.counts", &[3, 1], &[1.0; 3])], &["[3, d]", "[2, 2]"]),
        (IMATRIX, &[sums, ("a.counts", &[1], &[1.0])], &["[1, d]", "[2, 2]"]),
        (IMATRIX, &[counts, ("a.in_sum2", &[2, 1, 2], &[1.0; 4])], &["[2, 1, 2]"]),
        (IMATRIX, &[counts, ("a.in_sum2", &[2, 1], &[1.0, -2.0])], &["negative", "-2"]),
        (IMATRIX, &[sums, ("a.counts", &[2, 1], &[1.0, -1.0])], &["a.counts", "-1"]),
        (IMATRIX, &[sums, ("a.counts", &[2, 1], &[1.0, 0.0])], &["a.counts", "matrix 1"]),
        (IMATRIX, &[sums, ("a.counts", &[2, 1], &[1.0, 0.5])], &["a.counts", "whole", "0.5"]),
        (IMATRIX, &[counts, ("a.in_sum2", &[2, 1], &[f32::NAN, 1.0])], &["a.in_sum2", "NaN"]),
        (IMATRIX, &[sums, ("a.counts", &[2, 1], &[f32::INFINITY, 1.0])], &["a.counts", "inf"]),
    ];
    for (kind, tensors, needles) in cases {
        file(&path, kind, tensors);
        let said = Imatrix::read(&path).expect_err("lies").to_string();
        assert!(needles.iter().all(|needle| said.contains(needle)), "{needles:?}: {said}");
    }
    fs::remove_file(&path).expect("goes");
    some().write(&path).expect("writes");
    let whole = std::fs::read(&path).expect("reads");
    for length in [0, 3, 23, 100, whole.len() - 32] {
        std::fs::write(&path, &whole[..length]).expect("writes");
        Imatrix::read(&path).expect_err("a cut file");
    }
    // The form that llama-imatrix wrote before GGUF: a count of entries, then their names.
    std::fs::write(&path, [1, 0, 0, 0, 1, 0, 0, 0, b'a', 1, 0, 0, 0]).expect("writes");
    let said = Imatrix::read(&path).expect_err("of old").to_string();
    assert!(said.contains("magic"), "{said}");
    fs::remove_file(&path).expect("goes");
    let half = TensorToWrite { name: "a.in_sum2".into(), kind: GgmlType::F16, shape: vec![1] };
    let settings = [(KIND.to_owned(), GgufValue::String(IMATRIX.to_owned()))];
    let counts = TensorToWrite { name: "a.counts".into(), kind: GgmlType::F32, shape: vec![1] };
    let data = |i: usize| Ok(vec![0; [2, 4][i]]);
    write(&path, &settings, &[half, counts], data).expect("writes");
    let said = Imatrix::read(&path).expect_err("halves").to_string();
    assert!(said.contains("F16") && said.contains("F32"), "{said}");
}
