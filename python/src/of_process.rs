//! What belongs to one process: threads and other processes do not come along where Python forks.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

/// A value that is made when it is first needed, and again in a process that forked from the one
/// that made it.
pub(crate) struct OfProcess<T> {
    /// The value, and the process that made it.
    made: Mutex<Option<(u32, Arc<T>)>>,
}

impl<T> OfProcess<T> {
    /// Nothing is made yet.
    pub(crate) const fn new() -> Self {
        Self { made: Mutex::new(None) }
    }

    /// # Errors
    /// What `make` says.
    pub(crate) fn get_or_make(&self, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let here = std::process::id();
        if let Some((process, value)) = made.as_ref()
            && *process == here
        {
            return Ok(value.clone());
        }
        let value = Arc::new(make()?);
        // What another process uses is not ended here.
        std::mem::forget(made.replace((here, value.clone())));
        Ok(value)
    }

    /// Whether this process has made it.
    pub(crate) fn is_made(&self) -> bool {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.as_ref().is_some_and(|(process, _)| *process == std::process::id())
    }
}
