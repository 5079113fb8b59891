//! The parts of Markdown that rules read: sections, fenced blocks, table rows.

/// The text below the heading `## title` up to the next heading of that level.
pub(super) fn section<'a>(text: &'a str, title: &str) -> Option<&'a str> {
    let heading = format!("## {title}\n");
    let at = if text.starts_with(&heading) { 0 } else { text.find(&format!("\n{heading}"))? + 1 };
    let body = &text[at + heading.len()..];
    Some(body.find("\n## ").map_or(body, |end| &body[..end + 1]))
}

/// The cells of each table row below the header and its rule.
pub(super) fn table(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().map(str::trim).filter(|line| line.starts_with('|'));
    rows.skip(2).map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The words between backquotes.
pub(super) fn code_words(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// `text` without the contents of fenced blocks, same number of lines.
pub(super) fn without_fences(text: &str) -> String {
    let mut inside = false;
    let mut kept = Vec::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        inside ^= is_fence;
        kept.push(if is_fence || inside { "" } else { line });
    }
    kept.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_tables_and_words() {
        let text = "# T\n## A\none\n### B\ntwo\n## C\n| x | y |\n|---|---|\n| `a` | `b` `c` |\n";
        assert_eq!(section(text, "A"), Some("one\n### B\ntwo\n"));
        assert_eq!(section(text, "D"), None);
        let rows = table(section(text, "C").expect("is there"));
        assert_eq!(rows, [["`a`", "`b` `c`"]]);
        assert_eq!(code_words(rows[0][1]), ["b", "c"]);
    }

    #[test]
    fn fences_are_left_out() {
        assert_eq!(without_fences("a\n```\nb\n```\nc"), "a\n\n\n\nc");
    }
}
