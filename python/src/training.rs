//! `lathe.train`: a run that Python steps through. The run is that of `lathe train`, on a thread of
//! its own: behind each step it waits until Python asks for the next one.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::Result;
use opening::{recipe, runs};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Value, json};
use train::{Event, Recipe, Resume, Stop};

use crate::{errors, json, work};

/// What comes from the run's thread.
enum News {
    Opened { from: u64, steps: u64 },
    Step(Box<StepNumbers>),
    Validated(u64, Value),
    Saved(PathBuf),
    TraceLost(String),
    Ended(PyResult<Option<Value>>),
}

/// A step's record, with what the clock said.
struct StepNumbers {
    record: Value,
    tokens_per_second: f64,
    flops_per_second: f64,
}

/// An optimizer step of a run.
#[pyclass(frozen, module = "lathe")]
pub(crate) struct Step {
    /// Its number, from 1.
    #[pyo3(get)]
    step: u64,
    /// Cross-entropy, nats a prediction.
    #[pyo3(get)]
    loss: f64,
    /// Predictions per second of this step.
    #[pyo3(get)]
    tokens_per_second: f64,
    /// Floating-point operations per second, backward counted twice.
    #[pyo3(get)]
    flops_per_second: f64,
    record: Value,
}

#[pymethods]
impl Step {
    /// The step's row of log.jsonl as a dict: loss, total, gradient_norm, learning_rate, depths,
    /// ...
    #[getter]
    fn record<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        json::to_python(py, &self.record)
    }

    fn __repr__(&self) -> String {
        format!("<lathe.Step {}: loss {:.4}>", self.step, self.loss)
    }
}

/// What is known of the run so far.
#[derive(Default)]
struct Known {
    from: u64,
    steps: u64,
    step: u64,
    validations: Vec<(u64, Value)>,
    result: Option<Value>,
    checkpoint: Option<PathBuf>,
    /// The run waits for an answer to the step that it told last.
    asked: bool,
    ended: bool,
}

/// A run of training, an iterator of `Step`.
///
/// Behind each step the run waits until the next one is asked for; what a loop does not ask for is
/// not computed. Ending it early (`stop`, leaving a `with` block, dropping the last reference, or
/// Ctrl-C) saves a checkpoint, from which the same call continues.
#[pyclass(frozen, module = "lathe")]
pub(crate) struct Training {
    out: PathBuf,
    news: Mutex<Receiver<News>>,
    answer: SyncSender<Stop>,
    known: Mutex<Known>,
    thread: Mutex<Option<JoinHandle<()>>>,
    callbacks: [Option<Py<PyAny>>; 2],
}

/// Begins the run of a recipe in the folder `out`, or continues it: a `Training`.
///
/// `recipe` is a TOML file, `set` a dict of fields over it, such as {"train.steps": 100}. `resume`
/// is False to refuse a folder with checkpoints; `accept_changes` accepts changes of the recipe
/// that later steps notice. `on_validation(step, numbers)` and `on_save(path)` are called between
/// steps.
///
/// The same recipe, seed and folder give the files of `lathe train`, bit for bit, also through any
/// number of stops. Raises FileNotFoundError without the file, ValueError for a recipe that makes
/// no sense, LatheError for what stands in the way of a run.
#[pyfunction]
#[pyo3(name = "train", signature = (
    recipe, *, out, set = None, resume = true, accept_changes = false, on_validation = None,
    on_save = None
))]
pub(crate) fn begin(
    py: Python<'_>,
    recipe: PathBuf,
    out: PathBuf,
    set: Option<&Bound<'_, PyDict>>,
    resume: bool,
    accept_changes: bool,
    on_validation: Option<Py<PyAny>>,
    on_save: Option<Py<PyAny>>,
) -> PyResult<Training> {
    if accept_changes && !resume {
        return Err(errors::value(
            "accept_changes is True beside resume False, expected one of them: a run that is not \
             continued has no recipe to change",
        ));
    }
    let settings = settings(set)?;
    let text = recipe::file(&recipe).map_err(|error| errors::at(&recipe, &error))?;
    // What a recipe starts from may be imported, which takes a while and may wait for another
    // thread that needs the GIL.
    let read = work::off(py, &AtomicBool::new(false), || recipe::with(&text, &settings, "set"))?
        .map_err(|error| errors::refused(&error.context(format!("recipe {}", recipe.display()))))?;
    let how = match (resume, accept_changes) {
        (false, _) => Resume::Never,
        (true, true) => Resume::Changed,
        (true, false) => Resume::Auto,
    };
    let training = Training::start(read, out, how, [on_validation, on_save])?;
    // Opening fails here rather than at the first step.
    training.listen(py, |news| matches!(news, News::Opened { .. }))?;
    Ok(training)
}

