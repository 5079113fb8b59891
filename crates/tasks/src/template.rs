//! Texts with `{field}` in them, filled from the fields of an item. `{{` and `}}` stand for braces.

use crate::error::TaskError;
use crate::items::Row;

/// A text with places for fields.
#[derive(Debug)]
pub(crate) struct Template {
    pieces: Vec<Piece>,
    /// Which key of which file wrote it, for messages.
    origin: String,
}

#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Field(String),
}

impl Template {
    /// Takes `text` apart; the error says what is wrong with it.
    pub(crate) fn parse(text: &str, origin: String) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err("a `}` that closes nothing; write `}}` for the character".to_owned());
            }
            let Some((name, after)) = rest.split_once('}') else {
                return Err("a `{` that is never closed; write `{{` for the character".to_owned());
            };
            check_name(name)?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Field(name.to_owned()));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self { pieces, origin })
    }

    /// The text with the fields of `row` in it.
    pub(crate) fn render(&self, row: &Row) -> Result<String, TaskError> {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Field(field) => text.push_str(&row.text(field, &self.origin)?),
            }
        }
        Ok(text)
    }

    /// The field of a template that is one field and nothing else, such as `{label}`.
    pub(crate) fn only_field(&self) -> Option<(&str, &str)> {
        match self.pieces.as_slice() {
            [Piece::Field(field)] => Some((field, &self.origin)),
            _ => None,
        }
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if !name.is_empty() && name.chars().all(is_name_char) {
        return Ok(());
    }
    Err(format!("`{{{name}}}`, where a field's name has letters, digits, `_` and `-` only"))
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Result<Vec<Piece>, String> {
        Template::parse(text, String::new()).map(|t| t.pieces)
    }

    #[test]
    fn fields_and_braces() {
        let text = |t: &str| Piece::Text(t.to_owned());
        let field = |f: &str| Piece::Field(f.to_owned());
        assert_eq!(pieces("").unwrap(), []);
        assert_eq!(pieces("plain").unwrap(), [text("plain")]);
        assert_eq!(pieces("{a}").unwrap(), [field("a")]);
        assert_eq!(pieces("Q: {a}\nA:").unwrap(), [text("Q: "), field("a"), text("\nA:")]);
        assert_eq!(pieces("{a}{b-c}").unwrap(), [field("a"), field("b-c")]);
        assert_eq!(pieces("{{{a}}} }}{{").unwrap(), [text("{"), field("a"), text("} }{")]);
    }

    #[test]
    fn bad_templates_say_why() {
        for (bad, why) in [
            ("{", "never closed"),
            ("x {a", "never closed"),
            ("}", "closes nothing"),
            ("a } b", "closes nothing"),
            ("{}", "letters, digits"),
            ("{a b}", "letters, digits"),
            ("{a.b}", "letters, digits"),
            ("{a{b}}", "letters, digits"),
        ] {
            let error = pieces(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
