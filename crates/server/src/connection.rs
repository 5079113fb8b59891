//! What is known of each connection: its stage, since when, and whether its time is over.

use crate::settings::ServerSettings;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnStage {
    /// No byte of a request has come since the last answer; [`ServerSettings::keep_alive`] counts.
    Idle,
    /// The head of a request is arriving.
    Head,
    /// Its body is arriving.
    Body,
    /// The request is worked on, or its answer is being sent.
    Busy,
}

struct ConnStatus {
    stage: ConnStage,
    since: Instant,
    /// Since when the client takes no more bytes.
    blocked: Option<Instant>,
    doomed: bool,
}

/// A connection as its watcher sees it.
pub(crate) struct Connection {
    now: Mutex<ConnStatus>,
    pub(crate) close: Notify,
}

impl Connection {
    pub(crate) fn new() -> Self {
        let now = ConnStatus {
            stage: ConnStage::Head,
            since: Instant::now(),
            blocked: None,
            doomed: false,
        };
        Self { now: Mutex::new(now), close: Notify::new() }
    }

    fn now(&self) -> MutexGuard<'_, ConnStatus> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection goes on to `stage`.
    pub(crate) fn enter(&self, stage: ConnStage) {
        let mut now = self.now();
        if now.stage != stage {
            now.stage = stage;
            now.since = Instant::now();
        }
    }

    pub(crate) fn heard(&self) {
        let mut now = self.now();
        if now.stage == ConnStage::Idle {
            now.stage = ConnStage::Head;
            now.since = Instant::now();
        }
    }

    pub(crate) fn wrote(&self, taken: bool) {
        let mut now = self.now();
        now.blocked = if taken { None } else { now.blocked.or_else(|| Some(Instant::now())) };
    }

    pub(crate) fn expired(&self, settings: &ServerSettings) -> Option<Expiry> {
        let now = self.now();
        if now.blocked.is_some_and(|since| since.elapsed() > settings.slow_reader) {
            return Some(Expiry::Reader);
        }
        let allowed = match now.stage {
            ConnStage::Idle => settings.keep_alive,
            ConnStage::Head => settings.header_read,
            // The request itself notices first and tells the client; this is for one that takes no
            // answer.
            ConnStage::Body => settings.body_read + Duration::from_secs(3),
            ConnStage::Busy => settings.deadline + settings.reading + settings.slow_reader,
        };
        (now.since.elapsed() > allowed).then_some(Expiry::Silence)
    }

    /// Whether it may be closed for another one: it has no whole request, and is not closing yet.
    fn waits(&self) -> bool {
        let now = self.now();
        !now.doomed && now.stage != ConnStage::Busy
    }

    pub(crate) fn busy(&self) -> bool {
        self.now().stage == ConnStage::Busy
    }
}

pub(crate) enum Expiry {
    Silence,
    Reader,
}

/// The open connections by id, at most as many as `admit` is told that are not closing.
#[derive(Default)]
pub(crate) struct Registry {
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
}

impl Registry {
    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for a connection, made if need be by closing the one that has waited longest without a
    /// whole request.
    pub(crate) fn admit(&self, most: usize, id: u64, conn: &Arc<Connection>) -> bool {
        let mut open = self.open();
        if open.len() >= most && open.values().filter(|conn| !conn.now().doomed).count() >= most {
            let waiting = open.values().filter(|conn| conn.waits());
            let Some(oldest) = waiting.min_by_key(|conn| conn.now().since) else {
                return false;
            };
            oldest.now().doomed = true;
            oldest.close.notify_one();
        }
        open.insert(id, Arc::clone(conn));
        true
    }

    pub(crate) fn remove(&self, id: u64) {
        self.open().remove(&id);
    }
}
