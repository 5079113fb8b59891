//! Methods of Python's strings, lists and mappings that the template engine does not know.

use crate::template_tuples::{tuple, tuples};
use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// The widest that a text is padded.
const WIDEST: usize = 1 << 16;

/// A method of a value: these here, then those that come with the engine.
///
/// # Errors
/// Arguments that the method does not take, and methods that exist nowhere.
pub(crate) fn call(
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => of_string(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Map if method == "copy" && args.is_empty() => {
            Some(value.clone())
        }
        ValueKind::Map if method == "items" => {
            let (): () = from_args(args)?;
            Some(tuples(&minijinja::filters::items(value)?)?)
        }
        ValueKind::Seq if method == "index" => {
            let (wanted,): (Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == wanted);
            Some(Value::from(at.ok_or_else(|| wrong(format!("{wanted} is not in the list")))?))
        }
        ValueKind::Number if method == "is_integer" => {
            let (): () = from_args(args)?;
            let number = f64::try_from(value.clone())?;
            Some(Value::from(number.fract() == 0.0))
        }
        _ => None,
    };
    match found {
        Some(found) => Ok(found),
        None => unknown_method_callback(state, value, method, args),
    }
}

pub(crate) fn wrong(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn of_string(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "swapcase" => no_arguments(args, || text.chars().flat_map(swapped).collect::<String>())?,
        "casefold" => no_arguments(args, || text.to_lowercase().replace('\u{df}', "ss"))?,
        "title" => no_arguments(args, || title(text))?,
        "istitle" => no_arguments(args, || title(text) == text && text.chars().any(is_cased))?,
        "isdecimal" => no_arguments(args, || all(text, char::is_numeric))?,
        "isidentifier" => no_arguments(args, || is_identifier(text))?,
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "rsplit" => rsplit(text, args)?,
        "partition" | "rpartition" => {
            let (mark,): (&str,) = from_args(args)?;
            tuple(Value::from(parts(text, mark, method == "rpartition")))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(text, method, args)?,
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let sign = text.len() - text.trim_start_matches(['+', '-']).len().max(text.len() - 1);
            let zeros = "0".repeat(missing(text, width)?);
            Value::from(format!("{}{zeros}{}", &text[..sign], &text[sign..]))
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            Value::from(padded(text, method, width, fill.unwrap_or(' '))?)
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            Value::from(without_tabs(text, size.unwrap_or(8).min(64)))
        }
        _ => return Ok(None),
    }))
}

fn no_arguments<T: Into<Value>>(args: &[Value], make: impl FnOnce() -> T) -> Result<Value, Error> {
    let (): () = from_args(args)?;
    Ok(make().into())
}

fn all(text: &str, test: fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(test)
}

fn is_cased(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase()
}

fn swapped(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

/// Letters behind letters in lower case, others in upper case.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut within = false;
    for c in text.chars() {
        let upper: String = c.to_uppercase().collect();
        match (is_cased(c), within) {
            (true, true) => out.extend(c.to_lowercase()),
            // One letter that becomes two, such as the German sharp s, has one large letter then.
            (true, false) => {
                let mut letters = upper.chars();
                out.extend(letters.next());
                letters.for_each(|letter| out.extend(letter.to_lowercase()));
            }
            (false, _) => out.push(c),
        }
        within = is_cased(c);
    }
    out
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (mark, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let most = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most);
    let mut parts: Vec<String> = Vec::new();
    let mut rest = text;
    while parts.len() < most {
        let found = match mark {
            Some("") => return Err(wrong("rsplit: the separator is empty")),
            Some(mark) => rest.rsplit_once(mark),
            None => {
                rest = rest.trim_end();
                rest.rsplit_once(char::is_whitespace)
            }
        };
        let Some((before, last)) = found else { break };
        parts.push(last.to_owned());
        rest = before;
    }
    let rest = if mark.is_none() { rest.trim_end() } else { rest };
    if mark.is_some() || !rest.is_empty() {
        parts.push(rest.to_owned());
    }
    parts.reverse();
    Ok(Value::from(parts))
}

fn parts(text: &str, mark: &str, last: bool) -> Vec<String> {
    let found = if last { text.rsplit_once(mark) } else { text.split_once(mark) };
    match found {
        Some((before, after)) => vec![before.to_owned(), mark.to_owned(), after.to_owned()],
        None if last => vec![String::new(), String::new(), text.to_owned()],
        None => vec![text.to_owned(), String::new(), String::new()],
    }
}

/// Places and counts are those of characters.
fn search(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (wanted, from, to): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let length = text.chars().count();
    let (from, to) = (place(from, length).unwrap_or(0), place(to, length).unwrap_or(length));
    let part: String = text.chars().skip(from).take(to.saturating_sub(from)).collect();
    if method == "count" {
        let places = part.chars().count() + 1;
        let found = if wanted.is_empty() { places } else { part.matches(wanted).count() };
        return Ok(Value::from(found));
    }
    let found = if method.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
    match found {
        Some(at) => Ok(Value::from(from + part[..at].chars().count())),
        None if method.ends_with("index") => Err(wrong("substring not found")),
        None => Ok(Value::from(-1)),
    }
}

/// A place in a text of `length` characters; those below 0 count from the end.
fn place(at: Option<i64>, length: usize) -> Option<usize> {
    let at = at?;
    let size = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
    Some(if at < 0 { length.saturating_sub(size) } else { size.min(length) })
}

/// Characters that lack to a width.
fn missing(text: &str, width: usize) -> Result<usize, Error> {
    if width > WIDEST {
        return Err(wrong(format!("a width of {width}, expected at most {WIDEST}")));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

/// The text at its place within `width` characters.
///
/// # Errors
/// A width that no prompt has.
pub(crate) fn padded(text: &str, place: &str, width: usize, fill: char) -> Result<String, Error> {
    let lacks = missing(text, width)?;
    let left = match place {
        "ljust" => 0,
        "rjust" => lacks,
        // As Python has it, the odd one goes left where the width is odd.
        _ => lacks / 2 + (lacks & width & 1),
    };
    let mut out: String = std::iter::repeat_n(fill, left).collect();
    out.push_str(text);
    out.extend(std::iter::repeat_n(fill, lacks - left));
    Ok(out)
}

fn without_tabs(text: &str, size: usize) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let blanks = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', blanks));
                column += blanks;
            }
            c => {
                out.push(c);
                column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
            }
        }
    }
    out
}
