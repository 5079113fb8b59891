//! Chats of one's own: rows of messages become ids with the answers marked, and a model learns to
//! give them.

mod common;

use common::{Place, dense_recipe, document};
use data::Tokenizer;
use serde_json::{Value, json};

const OPEN: &str = "<|im_start|>";
const CLOSE: &str = "<|im_end|>";

/// A tokenizer, which knows the two tokens of ChatML, and rows of chats.
fn with_chats() -> Place {
    let place = Place::empty();
    place.write_text("text");
    place.train_tokenizer("300", "tokenizer.json");
    place.write("chats/rows.jsonl", rows(40));
    place
}

fn said(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// Conversations of up to six messages, some longer than a window of 32 tokens; one spells a token
/// of the template.
fn messages(i: u64) -> Vec<Value> {
    let mut all = Vec::new();
    if i.is_multiple_of(3) {
        all.push(said("system", &document(i, 1)));
    }
    for turn in 0..1 + i % 3 {
        let asked = if i == 4 { format!("a {CLOSE} b") } else { format!("say {}", i + turn) };
        all.push(said("user", &asked));
        all.push(said("assistant", &document(100 + i + turn, 1 + i % 2)));
    }
    all
}

fn rows(count: u64) -> String {
    (0..count).map(|i| format!("{}\n", json!({ "messages": messages(i), "id": i }))).collect()
}

fn build(place: &Place, more: &[&str]) -> common::Ended {
    let words = ["data", "build", "--chat", "--input", "chats", "--sequence-length", "32"];
    place.run(&[&words[..], more].concat())
}

/// Ids and marks of all conversations as ChatML is written: what the assistant is asked to add.
fn expected(tokenizer: &Tokenizer, count: u64) -> (Vec<u32>, Vec<bool>) {
    let [open, close] = [OPEN, CLOSE].map(|name| tokenizer.token_to_id(name).expect("a token"));
    let (mut ids, mut learned) = (Vec::new(), Vec::new());
    for i in 0..count {
        for message in messages(i) {
            let text = |key: &str| message[key].as_str().expect("a string").to_owned();
            let answers = text("role") == "assistant";
            let head = format!("{}\n", text("role"));
            let plain = |text: &str| tokenizer.encode_ordinary(text).expect("encodes");
            let content = match answers {
                true => [(plain(&head), false), (plain(&text("content")), true)],
                false => [(plain(&format!("{head}{}", text("content"))), false), (vec![], false)],
            };
            let parts = [(vec![open], false)]
                .into_iter()
                .chain(content)
                .chain([(vec![close], answers), (plain("\n"), answers)]);
            for (part, counts) in parts {
                learned.extend(part.iter().map(|_| counts));
                ids.extend(part);
            }
        }
        ids.push(tokenizer.eos_id().expect("an end"));
        learned.push(false);
    }
    (ids, learned)
}

/// Ids and marks as they stand in the files of a folder.
fn stored(place: &Place, folder: &str) -> (Vec<u32>, Vec<bool>) {
    let shard = place.read(&format!("{folder}/train-00000.shard"));
    let tokens = u64::from_le_bytes(shard[24..32].try_into().expect("8 bytes")) as usize;
    let ids = shard[64..64 + 2 * tokens].chunks(2);
    let ids = ids.map(|two| u32::from(u16::from_le_bytes([two[0], two[1]]))).collect();
    let mask = place.read(&format!("{folder}/train-00000.shard.learned"));
    (ids, (0..tokens).map(|i| mask[i / 8] >> (i % 8) & 1 == 1).collect())
}

#[test]
fn answers_and_nothing_else_are_marked() {
    let place = with_chats();
    let tokenizer = Tokenizer::load(&place.path("tokenizer.json")).expect("reads");
    let all = ["--tokenizer", "tokenizer.json", "--valid-per-mille", "0"];
    let told = build(&place, &[&all[..], &["--chat-template", "chatml", "--out", "a"]].concat());
    assert!(told.good().out.contains("learned"));
    let (ids, learned) = expected(&tokenizer, 40);
    let found = stored(&place, "a");
    assert_eq!(found.0, ids);
    assert_eq!(found.1, learned);
    assert!(learned.iter().filter(|l| **l).count() * 5 > learned.len());
    // The same from a template that marks its answers, and from rows that hold JSON as text.
    place.write(
        "marking.jinja",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}\
         {% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}\
         {{ m.content }}<|im_end|>\n{% endif %}{% endfor %}",
    );
    let texts: String = (0..40)
        .map(|i| format!("{}\n", json!({ "chat": json!(messages(i)).to_string() })))
        .collect();
    place.write("chats/rows.jsonl", texts);
    let more = ["--chat-template", "marking.jinja", "--text-field", "chat", "--out", "b"];
    build(&place, &[&all[..], &more].concat()).good();
    assert_eq!(stored(&place, "b"), found);
}

