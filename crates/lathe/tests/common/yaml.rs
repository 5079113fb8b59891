//! The plain part of YAML that configuration files use: mappings and lists by indentation, scalars.

use serde_json::{Map, Value};

/// The documents of a file.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(document).collect()
}

fn document(text: &str) -> Value {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut lines: Vec<(usize, String)> = lines
        .map(|line| (line.len() - line.trim_start().len(), without_comment(line.trim()).to_owned()))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    lines.reverse();
    let value = block(&mut lines);
    assert!(lines.is_empty(), "left over: {lines:?}");
    value
}

fn without_comment(line: &str) -> &str {
    line.split_once(" #").map_or(line, |(before, _)| before.trim_end())
}

/// The block that the last line opens; what belongs to it is taken from the end of `lines`.
fn block(lines: &mut Vec<(usize, String)>) -> Value {
    let Some((indent, first)) = lines.last().cloned() else { return Value::Null };
    let listed = first.starts_with("- ");
    let (mut list, mut map) = (Vec::new(), Map::new());
    while let Some((_, line)) =
        lines.pop_if(|(at, line)| *at == indent && line.starts_with("- ") == listed)
    {
        if let (true, Some(rest)) = (listed, line.strip_prefix("- ")) {
            list.push(match key_of(rest) {
                Some(_) => {
                    lines.push((indent + 2, rest.to_owned()));
                    block(lines)
                }
                None => scalar(rest),
            });
            continue;
        }
        let (key, rest) = key_of(&line).unwrap_or_else(|| panic!("no mapping: {line}"));
        let deeper = lines.last().is_some_and(|(at, _)| *at > indent);
        let value = if rest.is_empty() && deeper { block(lines) } else { scalar(rest) };
        assert!(map.insert(key.to_owned(), value).is_none(), "{key} stands twice");
    }
    if listed { Value::Array(list) } else { Value::Object(map) }
}

fn key_of(line: &str) -> Option<(&str, &str)> {
    let (key, rest) = line.split_once(':')?;
    (rest.is_empty() || rest.starts_with(' ')).then(|| (key, rest.trim()))
}

fn scalar(text: &str) -> Value {
    match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(text) => Value::from(text),
        None => text.parse().unwrap_or_else(|_| Value::from(text)),
    }
}
