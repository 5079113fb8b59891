//! Task files and items that lie, are damaged or ask for what cannot be: each is refused with its
//! file, line and field.

mod common;

use common::{Folder, encode, prefix};
use tasks::Task;

const CHOICE: &str =
    "kind = 'multiple_choice'\ncontext = 'Q: {q}'\nchoices = '{c}'\nanswer = '{a}'\n";
const GOOD: &str = r#"{"q":"x","c":["1","2"],"a":0}"#;

/// The message for a task file, beside one good item.
fn setting(toml: &str) -> String {
    Folder::with(toml, GOOD).open().expect_err(toml).to_string()
}

/// The message for the second line of items after a good one.
fn item_of(toml: &str, good: &str, line: &str) -> String {
    let folder = Folder::with(toml, &format!("{good}\n{line}\n"));
    let message = folder.open().expect_err(line).to_string();
    assert!(message.contains("t.jsonl: line 2: "), "{message}");
    message
}

fn item(line: &str) -> String {
    item_of(CHOICE, GOOD, line)
}

#[test]
fn task_files() {
    let cases = [
        ("", "line 1: kind: expected this key"),
        ("kind = 3\n", "line 1: kind: expected a string, found the number 3"),
        ("kind = 'multiple_choise'\n", "did you mean `multiple_choice`?"),
        ("\nkind = 'zzz'\n", "line 2: kind: expected one of multiple_choice, pairs"),
        ("kind = 'pairs'\nkind = 'pairs'\n", "line 2: syntax"),
        ("kind = 'pairs'\n= 3\n", "line 2: syntax"),
        ("kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\ndelimeter = ''\n", "line 4: delimeter"),
        (
            "kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\ndelimeter = ''\n",
            "did you mean `delimiter`?",
        ),
        (
            "kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\ncontext = ''\n",
            "line 4: context: expected a key of the kind pairs",
        ),
        ("kind = 'pairs'\ngood = '{g}'\n", "bad: expected this key"),
        (
            "kind = 'pairs'\ngood = ['{g}']\nbad = ''\n",
            "line 2: good: expected a string, found a list",
        ),
        (
            "kind = 'pairs'\ngood = '{g'\nbad = ''\n",
            "line 2: good: expected text with {field}s in it, found a `{`",
        ),
        ("kind = 'pairs'\ngood = 'g}'\nbad = ''\n", "closes nothing"),
        ("kind = 'pairs'\ngood = '{g g}'\nbad = ''\n", "letters, digits"),
        (
            "kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\nname = \"a\\u0007\"\n",
            "line 4: name: expected a name without",
        ),
        ("kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\nname = ''\n", "line 4: name"),
        (
            "kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\nitems = '../t.jsonl'\n",
            "line 4: items: expected the name of a file beside",
        ),
        ("kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\nitems = '..'\n", "line 4: items"),
        ("kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\nitems = ''\n", "line 4: items"),
        ("kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\nitems = 'none.jsonl'\n", "cannot read"),
        ("kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\nitems = 'a/b.jsonl'\n", "line 4: items"),
        ("kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\n[extra]\nx = 1\n", "line 4: extra"),
        (
            "kind = 'multiple_choice'\ncontext = ''\nchoices = ['{q}']\nanswer = '{a}'\n",
            "line 3: choices: expected at least two",
        ),
        ("kind = 'multiple_choice'\ncontext = ''\nchoices = []\nanswer = '{a}'\n", "found 0"),
        (
            "kind = 'multiple_choice'\ncontext = ''\nchoices = [1, 2]\nanswer = '{a}'\n",
            "the number 1 in it",
        ),
        (
            "kind = 'multiple_choice'\ncontext = ''\nchoices = 'x {c}'\nanswer = '{a}'\n",
            "one field and nothing else",
        ),
        (
            "kind = 'multiple_choice'\ncontext = ''\nchoices = '{c}'\nanswer = 'a'\n",
            "line 4: answer: expected one field",
        ),
        (
            "kind = 'multiple_choice'\ncontext = ''\nchoices = '{c}'\nanswer = 0\n",
            "line 4: answer: expected a string",
        ),
        (
            "kind = 'varying_context'\ncontexts = '{c}'\ncontinuation = 'x'\nanswer = '{a}'\n",
            "line 2: contexts",
        ),
        (
            "kind = 'varying_context'\ncontexts = ['{q}', ' ']\n\
             continuation = ''\nanswer = '{a}'\n",
            "continuation",
        ),
    ];
    for (toml, said) in cases {
        let message = setting(toml);
        assert!(message.contains(said), "{toml}\n{message}\nlacks {said}");
    }
}

