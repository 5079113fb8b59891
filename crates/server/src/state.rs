//! What all requests share.

use crate::answering::AdapterRegistry;
use crate::backend::{AdapterInfo, ModelInfo};
use crate::descriptors;
use crate::error::ApiError;
use crate::metrics::{Metrics, Shed};
use crate::origin::HostRule;
use crate::random_ids::RandomIds;
use crate::schema::RequestBounds;
use crate::settings::{ServeError, ServerSettings};
use crate::template_host::{Failure, TemplateHost};
use crate::token_text::{ModelText, TokenText};
use scheduler::Backend;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Semaphore, watch};

/// One permit for each thread that may read a request. Kinds of requests do not wait for each
/// other: what is slow in one of them may be what somebody wrote to be slow.
pub(crate) struct Readers {
    pub(crate) prompts: Arc<Semaphore>,
    pub(crate) chats: Arc<Semaphore>,
    pub(crate) tokenizing: Arc<Semaphore>,
}

impl Readers {
    fn new(settings: &ServerSettings) -> Self {
        let queue = |permits| Arc::new(Semaphore::new(permits));
        Self {
            prompts: queue(settings.readers),
            chats: queue(settings.readers),
            tokenizing: queue(settings.tokenizing),
        }
    }
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// Work is welcome still, but `/health` and every answer send clients away.
    LameDuck,
    /// No new work; what is in flight goes on.
    Draining,
    /// What is in flight ends with an error.
    Ending,
    /// Connections close after the answer they are writing.
    Closing,
}

pub(crate) struct AppState {
    pub(crate) settings: ServerSettings,
    pub(crate) hosts: HostRule,
    /// Connections that may be open.
    pub(crate) connections: usize,
    /// One permit for each connection that is told that there is no room.
    pub(crate) refusals: Arc<Semaphore>,
    pub(crate) bounds: RequestBounds,
    pub(crate) info: ModelInfo,
    pub(crate) adapters: AdapterRegistry,
    pub(crate) token_text: TokenText,
    pub(crate) template: Option<Result<TemplateHost, Failure>>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) metrics: Metrics,
    pub(crate) random: RandomIds,
    pub(crate) phase: watch::Sender<Phase>,
    /// Requests accepted and not yet over.
    pub(crate) active: watch::Sender<usize>,
    pub(crate) readers: Readers,
    ids: AtomicU64,
}

impl AppState {
    pub(crate) fn new(
        settings: ServerSettings,
        info: ModelInfo,
        text: ModelText,
        backend: Arc<dyn Backend>,
        at: IpAddr,
    ) -> Result<Self, ServeError> {
        settings.check()?;
        check_model(&info, &text)?;
        let limits = settings.limits.clone();
        let template =
            text.special.chat_template.as_deref().map(|source| {
                TemplateHost::start(source, &settings.template_program, &limits, false)
            });
        if let Some(Err(error)) = &template {
            tracing::warn!(%error, "the chat template cannot be used");
        }
        let bounds = RequestBounds {
            context: info.context,
            vocab: info.vocab,
            recursions: info.recursions,
            begins: text.special.bos.is_some(),
            strict: settings.strict,
            limits,
        };
        let base =
            AdapterInfo { name: info.id.clone(), number: 0, fingerprint: info.fingerprint.clone() };
        let source = settings.adapter_source.clone();
        Ok(Self {
            adapters: AdapterRegistry::new(base, info.adapters.clone(), source),
            connections: descriptors::connections(settings.connections),
            refusals: Arc::new(Semaphore::new(descriptors::REFUSALS)),
            hosts: HostRule::new(&settings.allow_hosts, at, !settings.api_keys.is_empty()),
            bounds,
            template,
            token_text: TokenText::new(text),
            backend,
            metrics: Metrics::default(),
            random: RandomIds::new(),
            phase: watch::Sender::new(Phase::Serving),
            active: watch::Sender::new(0),
            readers: Readers::new(&settings),
            ids: AtomicU64::new(1),
            settings,
            info,
        })
    }

    /// An id that no other request of this server has.
    pub(crate) fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn knows_model(&self, name: &str) -> bool {
        let is_own = self.info.id == name || self.info.aliases.iter().any(|known| known == name);
        is_own || self.adapters.find(name).is_some()
    }

    /// Whether new requests are refused.
    pub(crate) fn draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// Whether clients should ask another server.
    pub(crate) fn leaving(&self) -> bool {
        *self.phase.borrow() > Phase::Serving
    }

    /// Counts a request as in flight until the returned value is dropped.
    ///
    /// # Errors
    /// 503 when the server is on its way out.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<ActiveRequest, ApiError> {
        self.active.send_modify(|count| *count += 1);
        let active = ActiveRequest(Arc::clone(self));
        if self.draining() {
            self.metrics.shed(Shed::Draining);
            return Err(ApiError::draining());
        }
        Ok(active)
    }
}

/// Ready when the server has come as far as `phase`.
pub(crate) async fn reached(now: &mut watch::Receiver<Phase>, phase: Phase) {
    // An error means that the server is gone altogether.
    let _ = now.wait_for(|now| *now >= phase).await;
}

/// A request in flight.
pub(crate) struct ActiveRequest(Arc<AppState>);

impl ActiveRequest {
    /// One more part of a request that was accepted, which goes on where new ones are refused.
    pub(crate) fn again(&self) -> Self {
        self.0.active.send_modify(|count| *count += 1);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.send_modify(|count| *count -= 1);
    }
}

fn check_model(info: &ModelInfo, text: &ModelText) -> Result<(), ServeError> {
    if info.context == 0 {
        return Err(wrong_model("context", "0", "at least 1"));
    }
    if info.vocab == 0 {
        return Err(wrong_model("vocabulary", "empty", "at least 1 token"));
    }
    if info.recursions == 0 {
        return Err(wrong_model("number of recursions", "0", "at least 1"));
    }
    if info.id.is_empty() {
        return Err(wrong_model("id", "empty", "a name"));
    }
    let specials = text.special.bos.iter().chain(&text.special.eos);
    if let Some(id) = specials.into_iter().find(|&&id| id as usize >= info.vocab) {
        let expected = format!("an id below {}", info.vocab);
        return Err(wrong_model("begin or end token", id.to_string(), expected));
    }
    if text.tokenizer.vocab_size() > info.vocab {
        let found = format!("{} tokens", text.tokenizer.vocab_size());
        let expected = format!("at most the model's {} tokens", info.vocab);
        return Err(wrong_model("tokenizer", found, expected));
    }
    Ok(())
}

fn wrong_model(
    name: &'static str,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> ServeError {
    ServeError::Model { name, found: found.into(), expected: expected.into() }
}
