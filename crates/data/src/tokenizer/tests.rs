//! Tests of training, the quick path, loading and streamed decoding.

use super::*;

const TEXT: &str = "The quick brown fox jumps over 13 lazy dogs. It's the dogs' 2nd day;\n\t\
    let x = foo(bar, 1234);\n\n\
    Caf\u{e9} na\u{ef}ve \u{1F600} \u{4f60}\u{597d} aaaa aaaaaaa aab baaab abab baba  \
    the the the there then\r\n";

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

fn texts() -> Vec<String> {
    let mut random = Random(7);
    let words: Vec<&str> = TEXT.split_inclusive(' ').collect();
    (0..200).map(|_| (0..30).map(|_| words[random.below(words.len())]).collect()).collect()
}

pub(super) fn trained() -> Tokenizer {
    Tokenizer::train(texts().into_iter(), &TrainOptions::new(350)).unwrap()
}

fn odd_texts() -> Vec<String> {
    let pieces = [
        "the",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "1",
        "42",
        "'s",
        "'",
        "\u{e9}",
        "\u{1F600}",
        "\u{4f60}",
        "\u{2153}",
        "\0",
        "\u{7f}",
        "<|endoftext|>",
        "<|im_start|>",
        "<|",
        "|>",
        "endoftext",
        "aaaa",
        "_x",
        "==",
        "\u{301}",
        "\u{a0}",
        "\u{200b}",
        "DOG",
        "\u{130}",
    ];
    let mut random = Random(99);
    let mut texts: Vec<String> = (0..300)
        .map(|_| (0..random.below(24)).map(|_| pieces[random.below(pieces.len())]).collect())
        .collect();
    texts.push(TEXT.repeat(20));
    texts
}

#[test]
fn training_is_identical_in_any_order_and_on_any_number_of_threads() {
    let expected = trained();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for turn in 0..4 {
            let mut shuffled = texts();
            shuffled.rotate_left(37 * turn);
            if turn % 2 == 1 {
                shuffled.reverse();
            }
            let again = pool.install(|| {
                Tokenizer::train(shuffled.into_iter(), &TrainOptions::new(350)).unwrap()
            });
            assert!(again.to_json() == expected.to_json(), "threads {threads}, turn {turn}");
        }
    }
    assert_eq!(expected.sha256().len(), 64);
}

#[test]
fn ties_are_broken_by_ids_alone() {
    let texts = || {
        (0..26u8).flat_map(|i| {
            [format!("{0}{0}", char::from(b'a' + i)), format!("{0}{0}", char::from(b'a' + i))]
        })
    };
    let first = Tokenizer::train(texts(), &TrainOptions::new(3 + 256 + 10)).unwrap();
    let second = Tokenizer::train(
        texts().collect::<Vec<_>>().into_iter().rev(),
        &TrainOptions::new(3 + 256 + 10),
    )
    .unwrap();
    assert_eq!(first.to_json(), second.to_json());
    assert_eq!(first.id_to_token(259).as_deref(), Some("aa"));
    assert_eq!(first.id_to_token(268).as_deref(), Some("jj"));
}

#[test]
fn vocabulary_holds_specials_first_and_every_byte() {
    let tokenizer = trained();
    assert_eq!(tokenizer.vocab_size(), 350);
    for (id, token) in [END_OF_TEXT, MESSAGE_START, MESSAGE_END].into_iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(token), Some(id as u32));
        assert!(tokenizer.is_special(id as u32));
    }
    assert_eq!(tokenizer.eos_id(), Some(0));
    assert!(!tokenizer.is_special(3) && !tokenizer.is_special(4000));
    let bytes = tokenizer.token_bytes();
    assert_eq!(bytes[..3], [0, 0, 0]);
    assert_eq!(bytes.iter().filter(|&&n| n == 1).count(), 256);
    assert!(bytes[3..].iter().all(|&n| n >= 1));
    for text in odd_texts() {
        let ids = tokenizer.encode_ordinary(&text).unwrap();
        assert_eq!(
            ids.iter().map(|&id| bytes[id as usize] as usize).sum::<usize>(),
            text.len(),
            "{text:?}"
        );
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

#[test]
fn merges_make_ids_fewer_and_digits_stay_single() {
    let tokenizer = trained();
    assert!(tokenizer.encode("the quick brown fox").unwrap().len() < 10);
    assert_eq!(tokenizer.encode("1234").unwrap().len(), 4);
}

#[test]
fn quick_path_equals_the_general_pipeline() {
    let tokenizer = trained();
    let plain = [
        "\"pre_tokenizer\": {",
        "    \"type\": \"ByteLevel\",",
        "    \"add_prefix_space\": false,",
        "    \"trim_offsets\": true,",
        "    \"use_regex\": true",
        "  }",
    ]
    .join("\n");
    let json = tokenizer.to_json();
    let (start, end) =
        (json.find("\"pre_tokenizer\"").unwrap(), json.find(",\n  \"post_processor\"").unwrap());
    let without_digits =
        Tokenizer::from_json(&format!("{}{plain}{}", &json[..start], &json[end..])).unwrap();
    for tokenizer in [tokenizer, without_digits] {
        assert!(tokenizer.shared.quick.is_some());
        for text in odd_texts() {
            assert_eq!(
                tokenizer.encode(&text).unwrap(),
                tokenizer.encode_slowly(&text, false),
                "{text:?}"
            );
            assert_eq!(
                tokenizer.encode_ordinary(&text).unwrap(),
                tokenizer.encode_slowly(&text, true),
                "{text:?}"
            );
        }
    }
}

#[test]
fn special_tokens_in_text_are_read_or_spelled() {
    let tokenizer = trained();
    let text = "a<|endoftext|>b<|im_end|>";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id < 3).copied().collect::<Vec<_>>(), [0, 2]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "ab");
    let ordinary = tokenizer.encode_ordinary(text).unwrap();
    assert!(ordinary.iter().all(|&id| id >= 3));
    assert_eq!(tokenizer.decode(&ordinary).unwrap(), text);
}

