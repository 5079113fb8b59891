//! The text of a chat template before it is compiled: as transformers reads it, and nothing in it
//! that could not be rendered as there.

use std::collections::BTreeSet;

/// The filter that marks what the assistant wrote; no template can name it itself.
pub(crate) const MARK_ANSWERS: &str = "lathe_mark_answers";

/// Statements that exist here; `generation` marks what the assistant wrote, and shows it.
const STATEMENTS: [&str; 26] = [
    "if",
    "elif",
    "else",
    "endif",
    "for",
    "endfor",
    "set",
    "endset",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "filter",
    "endfilter",
    "with",
    "endwith",
    "raw",
    "endraw",
    "break",
    "continue",
    "block",
    "endblock",
    "autoescape",
    "endautoescape",
    "generation",
    "endgeneration",
];

const FILTERS: [&str; 49] = [
    "abs",
    "batch",
    "bool",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "lines",
    "chain",
];

const TESTS: [&str; 40] = [
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "endingwith",
    "eq",
    "equalto",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "safe",
    "sameas",
    "sequence",
    "startingwith",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
    "containing",
    "==",
    "!=",
    "<",
    ">",
];

const FUNCTIONS: [&str; 11] = [
    "range",
    "dict",
    "namespace",
    "cycler",
    "joiner",
    "raise_exception",
    "strftime_now",
    "caller",
    "loop",
    "super",
    "debug",
];

/// Methods of strings, lists, mappings, loops and cyclers.
const METHODS: [&str; 51] = [
    "capitalize",
    "casefold",
    "center",
    "changed",
    "copy",
    "count",
    "cycle",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "get",
    "index",
    "is_integer",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "items",
    "join",
    "keys",
    "ljust",
    "lower",
    "lstrip",
    "next",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "values",
    "zfill",
];

/// The template with Unix ends of lines and without the tags that only mark.
///
/// # Errors
/// The first construct that cannot be rendered as transformers does it, by its name.
pub(crate) fn prepare(source: &str) -> Result<String, String> {
    prepared(source, "with", "endwith")
}

/// The same where what `generation` holds goes through the filter [`MARK_ANSWERS`].
///
/// # Errors
/// As [`prepare`].
pub(crate) fn prepare_marking(source: &str) -> Result<String, String> {
    let begin = format!("with %}}{{% filter {MARK_ANSWERS}");
    prepared(source, &begin, "endfilter %}{% endwith")
}

/// Whether a template says by `generation` what the assistant wrote.
pub(crate) fn marks_answers(source: &str) -> bool {
    prepare(source) != prepare_marking(source)
}

/// Parts of Python's numbers, which numbers do not have here.
const PARTS: [&str; 4] = ["real", "imag", "numerator", "denominator"];

/// With `begin` and `end` in the place of `generation` and its end.
fn prepared(source: &str, begin: &str, end: &str) -> Result<String, String> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut known: BTreeSet<String> = FUNCTIONS.iter().map(|&name| name.to_owned()).collect();
    for pass in 0..2 {
        out.clear();
        let mut rest = source.as_str();
        while let Some((before, tag, after)) = next_tag(rest) {
            out.push_str(before);
            rest = after;
            match statement(tag) {
                _ if tag.starts_with("{#") => out.push_str(tag),
                Some("raw") => {
                    let end = end_of_raw(after);
                    // The newline behind it is text here, as it is not behind other tags.
                    let newline = if after.starts_with('\n') { "{{ '\\n' }}" } else { "" };
                    out.push_str(newline);
                    out.push_str(tag);
                    out.push_str(&after[..end]);
                    rest = &after[end..];
                }
                Some("generation") => out.push_str(&tag.replacen("generation", begin, 1)),
                Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", end, 1)),
                found if pass == 0 => collect(tag, found, &mut known),
                found => {
                    check(tag, found, &known)?;
                    out.push_str(tag);
                }
            }
        }
        out.push_str(rest);
    }
    Ok(out)
}

/// Whether a chat template holds nothing that could not be rendered as transformers does it. It is
/// not compiled.
///
/// # Errors
/// The first construct that cannot be, by its name.
pub fn check_chat_template(source: &str) -> Result<(), String> {
    prepare(source).map(drop)
}

/// The next tag with what stands before and behind it.
fn next_tag(text: &str) -> Option<(&str, &str, &str)> {
    let start =
        text.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))?;
    let close = match &text[start..start + 2] {
        "{#" => text[start..].find("#}")? + start + 2,
        open => end_of_tag(text, start + 2, if open == "{{" { "}}" } else { "%}" })?,
    };
    Some((&text[..start], &text[start..close], &text[close..]))
}

/// Where a tag ends whose inside begins at `at`; strings and brackets may hold what looks so.
fn end_of_tag(text: &str, mut at: usize, close: &str) -> Option<usize> {
    let mut open = 0;
    while let Some(c) = text[at..].chars().next() {
        if open == 0 && text[at..].starts_with(close) {
            return Some(at + close.len());
        }
        match c {
            '\'' | '"' => at += string_length(&text[at..])?,
            _ => {
                open += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
                at += c.len_utf8();
            }
        }
    }
    None
}

/// Bytes of the string that `text` begins with, its quotes included.
fn string_length(text: &str) -> Option<usize> {
    let quote = text.chars().next()?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + c.len_utf8()),
            _ => (),
        }
    }
    None
}

fn end_of_raw(text: &str) -> usize {
    let mut tags = text.match_indices("{%").map(|(at, _)| at);
    tags.find(|&at| statement(&text[at..]) == Some("endraw")).unwrap_or(text.len())
}

