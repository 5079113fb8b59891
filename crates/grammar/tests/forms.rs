//! Random walks through grammars: whatever is drawn has the form, and what is refused names the
//! place.

use grammar::{Compiled, Grammar, GrammarError, MOST_BYTES, Vocabulary};
use serde_json::{Value, json};

const STOP: u32 = 257;

/// Every byte, some longer tokens, and two control tokens in the middle.
fn tokens() -> Vec<Option<Vec<u8>>> {
    let mut tokens: Vec<Option<Vec<u8>>> = (0..=255u8).map(|b| Some(vec![b])).collect();
    tokens.extend([None, None]);
    for text in ["{\"", "\":", "true", "ye", "yes", "no", " \n", "12", "\u{e9}\u{e8}", "\"}", "]}"]
    {
        tokens.push(Some(text.as_bytes().to_vec()));
    }
    tokens
}

fn vocabulary() -> Vocabulary {
    Vocabulary::new(tokens()).unwrap()
}

/// A small random number, the same for the same seed.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *seed >> 33
}

fn is_likely(id: u32) -> bool {
    id < 256 && b"\"}],:0123456789ab".contains(&(id as u8))
}

/// A text of a walk that draws any allowed token, and the end as soon as a die says so.
fn walk(compiled: &Compiled, seed: u64) -> Option<Vec<u8>> {
    let (constraint, tokens, mut seed) = (compiled.sequence(), tokens(), seed);
    let mut generated = Vec::new();
    let mut text = Vec::new();
    for _ in 0..400 {
        let mut logits = vec![0.0; tokens.len()];
        constraint.0.restrict(&generated, &[STOP], &mut logits).unwrap();
        let allowed: Vec<u32> =
            (0..logits.len() as u32).filter(|&id| logits[id as usize] == 0.0).collect();
        let ends = allowed.contains(&STOP);
        if ends && (allowed.len() == 1 || next(&mut seed).is_multiple_of(4)) {
            return Some(text);
        }
        let going: Vec<u32> = allowed.into_iter().filter(|&id| id != STOP).collect();
        // Some tokens are likelier, or strings would hardly end.
        let often: Vec<u32> = going.iter().copied().filter(|&id| is_likely(id)).collect();
        let from =
            if often.is_empty() || next(&mut seed).is_multiple_of(3) { &going } else { &often };
        let id = from[next(&mut seed) as usize % from.len()];
        text.extend_from_slice(tokens[id as usize].as_ref().expect("text"));
        generated.push(id);
    }
    None
}

/// Texts of 60 walks that came to their end.
fn texts(grammar: &Grammar) -> Vec<String> {
    let compiled = vocabulary().compile(grammar).unwrap();
    let ended: Vec<Vec<u8>> = (0..60).filter_map(|seed| walk(&compiled, seed)).collect();
    assert!(ended.len() > 20, "{grammar:?}: {} walks ended", ended.len());
    ended.into_iter().map(|text| String::from_utf8(text).expect("UTF-8")).collect()
}

#[test]
fn texts_of_a_schema_fit_it() {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 5 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "tags": { "type": "array", "items": { "enum": ["a", "b"] }, "maxItems": 3 },
            "next": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/leaf" }] },
        },
        "required": ["name", "age", "next"],
        "additionalProperties": false,
        "$defs": { "leaf": { "type": "object", "properties": { "x": { "type": "boolean" } },
            "required": ["x"], "additionalProperties": false } },
    });
    let (mut tagged, mut leaves) = (0, 0);
    for text in texts(&Grammar::JsonSchema(schema)) {
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let entries = value.as_object().expect("an object");
        assert!(entries["name"].as_str().unwrap().chars().count() <= 5, "{text}");
        assert!((0..=120).contains(&entries["age"].as_i64().unwrap()), "{text}");
        if let Some(tags) = entries.get("tags") {
            let tags = tags.as_array().unwrap();
            assert!(tags.len() <= 3 && tags.iter().all(|t| t == "a" || t == "b"), "{text}");
            tagged += 1;
        }
        if let Some(leaf) = entries["next"].as_object() {
            assert!(leaf.len() == 1 && leaf["x"].is_boolean(), "{text}");
            leaves += 1;
        }
        let known = ["name", "age", "tags", "next"];
        assert!(entries.keys().all(|key| known.contains(&key.as_str())), "{text}");
    }
    assert!(tagged > 0 && leaves > 0, "{tagged} {leaves}");
}

