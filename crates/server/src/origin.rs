//! Where a request comes from: the name under which the server was asked, and the page that asks.

use crate::error::ApiError;
use crate::json::cut;
use crate::response::{Body, whole};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode, Uri, Version};
use std::net::{IpAddr, Ipv6Addr};

/// What any header a browser may be allowed to send could say.
const ANY: &str = "*";

/// The names under which a server is asked.
///
/// A page of any site can ask a server at a loopback address under a name of its own, by letting
/// that name point there. The name then stands in `Host`, and no address does.
pub(crate) enum HostRule {
    /// Whatever name is asked will do.
    Open,
    /// Addresses, `localhost`, and these names.
    Named(Vec<String>),
}

impl HostRule {
    /// The rule of a server that listens at `at`. One that asks for a key, or can be reached from
    /// elsewhere in any case, checks names only if it was told some.
    pub(crate) fn new(names: &[String], at: IpAddr, keys: bool) -> Self {
        let any = names.iter().any(|name| name == ANY);
        if any || (names.is_empty() && (keys || !at.is_loopback())) {
            return Self::Open;
        }
        Self::Named(names.iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// # Errors
    /// 400 for a request without one name, 403 for a name that is not this server's.
    pub(crate) fn check(
        &self,
        version: Version,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), ApiError> {
        let mut values = headers.get_all(header::HOST).iter();
        let named = match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().unwrap_or("?"),
            // Checks of older balancers name no host, and no browser speaks as they do.
            (None, None) if version < Version::HTTP_11 => return Ok(()),
            (found, _) => {
                let found = if found.is_some() { "several" } else { "none" };
                let message = format!("the request has {found} `Host` headers, expected one");
                return Err(ApiError::new(400, message).code("host"));
            }
        };
        // Where the target holds a name, that one counts.
        let asked = uri.authority().map_or(named, |authority| authority.as_str());
        let Some(host) = host_of(asked) else {
            let message = format!("`Host` is `{}`, expected NAME or NAME:PORT", cut(asked));
            return Err(ApiError::new(400, message).code("host"));
        };
        match self {
            Self::Named(names) if !is_own(&host) && !names.contains(&host) => {
                let host = cut(&host);
                let message = format!(
                    "`{host}` is no name of this server, which answers on this machine alone; \
                     ask it by its address, or start it with --allow-host {host}"
                );
                Err(ApiError::new(403, message).code("host"))
            }
            _ => Ok(()),
        }
    }
}

/// The name without its port, in lower case; `None` for what is no name.
fn host_of(text: &str) -> Option<String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inner, port) = rest.split_once(']')?;
            inner.parse::<Ipv6Addr>().ok()?;
            (inner, port.strip_prefix(':').or(Some("").filter(|_| port.is_empty()))?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let port_fits = port.is_empty() || port.parse::<u16>().is_ok();
    let host = host.strip_suffix('.').unwrap_or(host);
    (port_fits && !host.is_empty() && host.chars().all(is_name_char))
        .then(|| host.to_ascii_lowercase())
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._:%~".contains(c)
}

/// An address, or the name that every machine has for itself.
fn is_own(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok()
}

/// A name for `--allow-host`.
pub(crate) fn is_host(name: &str) -> bool {
    name == ANY || host_of(name).is_some_and(|host| host == name.to_ascii_lowercase())
}

/// An origin for `--cors-origin`: `*`, or scheme, name and port as browsers write them.
pub(crate) fn is_origin(origin: &str) -> bool {
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    origin == ANY || rest.is_some_and(|rest| host_of(rest).is_some() && !rest.ends_with('.'))
}

/// The value of `Access-Control-Allow-Origin` for the page that asks, if its site is among
/// `origins`.
pub(crate) fn welcome(origins: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    if origins.iter().any(|origin| origin == ANY) {
        return Some(HeaderValue::from_static(ANY));
    }
    let asked = headers.get(header::ORIGIN)?;
    origins.iter().any(|origin| asked.as_bytes() == origin.as_bytes()).then(|| asked.clone())
}

/// Whether a browser asks what a page of another site may send.
pub(crate) fn is_preflight(method: &str, headers: &HeaderMap) -> bool {
    method == "OPTIONS"
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a browser that asks beforehand, for a site that is welcome.
pub(crate) fn preflight(method: &'static str, headers: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(whole(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let answers = response.headers_mut();
    answers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(method));
    answers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if let Some(asked) = asked {
        answers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
    }
    response
}

/// Headers that let a page of a welcome site read the answer.
pub(crate) fn open_to(origin: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let names = HeaderValue::from_static("x-request-id, x-lathe-ignored, retry-after");
    headers.insert(HeaderName::from_static("access-control-expose-headers"), names);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_ports() {
        for (text, host) in [
            ("localhost", Some("localhost")),
            ("LocalHost:8080", Some("localhost")),
            ("localhost.", Some("localhost")),
            ("127.0.0.1:80", Some("127.0.0.1")),
            ("[::1]:80", Some("::1")),
            ("[::1]", Some("::1")),
            ("", None),
            (":80", None),
            ("a:b", None),
            ("a:99999", None),
            ("a@b", None),
            ("a b", None),
            ("a/b", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[a]:1", None),
        ] {
            assert_eq!(host_of(text).as_deref(), host, "{text}");
        }
    }

    #[test]
    fn settings_are_names_and_origins() {
        assert!(is_host("lathe.example") && is_host("*") && is_host("A-1"));
        assert!(!is_host("lathe:80") && !is_host("http://a") && !is_host(""));
        assert!(is_origin("https://a.example") && is_origin("http://localhost:3000"));
        assert!(is_origin("*"));
        for bad in ["a.example", "https://a.example/", "https://", "null", "ftp://a", ""] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
