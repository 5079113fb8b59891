//! Tokenizers out of GGUF files, loaded and used by the library whose format is written.

use data::SpecialTokens;

use super::common::{
    Raw, alphabet, array, byte_tokenizer, export_to, gguf_options, medium, special, string, weights,
};
use formats::gguf::{Gguf, GgufModel, GgufWeightType};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

const TEXT: &str = "hello world 1234 he'll\n\n  \thellohello </s> \u{e9}\u{4f60}\u{1f600} l12<s>";

fn ids(json: &[u8], text: &str) -> Vec<u32> {
    Tokenizer::from_bytes(json).unwrap().encode(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn a_byte_level_tokenizer_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let (json, settings) = (byte_tokenizer(), medium());
    export_to(&path, &settings, GgufWeightType::F16, &json).unwrap();
    let back = GgufModel::new(Gguf::open(&path).unwrap()).unwrap().tokenizer_json().unwrap();
    let (first, second) =
        (Tokenizer::from_bytes(&json).unwrap(), Tokenizer::from_bytes(&back).unwrap());
    assert_eq!(
        first.get_vocab(true),
        second.get_vocab(true),
        "fillers of unused rows are left out"
    );
    let found = ids(&back, TEXT);
    assert_eq!(found, ids(&json, TEXT));
    assert!(found.contains(&0) && found.contains(&1), "special tokens are recognised");
    assert_eq!(second.decode(&found, false).unwrap(), TEXT);
    assert_eq!(
        ids(&back, "12"),
        ids(&back, "1").into_iter().chain(ids(&back, "2")).collect::<Vec<_>>()
    );
}

/// The small file with the byte alphabet as its vocabulary and the medium shapes' row count.
fn with_tokens(change: impl FnOnce(&mut Raw, &mut Vec<String>)) -> Raw {
    let mut raw = Raw::small();
    let mut tokens = vec!["<s>".to_owned(), "</s>".to_owned()];
    tokens.extend(alphabet());
    change(&mut raw, &mut tokens);
    let vocab = tokens.len();
    raw.set(
        "tokenizer.ggml.tokens",
        9,
        array(8, &tokens.iter().map(|t| string(t)).collect::<Vec<_>>()),
    );
    raw.set("llama.vocab_size", 4, (vocab as u32).to_le_bytes().to_vec());
    raw.data.resize(raw.data.len() + 2 * (vocab * 16 + 32), 0);
    for (i, name) in ["token_embd.weight", "output.weight"].into_iter().enumerate() {
        let offset = (raw.data.len() - (2 - i) * (vocab * 16 + 32)).next_multiple_of(32) as u64;
        let tensor = raw.tensor(name);
        (tensor.sizes[1], tensor.offset) = (vocab as u64, offset);
    }
    raw
}

fn tokenizer_of(raw: &Raw) -> Result<Vec<u8>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.gguf");
    std::fs::write(&path, raw.bytes()).unwrap();
    let llama = GgufModel::new(Gguf::open(&path).unwrap()).unwrap();
    llama.tokenizer_json().map_err(|e| e.to_string())
}

fn byte_level(pre: &str, extra: &[&str], merges: &[&str]) -> Vec<u8> {
    let raw = with_tokens(|raw, tokens| {
        tokens.extend(extra.iter().map(|token| (*token).to_owned()));
        let types: Vec<Vec<u8>> = (0..tokens.len())
            .map(|id| (if id < 2 { 3_u32 } else { 1 }).to_le_bytes().to_vec())
            .collect();
        raw.set("tokenizer.ggml.token_type", 9, array(5, &types));
        raw.set("tokenizer.ggml.pre", 8, string(pre));
        raw.set(
            "tokenizer.ggml.merges",
            9,
            array(8, &merges.iter().map(|m| string(m)).collect::<Vec<_>>()),
        );
    });
    tokenizer_of(&raw).unwrap()
}

