//! Flags of `lathe serve`, by what a server answers that got them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::Place;
use crate::common::server::{Server, read_all};

/// Status and body of a completion with these fields beside the prompt.
fn complete(server: &Server, more: Value) -> (u16, Value) {
    let mut body = json!({ "prompt": "the", "max_tokens": 2, "seed": 1 });
    for (name, value) in more.as_object().expect("fields") {
        body[name] = value.clone();
    }
    server.complete(&body)
}

fn models(server: &Server, headers: &str) -> (u16, Value) {
    let (status, _, body) = server.ask("GET", "/v1/models", headers, "");
    (status, serde_json::from_str(&body).unwrap_or_default())
}

#[test]
fn it_listens_where_it_is_told_to() {
    let place = Place::with_run();
    let free = TcpListener::bind("127.0.0.2:0").expect("a free port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let words = ["serve", "run", "--host", "127.0.0.2", "--port", &port.to_string()];
    let server = Server::of(&mut place.command(&words));
    assert_eq!((server.host.as_str(), server.port), ("127.0.0.2", port));
    assert_eq!(models(&server, "").0, 200);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "at another address too");
}

#[test]
fn models_have_the_names_that_were_given() {
    let place = Place::with_run();
    let words = ["--name", "small", "--alias", "tiny", "--alias", "wee"];
    for (more, name, aliases) in [(&words[..], "small", &["tiny", "wee"][..]), (&[], "run", &[])] {
        let server = Server::start(&place, more);
        assert_eq!(models(&server, "").1["data"][0]["id"], name);
        for other in ["small", "tiny", "wee", "run"] {
            let known = other == name || aliases.contains(&other);
            let status = complete(&server, json!({ "model": other })).0;
            assert_eq!(status, if known { 200 } else { 404 }, "{other} of {name}");
        }
    }
}

#[test]
fn a_key_of_the_command_line_opens() {
    let place = Place::with_run();
    let server = Server::start(&place, &["--api-key", "first", "--api-key", "second"]);
    assert_eq!(models(&server, "").0, 401);
    for (key, status) in [("first", 200), ("second", 200), ("third", 401)] {
        let header = format!("authorization: Bearer {key}\r\n");
        assert_eq!(models(&server, &header).0, status, "{key}");
    }
}

#[test]
fn names_and_sites_may_ask_that_were_named() {
    let place = Place::with_run();
    let of = |server: &Server, host: &str| {
        let mut stream = TcpStream::connect((server.host.as_str(), server.port)).expect("connects");
        let origin = "origin: https://chat.example";
        let head = format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\n{origin}\r\n");
        stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).expect("sends");
        let (status, head, _) = read_all(stream);
        (status == 200, head.to_lowercase().contains("access-control-allow-origin"))
    };
    let plain = Server::start(&place, &[]);
    assert_eq!(of(&plain, "models.example"), (false, false));
    let words = ["--allow-host", "models.example", "--cors-origin", "https://chat.example"];
    let named = Server::start(&place, &words);
    assert_eq!(of(&named, "models.example"), (true, true));
    assert_eq!(of(&named, "localhost"), (true, true));
    assert!(!of(&named, "other.example").0);
    let site = Server::start(&place, &words[2..]);
    assert!(!of(&site, "models.example").0);
    let name = Server::start(&place, &words[..2]);
    assert!(!of(&name, "models.example").1, "answers are for named sites only");
}

#[test]
fn a_template_from_a_file_makes_chats() {
    let place = Place::with_run();
    place.write("template", "{% for m in messages %}{{ m.content }}{% endfor %}");
    let chat = json!({ "messages": [{ "role": "user", "content": "the" }], "max_tokens": 1 });
    let ask = |server: &Server| server.ask("POST", "/v1/chat/completions", "", &chat.to_string());
    let answer = ask(&Server::start(&place, &["--chat-template", "template"]));
    assert_eq!(answer.0, 200, "{}", answer.2);
    let refused = ask(&Server::start(&place, &[]));
    assert!(refused.0 == 400 && refused.2.contains("template"), "{}", refused.2);
}

