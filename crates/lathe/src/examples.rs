//! Examples in the help of each verb.

use clap::Command;

/// Verbs, and command lines that use them.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("quickstart", &["lathe quickstart", "lathe quickstart --input texts/ --minutes 20"]),
    ("tokenizer train", &["lathe tokenizer train --input texts/ --vocab 4096 -o tokenizer.json"]),
    (
        "data build",
        &[
            "lathe data build --input texts/ --tokenizer tokenizer.json -o data/corpus",
            "lathe data build --chat --input chats/ --tokenizer models/smollm2 -o data/chats",
        ],
    ),
    (
        "train",
        &[
            "lathe train recipes/cpu-5m-mor3.toml -o runs/mor --dry-run",
            "lathe train recipes/cpu-5m-mor3.toml -o runs/mor --set train.steps=500",
        ],
    ),
    (
        "sweep",
        &[
            "lathe sweep study.toml --jobs 2",
            "lathe sweep recipes/cpu-5m-mor3.toml -m train.seed=1,2,3 -m train.batch=8,16",
        ],
    ),
    (
        "compare",
        &[
            "lathe compare",
            "lathe compare --families dense,mor,moe --budget 1e14 --seeds 5 --equal stored",
        ],
    ),
    (
        "eval",
        &[
            "lathe eval runs/mor --data data/corpus",
            "lathe eval runs/mor --tasks recipes/tasks --limit 100",
        ],
    ),
    (
        "generate",
        &[
            "lathe generate runs/mor -p \"The history of\" -n 3 --stop \".\"",
            "lathe generate runs/mor --prompt-file some.txt --temperature 0 --show-depth",
        ],
    ),
    ("chat", &["lathe chat models/smollm2 --system \"Answer briefly.\""]),
    ("import", &["lathe import SmolLM2-135M-Instruct.Q4_1.gguf -o models/smollm2"]),
    (
        "export",
        &["lathe export runs/mor -o exported", "lathe export models/smollm2 -o smollm2.gguf"],
    ),
    (
        "convert",
        &["lathe convert models/smollm2 -o models/mor --recursions 3 --router expert_choice"],
    ),
    ("quantize", &["lathe quantize runs/mor -o runs/mor-int8 --weights int8"]),
    ("imatrix", &["lathe imatrix runs/mor --text data/corpus -o mor-imatrix.gguf"]),
    (
        "shrink",
        &[
            "lathe shrink runs/moe --pass drop --text data/corpus -o runs/moe-dropped",
            "lathe shrink runs/mor --pass '{ kind = \"slim\", share = 0.5 }' --text t.txt -o small",
        ],
    ),
    (
        "frontier",
        &[
            "lathe frontier studies/frontiers/experts.toml --list",
            "lathe frontier studies/frontiers/experts.toml",
        ],
    ),
    (
        "serve",
        &[
            "lathe serve runs/mor --port 8080",
            "lathe serve models/smollm2 --weights int8 --api-key-file keys --host 0.0.0.0",
        ],
    ),
    (
        "inspect",
        &[
            "lathe inspect runs/mor --text some.txt --html depth.html",
            "lathe inspect --trace eval.parquet --against before.parquet --html routing.html",
            "lathe inspect --trace eval.parquet --form megatron --out eval.jsonl",
        ],
    ),
    (
        "report",
        &[
            "lathe report runs/mor --html report.html",
            "lathe report runs/mor runs/dense --html both.html",
        ],
    ),
    ("verify", &["lathe verify crates/lathe/tests/golden"]),
    ("bench train", &["lathe bench train cpu-5m-dense cpu-5m-mor3"]),
    ("bench decode", &["lathe bench decode runs/mor --batch 1,8,32"]),
    ("bench prefill", &["lathe bench prefill runs/mor --context 128"]),
    ("bench serve", &["lathe bench serve runs/mor --concurrency 16"]),
    ("bench kernels", &["lathe bench kernels --only linear"]),
    ("bench experts", &["lathe bench experts --experts 8,64"]),
    (
        "bench metrics",
        &["lathe bench metrics runs/moe runs/moe-small runs/moe-int4 --data data/corpus"],
    ),
    ("bench mlp", &["lathe bench mlp runs/moe --rows 1,32 --weights int8"]),
    ("bench growth", &["lathe bench growth cpu-1m-mor3 -o growth.html"]),
    ("presets", &["lathe presets cpu-5m"]),
    ("completions", &["lathe completions bash > ~/.local/share/bash-completion/completions/lathe"]),
];

/// The command line with examples behind the help of its verbs.
pub(crate) fn with(command: Command) -> Command {
    EXAMPLES.iter().fold(command, |command, (verb, lines)| {
        let text = lines.iter().fold("Examples:".to_owned(), |text, line| text + "\n  " + line);
        let words: Vec<&str> = verb.split(' ').collect();
        below(command, &words, text)
    })
}

fn below(command: Command, verb: &[&str], text: String) -> Command {
    match verb.split_first() {
        None => command.after_help(text),
        Some((first, rest)) => command.mut_subcommand(first, |command| below(command, rest, text)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::arguments::Arguments;

    /// Verbs without verbs of their own.
    fn verbs(command: &Command, path: &str, found: &mut Vec<String>) {
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let path = format!("{path} {}", verb.get_name()).trim().to_owned();
            match verb.has_subcommands() {
                true => verbs(verb, &path, found),
                false => found.push(path),
            }
        }
    }

    /// Words as a shell takes them apart, without what is redirected.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(" > ").next().expect("a command");
        let (mut words, mut word, mut quote) = (Vec::new(), None, None);
        for c in line.chars() {
            match quote {
                Some(open) if c == open => quote = None,
                None if c == '"' || c == '\'' => {
                    quote = Some(c);
                    word.get_or_insert_with(String::new);
                }
                None if c.is_whitespace() => words.extend(word.take()),
                _ => word.get_or_insert_with(String::new).push(c),
            }
        }
        words.extend(word);
        words
    }

    #[test]
    fn each_verb_has_examples_that_it_takes() {
        let mut found = Vec::new();
        verbs(&Arguments::command(), "", &mut found);
        let mut known: Vec<&str> = EXAMPLES.iter().map(|(verb, _)| *verb).collect();
        found.sort();
        known.sort_unstable();
        assert_eq!(found, known);
        for (verb, lines) in EXAMPLES {
            for line in *lines {
                assert!(line.starts_with(&format!("lathe {verb}")), "{verb}: {line}");
                crate::parsed(words(line)).unwrap_or_else(|error| panic!("{line}: {error}"));
            }
            let asked = verb.split(' ').chain(["--help"]);
            let help = crate::parsed(std::iter::once("lathe").chain(asked)).expect_err("help");
            let help = help.render().to_string();
            assert!(help.contains("Examples:") && help.contains(lines[0]), "{verb}: {help}");
        }
    }
}
