//! YAML as a tree of texts, lists and maps, for the files in which others state a conversion.
//! Nothing in a file makes this recurse or grow beyond the file: aliases, tags and deep nesting are
//! refused, and so are keys that stand twice.

use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::TScalarStyle;

/// The deepest list or map within others.
const DEEPEST: usize = 16;

/// A value with the line that it begins in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) value: Value,
}

/// What a value may be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// A scalar; without quotes it may stand for a number, a truth or nothing.
    Text {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// What it is, for errors.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Text { text, .. } => format!("{text:?} in line {}", self.line),
            Value::List(list) => format!("a list of {} in line {}", list.len(), self.line),
            Value::Map(map) => format!("a map of {} keys in line {}", map.len(), self.line),
        }
    }

    /// Whether it stands for nothing.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Text { text, quoted: false }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }
}

/// A list or a map that is not whole yet.
enum Open {
    List(usize, Vec<Node>),
    /// With the key whose value comes next.
    Map(usize, Vec<(String, Node)>, Option<String>),
}

/// The one document of a text.
///
/// # Errors
/// What the text has that is no such tree, with its line.
pub(crate) fn read(text: &str) -> Result<Node, String> {
    let mut parser = Parser::new_from_str(text);
    let (mut open, mut root) = (Vec::new(), None);
    loop {
        let (event, mark) = parser.next_token().map_err(|error| error.to_string())?;
        let line = mark.line();
        let done = match event {
            Event::StreamEnd => break,
            Event::Alias(_) => return Err(format!("an alias (*name) in line {line}")),
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                return Err(format!("a tag (!name) in line {line}"));
            }
            Event::Scalar(text, style, ..) => {
                let quoted = style != TScalarStyle::Plain;
                Some(Node { line, value: Value::Text { text, quoted } })
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(line, Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(line, Vec::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(|whole| match whole {
                Open::List(line, list) => Node { line, value: Value::List(list) },
                Open::Map(line, map, _) => Node { line, value: Value::Map(map) },
            }),
            Event::DocumentStart if root.is_some() => {
                return Err(format!("a second document in line {line}"));
            }
            Event::Nothing | Event::StreamStart | Event::DocumentStart | Event::DocumentEnd => None,
        };
        if open.len() > DEEPEST {
            return Err(format!(
                "more than {DEEPEST} lists and maps within each other in line {line}"
            ));
        }
        let Some(node) = done else { continue };
        match open.last_mut() {
            None => root = Some(node),
            Some(Open::List(_, list)) => list.push(node),
            Some(Open::Map(_, map, key)) => match key.take() {
                Some(key) => map.push((key, node)),
                None => *key = Some(key_of(&node, map)?),
            },
        }
    }
    root.ok_or_else(|| "nothing".to_owned())
}

/// The key that a node is, in a map that does not have it yet.
fn key_of(node: &Node, map: &[(String, Node)]) -> Result<String, String> {
    match &node.value {
        Value::Text { text, .. } if map.iter().all(|(known, _)| known != text) => Ok(text.clone()),
        Value::Text { text, .. } => Err(format!("the key {text:?} twice, in line {}", node.line)),
        _ => Err(format!("{} as a key", node.describe())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(node: &Node) -> &str {
        match &node.value {
            Value::Text { text, .. } => text,
            _ => panic!("{}", node.describe()),
        }
    }

    #[test]
    fn every_way_to_write_a_list_and_a_text_is_read() {
        let tree = read(
            "# remark\na: one # why\nb:\n- 'two # no remark'\n- \"three\\n\"\n\
             c: [four, \"five\",\n  six]\nd:\n  - e: |\n      seven\n      eight\n    f: ~\n",
        )
        .expect("a map");
        let Value::Map(map) = &tree.value else { panic!("{}", tree.describe()) };
        let keys: Vec<&str> = map.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["a", "b", "c", "d"]);
        assert_eq!(text(&map[0].1), "one");
        let list = |node: &Node| match &node.value {
            Value::List(list) => list.clone(),
            _ => panic!("{}", node.describe()),
        };
        let texts = |node| list(node).iter().map(|n| text(n).to_owned()).collect::<Vec<_>>();
        assert_eq!(texts(&map[1].1), ["two # no remark", "three\n"]);
        assert_eq!(texts(&map[2].1), ["four", "five", "six"]);
        let Value::Map(inner) = &list(&map[3].1)[0].value else { panic!("a map") };
        assert_eq!(text(&inner[0].1), "seven\neight\n");
        assert!(inner[1].1.is_null());
    }

    #[test]
    fn what_is_no_plain_tree_is_refused_with_its_line() {
        let deep = format!("a: {}", "[".repeat(200));
        let nested: String = (0..40).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
        for (given, expected) in [
            ("", "nothing"),
            ("a: &x [1]\nb: *x\n", "alias"),
            ("a: !!python/object x\n", "tag"),
            ("a: 1\na: 2\n", "twice, in line 2"),
            ("[1]: 2\n", "as a key"),
            ("a: 1\n---\nb: 2\n", "second document"),
            ("a: \"x\n", "line"),
            (deep.as_str(), "within each other"),
            (nested.as_str(), "within each other"),
        ] {
            let found = read(given).expect_err(given);
            assert!(found.contains(expected), "{given:?}: {found}");
        }
    }
}