#[test]
fn shots() {
    let cases = [
        ("shots = -1\n", "line 5: shots: expected a whole number from 0, found -1"),
        ("shots = 'two'\n", "line 5: shots: expected a whole number"),
        ("shots = 1.5\n", "the number 1.5"),
        ("shots = 1\n", "shots_from: expected this key"),
        ("shots_from = 's.jsonl'\n", "line 5: shots_from: expected `shots` of at least 1"),
        ("shots_between = ''\n", "line 5: shots_between"),
        (
            "shots = 1\nshots_from = 't.jsonl'\n",
            "line 6: shots_from: expected another file than `items`",
        ),
        (
            "shots = 1\nshots_from = '/etc/passwd'\n",
            "line 6: shots_from: expected the name of a file beside",
        ),
        (
            "shots = 3\nshots_from = 's.jsonl'\n",
            "line 5: shots: expected a file of at least 3 items, found 1",
        ),
        ("shots = 9223372036854775807\nshots_from = 's.jsonl'\n", "found 1 of them"),
    ];
    for (keys, said) in cases {
        let folder = Folder::with(&format!("{CHOICE}{keys}"), GOOD);
        folder.write("s.jsonl", GOOD);
        let message = folder.open().expect_err(keys).to_string();
        assert!(message.contains(said), "{keys}{message}\nlacks {said}");
    }
    let folder = Folder::with(&format!("{CHOICE}shots = 1\nshots_from = 's.jsonl'\n"), GOOD);
    folder.write("s.jsonl", r#"{"q":"x","c":["1","2"],"a":2}"#);
    assert!(
        folder
            .open()
            .unwrap_err()
            .to_string()
            .contains("s.jsonl: line 1: `a`: expected a place from 0 to 1")
    );
}

#[test]
fn items() {
    let deep = format!("{{\"q\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let cases = [
        ("{", "item: expected one JSON object a line"),
        ("[1]", "one JSON object a line"),
        ("null", "one JSON object a line"),
        ("{\"q\":\"x\"} {}", "one JSON object a line, found trailing characters at column 11"),
        (deep.as_str(), "recursion limit"),
        (
            "{}",
            "`c`: expected a field of this name (`choices` in t.toml, line 3), \
             found only an empty object",
        ),
        (
            r#"{"qu":"x","c":["1","2"],"a":0}"#,
            "`q`: expected a field of this name (`context` in t.toml, line 2)",
        ),
        (r#"{"qq":"x","c":["1","2"],"a":0}"#, "did you mean `qq`?"),
        (r#"{"q":null,"c":["1","2"],"a":0}"#, "`q`: expected a string or a whole number"),
        (r#"{"q":1.5,"c":["1","2"],"a":0}"#, "the number 1.5"),
        (r#"{"q":true,"c":["1","2"],"a":0}"#, "found true"),
        (r#"{"q":["x"],"c":["1","2"],"a":0}"#, "found a list"),
        (
            r#"{"q":"x","c":"1","a":0}"#,
            "`c`: expected a list of strings (`choices` in t.toml, line 3), found the string",
        ),
        (r#"{"q":"x","c":{"0":"1"},"a":0}"#, "found an object"),
        (r#"{"q":"x","c":["1",2],"a":0}"#, "the number 2 at place 1"),
        (r#"{"q":"x","c":[],"a":0}"#, "choices: expected at least two, found 0"),
        (r#"{"q":"x","c":["1"],"a":0}"#, "choices: expected at least two, found 1"),
        (r#"{"q":"x","c":["1",""],"a":0}"#, "an empty one at place 1"),
        (r#"{"q":"x","c":["1"," "],"a":0}"#, "continuation: expected a text"),
        (r#"{"q":"x","c":["1","2"],"a":2}"#, "`a`: expected a place from 0 to 1"),
        (r#"{"q":"x","c":["1","2"],"a":-1}"#, "found -1"),
        (r#"{"q":"x","c":["1","2"],"a":0.0}"#, "found 0.0"),
        (r#"{"q":"x","c":["1","2"],"a":18446744073709551615}"#, "found 18446744073709551615"),
        (r#"{"q":"x","c":["1","2"],"a":"3"}"#, "which no choice says"),
        (r#"{"q":"x","c":["2","2"],"a":"2"}"#, "which several choices say"),
        (r#"{"q":"x","c":["1","2"],"a":false}"#, "found false"),
        (r#"{"q":"x","c":["1","2"]}"#, "`a`: expected a field"),
    ];
    for (line, said) in cases {
        let message = item(line);
        assert!(message.contains(said), "{message}\nlacks {said}");
        assert!(message.len() < 600, "a message is no dump: {message}");
    }
}

#[test]
fn items_of_the_other_kinds() {
    let pairs = "kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\n";
    let rolling = "kind = 'rolling'\ntext = '{t}'\n";
    let last = "kind = 'last_word'\ntext = '{t}'\n";
    let varying = "kind = 'varying_context'\ncontexts = ['{x}', '{y}']\n\
                   continuation = '{r}'\nanswer = '{a}'\n";
    let spaces = "kind = 'multiple_choice'\ncontext = '{q}'\nchoices = '{c}'\nanswer = '{a}'\n";
    let pair = r#"{"g":"a","b":"b"}"#;
    let text = r#"{"t":"a b"}"#;
    let contexts = r#"{"x":"a","y":"b","r":"c","a":0}"#;
    let cases = [
        (pairs, pair, r#"{"g":"","b":"b"}"#, "continuation: expected a text"),
        (pairs, pair, r#"{"g":"a"}"#, "`b`: expected a field"),
        (rolling, text, r#"{"t":""}"#, "text: expected a document"),
        (last, text, r#"{"t":"word"}"#, "a passage, a space and a last word"),
        (last, text, r#"{"t":" word"}"#, "a passage, a space and a last word"),
        (last, text, r#"{"t":"a word "}"#, "continuation: expected a text"),
        (last, text, r#"{"t":"  word"}"#, "context: expected a text, or nothing at all"),
        (varying, contexts, r#"{"x":"","y":"b","r":"c","a":0}"#, "contexts: expected texts"),
        (varying, contexts, r#"{"x":"a","y":"b","r":"","a":0}"#, "continuation: expected a text"),
        (varying, contexts, r#"{"x":"a","y":"b","r":"c","a":2}"#, "a place from 0 to 1"),
        (
            spaces,
            GOOD,
            r#"{"q":"\n\u001f","c":["1","2"],"a":0}"#,
            "context: expected a text, or nothing at all",
        ),
    ];
    for (toml, good, line, said) in cases {
        let message = item_of(toml, good, line);
        assert!(message.contains(said), "{message}\nlacks {said}");
    }
}

#[test]
fn files_that_are_none() {
    let folder = Folder::with(CHOICE, "");
    assert!(
        folder
            .open()
            .unwrap_err()
            .to_string()
            .contains("items: expected a file of at least one item")
    );
    folder.write("t.jsonl", "\n \n\r\n");
    assert!(folder.open().unwrap_err().to_string().contains("at least one item"));
    folder.write("t.jsonl", [b'{', b'"', 0xff, b'"', b'}']);
    assert!(
        folder
            .open()
            .unwrap_err()
            .to_string()
            .contains("line 1: encoding: expected UTF-8, found other bytes after 2")
    );
    // A byte-order mark is no part of the text, but where a file begins alone.
    folder.write("t.jsonl", format!("\u{feff}{GOOD}"));
    folder.open().unwrap();
    folder.write("t.jsonl", format!("{GOOD}\n\u{feff}{GOOD}"));
    assert!(folder.open().unwrap_err().to_string().contains("line 2: item"));
    folder.write("t.jsonl", format!("{GOOD}\n\n{{\"q\":\"{}\"}}\n", "x".repeat(17 << 20)));
    assert!(
        folder.open().unwrap_err().to_string().contains("line 3: length: expected at most 16 MiB")
    );
    folder.write("t.toml", format!("# {}", "x".repeat(1 << 20)));
    assert!(
        folder
            .open()
            .unwrap_err()
            .to_string()
            .contains("size: expected a task file of at most 1 MiB")
    );
    folder.write("t.toml", [0xff]);
    let error = folder.open().unwrap_err().to_string();
    assert!(error.contains("line 1: encoding: expected UTF-8"), "{error}");
    folder.write("t.toml", "a = ".to_owned() + &"[".repeat(100_000));
    assert!(folder.open().unwrap_err().to_string().contains("line 1: syntax"));
    assert!(Task::open(folder.path()).is_err());
    assert!(Task::open(&folder.path().join("none.toml")).is_err());
}

#[test]
fn folders() {
    let folder = Folder::with(CHOICE, GOOD);
    folder.write("notes.md", "not a task");
    assert_eq!(Task::open_folder(folder.path()).unwrap().len(), 1);
    folder.write("u.toml", format!("{CHOICE}name = 't'\nitems = 't.jsonl'\n"));
    let message = Task::open_folder(folder.path()).unwrap_err().to_string();
    assert!(message.contains("a different `name` in each file, found \"t\""), "{message}");
    let empty = tempfile::tempdir().unwrap();
    assert!(
        Task::open_folder(empty.path())
            .unwrap_err()
            .to_string()
            .contains("task files, which end in .toml")
    );
    assert!(
        Task::open_folder(&empty.path().join("none"))
            .unwrap_err()
            .to_string()
            .contains("cannot list")
    );
}

#[test]
fn blank_lines_keep_the_numbers() {
    let folder = Folder::with(CHOICE, &format!("\n{GOOD}\r\n\n{GOOD}"));
    let task = folder.open().unwrap();
    let asks = task.requests(&encode, 100, prefix(None)).unwrap();
    let report = task.judge(&asks, &common::answers(&asks)).unwrap();
    assert_eq!(report.records.iter().map(|r| r.line).collect::<Vec<_>>(), [2, 4]);
}
