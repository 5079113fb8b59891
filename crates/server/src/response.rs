//! Bodies of answers, bytes at once or the events of a stream, and the header that all may have.

use crate::json;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use std::convert::Infallible;

/// Either kind; neither fails while it is sent.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is known as a whole, so that its length goes into the header.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// The response with the names of ignored fields in `x-lathe-ignored`, if there are any.
pub(crate) fn with_ignored(mut response: Response<Body>, names: &[String]) -> Response<Body> {
    if let Some(value) = ignored(names) {
        response.headers_mut().insert("x-lathe-ignored", value);
    }
    response
}

/// The names of fields without effect, the first 32 of them, as a header can hold them.
fn ignored(names: &[String]) -> Option<HeaderValue> {
    if names.is_empty() {
        return None;
    }
    let names: Vec<String> = names
        .iter()
        .take(32)
        .map(|name| json::cut(name).chars().map(header_char).collect())
        .collect();
    HeaderValue::from_str(&names.join(", ")).ok()
}

/// The character itself, or `?` where it could end a name or has no place in a header.
fn header_char(c: char) -> char {
    if c.is_ascii_graphic() && c != ',' { c } else { '?' }
}
