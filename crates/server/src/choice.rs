//! One sequence on its way to the client: tokens in, text and scores out, the same for streams and whole answers.

use crate::ask::{Prompt, Shape};
use crate::error::ApiError;
use crate::lexicon::{Lexicon, Pieces};
use crate::stops::Stops;
use scheduler::{Done, Event, Finish, Scored, TokenOut, Usage};
use std::collections::VecDeque;
use std::sync::Arc;

/// Tokens at the end of the prompt that tell a decoder how the text goes on.
const PRIMING: usize = 8;

/// A token as it is reported.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) id: u32,
    /// Code points of the returned text before it.
    pub(crate) offset: usize,
    pub(crate) score: Option<f32>,
    pub(crate) top: Vec<(u32, f32)>,
    pub(crate) depth: u32,
    pub(crate) of_prompt: bool,
}

/// Why the text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Length,
    /// The model's own end.
    Eos,
    StopId(u32),
    StopText(String),
}

/// What is new since it was last taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delta {
    pub(crate) text: String,
    pub(crate) entries: Vec<Entry>,
    pub(crate) end: Option<End>,
}

/// What the engine should be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    GoOn,
    /// The text is complete; whatever else comes is not wanted.
    Cancel,
}

/// One sequence.
pub(crate) struct Choice {
    pub(crate) index: usize,
    pub(crate) prompt: Arc<Prompt>,
    pub(crate) generated: usize,
    /// Sum of the depths of new tokens.
    pub(crate) depth_sum: u64,
    pub(crate) usage: Usage,
    shape: Arc<Shape>,
    pieces: Pieces,
    stops: Stops,
    out: Delta,
    end: Option<End>,
    over: bool,
    /// Code points given out, and those decoded.
    shown: usize,
    decoded: usize,
    /// Where each token of the prompt begins, if it is echoed.
    prompt_offsets: Vec<usize>,
    prompt_text: String,
    scores_due: bool,
    /// Tokens whose place in the text is not certain yet.
    waiting: VecDeque<Entry>,
    /// A possible stop token, whose text counts only if it turns out to be none.
    withheld: Option<u32>,
}

impl Choice {
    pub(crate) fn new(index: usize, prompt: Arc<Prompt>, shape: Arc<Shape>, lexicon: &Lexicon) -> Self {
        let mut choice = Self {
            index,
            generated: 0,
            depth_sum: 0,
            usage: Usage { prompt: prompt.ids.len() as u64, ..Usage::default() },
            pieces: Pieces::new(lexicon, shape.echo),
            stops: Stops::new(&shape.stops, shape.keep_stop),
            out: Delta::default(),
            end: None,
            over: false,
            shown: 0,
            decoded: 0,
            prompt_offsets: Vec::new(),
            prompt_text: String::new(),
            scores_due: shape.prompt_scores,
            waiting: VecDeque::new(),
            withheld: None,
            prompt,
            shape,
        };
        choice.read_prompt();
        choice
    }

    fn read_prompt(&mut self) {
        let prompt = Arc::clone(&self.prompt);
        if self.shape.echo {
            for (at, &id) in prompt.ids.iter().enumerate() {
                self.prompt_offsets.push(self.decoded);
                if at == 0 && prompt.added_bos {
                    continue;
                }
                let piece = self.pieces.push(id);
                self.decoded += piece.chars().count();
                self.prompt_text.push_str(&piece);
            }
            if prompt.max_tokens == 0 {
                let rest = self.pieces.finish();
                self.decoded += rest.chars().count();
                self.prompt_text.push_str(&rest);
            }
        } else {
            for &id in &prompt.ids[prompt.ids.len().saturating_sub(PRIMING)..] {
                self.pieces.push(id);
            }
        }
        self.pieces.show_special(self.shape.show_special);
        if self.shape.echo && !self.scores_due {
            self.show_prompt();
        }
    }

    fn show_prompt(&mut self) {
        self.out.text.push_str(&std::mem::take(&mut self.prompt_text));
        self.shown = self.decoded;
    }

    /// Whether the last event came.
    pub(crate) fn over(&self) -> bool {
        self.over
    }

    pub(crate) fn take(&mut self) -> Delta {
        std::mem::take(&mut self.out)
    }

    /// # Errors
    /// 500 for what must not happen inside, 408 and 503 for sequences that were ended early.
    pub(crate) fn event(&mut self, event: Event) -> Result<Next, ApiError> {
        match event {
            _ if self.over => Ok(Next::GoOn),
            Event::Done(done) => self.done(done),
            _ if self.end.is_some() => Ok(Next::GoOn),
            Event::Prompt(scores) => self.scores(scores),
            Event::Token(_) if self.scores_due => Err(ApiError::internal("the engine left out the prompt's scores")),
            Event::Token(token) => self.token(token),
        }
    }

    /// The engine let go of the sequence without a last event.
    ///
    /// # Errors
    /// 500 unless the text was complete.
    pub(crate) fn lost(&mut self) -> Result<(), ApiError> {
        if self.over {
            return Ok(());
        }
        if self.end.is_none() {
            return Err(ApiError::internal("the engine dropped the request").code("engine"));
        }
        self.over = true;
        self.out.end = self.end.clone();
        Ok(())
    }

