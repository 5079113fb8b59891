//! What may be asked of a generation: the arguments of `generate` and `stream`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use engine::{Generated, Generation, Sampler, Token};
use opening::continuation::{self, Asked, Reading, TextPiece, USUAL};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyString};

use crate::opened::Opened;
use crate::{errors, json};

/// A text, or ids.
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl Prompt {
    /// # Errors
    /// `TypeError` for anything else than text and whole numbers from 0.
    pub(crate) fn of(name: &str, given: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(text) = given.cast::<PyString>() {
            return Ok(Self::Text(text.to_str()?.to_owned()));
        }
        ids(name, "a text, or token ids", given).map(Self::Ids)
    }

    /// The ids; a text gets the beginning that the model expects.
    pub(crate) fn ids(self, model: &Opened) -> Result<Vec<u32>> {
        match self {
            Self::Text(text) => model.text.prompt(&text),
            Self::Ids(ids) => Ok(ids),
        }
    }
}

/// Token ids; bytes are none, though Python takes them for whole numbers.
///
/// # Errors
/// `TypeError` for anything else than whole numbers from 0; it was `expected`.
pub(crate) fn ids(name: &str, expected: &str, given: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let bytes = given.is_instance_of::<PyBytes>() || given.is_instance_of::<PyByteArray>();
    let ids = if bytes { None } else { given.extract().ok() };
    ids.ok_or_else(|| {
        let kind = given.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
        PyTypeError::new_err(format!(
            "{name} is {kind}, expected {expected} as whole numbers from 0 to 2**32"
        ))
    })
}

/// A whole number as the rooms take it.
///
/// # Errors
/// `ValueError` for one that is out of range.
pub(crate) fn whole<T: TryFrom<i128>>(name: &str, value: i128) -> PyResult<T> {
    value.try_into().map_err(|_| {
        errors::value(format!("{name} is {value}, expected a whole number from 0 to 2**64"))
    })
}

/// A form of the new text, owned.
enum Form {
    JsonSchema(String),
    Regex(String),
    Choice(Vec<String>),
}

/// A request that can go to another thread.
pub(crate) struct Request {
    prompt: Prompt,
    max_tokens: Option<usize>,
    sampler: Sampler,
    stop: Vec<String>,
    max_depth: Option<usize>,
    ignore_end: bool,
    choice: u64,
    form: Option<Form>,
}

/// Everything that a generation gave.
pub(crate) struct Answer {
    pub(crate) prompt: Vec<u32>,
    pub(crate) text: String,
    pub(crate) generated: Generated,
    /// `"end"`, `"stop"`, `"length"` or `"cancelled"`.
    pub(crate) finish: &'static str,
    /// The stop string that it came to.
    pub(crate) stopped_by: Option<String>,
}

/// The keyword arguments, with the defaults of `lathe generate`.
const KNOWN: [&str; 16] = [
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "max_depth",
    "ignore_end",
    "choice",
    "json_schema",
    "regex",
    "choices",
];

/// The value of a keyword; none where it is absent or `None`.
fn keyword<'py, T>(words: Option<&Bound<'py, PyDict>>, name: &str) -> PyResult<Option<T>>
where
    T: for<'a> FromPyObject<'a, 'py, Error: Into<PyErr>>,
{
    let Some(value) = words.map(|words| words.get_item(name)).transpose()?.flatten() else {
        return Ok(None);
    };
    if value.is_none() {
        return Ok(None);
    }
    let shown = value.repr().map_or_else(|_| "?".to_owned(), |shown| shown.to_string());
    value.extract().map(Some).map_err(|error: T::Error| {
        let error: PyErr = error.into();
        let why = error.value(value.py()).to_string();
        let text = format!("{name} is {shown}: {why}");
        if error.is_instance_of::<PyTypeError>(value.py()) {
            return PyTypeError::new_err(text);
        }
        errors::value(text)
    })
}

