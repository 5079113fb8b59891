//! The JSON of answers, whole and in chunks.

use crate::backend::AdapterInfo;
use crate::choice::{ChoiceState, Delta, End, TokenEntry};
use crate::request::{Dialect, OutputOptions, ParsedRequest, StreamUsage};
use crate::responses;
use crate::token_text::TokenText;
use scheduler::RowExperts;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;
use std::sync::Arc;

/// What all chunks of an answer have in common.
pub(crate) struct AnswerHead {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
    pub(crate) shape: Arc<OutputOptions>,
    pub(crate) usage: StreamUsage,
    /// What a response repeats of its request.
    pub(crate) repeated: serde_json::Value,
}

#[derive(serde::Serialize)]
struct Envelope<'h, C> {
    id: &'h str,
    object: &'static str,
    created: u64,
    model: &'h str,
    system_fingerprint: &'h str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageTotals>>,
}

#[derive(serde::Serialize)]
struct CompletionChoice<'d> {
    index: usize,
    text: &'d str,
    logprobs: Option<Columns>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason<'d>>,
    #[serde(flatten)]
    more: Extensions<'d>,
}

#[derive(serde::Serialize)]
struct ChatChoice<'d> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'d>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Message<'d>>,
    logprobs: Option<Content>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason<'d>>,
    #[serde(flatten)]
    more: Extensions<'d>,
}

#[derive(serde::Serialize)]
struct Message<'d> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'d str>,
}

#[derive(serde::Serialize)]
struct Extensions<'d> {
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'d [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lathe: Option<Depths>,
    #[serde(flatten)]
    routed: Option<RoutedOfChoice<'d>>,
}

/// The experts of each row at each layer, as vLLM tells them.
#[derive(serde::Serialize)]
pub(crate) struct RoutedOfChoice<'d> {
    prompt_routed_experts: &'d [RowExperts],
    routed_experts: &'d [RowExperts],
}

#[derive(serde::Serialize)]
struct Depths {
    depths: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_depth: Option<f64>,
}

#[derive(serde::Serialize)]
#[serde(untagged)]
enum StopReason<'d> {
    Id(u32),
    Text(&'d str),
}

/// A log-probability as JSON can hold it: minus infinity becomes -9999.
struct Score(f32);

impl Serialize for Score {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f32(if self.0 == f32::NEG_INFINITY { -9999.0 } else { self.0 })
    }
}

/// Token names to log-probabilities, in order; of equal names the larger counts.
struct TopLogprobs(Vec<(String, f32)>);

impl TopLogprobs {
    fn add(&mut self, name: String, value: f32) {
        match self.0.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = old.max(value),
            None => self.0.push((name, value)),
        }
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, &Score(*value))?;
        }
        map.end()
    }
}

#[derive(serde::Serialize)]
struct Columns {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<Score>>,
    top_logprobs: Vec<Option<TopLogprobs>>,
    text_offset: Vec<usize>,
}

#[derive(serde::Serialize)]
struct Content {
    content: Vec<ContentToken>,
}

#[derive(serde::Serialize)]
struct ContentToken {
    #[serde(flatten)]
    token: NamedScore,
    top_logprobs: Vec<NamedScore>,
}

#[derive(serde::Serialize)]
struct NamedScore {
    token: String,
    logprob: Score,
    bytes: Vec<u8>,
}

/// What a request cost.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct UsageTotals {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    total_tokens: u64,
    /// What is known at the end alone.
    #[serde(flatten)]
    rest: Option<UsageRest>,
}

#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
struct UsageRest {
    prompt_tokens_details: Cached,
    lathe: StepCounts,
}

#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
struct Cached {
    cached_tokens: u64,
}

#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
struct StepCounts {
    recursion_steps: u64,
    dense_equivalent_steps: u64,
}

impl UsageTotals {
    /// Sums over the sequences; a prompt counts once, however many continuations it has.
    pub(crate) fn of(choices: &[ChoiceState], n: usize) -> Self {
        let mut rest = UsageRest::default();
        for choice in choices {
            if choice.index.is_multiple_of(n) {
                rest.prompt_tokens_details.cached_tokens += choice.usage.cached;
            }
            rest.lathe.recursion_steps += choice.usage.recursion_steps;
            rest.lathe.dense_equivalent_steps += choice.usage.dense_steps;
        }
        Self { rest: Some(rest), ..Self::so_far(choices, n) }
    }

