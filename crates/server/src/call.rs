//! A request as its handler sees it.

use crate::connection::Connection;
use crate::state::AppState;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::time::Instant;

/// Everything a handler may ask about its request.
pub(crate) struct Call {
    pub(crate) state: Arc<AppState>,
    pub(crate) conn: Arc<Connection>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Incoming,
    pub(crate) begun: Instant,
    /// The argument in the path.
    pub(crate) rest: String,
    /// Overrides the status that is counted, when an answer fails after its head was sent.
    pub(crate) status: Arc<AtomicU16>,
}