impl Request {
    /// # Errors
    /// `TypeError` for a keyword that there is not, or a value of another type.
    pub(crate) fn of(
        prompt: &Bound<'_, PyAny>,
        words: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        for name in words.iter().flat_map(|words| words.keys()) {
            let name: String = name.extract()?;
            if !KNOWN.contains(&name.as_str()) {
                let known = KNOWN.join(", ");
                return Err(PyTypeError::new_err(format!(
                    "unexpected keyword argument {name:?}, expected one of {known}"
                )));
            }
        }
        let stop = match keyword::<Bound<'_, PyAny>>(words, "stop")? {
            Some(one) if one.is_instance_of::<PyString>() => vec![one.extract()?],
            _ => keyword(words, "stop")?.unwrap_or_default(),
        };
        let sampler = Sampler {
            temperature: keyword(words, "temperature")?.unwrap_or(USUAL.temperature),
            top_k: keyword(words, "top_k")?.unwrap_or(USUAL.top_k),
            top_p: keyword(words, "top_p")?.unwrap_or(USUAL.top_p),
            min_p: keyword(words, "min_p")?.unwrap_or(USUAL.min_p),
            seed: keyword(words, "seed")?.unwrap_or(USUAL.seed),
            presence_penalty: keyword(words, "presence_penalty")?.unwrap_or(USUAL.presence_penalty),
            frequency_penalty: keyword(words, "frequency_penalty")?
                .unwrap_or(USUAL.frequency_penalty),
            repetition_penalty: keyword(words, "repetition_penalty")?
                .unwrap_or(USUAL.repetition_penalty),
        };
        Ok(Self {
            prompt: Prompt::of("prompt", prompt)?,
            max_tokens: keyword(words, "max_tokens")?,
            sampler,
            stop,
            max_depth: keyword(words, "max_depth")?,
            ignore_end: keyword(words, "ignore_end")?.unwrap_or(false),
            choice: keyword(words, "choice")?.unwrap_or(0),
            form: form(words)?,
        })
    }

    /// Runs to the end, until `each` says `false`, or until `stop` is set.
    pub(crate) fn run(
        self,
        model: &Opened,
        stop: &Arc<AtomicBool>,
        each: &mut dyn FnMut(&TextPiece<'_>) -> bool,
    ) -> Result<Answer> {
        continuation::check_stops(&self.stop)?;
        let asked = self.form.as_ref().map(|form| match form {
            Form::JsonSchema(schema) => Asked::JsonSchema(schema),
            Form::Regex(pattern) => Asked::Regex(pattern),
            Form::Choice(texts) => Asked::Choice(texts),
        });
        ensure!(
            asked.is_none() || !self.ignore_end,
            "ignore_end is True, expected False beside a form: the form says where the text ends"
        );
        let tokenizer = &model.text.tokenizer;
        let form = asked.map(|asked| continuation::form(asked, tokenizer)).transpose()?;
        let prompt = self.prompt.ids(model)?;
        let usual = continuation::usual_length(&model.stored, prompt.len());
        let max_tokens = self.max_tokens.unwrap_or(usual);
        let ends: &[u32] = if self.ignore_end { &[] } else { &model.text.special.eos };
        let what = Generation {
            prompt: &prompt,
            max_tokens,
            stop: ends,
            sampler: &self.sampler,
            rule: model.rule()?,
            state: &model.stored.state,
            max_depth: self.max_depth,
            choice: self.choice,
            constraint: form.as_ref().map(|form| form.sequence()),
        };
        let reading = Reading { tokenizer, stops: &self.stop, watch: None, ops: ops::Ops::Fast };
        let mut text = String::new();
        let mut cancelled = false;
        let (generated, hit) = continuation::stream(&model.stored, &what, reading, &mut |piece| {
            text.push_str(piece.text);
            cancelled |= stop.load(Ordering::Relaxed) || !each(piece);
            !cancelled
        })?;
        let last = generated.tokens.last().map(|token: &Token| token.id);
        let finish = match &hit {
            Some(_) => "stop",
            None if last.is_some_and(|id| ends.contains(&id)) => "end",
            None if generated.tokens.len() >= max_tokens => "length",
            None if cancelled => "cancelled",
            None => "end",
        };
        Ok(Answer { prompt, text, generated, finish, stopped_by: hit.map(|hit| hit.string) })
    }
}

fn form(words: Option<&Bound<'_, PyDict>>) -> PyResult<Option<Form>> {
    let schema: Option<Bound<'_, PyAny>> = keyword(words, "json_schema")?;
    let schema = schema.map(|schema| match schema.cast::<PyString>() {
        Ok(text) => text.to_str().map(str::to_owned),
        Err(_) => json::from_python("json_schema", &schema).map(|value| value.to_string()),
    });
    let forms = [
        schema.transpose()?.map(Form::JsonSchema),
        keyword(words, "regex")?.map(Form::Regex),
        keyword(words, "choices")?.map(Form::Choice),
    ];
    let mut given = forms.into_iter().flatten();
    let first = given.next();
    if given.next().is_some() {
        return Err(errors::value(
            "expected one of json_schema, regex and choices, found several: give one",
        ));
    }
    Ok(first)
}
