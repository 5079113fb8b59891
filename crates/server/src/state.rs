//! What all requests share.

use crate::backend::{Backend, Facts};
use crate::error::ApiError;
use crate::fields::Bounds;
use crate::lexicon::{Lexicon, Text};
use crate::metrics::{Metrics, Shed};
use crate::random::Random;
use crate::settings::{ServeError, Settings};
use crate::template::Template;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Semaphore, watch};

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// No new work; what is in flight goes on.
    Draining,
    /// What is in flight ends with an error.
    Ending,
    /// Connections close after the answer they are writing.
    Closing,
}

pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) bounds: Bounds,
    pub(crate) facts: Facts,
    pub(crate) lexicon: Lexicon,
    pub(crate) template: Option<Result<Template, String>>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) metrics: Metrics,
    pub(crate) random: Random,
    pub(crate) phase: watch::Sender<Phase>,
    /// Requests accepted and not yet over.
    pub(crate) active: watch::Sender<usize>,
    /// One permit for each thread that may read a prompt.
    pub(crate) readers: Arc<Semaphore>,
    ids: AtomicU64,
}

impl State {
    pub(crate) fn new(
        settings: Settings,
        facts: Facts,
        text: Text,
        backend: Arc<dyn Backend>,
    ) -> Result<Self, ServeError> {
        settings.check()?;
        check_model(&facts, &text)?;
        let limits = settings.limits.clone();
        let template = text
            .chat_template
            .as_deref()
            .map(|t| Template::new(t, limits.template_fuel, limits.template_bytes));
        let bounds = Bounds {
            context: facts.context,
            vocab: facts.vocab,
            recursions: facts.recursions,
            strict: settings.strict,
            limits,
        };
        Ok(Self {
            bounds,
            template,
            lexicon: Lexicon::new(text),
            backend,
            metrics: Metrics::default(),
            random: Random::new(),
            phase: watch::Sender::new(Phase::Serving),
            active: watch::Sender::new(0),
            readers: Arc::new(Semaphore::new(settings.readers)),
            ids: AtomicU64::new(1),
            settings,
            facts,
        })
    }

    /// An id that no other request of this server has.
    pub(crate) fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn knows_model(&self, name: &str) -> bool {
        self.facts.id == name || self.facts.aliases.iter().any(|alias| alias == name)
    }

    pub(crate) fn draining(&self) -> bool {
        *self.phase.borrow() > Phase::Serving
    }

    /// Counts a request as in flight until the returned value is dropped.
    ///
    /// # Errors
    /// 503 when the server is on its way out.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Active, ApiError> {
        self.active.send_modify(|count| *count += 1);
        let active = Active(Arc::clone(self));
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
pub(crate) struct Active(Arc<State>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.send_modify(|count| *count -= 1);
    }
}

fn check_model(facts: &Facts, text: &Text) -> Result<(), ServeError> {
    let problem = |name, found: String, expected: &str| {
        Err(ServeError::Model { name, found, expected: expected.to_owned() })
    };
    if facts.context == 0 {
        return problem("context", "0".to_owned(), "at least 1");
    }
    if facts.vocab == 0 {
        return problem("vocabulary", "empty".to_owned(), "at least 1 token");
    }
    if facts.recursions == 0 {
        return problem("number of recursions", "0".to_owned(), "at least 1");
    }
    if facts.id.is_empty() {
        return problem("id", "empty".to_owned(), "a name");
    }
    let specials = text.bos.iter().chain(&text.eos);
    if let Some(id) = specials.into_iter().find(|&&id| id as usize >= facts.vocab) {
        return problem(
            "begin or end token",
            id.to_string(),
            &format!("an id below {}", facts.vocab),
        );
    }
    if text.tokenizer.vocab_size() > facts.vocab {
        let found = format!("{} tokens", text.tokenizer.vocab_size());
        return problem("tokenizer", found, &format!("at most the model's {} tokens", facts.vocab));
    }
    Ok(())
}
