//! Files of models and data that ask for more than there is: memory, nesting, time. In little
//! memory each is refused in order, and a server goes on.

mod common;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::Place;
use common::server::Server;
use common::siege::{Siege, mutate_json};
use serde_json::{Value, json};

/// A command in `mib` MiB of address space.
fn bounded(place: &Place, mib: u64, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -v {}; exec \"$0\" \"$@\"", mib << 10);
    command.args(["-c", &script, env!("CARGO_BIN_EXE_lathe")]).args(arguments);
    command.current_dir(place.path(".")).env("RAYON_NUM_THREADS", "2").stdin(Stdio::null());
    command.env_remove("RUST_BACKTRACE");
    command
}

/// Most bytes that a process has had in memory.
fn peak(id: u32) -> u64 {
    memory(id, "VmHWM:")
}

fn memory(id: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn a_hostile_template_costs_its_own_request_only() {
    let place = Place::with_run();
    let deep =
        format!("{}{}", "{{ ".to_owned() + &"(".repeat(100_000), ")".repeat(100_000) + " }}");
    let nested = "{% set ns = namespace(x=1) %}{% for i in range(40000) %}\
                  {% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}";
    let large = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}\
                 {% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
    let slow = "{{ (range(99999) | list * 90000) | sort | unique | list | length }}";
    for (name, template) in
        [("deep", deep.as_str()), ("nested", nested), ("large", large), ("slow", slow)]
    {
        place.write("chat.jinja", template);
        let serve = ["serve", "run", "--port", "0", "--chat-template", "chat.jinja"];
        let more = ["--template-seconds", "2", "--kv-memory", "16"];
        let server = Server::of(&mut bounded(&place, 1024, &[&serve[..], &more].concat()));
        let body = json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 2 });
        for _ in 0..2 {
            let begun = Instant::now();
            let (status, _, text) =
                server.ask("POST", "/v1/chat/completions", "", &body.to_string());
            assert_eq!(status, 400, "{name}: {text}");
            // Only the first is no template at all.
            let code = if name == "deep" { "no_chat_template" } else { "\"template\"" };
            assert!(text.contains(code), "{name}: {text}");
            assert!(begun.elapsed() < Duration::from_secs(9), "{name}: {:?}", begun.elapsed());
            assert_eq!(server.ask("GET", "/health", "", "").0, 200, "{name}");
            let (status, answer) = server.complete(&json!({ "prompt": "The", "max_tokens": 2 }));
            assert_eq!(status, 200, "{name}: {answer}");
        }
    }
}

#[test]
fn a_template_is_rendered_beside_the_server() {
    let place = Place::with_run();
    place.write("chat.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    let server = Server::start(&place, &["--chat-template", "chat.jinja"]);
    let chat = json!({ "messages": [{ "role": "user", "content": "The tok" }], "max_tokens": 3,
        "temperature": 0 });
    let (status, _, text) = server.ask("POST", "/v1/chat/completions", "", &chat.to_string());
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    let plain = json!({ "prompt": "The tok", "max_tokens": 3, "temperature": 0 });
    let (_, completed) = server.complete(&plain);
    assert_eq!(answer["choices"][0]["message"]["content"], completed["choices"][0]["text"]);
}

/// `bytes` of JSON around one long text, packed to almost nothing.
fn packed_row(kind: &str, text: &str) -> Vec<u8> {
    let row = format!("{{\"text\":\"fine\"}}\n{{\"text\":\"{text}\"}}\n");
    match kind {
        "gz" => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            gzip.write_all(row.as_bytes()).expect("packs");
            gzip.finish().expect("packs")
        }
        _ => zstd::encode_all(row.as_bytes(), 3).expect("packs"),
    }
}

#[test]
fn packed_rows_take_bounded_memory() {
    let place = Place::with_data();
    for kind in ["gz", "zst"] {
        place.write(&format!("bomb/rows.jsonl.{kind}"), packed_row(kind, &"a".repeat(80 << 20)));
        let size = fs::metadata(place.path(&format!("bomb/rows.jsonl.{kind}"))).expect("it").len();
        assert!(size < 300_000, "{size} bytes");
        let build = ["data", "build", "--input", "bomb", "--tokenizer", "tokenizer.json"];
        let build = [&build[..], &["--out", "out"]].concat();
        let ended = common::end(&mut bounded(&place, 700, &build));
        ended.bad(&[&format!("rows.jsonl.{kind}"), "row 2", "67108864 bytes", "max_row"]);
        let small = [&build[..], &["--max-row", "1000"]].concat();
        common::end(&mut bounded(&place, 400, &small)).bad(&["row 2", "1000 bytes"]);
        fs::remove_dir_all(place.path("bomb")).expect("removes");
        fs::remove_dir_all(place.path("out")).expect("removes");
    }
}

#[test]
fn long_rows_take_memory_in_proportion() {
    let place = Place::with_data();
    for (name, text) in [("letter", "a"), ("blank", " "), ("other", "\u{e9}"), ("line", "ab\\n")] {
        let text = format!("{}b", text.repeat((20 << 20) / text.len()));
        place.write("bomb/rows.jsonl.zst", packed_row("zst", &text));
        let build = ["data", "build", "--input", "bomb", "--tokenizer", "tokenizer.json"];
        let build = [&build[..], &["--out", name]].concat();
        let mut child =
            bounded(&place, 1024, &build).stdout(Stdio::null()).spawn().expect("starts");
        assert!(child.wait().expect("ends").success(), "{name}");
    }
}