    fn scores(&mut self, scores: Vec<TokenOut>) -> Result<Next, ApiError> {
        if !self.scores_due {
            return Ok(Next::GoOn);
        }
        if scores.len() != self.prompt.ids.len() {
            let (found, expected) = (scores.len(), self.prompt.ids.len());
            let message = format!("the engine scored {found} tokens of a prompt of {expected}");
            return Err(ApiError::internal(message));
        }
        self.scores_due = false;
        for (at, token) in scores.into_iter().enumerate() {
            let offset = self.prompt_offsets.get(at).copied().unwrap_or(self.decoded);
            let mut entry = entry(token, offset, self.shape.top)?;
            entry.of_prompt = true;
            if at == 0 {
                (entry.score, entry.top) = (None, Vec::new());
            } else if self.shape.top.is_some() && entry.score.is_none() {
                return Err(ApiError::internal("the engine left out a log-probability of the prompt"));
            }
            self.out.entries.push(entry);
        }
        self.show_prompt();
        Ok(Next::GoOn)
    }

    fn token(&mut self, token: TokenOut) -> Result<Next, ApiError> {
        if let Some(id) = self.withheld.take() {
            self.read(id);
            if self.end.is_some() {
                return Ok(Next::Cancel);
            }
        }
        self.generated += 1;
        self.depth_sum += u64::from(token.depth);
        let id = token.scored.id;
        let entry = entry(token, self.decoded, self.shape.top)?;
        if self.shape.top.is_some() && entry.score.is_none() {
            return Err(ApiError::internal("the engine left out a log-probability"));
        }
        self.waiting.push_back(entry);
        if self.shape.stop_ids.contains(&id) {
            self.withheld = Some(id);
        } else {
            self.read(id);
        }
        self.release();
        Ok(if self.end.is_some() { Next::Cancel } else { Next::GoOn })
    }

    /// Adds the text of a token.
    fn read(&mut self, id: u32) {
        let piece = self.pieces.push(id);
        self.feed(&piece);
    }

    fn feed(&mut self, piece: &str) {
        if piece.is_empty() {
            return;
        }
        self.decoded += piece.chars().count();
        let before = self.out.text.len();
        if self.generated <= self.shape.min_tokens {
            self.out.text.push_str(piece);
        } else if let Some(hit) = self.stops.push(piece, &mut self.out.text) {
            self.end = Some(End::StopText(hit.string));
        }
        self.shown += self.out.text[before..].chars().count();
    }

    /// Gives out the tokens whose place is certain: nothing before them can be cut off any more.
    fn release(&mut self) {
        let all = self.end.is_some();
        while self.waiting.front().is_some_and(|entry| all || entry.offset <= self.shown) {
            if let Some(mut entry) = self.waiting.pop_front() {
                entry.offset = entry.offset.min(self.shown);
                self.out.entries.push(entry);
            }
        }
    }

    fn done(&mut self, done: Done) -> Result<Next, ApiError> {
        self.usage = done.usage;
        self.over = true;
        if self.end.is_none() {
            if self.scores_due && matches!(done.finish, Finish::Stop(_) | Finish::Length) {
                return Err(ApiError::internal("the engine left out the prompt's scores"));
            }
            let end = match done.finish {
                Finish::Length => End::Length,
                Finish::Stop(id) if self.shape.eos.contains(&id) => End::Eos,
                Finish::Stop(id) => End::StopId(id),
                Finish::Cancelled => return Err(ApiError::draining()),
                Finish::Deadline => return Err(ApiError::deadline()),
                Finish::Failed(what) => return Err(ApiError::internal(what).code("engine")),
            };
            if let Some(id) = self.withheld.take()
                && (end == End::Length || self.shape.keep_stop)
            {
                self.read(id);
            }
            self.settle(end);
        }
        self.out.end = self.end.clone();
        Ok(Next::GoOn)
    }

    /// Nothing more comes: what was held back is text, unless it holds a stop string.
    fn settle(&mut self, end: End) {
        let rest = self.pieces.finish();
        if self.end.is_none() {
            self.feed(&rest);
        }
        if self.end.is_none() {
            let before = self.out.text.len();
            self.stops.finish(&mut self.out.text);
            self.shown += self.out.text[before..].chars().count();
            self.end = Some(end);
        }
        self.release();
    }
}

fn entry(token: TokenOut, offset: usize, top: Option<usize>) -> Result<Entry, ApiError> {
    let Scored { id, log_probability, top: mut likely } = token.scored;
    let numbers = log_probability.iter().chain(likely.iter().map(|(_, value)| value));
    if numbers.into_iter().any(|value| value.is_nan() || *value == f32::INFINITY) {
        return Err(ApiError::internal(format!("the log-probability of token {id} is no number")).code("nan"));
    }
    match top {
        // The most likely token is always there, so that clients can see whether the chosen one was it.
        Some(k) => likely.truncate(k.max(1)),
        None => likely.clear(),
    }
    let score = log_probability.filter(|_| top.is_some());
    Ok(Entry { id, offset, score, top: likely, depth: token.depth, of_prompt: false })
}
