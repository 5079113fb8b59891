//! Every kind on items made by hand, with numbers worked out by hand; what holds for every kind
//! holds for its example.

mod common;

use common::{Folder, answers, encode, examples, open, prefix};
use tasks::{SequenceScore, Task, TaskReport};

fn metric(report: &TaskReport, name: &str) -> f64 {
    report.metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("{name}")).value
}

fn error_of(report: &TaskReport, name: &str) -> Option<f64> {
    report.metrics.iter().find(|m| m.name == name).unwrap().standard_error
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} is not {b}");
}

/// Judges with one (log-likelihood, greedy) for each ask.
fn judge(task: &Task, scores: &[(f64, bool)]) -> TaskReport {
    let asks = task.requests(&encode, 1000, prefix(Some(0))).unwrap();
    let answers: Vec<SequenceScore> = scores
        .iter()
        .map(|&(log_likelihood, greedy)| SequenceScore { log_likelihood, greedy })
        .collect();
    task.judge(&asks, &answers).unwrap()
}

const CHOICE: &str = "kind = 'multiple_choice'\ncontext = '{q}'\nchoices = '{c}'\nanswer = '{a}'\n";

#[test]
fn choices_by_sum_by_character_and_by_byte() {
    // Lengths: "ab" 2 characters and 2 bytes; "\u00e9\u00e9\u00e9" 3 characters and 6 bytes;
    // "abcdefgh" 8 and 8.
    let rows = [r#"{"q":"x","c":["ab","\u00e9\u00e9\u00e9","abcdefgh"],"a":0}"#; 3].join("\n");
    let folder = Folder::with(CHOICE, &rows);
    let task = folder.open().unwrap();
    let scores = [
        // By sum 0 (-4); by character -2, -3, -1: 2; by byte -2, -1.5, -1: 2.
        (-4.0, false),
        (-9.0, false),
        (-8.0, true),
        // By sum 0; by character -1.5, -1.6, -2: 0; by byte -1.5, -0.8, -2: 1.
        (-3.0, true),
        (-4.8, false),
        (-16.0, false),
        // By sum 1; by character -2, -1.1, -1.2: 1; by byte -2, -0.55, -1.2: 1.
        (-4.0, false),
        (-3.3, false),
        (-9.6, false),
    ];
    let report = judge(&task, &scores);
    near(metric(&report, "acc"), 2.0 / 3.0);
    near(metric(&report, "acc_norm"), 1.0 / 3.0);
    near(metric(&report, "acc_bytes"), 0.0);
    // Sample standard deviation of 1, 1, 0 is sqrt(1/3); over the root of 3: 1/3.
    near(error_of(&report, "acc").unwrap(), 1.0 / 3.0);
    near(error_of(&report, "acc_bytes").unwrap(), 0.0);
    let predictions: Vec<_> = report.records.iter().map(|r| r.prediction.unwrap()).collect();
    assert_eq!(predictions, [0, 0, 1]);
    assert_eq!(
        report.records.iter().map(|r| r.correct.unwrap()).collect::<Vec<_>>(),
        [true, true, false]
    );
    assert_eq!(report.records[1].greedy, [true, false, false]);
    assert_eq!(report.records[2].log_likelihoods, [-4.0, -3.3, -9.6]);
}

#[test]
fn ties_go_to_the_first_choice() {
    let rows =
        "{\"q\":\"x\",\"c\":[\"aa\",\"bb\"],\"a\":0}\n{\"q\":\"x\",\"c\":[\"aa\",\"bb\"],\"a\":1}";
    let folder = Folder::with(CHOICE, rows);
    let report = judge(&folder.open().unwrap(), &[(-1.0, false); 4]);
    near(metric(&report, "acc"), 0.5);
    near(metric(&report, "acc_norm"), 0.5);
    assert_eq!(report.records[1].prediction, Some(0));
}

#[test]
fn answers_by_text_and_choices_by_templates() {
    let toml = "kind = 'multiple_choice'\ncontext = 'Q {q}?'\n\
                choices = ['no', 'yes', '{other}']\nanswer = '{a}'\n";
    let folder = Folder::with(toml, r#"{"q":7,"other":"perhaps","a":"perhaps"}"#);
    let task = folder.open().unwrap();
    let asks = task.requests(&encode, 1000, prefix(None)).unwrap();
    assert_eq!(common::text(&asks[2].ids), "Q 7? perhaps");
    assert_eq!(asks[2].from, 4);
    let report = judge(&task, &[(-1.0, false), (-2.0, false), (-0.5, false)]);
    assert_eq!(report.records[0].answer, Some(2));
    near(metric(&report, "acc"), 1.0);
    assert_eq!(error_of(&report, "acc"), None, "one item has no scatter");
}

#[test]
fn shots_come_first_with_their_answers() {
    let toml = format!(
        "{CHOICE}shots = 2\nshots_from = 's.jsonl'\nshots_between = '|'\ndelimiter = '='\n"
    );
    let folder = Folder::with(&toml, r#"{"q":"x","c":["1","2"],"a":0}"#);
    let shots =
        ["p", "q", "never"].map(|q| format!(r#"{{"q":"{q}","c":["3","4"],"a":1}}"#)).join("\n");
    folder.write("s.jsonl", &shots);
    let asks = folder.open().unwrap().requests(&encode, 1000, prefix(None)).unwrap();
    assert_eq!(common::text(&asks[0].ids), "p=4|q=4|x=1");
    assert_eq!(common::text(&asks[1].ids), "p=4|q=4|x=2");
    assert_eq!(asks[1].from, "p=4|q=4|x".len());
}

#[test]
fn pairs_are_scored_after_the_prefix_token() {
    let folder = Folder::with(
        "kind = 'pairs'\ngood = '{g}'\nbad = '{b}'\n",
        "{\"g\":\"He is.\",\"b\":\"He are.\"}\n{\"g\":\"a\",\"b\":\"a\"}",
    );
    let task = folder.open().unwrap();
    let asks = task.requests(&encode, 1000, prefix(Some(0))).unwrap();
    assert_eq!((asks[0].ids[0], asks[0].from), (0, 1));
    assert_eq!(common::text(&asks[0].ids[1..]), " He is.");
    let report = judge(&task, &[(-5.0, false), (-4.0, false), (-2.0, false), (-2.0, false)]);
    near(metric(&report, "acc"), 0.5);
    assert_eq!(
        report.records.iter().map(|r| r.correct.unwrap()).collect::<Vec<_>>(),
        [false, true]
    );
    assert_eq!(report.metrics.len(), 1);
}

#[test]
fn documents_add_up_over_their_windows() {
    let folder = Folder::with(
        "kind = 'rolling'\ntext = '{t}'\n",
        "{\"t\":\"ab cd ef \"}\n{\"t\":\"\u{e9}\"}",
    );
    let task = folder.open().unwrap();
    // Nine characters in windows of 4: three windows. One character: one window.
    let asks = task.requests(&encode, 6, prefix(Some(0))).unwrap();
    assert_eq!(asks.iter().map(|ask| ask.item).collect::<Vec<_>>(), [0, 0, 0, 1]);
    assert_eq!(asks.iter().map(|ask| ask.ids.len() - ask.from).collect::<Vec<_>>(), [4, 4, 1, 1]);
    let answer = |log_likelihood| SequenceScore { log_likelihood, greedy: false };
    let report = task.judge(&asks, &[-1.0, -2.0, -3.0, -4.0].map(answer)).unwrap();
    // -10 over 9 + 2 bytes, over 4 + 1 words.
    near(metric(&report, "bits_per_byte"), 10.0 / 11.0 / std::f64::consts::LN_2);
    near(metric(&report, "byte_perplexity"), (10.0f64 / 11.0).exp());
    near(metric(&report, "word_perplexity"), 2.0f64.exp());
    // The ratio is -10/11; residuals -6 + 90/11 and -4 + 20/11 are 24/11 and -24/11.
    let ratio_error = (2.0 * 2.0 * (24.0f64 / 11.0).powi(2)).sqrt() / 11.0;
    near(error_of(&report, "bits_per_byte").unwrap(), ratio_error / std::f64::consts::LN_2);
    near(error_of(&report, "byte_perplexity").unwrap(), ratio_error * (10.0f64 / 11.0).exp());
    assert_eq!(report.records[0].log_likelihoods, [-6.0]);
    assert_eq!((report.records[0].prediction, report.records[0].correct), (None, None));
}

#[test]
fn the_last_word_counts_when_all_of_it_is_greedy() {
    let folder = Folder::with(
        "kind = 'last_word'\ntext = '{t}'\n",
        "{\"t\":\"the big cat\"}\n{\"t\":\"a  dog\"}",
    );
    let task = folder.open().unwrap();
    let asks = task.requests(&encode, 1000, prefix(None)).unwrap();
    assert_eq!((common::text(&asks[0].ids).as_str(), asks[0].from), ("the big cat", 7));
    assert_eq!((common::text(&asks[1].ids).as_str(), asks[1].from), ("a  dog", 1));
    let report = judge(&task, &[(-1.0, true), (-3.0, false)]);
    near(metric(&report, "acc"), 0.5);
    near(metric(&report, "perplexity"), 2.0f64.exp());
    // Deviation of -1 and -3 is sqrt(2), over the root of 2 is 1, times the slope exp(2).
    near(error_of(&report, "perplexity").unwrap(), 2.0f64.exp());
}

#[test]
fn one_continuation_after_several_contexts() {
    let toml = "kind = 'varying_context'\ncontexts = ['{b}{x}', '{b}{y}']\n\
                continuation = '{r}'\nanswer = '{a}'\n";
    let folder = Folder::with(toml, r#"{"b":"As the ","x":"cup","y":"box","r":"fell.","a":1}"#);
    let task = folder.open().unwrap();
    let asks = task.requests(&encode, 1000, prefix(None)).unwrap();
    assert_eq!(common::text(&asks[0].ids), "As the cup fell.");
    assert_eq!(common::text(&asks[1].ids), "As the box fell.");
    assert_eq!(asks[1].from, 10);
    near(metric(&judge(&task, &[(-2.0, false), (-1.0, false)]), "acc"), 1.0);
}

#[test]
fn every_example_goes_through() {
    let tasks = Task::open_folder(&examples()).unwrap();
    let kinds: Vec<&str> = tasks.iter().map(Task::kind).collect();
    for kind in tasks::kind_names() {
        assert!(kinds.contains(&kind), "recipes/tasks has no example of the kind {kind}");
    }
    for task in &tasks {
        assert_eq!(task.items(), 10, "{task:?}");
        assert!(task.about().is_some());
        let asks = task.requests(&encode, 400, prefix(Some(0))).unwrap();
        let report = task.judge(&asks, &answers(&asks)).unwrap();
        assert_eq!(report.records.len(), 10);
        for m in &report.metrics {
            assert!(
                m.value.is_finite() && m.standard_error.unwrap() >= 0.0,
                "{}: {m:?}",
                task.name()
            );
        }
        let mut lines = Vec::new();
        report.write_records(&mut lines).unwrap();
        for (at, line) in std::str::from_utf8(&lines).unwrap().lines().enumerate() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["item"], at);
            assert_eq!(record["task"], task.name());
            for sum in &report.records[at].log_likelihoods {
                assert!(
                    line.contains(&sum.to_string()),
                    "{sum} is written to the last digit in {line}"
                );
            }
        }
    }
}

#[test]
fn every_kind_refuses_answers_that_are_not_its_own() {
    for task in Task::open_folder(&examples()).unwrap() {
        let asks = task.requests(&encode, 400, prefix(Some(0))).unwrap();
        let good = answers(&asks);
        let said = |asks: &[_], answers: &[SequenceScore]| {
            task.judge(asks, answers).unwrap_err().to_string()
        };
        assert!(said(&asks, &good[1..]).contains("expected one for each of"));
        assert!(said(&asks[1..], &good[1..]).contains("none for item 0, choice 0"));
        let twice = [&asks[..], &asks[asks.len() - 1..]].concat();
        let more = [&good[..], &good[good.len() - 1..]].concat();
        if task.kind() != "rolling" {
            // The last ask again is one more window of the same text, and adds up; one of the first
            // item is not.
            assert!(task.judge(&twice, &more).is_ok());
        }
        let again = [&asks[..], &asks[..1]].concat();
        assert!(said(&again, &more).contains("one more, of item 0, choice 0"));
        for bad in [f64::NAN, f64::NEG_INFINITY] {
            let mut wrong = good.clone();
            wrong[2].log_likelihood = bad;
            assert!(said(&asks, &wrong).contains("expected a finite number"), "{}", task.name());
        }
    }
}

#[test]
fn every_kind_refuses_unknown_keys_and_misses_its_own() {
    for entry in std::fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let items = std::fs::read_to_string(path.with_extension("jsonl")).unwrap();
        let unknown = Folder::with(&format!("{text}itmes = 'x.jsonl'\n"), &items);
        let error = unknown.open().unwrap_err().to_string();
        assert!(error.contains("itmes") && error.contains("did you mean `items`?"), "{error}");
        let kind = open(&path).kind();
        let reference = tasks::reference();
        let section =
            reference.split("\n## ").find(|part| part.lines().next() == Some(kind)).unwrap();
        for row in section.lines().filter(|line| line.contains("must be there")) {
            let key = row.split('`').nth(1).unwrap();
            let without: String = text
                .lines()
                .filter(|line| !line.starts_with(&format!("{key} ")))
                .map(|line| format!("{line}\n"))
                .collect();
            let error = Folder::with(&without, &items).open().unwrap_err().to_string();
            assert!(error.contains(&format!("{key}: expected this key")), "{kind}: {error}");
        }
    }
}

#[test]
fn the_reference_is_written_down() {
    let path = examples().join("README.md");
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    if std::env::var_os("LATHE_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, tasks::reference()).unwrap();
    } else {
        assert!(
            written == tasks::reference(),
            "{}: run this test with LATHE_WRITE_REFERENCE=1",
            path.display()
        );
    }
}
