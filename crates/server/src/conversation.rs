//! Conversations outside of a server: as prompts to answer, and as text to learn from.

use crate::chat;
use crate::controls::{self, Piece};
use crate::json::Json;
use crate::settings::{ServerLimits, TemplateProgram};
use crate::template::LEARNED;
use crate::template_host::TemplateHost;
use crate::template_source::marks_answers;
use crate::template_worker::Rendering;
use crate::token_text::{Controls, ModelText, TokenText};
use data::build::{ChatEncoder, LearnedText};
use std::ops::Range;
use std::time::Duration;

/// Time for a prompt to become ids; nobody else waits for it.
const READING: Duration = Duration::from_secs(600);

/// A model's chat template with its tokens. Control tokens that messages spell are text.
pub struct Conversations {
    token_text: TokenText,
    template: TemplateHost,
    /// Whether renderings hold [`LEARNED`] around what is to be learned.
    marked: bool,
    /// Bytes of text of each id.
    token_bytes: Vec<u32>,
}

impl Conversations {
    /// The conversations of a model that are to be answered.
    ///
    /// # Errors
    /// A model without a template, one that is broken, or no process to render it.
    pub fn to_answer(text: ModelText, program: &TemplateProgram) -> Result<Self, String> {
        Self::start(text, program, false)
    }

    /// The conversations of a model that are to be learned from: what `{% generation %}` of its
    /// template holds, or, where it has none, what the template adds for a message of the assistant
    /// to the prompt for it.
    ///
    /// # Errors
    /// As [`Conversations::to_answer`].
    pub fn to_learn(text: ModelText, program: &TemplateProgram) -> Result<Self, String> {
        Self::start(text, program, true)
    }

    fn start(text: ModelText, program: &TemplateProgram, learn: bool) -> Result<Self, String> {
        let Some(source) = text.special.chat_template.as_deref() else {
            return Err("the model has no chat template, so messages cannot become text".into());
        };
        let marked = learn && marks_answers(source);
        let limits = ServerLimits::default();
        let template = TemplateHost::start(source, program, &limits, marked)
            .map_err(|failure| failure.to_string())?;
        let token_bytes = text.tokenizer.token_bytes();
        Ok(Self { token_text: TokenText::new(text), template, marked, token_bytes })
    }

    /// Ids of the prompt for the assistant's next message, after `messages` as pairs of role and
    /// content.
    ///
    /// # Errors
    /// What the template refuses, or a text that the vocabulary cannot spell.
    pub fn prompt(&self, messages: &[(String, String)]) -> Result<Vec<u32>, String> {
        let mut messages: Vec<Json> = messages.iter().map(message).collect();
        let [mark, _] = controls::free_marks(&messages).ok_or_else(no_mark)?;
        let controls = match self.token_text.controls.mark(&mut messages, mark) {
            true => Controls::Marked(mark),
            false => Controls::Read,
        };
        let text = self.render(&messages, true)?;
        let ids = self.token_text.encode(&text, controls, usize::MAX, "messages", READING);
        ids.map_err(|error| error.message().to_owned())
    }

    /// What the template makes of `messages`, pairs of role and content: the text of the whole
    /// conversation, or with `prompt` that to which the assistant's next message is added.
    ///
    /// # Errors
    /// What the template refuses.
    pub fn text(&self, messages: &[(String, String)], prompt: bool) -> Result<String, String> {
        let messages: Vec<Json> = messages.iter().map(message).collect();
        self.render(&messages, prompt)
    }

    fn render(&self, messages: &[Json], add_generation_prompt: bool) -> Result<String, String> {
        let input = chat::input(&self.token_text, messages.to_vec(), add_generation_prompt);
        let rendered = self.template.render(&Rendering { input, more: None });
        rendered.map_err(|failure| format!("the chat template refuses it: {failure}"))
    }

    /// The text, and of each answer what it adds to the prompt for it.
    fn by_prefixes(
        &self,
        messages: &[Json],
        answers: &[usize],
    ) -> Result<(String, Vec<Range<usize>>), String> {
        let text = self.render(messages, false)?;
        let mut spans = Vec::with_capacity(answers.len());
        for &at in answers {
            let before = self.render(&messages[..at], true)?;
            let with = match at + 1 == messages.len() {
                true => text.clone(),
                false => self.render(&messages[..=at], false)?,
            };
            if !with.starts_with(&before) || !text.starts_with(&with) {
                return Err(format!(
                    "the chat template writes the answer of messages[{at}] otherwise than after \
                     its prompt, or otherwise once more messages follow: give a template that \
                     marks answers by {{% generation %}}"
                ));
            }
            spans.push(before.len()..with.len());
        }
        Ok((text, spans))
    }

    /// Ids of `text`, in which control tokens that messages spell are marked. Where the tokenizer
    /// spells its text, a span begins and ends with a token, as it does in generation. Elsewhere a
    /// token is learned if it begins in a span.
    fn encode(
        &self,
        text: &str,
        mark: char,
        spans: &[Range<usize>],
    ) -> Result<LearnedText, String> {
        let within = |at: usize| spans.iter().any(|span| span.contains(&at));
        let mut found = LearnedText::default();
        for piece in self.token_text.controls.pieces(text, mark) {
            match piece {
                Piece::Control(id, at) => push(&mut found, id, 0, within(at)),
                Piece::Text(range) if self.token_text.text.tokenizer.spells_its_text() => {
                    for part in cut(range, spans) {
                        let ids = self.ordinary(&text[part.clone()].replace(mark, ""))?;
                        for id in ids {
                            push(&mut found, id, self.token_bytes[id as usize], within(part.start));
                        }
                    }
                }
                Piece::Text(range) => self.counted(text, range, mark, spans, &mut found)?,
            }
        }
        found.text_bytes = text.replace(mark, "").len() as u64;
        Ok(found)
    }

