//! Damaged and lying inputs: each is refused with an error that names the file and the field, and
//! none panics.

mod common;
#[path = "common/names.rs"]
mod names;
#[path = "common/parquet_files.rs"]
mod parquet_files;
#[path = "common/rows.rs"]
mod rows;

use common::{build_small, sentence, tokenizer, write_inputs};
use data::build::{BuildOptions, build};
use data::documents::{Documents, Input, ReadOptions, list_files};
use data::shard::{Shard, ShardWriter};
use data::{Corpus, Split, Tokenizer};
use names::assert_names;
use parquet_files::{TEXTS, write_parquet};
use rows::{Read, read_rows};
use std::path::Path;

/// 100 ids in two-byte form: documents at 0, 40 and 70.
fn good_shard(path: &Path) -> Vec<u8> {
    let mut writer = ShardWriter::create(path, 300).unwrap();
    for (length, source) in [(40, 0), (30, 1), (30, 0)] {
        let ids: Vec<u32> = (0..length).collect();
        writer.push(&ids, source).unwrap();
    }
    writer.finish().unwrap();
    std::fs::read(path).unwrap()
}

fn seal(bytes: &mut [u8]) {
    let payload = crc32c::crc32c(&bytes[64..]);
    bytes[40..44].copy_from_slice(&payload.to_le_bytes());
    let header = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&header.to_le_bytes());
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn shards() {
    type Change = fn(&mut Vec<u8>);
    let cases: [(&str, Change, bool, &str); 24] = [
        ("empty file", |b| b.clear(), false, "header"),
        ("cut inside the header", |b| b.truncate(63), false, "header"),
        ("wrong magic", |b| put(b, 0, b"PK\x03\x04"), true, "magic"),
        ("zeros", |b| b.fill(0), false, "magic"),
        ("later version", |b| put(b, 8, &2u32.to_le_bytes()), true, "version"),
        (
            "width 4 for a small vocabulary",
            |b| put(b, 12, &4u32.to_le_bytes()),
            true,
            "token width",
        ),
        ("width 0", |b| put(b, 12, &0u32.to_le_bytes()), true, "token width"),
        ("vocabulary 0", |b| put(b, 16, &0u64.to_le_bytes()), true, "vocabulary size"),
        ("vocabulary 2^63", |b| put(b, 16, &(1u64 << 63).to_le_bytes()), true, "vocabulary size"),
        (
            "vocabulary that needs width 4",
            |b| put(b, 16, &70_000u64.to_le_bytes()),
            true,
            "token width",
        ),
        ("one token more", |b| put(b, 24, &101u64.to_le_bytes()), true, "token count"),
        ("2^64-1 tokens", |b| put(b, 24, &u64::MAX.to_le_bytes()), true, "token count"),
        ("2^62 tokens", |b| put(b, 24, &(1u64 << 62).to_le_bytes()), true, "token count"),
        ("2^64-1 documents", |b| put(b, 32, &u64::MAX.to_le_bytes()), true, "document count"),
        (
            "no documents but tokens",
            |b| {
                put(b, 24, &118u64.to_le_bytes());
                put(b, 32, &0u64.to_le_bytes());
            },
            true,
            "document table",
        ),
        ("trailing byte", |b| b.push(0), true, "token count"),
        ("cut payload", |b| b.truncate(200), true, "token count"),
        ("reserved bytes", |b| b[50] = 1, true, "reserved"),
        ("header checksum", |b| b[25] ^= 1, false, "header checksum"),
        ("payload checksum", |b| b[100] ^= 1, false, "payload checksum"),
        (
            "id beyond the vocabulary",
            |b| put(b, 64 + 2 * 7, &300u16.to_le_bytes()),
            true,
            "token 7",
        ),
        (
            "first document not at 0",
            |b| put(b, 264, &1u64.to_le_bytes()),
            true,
            "document table, entry 0",
        ),
        (
            "starts not increasing",
            |b| put(b, 264 + 24, &40u64.to_le_bytes()),
            true,
            "document table, entry 2",
        ),
        (
            "start beyond the tokens",
            |b| put(b, 264 + 24, &u64::MAX.to_le_bytes()),
            true,
            "document table, entry 2",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.shard");
    let good = good_shard(&path);
    assert!(Shard::open(&path, 2, true).is_ok());
    for (case, change, sealed, field) in cases {
        let mut bytes = good.clone();
        change(&mut bytes);
        if sealed {
            seal(&mut bytes);
        }
        let path = dir.path().join("bad.shard");
        std::fs::write(&path, &bytes).unwrap();
        assert_names(case, Shard::open(&path, 2, true).err().expect(case), &["bad.shard", field]);
    }
    assert_names(
        "unknown source",
        Shard::open(&path, 1, true).err().unwrap(),
        &["case.shard", "entry 1", "source"],
    );
    assert_names(
        "folder",
        Shard::open(dir.path(), 2, true).err().unwrap(),
        &[dir.path().to_str().unwrap()],
    );
    assert_names(
        "missing",
        Shard::open(&dir.path().join("no.shard"), 2, true).err().unwrap(),
        &["no.shard"],
    );
}

#[test]
fn every_flipped_byte_of_a_shard_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.shard");
    let good = good_shard(&path);
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x11;
        std::fs::write(&path, &bytes).unwrap();
        assert_names(
            &format!("byte {at}"),
            Shard::open(&path, 2, true).err().expect("a flipped byte"),
            &["case.shard"],
        );
    }
}

