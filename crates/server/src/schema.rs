//! What a field of a request may be. One description drives the checks and `/openapi.json`, so that
//! they cannot differ.

use crate::error::ApiError;
use crate::json::{Json, cut};
use crate::settings::ServerLimits;

/// The numbers that limits refer to.
#[derive(Clone, Debug)]
pub(crate) struct RequestBounds {
    pub(crate) limits: ServerLimits,
    pub(crate) context: usize,
    pub(crate) vocab: usize,
    pub(crate) recursions: u32,
    /// Whether the model has a begin token, which an empty prompt becomes.
    pub(crate) begins: bool,
    pub(crate) strict: bool,
}

/// A limit: known when written, or when serving begins.
#[derive(Clone, Copy)]
pub(crate) enum Limit {
    Is(i64),
    Of(fn(&RequestBounds) -> i64),
}

impl Limit {
    pub(crate) fn get(self, bounds: &RequestBounds) -> i64 {
        match self {
            Limit::Is(value) => value,
            Limit::Of(f) => f(bounds),
        }
    }
}

/// The values a field can take.
#[derive(Clone, Copy)]
pub(crate) enum FieldKind {
    Bool,
    Int(Limit, Limit),
    /// From, to; the last says that the lower end is excluded.
    Number(f64, f64, bool),
    Text,
    /// A string, token ids, or a list of either.
    Prompt,
    /// Token ids, at most so many.
    Ids(Limit),
    /// A string or a list of strings.
    Stop,
    /// Token ids to numbers from -100 to 100.
    Bias,
    /// A list of objects; `chat.rs` checks what each of them holds.
    Messages,
    /// An object with these fields.
    Object(&'static [Field]),
    /// An object with any fields.
    Open,
    Any,
}

/// What becomes of a field.
#[derive(Clone, Copy)]
pub(crate) enum Support {
    /// It does what it says.
    Full,
    /// It must be there.
    Required,
    /// It has no effect and never could change the answer.
    NoEffect,
    /// Only `null` and these JSON texts are accepted: what the server does anyway.
    Only(&'static [&'static str]),
    /// The same, and anything where `field` is the JSON text `says`: then it concerns nothing.
    Moot { texts: &'static [&'static str], field: &'static str, says: &'static str },
}

/// A field of a request.
#[derive(Clone, Copy)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: FieldKind,
    /// JSON text of the default.
    pub(crate) default: &'static str,
    pub(crate) support: Support,
    pub(crate) help: &'static str,
}

/// An object whose fields passed their checks.
#[derive(Debug)]
pub(crate) struct Checked<'j> {
    object: &'j Json,
    /// Unknown fields, with the path to them.
    pub(crate) ignored: Vec<String>,
}

impl<'j> Checked<'j> {
    /// Notes fields that have no effect.
    ///
    /// # Errors
    /// The first one, where the server is strict.
    pub(crate) fn ignore(
        &mut self,
        names: Vec<String>,
        bounds: &RequestBounds,
    ) -> Result<(), ApiError> {
        if let (true, Some(name)) = (bounds.strict, names.first()) {
            let message = format!(
                "`{}` means nothing in this request, and this server is strict about it",
                cut(name)
            );
            return Err(ApiError::field(name, message).code("unknown_field"));
        }
        self.ignored.extend(names);
        Ok(())
    }

    /// The field, unless absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'j Json> {
        self.object.get(name).filter(|value| **value != Json::Null)
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> bool {
        match self.get(name) {
            Some(Json::Bool(value)) => *value,
            _ => default,
        }
    }

    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(Json::as_int)
    }

    pub(crate) fn count(&self, name: &str) -> Option<usize> {
        self.int(name).and_then(|value| usize::try_from(value).ok())
    }

    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.get(name).and_then(Json::as_number)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&'j str> {
        self.get(name).and_then(Json::as_text)
    }

    pub(crate) fn ids(&self, name: &str) -> &'j [u32] {
        match self.get(name) {
            Some(Json::Ids(ids)) => ids,
            _ => &[],
        }
    }

    /// A nested object whose checks have passed.
    pub(crate) fn object(&self, name: &str) -> Option<Checked<'j>> {
        self.get(name).map(|object| Checked { object, ignored: Vec::new() })
    }
}

/// Checks every field of `object` against `fields`.
///
/// # Errors
/// The first field that is wrong, in the order of the request.
pub(crate) fn check<'j>(
    object: &'j Json,
    fields: &[Field],
    bounds: &RequestBounds,
) -> Result<Checked<'j>, ApiError> {
    let mut ignored = Vec::new();
    check_object(object, fields, bounds, "", &mut ignored)?;
    let mut checked = Checked { object, ignored: Vec::new() };
    checked.ignore(ignored, bounds)?;
    Ok(checked)
}

fn check_object(
    object: &Json,
    fields: &[Field],
    bounds: &RequestBounds,
    path: &str,
    ignored: &mut Vec<String>,
) -> Result<(), ApiError> {
    let Json::Map(entries) = object else {
        let name = if path.is_empty() { "body" } else { path.trim_end_matches('.') };
        return Err(ApiError::value(name, object, "an object"));
    };
    for (key, value) in entries {
        let name = format!("{path}{key}");
        match fields.iter().find(|field| field.name == key) {
            None => ignored.push(name),
            Some(_) if *value == Json::Null => (),
            Some(field) if is_moot(field, object) => (),
            Some(field) => check_field(&name, value, field, bounds, ignored)?,
        }
    }
    match fields
        .iter()
        .filter(|field| matches!(field.support, Support::Required))
        .find(|f| object.get(f.name).is_none_or(|value| *value == Json::Null))
    {
        Some(field) => {
            let name = format!("{path}{}", field.name);
            Err(ApiError::field(
                &name,
                format!("`{name}` is missing, expected {}", expected(field.kind, bounds)),
            ))
        }
        None => Ok(()),
    }
}