#[test]
fn batches_equal_single_texts() {
    let tokenizer = trained();
    let texts = odd_texts();
    let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = tokenizer.encode_batch(&refs).unwrap();
    for (text, ids) in texts.iter().zip(batch) {
        assert_eq!(ids, tokenizer.encode(text).unwrap());
    }
}

#[test]
fn saving_and_loading_keep_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let tokenizer = trained();
    tokenizer.save(&path).unwrap();
    let loaded = Tokenizer::load(&path).unwrap();
    assert_eq!(loaded.to_json(), tokenizer.to_json());
    assert_eq!(loaded.sha256(), tokenizer.sha256());
    assert_eq!(loaded.token_bytes(), tokenizer.token_bytes());
    assert_eq!(loaded.encode(TEXT).unwrap(), tokenizer.encode(TEXT).unwrap());
}

#[test]
fn truncation_padding_and_dropout_of_a_file_are_switched_off() {
    let json = trained().to_json().replacen(
        "\"truncation\": null",
        "\"truncation\": {\"direction\":\"Right\",\"max_length\":4,\
         \"strategy\":\"LongestFirst\",\"stride\":0}",
        1,
    );
    let json = json.replacen("\"dropout\": null", "\"dropout\": 0.5", 1);
    let json = json.replacen(
        "\"padding\": null",
        "\"padding\": {\"direction\":\"Right\",\"pad_id\":0,\"pad_to_multiple_of\":null,\
         \"pad_token\":\"<|endoftext|>\",\"pad_type_id\":0,\"strategy\":{\"Fixed\":500}}",
        1,
    );
    for switched_on in ["max_length", "0.5", "Fixed"] {
        assert!(json.contains(switched_on), "{switched_on}");
    }
    let loaded = Tokenizer::from_json(&json).unwrap();
    assert_eq!(loaded.encode(TEXT).unwrap(), trained().encode(TEXT).unwrap());
    assert_eq!(loaded.encode_slowly(TEXT, false), trained().encode(TEXT).unwrap());
}

#[test]
fn encoding_is_given_up_when_its_time_has_passed() {
    let tokenizer = trained();
    let text = format!("{TEXT} <|endoftext|> {TEXT}");
    let now = std::time::Instant::now();
    let later = now + std::time::Duration::from_secs(3600);
    for (ordinary, ids) in
        [(false, tokenizer.encode(&text)), (true, tokenizer.encode_ordinary(&text))]
    {
        let ids = ids.unwrap();
        assert_eq!(tokenizer.encode_until(&text, ordinary, later).unwrap(), Some(ids));
        assert_eq!(tokenizer.encode_until(&text, ordinary, now).unwrap(), None);
    }
}

pub(super) fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.decode_stream();
    let mut text = String::new();
    for &id in ids {
        if let Some(piece) = stream.push(id).unwrap() {
            assert!(!piece.is_empty());
            text.push_str(&piece);
        }
    }
    text + &stream.finish().unwrap_or_default()
}