#[test]
fn manifests() {
    let cases: [(&str, &str, serde_json::Value, &[&str]); 16] = [
        ("later version", "/version", 2.into(), &["manifest.json", "version"]),
        ("version as text", "/version", "1".into(), &["manifest.json", "version"]),
        ("vocabulary 0", "/vocab_size", 0.into(), &["manifest.json", "vocab_size"]),
        ("huge vocabulary", "/vocab_size", u64::MAX.into(), &["manifest.json", "vocab_size"]),
        ("large vocabulary", "/vocab_size", (1u64 << 32).into(), &["token_bytes.bin", "file size"]),
        ("eos beyond the vocabulary", "/eos_id", 320.into(), &["manifest.json", "eos_id"]),
        ("negative eos", "/eos_id", (-1).into(), &["manifest.json", "fields"]),
        ("sources lost", "/sources", serde_json::json!([]), &["manifest.json", "train.by_source"]),
        ("no train", "/train", serde_json::Value::Null, &["manifest.json", "fields"]),
        (
            "total too large",
            "/train/total/tokens",
            u64::MAX.into(),
            &["manifest.json", "train.total"],
        ),
        (
            "total of validation",
            "/validation/total/documents",
            1.into(),
            &["manifest.json", "validation.total"],
        ),
        (
            "path outside",
            "/train/shards/0/file",
            "../x.shard".into(),
            &["manifest.json", "train.shards[0].file"],
        ),
        (
            "absolute path",
            "/train/shards/1/file",
            "/etc/passwd".into(),
            &["manifest.json", "train.shards[1].file"],
        ),
        (
            "another shard",
            "/train/shards/0/file",
            "train-00001.shard".into(),
            &["train-00001.shard", "manifest.json"],
        ),
        (
            "other checksum",
            "/train/shards/0/crc32c",
            1.into(),
            &["train-00000.shard", "payload checksum"],
        ),
        (
            "other digest",
            "/train/shards/0/sha256",
            "00".into(),
            &["train-00000.shard", "payload SHA-256"],
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    write_inputs(&dir.path().join("in"));
    let out = dir.path().join("out");
    build_small(&dir.path().join("in"), &out);
    let path = out.join("manifest.json");
    let good = std::fs::read(&path).unwrap();
    for (case, pointer, value, words) in cases {
        let mut json: serde_json::Value = serde_json::from_slice(&good).unwrap();
        *json.pointer_mut(pointer).expect(case) = value;
        std::fs::write(&path, json.to_string()).unwrap();
        assert_names(case, Corpus::open(&out, Split::Train).err().expect(case), words);
    }
    for (case, bytes) in [
        ("empty", &b""[..]),
        ("cut", &good[..good.len() / 2]),
        ("list", b"[]"),
        ("not UTF-8", b"\xFF{}"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert_names(case, Corpus::open(&out, Split::Train).err().expect(case), &["manifest.json"]);
    }
    std::fs::remove_file(&path).unwrap();
    assert_names("missing", Corpus::open(&out, Split::Train).err().unwrap(), &["manifest.json"]);
}

#[test]
fn files_of_a_folder_that_do_not_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    write_inputs(&dir.path().join("in"));
    let out = dir.path().join("out");
    build_small(&dir.path().join("in"), &out);
    for (file, field) in [
        ("tokenizer.json", "SHA-256"),
        ("token_bytes.bin", "SHA-256"),
        ("train-00002.shard", "checksum"),
    ] {
        let path = out.join(file);
        let good = std::fs::read(&path).unwrap();
        let mut bytes = good.clone();
        bytes[good.len() / 2] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_names(file, Corpus::open(&out, Split::Train).err().unwrap(), &[file, field]);
        std::fs::remove_file(&path).unwrap();
        assert_names(file, Corpus::open(&out, Split::Train).err().unwrap(), &[file]);
        std::fs::write(&path, good).unwrap();
    }
    assert!(Corpus::open(&out, Split::Train).is_ok());
    let again =
        build(&[Input::from(dir.path().join("in"))], &tokenizer(), &out, &BuildOptions::default());
    assert_names("occupied", again.err().unwrap(), &["manifest.json", "another folder"]);
}

#[test]
fn tokenizers() {
    let good = tokenizer().to_json().to_owned();
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let merge = "\"merges\": [\n      [";
    let cases: [(&str, String, &str); 14] = [
        ("empty", String::new(), "JSON"),
        ("cut", good[..good.len() / 2].to_owned(), "JSON"),
        ("trailing", format!("{good}x"), "JSON"),
        ("a list", "[]".to_owned(), "model"),
        ("no model", "{}".to_owned(), "model"),
        ("model as text", r#"{"model":"BPE"}"#.to_owned(), "model"),
        ("no vocabulary", r#"{"model":{"type":"BPE"}}"#.to_owned(), "model.vocab"),
        ("vocabulary as number", r#"{"model":{"type":"BPE","vocab":3}}"#.to_owned(), "model.vocab"),
        ("unknown model", replaced("\"type\": \"BPE\"", "\"type\": \"XYZ\""), "tokenizer"),
        ("negative id", replaced("\"!\": 3", "\"!\": -3"), "model.vocab"),
        ("id of 33 bits", replaced("\"!\": 3", "\"!\": 4294967296"), "model.vocab"),
        ("id of 32 bits", replaced("\"!\": 3", "\"!\": 4294967295"), "vocab"),
        (
            "merge of unknown tokens",
            replaced(merge, "\"merges\": [\n [\"zzzz\", \"yy\"],\n ["),
            "model.merges[0]",
        ),
        ("merge of one token", replaced(merge, "\"merges\": [\n [\"a\"],\n ["), "model.merges[0]"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tok.json");
    for (case, json, field) in cases {
        std::fs::write(&path, json).unwrap();
        assert_names(case, Tokenizer::load(&path).err().expect(case), &["tok.json", field]);
    }
    let joined_too_long = replaced(merge, "\"merges\": [\n [\"!\", \"~\"],\n [");
    assert_names(
        "merge without a result",
        Tokenizer::from_json(&joined_too_long).err().unwrap(),
        &["model.merges[0]"],
    );
    std::fs::write(&path, b"{\"model\": \"\xFF\"}").unwrap();
    assert_names("not UTF-8", Tokenizer::load(&path).err().unwrap(), &["tok.json", "encoding"]);
    let sparse = std::fs::File::create(&path).unwrap();
    sparse.set_len((1 << 30) + 1).unwrap();
    assert_names("over 1 GiB", Tokenizer::load(&path).err().unwrap(), &["tok.json", "file size"]);
    assert_names(
        "folder",
        Tokenizer::load(dir.path()).err().unwrap(),
        &[dir.path().to_str().unwrap()],
    );
}

fn read(path: &Path, skip_bad: bool) -> Read {
    read_rows(path, ReadOptions { skip_bad, ..ReadOptions::default() })
}

/// One bad row between good ones: an error that names it, or one skipped row and all the others.
fn bad_row(case: &str, path: &Path, bytes: &[u8], words: &[&str], left: usize) {
    std::fs::write(path, bytes).unwrap();
    let (_, _, error) = read(path, false);
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_names(case, error.expect(case), &[&[name, "row"], words].concat());
    let (texts, skipped, error) = read(path, true);
    assert_eq!((texts.len(), skipped, error), (left, 1, None), "{case}");
}

#[test]
fn json_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let cases: [(&str, &[u8], &str); 9] = [
        ("invalid JSON", b"{\"text\": ", "JSON"),
        ("not an object", b"[1, 2]", "JSON object"),
        ("text after the object", b"{\"text\":\"a\"} x", "JSON"),
        ("missing field", b"{\"body\": \"x\"}", "field \"text\""),
        ("number", b"{\"text\": 4}", "field \"text\""),
        ("null", b"{\"text\": null}", "field \"text\""),
        ("not UTF-8", b"{\"text\": \"\xC3\x28\"}", "UTF-8"),
        ("lone surrogate", b"{\"text\": \"\\ud800\"}", "JSON"),
        ("control character", b"{\"text\": \"a\x01\"}", "JSON"),
    ];
    for (case, row, word) in cases {
        let bytes = [b"{\"text\":\"one\"}\n", row, b"\n{\"text\":\"three\"}\n"].concat();
        bad_row(case, &path, &bytes, &["row 2", word], 2);
    }
    let deep = format!("{{\"text\":\"one\"}}\n{}\n{{\"text\":\"three\"}}", "[".repeat(100_000));
    bad_row("deeply nested", &path, deep.as_bytes(), &["row 2", "JSON"], 2);
}

#[test]
fn packed_files() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..2000)
        .map(|i| format!("{}\n", serde_json::json!({"text": format!("{} {i}", sentence(i))})))
        .collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, rows.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let zst = zstd::encode_all(rows.as_bytes(), 1).unwrap();
    let mut wrong_sum = gzip.clone();
    let at = gzip.len() - 6;
    wrong_sum[at] ^= 1;
    let cases: [(&str, &str, Vec<u8>); 7] = [
        ("gzip cut", "r.jsonl.gz", gzip[..gzip.len() / 2].to_vec()),
        ("gzip without its end", "r.jsonl.gz", gzip[..gzip.len() - 8].to_vec()),
        ("gzip with a wrong sum", "r.jsonl.gz", wrong_sum),
        ("gzip with a wrong magic", "r.jsonl.gz", rows.as_bytes().to_vec()),
        ("gzip with only a header", "r.jsonl.gz", gzip[..10].to_vec()),
        ("zstd cut", "r.jsonl.zst", zst[..zst.len() / 2].to_vec()),
        ("zstd with a wrong magic", "r.jsonl.zst", rows.as_bytes().to_vec()),
    ];
    for (case, name, bytes) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_names(case, read(&path, false).2.expect(case), &[name, "row", "complete file"]);
        let (texts, skipped, error) = read(&path, true);
        assert!(
            texts.len() <= 2000 && skipped == 1 && error.is_none(),
            "{case}: {} {skipped} {error:?}",
            texts.len()
        );
    }
    for name in ["e.jsonl", "e.txt"] {
        let path = dir.path().join(name);
        std::fs::write(&path, b"").unwrap();
        assert_eq!(read(&path, false), (vec![], 0, None), "{name}");
    }
}

#[test]
fn plain_text_and_folders() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    bad_row(
        "not UTF-8",
        &path,
        b"fine\n<|endoftext|>\nbad \xFF\n<|endoftext|>\nfine",
        &["row 2", "UTF-8"],
        2,
    );
    std::fs::write(dir.path().join("a.xyz"), b"x").unwrap();
    assert_names(
        "ending",
        read(&dir.path().join("a.xyz"), true).2.unwrap(),
        &["a.xyz", "file name ending", ".jsonl.gz"],
    );
    std::fs::create_dir(dir.path().join("none")).unwrap();
    assert_names(
        "no file",
        read(&dir.path().join("none"), true).2.unwrap(),
        &["none", "file name ending"],
    );
    assert_names("missing", read(&dir.path().join("no.txt"), true).2.unwrap(), &["no.txt"]);
    std::fs::create_dir(dir.path().join("d.jsonl")).unwrap();
    assert_names(
        "folder with a file's name",
        read(&dir.path().join("d.jsonl"), true).2.unwrap(),
        &["d.jsonl"],
    );
    std::fs::write(dir.path().join("blank.txt"), b" \n\n").unwrap();
    let out = dir.path().join("out");
    let blank = build(
        &[Input::from(dir.path().join("blank.txt"))],
        &tokenizer(),
        &out,
        &BuildOptions::default(),
    );
    assert_names("blank", blank.err().unwrap(), &["at least one document"]);
    assert!(!out.join("manifest.json").exists());
    for options in [
        BuildOptions { valid_per_mille: 1001, ..BuildOptions::default() },
        BuildOptions { shard_tokens: 0, ..BuildOptions::default() },
        BuildOptions {
            read: ReadOptions { document_bytes: 1, ..ReadOptions::default() },
            ..BuildOptions::default()
        },
    ] {
        assert!(build(&[Input::from(&path)], &tokenizer(), &out, &options).is_err());
    }
}

#[test]
fn parquet_files_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let texts: Vec<String> = (0..700).map(|i| format!("{} {i}", sentence(i))).collect();
    let refs: Vec<&[u8]> = texts.iter().map(|t| t.as_bytes()).collect();
    write_parquet(&path, TEXTS, &refs, None);
    let (read_texts, skipped, error) = read(&path, false);
    assert_eq!((skipped, error), (0, None));
    assert_eq!(read_texts, [texts.clone(), texts].concat());
    let both = "message m { required binary text (UTF8); required binary source (UTF8); \
                required binary license (UTF8); }";
    write_parquet(&path, both, &[b"one", b"two"], None);
    let files = list_files(&[Input::from(&path)], &ReadOptions::default()).unwrap().files;
    let documents: Vec<_> =
        Documents::new(files, ReadOptions::default()).map(|d| d.unwrap().1).collect();
    assert_eq!(documents.len(), 4);
    assert_eq!(
        (documents[1].source.as_str(), documents[1].license.as_deref()),
        ("two", Some("two"))
    );
}

#[test]
fn parquet_rows_and_files_that_are_bad() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    write_parquet(
        &path,
        "message m { optional binary text (UTF8); required int64 n; }",
        &[b"a", b"c"],
        Some(&[1, 0, 1]),
    );
    assert_names(
        "null",
        read(&path, false).2.unwrap(),
        &["t.parquet", "row 2", "column \"text\"", "null"],
    );
    assert_eq!((read(&path, true).0.len(), read(&path, true).1), (4, 2));
    write_parquet(&path, TEXTS, &[b"a", b"\xFF\xFE", b"c"], None);
    assert_names("not UTF-8", read(&path, false).2.unwrap(), &["t.parquet", "row 2", "UTF-8"]);
    assert_eq!((read(&path, true).0.len(), read(&path, true).1), (4, 2));
    for schema in
        ["message m { required binary body (UTF8); }", "message m { required int64 text; }"]
    {
        write_parquet(&path, schema, &[b"a"], None);
        assert_names(
            schema,
            read(&path, false).2.unwrap(),
            &["t.parquet", "column \"text\"", "columns "],
        );
    }
    write_parquet(&path, "message m { required binary messages (UTF8); }", &[b"[]"], None);
    assert_names("talks", read(&path, false).2.unwrap(), &["column \"text\"", "--chat"]);
    let texts: Vec<String> = (0..50).map(sentence).collect();
    write_parquet(&path, TEXTS, &texts.iter().map(|t| t.as_bytes()).collect::<Vec<_>>(), None);
    let good = std::fs::read(&path).unwrap();
    let mut wrong_end = good.clone();
    let end = good.len();
    wrong_end[end - 1] = b'X';
    let mut long_footer = good.clone();
    long_footer[end - 8..end - 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let cut = good[..end / 2].to_vec();
    for (case, bytes) in [
        ("cut", cut),
        ("magic", wrong_end),
        ("footer length", long_footer),
        ("empty", vec![]),
        ("text", b"PAR1 not".to_vec()),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert_names(case, read(&path, false).2.expect(case), &["t.parquet", "Parquet footer"]);
    }
}

/// The codec stands behind the column's name: a field with a number, which is twice the codec's.
#[test]
fn parquet_files_of_other_codecs_are_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let both = "message m { required binary text (UTF8); required binary source (UTF8); }";
    write_parquet(&path, both, &[b"one", b"two"], None);
    let good = std::fs::read(&path).unwrap();
    for (column, name) in [("text", "BROTLI"), ("text", "LZ4"), ("source", "LZ4_RAW")] {
        let codec = [("BROTLI", 8), ("LZ4", 10), ("LZ4_RAW", 14)].iter().find(|c| c.0 == name);
        let mut bytes = good.clone();
        let mark = [column.as_bytes(), &[0x15, 2]].concat();
        // In the second row group of two.
        let at = bytes.windows(mark.len()).rposition(|found| found == mark).expect("the codec");
        bytes[at + mark.len() - 1] = codec.unwrap().1;
        std::fs::write(&path, bytes).unwrap();
        for skip_bad in [false, true] {
            let (texts, skipped, error) = read(&path, skip_bad);
            assert!(texts.is_empty() && skipped == 0, "{name}: {texts:?} {skipped}");
            let column = format!("column {column:?}, row group 1");
            let words =
                ["t.parquet", &column, name, "snappy, gzip or zstd", "write the file again"];
            assert_names(name, error.expect(name), &words);
        }
    }
}

#[test]
fn no_flipped_byte_of_a_parquet_file_ends_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    write_parquet(&path, TEXTS, &[b"some words", b"other words", b"more"], None);
    let good = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for at in (0..good.len()).step_by(2) {
        let mut bytes = good.clone();
        bytes[at] ^= [0x01, 0x80, 0xFF][at / 2 % 3];
        std::fs::write(&path, &bytes).unwrap();
        if let Some(message) = read(&path, false).2 {
            assert!(message.contains("t.parquet"), "{message}");
            refused += 1;
        }
    }
    assert!(refused > good.len() / 20, "{refused} of {}", good.len() / 2);
}