#[test]
fn a_json_object_is_one() {
    for text in texts(&Grammar::JsonObject) {
        // Numbers that no f64 holds are JSON all the same.
        let value: Value = match serde_json::from_str(&text) {
            Err(e) if e.to_string().contains("out of range") => continue,
            parsed => parsed.unwrap_or_else(|e| panic!("{text}: {e}")),
        };
        assert!(value.is_object(), "{text}");
        // Blanks have an end.
        let blanks = text.split(|c: char| !c.is_ascii_whitespace()).map(str::len).max();
        assert!(blanks.unwrap_or(0) <= 32 || text.contains('"'), "{text:?}");
    }
}

#[test]
fn texts_of_a_pattern_match_it_as_a_whole() {
    for text in texts(&Grammar::Regex("[a-c]{2,4}(-[0-9]+)?".into())) {
        let (head, tail) = text.split_once('-').map_or((&text[..], None), |(h, t)| (h, Some(t)));
        assert!((2..=4).contains(&head.len()), "{text}");
        assert!(head.bytes().all(|b| (b'a'..=b'c').contains(&b)), "{text}");
        assert!(tail.is_none_or(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit())));
    }
}

#[test]
fn choices_are_taken_as_they_are() {
    let all = ["yes", "no", "yes, \"but\" \\ no", "\u{e9}\u{e8}t\u{e9}\n", "ye|s", "/a.b/"];
    let mut seen = std::collections::BTreeSet::new();
    for text in texts(&choices(&all)) {
        assert!(all.contains(&text.as_str()), "{text:?}");
        seen.insert(text);
    }
    assert!(seen.len() >= 4, "{seen:?}");
}

/// The letters that may follow `text`, a full stop where it may end.
fn allowed(constraint: &scheduler::Constrained, text: &str) -> String {
    let generated: Vec<u32> = text.bytes().map(u32::from).collect();
    let mut logits = vec![1.0; tokens().len()];
    constraint.0.restrict(&generated, &[STOP], &mut logits).unwrap();
    let ids = (0..logits.len()).filter(|&id| logits[id] == 1.0);
    ids.map(|id| if id == STOP as usize { '.' } else { id as u8 as char }).collect()
}

/// What may follow depends on the tokens alone: one that comes back after others, and one that
/// begins in the middle, allow the same.
#[test]
fn what_may_follow_depends_on_the_tokens_alone() {
    let compiled = vocabulary().compile(&Grammar::Regex("ab*(c|dd)".into())).unwrap();
    let one = compiled.sequence();
    assert_eq!(allowed(&one, ""), "a");
    assert_eq!(allowed(&one, "abb"), "bcd");
    assert_eq!(allowed(&one, "abbd"), "d");
    assert_eq!(allowed(&one, "a"), "bcd");
    assert_eq!(allowed(&one, "ac"), ".");
    assert_eq!(allowed(&compiled.sequence(), "abbdd"), ".");
    let mut logits = vec![0.0; tokens().len()];
    let told = one.0.restrict(&[u32::from(b'x')], &[STOP], &mut logits).unwrap_err();
    assert!(told.contains("the grammar cannot go on"), "{told}");
    // Where the text must end and nothing ends it, nothing is left.
    let told = compiled.sequence().0.restrict(&[97, 99], &[], &mut vec![0.0; 269]).unwrap_err();
    assert!(told.contains("no token"), "{told}");
}

fn refused(grammar: &Grammar) -> String {
    vocabulary().compile(grammar).unwrap_err().to_string()
}

