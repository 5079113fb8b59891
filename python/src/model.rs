//! `lathe.Model`: a checkpoint that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use engine::Scoring;
use model::{NoProbe, Rule, WeightFormats};
use opening::{conversation, open};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use trace::Recorder;

use crate::answers::{Generation, Hidden, Logits, Scores};
use crate::of_process::OfProcess;
use crate::opened::Opened;
use crate::records::RoutingTrace;
use crate::request::{Prompt, Request};
use crate::stream::Stream;
use crate::tokenizer::{PyTokenizer, TextSide};
use crate::{errors, json, request, work};

/// A model that runs. Several threads may use one at a time; a call computes with all threads.
#[pyclass(frozen, module = "lathe", name = "Model")]
pub(crate) struct PyModel(Arc<Opened>);

/// Opens a model: a checkpoint, the folder of a training run, a Hugging Face folder or a GGUF file.
///
/// Folders and files of other programs are imported once, into the cache that the command line
/// uses. `weights` rounds them for use ("int8", or as `lathe generate --weights` takes it),
/// `adapter` is a folder with adapters as PEFT writes them, `chat_template` a Jinja file or a name
/// ("chatml", "plain") in the place of the checkpoint's own.
///
/// Raises FileNotFoundError where there is nothing, LatheError for what cannot be opened,
/// ValueError for options that make no sense.
#[pyfunction]
#[pyo3(signature = (path, *, weights = None, adapter = None, chat_template = None))]
pub(crate) fn load(
    py: Python<'_>,
    path: PathBuf,
    weights: Option<&str>,
    adapter: Option<PathBuf>,
    chat_template: Option<String>,
) -> PyResult<PyModel> {
    let formats: Option<WeightFormats> =
        weights.map(|text| text.parse()).transpose().map_err(|error| {
            errors::value(format!("weights is {:?}: {error}", weights.unwrap_or_default()))
        })?;
    let opened = work::off(py, &AtomicBool::new(false), || {
        Ok(read(path, adapter.as_deref(), formats.as_ref(), chat_template))
    })?;
    let opened = opened.map_err(|error| errors::failed(&error))??;
    Ok(PyModel(Arc::new(opened)))
}

/// What [`load`] opens; the GIL is not held.
fn read(
    path: PathBuf,
    adapter: Option<&Path>,
    formats: Option<&WeightFormats>,
    template: Option<String>,
) -> PyResult<Opened> {
    let (stored, tokenizer) = open::adapted(&path, adapter).map_err(|error| match adapter {
        Some(adapter) if path.exists() => errors::at(adapter, &error),
        _ => errors::at(&path, &error),
    })?;
    let rounded = open::prepare(&stored.model, stored.rounded.as_ref(), formats);
    rounded.map_err(|error| match formats {
        Some(_) => errors::refused(&error),
        None => errors::failed(&error),
    })?;
    let special = open::special(&stored, &tokenizer);
    if let Some(template) = template.as_deref() {
        // Refused now rather than at the first conversation.
        let text = conversation::text(special.clone(), tokenizer.clone(), Some(template));
        text.map_err(|error| errors::option_at(Path::new(template), &error))?;
    }
    let conversations = OfProcess::new();
    Ok(Opened::new(stored, TextSide { path, tokenizer, special, template, conversations }))
}

/// The rule that a pass is asked to follow.
fn rule_of<'a>(model: &'a Opened, name: &str) -> PyResult<Option<&'a Rule>> {
    match name {
        "causal" => model.rule().map(Some).map_err(|error| errors::failed(&error)),
        "training" => Ok(None),
        _ => Err(errors::value(format!(
            "rule is {name:?}, expected \"causal\" (as in generation) or \"training\""
        ))),
    }
}

/// How rows of ids are computed.
struct Pass<'a> {
    rule: &'a Rule,
    max_depth: Option<usize>,
    seed: u64,
}

