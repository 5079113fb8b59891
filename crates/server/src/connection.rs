//! Connections: accepted up to a bound, watched for silence, closed when their time is over.

use crate::metrics::Shed;
use crate::routes;
use crate::settings::ServerSettings;
use crate::state::{AppState, Phase, reached};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnStage {
    /// Between requests.
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
    close: Notify,
}

impl Connection {
    fn new() -> Self {
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

    fn heard(&self) {
        let mut now = self.now();
        if now.stage == ConnStage::Idle {
            now.stage = ConnStage::Head;
            now.since = Instant::now();
        }
    }

    fn wrote(&self, taken: bool) {
        let mut now = self.now();
        now.blocked = if taken { None } else { now.blocked.or_else(|| Some(Instant::now())) };
    }

    fn expired(&self, settings: &ServerSettings) -> Option<Expiry> {
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

    fn busy(&self) -> bool {
        self.now().stage == ConnStage::Busy
    }
}

enum Expiry {
    Silence,
    Reader,
}

/// All open connections.
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
    fn admit(&self, most: usize, id: u64, conn: &Arc<Connection>) -> bool {
        let mut open = self.open();
        let doomed = |conn: &Connection| conn.now().doomed;
        if open.len() >= most && open.values().filter(|conn| !doomed(conn)).count() >= most {
            let waits = |conn: &&Arc<Connection>| {
                let now = conn.now();
                !now.doomed && now.stage != ConnStage::Busy
            };
            let Some(oldest) = open.values().filter(waits).min_by_key(|conn| conn.now().since)
            else {
                return false;
            };
            oldest.now().doomed = true;
            oldest.close.notify_one();
        }
        open.insert(id, Arc::clone(conn));
        true
    }
}

/// Serves a connection until it ends, expires, or the server closes.
pub(crate) async fn converse(state: Arc<AppState>, registry: Arc<Registry>, stream: TcpStream) {
    let conn = Arc::new(Connection::new());
    let id = state.id();
    if !registry.admit(state.settings.connections, id, &conn) {
        state.metrics.shed(Shed::Connections);
        refuse(stream).await;
        return;
    }
    state.metrics.opened.add(1);
    let _leave = ConnectionGuard { state: Arc::clone(&state), registry, id };
    // Events are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let io = TokioIo::new(WatchedSocket { writer, conn: Arc::clone(&conn) });
    let (own, own_conn) = (Arc::clone(&state), Arc::clone(&conn));
    let service = service_fn(move |request| {
        let (state, conn) = (Arc::clone(&own), Arc::clone(&own_conn));
        async move { Ok::<_, Infallible>(routes::answer(state, conn, request).await) }
    });
    let mut builder = http1::Builder::new();
    // Times are kept here, because idle and reading connections have different ones.
    builder.header_read_timeout(None).max_buf_size(state.settings.head_bytes.max(64 << 10));
    builder.max_header_size(state.settings.head_bytes).half_close(false);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut phase = state.phase.subscribe();
    let mut ticker = tokio::time::interval(tick(&state.settings));
    let mut closing = false;
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = conn.close.notified() => return state.metrics.timeouts.add(1),
            () = reached(&mut phase, Phase::Closing), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = ticker.tick() => {
                match conn.expired(&state.settings) {
                    Some(Expiry::Silence) => return state.metrics.timeouts.add(1),
                    Some(Expiry::Reader) => return state.metrics.slow_readers.add(1),
                    None if conn.busy() && hung_up(&reader).await => return,
                    None => (),
                }
            }
        }
    }
}

fn tick(settings: &ServerSettings) -> Duration {
    let times =
        [settings.header_read, settings.body_read, settings.keep_alive, settings.slow_reader];
    let shortest = times.into_iter().min().unwrap_or(Duration::from_secs(1));
    (shortest / 4).clamp(Duration::from_millis(10), Duration::from_millis(500))
}

/// Whether the client has closed its side. The protocol's own check fails when more bytes follow
/// the request.
async fn hung_up(reader: &OwnedReadHalf) -> bool {
    let mut byte = [0];
    let stream: &TcpStream = reader.as_ref();
    matches!(tokio::time::timeout(Duration::ZERO, stream.peek(&mut byte)).await, Ok(Ok(0) | Err(_)))
}

struct ConnectionGuard {
    state: Arc<AppState>,
    registry: Arc<Registry>,
    id: u64,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.registry.open().remove(&self.id);
        self.state.metrics.closed.add(1);
    }
}

/// Tells a client that every connection is at work.
async fn refuse(stream: TcpStream) {
    let body = crate::error::ApiError::new(503, "all connections are at work; try again")
        .code("connections")
        .json();
    let head =
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n";
    let text = format!("{head}connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (mut reader, mut writer) = stream.into_split();
    let talk = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        writer.write_all(text.as_bytes()).await?;
        writer.shutdown().await?;
        // Closing with unread bytes would take the answer away from the client.
        let mut bytes = [0; 4096];
        while reader.read(&mut bytes).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), talk).await;
}

/// The socket, telling the watcher what comes and goes.
struct WatchedSocket {
    writer: OwnedWriteHalf,
    conn: Arc<Connection>,
}

impl AsyncRead for WatchedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream: &TcpStream = self.writer.as_ref();
        loop {
            ready!(stream.poll_read_ready(context))?;
            match stream.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    if count > 0 {
                        self.conn.heard();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for WatchedSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.writer).poll_write(context, bytes);
        self.conn.wrote(polled.is_ready());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.writer).poll_write_vectored(context, slices);
        self.conn.wrote(polled.is_ready());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.writer.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}