/// Fields of a recipe with their values.
fn settings(set: Option<&Bound<'_, PyDict>>) -> PyResult<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for (key, value) in set.iter().flat_map(|set| set.iter()) {
        let key: String = key.extract().map_err(|_| {
            PyTypeError::new_err("set: expected texts as keys, such as \"train.steps\"")
        })?;
        let value = json::from_python(&format!("set[{key:?}]"), &value)?;
        if holds_null(&value) {
            return Err(errors::value(format!(
                "set[{key:?}] is or holds None, expected a value of the field; leave the key out \
                 for its default"
            )));
        }
        found.push((key, value));
    }
    Ok(found)
}

fn holds_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.iter().any(holds_null),
        Value::Object(table) => table.values().any(holds_null),
        _ => false,
    }
}

/// Trains, and tells everything to whoever listens; without a listener it saves and ends.
fn run(
    recipe: &Recipe,
    out: &std::path::Path,
    how: Resume,
    tell: &SyncSender<News>,
    answers: &Receiver<Stop>,
) -> Result<Option<Value>> {
    runs::check(recipe, out)?;
    let mut run = runs::opened(recipe, out, how)?;
    let (from, steps) = (run.trainer.step, run.trainer.recipe.train.steps);
    let _ = tell.send(News::Opened { from, steps });
    if answers.recv() != Ok(Stop::No) {
        // Nobody wants a step: what is on the disk stays as it is.
        return Ok(None);
    }
    let validation = runs::go(&mut run, &mut |event| {
        let news = match event {
            Event::Step { report, tokens_per_second, flops_per_second } => {
                let record = serde_json::to_value(report).unwrap_or(Value::Null);
                let numbers = StepNumbers { record, tokens_per_second, flops_per_second };
                if tell.send(News::Step(Box::new(numbers))).is_err() {
                    return Stop::Save;
                }
                return answers.recv().unwrap_or(Stop::Save);
            }
            Event::Validated { step, validation } => News::Validated(step, json!(validation)),
            Event::Saved { path } => News::Saved(path.to_path_buf()),
            Event::TraceLost { error } => News::TraceLost(error.to_string()),
        };
        let _ = tell.send(news);
        Stop::No
    })?;
    Ok(validation.map(|validation| json!(validation)))
}

