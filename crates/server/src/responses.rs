//! `/v1/responses`: answers in its form, whole or as events.

use crate::answer::{AnswerHead, UsageTotals};
use crate::choice::{ChoiceState, Delta, End};
use crate::error::ApiError;
use crate::token_text::TokenText;
use serde_json::{Value, json};

/// How a response stands.
#[derive(Clone, Copy)]
enum Status {
    InProgress,
    Completed,
    /// The tokens were used up.
    Incomplete,
    Failed,
}

impl Status {
    fn of(end: Option<&End>) -> Self {
        match end {
            Some(End::Length) => Self::Incomplete,
            _ => Self::Completed,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
        }
    }
}

/// The JSON of an answer that is no stream.
pub(crate) fn whole(
    head: &AnswerHead,
    token_text: &TokenText,
    choices: &mut [ChoiceState],
    totals: UsageTotals,
) -> Vec<u8> {
    let mut written = Written::default();
    let mut end = None;
    for choice in choices {
        let delta = choice.take();
        written.add(head, token_text, &delta);
        end = delta.end;
    }
    let status = Status::of(end.as_ref());
    let output = vec![written.item(head, status)];
    serde_json::to_vec(&response(head, status, output, Some(totals))).unwrap_or_default()
}

/// A response as far as it has come.
fn response(
    head: &AnswerHead,
    status: Status,
    output: Vec<Value>,
    totals: Option<UsageTotals>,
) -> Value {
    let mut all = head.repeated.clone();
    let why = match status {
        Status::Incomplete => json!({ "reason": "max_output_tokens" }),
        _ => Value::Null,
    };
    let fields = json!({
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "model": head.model,
        "status": status.name(),
        "error": null,
        "incomplete_details": why,
        "output": output,
        "usage": totals.map(|totals| totals.of_response()),
        "background": false,
        "previous_response_id": null,
        "service_tier": "default",
        "store": false,
        "truncation": "disabled",
    });
    if let (Value::Object(all), Value::Object(fields)) = (&mut all, fields) {
        all.extend(fields);
    }
    all
}

/// The text of an answer as far as it has come, with what is reported of its tokens.
#[derive(Default)]
struct Written {
    text: String,
    logprobs: Vec<Value>,
    depths: Vec<u32>,
    ids: Vec<u32>,
}

impl Written {
    /// Adds what is new; returns its log-probabilities.
    fn add(&mut self, head: &AnswerHead, token_text: &TokenText, delta: &Delta) -> Vec<Value> {
        self.text += &delta.text;
        self.depths.extend(delta.entries.iter().map(|entry| entry.depth));
        self.ids.extend(delta.entries.iter().map(|entry| entry.id));
        let new = head.token_logprobs(token_text, &delta.entries);
        self.logprobs.extend(new.iter().cloned());
        new
    }

    /// The message, with its text unless it has only begun.
    fn item(&self, head: &AnswerHead, status: Status) -> Value {
        let content = match status {
            Status::InProgress => Vec::new(),
            _ => vec![self.part()],
        };
        let mut item = json!({
            "type": "message",
            "id": item_id(head),
            "status": status.name(),
            "role": "assistant",
            "content": content,
        });
        if head.shape.depths {
            let sum: u32 = self.depths.iter().sum();
            let mean = f64::from(sum) / self.depths.len().max(1) as f64;
            item["lathe"] = json!({ "depths": self.depths, "mean_depth": mean });
        }
        if head.shape.token_ids {
            item["token_ids"] = json!(self.ids);
        }
        item
    }

    fn part(&self) -> Value {
        json!({
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": self.logprobs,
        })
    }
}

fn item_id(head: &AnswerHead) -> String {
    head.id.replacen("resp_", "msg_", 1)
}

/// A streamed answer: events with numbers, of which the last has the whole response.
#[derive(Default)]
pub(crate) struct ResponseEvents {
    number: u64,
    written: Written,
    end: Option<End>,
}

impl ResponseEvents {
    fn event(&mut self, kind: &str, mut fields: Value, to: &mut Vec<u8>) {
        fields["type"] = json!(kind);
        fields["sequence_number"] = json!(self.number);
        self.number += 1;
        to.extend_from_slice(format!("event: {kind}\ndata: {fields}\n\n").as_bytes());
    }

    /// An event about the message or its text.
    fn of_item(&mut self, head: &AnswerHead, kind: &str, mut fields: Value, to: &mut Vec<u8>) {
        fields["output_index"] = json!(0);
        if !kind.starts_with("response.output_item") {
            fields["item_id"] = json!(item_id(head));
            fields["content_index"] = json!(0);
        }
        self.event(kind, fields, to);
    }

    /// The events before any text.
    pub(crate) fn open(&mut self, head: &AnswerHead, to: &mut Vec<u8>) {
        let begun = response(head, Status::InProgress, Vec::new(), None);
        self.event("response.created", json!({ "response": begun }), to);
        self.event("response.in_progress", json!({ "response": begun }), to);
        let item = self.written.item(head, Status::InProgress);
        self.of_item(head, "response.output_item.added", json!({ "item": item }), to);
        let part = self.written.part();
        self.of_item(head, "response.content_part.added", json!({ "part": part }), to);
    }

    /// The event with new text, if there is any.
    pub(crate) fn delta(
        &mut self,
        head: &AnswerHead,
        token_text: &TokenText,
        delta: &Delta,
        to: &mut Vec<u8>,
    ) {
        let logprobs = self.written.add(head, token_text, delta);
        self.end = delta.end.clone().or(self.end.take());
        if !delta.text.is_empty() || !logprobs.is_empty() {
            let fields = json!({ "delta": delta.text, "logprobs": logprobs });
            self.of_item(head, "response.output_text.delta", fields, to);
        }
    }

    /// The events behind the text.
    pub(crate) fn close(&mut self, head: &AnswerHead, totals: UsageTotals, to: &mut Vec<u8>) {
        let status = Status::of(self.end.as_ref());
        let Written { text, logprobs, .. } = &self.written;
        let fields = json!({ "text": text, "logprobs": logprobs });
        self.of_item(head, "response.output_text.done", fields, to);
        let part = self.written.part();
        self.of_item(head, "response.content_part.done", json!({ "part": part }), to);
        let item = self.written.item(head, status);
        self.of_item(head, "response.output_item.done", json!({ "item": item }), to);
        let whole = response(head, status, vec![item], Some(totals));
        let kind = format!("response.{}", status.name());
        self.event(&kind, json!({ "response": whole }), to);
    }

    /// The events of an answer that ends with an error.
    pub(crate) fn fail(&mut self, head: &AnswerHead, error: &ApiError, to: &mut Vec<u8>) {
        let (code, message) = (error.kind(), error.message());
        let fields = json!({ "code": code, "message": message, "param": null });
        self.event("error", fields, to);
        let mut whole = response(head, Status::Failed, Vec::new(), None);
        let code = if code == "overloaded_error" { "rate_limit_exceeded" } else { "server_error" };
        whole["error"] = json!({ "code": code, "message": message });
        self.event("response.failed", json!({ "response": whole }), to);
    }
}
