//! Bytes of text for each token, under a tokenizer that changes the text before it spells it:
//! counted here from the texts alone.

mod common;

use common::{build_small, write_inputs};
use data::build::{BuildOptions, build_documents};
use data::documents::Document;
use data::{Corpus, Split, Tokenizer, Windows};
use std::path::Path;

/// Puts a blank before every text, drops blanks behind it and takes apart what NFKC takes apart.
const CHANGING: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[
    {"id":0,"content":"<unk>","single_word":false,"lstrip":false,
     "rstrip":false,"normalized":false,"special":true},
    {"id":1,"content":"</s>","single_word":false,"lstrip":false,
     "rstrip":false,"normalized":false,"special":true}],
    "normalizer":{"type":"Sequence","normalizers":[
     {"type":"Strip","strip_left":false,"strip_right":true},{"type":"NFKC"},
     {"type":"Prepend","prepend":"\u2581"},
     {"type":"Replace","pattern":{"String":" "},"content":"\u2581"}]},
    "pre_tokenizer":null,"post_processor":null,
    "decoder":{"type":"Sequence","decoders":[
     {"type":"Replace","pattern":{"String":"\u2581"},"content":" "},{"type":"ByteFallback"},
     {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
    "model":{"type":"BPE","dropout":null,"unk_token":"<unk>",
     "continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,
     "byte_fallback":true,
    "vocab":{"<unk>":0,"</s>":1,"<0xC3>":2,"<0xA9>":3,"\u2581":4,"a":5,"b":6,"\u2581a":7,"ab":8,
     "f":9,"i":10,"fi":11,"1":12,"2":13,"\u2044":14},
    "merges":["\u2581 a","a b","f i"]}}"#;

/// A text with what each of its tokens stands for, in bytes; the last number is the end's.
const TEXTS: [(&str, &[u32]); 5] = [
    // _a b
    ("ab", &[1, 1, 0]),
    // _a b _ fi _ b 1 / 2: a ligature of three bytes, a fraction of two.
    ("ab \u{fb01} b\u{bd}", &[1, 1, 1, 3, 1, 1, 0, 0, 2, 0]),
    // _ b <0xC3> <0xA9> a: one character of two bytes in two tokens.
    ("b\u{e9}a", &[0, 1, 0, 2, 1, 0]),
    // _a b and two blanks that no token has.
    ("ab  ", &[1, 1, 2]),
    // _a _a: no blank before the text is one of the text.
    ("a a", &[1, 2, 0]),
];

fn folder(dir: &Path, tokenizer: &Tokenizer) {
    let documents = TEXTS.iter().enumerate().map(|(i, (text, _))| {
        let source = format!("source {}", i % 2);
        let document = Document { text: (*text).to_owned(), source, license: None };
        (document, Split::Validation)
    });
    let options = BuildOptions { shard_tokens: 8, ..BuildOptions::default() };
    build_documents(documents, tokenizer, dir, &options).unwrap();
}

#[test]
fn bytes_are_those_of_the_text_and_not_of_the_spelling() {
    let tokenizer = Tokenizer::from_json(CHANGING).unwrap();
    assert!(!tokenizer.spells_its_text());
    let mut expected = Vec::new();
    for (text, bytes) in TEXTS {
        let (ids, found) = tokenizer.encode_counting(text).unwrap();
        assert_eq!(ids, tokenizer.encode_ordinary(text).unwrap(), "{text:?}");
        assert_eq!(found, bytes[..bytes.len() - 1], "{text:?}: {ids:?}");
        assert_eq!(bytes.iter().sum::<u32>() as usize, text.len(), "{text:?}");
        expected.extend_from_slice(bytes);
    }
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), &tokenizer);
    let corpus = Corpus::open(dir.path(), Split::Validation).unwrap();
    assert!(corpus.counts_text_bytes() && corpus.manifest().validation.shards.len() > 1);
    for length in 1..9 {
        let windows = Windows::new(&corpus, length, 0).unwrap();
        for i in 0..windows.len() {
            let first = i as usize * length + 1;
            let window = windows.unshuffled(i).unwrap();
            assert_eq!(window.bytes, expected[first..first + length], "length {length}, {i}");
        }
    }
}

#[test]
fn a_file_of_bytes_that_is_another_is_refused() {
    let tokenizer = Tokenizer::from_json(CHANGING).unwrap();
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), &tokenizer);
    let path = dir.path().join("validation-00000.shard.bytes");
    let whole = std::fs::read(&path).unwrap();
    let refused = |needle: &str| {
        let error = Corpus::open(dir.path(), Split::Validation).err().expect("refused");
        let error = error.to_string();
        assert!(error.contains("shard.bytes") && error.contains(needle), "{error}");
    };
    let mut other = whole.clone();
    other[0] ^= 1;
    std::fs::write(&path, &other).unwrap();
    refused("SHA-256");
    std::fs::write(&path, &whole[4..]).unwrap();
    refused("four a token");
    std::fs::remove_file(&path).unwrap();
    refused("read");
    // Nobody writes into this one: opening it would wait for ever.
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    refused("a pipe");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &whole).unwrap();
    let shard = dir.path().join("validation-00000.shard");
    std::fs::rename(&shard, dir.path().join("other")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&shard).status().unwrap().success());
    let error = Corpus::open(dir.path(), Split::Validation).err().expect("refused").to_string();
    assert!(error.contains("shard") && error.contains("a pipe"), "{error}");
}

#[test]
fn a_tokenizer_that_spells_its_text_needs_no_file() {
    let dir = tempfile::tempdir().unwrap();
    write_inputs(&dir.path().join("in"));
    build_small(&dir.path().join("in"), &dir.path().join("out"));
    let corpus = Corpus::open(&dir.path().join("out"), Split::Train).unwrap();
    assert!(common::tokenizer().spells_its_text() && !corpus.counts_text_bytes());
    let tokenizer = common::tokenizer();
    assert_eq!(Some(corpus.eos_id()), tokenizer.eos_id());
    let windows = Windows::new(&corpus, 50, 3).unwrap();
    let mut all = 0;
    for i in 0..windows.len() {
        let window = windows.unshuffled(i).unwrap();
        for (&target, &bytes) in window.targets.iter().zip(&window.bytes) {
            let text = if target == corpus.eos_id() {
                0
            } else {
                tokenizer.decode(&[target]).unwrap().len()
            };
            assert_eq!(bytes as usize, text);
            all += u64::from(bytes);
        }
    }
    let text = corpus.manifest().train.total.bytes;
    assert!(all <= text && all + 60 * 4 > text, "{all} of {text}");
    // A blank in front, or a normal form, makes it another kind.
    let blank =
        tokenizer.to_json().replace("add_prefix_space\": false", "add_prefix_space\": true");
    let blank = Tokenizer::from_json(&blank).unwrap();
    assert!(!blank.spells_its_text());
    for text in ["The fox", " x  y ", "\u{e9}t\u{e9} \u{4e2d}\u{6587}", ""] {
        let (_, bytes) = blank.encode_counting(text).unwrap();
        assert_eq!(bytes.iter().sum::<u32>() as usize, text.len(), "{text:?}");
    }
}
