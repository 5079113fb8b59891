//! Cuts of lm-evaluation-harness where tokenizers, spaces and lengths make trouble.

mod common;

use common::{Folder, encode, prefix, text};
use tasks::{Ask, Before, Task, TaskError};

fn choice(context: &str, choices: [&str; 2], delimiter: &str) -> Task {
    let toml = "kind = 'multiple_choice'\ncontext = '{q}'\nchoices = '{c}'\nanswer = '{a}'\n";
    let row = serde_json::json!({"q": context, "c": choices, "a": 0}).to_string();
    Folder::with(&format!("{toml}delimiter = '{delimiter}'\n"), &row).open().unwrap()
}

fn said(result: Result<Vec<Ask>, TaskError>) -> String {
    result.unwrap_err().to_string()
}

/// Characters, but two equal letters in a row are one token, and `e:` is one.
fn merging(text: &str) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>> {
    let characters: Vec<char> = text.chars().collect();
    let mut ids = Vec::new();
    let mut at = 0;
    while at < characters.len() {
        let pair = characters
            .get(at + 1)
            .is_some_and(|next| *next == characters[at] || (characters[at], *next) == ('e', ':'));
        ids.push(u32::from(characters[at]) + if pair { 100_000 } else { 0 });
        at += if pair { 2 } else { 1 };
    }
    Ok(ids)
}

#[test]
fn space_at_the_end_of_a_context_is_scored() {
    let asks = choice("Answer: ", ["yes", "no"], "").requests(&encode, 100, prefix(None)).unwrap();
    assert_eq!((text(&asks[0].ids).as_str(), asks[0].from), ("Answer: yes", 7));
    let asks =
        choice("Answer:\n", ["yes", "no"], " ").requests(&encode, 100, prefix(None)).unwrap();
    assert_eq!((text(&asks[1].ids).as_str(), asks[1].from), ("Answer:\n no", 7));
}

#[test]
fn the_context_is_tokenised_alone() {
    // "ab" + "bc": the whole is a, bb, c; the context a, b; what is scored is the whole from its
    // third token on.
    let asks = choice("ab", ["bc", "bbc"], "").requests(&merging, 100, prefix(None)).unwrap();
    let id = u32::from;
    assert_eq!(asks[0].ids, [id('a'), id('b'), id('c')]);
    assert_eq!(asks[0].from, 2);
    assert_eq!(asks[1].ids, [id('a'), id('b'), id('b'), id('c')]);
}

#[test]
fn a_continuation_without_a_token_is_refused() {
    let message = said(choice("ab", ["b", "c"], "").requests(&merging, 100, prefix(None)));
    assert!(
        message
            .contains("task t: item 0, choice 0: expected a continuation with a token of its own"),
        "{message}"
    );
}

#[test]
fn an_empty_context_needs_a_prefix() {
    let task = choice("", ["yes", "no"], " ");
    let asks = task.requests(&encode, 100, prefix(Some(7))).unwrap();
    assert_eq!((asks[1].ids[0], text(&asks[1].ids[1..]).as_str(), asks[1].from), (7, " no", 1));
    assert!(
        said(task.requests(&encode, 100, prefix(None))).contains("begin-of-text or end-of-text")
    );
    // A continuation that begins with the prefix token is not given a second one.
    let asks = task.requests(&encode, 100, prefix(Some(u32::from(' ')))).unwrap();
    assert_eq!((text(&asks[0].ids).as_str(), asks[0].from), (" yes", 1));
}

/// As `HFLM.tok_encode` has it with the tokenizer's own settings: the begin of text stands before
/// contexts and documents, not before a continuation alone, and never twice.
#[test]
fn a_begin_of_text_stands_before_what_is_encoded_whole() {
    let before = Before { begin: Some(7), prefix: Some(9) };
    let asked = |task: &Task| task.requests(&encode, 100, before).unwrap();
    let asks = asked(&choice("ab", ["c", "d"], ""));
    assert_eq!((asks[1].ids[0], text(&asks[1].ids[1..]).as_str(), asks[1].from), (7, "abd", 3));
    let asks = asked(&choice("\u{7}ab", ["c", "d"], ""));
    assert_eq!((text(&asks[0].ids).as_str(), asks[0].from), ("\u{7}abc", 3));
    let asks = asked(&choice("", ["c", "d"], ""));
    assert_eq!((asks[0].ids.as_slice(), asks[0].from), (&[9, u32::from('c')][..], 1));
    let rolling = "kind = 'rolling'\ntext = '{t}'\n";
    let asks = asked(&Folder::with(rolling, r#"{"t": "xy"}"#).open().unwrap());
    assert_eq!((asks[0].ids[..2].to_vec(), text(&asks[0].ids[2..])), (vec![9, 7], "xy".to_owned()));
    assert_eq!(asks[0].from, 1, "the begin of text is scored after the prefix");
}

#[test]
fn long_contexts_lose_their_left() {
    let task = choice("abcdefgh", ["xy", "xyz"], "");
    let cut = |limit| {
        task.requests(&encode, limit, prefix(None)).map(|asks| (text(&asks[0].ids), asks[0].from))
    };
    assert_eq!(cut(11).unwrap(), ("abcdefghxy".to_owned(), 8));
    assert_eq!(cut(10).unwrap(), ("bcdefghxy".to_owned(), 7));
    assert_eq!(cut(5).unwrap(), ("ghxy".to_owned(), 2));
    let message = cut(4).unwrap_err().to_string();
    assert!(message.contains(
        "choice 1: expected a continuation of at most 2 tokens, for this model's context, found 3"
    ));
    assert!(
        said(task.requests(&encode, 2, prefix(None)))
            .contains("context_limit: expected at least 3 tokens, found 2")
    );
}

#[test]
fn what_the_tokenizer_says_is_passed_on() {
    let refuses =
        |text: &str| if text.contains('x') { Err("no such letter".into()) } else { encode(text) };
    let message = said(choice("abc", ["y", "x"], "").requests(&refuses, 100, prefix(None)));
    assert_eq!(
        message,
        "task t: item 0, choice 1: expected a text that the tokenizer can spell, \
         found \"abcx\": no such letter"
    );
}

#[test]
fn only_the_first_items_are_kept() {
    let rows = ["a b", "c d", "e f"].map(|t| format!("{{\"t\":\"{t}\"}}")).join("\n");
    let mut task = Folder::with("kind = 'last_word'\ntext = '{t}'\n", &rows).open().unwrap();
    task.keep_first(2);
    assert_eq!(task.requests(&encode, 100, prefix(None)).unwrap().len(), 2);
    task.keep_first(0);
    assert_eq!(task.items(), 1);
}
