//! The model with each of its adapters, by name: they come and go, and one that was let go stays
//! until the requests that began with it have ended.

use crate::backend::{AdapterInfo, AdapterRefusal, AdapterSource};
use crate::error::ApiError;
use crate::json::cut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// What answers a request: the model as it is, or with an adapter, which is kept for as long as
/// this lives.
#[derive(Debug)]
pub(crate) struct Answering {
    pub(crate) info: AdapterInfo,
    source: Option<Arc<dyn AdapterSource>>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(source) = self.source.as_ref().filter(|_| self.info.number > 0) {
            source.unload(self.info.number);
        }
    }
}

/// Everything that answers requests.
#[derive(Debug)]
pub(crate) struct AdapterRegistry {
    base: Arc<Answering>,
    adapters: RwLock<Vec<Arc<Answering>>>,
    source: Option<Arc<dyn AdapterSource>>,
    /// Held while one is loaded or let go.
    changing: Mutex<()>,
}

impl AdapterRegistry {
    pub(crate) fn new(
        base: AdapterInfo,
        adapters: Vec<AdapterInfo>,
        source: Option<Arc<dyn AdapterSource>>,
    ) -> Self {
        let answering = |info| Arc::new(Answering { info, source: None });
        Self {
            base: answering(base),
            adapters: RwLock::new(adapters.into_iter().map(answering).collect()),
            source,
            changing: Mutex::new(()),
        }
    }

    fn all(&self) -> Vec<Arc<Answering>> {
        self.adapters.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The names of all adapters, in the order in which they came.
    pub(crate) fn names(&self) -> Vec<String> {
        self.all().iter().map(|adapter| adapter.info.name.clone()).collect()
    }

    /// What answers under this name, if an adapter has it.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Answering>> {
        self.all().into_iter().find(|adapter| adapter.info.name == name)
    }

    /// What answers a request that asks for this name: the model as it is, unless an adapter has
    /// it.
    pub(crate) fn answering(&self, name: Option<&str>) -> Arc<Answering> {
        name.and_then(|name| self.find(name)).unwrap_or_else(|| self.base.clone())
    }

    /// Where adapters come from.
    ///
    /// # Errors
    /// 403 where they may come from nowhere.
    pub(crate) fn source(&self) -> Result<Arc<dyn AdapterSource>, ApiError> {
        self.source.clone().ok_or_else(|| {
            let message = "this server loads no adapters: start it with --adapter-root and the \
                           folder that they may come from";
            ApiError::new(403, message).code("adapters_disabled")
        })
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads an adapter under a name that is free, or in the place of the one that has it.
    pub(crate) fn load(&self, name: &str, path: &str, in_place: bool) -> Result<(), ApiError> {
        let source = self.source()?;
        let _changing = self.change();
        let before = self.find(name);
        if before.is_some() && !in_place {
            let message = format!(
                "`lora_name` is `{}`, which is loaded already: unload it, or set `load_inplace`",
                cut(name)
            );
            return Err(ApiError::field("lora_name", message));
        }
        let instead = before.map(|adapter| may_go(&adapter)).transpose()?;
        let (number, fingerprint) = source.load(path, instead).map_err(refused)?;
        tracing::info!(name, path, number, fingerprint, "an adapter was loaded");
        let info = AdapterInfo { name: name.to_owned(), number, fingerprint };
        let new = Arc::new(Answering { info, source: Some(source) });
        let mut adapters = self.adapters.write().unwrap_or_else(PoisonError::into_inner);
        match adapters.iter_mut().find(|adapter| adapter.info.name == name) {
            Some(known) => *known = new,
            None => adapters.push(new),
        }
        Ok(())
    }

    /// Lets an adapter go.
    pub(crate) fn unload(&self, name: &str) -> Result<(), ApiError> {
        self.source()?;
        let _changing = self.change();
        let mut adapters = self.adapters.write().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = adapters.iter().position(|adapter| adapter.info.name == name) else {
            let message = format!("no adapter `{}` is loaded", cut(name));
            return Err(ApiError::new(404, message).code("adapter_not_found"));
        };
        may_go(&adapters[at])?;
        let gone = adapters.remove(at);
        drop(adapters);
        tracing::info!(name, number = gone.info.number, "an adapter was let go");
        drop(gone);
        Ok(())
    }
}

/// The number of an adapter that clients loaded.
///
/// # Errors
/// One that the server was started with, which stays.
fn may_go(adapter: &Answering) -> Result<u32, ApiError> {
    if adapter.source.is_some() {
        return Ok(adapter.info.number);
    }
    let message = format!(
        "`lora_name` is `{}`, which the server was started with and keeps: expected the name of an \
         adapter that a client loaded",
        cut(&adapter.info.name)
    );
    Err(ApiError::field("lora_name", message))
}

fn refused(refusal: AdapterRefusal) -> ApiError {
    match refusal {
        AdapterRefusal::Missing(why) => ApiError::new(404, why).code("adapter_not_found"),
        AdapterRefusal::Unusable(why) => ApiError::field("lora_path", why).code("adapter_unusable"),
        AdapterRefusal::Full(why) => ApiError::new(400, why).code("adapter_limit"),
    }
}
