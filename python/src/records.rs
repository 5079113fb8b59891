//! What runs and routers wrote: logs as rows, traces as columns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use numpy::{IntoPyArray, PyArray1, PyUntypedArrayMethods};
use opening::runs;
use pyo3::prelude::*;
use serde_json::Value;
use trace::Trace;

use crate::{errors, json, work};

/// The rows of a run's log, as dicts.
#[pyfunction]
pub(crate) fn _read_log(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyAny>> {
    let rows = py.detach(|| runs::read(&path)).map_err(|error| errors::at(&path, &error))?;
    json::to_python(py, &Value::Array(rows.into_iter().map(Value::Object).collect()))
}

/// Decisions of routers as columns, one row for each decision about a token.
///
/// `targets`, `weights` and `dropped` are lists: those of row i are entries `starts[i]` to
/// `starts[i + 1]` of the values. Arrays own their memory: nothing is copied again.
#[pyclass(frozen, get_all, module = "lathe")]
pub(crate) struct RoutingTrace {
    /// int64 [rows]: the optimizer step, from 1; -1 outside of training.
    step: Py<PyArray1<i64>>,
    /// uint64 [rows]: the sequence.
    sequence: Py<PyArray1<u64>>,
    /// uint32 [rows]: the position in the sequence, from 0.
    position: Py<PyArray1<u32>>,
    /// uint32 [rows]: the id of the token.
    token: Py<PyArray1<u32>>,
    /// int32 [rows]: the stored layer whose router decided; -1 for the depth router.
    layer: Py<PyArray1<i32>>,
    /// uint32 [rows]: which use of the layer, or which recursion, from 0.
    recursion: Py<PyArray1<u32>>,
    /// uint32: experts, or recursions, of all rows, ascending in each.
    targets: Py<PyArray1<u32>>,
    /// int64 [rows + 1]: where the targets of each row begin.
    target_starts: Py<PyArray1<i64>>,
    /// float32: how much of each target joins the row; for depth routers the score.
    weights: Py<PyArray1<f32>>,
    /// int64 [rows + 1]: where the weights of each row begin; a row has none where results join
    /// whole.
    weight_starts: Py<PyArray1<i64>>,
    /// uint32: targets that were chosen and had no room, of all rows.
    dropped: Py<PyArray1<u32>>,
    /// int64 [rows + 1]: where the dropped targets of each row begin.
    dropped_starts: Py<PyArray1<i64>>,
    /// How many targets each router decides among, by layer; -1 is the depth router.
    sites: BTreeMap<i32, u32>,
}

/// Reads what routers decided from a Parquet file: a `RoutingTrace`.
///
/// It is what `log.trace_every` of a recipe and `--trace` of the command line write, and files of
/// others with the columns of docs/traces.md.
#[pyfunction]
pub(crate) fn read_trace(py: Python<'_>, path: PathBuf) -> PyResult<RoutingTrace> {
    let read = work::off(py, &AtomicBool::new(false), || Ok(trace::read(&path)?))?;
    read.map(|trace| RoutingTrace::of(py, &trace)).map_err(|error| errors::at(&path, &error))
}

impl RoutingTrace {
    pub(crate) fn of(py: Python<'_>, trace: &Trace) -> Self {
        let sites = trace.sites.iter().map(|(layer, site)| (number(*layer), site.targets));
        Columns::of(trace).into_arrays(py, sites.collect())
    }
}

fn number(layer: Option<u32>) -> i32 {
    layer.and_then(|layer| i32::try_from(layer).ok()).unwrap_or(-1)
}

/// Lists of different lengths, one after the other.
struct Lists<T> {
    values: Vec<T>,
    starts: Vec<i64>,
}

impl<T: Copy> Lists<T> {
    fn new() -> Self {
        Self { values: Vec::new(), starts: vec![0] }
    }

    fn push(&mut self, list: &[T]) {
        self.values.extend_from_slice(list);
        self.starts.push(self.values.len() as i64);
    }
}

struct Columns {
    step: Vec<i64>,
    sequence: Vec<u64>,
    position: Vec<u32>,
    token: Vec<u32>,
    layer: Vec<i32>,
    recursion: Vec<u32>,
    targets: Lists<u32>,
    weights: Lists<f32>,
    dropped: Lists<u32>,
}

impl Columns {
    fn of(trace: &Trace) -> Self {
        let mut columns = Self {
            step: Vec::with_capacity(trace.len()),
            sequence: Vec::with_capacity(trace.len()),
            position: Vec::with_capacity(trace.len()),
            token: Vec::with_capacity(trace.len()),
            layer: Vec::with_capacity(trace.len()),
            recursion: Vec::with_capacity(trace.len()),
            targets: Lists::new(),
            weights: Lists::new(),
            dropped: Lists::new(),
        };
        for decision in trace.iter() {
            let step = decision.step.and_then(|step| i64::try_from(step).ok());
            columns.step.push(step.unwrap_or(-1));
            columns.sequence.push(decision.sequence);
            columns.position.push(decision.position);
            columns.token.push(decision.token);
            columns.layer.push(number(decision.layer));
            columns.recursion.push(decision.recursion);
            columns.targets.push(decision.targets);
            columns.weights.push(decision.weights);
            columns.dropped.push(decision.dropped);
        }
        columns
    }

    fn into_arrays(self, py: Python<'_>, sites: BTreeMap<i32, u32>) -> RoutingTrace {
        RoutingTrace {
            step: self.step.into_pyarray(py).unbind(),
            sequence: self.sequence.into_pyarray(py).unbind(),
            position: self.position.into_pyarray(py).unbind(),
            token: self.token.into_pyarray(py).unbind(),
            layer: self.layer.into_pyarray(py).unbind(),
            recursion: self.recursion.into_pyarray(py).unbind(),
            targets: self.targets.values.into_pyarray(py).unbind(),
            target_starts: self.targets.starts.into_pyarray(py).unbind(),
            weights: self.weights.values.into_pyarray(py).unbind(),
            weight_starts: self.weights.starts.into_pyarray(py).unbind(),
            dropped: self.dropped.values.into_pyarray(py).unbind(),
            dropped_starts: self.dropped.starts.into_pyarray(py).unbind(),
            sites,
        }
    }
}

#[pymethods]
impl RoutingTrace {
    fn __len__(&self, py: Python<'_>) -> usize {
        self.step.bind(py).len()
    }
}
