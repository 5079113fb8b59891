//! Links between the project's own pages.

use super::markdown::without_fences;
use crate::tree::Tree;

/// Relative links in Markdown lead to files or folders that exist, and to headings that exist in
/// them.
pub(super) fn relative(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.ending(".md") {
        for (i, line) in without_fences(text).lines().enumerate() {
            for target in targets(line).into_iter().filter(|target| !is_elsewhere(target)) {
                if let Some(why) = broken(tree, path, target) {
                    found.push(format!("{path}:{}: link to {target}: {why}", i + 1));
                }
            }
        }
    }
    found
}

fn targets(line: &str) -> Vec<&str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target)
        .collect()
}

fn is_elsewhere(target: &str) -> bool {
    target.contains("://") || target.starts_with("mailto:")
}

fn broken(tree: &Tree, from: &str, target: &str) -> Option<String> {
    let (file, heading) =
        target.split_once('#').map_or((target, None), |(file, heading)| (file, Some(heading)));
    let path = if file.is_empty() { from.to_owned() } else { resolve(from, file) };
    let folder = format!("{}/", path.trim_end_matches('/'));
    if !tree.files.contains_key(&path) && !tree.files.keys().any(|other| other.starts_with(&folder))
    {
        return Some(format!("there is no {path}"));
    }
    let heading = heading.filter(|_| path.ends_with(".md"))?;
    let text = without_fences(tree.text(&path));
    let mut headings = text.lines().filter(|line| line.starts_with('#')).map(anchor);
    (!headings.any(|known| known == heading)).then(|| format!("{path} has no heading #{heading}"))
}

/// `target` as seen from the folder of `from`, as a path from the root.
fn resolve(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The anchor that hosts of Markdown give a heading.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_links_pass() {
        let text = "# A\n[b](docs/b.md) [c](docs/) [d](docs/b.md#two-words) [e](https://x.y) \
                    [f](#a)\n```\n[x](no)\n```\n";
        let tree = Tree::of(&[
            ("README.md", text),
            ("docs/b.md", "## Two `words`\n[up](../README.md) [same](./b.md)\n"),
        ]);
        assert!(relative(&tree).is_empty(), "{:?}", relative(&tree));
    }

    #[test]
    fn broken_links_are_found_by_line() {
        let tree = Tree::of(&[("docs/a.md", "\n[x](b.md) [y](a.md#none)\n"), ("b.md", "")]);
        let found = relative(&tree);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("docs/a.md:2: link to b.md")
                && found[1].contains("no heading #none")
        );
    }
}