impl Training {
    fn start(
        recipe: Recipe,
        out: PathBuf,
        how: Resume,
        callbacks: [Option<Py<PyAny>>; 2],
    ) -> PyResult<Self> {
        // Room for what comes between two steps, so that a run that nobody listens to comes to its
        // end.
        let (tell, news) = mpsc::sync_channel(64);
        let (answer, answers) = mpsc::sync_channel(1);
        let folder = out.clone();
        let thread = work::apart("lathe train", move || {
            let done = work::caught(|| run(&recipe, &folder, how, &tell, &answers));
            let ended = done.and_then(|done| done.map_err(|error| errors::failed(&error)));
            let _ = tell.send(News::Ended(ended));
        })?;
        Ok(Self {
            out,
            news: Mutex::new(news),
            answer,
            known: Mutex::default(),
            thread: Mutex::new(Some(thread)),
            callbacks,
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes news until one is `wanted`, or to the end of the run.
    fn listen(&self, py: Python<'_>, wanted: impl Fn(&News) -> bool) -> PyResult<Option<Step>> {
        loop {
            let Some(news) = work::next(py, &self.news)? else {
                self.known().ended = true;
                return Ok(None);
            };
            let enough = wanted(&news);
            match news {
                News::Opened { from, steps } => {
                    let mut known = self.known();
                    (known.from, known.step, known.steps, known.asked) = (from, from, steps, true);
                }
                News::Step(numbers) => {
                    let StepNumbers { record, tokens_per_second, flops_per_second } = *numbers;
                    let step = record["step"].as_u64().unwrap_or(0);
                    let loss = record["loss"].as_f64().unwrap_or(f64::NAN);
                    let mut known = self.known();
                    (known.step, known.asked) = (step, true);
                    if enough {
                        return Ok(Some(Step {
                            step,
                            loss,
                            tokens_per_second,
                            flops_per_second,
                            record,
                        }));
                    }
                }
                News::Validated(step, numbers) => {
                    if let Some(callback) = &self.callbacks[0] {
                        callback.call1(py, (step, json::to_python(py, &numbers)?))?;
                    }
                    self.known().validations.push((step, numbers));
                }
                News::Saved(path) => {
                    self.known().checkpoint = Some(path.clone());
                    if let Some(callback) = &self.callbacks[1] {
                        callback.call1(py, (path,))?;
                    }
                }
                News::TraceLost(error) => opening::notes::note(format!("a trace is lost: {error}")),
                News::Ended(ended) => {
                    self.known().ended = true;
                    self.known().result = ended?;
                    return Ok(None);
                }
            }
            if enough {
                return Ok(None);
            }
        }
    }

    /// Answers the step that was told last, if it waits for an answer.
    fn reply(&self, stop: Stop) {
        if std::mem::take(&mut self.known().asked) {
            let _ = self.answer.try_send(stop);
        }
    }

    /// Saves and waits for the end.
    fn end(&self, py: Python<'_>) -> PyResult<()> {
        while !self.known().ended {
            self.reply(Stop::Save);
            self.listen(py, |news| matches!(news, News::Step(_)))?;
        }
        Ok(())
    }
}

#[pymethods]
impl Training {
    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Step>> {
        if self.known().ended {
            return Ok(None);
        }
        self.reply(Stop::No);
        let next = self.listen(py, |news| matches!(news, News::Step(_)));
        if let Err(error) = next {
            // What was raised, Ctrl-C or by a callback, ends the run as the first Ctrl-C of the
            // command line does; a second one while it saves is raised at once.
            self.end(py)?;
            return Err(error);
        }
        next
    }

    /// Saves a checkpoint and ends the run; nothing where it has ended. The same call of
    /// `lathe.train` continues it.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.end(py)
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.end(py)
    }

    /// The folder of the run.
    #[getter]
    fn out(&self) -> PathBuf {
        self.out.clone()
    }

    /// Steps that are done.
    #[getter]
    fn step(&self) -> u64 {
        self.known().step
    }

    /// Steps of the whole run.
    #[getter]
    fn steps(&self) -> u64 {
        self.known().steps
    }

    /// The step that it continued from; 0 for a run that began here.
    #[getter]
    fn resumed_from(&self) -> u64 {
        self.known().from
    }

    /// Whether the run has ended, at its last step or before.
    #[getter]
    fn ended(&self) -> bool {
        self.known().ended
    }

    /// The checkpoint that was saved last by this object, or None.
    #[getter]
    fn checkpoint(&self) -> Option<PathBuf> {
        self.known().checkpoint.clone()
    }

    /// Validations so far, as pairs of a step and a dict with "training" and "causal".
    #[getter]
    fn validations<'py>(&self, py: Python<'py>) -> PyResult<Vec<(u64, Bound<'py, PyAny>)>> {
        let found = self.known().validations.clone();
        found.iter().map(|(step, numbers)| Ok((*step, json::to_python(py, numbers)?))).collect()
    }

    /// The validation of the last step, once the run came to its end; None before.
    #[getter]
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let result = self.known().result.clone();
        result.map(|result| json::to_python(py, &result)).transpose()
    }

    fn __repr__(&self) -> String {
        let known = self.known();
        format!("<lathe.Training {}: step {} of {}>", self.out.display(), known.step, known.steps)
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        // Whether it waits for an answer or will: the next one is to save.
        let _ = self.answer.try_send(Stop::Save);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // News that nobody takes: its thread finds the channel closed.
        let (_, none) = mpsc::sync_channel(1);
        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = none;
        if let Some(thread) = thread {
            // It saves, and what it has to say needs the GIL.
            Python::try_attach(|py| py.detach(|| drop(thread.join())));
        }
    }
}