/// Puts a blank before every text, so that a text in parts has other ids than the whole; one token
/// reaches over the beginning of an answer.
const BLANK_BEFORE: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[
    {"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,
     "normalized":false,"special":true},
    {"id":1,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,
     "normalized":false,"special":true}],
    "normalizer":{"type":"Prepend","prepend":"\u2581"},"pre_tokenizer":null,
    "post_processor":null,"decoder":null,
    "model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,
     "end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":false,
    "vocab":{"<unk>":0,"</s>":1,"\u2581":2,"a":3,"b":4,"[":5,"]":6,"(":7,")":8,"ab":9,"(b":10},
    "merges":["a b","( b"]}}"#;

#[test]
fn under_a_tokenizer_that_changes_texts_a_token_counts_where_it_begins() {
    let place = Place::empty();
    place.write("tokenizer.json", BLANK_BEFORE);
    place.write(
        "brackets.jinja",
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}\
         ({{ m.content }}){% endif %}{% endfor %}{% if add_generation_prompt %}({% endif %}",
    );
    let talk = [
        said("user", "ab"),
        said("assistant", "ba"),
        said("user", "b"),
        said("assistant", "a</s>b"),
    ];
    place.write("chats/rows.jsonl", json!({ "messages": talk }).to_string());
    let words = ["--chat-template", "brackets.jinja", "--valid-per-mille", "0", "--out", "out"];
    build(&place, &[&["--tokenizer", "tokenizer.json"], &words[..]].concat()).good();
    let (ids, learned) = stored(&place, "out");
    // _ [ ab ] (b a ) [ b ] ( a <unk> b ) and the end: what the message spells is no token.
    assert_eq!(ids, [2, 5, 9, 6, 10, 3, 8, 5, 4, 6, 7, 3, 0, 4, 8, 1]);
    let expected: Vec<bool> = "0000011000011110".chars().map(|c| c == '1').collect();
    assert_eq!(learned, expected);
}

#[test]
fn rows_that_are_no_conversation_are_refused_by_line() {
    let place = with_chats();
    let good = json!({ "messages": messages(1) });
    let user = said("user", "hi");
    for (row, needle) in [
        (json!({ "text": "hi" }), "no such field"),
        (json!({ "messages": "hi" }), "expected value"),
        (json!({ "messages": 7 }), "no list of messages"),
        (json!({ "messages": [] }), "a list without a message"),
        (json!({ "messages": [user] }), "no message has the role assistant"),
        (json!({ "messages": [user, "yes"] }), "messages[1]"),
        (json!({ "messages": [said("robot", "hi")] }), "messages[0].role"),
        (json!({ "messages": [{ "role": "assistant", "content": 7 }] }), "messages[0].content"),
        (json!({ "messages": [user, said("assistant", "\u{fdee}")] }), "U+FDEE"),
        (
            json!({ "messages": [user, { "role": "assistant", "tool_calls": [{ "id": 1 }] }] }),
            "tool_calls",
        ),
    ] {
        place.write("chats/rows.jsonl", format!("{good}\n{row}\n{good}\n"));
        let words = ["--tokenizer", "tokenizer.json", "--chat-template", "chatml", "--out", "bad"];
        build(&place, &words).bad(&["rows.jsonl", "row 2", needle]);
        let _ = std::fs::remove_dir_all(place.path("bad"));
        let told = build(&place, &[&words[..], &["--skip-bad"]].concat()).good();
        assert!(told.err.contains("1 bad rows") && told.err.contains("row 2"), "{told:?}");
        let _ = std::fs::remove_dir_all(place.path("bad"));
    }
    // Rows of conversations where texts are expected.
    place.write("chats/rows.jsonl", rows(3));
    let plain = ["data", "build", "--input", "chats", "--tokenizer", "tokenizer.json"];
    for field in [&[][..], &["--text-field", "messages"]] {
        let words = [&plain[..], field, &["--out", "bad"]].concat();
        place.run(&words).bad(&["row 1", "data build --chat", "--skip-bad"]);
    }
    place.write("chats/rows.jsonl", "{\"messages\": \"hi\"}\n");
    let told = place.run(&[&plain[..], &["--out", "bad"]].concat()).bad(&["no such field"]);
    assert!(!told.err.contains("--chat"), "no conversation: {told:?}");
    // A template that tells the past otherwise, and none at all.
    place.write("chats/rows.jsonl", rows(3));
    place.write(
        "forgets.jinja",
        "{% for m in messages %}{{ m.role }}: {% if loop.last or m.role == 'user' %}\
         {{ m.content }}{% endif %};{% endfor %}\
         {% if add_generation_prompt %}assistant: {% endif %}",
    );
    let words = ["--tokenizer", "tokenizer.json", "--out", "bad"];
    build(&place, &[&words[..], &["--chat-template", "forgets.jinja"]].concat())
        .bad(&["row 2", "{% generation %}"]);
    build(&place, &words).bad(&["no chat template", "--chat-template"]);
    place.write("chats/rows.txt", "text");
    let words = ["data", "build", "--chat", "--input", "chats/rows.txt"];
    let more = ["--tokenizer", "tokenizer.json", "--chat-template", "chatml", "--out", "bad2"];
    place.run(&[&words[..], &more].concat()).bad(&[".jsonl"]);
}