#[test]
fn unknown_fields_are_refused_where_that_is_asked_for() {
    let place = Place::with_run();
    let unknown = json!({ "colour": "green" });
    assert_eq!(complete(&Server::start(&place, &[]), unknown.clone()).0, 200);
    let (status, answer) = complete(&Server::start(&place, &["--strict"]), unknown);
    assert!(status == 400 && answer.to_string().contains("colour"), "{answer}");
}

#[test]
fn weights_are_rounded_to_the_format_that_was_asked_for() {
    let place = Place::with_run();
    let of = |more: &[&str]| {
        let (status, answer) = complete(&Server::start(&place, more), json!({}));
        assert_eq!(status, 200, "{answer}");
        answer["system_fingerprint"].as_str().expect("a text").to_owned()
    };
    let plain = of(&[]);
    assert_eq!(of(&[]), plain);
    assert_ne!(of(&["--weights", "int8"]), plain);
    assert_ne!(of(&["--weights", "int8"]), of(&["--weights", "int4"]));
}

/// A server with small limits refuses what one without them answers.
#[test]
fn requests_beyond_a_limit_are_refused() {
    let place = Place::with_run();
    let words = "--max-body 3000 --max-prompts 2 --max-n 3 --max-sequences 4 --max-stops 1 \
                 --max-logprobs 1 --max-logit-bias 1 --context 20";
    let words: Vec<&str> = words.split_whitespace().collect();
    let (small, usual) = (Server::start(&place, &words), Server::start(&place, &[]));
    for (flag, most, beyond) in [
        ("--max-body", json!({ "user": "x".repeat(2800) }), json!({ "user": "x".repeat(3000) })),
        ("--max-prompts", json!({ "prompt": ["a", "b"] }), json!({ "prompt": ["a", "b", "c"] })),
        ("--max-n", json!({ "n": 3 }), json!({ "n": 4 })),
        (
            "--max-sequences",
            json!({ "prompt": ["a", "b"], "n": 2 }),
            json!({ "prompt": ["a", "b"], "n": 3 }),
        ),
        ("--max-stops", json!({ "stop": ["x"] }), json!({ "stop": ["x", "y"] })),
        ("--max-logprobs", json!({ "logprobs": 1 }), json!({ "logprobs": 2 })),
        (
            "--max-logit-bias",
            json!({ "logit_bias": { "5": 1 } }),
            json!({ "logit_bias": { "5": 1, "6": 1 } }),
        ),
        ("--context", json!({ "max_tokens": 12 }), json!({ "max_tokens": 30 })),
    ] {
        assert_eq!(complete(&small, most).0, 200, "{flag}");
        assert_eq!(complete(&usual, beyond.clone()).0, 200, "{flag}");
        let (status, answer) = complete(&small, beyond);
        assert!([400, 413].contains(&status), "{flag}: {status} {answer}");
    }
}

/// Seconds until the server ends a connection on which `sent` came and nothing more.
fn closed_after(server: &Server, sent: &str) -> f64 {
    let mut stream = TcpStream::connect((server.host.as_str(), server.port)).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(8))).expect("a timeout");
    stream.write_all(sent.as_bytes()).expect("sends");
    let clock = Instant::now();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => clock.elapsed().as_secs_f64(),
        Err(error) => panic!("{sent:?}: still open, {error}"),
    }
}

#[test]
fn slow_and_idle_connections_are_closed() {
    let place = Place::with_run();
    let words = ["--header-seconds", "1", "--body-seconds", "2", "--keep-alive", "3"];
    let server = Server::start(&place, &words);
    let body = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\ncontent-length: 90\r\n\r\n{";
    let whole = "GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n";
    std::thread::scope(|scope| {
        for (sent, seconds) in [("GET /li", 1.0), (body, 2.0), (whole, 3.0)] {
            let server = &server;
            scope.spawn(move || {
                let found = closed_after(server, sent);
                assert!((found - seconds).abs() < 0.8, "{sent:?}: {found} for {seconds}");
            });
        }
    });
}
