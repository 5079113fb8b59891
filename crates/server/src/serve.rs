//! The server from its first connection to its last.

use crate::backend::ModelInfo;
use crate::connection::Registry;
use crate::converse::converse;
use crate::settings::{ServeError, ServerSettings};
use crate::state::{AppState, Phase};
use crate::token_text::ModelText;
use scheduler::Backend;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

/// Time for errors and last bytes to leave after the last request has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves until `shutdown` is ready. Then `/health` says so; after [`ServerSettings::lame_duck`] it
/// refuses new work, lets requests in flight go on for at most [`ServerSettings::drain`], and
/// returns. Must run on a runtime with timers and sockets
/// enabled.
///
/// # Errors
/// Settings or a model that cannot be served. Errors of single connections end only them.
pub async fn serve(
    listener: TcpListener,
    settings: ServerSettings,
    info: ModelInfo,
    text: ModelText,
    backend: Arc<dyn Backend>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let at = listener.local_addr()?.ip();
    let state = Arc::new(AppState::new(settings, info, text, backend, at)?);
    let registry = Arc::new(Registry::default());
    let mut tasks = JoinSet::new();
    {
        let end = async {
            shutdown.await;
            state.phase.send_replace(Phase::LameDuck);
            tokio::time::sleep(state.settings.lame_duck).await;
            drain(&state).await;
        };
        let mut end = pin!(end);
        loop {
            tokio::select! {
                () = end.as_mut() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tasks.spawn(converse(Arc::clone(&state), Arc::clone(&registry), stream));
                        while tasks.try_join_next().is_some() {}
                    }
                    Err(error) => {
                        // Out of descriptors, or a client that left already: neither is a reason to
                        // stop.
                        tracing::warn!(%error, "accept");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                },
            }
        }
    }
    drop(listener);
    state.phase.send_replace(Phase::Closing);
    let _ = timeout(FAREWELL, async { while tasks.join_next().await.is_some() {} }).await;
    tasks.shutdown().await;
    Ok(())
}

/// Waits until no request is in flight; those that take too long are ended.
async fn drain(state: &AppState) {
    let until = Instant::now() + state.settings.drain;
    state.phase.send_replace(Phase::Draining);
    state.backend.drain();
    let mut active = state.active.subscribe();
    if timeout_at(until, active.wait_for(|count| *count == 0)).await.is_err() {
        let (count, seconds) = (*active.borrow(), state.settings.drain.as_secs_f64());
        tracing::warn!("{count} requests did not end within {seconds} s and are ended (drain)");
        state.phase.send_replace(Phase::Ending);
        let _ = timeout(FAREWELL, active.wait_for(|count| *count == 0)).await;
    }
}