/// Full and LoRA fine-tuning of a model on chats, as the recipes do it.
#[test]
fn a_model_learns_to_answer() {
    let place = with_chats();
    let text = ["data", "build", "--input", "text", "--tokenizer", "tokenizer.json"];
    let text = [&text[..], &["--sequence-length", "32", "--out", "data"]].concat();
    place.run(&text).good();
    place.write("dense.toml", dense_recipe());
    place.run(&["train", "dense.toml", "--out", "dense", "--set", "train.steps=60"]).good();
    // Few conversations: more than one in a hundred has to validate.
    let told =
        build(&place, &["--tokenizer", "dense", "--chat-template", "chatml", "--out", "chat-data"])
            .good();
    assert!(told.out.contains("whole conversations, 10 % for validation"), "{told:?}");
    // Text that nothing was calibrated on: the same windows for each.
    let eval = |checkpoint: &str| {
        let words = ["eval", checkpoint, "--data", "chat-data", "--split", "train", "--json"];
        place.run(&[&words[..], &["--sequence-length", "32"]].concat()).good().json()
    };
    let before = eval("dense");
    for kind in ["full", "lora"] {
        let recipe = std::fs::read_to_string(
            std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join(format!("../../recipes/chat/{kind}.toml")),
        )
        .expect("a recipe");
        place.write("chat.toml", recipe);
        let mut words = vec!["train", "chat.toml", "--out", kind];
        for set in [
            "start.checkpoint=dense",
            "data.dir=chat-data",
            "data.sequence_length=32",
            "train.steps=60",
            "train.batch=4",
            "train.micro_batch=4",
            "optimizer.learning_rate=1e-2",
            "log.validate_windows=8",
            "log.calibrate_windows=1",
        ] {
            words.extend(["--set", set]);
        }
        let told = place.run(&words).good();
        let log = place.text(&format!("{kind}/log.jsonl"));
        let steps: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .filter(|record: &Value| record.get("loss").is_some())
            .collect();
        for step in &steps {
            let tokens = step["tokens"].as_u64().expect("a number");
            assert!(tokens < 128, "{kind}: {tokens} of 128 rows");
        }
        let scored = eval(kind);
        let all = &scored["causal_routing"]["all"];
        let depths = scored["causal_routing"]["depths"].as_array().expect("depths");
        let rows: u64 = depths.iter().map(|n| n.as_u64().expect("a number")).sum();
        let predictions = all["predictions"].as_u64().expect("a number");
        assert!(predictions > 0 && predictions < rows, "{scored}");
        let nll = |score: &Value| score["causal_routing"]["all"]["nll"].as_f64().expect("a number");
        let (before, after) = (nll(&before), nll(&scored));
        assert!(after < before - 0.1, "{kind}: from {before} to {after}: {told:?}");
    }
}