#[test]
fn stream_equals_decode_for_text_and_for_random_ids() {
    let tokenizer = trained();
    for text in odd_texts() {
        let ids = tokenizer.encode_ordinary(&text).unwrap();
        assert_eq!(streamed(&tokenizer, &ids), text);
    }
    let mut random = Random(3);
    for _ in 0..3000 {
        let ids: Vec<u32> = (0..random.below(12)).map(|_| random.below(260) as u32).collect();
        assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids).unwrap(), "{ids:?}");
    }
    // Every split of four-byte characters and broken starts of them.
    let bytes: Vec<u32> = [
        0xF0, 0x9F, 0x98, 0x80, 0xF0, 0x9F, 0x41, 0xE2, 0x82, 0xC3, 0xFF, 0xC3, 0xA9, 0xF4, 0x90,
        0xED, 0xA0,
    ]
    .iter()
    .map(|&b| tokenizer.token_to_id(&crate::words::BYTE_CHAR[b].to_string()).unwrap())
    .collect();
    for start in 0..bytes.len() {
        for end in start..=bytes.len() {
            assert_eq!(
                streamed(&tokenizer, &bytes[start..end]),
                tokenizer.decode(&bytes[start..end]).unwrap()
            );
        }
    }
}

#[test]
fn stream_never_gives_half_a_character() {
    let tokenizer = trained();
    let mut stream = tokenizer.decode_stream();
    let ids: Vec<u32> = "\u{1F600}"
        .bytes()
        .map(|b| {
            tokenizer.token_to_id(&crate::words::BYTE_CHAR[usize::from(b)].to_string()).unwrap()
        })
        .collect();
    assert_eq!(stream.push(ids[0]).unwrap(), None);
    assert_eq!(stream.push(ids[1]).unwrap(), None);
    assert_eq!(stream.push(ids[2]).unwrap(), None);
    assert_eq!(stream.push(ids[3]).unwrap().as_deref(), Some("\u{1F600}"));
    assert_eq!(stream.finish(), None);
}

pub(super) const SPACED: &str = r#"{"version":"1.0","truncation":null,"padding":null,
    "added_tokens":[
    {"id":0,"content":"<unk>","single_word":false,"lstrip":false,
     "rstrip":false,"normalized":false,"special":true},
    {"id":1,"content":"</s>","single_word":false,"lstrip":false,
     "rstrip":false,"normalized":false,"special":true}],
    "normalizer":{"type":"Sequence","normalizers":[
     {"type":"Prepend","prepend":"\u2581"},{"type":"Replace","pattern":{"String":" "},"content":"\u2581"}]},
    "pre_tokenizer":null,"post_processor":null,
    "decoder":{"type":"Sequence","decoders":[
     {"type":"Replace","pattern":{"String":"\u2581"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},
     {"type":"Strip","content":" ","start":1,"stop":0}]},
    "model":{"type":"BPE","dropout":null,"unk_token":"<unk>",
     "continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":true,
    "vocab":{"<unk>":0,"</s>":1,"<0xC3>":2,"<0xA9>":3,"\u2581":4,"a":5,"b":6,"\u2581a":7,"ab":8},
    "merges":["\u2581 a","a b"]}}"#;

#[test]
fn other_decoders_stream_too() {
    let tokenizer = Tokenizer::from_json(SPACED).unwrap();
    assert_eq!(tokenizer.eos_id(), Some(1));
    // A space that begins the second id is no space that begins the text.
    for text in ["ab a\u{e9} b", "a a b"] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(streamed(&tokenizer, &ids), text);
    }
    assert_eq!(tokenizer.token_bytes(), [0, 0, 1, 1, 1, 1, 1, 2, 2]);
}

fn added(id: u32, content: &str) -> serde_json::Value {
    serde_json::json!({ "id": id, "content": content, "special": false, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false })
}

