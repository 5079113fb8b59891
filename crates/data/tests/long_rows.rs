//! Rows that are too long to be held in memory, and texts that a tokenizer cannot encode: refused
//! with file and row.

#[path = "common/names.rs"]
mod names;
#[path = "common/parquet_files.rs"]
mod parquet_files;
#[path = "common/rows.rs"]
mod rows;

use data::Tokenizer;
use data::build::{BuildOptions, build};
use data::documents::{Documents, Input, ReadOptions, list_files};
use names::assert_names;
use parquet_files::{TEXTS, write_parquet};
use rows::{Read, read_rows};
use std::path::Path;

/// What is read of `path` with `most` bytes a row.
fn read_bounded(path: &Path, skip_bad: bool, most: usize) -> Read {
    read_rows(path, ReadOptions { skip_bad, max_row: most, ..ReadOptions::default() })
}

#[test]
fn rows_that_are_too_long() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, format!("{{\"text\":\"one\"}}\n{{\"text\":\"{}\"}}\n", "x".repeat(990)))
        .unwrap();
    assert_eq!(read_bounded(&path, false, 1002).0.len(), 2);
    let (texts, _, error) = read_bounded(&path, false, 1001);
    assert_eq!(texts, ["one"]);
    assert_names("line", error.unwrap(), &["rows.jsonl", "row 2", "1001 bytes", "max_row"]);
    assert_eq!(read_bounded(&path, true, 1001), (vec!["one".to_owned()], 1, None));
    // Values that nobody wants take no memory of their own; here they are only read over.
    let many = format!("{{\"x\":[{}0],\"text\":\"two\"}}\n", "0,".repeat(100_000));
    std::fs::write(&path, many).unwrap();
    assert_eq!(read_bounded(&path, false, 1 << 20).0, ["two"]);

    let path = dir.path().join("rows.parquet");
    let long = "y".repeat(2000);
    write_parquet(&path, TEXTS, &[b"one", long.as_bytes(), b"three"], None);
    assert_eq!(read_bounded(&path, false, 2000).0.len(), 6);
    let (texts, _, error) = read_bounded(&path, false, 1999);
    assert_eq!(texts, ["one"]);
    assert_names("cell", error.unwrap(), &["rows.parquet", "row 2", "1999 bytes", "max_row"]);
    let (texts, skipped, error) = read_bounded(&path, true, 1999);
    assert_eq!((texts.len(), skipped, error), (4, 2, None));
    // The page of the dictionary has more than four times as much.
    let (texts, _, error) = read_bounded(&path, false, 400);
    assert!(texts.is_empty());
    assert_names("page", error.unwrap(), &["rows.parquet", "row 1", "1600", "max_row"]);
    assert!(
        list_files(&[Input::from(&path)], &ReadOptions { max_row: 0, ..Default::default() })
            .is_err()
    );
}

#[test]
fn rows_that_cannot_be_encoded_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, "{\"text\":\"a a\"}\n\n{\"text\":\"b\"}\n{\"text\":\"a\"}\n").unwrap();
    // Words without an unknown one: only "a" can be spelled.
    let json = r#"{"version":"1.0","added_tokens":[{"id":0,"content":"<|endoftext|>",
        "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "pre_tokenizer":{"type":"Whitespace"},
        "model":{"type":"WordLevel","unk_token":"nothing","vocab":{"<|endoftext|>":0,"a":1}}}"#;
    let tokenizer = Tokenizer::from_json(json).unwrap();
    let out = dir.path().join("out");
    let inputs = [Input::from(&path)];
    let error = build(&inputs, &tokenizer, &out, &BuildOptions::default()).unwrap_err();
    assert_names("row", error, &["rows.jsonl", "row 3", "text", "--skip-bad"]);
    let read = ReadOptions { skip_bad: true, ..ReadOptions::default() };
    let options = BuildOptions { read, ..BuildOptions::default() };
    let manifest = build(&inputs, &tokenizer, &out, &options).unwrap();
    assert_eq!((manifest.skipped_rows, manifest.train.total.documents), (1, 2));
    assert!(manifest.skipped_examples[0].contains("row 3"), "{:?}", manifest.skipped_examples);
}

/// What is left out is counted row by row, and the rest of a file is always told.
#[test]
fn rests_of_files_are_counted_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let told = |path: &Path, options: ReadOptions| {
        let options = ReadOptions { skip_bad: true, ..options };
        let files = list_files(&[Input::from(path)], &options).unwrap().files;
        let mut documents = Documents::new(files, options);
        let mut texts = 0;
        for document in documents.by_ref() {
            document.unwrap();
            texts += 1;
        }
        (texts, documents.skipped(), documents.skipped_examples().to_vec())
    };
    // Two groups of 300 rows; the pages of the second one are broken.
    let path = dir.path().join("t.parquet");
    let texts: Vec<String> = (0..300).map(|i| format!("text {i} {}", i * i)).collect();
    let refs: Vec<&[u8]> = texts.iter().map(|t| t.as_bytes()).collect();
    write_parquet(&path, "message m { required binary text (UTF8); }", &refs, None);
    let mut bytes = std::fs::read(&path).unwrap();
    let within = bytes.len() * 5 / 8;
    bytes[within..within + 300].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let (read, skipped, examples) = told(&path, ReadOptions::default());
    assert_eq!((read, skipped, examples.len()), (300, 300, 1), "{examples:?}");
    assert!(examples[0].contains("row 301"), "{examples:?}");
    assert!(examples[0].ends_with("; the 299 rows behind it could not be read either"));

    // A line that is too long is one row; one that does not seem to end is the last.
    let path = dir.path().join("rows.jsonl");
    let line = |length: usize| format!("{{\"text\":\"{}\"}}\n", "x".repeat(length - 12));
    let most = ReadOptions { max_row: 100, ..ReadOptions::default() };
    for (long, read, skipped) in [(100, 4, 0), (101, 3, 1), (1700, 3, 1), (1701, 1, 1)] {
        std::fs::write(&path, [line(50), line(long), line(50), line(50)].concat()).unwrap();
        let (found_read, found_skipped, examples) = told(&path, most.clone());
        assert_eq!((found_read, found_skipped), (read, skipped), "{long}: {examples:?}");
        let rest = "; what is behind it in the file could not be read either";
        assert_eq!(examples.iter().any(|told| told.ends_with(rest)), read == 1, "{examples:?}");
    }
    // However many rows were bad before it.
    std::fs::write(&path, ["nothing\n".repeat(50), line(5000)].concat()).unwrap();
    let (read, skipped, examples) = told(&path, most);
    assert_eq!((read, skipped, examples.len()), (0, 51, 21));
    assert!(examples[20].contains("row 51") && examples[20].contains("behind it"), "{examples:?}");
}
