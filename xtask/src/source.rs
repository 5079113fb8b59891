//! A Rust file as lines of code: comments and literals blanked out, functions and test-only parts
//! found. Enough of the grammar for rules about words and lengths, no more.

use std::ops::Range;

/// One Rust file, with what rules ask of it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    /// `text` with comments, strings and characters turned into spaces; same length, same lines.
    pub(crate) code: String,
    /// Whether the whole file exists for tests only.
    pub(crate) all_tests: bool,
    tests: Vec<Range<usize>>,
}

/// One function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// From `fn` to the closing brace, in bytes.
    pub(crate) range: Range<usize>,
    /// How many lines that is.
    pub(crate) lines: usize,
}

impl Source {
    /// Separates the code of `text` from its words and finds the parts for tests.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let tests = test_parts(&code);
        let all_tests =
            path.split('/').any(|part| ["tests", "examples", "benches"].contains(&part));
        Self { path: path.to_owned(), text: text.to_owned(), code, all_tests, tests }
    }

    /// Whether the byte at `at` is compiled for tests only.
    pub(crate) fn is_test(&self, at: usize) -> bool {
        self.all_tests || self.tests.iter().any(|part| part.contains(&at))
    }

    /// Line number, from 1, of the byte at `at`.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1
    }

    /// Where `word` stands in code, not as a part of a longer name.
    pub(crate) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.code
            .match_indices(word)
            .map(|(at, _)| at)
            .filter(move |&at| stands_alone(&self.code, at, word.len()))
    }

    /// Every function with a body, outer ones before inner ones.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let found = self.words("fn").filter_map(|at| {
            let rest = self.code[at + 2..].trim_start();
            let name: String = rest.chars().take_while(|c| is_name(*c)).collect();
            let range = at..item_end(&self.code, at)?;
            let body = self.code[range.clone()].ends_with('}') && !name.is_empty();
            body.then(|| Function {
                name,
                lines: self.line(range.end - 1) - self.line(at) + 1,
                range,
            })
        });
        found.collect()
    }

    /// Paths of the files that this one declares as modules for tests only.
    pub(crate) fn test_modules(&self) -> Vec<String> {
        let folder = module_folder(&self.path);
        let names = self.tests.iter().filter_map(|part| {
            let (_, after) = self.code[part.clone()].rsplit_once("mod ")?;
            after.strip_suffix(';').map(|name| name.trim().to_owned())
        });
        names
            .flat_map(|name| [format!("{folder}{name}.rs"), format!("{folder}{name}/mod.rs")])
            .collect()
    }
}

