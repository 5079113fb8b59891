//! SIGINT and SIGTERM: the first asks the run to save and end, the second ends at once. In a chat
//! SIGINT stops the answer. A file that may not grow is an error and no signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

/// Lets a write beyond the largest size of a file fail, as one on a full disk does, instead of
/// ending the process in the middle of it.
pub(crate) fn outlive_full_files() {
    // Where the signal cannot be taken over, it ends the process as before.
    let _ = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Whether somebody asked to stop.
#[derive(Clone)]
pub(crate) struct Asked(Arc<AtomicBool>);

impl Asked {
    /// Takes over both signals of this process from here on.
    pub(crate) fn listen() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the second signal meets the flag that the first one set, and ends the
            // process. Whatever is being written then is a temporary folder; finished checkpoints
            // are whole.
            flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())
                .context("listening for signals")?;
            flag::register(signal, asked.clone()).context("listening for signals")?;
        }
        Ok(Self(asked))
    }

    /// True after the first signal.
    pub(crate) fn stop(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// SIGINT where somebody types: it ends the process while a line is awaited, and otherwise stops
/// what is going on.
pub(crate) struct Interrupt {
    waiting: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes over the signal of this process from here on.
    pub(crate) fn listen() -> Result<Self> {
        let (waiting, asked) = (Arc::default(), Arc::default());
        flag::register_conditional_shutdown(SIGINT, 128 + SIGINT, Arc::clone(&waiting))
            .context("listening for signals")?;
        flag::register(SIGINT, Arc::clone(&asked)).context("listening for signals")?;
        Ok(Self { waiting, asked })
    }

    /// Does `read`, during which the signal ends the process.
    pub(crate) fn waiting<T>(&self, read: impl FnOnce() -> T) -> T {
        self.asked.store(false, Ordering::Relaxed);
        self.waiting.store(true, Ordering::Relaxed);
        let done = read();
        self.waiting.store(false, Ordering::Relaxed);
        done
    }

    /// Whether the signal came since the last line.
    pub(crate) fn stop(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}