#[test]
fn added_tokens_stand_for_their_own_bytes() {
    let plain = Tokenizer::train(
        std::iter::repeat_n("caf\u{e9} a b".to_owned(), 9),
        &TrainOptions::new(270),
    )
    .unwrap();
    let first = plain.vocab_size() as u32;
    // The first character of the first is a byte in the alphabet of byte-level tokens, that of the
    // second a blank.
    let own = ["\u{e9}!", "\u{120}!", "  ", "<|\u{ff5c}|>", "<0x41>"];
    let mut json: serde_json::Value = serde_json::from_str(plain.to_json()).unwrap();
    for (content, id) in own.iter().zip(first..) {
        json["added_tokens"].as_array_mut().unwrap().push(added(id, content));
    }
    let whole = Tokenizer::from_json(&json.to_string()).unwrap();
    // Some files name the decoder in a list of one.
    json["decoder"] = serde_json::json!({ "type": "Sequence", "decoders": [json["decoder"]] });
    let listed = Tokenizer::from_json(&json.to_string()).unwrap();
    // Files of other programs have all tokens in the vocabulary.
    let mut words: serde_json::Value = serde_json::from_str(whole.to_json()).unwrap();
    for (content, id) in own.iter().zip(first..) {
        words["model"]["vocab"][*content] = id.into();
    }
    let words = Tokenizer::from_json(&words.to_string()).unwrap();
    for tokenizer in [whole, listed, words] {
        for (content, id) in own.iter().zip(first..) {
            assert_eq!(tokenizer.decode(&[id]).unwrap(), *content);
            assert_eq!(tokenizer.bytes_of(id), content.as_bytes());
            assert_eq!(streamed(&tokenizer, &[id]), *content);
            assert_eq!(tokenizer.token_bytes()[id as usize], content.len() as u32);
        }
        let text = "a caf\u{e9}!  b\u{120}! \u{e9}";
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.bytes_of(id)).collect();
        assert_eq!(bytes, text.as_bytes());
    }
}

#[test]
fn tokens_have_the_bytes_that_their_decoder_gives_them() {
    let spaced = Tokenizer::from_json(SPACED).unwrap();
    let names: Vec<Vec<u8>> = (0..9).map(|id| spaced.bytes_of(id)).collect();
    let expected: [&[u8]; 9] =
        [b"<unk>", b"</s>", &[0xC3], &[0xA9], b" ", b"a", b"b", b" a", b"ab"];
    assert_eq!(names, expected);
    let pieces = Tokenizer::from_json(
        &serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null,
            "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null,
            "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": false },
            "model": { "type": "WordPiece", "unk_token": "[U]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": { "[U]": 0, "cat": 1, "##s": 2, "dog": 3 } },
        })
        .to_string(),
    )
    .unwrap();
    let names: Vec<Vec<u8>> = (1..4).map(|id| pieces.bytes_of(id)).collect();
    assert_eq!(names, [&b" cat"[..], b"s", b" dog"]);
    assert_eq!(pieces.bytes_of(99), b"");
}

#[test]
fn sampling_does_not_depend_on_order_and_keeps_the_limit() {
    let options = TrainOptions { max_bytes: Some(4000), ..TrainOptions::new(300) };
    let forward = Tokenizer::train(texts().into_iter(), &options).unwrap();
    let backward = Tokenizer::train(texts().into_iter().rev(), &options).unwrap();
    assert_eq!(forward.to_json(), backward.to_json());
    let mut uneven = texts();
    for (i, text) in uneven.iter_mut().enumerate() {
        *text = text.repeat(1 + i * i % 7);
    }
    let expected = train::sample(uneven.clone().into_iter(), 5000).len();
    for turn in 0..uneven.len() {
        let mut order = uneven.clone();
        order.rotate_left(turn);
        let mut kept = train::sample(order.into_iter(), 5000);
        assert!(kept.iter().map(String::len).sum::<usize>() <= 5000);
        kept.sort_unstable();
        assert_eq!(kept.len(), expected);
    }
}

#[test]
fn bad_training_options_are_named() {
    let train = |options: TrainOptions| {
        Tokenizer::train(texts().into_iter(), &options).err().unwrap().to_string()
    };
    assert!(train(TrainOptions::new(258)).contains("vocab_size"));
    assert!(train(TrainOptions::new(1 << 30)).contains("vocab_size"));
    for specials in
        [vec!["x".to_owned()], vec![String::new()], vec!["<a>".to_owned(), "<a>".to_owned()]]
    {
        let options = TrainOptions { special_tokens: specials, ..TrainOptions::new(350) };
        assert!(train(options).contains("special_tokens"));
    }
}

#[test]
fn little_text_gives_a_smaller_vocabulary() {
    let tokenizer =
        Tokenizer::train(std::iter::once("ab ab".to_owned()), &TrainOptions::new(5000)).unwrap();
    assert_eq!(tokenizer.vocab_size(), 3 + 256 + 1);
    let empty = Tokenizer::train(std::iter::empty(), &TrainOptions::new(5000)).unwrap();
    assert_eq!(empty.decode(&empty.encode("x y").unwrap()).unwrap(), "x y");
}

#[test]
fn a_pattern_without_an_end_is_an_error() {
    let slow = r#""pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a+)+$b"},
        "behavior":"Isolated","invert":false}"#;
    let tokenizer =
        Tokenizer::from_json(&SPACED.replace("\"pre_tokenizer\":null", slow)).expect("a tokenizer");
    let text = format!("{}!", "a".repeat(60));
    let error = tokenizer.encode(&text).expect_err("too many steps").to_string();
    assert!(error.contains("tokenizer.json") && error.contains("too many steps"), "{error}");
    tokenizer.encode("ab").expect("the tokenizer goes on");
}

