//! Files made to mislead: each is refused with the file and the field named, in little memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use checkpoint::{RealDisk, load, open_safetensors, save, sha256_file};
use serde_json::{Value, json};

use crate::common::{folder, small};

/// A header, the number of data bytes after it, and what the message must name.
type HeaderCase = (&'static str, usize, &'static str);

const ENTRY: &str = r#""dtype":"F32","shape":[1],"data_offsets":[0,4]"#;

const HEADERS: [HeaderCase; 33] = [
    ("", 0, "header: expected '{'"),
    (" {}", 0, "header: expected '{'"),
    ("[]", 0, "header: expected '{'"),
    ("\u{feff}{}", 0, "header: expected '{'"),
    ("{", 0, "header"),
    ("{}x", 0, "header"),
    ("{}{}", 0, "header"),
    ("{}\0\0", 0, "header"),
    ("{1:2}", 0, "header"),
    (r#"{"\ud800":{ENTRY}}"#, 4, "header"),
    ("{\"a\nb\":{ENTRY}}", 4, "header"),
    ("{}", 4, "data: expected 0 bytes"),
    (r#"{"a":{ENTRY}}"#, 5, "data: expected 4 bytes"),
    (r#"{"a":{ENTRY},}"#, 4, "header"),
    (r#"{"a":{ENTRY}"#, 4, "header"),
    (r#"{"a":null}"#, 0, r#"tensor "a": expected"#),
    (r#"{"a":[]}"#, 0, r#"tensor "a": expected"#),
    (r#"{"a":"F32"}"#, 0, r#"tensor "a": expected"#),
    (r#"{"a":{}}"#, 0, r#"missing field `dtype`"#),
    (r#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#, 4, "missing field `dtype`"),
    (r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, 4, "missing field `shape`"),
    (r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4, "missing field `data_offsets`"),
    (r#"{"a":{ENTRY,"stride":[1]}}"#, 4, r#"tensor "a": stride"#),
    (r#"{"a":{ENTRY,"dtype":"F32"}}"#, 4, r#"tensor "a": dtype"#),
    (r#"{"a":{ENTRY,"shape":[1]}}"#, 4, r#"tensor "a": shape"#),
    (r#"{"a":{ENTRY,"data_offsets":[0,4]}}"#, 4, r#"tensor "a": data_offsets"#),
    (
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        4,
        "expected 8 bytes for F32 of shape [2]",
    ),
    (
        r#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#,
        4,
        "expected 2 bytes for F16 of shape [1]",
    ),
    (r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#, 8, "which leaves a gap"),
    (
        r#"{"a":{ENTRY},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#,
        12,
        r#"tensor "b": data_offsets"#,
    ),
    (r#"{"a":{ENTRY},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#, 6, "which overlaps"),
    (r#"{"a":{ENTRY},"b":{ENTRY}}"#, 4, r#"tensor "b": data_offsets"#),
    (
        r#"{"a":{ENTRY},"\u0061":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
        8,
        r#"tensor "a": expected each name once"#,
    ),
];

/// Type, shape and offsets of the one tensor "a", the number of data bytes, and what the message
/// must name after the tensor.
type FieldCase = (&'static str, &'static str, &'static str, usize, &'static str);

const FIELDS: [FieldCase; 25] = [
    ("7", "[1]", "[0,4]", 4, "dtype"),
    (r#""f32""#, "[1]", "[0,4]", 4, "dtype"),
    (r#""F33""#, "[1]", "[0,4]", 4, "dtype: expected one of BOOL"),
    (r#""""#, "[1]", "[0,4]", 4, "dtype"),
    (r#""F32""#, "null", "[0,4]", 4, "shape"),
    (r#""F32""#, r#""1""#, "[0,4]", 4, "shape"),
    (r#""F32""#, "1", "[0,4]", 4, "shape"),
    (r#""F32""#, "[-1]", "[0,4]", 4, "shape"),
    (r#""F32""#, "[1.0]", "[0,4]", 4, "shape"),
    (r#""F32""#, "[1e0]", "[0,4]", 4, "shape"),
    (r#""F32""#, r#"["1"]"#, "[0,4]", 4, "shape"),
    (r#""F32""#, "[[1]]", "[0,4]", 4, "shape"),
    (r#""F32""#, "[18446744073709551616]", "[0,4]", 4, "shape"),
    (r#""F32""#, "[4294967296,4294967296]", "[0,0]", 0, "shape"),
    (r#""F32""#, "[4611686018427387904]", "[0,0]", 0, "shape"),
    (r#""F32""#, "[9223372036854775808,4,0]", "[0,0]", 0, "shape"),
    (
        r#""F32""#,
        "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]",
        "[0,4]",
        4,
        "shape: ",
    ),
    (r#""F32""#, "[1]", "null", 4, "data_offsets"),
    (r#""F32""#, "[1]", "[4]", 4, "data_offsets"),
    (r#""F32""#, "[1]", "[0,4,8]", 8, "data_offsets"),
    (r#""F32""#, "[1]", "[-4,0]", 4, "data_offsets"),
    (r#""F32""#, "[1]", "[0.0,4.0]", 4, "data_offsets"),
    (r#""F32""#, "[1]", "[4,0]", 4, "data_offsets: expected begin <= end"),
    (r#""F32""#, "[2]", "[0,8]", 4, "data_offsets: expected begin <= end <= 4"),
    (r#""F32""#, "[1]", "[0,18446744073709551615]", 4, "data_offsets"),
];

const METADATA: [HeaderCase; 5] = [
    (r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "__metadata__"),
    (r#"{"__metadata__":null}"#, 0, "__metadata__"),
    (r#"{"__metadata__":{"format":1}}"#, 0, "__metadata__"),
    (r#"{"__metadata__":{"a":{"b":"c"}}}"#, 0, "__metadata__"),
    (r#"{"__metadata__":["pt"]}"#, 0, "__metadata__"),
];

fn with_length(length: u64, rest: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), rest].concat()
}

/// Whole files: a label and the file, where the header's text alone does not make the case.
fn raw_files() -> Vec<(Vec<u8>, &'static str)> {
    let nested = [b"{\"a\":".repeat(5_000), b"1".to_vec(), b"}".repeat(5_000)].concat();
    let deep_array = [br#"{"a":{"shape":"#.to_vec(), b"[".repeat(100_000)].concat();
    let bad_utf8 = b"{\"\xff\xfe\":1}";
    vec![
        (vec![], "header length: expected 8 bytes, found a file of 0 bytes"),
        (vec![0; 7], "header length: expected 8 bytes, found a file of 7 bytes"),
        (with_length(1_000_000_000_000_000, b"{}"), "header length: expected at most 2"),
        (with_length(u64::MAX, b"{}"), "header length"),
        (with_length(i64::MAX as u64, b"{}"), "header length"),
        (with_length(3, b"{}"), "header length"),
        (with_length(100_000_001, b"{}"), "header length"),
        (with_length(bad_utf8.len() as u64, bad_utf8), "header"),
        (with_length(nested.len() as u64, &nested), "tensor \"a\""),
        (with_length(deep_array.len() as u64, &deep_array), "tensor \"a\": shape"),
    ]
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    with_length(header.len() as u64, &[header.as_bytes(), &vec![0; data]].concat())
}

/// Files, each with what the message must name.
fn all_tensor_files() -> Vec<(Vec<u8>, String)> {
    let headers = HEADERS.iter().chain(&METADATA).map(|(header, data, part)| {
        (with_header(&header.replace("ENTRY", ENTRY), *data), (*part).to_owned())
    });
    let fields = FIELDS.iter().map(|(dtype, shape, offsets, data, part)| {
        let tensor = format!(r#"{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}"#);
        let header = format!(r#"{{"a":{tensor}}}"#);
        (with_header(&header, *data), format!(r#"tensor "a": {part}"#))
    });
    let raw = raw_files().into_iter().map(|(file, part)| (file, part.to_owned()));
    headers.chain(fields).chain(raw).collect()
}

#[test]
fn every_hostile_tensor_file_is_refused_by_field() {
    let parent = folder();
    let path = parent.path().join("weights.safetensors");
    for (bytes, part) in all_tensor_files() {
        fs::write(&path, &bytes).unwrap();
        let message = open_safetensors(&path).unwrap_err().to_string();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        assert!(
            message.contains("weights.safetensors: ") && message.contains(&part),
            "{shown}: {message} lacks {part}"
        );
        assert!(message.len() < 1_000, "{message}");
    }
}

/// A header above the limit in a file that does hold it (sparse, so it takes no room).
#[test]
fn a_header_above_the_limit_is_refused_though_the_file_is_long_enough() {
    let parent = folder();
    let path = parent.path().join("weights.safetensors");
    fs::write(&path, with_length(100_000_001, b"{")).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(200_000_000).unwrap();
    let message = open_safetensors(&path).unwrap_err().to_string();
    assert!(
        message.contains("weights.safetensors: header length: expected at most 100000000"),
        "{message}"
    );
}

fn saved(parent: &Path) -> PathBuf {
    save(parent, "x", &small(1), &RealDisk).unwrap()
}

/// A change to the manifest of a good checkpoint, and what the message must name.
type ManifestCase = (fn(&mut Value), &'static str);

const MANIFESTS: [ManifestCase; 37] = [
    (|m| *m = json!([]), "JSON"),
    (|m| *m = json!(null), "JSON"),
    (|m| *m = json!({}), "missing field `format`"),
    (|m| drop(m.as_object_mut().unwrap().remove("format")), "missing field `format`"),
    (|m| drop(m.as_object_mut().unwrap().remove("version")), "missing field `version`"),
    (|m| drop(m.as_object_mut().unwrap().remove("files")), "missing field `files`"),
    (|m| m["comment"] = json!("x"), "comment"),
    (|m| m["format"] = json!("other"), "format: expected \"lathe-checkpoint\""),
    (|m| m["format"] = json!(1), "format"),
    (|m| m["version"] = json!(2), "version: expected 1, found 2"),
    (|m| m["version"] = json!("1"), "version"),
    (|m| m["version"] = json!(1.0), "version"),
    (|m| m["files"] = json!({}), "files"),
    (|m| m["files"] = json!("x"), "files"),
    (|m| m["files"][1] = json!(null), "files"),
    (
        |m| drop(m["files"][1].as_object_mut().unwrap().remove("name")),
        "files: missing field `name`",
    ),
    (
        |m| drop(m["files"][1].as_object_mut().unwrap().remove("kind")),
        "files: missing field `kind`",
    ),
    (
        |m| drop(m["files"][1].as_object_mut().unwrap().remove("bytes")),
        "files: missing field `bytes`",
    ),
    (
        |m| drop(m["files"][1].as_object_mut().unwrap().remove("sha256")),
        "files: missing field `sha256`",
    ),
    (|m| m["files"][1]["mode"] = json!(7), "mode"),
    (|m| m["files"][2]["name"] = json!("../tokenizer.json"), "files[2].name"),
    (|m| m["files"][2]["name"] = json!("/etc/hostname"), "files[2].name"),
    (|m| m["files"][2]["name"] = json!("a/b"), "files[2].name"),
    (|m| m["files"][2]["name"] = json!(""), "files[2].name"),
    (|m| m["files"][2]["name"] = json!(".."), "files[2].name"),
    (|m| m["files"][2]["name"] = json!(".hidden"), "files[2].name"),
    (|m| m["files"][2]["name"] = json!("manifest.json"), "files[2].name"),
    (|m| m["files"][2]["name"] = json!("n".repeat(5_000)), "files[2].name"),
    (|m| m["files"][2]["name"] = json!(5), "files[2].name"),
    (|m| m["files"][2]["name"] = m["files"][1]["name"].clone(), "files[2].name"),
    (|m| m["files"][3]["name"] = json!("weights"), "files[3].name"),
    (|m| m["files"][0]["kind"] = json!("tensor"), "files[0].kind"),
    (|m| m["files"][0]["kind"] = json!(0), "files[0].kind"),
    (|m| m["files"][0]["bytes"] = json!(-1), "files[0].bytes"),
    (|m| m["files"][0]["bytes"] = json!(1.5), "files[0].bytes"),
    (|m| m["files"][0]["bytes"] = json!("12"), "files[0].bytes"),
    (|m| m["files"][0]["sha256"] = json!("00"), "files[0].sha256"),
];

/// Changes to the manifest that only show when compared with the files, which the message names.
const CONTRADICTIONS: [ManifestCase; 7] = [
    (|m| m["files"][0]["bytes"] = json!(1_000_000_000_000_000_u64), "optimizer.safetensors: size"),
    (|m| m["files"][1]["bytes"] = json!(u64::MAX), "state.json: size"),
    (|m| m["files"][2]["bytes"] = json!(0), "tokenizer.json: size"),
    (|m| m["files"][0]["sha256"] = json!("0".repeat(64)), "optimizer.safetensors: sha256"),
    (|m| m["files"][1]["sha256"] = m["files"][2]["sha256"].clone(), "state.json: sha256"),
    (|m| m["files"][2]["sha256"] = json!("f".repeat(64)), "tokenizer.json: sha256"),
    (|m| m["files"][2]["name"] = json!("absent.bin"), "absent.bin: open"),
];

fn check_manifest(path: &Path, text: &[u8], parts: &[&str]) {
    fs::write(path.join("manifest.json"), text).unwrap();
    let message = load(path).unwrap_err().to_string();
    assert!(parts.iter().all(|part| message.contains(part)), "{message} lacks one of {parts:?}");
    assert!(message.len() < 1_000, "{message}");
}

#[test]
fn every_hostile_manifest_is_refused_by_field() {
    let parent = folder();
    let path = saved(parent.path());
    let good: Value =
        serde_json::from_slice(&fs::read(path.join("manifest.json")).unwrap()).unwrap();
    for (change, part) in MANIFESTS {
        let mut manifest = good.clone();
        change(&mut manifest);
        check_manifest(&path, manifest.to_string().as_bytes(), &["manifest.json: ", part]);
    }
    for (change, part) in CONTRADICTIONS {
        let mut manifest = good.clone();
        change(&mut manifest);
        check_manifest(&path, manifest.to_string().as_bytes(), &[part]);
    }
    let text = good.to_string();
    let upper = good["files"][0]["sha256"].as_str().unwrap();
    let twice = text.replacen("\"version\":1", "\"version\":1,\"version\":1", 1);
    let size = good["files"][0]["bytes"].to_string();
    let raw: [(Vec<u8>, &str); 9] = [
        (vec![], "JSON"),
        (b"not JSON".to_vec(), "JSON"),
        ([text.as_bytes(), b"{}"].concat(), "JSON"),
        (text.replace("tokenizer", "toke\u{0}").into_bytes(), "JSON"),
        ([b"{\"format\":\"\xff\"".as_slice(), &text.as_bytes()[1..]].concat(), "JSON"),
        (twice.into_bytes(), "duplicate field `version`"),
        (
            text.replacen("\"kind\"", &format!("\"bytes\":{size},\"kind\""), 1).into_bytes(),
            "duplicate field `bytes`",
        ),
        (text.replace(upper, &upper.to_uppercase()).into_bytes(), "files[0].sha256"),
        ([b"{\"format\":".as_slice(), &b"[".repeat(1_000_000)].concat(), "JSON"),
    ];
    for (bytes, part) in raw {
        check_manifest(&path, &bytes, &["manifest.json: ", part]);
    }
    check_manifest(&path, &b" ".repeat((16 << 20) + 1), &["manifest.json: size"]);
}

/// Puts `bytes` in place of one file and makes the manifest agree with it.
fn forge(path: &Path, name: &str, bytes: &[u8]) {
    let manifest = path.join("manifest.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    fs::write(path.join(name), bytes).unwrap();
    for entry in value["files"].as_array_mut().unwrap() {
        if entry["name"] == name {
            entry["bytes"] = json!(bytes.len());
            entry["sha256"] = json!(sha256_file(&path.join(name)).unwrap());
        }
    }
    fs::write(manifest, value.to_string()).unwrap();
}

#[test]
fn a_manifest_that_agrees_does_not_excuse_the_files() {
    let parent = folder();
    let path = saved(parent.path());
    let nested = [b"[".repeat(300), b"]".repeat(300)].concat();
    let state: [&[u8]; 14] = [
        b"",
        b"{",
        b"{}x",
        b"{} {}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"{'a':1}",
        b"[1,]",
        b"\"\\ud800\"",
        b"\"a\nb\"",
        &nested,
    ];
    for bytes in state {
        forge(&path, "state.json", bytes);
        let message = load(&path).unwrap_err().to_string();
        assert!(
            message.contains("state.json: JSON: "),
            "{}: {message}",
            String::from_utf8_lossy(bytes)
        );
    }
    forge(&path, "state.json", b"{}");
    load(&path).unwrap();
    for (bytes, part) in all_tensor_files() {
        forge(&path, "weights.safetensors", &bytes);
        let message = load(&path).unwrap_err().to_string();
        assert!(
            message.contains("weights.safetensors: ") && message.contains(&part),
            "{message} lacks {part}"
        );
    }
}

/// Every test above again, in a process that may map no more than 600 MB: a size believed from a
/// header would end it.
#[test]
fn hostile_files_are_refused_in_little_memory() {
    let limited = "ulimit -v 600000 && exec \"$0\" hostile:: --skip little_memory --test-threads=1";
    let output = Command::new("sh")
        .args(["-c", limited])
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("4 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