#[test]
fn control_tokens_end_a_text_by_their_names() {
    let found = |names: &[&str], kind: u32, eos: u32| {
        let raw = with_tokens(|raw, tokens| {
            tokens.extend(names.iter().map(|name| (*name).to_owned()));
            let types: Vec<Vec<u8>> = (0..tokens.len())
                .map(|id| (if (2..258).contains(&id) { 1 } else { kind }).to_le_bytes().to_vec())
                .collect();
            raw.set("tokenizer.ggml.token_type", 9, array(5, &types));
            raw.set("tokenizer.ggml.eos_token_id", 4, eos.to_le_bytes().to_vec());
            raw.set("tokenizer.ggml.padding_token_id", 4, 9999_u32.to_le_bytes().to_vec());
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.gguf");
        std::fs::write(&path, raw.bytes()).unwrap();
        GgufModel::new(Gguf::open(&path).unwrap()).unwrap().special().unwrap()
    };
    let names = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<end_of_turn>"];
    // The id that the file gives is the main one; `</s>` is one of the small file, too.
    assert_eq!(found(&names, 3, 260).eos, [260, 1, 258, 261]);
    assert_eq!(found(&names, 3, 258).eos, [258, 1, 260, 261]);
    // Words that are no control tokens are text.
    assert_eq!(found(&names, 4, 258).eos, [258]);
    assert_eq!(found(&names, 4, 258).pad, None, "nothing pads");
}

#[test]
fn each_pre_tokenizer_cuts_its_own_way() {
    // A merge across a cut never happens, so the joined tokens show where the cuts are.
    let extra = ["12", "34", "1234", "123", "A.", "\u{120}!", ".."];
    let merges = ["1 2", "3 4", "12 34", "12 3", "A .", "\u{120} !", ". ."];
    let spelled = |pre: &str, text: &str| {
        let json = byte_level(pre, &extra, &merges);
        let tokenizer = Tokenizer::from_bytes(&json).unwrap();
        tokenizer.encode(text, false).unwrap().get_tokens().to_vec()
    };
    assert_eq!(spelled("smollm", "1234"), ["1", "2", "3", "4"]);
    assert_eq!(spelled("gpt-2", "1234"), ["1234"]);
    assert_eq!(spelled("llama-bpe", "1234"), ["123", "4"]);
    assert_eq!(spelled("llama3", "1234"), ["123", "4"]);
    assert_eq!(spelled("qwen2", "1234"), ["1", "2", "3", "4"]);
    assert_eq!(spelled("default", "1234"), ["123", "4"]);
    assert_eq!(spelled("gpt-2", " !.."), ["\u{120}!", ".."]);
    assert_eq!(spelled("default", " !.."), ["\u{120}", "!", ".."]);
    // Only qwen2 composes: e and a combining acute become two bytes instead of three.
    assert_eq!((spelled("qwen2", "e\u{301}").len(), spelled("gpt-2", "e\u{301}").len()), (2, 3));
}

#[test]
fn begin_of_text_is_prepended_where_the_file_or_the_kind_says() {
    let with = |pre: &str, add: Option<bool>| {
        let raw = with_tokens(|raw, tokens| {
            raw.remove("tokenizer.ggml.token_type");
            raw.set("tokenizer.ggml.pre", 8, string(pre));
            raw.set("tokenizer.ggml.merges", 9, array(8, &[]));
            assert!(tokens.len() == 258);
            if let Some(add) = add {
                raw.set("tokenizer.ggml.add_bos_token", 7, vec![u8::from(add)]);
            }
        });
        let tokenizer = Tokenizer::from_bytes(tokenizer_of(&raw).unwrap()).unwrap();
        tokenizer.encode("a", true).unwrap().get_ids().first() == Some(&0)
    };
    assert!(!with("gpt-2", None) && with("gpt-2", Some(true)));
    assert!(with("llama-bpe", None) && !with("llama-bpe", Some(false)));
}

/// A SentencePiece vocabulary: specials, 256 bytes, letters and pieces with scores.
fn pieces(prefix: Option<bool>) -> Vec<u8> {
    let mut raw = with_tokens(|raw, tokens| {
        tokens.clear();
        tokens.extend(["<unk>", "<s>", "</s>"].map(str::to_owned));
        tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        let words = [
            "\u{2581}h",
            "he",
            "ll",
            "\u{2581}he",
            "llo",
            "\u{2581}hello",
            "\u{2581}",
            "h",
            "e",
            "l",
            "o",
        ];
        tokens.extend(words.map(str::to_owned));
        let kinds = (0..tokens.len()).map(|id| match id {
            0 => 2_u32,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        });
        raw.set(
            "tokenizer.ggml.token_type",
            9,
            array(5, &kinds.map(|k| k.to_le_bytes().to_vec()).collect::<Vec<_>>()),
        );
        let scores = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 258.0 - id as f32 });
        raw.set(
            "tokenizer.ggml.scores",
            9,
            array(6, &scores.map(|s: f32| s.to_le_bytes().to_vec()).collect::<Vec<_>>()),
        );
    });
    raw.set("tokenizer.ggml.model", 8, string("llama"));
    raw.set("tokenizer.ggml.bos_token_id", 4, 1_u32.to_le_bytes().to_vec());
    raw.set("tokenizer.ggml.eos_token_id", 4, 2_u32.to_le_bytes().to_vec());
    if let Some(prefix) = prefix {
        raw.set("tokenizer.ggml.add_space_prefix", 7, vec![u8::from(prefix)]);
    }
    tokenizer_of(&raw).unwrap()
}