fn choices(choices: &[&str]) -> Grammar {
    Grammar::Choices(choices.iter().map(|&choice| choice.into()).collect())
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    let schemas = [
        (json!({ "type": "string", "minLength": 5, "maxLength": 2 }), "minLength"),
        (json!({ "type": "nothing" }), "nothing"),
        (json!({ "$ref": "#/$defs/lost" }), "lost"),
        (
            json!({ "type": "array", "items": { "type": "integer", "minimum": 3, "maximum": 1 },
            "minItems": 1 }),
            "required item",
        ),
        (json!({ "$ref": "https://example.org/schema.json" }), "example.org"),
        (json!({ "type": "object", "x-guidance": {} }), "x-guidance"),
        (json!({ "type": "object", "dependentSchemas": {} }), "dependentSchemas"),
        (json!("text"), "an object or boolean"),
    ];
    for (schema, word) in schemas {
        let told = refused(&Grammar::JsonSchema(schema.clone()));
        assert!(told.contains(word), "{schema}: {told}");
        assert!(!told.contains("backtrace") && !told.contains('\n'), "{told}");
    }
    for (pattern, word) in [("a(b", "("), ("(?=a)b", "look"), ("[z-a]", "z-a")] {
        let told = refused(&Grammar::Regex(pattern.into()));
        assert!(told.contains(word), "{pattern}: {told}");
        assert!(!told.contains("start:"), "{told}");
    }
    assert_eq!(refused(&choices(&[])), "0 choices, expected 1 to 1000");
    assert_eq!(refused(&choices(&["a", ""])), "choice 1 is empty, expected text");
    let long = Grammar::Regex("a".repeat(MOST_BYTES + 1));
    let told = vocabulary().compile(&long).unwrap_err();
    assert_eq!(told, GrammarError::TooLong { bytes: MOST_BYTES + 1, most: MOST_BYTES });
    let told = Vocabulary::new([None, Some(Vec::new())]).err().expect("an error");
    assert!(told.to_string().contains("no token of it is text"), "{told}");
}

/// A schema of so many levels.
fn deep(levels: usize) -> Value {
    let inner = json!({ "type": "integer" });
    (1..levels).fold(inner, |deep, _| json!({ "type": "array", "items": deep }))
}

/// What costs much is refused, or ends with an error, within bounded time.
#[test]
fn hostile_grammars_end_in_time() {
    let vocabulary = vocabulary();
    assert!(vocabulary.compile(&Grammar::JsonSchema(deep(65))).is_err());
    assert!(vocabulary.compile(&Grammar::JsonSchema(deep(64))).is_ok());
    let wide: serde_json::Map<String, Value> =
        (0..1500).map(|i| (format!("k{i}"), json!({ "type": "string" }))).collect();
    let grammars = [
        Grammar::Regex("((a{1000}){1000}){1000}".into()),
        Grammar::Regex("(a|aa)+(b|bb)+".repeat(300)),
        Grammar::Regex("(.*a){60}".into()),
        Grammar::Regex("(a?){500}a{500}".into()),
        Grammar::Regex("(".repeat(5000) + &")".repeat(5000)),
        Grammar::JsonSchema(deep(400)),
        Grammar::JsonSchema(json!({ "type": "object", "properties": wide })),
        Grammar::JsonSchema(json!({ "type": "string", "pattern": "(a+)+(b+)+(.*c){40}" })),
        Grammar::JsonSchema(json!({ "type": "array", "minItems": 100_000 })),
        Grammar::JsonSchema(json!({ "allOf": vec![json!({ "anyOf": [{ "type": "string" },
            { "type": "object", "properties": { "a": { "type": "string" } } }] }); 30] })),
        Grammar::Choices((0..1000).map(|i| "ab".repeat(30) + &i.to_string()).collect()),
    ];
    for grammar in grammars {
        let begun = std::time::Instant::now();
        let name: String = format!("{grammar:?}").chars().take(60).collect();
        if let Ok(compiled) = vocabulary.compile(&grammar) {
            let (constraint, mut generated) = (compiled.sequence(), Vec::new());
            for step in 0..30u32 {
                let mut logits = vec![0.0; tokens().len()];
                let gone = constraint.0.restrict(&generated, &[STOP], &mut logits).is_err();
                let left = (0..logits.len() as u32).filter(|&id| logits[id as usize] == 0.0);
                let left: Vec<u32> = left.filter(|&id| id != STOP).collect();
                if gone || left.is_empty() {
                    break;
                }
                generated.push(left[step as usize % left.len()]);
            }
        }
        assert!(begun.elapsed().as_secs() < 10, "{name}: {:?}", begun.elapsed());
    }
}