fn is_moot(field: &Field, object: &Json) -> bool {
    let Support::Moot { field, says, .. } = field.support else { return false };
    object.get(field).is_some_and(|value| value.short() == says)
}

fn check_field(
    name: &str,
    value: &Json,
    field: &Field,
    bounds: &RequestBounds,
    ignored: &mut Vec<String>,
) -> Result<(), ApiError> {
    if let Support::Only(texts) | Support::Moot { texts, .. } = field.support {
        let text = value.short();
        if texts.contains(&text.as_str()) {
            return Ok(());
        }
        let expected = match texts {
            [] => "nothing: this server does not support it".to_owned(),
            texts => {
                format!("nothing or {}: this server does not support more", texts.join(" or "))
            }
        };
        return Err(ApiError::value(name, value, &expected).code("unsupported"));
    }
    if let FieldKind::Object(fields) = field.kind {
        return check_object(value, fields, bounds, &format!("{name}."), ignored);
    }
    if fits(value, field.kind, bounds) {
        return Ok(());
    }
    Err(ApiError::value(name, value, &expected(field.kind, bounds)))
}

fn fits(value: &Json, kind: FieldKind, bounds: &RequestBounds) -> bool {
    match kind {
        FieldKind::Bool => matches!(value, Json::Bool(_)),
        FieldKind::Int(low, high) => {
            value.as_int().is_some_and(|v| low.get(bounds) <= v && v <= high.get(bounds))
        }
        FieldKind::Number(low, high, open) => {
            value.as_number().is_some_and(|v| (if open { v > low } else { v >= low }) && v <= high)
        }
        FieldKind::Text => matches!(value, Json::Text(_)),
        FieldKind::Prompt => match value {
            Json::Text(_) | Json::Ids(_) => true,
            Json::List(items) => {
                items.len() <= bounds.limits.prompts
                    && (items.iter().all(|item| matches!(item, Json::Text(_)))
                        || items.iter().all(|item| matches!(item, Json::Ids(_))))
            }
            _ => false,
        },
        FieldKind::Ids(most) => {
            matches!(value, Json::Ids(ids) if ids.len() as i64 <= most.get(bounds))
        }
        FieldKind::Stop => match value {
            Json::Ids(ids) => ids.is_empty(),
            Json::List(items) => {
                items.len() <= bounds.limits.stops
                    && items.iter().all(|item| is_stop(item, &bounds.limits))
            }
            item => is_stop(item, &bounds.limits),
        },
        FieldKind::Bias => match value {
            Json::Map(entries) => {
                entries.len() <= bounds.limits.logit_bias
                    && entries
                        .iter()
                        .all(|entry| is_no_bias(entry) || bias(entry, bounds).is_some())
            }
            _ => false,
        },
        FieldKind::Messages => {
            let Json::List(items) = value else { return false };
            items.iter().all(|item| matches!(item, Json::Map(_)))
        }
        FieldKind::Open | FieldKind::Object(_) => matches!(value, Json::Map(_)),
        FieldKind::Any => true,
    }
}

/// A stop string: not empty, and no longer than allowed.
fn is_stop(item: &Json, limits: &ServerLimits) -> bool {
    item.as_text().is_some_and(|text| (1..=limits.stop_bytes).contains(&text.len()))
}

/// Whether an entry of `logit_bias` adds nothing to whatever it names.
fn is_no_bias((_, value): &(String, Json)) -> bool {
    value.as_number() == Some(0.0)
}

/// One entry of `logit_bias` as numbers.
pub(crate) fn bias((key, value): &(String, Json), bounds: &RequestBounds) -> Option<(u32, f32)> {
    let id: u32 = key
        .parse()
        .ok()
        .filter(|id: &u32| id.to_string() == *key && (*id as usize) < bounds.vocab)?;
    let value = value.as_number().filter(|v| (-100.0..=100.0).contains(v))?;
    Some((id, value as f32))
}

/// What a field expects, in words.
pub(crate) fn expected(kind: FieldKind, bounds: &RequestBounds) -> String {
    let limits = &bounds.limits;
    let last = bounds.vocab.saturating_sub(1);
    match kind {
        FieldKind::Bool => "true or false".to_owned(),
        FieldKind::Int(low, high) => {
            format!("an integer from {} to {}", low.get(bounds), high.get(bounds))
        }
        FieldKind::Number(low, high, true) => format!("a number above {low}, at most {high}"),
        FieldKind::Number(low, high, false) => format!("a number from {low} to {high}"),
        FieldKind::Text => "a string".to_owned(),
        FieldKind::Prompt => {
            format!(
                "a string, token ids from 0 to {last}, or a list of at most {} of either",
                limits.prompts
            )
        }
        FieldKind::Ids(most) => {
            format!("a list of at most {} token ids from 0 to {last}", most.get(bounds))
        }
        FieldKind::Stop => {
            format!(
                "a string of 1 to {} bytes, or a list of at most {} such",
                limits.stop_bytes, limits.stops
            )
        }
        FieldKind::Bias => {
            let most = limits.logit_bias;
            format!(
                "an object of at most {most} token ids from 0 to {last}, \
                 with numbers from -100 to 100"
            )
        }
        FieldKind::Messages => "a list of messages".to_owned(),
        FieldKind::Open | FieldKind::Object(_) => "an object".to_owned(),
        FieldKind::Any => "anything".to_owned(),
    }
}