impl PyModel {
    /// Ids, and what `run` makes of them without the GIL.
    fn pass<T: Send>(
        &self,
        py: Python<'_>,
        given: &Bound<'_, PyAny>,
        (max_depth, rule, seed): (Option<i128>, &str, i128),
        run: impl FnOnce(&Opened, Vec<u32>, &Scoring<'_>) -> Result<T> + Send,
    ) -> PyResult<T> {
        let prompt = Prompt::of("text_or_ids", given)?;
        let training = Rule::NonCausal;
        let pass = Pass {
            rule: rule_of(&self.0, rule)?.unwrap_or(&training),
            max_depth: max_depth.map(|most| request::whole("max_depth", most)).transpose()?,
            seed: request::whole("seed", seed)?,
        };
        let model = &self.0;
        let done = work::off(py, &AtomicBool::new(false), || {
            let ids = prompt.ids(model)?;
            let how = Scoring {
                max_depth: pass.max_depth,
                seed: pass.seed,
                ..Scoring::by(pass.rule, &model.stored.state)
            };
            run(model, ids, &how)
        })?;
        done.map_err(|error| errors::failed(&error))
    }
}

#[pymethods]
impl PyModel {
    /// The model's configuration, as the checkpoint's config.json has it, with every default.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        json::to_python(py, &train::whole_config(self.0.stored.model.config()))
    }

    /// The text side: encode, decode, conversations.
    #[getter]
    fn tokenizer(&self) -> PyTokenizer {
        PyTokenizer(self.0.text.clone())
    }

    /// The folder that was opened; for a run, that of its checkpoint.
    #[getter]
    fn path(&self) -> PathBuf {
        self.0.stored.folder.clone()
    }

    /// Optimizer steps that made these weights; 0 for an import.
    #[getter]
    fn step(&self) -> u64 {
        self.0.stored.step
    }

    /// The most positions of a sequence.
    #[getter]
    fn context(&self) -> usize {
        self.0.stored.model.config().context
    }

