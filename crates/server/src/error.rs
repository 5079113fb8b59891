//! What a client is told when a request fails.

use crate::json::{Json, cut};
use crate::response::{Body, whole};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use scheduler::Refusal;
use serde::Serialize;

/// A refusal with its status; the body is `{"error":{"message","type","param","code"}}`.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    pub(crate) retry_after_s: Option<u64>,
    /// The methods that would do, for 405.
    allow: Option<&'static str>,
}

#[derive(Serialize)]
struct Envelope<'e> {
    error: Inner<'e>,
}

#[derive(Serialize)]
struct Inner<'e> {
    message: &'e str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'e str>,
    code: Option<&'static str>,
}

/// The code of a refused `Content-Encoding`.
pub(crate) const PACKED: &str = "content_encoding";

/// Statuses that the server may answer, with the type named in the body.
pub(crate) const TYPES: [(u16, &str); 12] = [
    (400, "invalid_request_error"),
    (401, "authentication_error"),
    (403, "permission_error"),
    (404, "not_found_error"),
    (405, "method_not_allowed"),
    (408, "request_timeout"),
    (413, "payload_too_large"),
    (415, "unsupported_media_type"),
    (429, "overloaded_error"),
    (499, "client_closed_request"),
    (500, "internal_error"),
    (503, "unavailable_error"),
];

/// A field's name, or one of its parts, under its other name.
fn renamed(name: &str, ours: &str, theirs: &str) -> String {
    name.strip_prefix(ours).map_or_else(|| name.to_owned(), |rest| format!("{theirs}{rest}"))
}

impl ApiError {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
            retry_after_s: None,
            allow: None,
        }
    }

    /// What went wrong, as a sentence.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// 400 about a field.
    pub(crate) fn field(name: &str, message: impl Into<String>) -> Self {
        Self { param: Some(cut(name)), ..Self::new(400, message) }
    }

    /// 400 about the value of a field: names the field, the value and what would do.
    pub(crate) fn value(name: &str, found: &Json, expected: &str) -> Self {
        let name = cut(name);
        Self::field(&name, format!("`{name}` is {}, expected {expected}", found.short()))
    }

    /// The same about a request in which fields have other names: each first one is the second one
    /// there.
    pub(crate) fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        for (ours, theirs) in names {
            self.message = self.message.replace(&format!("`{ours}"), &format!("`{theirs}"));
            self.param = self.param.map(|name| renamed(&name, ours, theirs));
        }
        self
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, message)
    }

    /// 405 for a path that answers another method.
    pub(crate) fn method(allowed: &'static str) -> Self {
        let (rest, allow) = match allowed {
            "GET" => (", and HEAD as GET", "GET, HEAD"),
            other => ("", other),
        };
        let error = Self::new(405, format!("this path answers {allowed} only{rest}"));
        Self { allow: Some(allow), ..error.code("method_not_allowed") }
    }

    pub(crate) fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(crate) fn has_code(&self, code: &str) -> bool {
        self.code == Some(code)
    }

    pub(crate) fn retry(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    pub(crate) fn draining() -> Self {
        let message = "the server is shutting down and takes no new requests; \
                       ask another one, or again later";
        Self::new(503, message).code("draining").retry(5)
    }

    pub(crate) fn panicked() -> Self {
        Self::internal("the server failed inside this request; others go on").code("panic")
    }

    pub(crate) fn deadline() -> Self {
        let message = "the request was not finished within the server's deadline; \
                       ask for less, or again later";
        Self::new(408, message).code("deadline")
    }

    /// 408 for a request whose text takes too long to become tokens.
    pub(crate) fn reading() -> Self {
        let message = "reading the prompt took too long; send a shorter one, or again later";
        Self::new(408, message).code("reading")
    }

    pub(crate) fn kind(&self) -> &'static str {
        TYPES
            .iter()
            .find(|(status, _)| *status == self.status)
            .map_or("internal_error", |(_, kind)| kind)
    }

    /// The body: `{"error":{"message","type","param","code"}}`, where the last two may be null.
    pub(crate) fn json(&self) -> String {
        let inner = Inner {
            message: &self.message,
            kind: self.kind(),
            param: self.param.as_deref(),
            code: self.code,
        };
        serde_json::to_string(&Envelope { error: inner }).unwrap_or_default()
    }

    pub(crate) fn response(&self) -> Response<Body> {
        let mut response = Response::new(whole(self.json()));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(method) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(method));
        }
        if self.has_code(PACKED) {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match &refusal {
            Refusal::Overloaded { retry_after_s, .. } => {
                Self::new(429, refusal.to_string()).code("queue_full").retry(*retry_after_s)
            }
            Refusal::Draining => Self::draining(),
            Refusal::Invalid { field, found, expected } => {
                let field = asked(field);
                Self::field(field, format!("`{field}` is {found}, expected {expected}"))
            }
        }
    }
}

/// What a field of the engine's is called in a request.
fn asked(field: &'static str) -> &'static str {
    match field {
        "max_depth" => "lathe.max_depth",
        "min_depth" => "lathe.min_depth",
        "mean_depth" => "lathe.mean_depth_budget",
        "threshold" => "lathe.threshold",
        "return_routed_experts" => "lathe.return_routed_experts",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests know fields of the engine by the path that they have there.
    #[test]
    fn fields_of_the_engine_are_named_as_in_a_request() {
        for (field, path) in [
            ("max_depth", "lathe.max_depth"),
            ("mean_depth", "lathe.mean_depth_budget"),
            ("return_routed_experts", "lathe.return_routed_experts"),
            ("prompt", "prompt"),
        ] {
            let (found, expected) = ("true".into(), "false: no experts".into());
            let error = ApiError::from(Refusal::Invalid { field, found, expected });
            assert_eq!(error.param.as_deref(), Some(path));
            assert!(error.message.starts_with(&format!("`{path}` is true")), "{}", error.message);
        }
    }
}
