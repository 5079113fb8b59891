//! What calls give: texts with their tokens, scores, and arrays.

use engine::{RowScore, RowValues, Token};
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray1, PyArray2};
use pyo3::prelude::*;

use crate::errors;
use crate::request::Answer;

/// A continuation, and what it cost.
#[pyclass(frozen, get_all, module = "lathe")]
pub(crate) struct Generation {
    /// The new text, without the end token and without a stop string.
    text: String,
    /// All new tokens, an end token and those of a stop string among them.
    ids: Vec<u32>,
    /// Recursions spent on the row that predicted each new token.
    depths: Vec<u32>,
    /// Log-probability of each new token under the model, before temperature and cuts, in nats.
    logprobs: Vec<f32>,
    /// Ids of the prompt, with the beginning that the model expects before every text.
    prompt_ids: Vec<u32>,
    /// Recursions of each row of the prompt.
    prompt_depths: Vec<u32>,
    /// Why it ended: "end" (an end token, or a form that is complete), "stop" (a stop string),
    /// "length" or "cancelled".
    finish: &'static str,
    /// The stop string that it came to, if any.
    stopped_by: Option<String>,
    /// Bytes of keys and values held at the end.
    kv_bytes: usize,
}

impl From<Answer> for Generation {
    fn from(answer: Answer) -> Self {
        let Answer { prompt, text, generated, finish, stopped_by } = answer;
        let tokens = &generated.tokens;
        Self {
            text,
            ids: tokens.iter().map(|token| token.id).collect(),
            depths: tokens.iter().map(|token| token.depth).collect(),
            logprobs: tokens.iter().map(|token| token.log_probability).collect(),
            prompt_ids: prompt,
            prompt_depths: generated.prompt_depths,
            finish,
            stopped_by,
            kv_bytes: generated.kv_bytes,
        }
    }
}

#[pymethods]
impl Generation {
    fn __str__(&self) -> &str {
        &self.text
    }

    fn __repr__(&self) -> String {
        format!("<lathe.Generation of {} tokens, finish {:?}>", self.ids.len(), self.finish)
    }
}

/// A token of a stream, with the text that became certain with it.
#[pyclass(frozen, get_all, module = "lathe")]
pub(crate) struct Piece {
    /// Text that is certain now: none while a character is open or a stop string may begin.
    text: String,
    /// The token; None where the last piece is text that was held back.
    id: Option<u32>,
    /// Recursions spent on the row that predicted it.
    depth: Option<u32>,
    /// Its log-probability under the model, in nats.
    logprob: Option<f32>,
}

impl Piece {
    pub(crate) fn new(token: Option<&Token>, text: &str) -> Self {
        Self {
            text: text.to_owned(),
            id: token.map(|token| token.id),
            depth: token.map(|token| token.depth),
            logprob: token.map(|token| token.log_probability),
        }
    }
}

#[pymethods]
impl Piece {
    fn __str__(&self) -> &str {
        &self.text
    }

    fn __repr__(&self) -> String {
        let shown = |number: Option<u32>| number.map_or("None".to_owned(), |n| n.to_string());
        format!("Piece({:?}, id={}, depth={})", self.text, shown(self.id), shown(self.depth))
    }
}

/// Log-probabilities of the tokens of a text.
#[pyclass(frozen, module = "lathe")]
pub(crate) struct Scores {
    /// All n ids of the text.
    #[pyo3(get)]
    ids: Vec<u32>,
    /// float32 [n - 1], nats: entry i is that of ids[i + 1], given all before it.
    #[pyo3(get)]
    logprobs: Py<PyArray1<f32>>,
    /// uint32 [n - 1]: recursions of the row that predicted it.
    #[pyo3(get)]
    depths: Py<PyArray1<u32>>,
    /// The sum of all log-probabilities, nats.
    #[pyo3(get)]
    total: f64,
}

impl Scores {
    pub(crate) fn new(py: Python<'_>, ids: Vec<u32>, rows: &[RowScore]) -> Self {
        let logprobs: Vec<f32> = rows.iter().map(|row| -row.nll).collect();
        let depths: Vec<u32> = rows.iter().map(|row| row.depth).collect();
        let total = logprobs.iter().map(|&log| f64::from(log)).sum();
        let (logprobs, depths) = (logprobs.into_pyarray(py), depths.into_pyarray(py));
        Self { ids, logprobs: logprobs.unbind(), depths: depths.unbind(), total }
    }
}

#[pymethods]
impl Scores {
    fn __repr__(&self) -> String {
        format!("<lathe.Scores of {} tokens, {:.4} nats>", self.ids.len(), self.total)
    }
}

/// `[t, n]` without a copy: the array owns the vector.
fn matrix(py: Python<'_>, values: Vec<f32>, rows: usize) -> PyResult<Py<PyArray2<f32>>> {
    let columns = values.len() / rows.max(1);
    let array = Array2::from_shape_vec((rows, columns), values);
    let array = array.map_err(|error| errors::failed(&anyhow::anyhow!("{error}")))?;
    Ok(PyArray2::from_owned_array(py, array).unbind())
}

/// Logits of the rows of a text.
#[pyclass(frozen, get_all, module = "lathe")]
pub(crate) struct Logits {
    /// The ids of the rows.
    ids: Vec<u32>,
    /// float32 [rows, vocab_size]: row i is about the token behind ids[i].
    values: Py<PyArray2<f32>>,
    /// uint32 [rows]: recursions of each row.
    depths: Py<PyArray1<u32>>,
}

/// What the head sees of the rows of a text.
#[pyclass(frozen, get_all, module = "lathe")]
pub(crate) struct Hidden {
    /// The ids of the rows.
    ids: Vec<u32>,
    /// float32 [rows, width]: the residual stream behind the last layer, normed.
    states: Py<PyArray2<f32>>,
    /// uint32 [rows]: recursions of each row.
    depths: Py<PyArray1<u32>>,
}

impl Logits {
    pub(crate) fn new(py: Python<'_>, ids: Vec<u32>, rows: RowValues) -> PyResult<Self> {
        let values = matrix(py, rows.values_tn, rows.depth_t.len())?;
        Ok(Self { ids, values, depths: rows.depth_t.into_pyarray(py).unbind() })
    }
}

impl Hidden {
    pub(crate) fn new(py: Python<'_>, ids: Vec<u32>, rows: RowValues) -> PyResult<Self> {
        let states = matrix(py, rows.values_tn, rows.depth_t.len())?;
        Ok(Self { ids, states, depths: rows.depth_t.into_pyarray(py).unbind() })
    }
}