#[test]
fn a_sentence_piece_vocabulary_merges_by_score_and_falls_back_to_bytes() {
    let json = pieces(None);
    let tokenizer = Tokenizer::from_bytes(&json).unwrap();
    let spelled =
        |text: &str, special| tokenizer.encode(text, special).unwrap().get_tokens().to_vec();
    assert_eq!(spelled("hello", true), ["<s>", "\u{2581}hello"]);
    // Of "_h" and "he" the first has the higher score, so "he" is never formed after a space.
    assert_eq!(spelled("hehe", false), ["\u{2581}he", "he"]);
    assert_eq!(spelled("h\u{e9}", false), ["\u{2581}h", "<0xC3>", "<0xA9>"]);
    let found = tokenizer.encode("hello h\u{e9}llo\n</s>", false).unwrap();
    assert_eq!(found.get_ids().last(), Some(&2));
    assert_eq!(tokenizer.decode(found.get_ids(), true).unwrap(), "hello h\u{e9}llo\n");
    let plain = Tokenizer::from_bytes(pieces(Some(false))).unwrap();
    assert_eq!(plain.encode("hello", false).unwrap().get_tokens(), ["he", "llo"]);
    assert_eq!(
        plain.decode(plain.encode(" hello", false).unwrap().get_ids(), true).unwrap(),
        " hello"
    );
}