    /// The tokens of an answer that is not finished.
    pub(crate) fn so_far(choices: &[ChoiceState], n: usize) -> Self {
        let mut totals = UsageTotals::default();
        for choice in choices {
            if choice.index.is_multiple_of(n) {
                totals.prompt_tokens += choice.prompt.ids.len() as u64;
            }
            totals.completion_tokens += choice.generated as u64;
        }
        totals.total_tokens = totals.prompt_tokens + totals.completion_tokens;
        totals
    }

    /// The same under the names of responses.
    pub(crate) fn of_response(&self) -> serde_json::Value {
        let rest = self.rest.unwrap_or_default();
        json!({
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": rest.prompt_tokens_details,
            "output_tokens": self.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": self.total_tokens,
            "lathe": rest.lathe,
        })
    }
}

impl AnswerHead {
    pub(crate) fn new(
        parsed: &ParsedRequest,
        id: String,
        created: u64,
        answering: &AdapterInfo,
    ) -> Self {
        let prefix = match parsed.shape.dialect {
            Dialect::Completion => "cmpl-",
            Dialect::Chat => "chatcmpl-",
            Dialect::Responses => "resp_",
        };
        Self {
            id: format!("{prefix}{id}"),
            created,
            model: answering.name.clone(),
            fingerprint: answering.fingerprint.clone(),
            shape: Arc::clone(&parsed.shape),
            usage: parsed.usage,
            repeated: parsed.repeated.clone(),
        }
    }

    /// The JSON of an answer that is no stream: every choice with all its text, and the usage.
    pub(crate) fn whole(
        &self,
        token_text: &TokenText,
        choices: &mut [ChoiceState],
        totals: UsageTotals,
    ) -> Vec<u8> {
        if self.shape.dialect == Dialect::Responses {
            return responses::whole(self, token_text, choices, totals);
        }
        let deltas: Vec<Delta> = choices.iter_mut().map(ChoiceState::take).collect();
        let pairs = choices.iter().zip(&deltas);
        let usage = Some(Some(totals));
        match self.shape.dialect {
            Dialect::Completion => {
                let choices = pairs
                    .map(|(choice, delta)| self.completion(token_text, choice, delta, true))
                    .collect();
                self.bytes("text_completion", choices, usage)
            }
            Dialect::Chat | Dialect::Responses => {
                let choices =
                    pairs.map(|(choice, delta)| self.message(token_text, choice, delta)).collect();
                self.bytes("chat.completion", choices, usage)
            }
        }
    }

    /// Appends the chunks that tell of `delta`, if there is anything to tell.
    pub(crate) fn chunks(
        &self,
        token_text: &TokenText,
        choice: &ChoiceState,
        delta: &Delta,
        first: bool,
        so_far: UsageTotals,
        to: &mut Vec<u8>,
    ) {
        let usage = self.usage_beside(so_far);
        let shape = &self.shape;
        let reported = shape.top.is_some() || shape.token_ids || shape.depths;
        let news = !delta.text.is_empty() || (reported && !delta.entries.is_empty());
        match shape.dialect {
            Dialect::Completion if news || delta.end.is_some() => {
                let chunk = self.completion(token_text, choice, delta, first);
                line(to, &self.bytes("text_completion", vec![chunk], usage));
            }
            Dialect::Completion => (),
            Dialect::Chat | Dialect::Responses => {
                let object = "chat.completion.chunk";
                if news {
                    let content = Some(Message { role: None, content: Some(&delta.text) });
                    let chunk = ChatChoice {
                        delta: content,
                        ..self.chat(token_text, choice, delta, false, false)
                    };
                    line(to, &self.bytes(object, vec![chunk], usage));
                }
                if delta.end.is_some() {
                    let nothing = Delta { end: delta.end.clone(), ..Delta::default() };
                    let empty = Some(Message { role: None, content: None });
                    let mut chunk = ChatChoice {
                        delta: empty,
                        ..self.chat(token_text, choice, &nothing, false, true)
                    };
                    chunk.logprobs = None;
                    chunk.more.token_ids = None;
                    line(to, &self.bytes(object, vec![chunk], usage));
                }
            }
        }
    }

