//! Chat templates that somebody wrote to end the server: each fails alone.

use crate::client::Server;
use crate::fake::{self, Options};
use serde_json::json;
use server::{ServerLimits, ServerSettings, TemplateProgram};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// The test program once more, as the process that renders templates; in 1 GiB of addresses.
pub(crate) fn program() -> TemplateProgram {
    let own = std::env::current_exe().unwrap();
    let bounded = "ulimit -v 1048576; ulimit -c 0; exec \"$0\" \"$@\"";
    let arguments = ["-c", bounded, own.to_str().unwrap()].into_iter();
    let test = ["--ignored", "--exact", "templates::render_templates"];
    let arguments = arguments.chain(test).map(Into::into).collect();
    TemplateProgram { program: "/bin/sh".into(), arguments, environment: Vec::new() }
}

#[test]
#[ignore = "no test: what this program does as the process that renders templates"]
fn render_templates() {
    let _ = server::render_templates();
}

/// Ways to write an expression or a block inside of another one, as often as one likes.
const NESTINGS: [(&str, &str, &str); 20] = [
    ("{{ ", "(", ")"),
    ("{{ ", "[", "]"),
    ("{{ ", "{'a': ", "}"),
    ("{{ ", "- ", ""),
    ("{{ ", "not ", ""),
    ("{{ ", "1 + ", ""),
    ("{{ ", "1 ~ ", ""),
    ("{{ ", "1 and ", ""),
    ("{{ ", "1 if 1 else ", ""),
    ("{{ ", "2 ** ", ""),
    ("{{ ", "x(", ")"),
    ("{{ 1", "", " + 1"),
    ("{{ x", "", ".a"),
    ("{{ x", "", "[0]"),
    ("{{ x", "", " | trim"),
    ("{{ x", "", "()"),
    ("", "{% if 1 %}", "{% endif %}"),
    ("", "{% for i in [1] %}", "{% endfor %}"),
    ("", "{% filter trim %}", "{% endfilter %}"),
    ("", "{% macro m() %}", "{% endmacro %}"),
];

/// Statements of which each makes a value deeper than the one before.
const DEEPER: [&str; 3] = [
    "{% set ns.x = [ns.x] %}",
    "{% set ns.x = {'a': ns.x} %}",
    "{% set ns.x = namespace(x=ns.x) %}",
];

/// What may be done with a deep value.
const USES: [&str; 16] = [
    "{{ ns.x }}",
    "{{ ns.x | tojson }}",
    "{{ ns.x | tojson(indent=2) }}",
    "{{ ns.x ~ 'a' }}",
    "{{ ns.x == ns.x }}",
    "{{ ns.x < [ns.x] }}",
    "{{ ns.x in [ns.x] }}",
    "{{ {ns.x: 1} }}",
    "{{ [ns.x, ns.x] | sort }}",
    "{{ [ns.x, ns.x] | unique | list }}",
    "{{ [ns.x] | join(',') }}",
    "{{ ns.x | pprint }}",
    "{{ ns.x | string | length }}",
    "{{ ns.x | upper }}",
    "{{ debug(ns.x) }}",
    "done",
];

/// Values that are larger than any template needs, and work without an end.
const LARGE: [&str; 48] = [
    "{{ 'x' * 900000000 }}",
    "{{ ('x' * 900000000) | length }}",
    "{{ [1] * 900000000 }}",
    "{{ ([1] * 900000000) | length }}",
    "{{ ([[1] * 10000] * 10000) | tojson }}",
    "{{ 'a\\nb' | indent(900000000) }}",
    "{{ ('a\\n' * 100000) | indent(100000) }}",
    "{{ [1, 2] | slice(900000000) | list }}",
    "{{ [1, 2] | slice(900000000, 'x') | list }}",
    "{{ [1, 2] | batch(900000000, 'x') | list }}",
    "{{ [1, 2] | batch(900000000, 'x') | list | tojson }}",
    "{{ '%900000000d' | format(1) }}",
    "{{ '%.900000000f' | format(1.5) }}",
    "{{ '%0900000000d' | format(1) }}",
    "{{ '{:>900000000}'.format('x') }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
    "{{ ([1] * 100000) | join('x' * 100000) }}",
    "{{ ('x' * 100000).join([1] * 100000) }}",
    "{{ 'x'.center(900000000) }}",
    "{{ 'x'.ljust(900000000) }}",
    "{{ 'x'.rjust(900000000) }}",
    "{{ 'x'.zfill(900000000) }}",
    "{{ 'x' | center(900000000) }}",
    "{{ '\\t'.expandtabs(900000000) }}",
    "{{ ('x' * 10000000).split('x') | length }}",
    "{{ ('x' * 30000000) | list | length }}",
    "{{ ('x' * 30000000) | reverse | length }}",
    "{{ ('a b ' * 10000000) | wordcount }}",
    "{{ ('a b ' * 10000000) | title | length }}",
    "{{ range(99999) | list * 10000 }}",
    "{{ (range(99999) | list * 1000) | sort | length }}",
    "{{ (range(99999) | list * 1000) | unique | list | length }}",
    "{{ (range(99999) | list * 1000) | map('string') | list | length }}",
    "{{ (range(99999) | list * 1000) | groupby('x') | length }}",
    "{{ (range(99999) | list * 100) | sum }}",
    "{{ range(1000000000) | list }}",
    "{{ range(0, 9000000000000000000, 1) | list }}",
    "{{ lipsum(100000) }}",
    "{{ dict(a='x' * 100000000, b='x' * 100000000, c='x' * 100000000) | tojson }}",
    "{{ (('x' * 100000000) | tojson) | tojson }}",
    "{{ ('<' * 100000000) | escape }}",
    "{{ ('%' * 100000000) | urlencode }}",
    "{{ ('x' * 1000000) | replace('x', 'xx') | replace('x', 'xx') | replace('x', 'xx') \
        | replace('x', 'xx') | replace('x', 'xx') | replace('x', 'xx') | replace('x', 'xx') }}",
    "{{ 2 ** 1000000 }}",
    "{{ 9223372036854775807 + 1 }}",
    "{{ strftime_now('%Y' * 100000) }}",
];