/// The first word of a statement; `None` for what is none.
fn statement(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start();
    let end = inside.find(|c: char| !is_word(c)).unwrap_or(inside.len());
    Some(&inside[..end])
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Words, strings (as one quote) and signs of a tag.
fn tokens(tag: &str) -> Vec<&str> {
    let mut all = Vec::new();
    let inside = tag.get(2..tag.len().saturating_sub(2)).unwrap_or_default();
    let mut at = 0;
    while let Some(c) = inside[at..].chars().next() {
        let length = match c {
            '\'' | '"' => string_length(&inside[at..]).unwrap_or(1),
            c if is_word(c) => {
                inside[at..].find(|c: char| !is_word(c)).unwrap_or(inside.len() - at)
            }
            c => c.len_utf8(),
        };
        if !c.is_whitespace() {
            all.push(&inside[at..at + length]);
        }
        at += length;
    }
    all
}

/// Names that a statement gives to something: they may be called.
fn collect(tag: &str, found: Option<&str>, known: &mut BTreeSet<String>) {
    if matches!(found, Some("macro" | "set" | "for" | "with" | "call")) {
        let words = tokens(tag).into_iter().filter(|token| token.starts_with(is_word));
        known.extend(words.map(str::to_owned));
    }
}

/// # Errors
/// A statement, filter, test, function or operator that does not exist here.
fn check(tag: &str, found: Option<&str>, known: &BTreeSet<String>) -> Result<(), String> {
    if let Some(name @ ("include" | "import" | "from" | "extends")) = found {
        return Err(format!("`{name}`: other templates are not found from a chat template"));
    }
    if let Some(name) = found.filter(|name| !STATEMENTS.contains(name) && !name.is_empty()) {
        return Err(format!("syntax error: unknown statement `{name}`"));
    }
    let tokens = tokens(tag);
    for (at, &token) in tokens.iter().enumerate() {
        let before = [1, 2].map(|steps| at.checked_sub(steps).map_or("", |at| tokens[at]));
        let called = tokens.get(at + 1) == Some(&"(");
        let word = token.starts_with(|c: char| c.is_alphabetic() || c == '_');
        let tested = before[0] == "is" || (before[0] == "not" && before[1] == "is");
        let filtered = before[0] == "|" || (at == 1 && found == Some("filter"));
        if token == "%" && before[0].starts_with(['\'', '"']) {
            return Err("unknown operator `%` behind a string; `format` does the same".into());
        }
        if token == "-" && (before[0] == "**" || before == ["*"; 2]) {
            return Err("unknown operator `**` with a negative exponent".into());
        }
        if !word || token == "not" {
            continue;
        }
        if before[0] == "." && PARTS.contains(&token) && !called {
            return Err(format!("unknown part `{token}` of a number"));
        }
        if filtered && !FILTERS.contains(&token) {
            return Err(format!("unknown filter `{token}`"));
        }
        if tested && !TESTS.contains(&token) {
            return Err(format!("unknown test `{token}`"));
        }
        let method = called && before[0] == ".";
        if method && !METHODS.contains(&token) && !known.contains(token) {
            return Err(format!("unknown method `{token}`"));
        }
        let plain = !filtered && !tested && before[0] != ".";
        let keyword = ["in", "and", "or", "if", "else", "is", "not", "elif", "set", "call"];
        if called && plain && !keyword.contains(&token) && !known.contains(token) {
            return Err(format!("unknown function `{token}`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_as_jinja_finds_them() {
        for (source, expected) in [
            ("a\r\nb\rc", "a\nb\nc"),
            ("{{ '}}' }}{% if '%}' %}{% endif %}", "{{ '}}' }}{% if '%}' %}{% endif %}"),
            ("{%- generation -%}x{% endgeneration %}", "{%- with -%}x{% endwith %}"),
            ("{% raw %}{% generation %}{% endraw %}", "{% raw %}{% generation %}{% endraw %}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            ("{{ {'a': {'b': 1}} }}", "{{ {'a': {'b': 1}} }}"),
            ("a { b {{ open", "a { b {{ open"),
        ] {
            assert_eq!(prepare(source).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_cannot_be_rendered_is_named() {
        for (source, name) in [
            ("{{ x | xmlattr }}", "filter `xmlattr`"),
            ("{% filter urlize %}{% endfilter %}", "filter `urlize`"),
            ("{{ x is escaped }}", "test `escaped`"),
            ("{{ x is not escaped }}", "test `escaped`"),
            ("{{ lipsum() }}", "function `lipsum`"),
            ("{% trans %}", "statement `trans`"),
            ("{% include 'x' %}", "`include`"),
            ("{{ 'a %s' % x }}", "operator `%`"),
            ("{{ x.encode() }}", "method `encode`"),
            ("{{ x.append(1) }}", "method `append`"),
            ("{{ x.real }}", "part `real`"),
            ("{{ 2 ** -x }}", "operator `**`"),
        ] {
            let error = prepare(source).unwrap_err();
            assert!(error.contains(name), "{source}: {error}");
        }
        for source in [
            "{% macro f(x) %}{% endmacro %}{{ f(1) }}{% set g = f %}{{ g(2) }}{{ 5 % 2 }}",
            "{% for f in [] %}{{ f() }}{% endfor %}{{ x.title() }}{% if not (a) %}{% endif %}",
            "{{ 'x | xmlattr' }}{# lipsum() #}{% raw %}{{ lipsum() }}{% endraw %}",
        ] {
            assert!(prepare(source).is_ok(), "{source}: {:?}", prepare(source));
        }
    }
}