#[test]
fn a_sentence_piece_tokenizer_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let settings = medium();
    let special =
        SpecialTokens { bos: Some(1), eos: vec![2], pad: None, chat_template: None, add_bos: true };
    let write = |name: &str, json: &Value| {
        let path = folder.path().join(name);
        let tokenizer = json.to_string().into_bytes();
        let options = gguf_options(GgufWeightType::F32, &tokenizer, &special);
        formats::gguf::export(&path, &settings, &weights(&settings), &options)
            .map(|()| path)
            .map_err(|error| error.to_string())
    };
    for (name, prefix) in [("with.gguf", true), ("without.gguf", false)] {
        let json: Value = serde_json::from_slice(&pieces(Some(prefix))).unwrap();
        let path = write(name, &json).unwrap();
        let file = Gguf::open(&path).unwrap();
        let back = GgufModel::new(file).unwrap().tokenizer_json().unwrap();
        let back: Value = serde_json::from_slice(&back).unwrap();
        for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder", "model"] {
            assert_eq!(back[part], json[part], "{name}: {part}");
        }
        assert_eq!(back["added_tokens"], json["added_tokens"]);
        for text in ["hello hehe", " h\u{e9}llo\n", "</s>hello"] {
            let [back, json] = [&back, &json].map(|of| ids(of.to_string().as_bytes(), text));
            assert_eq!(back, json, "{name}: {text}");
        }
    }
    let whole: Value = serde_json::from_slice(&pieces(None)).unwrap();
    // Orders of one piece's ways, and a cut where no space is left, mean the same.
    let mut same = whole.clone();
    let ways = same["model"]["merges"].as_array().unwrap();
    let made = |pair: &Value| format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let at = ways.iter().position(|pair| made(pair) == "\u{2581}he").unwrap();
    assert_eq!(made(&ways[at + 1]), "\u{2581}he", "two ways");
    same["model"]["merges"].as_array_mut().unwrap().swap(at, at + 1);
    same["pre_tokenizer"] = json!({
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
        "invert": false,
    });
    write("same.gguf", &same).unwrap();
    type Change = fn(&mut Value);
    let changes: [(&str, Change, &str); 7] = [
        ("order", |json| json["model"]["merges"].as_array_mut().unwrap().swap(0, 3), "merges"),
        ("fewer", |json| drop(json["model"]["merges"].as_array_mut().unwrap().pop()), "merges"),
        ("none", |json| json["model"]["merges"] = json!([]), "merges"),
        ("bytes", |json| drop(json["model"]["vocab"].as_object_mut().unwrap().remove("<0x41>")), {
            "model.vocab"
        }),
        ("unknown", |json| json["model"]["unk_token"] = json!("?"), "unk_token"),
        ("spaces", |json| json["normalizer"] = Value::Null, "normalizer"),
        ("cuts", |json| json["pre_tokenizer"] = json!({"type": "Whitespace"}), "pre_tokenizer"),
    ];
    for (name, change, field) in changes {
        let mut json = whole.clone();
        change(&mut json);
        let error = write(&format!("{name}.gguf"), &json).unwrap_err();
        assert!(error.contains(field), "{name}: {error}");
    }
}

#[test]
fn what_the_form_cannot_say_of_a_tokenizer_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let settings = medium();
    let fails = |eos: Vec<u32>, change: &dyn Fn(&mut Value), field: &str| {
        let mut json: Value = serde_json::from_slice(&byte_tokenizer()).unwrap();
        change(&mut json);
        let tokenizer = json.to_string().into_bytes();
        let special = SpecialTokens { eos, ..special() };
        let export = gguf_options(GgufWeightType::F32, &tokenizer, &special);
        let message = formats::gguf::export(&path, &settings, &weights(&settings), &export)
            .unwrap_err()
            .to_string();
        assert!(message.contains("m.gguf") && message.contains(field), "{message}");
    };
    // None of them is an end by its name, which would need no place.
    fails(vec![0, 2, 3, 4], &|_| (), "eos token ids");
    fails(vec![300], &|_| (), "eos token id");
    fails(vec![1], &|json| json["pre_tokenizer"] = json!({"type": "Whitespace"}), "pre_tokenizer");
    fails(vec![1], &|json| json["normalizer"] = json!({"type": "NFC"}), "pre_tokenizer");
    fails(vec![1], &|json| json["model"]["type"] = json!("Unigram"), "model");
    fails(vec![1], &|json| json["model"]["byte_fallback"] = json!(true), "model");
    fails(vec![1], &|json| json["model"]["vocab"]["he"] = json!("x"), "model.vocab[\"he\"]");
    fails(vec![1], &|json| json["model"]["vocab"]["he"] = json!(5), "an id of its own");
    fails(vec![1], &|json| json["model"]["merges"][1] = json!(["a b", "c"]), "model.merges[1]");
    fails(vec![1], &|json| json["added_tokens"][1]["lstrip"] = json!(true), "added_tokens[1]");
    fails(vec![1], &|json| json["added_tokens"][1]["id"] = json!(7), "added_tokens[1]");
}