/// Statements that are run again and again after `ns.x`, `ns.s` and `ns.l` were made.
const REPEATED: [&str; 16] = [
    "{% set ns.s = ns.s ~ ns.s %}",
    "{% set ns.s = ns.s + ns.s %}",
    "{% set ns.s = ns.s * 2 %}",
    "{% set ns.s = ns.s | replace('a', 'aa') %}",
    "{% set ns.s = [ns.s, ns.s] | join %}",
    "{% set ns.s = ns.s | tojson %}",
    "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}",
    "{% set ns.l = ns.l + ns.l %}",
    "{% set ns.l = ns.l * 2 %}",
    "{% set ns.l = [ns.l, ns.l] %}",
    "{% set ns.l = {'a': ns.l, 'b': ns.l} %}",
    "{% set ns.l = (ns.l, ns.l) | list %}",
    "{% set ns.x = ns %}{% set ns.l = ns.x %}",
    "{{ ns.s * 10000 }}",
    "{% for j in range(99999) %}{% if j in range(99999) | list %}{% endif %}{% endfor %}",
    "{% set ns.n = (ns.l * 90000) | sort | unique | list | length %}",
];

const RECURSIONS: [&str; 14] = [
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}",
    "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}\
     {% endmacro %}{{ g() }}",
    "{% macro f() %}{% for i in range(9999) %}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ f() ~ f() }}{% endmacro %}{{ f() }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% for x in [1] recursive %}{{ loop([1]) ~ loop([1]) }}{% endfor %}",
    "{% include 'chat' %}",
    "{% import 'chat' as c %}{{ c.f() }}",
    "{% extends 'chat' %}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% include '/etc/passwd' %}",
    "{% set ns = namespace() %}{% set ns.f = ns %}{{ ns }}{{ ns | tojson }}{{ ns == ns }}",
];

/// Texts whose reading is the trouble; each is repeated.
const READINGS: [&str; 14] = [
    "{% set a = 1 %}",
    "{{ 1 }}",
    "{{",
    "{%",
    "{#",
    "{% raw %}",
    "{% if x %}",
    "{{ 'a",
    "9",
    "{{ 999999999999999999999999999999 }}",
    "{% else %}",
    "\u{0}",
    "\u{feff}\u{202e}",
    "{% if x %}{% elif y %}{% endif %}",
];

fn hostile() -> Vec<String> {
    let mut all = Vec::new();
    for (before, left, right) in NESTINGS {
        let close = if before.is_empty() { "" } else { " }}" };
        let open = before.strip_prefix("{{ ").map_or("", |inner| inner);
        for depth in [120, 5_000, 120_000] {
            let (left, right) = (left.repeat(depth), right.repeat(depth));
            let middle = if open.is_empty() { "1" } else { "" };
            all.push(format!("{before}{left}{middle}{right}{close}"));
        }
    }
    for deeper in DEEPER {
        for used in USES {
            let make = format!("{{% for i in range(30000) %}}{deeper}{{% endfor %}}");
            all.push(format!("{{% set ns = namespace(x=1) %}}{make}{used}"));
        }
    }
    all.extend(LARGE.map(str::to_owned));
    for repeated in REPEATED {
        let begin = "{% set ns = namespace(s='a', l=[1]) %}";
        for times in [60, 20_000] {
            let body = format!("{{% for i in range({times}) %}}{repeated}{{% endfor %}}");
            all.push(format!("{begin}{body}{{{{ ns.l }}}}{{{{ ns.s }}}}"));
        }
    }
    all.extend(RECURSIONS.map(str::to_owned));
    all.extend(READINGS.map(|text| text.repeat(200_000)));
    all
}

/// How a chat over one template went.
struct Outcome {
    template: String,
    status: u16,
    message: String,
    seconds: f64,
}