/// The folder in which the modules that `path` declares lie, with a final `/`.
fn module_folder(path: &str) -> String {
    let (folder, file) = path.rsplit_once('/').map_or(("", path), |(folder, file)| (folder, file));
    match file {
        "mod.rs" | "lib.rs" | "main.rs" => format!("{folder}/"),
        _ => format!("{folder}/{}/", file.trim_end_matches(".rs")),
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn stands_alone(code: &str, at: usize, len: usize) -> bool {
    let before = code[..at].chars().next_back().is_none_or(|c| !is_name(c));
    let after = code[at + len..].chars().next().is_none_or(|c| !is_name(c));
    before && after
}

/// One past the end of the item that starts at `from`: its first `;` outside of brackets, or the
/// end of its first block.
fn item_end(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (i, b) in code.bytes().enumerate().skip(from) {
        match b {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 && b == b'}' {
                    return Some(i + 1);
                }
            }
            b';' if depth == 0 => return Some(i + 1),
            _ => {}
        }
    }
    None
}

/// The items under `#[cfg(test)]` or `#[cfg(all(test, ...))]`, attribute included.
fn test_parts(code: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    for attribute in ["#[cfg(test)]", "#[cfg(all(test,"] {
        for (at, _) in code.match_indices(attribute) {
            let item = code[at..].find(']').map_or(at, |end| at + end + 1);
            if let Some(end) = item_end(code, item) {
                parts.push(at..end);
            }
        }
    }
    parts
}

/// Turns comments, strings and characters into spaces, keeping length and line ends.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    while i < bytes.len() {
        let end = match bytes[i] {
            b'/' if bytes.get(i + 1) == Some(&b'/') => {
                text[i..].find('\n').map_or(bytes.len(), |n| i + n)
            }
            b'/' if bytes.get(i + 1) == Some(&b'*') => comment_end(bytes, i),
            b'"' => string_end(bytes, i),
            b'r' if i == 0 || !is_name(char::from(bytes[i - 1])) || (bytes[i - 1] == b'b') => {
                raw_end(text, i)
            }
            b'\'' => character_end(bytes, i),
            _ => i,
        };
        for b in &mut out[i..end] {
            if *b != b'\n' {
                *b = b' ';
            }
        }
        i = end.max(i + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn comment_end(bytes: &[u8], from: usize) -> usize {
    let (mut depth, mut i) = (0usize, from);
    while i + 1 < bytes.len() {
        match &bytes[i..i + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut i = from + 1;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 1,
            b'"' => return i + 1,
            _ => {}
        }
        i += 1;
    }
    bytes.len()
}

/// The end of the raw string that `r` at `from` may begin, else `from`.
fn raw_end(text: &str, from: usize) -> usize {
    let rest = &text[from + 1..];
    let hashes = rest.bytes().take_while(|b| *b == b'#').count();
    if rest.as_bytes().get(hashes) != Some(&b'"') {
        return from;
    }
    let open = from + 1 + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    text[open..].find(&close).map_or(text.len(), |n| open + n + close.len())
}

/// The end of the character that `'` at `from` may begin, else `from`: it may be a lifetime.
fn character_end(bytes: &[u8], from: usize) -> usize {
    if bytes.get(from + 1) == Some(&b'\\') {
        let after = from + 3;
        return bytes[after.min(bytes.len())..]
            .iter()
            .position(|b| *b == b'\'')
            .map_or(from, |n| after + n + 1);
    }
    let length = match bytes.get(from + 1) {
        Some(b) if b.is_ascii() => 1,
        Some(b) => b.leading_ones() as usize,
        None => return from,
    };
    if bytes.get(from + 1 + length) == Some(&b'\'') { from + length + 2 } else { from }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_code_are_told_apart() {
        let text = "let a = \"x { \\\" y\"; // {\n\
                    let b = r#\"{ \" {\"#; /* { /* { */ */ let c = '{'; \
                    let d: &'a str = br\"{\"; let e = '\\'';";
        let code = blank(text);
        assert_eq!(code.len(), text.len());
        assert_eq!(code.matches('\n').count(), 1);
        assert!(
            !code.contains('{')
                && code.contains("let c")
                && code.contains("&'a str")
                && code.contains("let e"),
            "{code}"
        );
    }

    #[test]
    fn functions_have_their_lengths() {
        let text = "fn one() {}\ntrait T {\n    fn none(&self);\n}\n\
                    fn two(x: [u8; 3]) -> u8 {\n    fn inner() {\n    }\n    3\n}\n";
        let found = Source::new("src/a.rs", text).functions();
        let found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.lines)).collect();
        assert_eq!(found, [("one", 1), ("two", 5), ("inner", 2)]);
    }

    #[test]
    fn macro_variables_are_no_functions() {
        let source = Source::new(
            "src/a.rs",
            "macro_rules! m { ($n:ident) => { fn $n() {} } }\ntype F = fn(u8) -> u8;\n",
        );
        assert!(source.functions().is_empty());
    }

    #[test]
    fn test_parts_are_known() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n\
                    #[cfg(all(test, unix))]\nstatic C: u8 = 1;\nfn d() {}\n";
        let source = Source::new("src/x.rs", text);
        let at = |word: &str| source.words(word).next().expect("is there");
        assert!(
            !source.is_test(at("a"))
                && source.is_test(at("b"))
                && source.is_test(at("C"))
                && !source.is_test(at("d"))
        );
        assert!(Source::new("crates/x/tests/y.rs", "fn z() {}").is_test(3));
    }

    #[test]
    fn test_modules_are_followed() {
        let source = Source::new("crates/k/src/lib.rs", "#[cfg(test)]\nmod testing;\nmod real;\n");
        assert_eq!(
            source.test_modules(),
            ["crates/k/src/testing.rs", "crates/k/src/testing/mod.rs"]
        );
        let source = Source::new("crates/k/src/bpe.rs", "#[cfg(test)]\npub(crate) mod cases;\n");
        assert_eq!(source.test_modules()[0], "crates/k/src/bpe/cases.rs");
    }
}
