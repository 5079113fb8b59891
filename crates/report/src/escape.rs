//! Text inside of HTML.

use crate::ansi::harmless;

/// Text for element content and quoted attributes alike.
pub(crate) fn escape(text: &str) -> String {
    let mut html = String::with_capacity(text.len() + text.len() / 8);
    for character in text.chars() {
        push_escaped(&mut html, character);
    }
    html
}

/// One character, escaped; controls and direction marks as their visible stand-ins.
pub(crate) fn push_escaped(html: &mut String, character: char) {
    match harmless(character) {
        '&' => html.push_str("&amp;"),
        '<' => html.push_str("&lt;"),
        '>' => html.push_str("&gt;"),
        '"' => html.push_str("&quot;"),
        '\'' => html.push_str("&#39;"),
        other => html.push(other),
    }
}
