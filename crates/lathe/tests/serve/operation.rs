//! What operators rely on: signals, limits, flags, and the configurations of the documents.

use super::*;

#[test]
fn a_second_signal_ends_at_once() {
    let place = Place::with_run();
    let mut server = Server::start(&place, &["--lame-duck", "600"]);
    server.signal();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.ask("GET", "/health", "", "").0, 503);
    let (status, head, _) = server.ask("POST", "/v1/completions", "", "{\"prompt\":\"a\"}");
    assert!(status == 200 && head.to_lowercase().contains("connection: close"), "{head}");
    assert!(server.child.try_wait().expect("a child").is_none(), "it is a lame duck");
    server.signal();
    let clock = Instant::now();
    let status = loop {
        match server.child.try_wait().expect("a child") {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(10)),
        }
        assert!(clock.elapsed() < Duration::from_secs(5), "still there");
    };
    assert_eq!(status.code(), Some(128 + 15), "{status}");
}

/// The operator reads at the signal how long the end may take, as the flags say it.
#[test]
fn a_signal_is_answered_with_the_times_of_the_end() {
    let place = Place::with_run();
    let flags = ["serve", "run", "--port", "0", "--lame-duck", "1", "--drain", "7"];
    let plain = place.command(&flags);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>said.txt"]).arg(plain.get_program());
    shell.args(plain.get_args()).current_dir(place.path("."));
    // A shell that replaces itself: the signal reaches the server.
    let mut server = Server::of(&mut shell);
    let clock = Instant::now();
    server.signal();
    let status = server.child.wait().expect("ends");
    assert!(status.success(), "{status}");
    // Nothing runs, so that it ends after the lame duck's time, and not before.
    assert!((1.0..6.0).contains(&clock.elapsed().as_secs_f64()), "{:?}", clock.elapsed());
    let said = place.text("said.txt");
    for part in ["welcome for 1 s more (--lame-duck)", "have 7 s (--drain)", "second signal"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn connections_stay_below_the_limit_of_descriptors() {
    let place = Place::with_run();
    let server = Server::with_descriptors(&place, 128, &[]);
    let most = server.metric("lathe_connections_limit");
    assert!((1.0..128.0).contains(&most), "{most}");
    // More idle ones than there are descriptors: the oldest give way, and whoever asks is answered.
    let idle: Vec<TcpStream> = (0..300)
        .map(|_| TcpStream::connect(("127.0.0.1", server.port)).expect("connects"))
        .collect();
    let clock = Instant::now();
    for _ in 0..5 {
        assert_eq!(server.ask("GET", "/live", "", "").0, 200);
    }
    assert!(clock.elapsed() < Duration::from_secs(5), "{:?}", clock.elapsed());
    assert!(server.metric("lathe_connections ") <= most);
    drop(idle);
}

#[test]
fn a_request_waits_only_behind_one_that_runs() {
    let place = Place::with_run();
    let server = Server::start(&place, &["--max-seqs", "1", "--queue", "1"]);
    let body = json!({ "prompt": "a", "max_tokens": 50, "ignore_eos": true }).to_string();
    for _ in 0..5 {
        let first = server.open("POST", "/v1/completions", "", &body);
        let second = server.open("POST", "/v1/completions", "", &body);
        let (first, second) = (read_all(first), read_all(second));
        assert_eq!((first.0, second.0), (200, 200), "{} {}", first.2, second.2);
    }
}

#[test]
fn a_template_has_a_name() {
    let place = Place::with_run();
    let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 1,
        "return_token_ids": true });
    for (name, text) in [
        ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("plain", "user: Hi\nassistant:"),
    ] {
        let server = Server::start(&place, &["--chat-template", name]);
        let post = |path: &str, body: &Value| {
            let (status, _, text) = server.ask("POST", path, "", &body.to_string());
            assert_eq!(status, 200, "{text}");
            serde_json::from_str::<Value>(&text).expect("JSON")
        };
        let answer = post("/v1/chat/completions", &chat);
        let ids = &answer["choices"][0]["prompt_token_ids"];
        assert_eq!(post("/detokenize", &json!({ "tokens": ids }))["prompt"], text);
    }
    place.refuses(&["serve", "run", "--chat-template", "chatm"], &["chatm", "chatml or plain"]);
    place.write("wrong.jinja", "{{ messages | pprint }}");
    let wrong = ["serve", "run", "--chat-template", "wrong.jinja"];
    place.refuses(&wrong, &["filter `pprint`", "none to serve without chat"]);
    place.refuses(&["serve", "run", "--allow-host", "a:80"], &["allow_hosts", "a:80"]);
    place.refuses(&["serve", "run", "--cors-origin", "a"], &["cors_origins", "https://NAME"]);
}

