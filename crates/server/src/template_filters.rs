//! Filters and tests as Jinja in Python has them, where the template engine's differ or are absent.

use crate::template_methods::{padded, wrong};
use crate::template_tuples::tuples;
use crate::template_values;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, State};
use serde_json::ser::Formatter;
use std::cmp::Ordering;
use std::io;

/// Puts all of them in place of the engine's own.
pub(crate) fn install(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| template_values::text(value).map_err(wrong));
    environment.add_filter("join", join);
    environment.add_filter("replace", replace);
    environment.add_filter("int", int);
    environment.add_filter("round", round);
    environment.add_filter("sum", sum);
    environment.add_filter("min", |value: &Value| extreme(value, false));
    environment.add_filter("max", |value: &Value| extreme(value, true));
    environment.add_filter("center", |text: &str, width: Option<usize>| {
        padded(text, "center", width.unwrap_or(80), ' ')
    });
    environment.add_filter("dictsort", |map: &Value, by: Kwargs| {
        tuples(&minijinja::filters::dictsort(map, by)?)
    });
    environment.add_filter("items", |map: &Value| tuples(&minijinja::filters::items(map)?));
    environment.add_filter("groupby", |rows: Value, by: Option<&str>, more: Kwargs| {
        tuples(&minijinja::filters::groupby(rows, by, more)?)
    });
    environment.add_filter("wordcount", wordcount);
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("forceescape", |state: &State<'_, '_>, value: &Value| {
        state.apply_filter("escape", &[Value::from(value.to_string())])
    });
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    environment.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment
        .add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

/// The text that Python's `str` makes.
fn text(value: &Value) -> Result<String, Error> {
    template_values::text(value).map_err(wrong)
}

fn join(value: &Value, mark: Option<&str>, options: Kwargs) -> Result<String, Error> {
    let attribute: Option<String> = options.get("attribute")?;
    let named: Option<String> = options.get("d")?;
    options.assert_all_used()?;
    let mark = mark.or(named.as_deref()).unwrap_or_default();
    let mut out = String::new();
    for (at, item) in value.try_iter()?.enumerate() {
        let item = match &attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        out.push_str(if at > 0 { mark } else { "" });
        out.push_str(&text(&item)?);
    }
    Ok(out)
}

fn replace(value: &Value, from: &str, to: &str, most: Option<usize>) -> Result<String, Error> {
    let value = text(value)?;
    Ok(match most {
        Some(most) => value.replacen(from, to, most),
        None => value.replace(from, to),
    })
}

fn int(value: &Value, default: Option<i64>, options: Kwargs) -> Result<Value, Error> {
    let named: Option<i64> = options.get("default")?;
    let base: Option<u32> = options.get("base")?;
    options.assert_all_used()?;
    let default = Value::from(default.or(named).unwrap_or(0));
    let base = base.unwrap_or(10);
    if !(2..=36).contains(&base) {
        return Err(wrong(format!("int: a base of {base}, expected 2 to 36")));
    }
    Ok(match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value.clone(),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(number) if number.is_finite() => Value::from(number.trunc() as i64),
            _ => default,
        },
        ValueKind::String => {
            let written = value.as_str().unwrap_or_default().trim().replace('_', "");
            let whole = i64::from_str_radix(&written, base).ok();
            whole.or_else(|| cut(&written)).map_or(default, Value::from)
        }
        _ => default,
    })
}

/// The whole part of a decimal number.
fn cut(written: &str) -> Option<i64> {
    written.parse::<f64>().ok().map(|number| number.trunc() as i64)
}

/// Half goes to the even neighbour, as in Python.
fn round(
    value: &Value,
    precision: Option<i32>,
    method: Option<String>,
    options: Kwargs,
) -> Result<Value, Error> {
    let precision = options.get::<Option<i32>>("precision")?.or(precision).unwrap_or(0);
    let method = options.get::<Option<String>>("method")?.or(method);
    options.assert_all_used()?;
    if !(-300..=300).contains(&precision) {
        return Err(wrong(format!("round: a precision of {precision}, expected -300 to 300")));
    }
    if value.is_integer() && precision >= 0 && method.is_none() {
        return Ok(value.clone());
    }
    let (value, scale) = (f64::try_from(value.clone())?, 10f64.powi(precision));
    let rounded = match method.as_deref() {
        Some("ceil") => Ok((value * scale).ceil() / scale),
        Some("floor") => Ok((value * scale).floor() / scale),
        // Digits that are written are right to the last, which a product would not be.
        None | Some("common") if precision > 0 => {
            format!("{value:.0$}", precision as usize).parse().map_err(|_| wrong("round"))
        }
        None | Some("common") => Ok((value * scale).round_ties_even() / scale),
        Some(other) => {
            Err(wrong(format!("round: the method is `{other}`, expected common, ceil or floor")))
        }
    };
    rounded.map(Value::from)
}