#[test]
fn many_long_texts_at_the_tokenizer_are_bounded_and_given_back() {
    let place = Place::with_run();
    let server = Server::start(&place, &["--max-tokenize", "4000000"]);
    let id = server.child.id();
    let plain = json!({ "prompt": "The", "max_tokens": 2 });
    assert_eq!(server.complete(&plain).0, 200);
    let before = memory(id, "VmRSS:");
    let body = json!({ "prompt": "a".repeat(4_000_000) }).to_string();
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..8).map(|_| scope.spawn(|| server.ask("POST", "/tokenize", "", &body).0)).collect();
        std::thread::sleep(Duration::from_millis(100));
        let begun = Instant::now();
        assert_eq!(server.complete(&plain).0, 200);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        for asked in asked {
            let status = asked.join().expect("an answer");
            assert!(status == 200 || status == 408, "{status}");
        }
    });
    let most = peak(id);
    assert!(most < before + (700 << 20), "{} MiB from {}", most >> 20, before >> 20);
    let begun = Instant::now();
    while memory(id, "VmRSS:") > before + (200 << 20) {
        let now = memory(id, "VmRSS:") >> 20;
        assert!(begun.elapsed() < Duration::from_secs(15), "{now} MiB, {} before", before >> 20);
        std::thread::sleep(Duration::from_millis(200));
    }
    let long = json!({ "prompt": "a".repeat(4_000_001) }).to_string();
    let (status, _, text) = server.ask("POST", "/tokenize", "", &long);
    assert!(status == 400 && text.contains("4000000"), "{status} {text}");
}

/// Parts of templates: what is done again and again, and what is done with the result.
const STEPS: [&str; 10] = [
    "{% set ns.x = [ns.x] %}",
    "{% set ns.x = {'a': ns.x, 'b': ns.x} %}",
    "{% set ns.x = ns.x ~ ns.x %}",
    "{% set ns.x = (ns.x | string) * 3 %}",
    "{% set ns.x = ns.x | tojson %}",
    "{% set ns.x = [ns.x, ns.x] | join(ns.s) %}",
    "{% set ns.s = ns.s | replace('a', ns.s) %}",
    "{% set ns.s = ns.s | indent(1000) %}",
    "{% set ns.x = ns %}",
    "{{ ns.s }}",
];
const ENDS: [&str; 8] = [
    "{{ ns.x }}",
    "{{ ns.x | tojson(indent=3) }}",
    "{{ ns.x == ns.x }}",
    "{{ [ns.x, ns.s] | sort | unique | list }}",
    "{{ ns.x | list | batch(100000, ns.s) | list }}",
    "{{ (range(99999) | list * 9999) | sort | length }}",
    "{% macro f(x) %}{{ f([x, ns.x]) }}{% endmacro %}{{ f(1) }}",
    "plain",
];

/// Templates put together at random: each chat is answered or refused in time, and completions go
/// on beside it.
#[test]
#[ignore = "for `cargo xtask siege`"]
fn siege_of_templates() {
    let mut siege = Siege::begin("templates");
    let place = Place::with_run();
    let body = json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 });
    let plain = json!({ "prompt": "The", "max_tokens": 1 });
    while siege.goes_on() {
        let mut template = "{% set ns = namespace(x='a', s='a') %}".to_owned();
        for _ in 0..=siege.dice.below(3) {
            let times = siege.choose(&[3, 40, 3000, 90_000]);
            let step = siege.choose(&STEPS);
            template += &format!("{{% for i in range({times}) %}}{step}{{% endfor %}}");
        }
        template += siege.choose(&ENDS);
        place.write("chat.jinja", &template);
        let serve = ["serve", "run", "--port", "0", "--chat-template", "chat.jinja"];
        let more = ["--template-seconds", "1", "--kv-memory", "16"];
        let server = Server::of(&mut bounded(&place, 1024, &[&serve[..], &more].concat()));
        let begun = Instant::now();
        let (status, _, text) = server.ask("POST", "/v1/chat/completions", "", &body.to_string());
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}: {template}", begun.elapsed());
        match status {
            200 => siege.count("answered"),
            400 if text.contains("process ended") => siege.count("ended"),
            400 if text.contains("ran longer") => siege.count("slow"),
            400 => siege.count("refused"),
            other => panic!("{other} {text}: {template}"),
        }
        assert_eq!(server.complete(&plain).0, 200, "{template}");
    }
    siege.end();
}

/// Tokenizers with anything changed: text is encoded, or refused in order and in time.
#[test]
#[ignore = "for `cargo xtask siege`"]
fn siege_of_tokenizers() {
    let mut siege = Siege::begin("tokenizers");
    let place = Place::with_data();
    let whole: Value = serde_json::from_str(&place.text("tokenizer.json")).expect("JSON");
    let build = ["data", "build", "--input", "text", "--tokenizer", "t.json", "--out", "out"];
    while siege.goes_on() {
        let mut json = whole.clone();
        for _ in 0..=siege.dice.below(4) {
            json = mutate_json(&json, &mut siege.dice);
        }
        place.write("t.json", json.to_string());
        let _ = fs::remove_dir_all(place.path("out"));
        let begun = Instant::now();
        let ended = common::end(&mut bounded(&place, 2048, &build));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}: {json}", begun.elapsed());
        assert!(!ended.err.contains("panicked"), "{ended:?}: {json}");
        match ended.code {
            Some(0) => siege.count("encoded"),
            Some(1) => siege.count("refused"),
            _ => panic!("{ended:?}: {json}"),
        }
    }
    siege.end();
}