    /// How many ids there are.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.stored.model.config().vocab_size
    }

    /// The most recursions of a row.
    #[getter]
    fn recursions(&self) -> usize {
        self.0.stored.model.config().recursions
    }

    /// How many numbers are stored: layers, routers, embedding and head.
    #[getter]
    fn parameters(&self) -> u64 {
        self.0.stored.model.weights().iter().map(|(spec, _)| spec.count() as u64).sum()
    }

    /// Continues `prompt`, a text or token ids, and gives all of it at once: a `Generation`.
    ///
    /// Keywords, with the defaults of `lathe generate`: max_tokens (128, or what the context
    /// leaves), temperature (0.8; 0 takes the most likely token), top_k (0: all), top_p (1.0),
    /// min_p (0.0), seed (1), presence_penalty (0.0), frequency_penalty (0.0), repetition_penalty
    /// (1.0), stop (a text or several, which end the text and are left out), max_depth (most
    /// recursions of a token), ignore_end (False), choice (0: the number of this continuation among
    /// several of the prompt), and one of json_schema (a dict, a text or a file), regex and
    /// choices.
    ///
    /// The same text, seed and options give the text of the command line. The GIL is released;
    /// Ctrl-C ends it after the pass that runs. A request that makes no sense is a ValueError.
    #[pyo3(signature = (prompt, **options))]
    fn generate(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Generation> {
        let request = Request::of(prompt, options)?;
        let (model, stop) = (self.0.clone(), Arc::new(AtomicBool::new(false)));
        let answer = work::off(py, &stop, || request.run(&model, &stop, &mut |_| true))?;
        answer.map(Generation::from).map_err(|error| errors::asked(&error))
    }

    /// The same piece by piece: an iterator of `Piece`, each computed while the one before it is
    /// looked at. Leaving it early ends the generation.
    #[pyo3(signature = (prompt, **options))]
    fn stream(
        &self,
        prompt: &Bound<'_, PyAny>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Stream> {
        Stream::start(self.0.clone(), Request::of(prompt, options)?)
    }

    /// The log-probability of every token of a text or of ids, each given all before it, in nats:
    /// `Scores`.
    ///
    /// With `rule="training"` routers decide as in training, where they may compare the rows of the
    /// whole text. `seed` is that of routers that draw.
    #[pyo3(signature = (text_or_ids, *, max_depth = None, rule = "causal", seed = 0))]
    fn score(
        &self,
        py: Python<'_>,
        text_or_ids: &Bound<'_, PyAny>,
        max_depth: Option<i128>,
        rule: &str,
        seed: i128,
    ) -> PyResult<Scores> {
        let (ids, rows) =
            self.pass(py, text_or_ids, (max_depth, rule, seed), |model, ids, how| {
                let batch = how.batch_of(&model.stored.model, &ids)?;
                let mut rows = engine::score(&model.stored.model, &batch, how, &mut NoProbe);
                rows.pop();
                Ok((ids, rows))
            })?;
        Ok(Scores::new(py, ids, &rows))
    }

    /// The logits of every row: `Logits`, whose `values` are [rows, vocab_size] in float32.
    ///
    /// The array takes over the memory that the rows were read into: nothing is copied again, and
    /// it is freed with the array.
    #[pyo3(signature = (text_or_ids, *, max_depth = None, rule = "causal", seed = 0))]
    fn logits(
        &self,
        py: Python<'_>,
        text_or_ids: &Bound<'_, PyAny>,
        max_depth: Option<i128>,
        rule: &str,
        seed: i128,
    ) -> PyResult<Logits> {
        let (ids, rows) =
            self.pass(py, text_or_ids, (max_depth, rule, seed), |model, ids, how| {
                let batch = how.batch_of(&model.stored.model, &ids)?;
                Ok((ids, engine::logits(&model.stored.model, &batch, how, &mut NoProbe)))
            })?;
        Logits::new(py, ids, rows)
    }

    /// What the head sees of every row: `Hidden`, whose `states` are [rows, width] in float32, the
    /// residual stream behind the last layer, normed. Memory as in `logits`.
    #[pyo3(signature = (text_or_ids, *, max_depth = None, rule = "causal", seed = 0))]
    fn hidden(
        &self,
        py: Python<'_>,
        text_or_ids: &Bound<'_, PyAny>,
        max_depth: Option<i128>,
        rule: &str,
        seed: i128,
    ) -> PyResult<Hidden> {
        let (ids, rows) =
            self.pass(py, text_or_ids, (max_depth, rule, seed), |model, ids, how| {
                let batch = how.batch_of(&model.stored.model, &ids)?;
                Ok((ids, engine::hidden(&model.stored.model, &batch, how, &mut NoProbe)))
            })?;
        Hidden::new(py, ids, rows)
    }

    /// What every router decides about every row of a text: a `RoutingTrace`, as `read_trace` gives
    /// it. Models whose rows all go the same way have none.
    #[pyo3(signature = (text_or_ids, *, max_depth = None, rule = "causal", seed = 0))]
    fn routes(
        &self,
        py: Python<'_>,
        text_or_ids: &Bound<'_, PyAny>,
        max_depth: Option<i128>,
        rule: &str,
        seed: i128,
    ) -> PyResult<RoutingTrace> {
        let trace = self.pass(py, text_or_ids, (max_depth, rule, seed), |model, ids, how| {
            let batch = how.batch_of(&model.stored.model, &ids)?;
            let mut recorder = Recorder::of(&model.stored.model);
            engine::hidden(&model.stored.model, &batch, how, &mut recorder);
            Ok(recorder.take())
        })?;
        Ok(RoutingTrace::of(py, &trace))
    }

    fn __repr__(&self) -> String {
        let path = self.0.text.path.display();
        format!(
            "<lathe.Model {path}: {} parameters>",
            report::human_count(self.parameters() as f64)
        )
    }
}