fn deploy(file: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/deploy/");
    std::fs::read_to_string(format!("{folder}{file}")).expect("a file of the documents")
}

#[test]
fn deployments_say_what_the_server_knows() {
    let place = Place::with_run();
    place.write("keys", "secret\n");
    let server = Server::start(&place, &["--api-key-file", "keys"]);
    let manifest = common::yaml::documents(&deploy("kubernetes.yaml"));
    let kinds: Vec<&Value> = manifest.iter().map(|document| &document["kind"]).collect();
    assert_eq!(kinds, ["Deployment", "Service", "PodDisruptionBudget"]);
    let spec = &manifest[0]["spec"];
    let (pod, labels) = (&spec["template"]["spec"], &spec["template"]["metadata"]["labels"]);
    for selector in [
        &spec["selector"]["matchLabels"],
        &manifest[1]["spec"]["selector"],
        &manifest[2]["spec"]["selector"]["matchLabels"],
    ] {
        for (name, value) in selector.as_object().expect("a selector") {
            assert_eq!(&labels[name], value, "{name}");
        }
    }
    let container = &pod["containers"][0];
    let port = &container["ports"][0];
    assert_eq!(manifest[1]["spec"]["ports"][0]["targetPort"], port["name"]);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["port"], port["name"]);
        let path = get["path"].as_str().expect("a path");
        assert_eq!(server.ask("GET", path, "", "").0, 200, "{probe} has no key");
    }
    let names = |list: &Value| -> Vec<Value> {
        list.as_array().expect("a list").iter().map(|entry| entry["name"].clone()).collect()
    };
    assert_eq!(names(&container["volumeMounts"]), names(&pod["volumes"]));
    let arguments: Vec<&str> =
        container["args"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    let value = |flag: &str| {
        let at = arguments.iter().position(|argument| *argument == flag).expect("the flag");
        arguments[at + 1]
    };
    assert_eq!(value("--port"), port["containerPort"].to_string());
    let seconds = |flag: &str| value(flag).parse::<u64>().expect("seconds");
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("seconds");
    assert!(grace > seconds("--lame-duck") + seconds("--drain"));
    assert_eq!(spec["strategy"]["rollingUpdate"]["maxUnavailable"], 0);

    let picker = common::yaml::documents(&deploy("endpoint-picker.yaml"));
    let plugins = picker[0]["plugins"].as_array().expect("a list");
    let open = Server::start(&place, &[]);
    let engine = plugins.iter().find_map(|plugin| plugin["parameters"]["engineConfigs"].get(0));
    for (name, metric) in engine.expect("an engine").as_object().expect("a mapping") {
        if name != "name" {
            assert!(open.metric(metric.as_str().expect("a name")).is_finite(), "{name}");
        }
    }
    // Every flag that a configuration or its page names is one of the server's.
    let help = place.run(&["serve", "--help"]).good().out;
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/deployment.md");
    let mut texts = std::fs::read_to_string(page).expect("the page");
    for file in ["kubernetes.yaml", "nginx.conf", "haproxy.cfg"] {
        texts.push_str(&deploy(file));
    }
    let mut flags = 0;
    for word in texts.split(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
        let others = ["--worker-urls", "--policy", "--host", "--port"];
        if word.starts_with("--") && word.len() > 3 && !others.contains(&word) {
            flags += 1;
            assert!(help.contains(&format!("{word} ")), "{word} is no flag of lathe serve");
        }
    }
    assert!(flags > 10, "{flags} flags");
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let place = Place::with_run();
    let server = Server::start(&place, &["--chat-template", "plain"]);
    let plain = json!({ "prompt": "The tok", "max_tokens": 40, "temperature": 0,
        "ignore_eos": true });
    let alone = server.complete(&plain).1["choices"][0]["text"].clone();
    let schema = json!({ "enum": ["red", "green", 12] });
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| server.complete(&plain).1["choices"][0]["text"].clone());
        for seed in 0..6 {
            let chat = json!({ "messages": [{ "role": "user", "content": "The tok" }],
                "max_tokens": 40, "seed": seed, "temperature": 1.0, "response_format":
                { "type": "json_schema", "json_schema": { "name": "n", "schema": schema } } });
            let (status, _, text) =
                server.ask("POST", "/v1/chat/completions", "", &chat.to_string());
            assert_eq!(status, 200, "{text}");
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
            let content = answer["choices"][0]["message"]["content"].as_str().expect("text");
            let value: Value = serde_json::from_str(content).expect(content);
            assert!([json!("red"), json!("green"), json!(12)].contains(&value), "{content}");
        }
        assert_eq!(beside.join().expect("an answer"), alone);
    });
    assert!(server.metric("lathe_grammar_tokens_total ") > 20.0);
}