fn sum(
    state: &State<'_, '_>,
    value: &Value,
    attribute: Option<String>,
    options: Kwargs,
) -> Result<Value, Error> {
    let attribute = options.get::<Option<String>>("attribute")?.or(attribute);
    let start: Option<Value> = options.get("start")?;
    options.assert_all_used()?;
    let mut items = Vec::new();
    for item in value.try_iter()? {
        items.push(match &attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        });
    }
    match start {
        None => minijinja::filters::sum(state, Value::from(items)),
        Some(start) if start.kind() == ValueKind::Seq => {
            let mut all: Vec<Value> = start.try_iter()?.collect();
            for item in items {
                all.extend(item.try_iter()?);
            }
            Ok(Value::from(all))
        }
        Some(start) => {
            items.insert(0, start);
            minijinja::filters::sum(state, Value::from(items))
        }
    }
}

/// The first smallest or largest item; letters are compared without their case.
fn extreme(value: &Value, largest: bool) -> Result<Value, Error> {
    let mut best: Option<(Value, Value)> = None;
    for item in value.try_iter()? {
        let new = item.as_str().map_or_else(|| item.clone(), |s| s.to_lowercase().into());
        let wanted = if largest { Ordering::Greater } else { Ordering::Less };
        if best.as_ref().is_none_or(|(old, _)| new.cmp(old) == wanted) {
            best = Some((new, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}

fn wordcount(text: &str) -> usize {
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    words.filter(|word| !word.is_empty()).count()
}

fn urlencode(value: &Value) -> Result<String, Error> {
    if value.kind() != ValueKind::Map {
        return Ok(escaped(&text(value)?, "/", false));
    }
    let mut pairs = Vec::new();
    for key in value.try_iter()? {
        let (name, item) = (text(&key)?, text(&value.get_item(&key)?)?);
        pairs.push(format!("{}={}", escaped(&name, "", true), escaped(&item, "", true)));
    }
    Ok(pairs.join("&"))
}

/// Percent escapes of all but letters, digits, `_.-~` and `safe`.
fn escaped(text: &str, safe: &str, plus: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match char::from(byte) {
            c if c.is_ascii_alphanumeric() || "_.-~".contains(c) || safe.contains(c) => out.push(c),
            ' ' if plus => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// JSON without escapes for HTML, with the options of Python's `json.dumps`, in the order in which
/// transformers takes them.
fn tojson(value: &Value, ascii: Option<&Value>, options: Kwargs) -> Result<String, Error> {
    let named = options.get::<Option<&Value>>("ensure_ascii")?;
    let ascii = named.or(ascii).is_some_and(Value::is_true);
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    if indent.is_some_and(|width| width > 16) {
        return Err(wrong("tojson: indent is at most 16"));
    }
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators.as_deref() {
        None => (item, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(wrong("tojson: separators are two")),
    };
    let json = serde_json::to_value(value).map_err(|e| wrong(e.to_string()))?;
    let json = if sorted == Some(true) { in_order(json) } else { json };
    let mut out = Vec::new();
    let style = Dumps { ascii, indent, item, key, depth: 0, filled: false };
    serde::Serialize::serialize(
        &json,
        &mut serde_json::Serializer::with_formatter(&mut out, style),
    )
    .map_err(|e| wrong(e.to_string()))?;
    String::from_utf8(out).map_err(|e| wrong(e.to_string()))
}

fn in_order(json: serde_json::Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match json {
        Json::Object(entries) => {
            let mut entries: Vec<_> = entries.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(entries.into_iter().map(|(key, value)| (key, in_order(value))).collect())
        }
        Json::Array(items) => Json::Array(items.into_iter().map(in_order).collect()),
        other => other,
    }
}

/// The style of `json.dumps`.
struct Dumps<'s> {
    ascii: bool,
    indent: Option<usize>,
    item: &'s str,
    key: &'s str,
    depth: usize,
    /// Whether the innermost list or object has something in it.
    filled: bool,
}

impl Dumps<'_> {
    fn open<W: ?Sized + io::Write>(&mut self, to: &mut W, sign: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        to.write_all(sign)
    }

    fn close<W: ?Sized + io::Write>(&mut self, to: &mut W, sign: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(to)?;
        }
        self.filled = true;
        to.write_all(sign)
    }

    fn line<W: ?Sized + io::Write>(&self, to: &mut W) -> io::Result<()> {
        match self.indent {
            Some(width) => write!(to, "\n{:1$}", "", width * self.depth),
            None => Ok(()),
        }
    }

    fn next<W: ?Sized + io::Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        if !first {
            to.write_all(self.item.as_bytes())?;
        }
        self.line(to)
    }
}

impl Formatter for Dumps<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.open(to, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.close(to, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(to, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.open(to, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.close(to, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(to, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, to: &mut W, value: f64) -> io::Result<()> {
        to.write_all(template_values::float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        to: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for c in fragment.chars() {
            match c {
                '\u{7f}'.. if self.ascii => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(to, "\\u{unit:04x}")?;
                    }
                }
                c => write!(to, "{c}")?,
            }
        }
        Ok(())
    }
}
