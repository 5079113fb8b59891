//! Connections served: accepted up to a bound, watched for silence, closed when their time is over.

use crate::connection::{Connection, Expiry, HalfClosed, Registry};
use crate::dispatch;
use crate::error::ApiError;
use crate::metrics::Shed;
use crate::settings::ServerSettings;
use crate::state::{AppState, Phase, reached};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Serves a connection until it ends, expires, or the server closes.
pub(crate) async fn converse(state: Arc<AppState>, registry: Arc<Registry>, stream: TcpStream) {
    let conn = Arc::new(Connection::new());
    let id = state.id();
    if !registry.admit(state.connections, id, &conn) {
        state.metrics.shed(Shed::Connections);
        if let Ok(_permit) = Arc::clone(&state.refusals).try_acquire_owned() {
            refuse(stream).await;
        }
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
        async move { Ok::<_, Infallible>(dispatch::answer(state, conn, request).await) }
    });
    let mut builder = http1::Builder::new();
    // Times are kept here, because idle and reading connections have different ones.
    builder.header_read_timeout(None).max_buf_size(state.settings.head_bytes.max(64 << 10));
    // A client may close its side when it has asked all; whether it is gone is found out below.
    builder.max_header_size(state.settings.head_bytes).half_close(true);
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
                    None if conn.busy() && is_gone(&reader, &conn).await => return,
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

/// Says that the request was taken; clients read over it and wait for the answer.
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Whether the client has left the connection. One that has closed its side may still read: where
/// the answer has not begun, it is sent an interim one, and is gone when its machine refuses that.
async fn is_gone(reader: &OwnedReadHalf, conn: &Connection) -> bool {
    let stream: &TcpStream = reader.as_ref();
    if !matches!(stream.take_error(), Ok(None)) {
        return true;
    }
    let ready = stream.ready(Interest::READABLE | Interest::WRITABLE);
    let Ok(Ok(ready)) = tokio::time::timeout(Duration::ZERO, ready).await else { return false };
    if ready.is_write_closed() {
        return true;
    }
    ready.is_read_closed()
        && match conn.half_closed() {
            HalfClosed::Leave => true,
            HalfClosed::Wait => false,
            // Nothing else is on its way, so that it fits whole into what the system holds.
            HalfClosed::Ask => {
                !matches!(stream.try_write(INTERIM), Ok(count) if count == INTERIM.len())
            }
        }
}

struct ConnectionGuard {
    state: Arc<AppState>,
    registry: Arc<Registry>,
    id: u64,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.registry.remove(self.id);
        self.state.metrics.closed.add(1);
    }
}

/// Tells a client that every connection is at work.
async fn refuse(stream: TcpStream) {
    let body =
        ApiError::new(503, "all connections are at work; try again").code("connections").json();
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