/// The default of a flag, by the help.
fn default_of(help: &str, flag: &str) -> u64 {
    let about = help.split_once(&format!("{flag} <")).unwrap_or_else(|| panic!("no {flag}")).1;
    let value = about.split_once("[default: ").expect("a default").1;
    value.split_once(']').expect("its end").0.parse().unwrap_or_else(|_| panic!("{flag}"))
}

/// The number behind a word of a configuration.
fn number_behind(text: &str, word: &str) -> u64 {
    let rest = text.split_once(word).unwrap_or_else(|| panic!("no {word}")).1.trim_start();
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{word} {rest:.20}"))
}

/// What docs/deployment.md says of numbers: those of the configurations hold for the defaults.
#[test]
fn numbers_of_deployments_fit_the_defaults() {
    let help = Place::empty().run(&["serve", "--help"]).good().out;
    let of = |flag: &str| default_of(&help, flag);
    let nginx = deploy("nginx.conf");
    assert!(number_behind(&nginx, "proxy_read_timeout ") > of("--deadline"));
    assert_eq!(number_behind(&nginx, "client_max_body_size ") << 20, of("--max-body"));
    assert!(number_behind(&nginx, "keepalive_timeout ") < of("--keep-alive"));
    assert!(nginx.contains("proxy_set_header Host lathe;") && nginx.contains("--allow-host lathe"));
    assert_eq!(nginx.matches("max_fails=0;").count(), nginx.matches("server 127.0.0.1:").count());
    assert!(nginx.contains("http_429 http_503 non_idempotent;"));

    let haproxy = deploy("haproxy.cfg");
    let (interval, failures) =
        (number_behind(&haproxy, "check inter "), number_behind(&haproxy, " fall "));
    let lame_duck = number_behind(&haproxy, "--lame-duck ");
    assert!(interval * failures < 1000 * lame_duck, "noticed in the lame duck's time");
    assert_eq!(number_behind(&haproxy, "rise 1 maxconn "), of("--max-seqs") + of("--queue"));
    assert!(number_behind(&haproxy, "timeout server ") > of("--deadline"));
    assert!(number_behind(&haproxy, "timeout client ") > of("--deadline"));
    assert!(haproxy.contains("option http-buffer-request"));

    let manifest = common::yaml::documents(&deploy("kubernetes.yaml"));
    let template = &manifest[0]["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["inference.networking.k8s.io/engine-type"], "lathe");
    let container = &template["spec"]["containers"][0];
    let probe = |field: &str| container["readinessProbe"][field].as_u64().expect("a number");
    let arguments: Vec<&str> =
        container["args"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    let at = arguments.iter().position(|word| *word == "--lame-duck").expect("the flag");
    let lame_duck: u64 = arguments[at + 1].parse().expect("seconds");
    assert!(lame_duck > probe("periodSeconds") * probe("failureThreshold"));
}