    fn ordinary(&self, text: &str) -> Result<Vec<u32>, String> {
        self.token_text.text.tokenizer.encode_ordinary(text).map_err(|e| e.to_string())
    }

    /// Appends a piece under a tokenizer that spells something else than the text: it is encoded
    /// whole, since such tokenizers put a blank before whatever they are given.
    fn counted(
        &self,
        text: &str,
        range: Range<usize>,
        mark: char,
        spans: &[Range<usize>],
        found: &mut LearnedText,
    ) -> Result<(), String> {
        let plain = text[range.clone()].replace(mark, "");
        let at = |place: usize| {
            let place = place.clamp(range.start, range.end);
            text[range.start..place].replace(mark, "").len()
        };
        let spans: Vec<Range<usize>> = spans.iter().map(|s| at(s.start)..at(s.end)).collect();
        let tokenizer = &self.token_text.text.tokenizer;
        let (ids, counts) = tokenizer.encode_counting(&plain).map_err(|e| e.to_string())?;
        let mut before = 0;
        for (id, bytes) in ids.into_iter().zip(counts) {
            push(found, id, bytes, spans.iter().any(|span| span.contains(&before)));
            before += bytes as usize;
        }
        Ok(())
    }
}

impl ChatEncoder for Conversations {
    /// A conversation from the JSON of its messages, a list of objects with `role` and `content`.
    ///
    /// # Errors
    /// Messages that are no conversation, without one of the assistant, or that the template
    /// refuses; a template that writes an answer otherwise once more messages follow.
    fn learn(&self, messages: &str) -> Result<LearnedText, String> {
        let mut messages = read(messages)?;
        let [mark, _] = controls::free_marks(&messages).ok_or_else(no_mark)?;
        let answers: Vec<usize> = (0..messages.len())
            .filter(|&at| messages[at].get("role").and_then(Json::as_text) == Some("assistant"))
            .collect();
        if answers.is_empty() {
            return Err("no message has the role assistant: there is nothing to learn".into());
        }
        self.token_text.controls.mark(&mut messages, mark);
        let (text, spans) = match self.marked {
            true => unmark(&self.render(&messages, false)?)?,
            false => self.by_prefixes(&messages, &answers)?,
        };
        let found = self.encode(&text, mark, &spans)?;
        if !found.learned.contains(&true) {
            return Err("the template shows nothing of what the assistant says".into());
        }
        Ok(found)
    }
}

fn push(found: &mut LearnedText, id: u32, bytes: u32, learned: bool) {
    found.ids.push(id);
    found.bytes.push(bytes);
    found.learned.push(learned);
}

/// `range` in parts that lie inside or outside of every span.
fn cut(range: Range<usize>, spans: &[Range<usize>]) -> Vec<Range<usize>> {
    let ends = spans.iter().flat_map(|span| [span.start, span.end]);
    let mut places: Vec<usize> = ends.filter(|at| range.start < *at && *at < range.end).collect();
    places.extend([range.start, range.end]);
    places.sort_unstable();
    places.dedup();
    places.windows(2).map(|two| two[0]..two[1]).collect()
}

fn message((role, content): &(String, String)) -> Json {
    Json::Map(vec![
        ("role".to_owned(), Json::Text(role.clone())),
        ("content".to_owned(), Json::Text(content.clone())),
    ])
}

fn no_mark() -> String {
    "the messages hold all characters from U+FDD0 to U+FDED, expected two to be free: no text has \
     them"
        .to_owned()
}

/// The messages of a row, as templates expect them.
fn read(messages: &str) -> Result<Vec<Json>, String> {
    let value = Json::parse(messages.as_bytes())?;
    let items = match &value {
        Json::List(items) => items.as_slice(),
        Json::Ids(ids) if ids.is_empty() => return Err("a list without a message".into()),
        other => return Err(format!("{}, which is no list of messages", other.short())),
    };
    let mut marks = false;
    value.each_text(&mut |text| marks |= text.contains(LEARNED));
    if marks {
        return Err("U+FDEE or U+FDEF, which stand in no text".into());
    }
    let messages = items.iter().enumerate().map(|(at, item)| chat::message(at, item));
    messages.collect::<Result<_, _>>().map_err(|error| error.message().to_owned())
}

/// The rendering without the marks around what is learned, and where that is.
fn unmark(marked: &str) -> Result<(String, Vec<Range<usize>>), String> {
    let mut text = String::with_capacity(marked.len());
    let (mut spans, mut begun) = (Vec::new(), None);
    for c in marked.chars() {
        match (LEARNED.iter().position(|mark| *mark == c), begun) {
            (None, _) => text.push(c),
            (Some(0), None) => begun = Some(text.len()),
            (Some(1), Some(start)) => {
                spans.push(start..text.len());
                begun = None;
            }
            _ => return Err("the chat template has {% generation %} within another one".into()),
        }
    }
    Ok((text, spans))
}