/// Word patterns as they are published, each with a name.
const PUBLISHED: [(&str, &str); 4] = [
    ("gpt-2", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    (
        "llama-3",
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
    ),
    (
        "qwen-2",
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
    ),
    (
        "o200k",
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
    ),
];

/// The trained vocabulary under another word pattern.
fn under(pattern: &str) -> Tokenizer {
    let mut json: serde_json::Value = serde_json::from_str(trained().to_json()).unwrap();
    json["pre_tokenizer"] = serde_json::json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
            "invert": false },
        { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": false }] });
    Tokenizer::from_json(&json.to_string()).unwrap()
}

/// Lines of odd words, longer than several stretches.
fn long_text() -> String {
    let mut random = Random(5);
    let mut texts = odd_texts();
    texts.extend(texts_of_lines());
    (0..9000).map(|_| texts[random.below(texts.len())].clone() + "\n").collect()
}

fn texts_of_lines() -> Vec<String> {
    let lines = ["A line of words", "and one more.", "x1", "", " indented", "It's 12", "END\r"];
    lines.iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn long_texts_have_the_ids_of_the_whole_under_published_patterns() {
    let text = long_text();
    assert!(text.len() > 200_000, "{}", text.len());
    for (name, pattern) in PUBLISHED {
        let tokenizer = under(pattern);
        assert!(tokenizer.shared.lines_apart, "{name}");
        assert!(stretches(&text, true).count() > 2);
        assert_eq!(
            tokenizer.encode(&text).unwrap(),
            tokenizer.encode_slowly(&text, false),
            "{name}"
        );
        let (ids, bytes) = tokenizer.encode_counting(&text).unwrap();
        assert_eq!(ids, tokenizer.encode_ordinary(&text).unwrap(), "{name}");
        assert_eq!(bytes.iter().sum::<u32>() as usize, text.len(), "{name}");
    }
    assert!(trained().shared.lines_apart);
    // One whose words reach over line ends is not cut there.
    assert!(!under(r"\s?\p{L}+|\s+|[^\s\p{L}]+").shared.lines_apart);
}

#[test]
fn a_run_that_is_too_long_for_a_pattern_is_cut() {
    let tokenizer = under(PUBLISHED[1].1);
    let text = " ".repeat(11 << 20);
    let ids = tokenizer.encode_ordinary(&text).unwrap();
    let bytes = tokenizer.token_bytes();
    assert_eq!(ids.iter().map(|&id| bytes[id as usize] as usize).sum::<usize>(), text.len());
}

#[test]
fn what_makes_a_text_longer_without_end_is_refused() {
    let twice = r#"{"type":"Replace","pattern":{"Regex":"."},"content":"xxxx"}"#;
    let step = |pattern: &str, content: &str| {
        format!(r#"{{"type":"Replace","pattern":{pattern},"content":"{content}"}}"#)
    };
    let cases = [
        (step(r#"{"String":""}"#, "0123456789abcdef"), "17 times"),
        (step(r#"{"Regex":"x*"}"#, "0123456789abcdef"), "17 times"),
        (format!(r#"{{"type":"Sequence","normalizers":[{}]}}"#, [twice; 3].join(",")), "64 times"),
        (format!(r#"{{"type":"Prepend","prepend":"{}"}}"#, "x".repeat(1025)), "1025"),
        (
            format!(
                "{}{twice}{}",
                r#"{"type":"Sequence","normalizers":["#.repeat(9),
                "]}".repeat(9)
            ),
            "levels",
        ),
    ];
    for (part, found) in cases {
        for field in ["normalizer", "decoder"] {
            let part = part.replace("normalizers", &format!("{field}s"));
            let mut json: serde_json::Value = serde_json::from_str(SPACED).unwrap();
            json[field] = serde_json::from_str(&part).unwrap();
            let error = Tokenizer::from_json(&json.to_string()).err().expect(&part).to_string();
            assert!(error.contains(field) && error.contains(found), "{error}");
        }
    }
}

#[test]
fn texts_that_fit_are_all_learned_from() {
    let texts = ["a", "bc", "def"].map(str::to_owned);
    let mut all = super::train::sample(texts.clone().into_iter(), 6);
    all.sort();
    assert_eq!(all, texts);
    let some = super::train::sample(texts.into_iter(), 5);
    assert!(some.iter().map(String::len).sum::<usize>() <= 5 && !some.is_empty(), "{some:?}");
}
