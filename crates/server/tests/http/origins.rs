//! Who may ask: names of the server, pages of other sites, and requests for the head alone.

use crate::client::{Reply, Server};
use crate::fake::Options;
use serde_json::json;
use server::{ServeError, ServerSettings};

async fn with(settings: ServerSettings) -> Server {
    Server::with(settings, Options::default()).await
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|&name| name.to_owned()).collect()
}

/// The status of a request whose head goes on with these lines.
async fn status(server: &Server, first: &str, lines: &str) -> u16 {
    let raw = format!("{first}\r\n{lines}connection: close\r\n\r\n");
    server.send(&raw).await.status
}

#[tokio::test]
async fn a_loopback_server_is_asked_by_its_own_names() {
    let server = with(ServerSettings::default()).await;
    let get = "GET /v1/models HTTP/1.1";
    for (host, expected) in [
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("lathe.localhost", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("192.168.0.7", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 400),
        ("local host", 400),
        ("", 400),
    ] {
        let found = status(&server, get, &format!("host: {host}\r\n")).await;
        assert_eq!(found, expected, "{host}");
    }
    assert_eq!(status(&server, get, "").await, 400, "no name at all");
    assert_eq!(status(&server, get, "host: localhost\r\nhost: localhost\r\n").await, 400);
    assert_eq!(status(&server, get, "host: localhost\r\nhost: evil.example\r\n").await, 400);
    let target = "GET http://evil.example/v1/models HTTP/1.1";
    assert_eq!(status(&server, target, "host: localhost\r\n").await, 403, "the target counts");
    // Checks of HAProxy speak so, and browsers do not.
    assert_eq!(status(&server, "GET /health HTTP/1.0", "").await, 200);
    assert_eq!(status(&server, "GET /health HTTP/1.0", "host: evil.example\r\n").await, 403);
    let raw = format!("{get}\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
    let refused = server.send(&raw).await;
    assert_eq!(refused.json()["error"]["type"], "permission_error");
    assert!(refused.message().contains("--allow-host evil.example"), "{}", refused.message());
}

#[tokio::test]
async fn names_are_added_and_keys_need_none() {
    let get = "GET /live HTTP/1.1";
    let named =
        with(ServerSettings { allow_hosts: names(&["Lathe.example"]), ..Default::default() });
    let named = named.await;
    assert_eq!(status(&named, get, "host: lathe.EXAMPLE:443\r\n").await, 200);
    assert_eq!(status(&named, get, "host: localhost\r\n").await, 200);
    assert_eq!(status(&named, get, "host: other.example\r\n").await, 403);
    let any = with(ServerSettings { allow_hosts: names(&["*"]), ..Default::default() }).await;
    assert_eq!(status(&any, get, "host: evil.example\r\n").await, 200);
    assert_eq!(status(&any, get, "").await, 400);
    let keyed = ServerSettings { api_keys: names(&["k"]), ..Default::default() };
    let both = ServerSettings { allow_hosts: names(&["a"]), ..keyed.clone() };
    assert_eq!(status(&with(keyed).await, get, "host: evil.example\r\n").await, 200);
    assert_eq!(status(&with(both).await, get, "host: evil.example\r\n").await, 403);
    for (allow_hosts, cors_origins, name) in [
        (names(&["a:80"]), vec![], "allow_hosts"),
        (vec![], names(&["a.example"]), "cors_origins"),
        (vec![], names(&["https://a.example/page"]), "cors_origins"),
    ] {
        let settings = ServerSettings { allow_hosts, cors_origins, ..Default::default() };
        let Err(ServeError::Setting { name: found, .. }) = settings.check() else {
            panic!("{name} is taken")
        };
        assert_eq!(found, name);
    }
}

fn preflight(path: &str, origin: &str, method: &str) -> String {
    format!(
        "OPTIONS {path} HTTP/1.1\r\nhost: localhost\r\norigin: {origin}\r\n\
         access-control-request-method: {method}\r\n\
         access-control-request-headers: authorization, content-type\r\nconnection: close\r\n\r\n"
    )
}

fn opened(reply: &Reply) -> Option<&str> {
    reply.header("access-control-allow-origin")
}

#[tokio::test]
async fn pages_of_other_sites_read_nothing_unless_they_are_named() {
    let chat = "https://chat.example";
    let get = |origin: &str| {
        format!(
            "GET /v1/models HTTP/1.1\r\nhost: localhost\r\norigin: {origin}\r\n\
             authorization: Bearer k\r\nconnection: close\r\n\r\n"
        )
    };
    let closed = with(ServerSettings::default()).await;
    assert_eq!(opened(&closed.send(&get(chat)).await), None);
    let reply = closed.send(&preflight("/v1/completions", chat, "POST")).await;
    assert_eq!((reply.status, reply.header("allow"), opened(&reply)), (405, Some("POST"), None));
    let settings = ServerSettings {
        api_keys: names(&["k"]),
        cors_origins: names(&[chat, "http://localhost:3000"]),
        ..Default::default()
    };
    let some = with(settings).await;
    for origin in [chat, "http://localhost:3000"] {
        let reply = some.send(&get(origin)).await;
        assert_eq!((reply.status, opened(&reply)), (200, Some(origin)));
        assert_eq!(reply.header("vary"), Some("origin"));
        assert!(reply.header("access-control-expose-headers").unwrap().contains("x-request-id"));
        // The browser asks without the key.
        let reply = some.send(&preflight("/v1/completions", origin, "POST")).await;
        assert_eq!((reply.status, opened(&reply)), (204, Some(origin)));
        assert_eq!(reply.header("access-control-allow-methods"), Some("POST"));
        let allowed = reply.header("access-control-allow-headers");
        assert_eq!(allowed, Some("authorization, content-type"));
        assert!(reply.body.is_empty());
    }
    for origin in ["https://evil.example", "https://chat.example.evil", "null"] {
        let reply = some.send(&get(origin)).await;
        assert_eq!((reply.status, opened(&reply)), (200, None), "it may ask, and read nothing");
        let reply = some.send(&preflight("/v1/completions", origin, "POST")).await;
        assert_eq!((reply.status, opened(&reply)), (403, None), "{origin}");
    }
    assert_eq!(some.send(&preflight("/v1/completions", chat, "GET")).await.status, 405);
    assert_eq!(some.send(&preflight("/nothing", chat, "GET")).await.status, 404);
    // Refusals can be read, too.
    let refused = some.send(&get(chat).replace("Bearer k", "Bearer no")).await;
    assert_eq!((refused.status, opened(&refused)), (401, Some(chat)));
    let any = with(ServerSettings { cors_origins: names(&["*"]), ..Default::default() }).await;
    assert_eq!(opened(&any.send(&get("https://any.example")).await), Some("*"));
}

#[tokio::test]
async fn a_head_is_that_of_the_whole_answer() {
    let settings = ServerSettings { api_keys: names(&["k"]), ..Default::default() };
    let server = with(settings).await;
    for path in ["/health", "/live", "/v1/models", "/openapi.json", "/", "/v1/models/tiny"] {
        let ask = |method: &str, key: &str| {
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{key}connection: close\r\n\r\n")
        };
        let key = "authorization: Bearer k\r\n";
        let get = server.send(&ask("GET", key)).await;
        let head = server.send(&ask("HEAD", key)).await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"));
        let open = server.send(&ask("HEAD", "")).await.status;
        assert_eq!(open, if path.len() > 1 && path.len() < 8 { 200 } else { 401 }, "{path}");
    }
    let post = "HEAD /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer k\r\n\
                connection: close\r\n\r\n";
    assert_eq!(server.send(post).await.status, 405);
    // It counts as an answer, and not as a client that went away.
    let text = server
        .send(
            "GET /metrics HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer k\r\n\
               connection: close\r\n\r\n",
        )
        .await
        .text();
    assert!(!text.contains("status=\"499\""), "{text}");
    let body = json!({ "prompt": "x" }).to_string();
    let raw =
        crate::client::request("/v1/completions", body.as_bytes(), "authorization: Bearer k\r\n");
    assert_eq!(server.send_bytes(&raw).await.status, 200);
}
