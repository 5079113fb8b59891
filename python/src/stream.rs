//! `lathe.Stream`: pieces of a text as they come, from a thread of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;

use crate::answers::{Generation, Piece};
use crate::opened::Opened;
use crate::request::Request;
use crate::{errors, work};

/// What comes from the thread.
enum News {
    Piece(Piece),
    Ended(PyResult<Generation>),
}

/// An iterator of `Piece`. The whole `Generation` is its `result` once it is through.
#[pyclass(frozen, module = "lathe")]
pub(crate) struct Stream {
    news: Mutex<Receiver<News>>,
    stop: Arc<AtomicBool>,
    result: Mutex<Option<Py<Generation>>>,
}

impl Stream {
    /// Starts to compute the first piece; each later one when the one before it was taken.
    pub(crate) fn start(model: Arc<Opened>, request: Request) -> PyResult<Self> {
        let (tell, news) = mpsc::sync_channel(0);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        work::apart("lathe stream", move || {
            let answer = work::caught(|| {
                request.run(&model, &stopped, &mut |piece| {
                    tell.send(News::Piece(Piece::new(piece.token, piece.text))).is_ok()
                })
            });
            let ended = answer.and_then(|answer| answer.map_err(|error| errors::asked(&error)));
            // Nobody may wait for it any more.
            let _ = tell.send(News::Ended(ended.map(Generation::from)));
        })?;
        Ok(Self { news: Mutex::new(news), stop, result: Mutex::default() })
    }
}

#[pymethods]
impl Stream {
    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Piece>> {
        match work::next(py, &self.news) {
            Ok(Some(News::Piece(piece))) => Ok(Some(piece)),
            Ok(Some(News::Ended(ended))) => {
                let ended = Py::new(py, ended?)?;
                *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(heard) => {
                self.stop.store(true, Ordering::Relaxed);
                Err(heard)
            }
        }
    }

    /// Ends the generation after the pass that runs.
    fn close(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The whole `Generation`; None before the last piece was taken.
    #[getter]
    fn result(&self, py: Python<'_>) -> Option<Py<Generation>> {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        result.as_ref().map(|result| result.clone_ref(py))
    }
}
