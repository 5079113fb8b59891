//! Thousands of damaged tokenizers: each is refused with its file, or encodes and decodes, or says
//! which text it cannot; none panics, none takes long.

use data::Tokenizer;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// xorshift: the same numbers in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn pick<'v, T>(&mut self, values: &'v [T]) -> &'v T {
        &values[self.below(values.len())]
    }
}

/// The printable alphabet of byte-level vocabularies.
fn byte_characters() -> Vec<String> {
    let printable = |b: &u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let plain = (0..256).filter(printable);
    let hidden = (0..256).filter(|b| !printable(b)).count() as u32;
    plain.chain(256..256 + hidden).filter_map(char::from_u32).map(String::from).collect()
}

fn numbered(tokens: impl IntoIterator<Item = String>) -> Value {
    let pairs = tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id)));
    Value::Object(pairs.collect())
}

fn with(model: Value, normalizer: Value, pre_tokenizer: Value, decoder: Value) -> Value {
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true })
    };
    json!({ "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<|endoftext|>"), special(1, "<unk>")],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": decoder, "model": model })
}

/// One of each kind that is published.
fn originals() -> Vec<Value> {
    let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let specials = words(&["<|endoftext|>", "<unk>"]);
    let merged = words(&["th", "the", "\u{120}the", "ab"]);
    let bytes = [specials.clone(), byte_characters(), merged].concat();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true });
    let bpe = json!({ "type": "BPE", "dropout": null, "unk_token": null,
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
        "byte_fallback": false, "ignore_merges": false, "vocab": numbered(bytes),
        "merges": [["t", "h"], ["th", "e"], ["\u{120}", "the"], ["a", "b"]] });
    let letters = ('a'..='z').map(String::from).collect::<Vec<_>>();
    let pieces = words(&["\u{2581}", "\u{2581}a", "th", "the", "\u{2581}the", "<0x0A>", "<0xE9>"]);
    let all = numbered([specials.clone(), letters.clone(), pieces].concat());
    let spaced = json!({ "type": "BPE", "dropout": 0.1, "unk_token": "<unk>", "fuse_unk": true,
        "byte_fallback": true, "vocab": all,
        "merges": ["\u{2581} a", "t h", "th e", "\u{2581} the"] });
    let steps = json!({ "type": "Sequence", "normalizers": [
        { "type": "Prepend", "prepend": "\u{2581}" },
        { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" }] });
    let spaced_decoder = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
        { "type": "ByteFallback" }, { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] });
    let tails = letters.iter().map(|l| format!("##{l}")).collect::<Vec<_>>();
    let parts = [words(&["[PAD]", "[UNK]", "the", "##the"]), letters.clone(), tails].concat();
    let word_piece = json!({ "type": "WordPiece", "unk_token": "[UNK]",
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": numbered(parts) });
    let bert = json!({ "type": "BertNormalizer", "clean_text": true,
        "handle_chinese_chars": true, "strip_accents": null, "lowercase": true });
    let scored: Vec<Value> = [specials.clone(), letters, words(&["\u{2581}", "\u{2581}the"])]
        .concat()
        .into_iter()
        .map(|token| json!([token, -3.5]))
        .collect();
    let unigram =
        json!({ "type": "Unigram", "unk_id": 1, "vocab": scored, "byte_fallback": false });
    let metaspace = json!({ "type": "Metaspace", "replacement": "\u{2581}",
        "prepend_scheme": "always", "split": true });
    let level = json!({ "type": "WordLevel", "unk_token": "<unk>",
        "vocab": numbered([specials, words(&["the", "a"])].concat()) });
    vec![
        with(bpe, Value::Null, byte_level.clone(), byte_level),
        with(spaced, steps, Value::Null, spaced_decoder),
        with(
            word_piece,
            bert,
            json!({ "type": "BertPreTokenizer" }),
            json!({ "type": "WordPiece",
            "prefix": "##", "cleanup": true }),
        ),
        with(unigram, json!({ "type": "NFKC" }), metaspace.clone(), metaspace),
        with(level, json!({ "type": "Lowercase" }), json!({ "type": "Whitespace" }), Value::Null),
    ]
}

/// Parts that may stand where others of their kind do.
fn parts(kind: &str) -> Vec<Value> {
    let regex = |pattern: &str| json!({ "Regex": pattern });
    let patterns = [
        "",
        "(a+)+$b",
        "(a|aa)+$",
        "(?:(?:a*)*)*b",
        "\\s+(?!\\S)|\\s+",
        "(",
        "[z-a]",
        "\\p{Nope}",
        "(?<=a{1,1000})b",
        "a{100000}",
        "(a{1000}){1000}",
        "^",
        "$",
        "\\b",
        "(?i)x*",
        "\\G",
        ".*",
        "(.*)*",
        "((a{0,99}){0,99}){0,99}",
        "(?:.|\\n)*",
        "\\X",
        "(?<n>a\\g<n>?b)",
    ];
    let mut all: Vec<Value> = patterns
        .iter()
        .map(|p| match kind {
            "pre_tokenizer" => json!({ "type": "Split", "pattern": regex(p),
                "behavior": "Isolated", "invert": false }),
            _ => json!({ "type": "Replace", "pattern": regex(p), "content": "xyz" }),
        })
        .collect();
    let named: &[&str] = match kind {
        "normalizer" => &[
            "NFC",
            "NFD",
            "NFKC",
            "NFKD",
            "Nmt",
            "Lowercase",
            "StripAccents",
            "ByteLevel",
            "BertNormalizer",
            "Precompiled",
            "Strip",
        ],
        "pre_tokenizer" => &[
            "ByteLevel",
            "BertPreTokenizer",
            "Whitespace",
            "WhitespaceSplit",
            "Digits",
            "Punctuation",
            "UnicodeScripts",
            "Metaspace",
            "FixedLength",
        ],
        _ => &[
            "ByteLevel",
            "WordPiece",
            "BPEDecoder",
            "CTC",
            "ByteFallback",
            "Fuse",
            "Strip",
            "Metaspace",
        ],
    };
    all.extend(named.iter().map(|name| json!({ "type": name })));
    let long = "y".repeat(3000);
    let grows = json!({ "type": "Replace", "pattern": { "Regex": "." }, "content": "xxxx" });
    let more = match kind {
        "normalizer" => vec![
            json!({ "type": "Replace", "pattern": { "String": "" }, "content": "xx" }),
            json!({ "type": "Replace", "pattern": { "String": "a" }, "content": long }),
            json!({ "type": "Prepend", "prepend": long }),
            json!({ "type": "Prepend", "prepend": "" }),
            json!({ "type": "Strip", "strip_left": true, "strip_right": true }),
            json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" }),
            json!({ "type": "Precompiled", "precompiled_charsmap": "////////////////" }),
            json!({ "type": "Sequence", "normalizers": [] }),
            json!({ "type": "Sequence", "normalizers": vec![grows; 30] }),
        ],
        "pre_tokenizer" => vec![
            json!({ "type": "FixedLength", "length": 0 }),
            json!({ "type": "FixedLength", "length": 1 }),
            json!({ "type": "ByteLevel", "add_prefix_space": true, "use_regex": true }),
            json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": false }),
            json!({ "type": "CharDelimiterSplit", "delimiter": "e" }),
            json!({ "type": "Split", "pattern": { "String": "" }, "behavior": "Removed",
                "invert": true }),
            json!({ "type": "Digits", "individual_digits": true }),
            json!({ "type": "Sequence", "pretokenizers": [] }),
        ],
        _ => vec![
            json!({ "type": "Strip", "content": "a", "start": 9999, "stop": 9999 }),
            json!({ "type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true }),
            json!({ "type": "BPEDecoder", "suffix": "" }),
            json!({ "type": "WordPiece", "prefix": "", "cleanup": true }),
            json!({ "type": "Sequence", "decoders": [] }),
            json!({ "type": "Sequence", "decoders": vec![grows; 30] }),
        ],
    };
    all.extend(more);
    all.push(Value::Null);
    all
}

fn nest(kind: &str, inner: Value, depth: usize) -> Value {
    let list = match kind {
        "normalizer" => "normalizers",
        "pre_tokenizer" => "pretokenizers",
        _ => "decoders",
    };
    (0..depth).fold(inner, |inner, _| json!({ "type": "Sequence", list: [inner] }))
}

/// A value that fits nowhere.
fn nonsense(dice: &mut Dice) -> Value {
    let values = [
        Value::Null,
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(4_294_967_295u32),
        json!(u64::MAX),
        json!(1e300),
        json!(-1e-300),
        json!(0.5),
        json!(""),
        json!(" "),
        json!("a"),
        json!("\u{0}"),
        json!("\u{120}"),
        json!("\u{2581}\u{2581}"),
        json!("the"),
        json!("never"),
        json!("Isolated"),
        json!("x".repeat(5000)),
        json!([]),
        json!({}),
        json!([[]]),
        json!(["a", "b"]),
        json!([null, null]),
        json!({ "type": "BPE" }),
    ];
    dice.pick(&values).clone()
}

/// Changes something somewhere below `value`.
fn mutate(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Object(map) if !map.is_empty() && dice.below(8) != 0 => {
            let names: Vec<String> = map.keys().cloned().collect();
            let name = dice.pick(&names).clone();
            match dice.below(12) {
                0 => drop(map.remove(&name)),
                1 => {
                    let other = map[dice.pick(&names)].clone();
                    map[&name] = other;
                }
                2 => {
                    let moved = map.remove(&name).unwrap_or_default();
                    map.insert(format!("{name}x"), moved);
                }
                _ => mutate(&mut map[&name], dice),
            }
        }
        Value::Array(list) if !list.is_empty() && dice.below(8) != 0 => {
            let at = dice.below(list.len());
            match dice.below(8) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                2 => list.swap(0, at),
                _ => mutate(&mut list[at], dice),
            }
        }
        other => *other = nonsense(dice),
    }
}

fn mutated(dice: &mut Dice, originals: &[Value]) -> Value {
    let mut json = dice.pick(originals).clone();
    for kind in ["normalizer", "pre_tokenizer", "decoder"] {
        if dice.below(3) == 0 {
            let depth = *dice.pick(&[0, 0, 0, 1, 2, 20]);
            json[kind] = nest(kind, dice.pick(&parts(kind)).clone(), depth);
        }
    }
    for _ in 0..dice.below(4) {
        mutate(&mut json, dice);
    }
    json
}

fn texts() -> Vec<String> {
    let mixed = "The caf\u{e9} is <|endoftext|> open; \u{1F600}\u{301} \u{4f60}\u{597d}\n\n 12 ";
    vec![
        String::new(),
        " ".to_owned(),
        "a".to_owned(),
        mixed.to_owned(),
        "\u{0}\u{feff}\u{202e}\u{fffd}\r\n".to_owned(),
        "a".repeat(3000),
        " ".repeat(3000),
        mixed.repeat(40),
        "\u{fdfa}".repeat(300),
    ]
}

/// `work`, which must not take long.
fn timed<T>(json: &str, what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    let time = begun.elapsed();
    assert!(time < Duration::from_secs(5), "{what} took {time:?}: {}", shown(json));
    result
}

/// What is done with a tokenizer that loads; errors are as good as ids.
fn use_all(tokenizer: &Tokenizer, json: &str, texts: &[String]) {
    for text in texts {
        let ids = timed(json, "encode", || tokenizer.encode(text));
        let _ = timed(json, "encode_ordinary", || tokenizer.encode_ordinary(text));
        let _ = timed(json, "encode_counting", || tokenizer.encode_counting(text));
        let mut stream = tokenizer.decode_stream();
        timed(json, "stream", || {
            for id in ids.iter().flatten() {
                let _ = stream.push(*id);
            }
            stream.finish()
        });
        let _ = timed(json, "decode", || tokenizer.decode(&ids.unwrap_or_default()));
    }
    let all: Vec<u32> = (0..tokenizer.vocab_size() as u32).take(3000).collect();
    let _ = timed(json, "decode of all", || tokenizer.decode(&all));
    assert_eq!(tokenizer.token_bytes().len(), tokenizer.vocab_size());
}

fn many(seed: u64, count: usize) {
    let originals = originals();
    let texts = texts();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let mut dice = Dice(seed);
    let mut loaded = 0;
    for _ in 0..count {
        let json = mutated(&mut dice, &originals).to_string();
        std::fs::write(&path, &json).unwrap();
        match timed(&json, "load", || Tokenizer::load(&path)) {
            Ok(tokenizer) => {
                use_all(&tokenizer, &json, &texts);
                loaded += 1;
            }
            Err(error) => assert!(error.to_string().contains("tokenizer.json"), "{error}"),
        }
    }
    assert!(loaded > count / 8 && loaded < count, "{loaded} of {count} load");
}

fn shown(json: &str) -> String {
    json.chars().take(2000).collect()
}

#[test]
fn originals_work() {
    for original in originals() {
        let tokenizer = Tokenizer::from_json(&original.to_string()).unwrap();
        assert!(!tokenizer.encode("the a").unwrap().is_empty(), "{original}");
    }
}

#[test]
fn damaged_tokenizers_end_nothing() {
    // More of them, and others, where somebody asks.
    let number = |name: &str, usual: u64| {
        std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
    };
    many(number("LATHE_SEED", 7), number("LATHE_ROUNDS", 80) as usize);
}
