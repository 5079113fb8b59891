//! Values as Python prints them.

use crate::template_tuples::is_tuple;
use minijinja::value::{Value, ValueKind};
use std::fmt::Write;

/// Lists and mappings within each other that are printed.
const DEEPEST: usize = 100;

/// `str(value)` of Python.
///
/// # Errors
/// Values nested too deeply.
pub(crate) fn text(value: &Value) -> Result<String, String> {
    let mut out = String::new();
    match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Number => {
            repr(value, &mut out, 0)?;
        }
        _ => write!(out, "{value}").map_err(|e| e.to_string())?,
    }
    Ok(out)
}

/// Whether Python prints it otherwise than the template engine.
pub(crate) fn differs(value: &Value) -> bool {
    let kind = value.kind();
    matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
        || (kind == ValueKind::Number && !value.is_integer())
}

fn repr(value: &Value, out: &mut String, depth: usize) -> Result<(), String> {
    if depth > DEEPEST {
        return Err(format!("a value is nested more than {DEEPEST} deep"));
    }
    match value.kind() {
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.push_str(&float(number)),
            Err(_) => write!(out, "{value}").map_err(|e| e.to_string())?,
        },
        ValueKind::Seq | ValueKind::Iterable => {
            let [open, close] = if is_tuple(value) { ['(', ')'] } else { ['[', ']'] };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter().map_err(|e| e.to_string())? {
                out.push_str(if count > 0 { ", " } else { "" });
                repr(&item, out, depth + 1)?;
                count += 1;
            }
            // Brackets alone make no tuple of one item.
            out.push_str(if count == 1 && close == ')' { "," } else { "" });
            out.push(close);
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter().map_err(|e| e.to_string())?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(&key, out, depth + 1)?;
                out.push_str(": ");
                repr(&value.get_item(&key).map_err(|e| e.to_string())?, out, depth + 1)?;
            }
            out.push('}');
        }
        _ => write!(out, "{value}").map_err(|e| e.to_string())?,
    }
    Ok(())
}

/// The shortest decimal number that is this one, with an exponent where it is far from 1.
pub(crate) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = number.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

/// `repr` of a string.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        let code = u32::from(c);
        // Writing to a string cannot fail.
        let _ = match c {
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            '\\' => out.write_str("\\\\"),
            c if c == quote => write!(out, "\\{c}"),
            c if is_printable(c) => out.write_char(c),
            _ if code < 0x100 => write!(out, "\\x{code:02x}"),
            _ if code < 0x1_0000 => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out.push(quote);
}

/// Whether Python writes the character itself: no control, format or private one, and no blank but
/// the usual one.
fn is_printable(c: char) -> bool {
    let blank = c.is_whitespace() && c != ' ';
    let format = matches!(c, '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}'
        | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
        | '\u{E0001}'..='\u{E007F}');
    let private = matches!(c, '\u{E000}'..='\u{F8FF}' | '\u{F0000}'..);
    !(c.is_control() || blank || format || private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_tuples_as_python_writes_them() {
        let tuple =
            |items: &[&'static str]| crate::template_tuples::tuple(Value::from(items.to_vec()));
        for (value, expected) in [
            (tuple(&[]), "()"),
            (tuple(&["a"]), "('a',)"),
            (tuple(&["a", "b"]), "('a', 'b')"),
            (Value::from(vec![tuple(&["a"]), Value::from(vec![1])]), "[('a',), [1]]"),
        ] {
            assert_eq!(text(&value).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn numbers_and_strings_as_python_writes_them() {
        for (number, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (1e-7, "1e-07"),
            (1.5e-5, "1.5e-05"),
            (1e22, "1e+22"),
            (1e16, "1e+16"),
            (123_456_789.123, "123456789.123"),
            (1e-4, "0.0001"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "nan"),
            (1e300, "1e+300"),
        ] {
            assert_eq!(float(number), expected);
        }
        for (text, expected) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("it's \"q\"", "'it\\'s \"q\"'"),
            ("\n\t\\", "'\\n\\t\\\\'"),
            ("\u{e9}\u{1f600}", "'\u{e9}\u{1f600}'"),
            ("\u{1}\u{a0}\u{200b}\u{e000}\u{e0001}", "'\\x01\\xa0\\u200b\\ue000\\U000e0001'"),
        ] {
            let mut out = String::new();
            quote(text, &mut out);
            assert_eq!(out, expected);
        }
    }
}
