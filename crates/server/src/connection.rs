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

/// What a client has of the answer to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// Nothing yet; the client understands interim answers (HTTP/1.1).
    Nothing,
    /// Nothing yet, and nothing can be sent before the answer (HTTP/1.0).
    NothingPlain,
    /// Its head at least is on the way.
    Begun,
}

/// What is done about a client that has closed its side of the connection while it is owed an
/// answer: it may wait for the answer, or be gone, which the network does not tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HalfClosed {
    /// It is taken for gone.
    Leave,
    /// What is sent to it will tell.
    Wait,
    /// An interim answer is sent, to which the machine of one that is gone replies with a reset.
    Ask,
}

/// An interim answer is sent again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(5);

struct ConnStatus {
    stage: ConnStage,
    since: Instant,
    /// Since when the client takes no more bytes.
    blocked: Option<Instant>,
    answered: Answered,
    /// When an interim answer was sent last.
    asked: Option<Instant>,
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
            answered: Answered::Begun,
            asked: None,
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

    pub(crate) fn has_answered(&self, answered: Answered) {
        let mut now = self.now();
        now.answered = answered;
        now.asked = None;
    }

    /// What is to be done now about a client that has closed its side.
    pub(crate) fn half_closed(&self) -> HalfClosed {
        let mut now = self.now();
        let asked = now.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN);
        match now.answered {
            Answered::NothingPlain => HalfClosed::Leave,
            Answered::Begun => HalfClosed::Wait,
            // The end of the answer before may still be on its way.
            Answered::Nothing if asked || now.blocked.is_some() => HalfClosed::Wait,
            Answered::Nothing => {
                now.asked = Some(Instant::now());
                HalfClosed::Ask
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_closed_its_side_is_asked_once_in_a_while_where_that_is_possible() {
        let conn = Connection::new();
        conn.has_answered(Answered::NothingPlain);
        assert_eq!(conn.half_closed(), HalfClosed::Leave);
        conn.has_answered(Answered::Nothing);
        conn.wrote(false);
        assert_eq!(conn.half_closed(), HalfClosed::Wait, "something is on its way");
        conn.wrote(true);
        assert_eq!(conn.half_closed(), HalfClosed::Ask);
        assert_eq!(conn.half_closed(), HalfClosed::Wait, "it was asked a moment ago");
        let asked = conn.now().asked.map(|asked| asked.checked_sub(ASK_AGAIN));
        conn.now().asked = asked.flatten();
        assert_eq!(conn.half_closed(), HalfClosed::Ask);
        conn.has_answered(Answered::Begun);
        assert_eq!(conn.half_closed(), HalfClosed::Wait);
    }
}
