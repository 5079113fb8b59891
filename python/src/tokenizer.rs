//! `lathe.Tokenizer`: text to token ids and back, and conversations to prompts.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use data::{SpecialTokens, Tokenizer};
use opening::{conversation, open, render_templates};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use server::Conversations;

use crate::of_process::OfProcess;
use crate::{errors, request, work};

/// The text side of a checkpoint.
pub(crate) struct TextSide {
    pub(crate) path: PathBuf,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) special: SpecialTokens,
    /// The chat template that is used in the place of the checkpoint's own.
    pub(crate) template: Option<String>,
    /// Made when the first conversation is rendered.
    pub(crate) conversations: OfProcess<Conversations>,
}

impl TextSide {
    /// Ids of a prompt, with the beginning that the model expects before every text.
    pub(crate) fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        open::prompt(&self.special, &self.tokenizer, text)
    }

    fn conversations(&self) -> Result<Arc<Conversations>> {
        self.conversations.get_or_make(|| {
            let (special, tokenizer) = (self.special.clone(), self.tokenizer.clone());
            let template = self.template.as_deref();
            let text = conversation::chat_text(&self.path, special, tokenizer, template)?;
            let all = Conversations::to_answer(text, &render_templates::program());
            all.map_err(|error| anyhow!(error))
        })
    }
}

/// Messages as pairs of role and content.
type Messages = Vec<(String, String)>;

fn messages(given: Vec<Bound<'_, PyDict>>) -> PyResult<Messages> {
    let mut found = Vec::with_capacity(given.len());
    for (at, message) in given.iter().enumerate() {
        let field = |name: &str| match message.get_item(name)?.map(|text| text.extract()) {
            Some(Ok(text)) => Ok(text),
            _ => Err(errors::value(format!(
                "messages[{at}] has no text {name:?}, expected a dict with the texts \"role\" and \
                 \"content\""
            ))),
        };
        found.push((field("role")?, field("content")?));
    }
    Ok(found)
}

/// Text to token ids and back, and conversations to prompts.
#[pyclass(frozen, module = "lathe", name = "Tokenizer")]
pub(crate) struct PyTokenizer(pub(crate) Arc<TextSide>);

#[pymethods]
impl PyTokenizer {
    /// The ids of a text. Control tokens that it spells become the tokens. With `begin`, the id
    /// that the model expects before every text stands first, as `generate` and `score` put it.
    #[pyo3(signature = (text, *, begin = false))]
    fn encode(&self, py: Python<'_>, text: &str, begin: bool) -> PyResult<Vec<u32>> {
        let side = &self.0;
        let ids = work::light(py, || match begin {
            true => side.prompt(text),
            false => Ok(side.tokenizer.encode(text)?),
        })?;
        ids.map_err(|error| errors::failed(&error))
    }

    /// The text of ids; a broken character becomes U+FFFD.
    fn decode(&self, py: Python<'_>, ids: &Bound<'_, PyAny>) -> PyResult<String> {
        let ids = request::ids("ids", "token ids", ids)?;
        let text = work::light(py, || Ok(self.0.tokenizer.decode(&ids)?))?;
        text.map_err(|error| errors::refused(&error))
    }

    /// How many ids there are.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.tokenizer.vocab_size()
    }

    fn __len__(&self) -> usize {
        self.vocab_size()
    }

    /// The id that the model expects before every text, or None.
    #[getter]
    fn begin_id(&self) -> Option<u32> {
        self.0.special.begin()
    }

    /// The ids that end a text, the main one first.
    #[getter]
    fn end_ids(&self) -> Vec<u32> {
        self.0.special.eos.clone()
    }

    /// The checkpoint's own chat template (Jinja), or None.
    #[getter]
    fn chat_template(&self) -> Option<String> {
        self.0.special.chat_template.clone()
    }

    /// The name of an id, or None.
    fn token(&self, id: u32) -> Option<String> {
        self.0.tokenizer.id_to_token(id)
    }

    /// The id of a token's name, or None.
    fn id(&self, token: &str) -> Option<u32> {
        self.0.tokenizer.token_to_id(token)
    }

    /// The ids of the prompt for the assistant's next message, behind `messages`: a list of dicts
    /// with the texts "role" and "content". Control tokens that messages spell are ordinary text.
    fn chat(&self, py: Python<'_>, messages: Vec<Bound<'_, PyDict>>) -> PyResult<Vec<u32>> {
        let messages = self::messages(messages)?;
        let ids =
            py.detach(|| self.0.conversations()?.prompt(&messages).map_err(|error| anyhow!(error)));
        ids.map_err(|error| errors::refused(&error))
    }

    /// The text that the chat template makes of `messages`; without `add_generation_prompt` that of
    /// the conversation alone.
    #[pyo3(signature = (messages, *, add_generation_prompt = true))]
    fn chat_text(
        &self,
        py: Python<'_>,
        messages: Vec<Bound<'_, PyDict>>,
        add_generation_prompt: bool,
    ) -> PyResult<String> {
        let messages = self::messages(messages)?;
        let text = work::light(py, || {
            let all = self.0.conversations()?;
            all.text(&messages, add_generation_prompt).map_err(|error| anyhow!(error))
        })?;
        text.map_err(|error| errors::refused(&error))
    }

    fn __repr__(&self) -> String {
        format!("<lathe.Tokenizer of {} tokens>", self.vocab_size())
    }
}