async fn outcome(template: String) -> Outcome {
    let mut text = fake::text();
    text.special.chat_template = Some(template.clone());
    let limits = ServerLimits { template_time: Duration::from_millis(200), ..Default::default() };
    let settings = ServerSettings { limits, ..ServerSettings::default() };
    let server = Server::of(settings, Options::default(), fake::info(), text).await;
    assert_eq!(server.get("/health").await.status, 200, "{}", short(&template));
    let begun = Instant::now();
    let body = json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 });
    let reply = server.post(CHAT, &body).await;
    let seconds = begun.elapsed().as_secs_f64();
    let completed = server.post(COMPLETIONS, &json!({ "prompt": "x", "max_tokens": 1 })).await;
    assert_eq!(completed.status, 200, "{}", short(&template));
    let message = if reply.status == 200 { String::new() } else { reply.message() };
    Outcome { template, status: reply.status, message, seconds }
}

fn short(template: &str) -> String {
    template.chars().take(100).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_hostile_templates_fail_alone() {
    let templates = hostile();
    assert!(templates.len() >= 200, "{}", templates.len());
    // More at a time would measure the wait for a processor.
    let places = Arc::new(Semaphore::new(4));
    let mut tasks = tokio::task::JoinSet::new();
    for template in templates {
        let places = Arc::clone(&places);
        tasks.spawn(async move {
            let _place = places.acquire_owned().await;
            outcome(template).await
        });
    }
    let (mut ended, mut slow, mut refused) = (0, 0, 0);
    while let Some(outcome) = tasks.join_next().await {
        let Outcome { template, status, message, seconds } = outcome.unwrap();
        let template = short(&template);
        assert!(status == 400 || status == 200, "{status} {message}: {template}");
        assert!(seconds < 20.0, "{seconds} s: {template}");
        assert!(message.len() < 4000, "{} bytes: {template}", message.len());
        ended += usize::from(message.contains("its process ended"));
        slow += usize::from(message.contains("it ran longer than"));
        refused += usize::from(status == 400);
    }
    // Otherwise this would test templates that are not hostile.
    assert!(ended >= 20 && refused >= 120, "{ended} ended, {slow} slow, {refused} refused");
}

#[tokio::test]
async fn a_slow_template_delays_nobody_else() {
    let mut text = fake::text();
    // Short messages render at once, others never.
    text.special.chat_template = Some(
        "{% if messages[0].content == 'slow' %}{{ (range(99999) | list * 10000) | sort | length }}\
         {% endif %}{{ messages[0].content }}"
            .to_owned(),
    );
    let time = Duration::from_millis(1500);
    let limits = ServerLimits { template_time: time, ..ServerLimits::default() };
    let settings = ServerSettings { limits, readers: 2, ..ServerSettings::default() };
    let server = Arc::new(Server::of(settings, Options::default(), fake::info(), text).await);
    let chat = |content: &str| {
        let (server, content) = (Arc::clone(&server), content.to_owned());
        async move {
            let messages = json!([{ "role": "user", "content": content }]);
            server.post(CHAT, &json!({ "messages": messages, "max_tokens": 1 })).await
        }
    };
    assert_eq!(chat("quick").await.status, 200);
    let slow: Vec<_> = (0..2).map(|_| tokio::spawn(chat("slow"))).collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    // Of a size that is not read where it arrives.
    let prompt = format!("{}{}", json!({ "prompt": "x", "max_tokens": 1 }), " ".repeat(9000));
    assert_eq!(server.post_text(COMPLETIONS, &prompt).await.status, 200);
    assert_eq!(server.post("/tokenize", &json!({ "prompt": "x" })).await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    for slow in slow {
        let reply = slow.await.unwrap();
        assert_eq!(reply.status, 400);
        assert!(reply.message().contains("template"), "{}", reply.message());
    }
    // Both places are free again, and a fresh process is there.
    assert_eq!(chat("quick").await.status, 200);
}

#[tokio::test]
async fn without_a_program_only_chat_fails() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let missing = "/no/such/program".into();
    let program = TemplateProgram { program: missing, ..TemplateProgram::default() };
    let settings = ServerSettings { template_program: program, ..ServerSettings::default() };
    let engine = fake::Fake::start(Options::default());
    let (info, text) = (fake::info(), fake::text());
    tokio::spawn(server::serve(listener, settings, info, text, engine, std::future::pending()));
    let ask = |path, body: serde_json::Value| async move {
        let raw = crate::client::request(path, body.to_string().as_bytes(), "");
        crate::client::exchange(tokio::net::TcpStream::connect(at).await.unwrap(), &raw).await
    };
    let reply = ask(CHAT, json!({ "messages": [{ "role": "user", "content": "x" }] })).await;
    assert_eq!(reply.status, 500, "{}", reply.text());
    assert!(reply.message().contains("/no/such/program"), "{}", reply.message());
    assert_eq!(ask(COMPLETIONS, json!({ "prompt": "x", "max_tokens": 1 })).await.status, 200);
}