    /// The chunk that opens an assistant's message.
    pub(crate) fn role(
        &self,
        token_text: &TokenText,
        choice: &ChoiceState,
        so_far: UsageTotals,
        to: &mut Vec<u8>,
    ) {
        let nothing = Delta::default();
        let message = Some(Message { role: Some("assistant"), content: Some("") });
        let mut chunk =
            ChatChoice { delta: message, ..self.chat(token_text, choice, &nothing, true, false) };
        (chunk.logprobs, chunk.more.token_ids, chunk.more.lathe) = (None, None, None);
        let usage = self.usage_beside(so_far);
        line(to, &self.bytes("chat.completion.chunk", vec![chunk], usage));
    }

    /// The chunk with the usage and no choice.
    pub(crate) fn usage(&self, totals: UsageTotals, to: &mut Vec<u8>) {
        let object = match self.shape.dialect {
            Dialect::Completion => "text_completion",
            Dialect::Chat | Dialect::Responses => "chat.completion.chunk",
        };
        line(to, &self.bytes::<u8>(object, Vec::new(), Some(Some(totals))));
    }

    fn bytes<C: serde::Serialize>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<UsageTotals>>,
    ) -> Vec<u8> {
        let envelope = Envelope {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
        };
        serde_json::to_vec(&envelope).unwrap_or_default()
    }

    /// `usage` of a chunk with a choice: what it is so far where every chunk tells it, null where
    /// the last chunk alone brings it, else left out.
    fn usage_beside(&self, so_far: UsageTotals) -> Option<Option<UsageTotals>> {
        match self.usage {
            StreamUsage { each: true, .. } => Some(Some(so_far)),
            StreamUsage { last, .. } => last.then_some(None),
        }
    }

    fn completion<'d>(
        &self,
        token_text: &TokenText,
        choice: &'d ChoiceState,
        delta: &'d Delta,
        first: bool,
    ) -> CompletionChoice<'d> {
        let (finish_reason, stop_reason) = reasons(delta.end.as_ref());
        CompletionChoice {
            index: choice.index,
            text: &delta.text,
            logprobs: self.shape.top.map(|_| self.columns(token_text, &delta.entries)),
            finish_reason,
            stop_reason,
            more: self.more(choice, delta, first, delta.end.is_some()),
        }
    }

    /// A choice of a whole chat answer.
    fn message<'d>(
        &self,
        token_text: &TokenText,
        choice: &'d ChoiceState,
        delta: &'d Delta,
    ) -> ChatChoice<'d> {
        let message = Message { role: Some("assistant"), content: Some(&delta.text) };
        ChatChoice { message: Some(message), ..self.chat(token_text, choice, delta, true, true) }
    }

    fn chat<'d>(
        &self,
        token_text: &TokenText,
        choice: &'d ChoiceState,
        delta: &'d Delta,
        first: bool,
        last: bool,
    ) -> ChatChoice<'d> {
        let (finish_reason, stop_reason) = reasons(delta.end.as_ref().filter(|_| last));
        let logprobs = self.shape.top.map(|k| self.content(token_text, &delta.entries, k));
        let more = self.more(choice, delta, first, last);
        ChatChoice {
            index: choice.index,
            message: None,
            delta: None,
            logprobs,
            finish_reason,
            stop_reason,
            more,
        }
    }

    fn more<'d>(
        &self,
        choice: &'d ChoiceState,
        delta: &'d Delta,
        first: bool,
        last: bool,
    ) -> Extensions<'d> {
        let generated = delta.entries.iter().filter(|entry| !entry.of_prompt);
        let depths = delta.entries.iter().map(|entry| entry.depth).collect();
        let mean = (last && choice.generated > 0)
            .then(|| choice.depth_sum as f64 / choice.generated as f64);
        Extensions {
            prompt_token_ids: (self.shape.token_ids && first).then_some(&choice.prompt.ids),
            token_ids: self.shape.token_ids.then(|| generated.map(|entry| entry.id).collect()),
            lathe: self.shape.depths.then_some(Depths { depths, mean_depth: mean }),
            routed: if last { self.routed(choice) } else { None },
        }
    }

    /// The experts of all rows of a choice that has ended, where they are asked for.
    pub(crate) fn routed<'d>(&self, choice: &'d ChoiceState) -> Option<RoutedOfChoice<'d>> {
        let (prompt_routed_experts, routed_experts) = choice.routed_experts();
        let told = RoutedOfChoice { prompt_routed_experts, routed_experts };
        self.shape.routed_experts.then_some(told)
    }

    fn columns(&self, token_text: &TokenText, entries: &[TokenEntry]) -> Columns {
        Columns {
            tokens: entries.iter().map(|entry| self.name(token_text, entry.id)).collect(),
            token_logprobs: entries.iter().map(|entry| self.score(entry).map(Score)).collect(),
            top_logprobs: entries.iter().map(|entry| self.likely(token_text, entry)).collect(),
            text_offset: entries.iter().map(|entry| entry.offset).collect(),
        }
    }

    /// The log-probabilities of tokens in the form of responses; none where none are asked for.
    pub(crate) fn token_logprobs(
        &self,
        token_text: &TokenText,
        entries: &[TokenEntry],
    ) -> Vec<serde_json::Value> {
        let Some(k) = self.shape.top else { return Vec::new() };
        let tokens = self.content(token_text, entries, k).content;
        tokens.iter().map(|token| serde_json::to_value(token).unwrap_or_default()).collect()
    }

    fn content(&self, token_text: &TokenText, entries: &[TokenEntry], k: usize) -> Content {
        let content = entries.iter().map(|entry| self.content_token(token_text, entry, k));
        Content { content: content.collect() }
    }

    fn content_token(&self, token_text: &TokenText, entry: &TokenEntry, k: usize) -> ContentToken {
        let score = entry.score.unwrap_or(f32::NEG_INFINITY);
        let top = entry.top.iter().take(k);
        ContentToken {
            token: self.named(token_text, entry.id, score),
            top_logprobs: top.map(|&(id, value)| self.named(token_text, id, value)).collect(),
        }
    }

    fn named(&self, token_text: &TokenText, id: u32, value: f32) -> NamedScore {
        NamedScore {
            token: self.name(token_text, id),
            logprob: Score(value),
            bytes: token_text.bytes(id),
        }
    }

    /// Nothing is known of the first token of a prompt. Who asks for the numbers alone, as typed
    /// clients do, gets one for it too: it is given, so that sums stay right.
    fn score(&self, entry: &TokenEntry) -> Option<f32> {
        entry.score.or((self.shape.top == Some(0)).then_some(0.0))
    }

    /// What may stand at a token's place, the token itself included; none where it has no score.
    fn likely(&self, token_text: &TokenText, entry: &TokenEntry) -> Option<TopLogprobs> {
        let score = self.score(entry)?;
        let mut likely = TopLogprobs(Vec::with_capacity(entry.top.len() + 1));
        for &(id, value) in &entry.top {
            let value = if id == entry.id { score } else { value };
            likely.add(self.name(token_text, id), value);
        }
        likely.add(self.name(token_text, entry.id), score);
        Some(likely)
    }

    fn name(&self, token_text: &TokenText, id: u32) -> String {
        token_text.name(id, self.shape.names_as_ids)
    }
}

fn reasons(end: Option<&End>) -> (Option<&'static str>, Option<StopReason<'_>>) {
    match end {
        None => (None, None),
        Some(End::Length) => (Some("length"), None),
        Some(End::Eos) => (Some("stop"), None),
        Some(End::StopId(id)) => (Some("stop"), Some(StopReason::Id(*id))),
        Some(End::StopText(text)) => (Some("stop"), Some(StopReason::Text(text))),
    }
}

/// Appends one event of a stream.
pub(crate) fn line(to: &mut Vec<u8>, json: &[u8]) {
    to.extend_from_slice(b"data: ");
    to.extend_from_slice(json);
    to.extend_from_slice(b"\n\n");
}
