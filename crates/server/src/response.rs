//! Bodies of answers: bytes at once, or the events of a stream.

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use std::convert::Infallible;

/// Either kind; neither fails while it is sent.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is known as a whole, so that its length goes into the header.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}
