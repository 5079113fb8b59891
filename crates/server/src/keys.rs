//! Who may ask: keys as bearer tokens, or as the password of a browser; compared in constant time.

use crate::error::ApiError;
use hyper::header::{self, HeaderMap};
use subtle::ConstantTimeEq;

/// Whether the request brings one of `keys`; always, if there are none.
pub(crate) fn allowed(keys: &[String], headers: &HeaderMap) -> bool {
    if keys.is_empty() {
        return true;
    }
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let Some((scheme, rest)) = value.to_str().ok().and_then(|text| text.split_once(' ')) else {
        return false;
    };
    let brought = match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.trim().as_bytes().to_vec()),
        "basic" => password(rest.trim()),
        _ => None,
    };
    let Some(brought) = brought else {
        return false;
    };
    // Every key is compared, so that time tells nothing about which one came close.
    keys.iter().fold(false, |found, key| found | bool::from(key.as_bytes().ct_eq(&brought)))
}

pub(crate) fn refusal() -> ApiError {
    let message =
        "a key is needed: send the header `Authorization: Bearer KEY` with a key of this server";
    ApiError::new(401, message).code("invalid_api_key")
}

/// What follows the first colon of a base64 text.
fn password(text: &str) -> Option<Vec<u8>> {
    // What is left over in the last character, and whether it is filled up, is the client's affair.
    let form = base64::STANDARD_NO_PAD.decode_allow_trailing_bits(true);
    let plain = base64::decode_config(text.trim_end_matches('='), form).ok()?;
    let colon = plain.iter().position(|&byte| byte == b':')?;
    Some(plain[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_open_and_nothing_else_does() {
        let keys = ["sk-one".to_owned(), "two".to_owned()];
        let cases = [
            (None, false),
            (Some("Bearer sk-one"), true),
            (Some("bearer two"), true),
            (Some("Bearer"), false),
            (Some("Bearer "), false),
            (Some("Bearer sk-on"), false),
            (Some("Bearer sk-onee"), false),
            (Some("Basic dXNlcjpzay1vbmU="), true),
            (Some("Basic OnR3bw=="), true),
            (Some("Basic dXNlcjpubw=="), false),
            (Some("Basic !!!"), false),
            (Some("sk-one"), false),
        ];
        for (value, expected) in cases {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(allowed(&keys, &headers), expected, "{value:?}");
            assert!(allowed(&[], &headers));
        }
        let mut twice = HeaderMap::new();
        twice.append(header::AUTHORIZATION, "Bearer no".parse().unwrap());
        twice.append(header::AUTHORIZATION, "Bearer two".parse().unwrap());
        assert!(!allowed(&keys, &twice));
    }
}
