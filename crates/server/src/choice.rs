//! One sequence on its way to the client: tokens in, text and scores out, the same for streams and
//! whole answers.

use crate::error::ApiError;
use crate::request::{OutputOptions, Prompt};
use crate::stops::StopMatcher;
use crate::token_text::{TokenDecoder, TokenText};
use scheduler::{Done, Finish, RoutedRows, RowExperts, Scored, SequenceEvent, TokenOut, Usage};
use std::collections::VecDeque;
use std::sync::Arc;

/// A token as it is reported.
#[derive(Clone, Debug)]
pub(crate) struct TokenEntry {
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
    pub(crate) entries: Vec<TokenEntry>,
    pub(crate) end: Option<End>,
}

/// What the engine should be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    GoOn,
    /// The text is complete; whatever else comes is not wanted.
    Cancel,
}

/// One sequence of a request, from its prompt to the end of its text: one entry of `choices`.
pub(crate) struct ChoiceState {
    pub(crate) index: usize,
    pub(crate) prompt: Arc<Prompt>,
    pub(crate) generated: usize,
    /// Sum of the depths of new tokens.
    pub(crate) depth_sum: u64,
    pub(crate) usage: Usage,
    shape: Arc<OutputOptions>,
    pieces: TokenDecoder,
    stops: StopMatcher,
    out: Delta,
    end: Option<End>,
    over: bool,
    /// Recursions of a row of full depth, for what was drawn in vain.
    recursions: u32,
    /// Tokens that came after the end of the text, and their depths.
    beyond: (u64, u64),
    /// Code points given out, and those decoded.
    shown: usize,
    decoded: usize,
    /// Where each token of the prompt begins, if it is echoed.
    prompt_offsets: Vec<usize>,
    prompt_text: String,
    scores_due: bool,
    /// The experts of each row of prompt and text so far, layer by layer.
    pub(crate) routed: Vec<RowExperts>,
    /// The vector of the prompt, when it came.
    pub(crate) embedding: Option<Vec<f32>>,
    /// Tokens whose place in the text is not certain yet.
    waiting: VecDeque<TokenEntry>,
    /// A possible stop token, whose text counts only if it turns out to be none.
    withheld: Option<u32>,
}

impl ChoiceState {
    pub(crate) fn new(
        index: usize,
        prompt: Arc<Prompt>,
        shape: Arc<OutputOptions>,
        token_text: &TokenText,
        recursions: u32,
    ) -> Self {
        let mut choice = Self {
            index,
            generated: 0,
            depth_sum: 0,
            usage: Usage { prompt: prompt.ids.len() as u64, ..Usage::default() },
            pieces: TokenDecoder::new(token_text, shape.echo),
            stops: StopMatcher::new(&shape.stops, shape.keep_stop),
            out: Delta::default(),
            end: None,
            over: false,
            recursions,
            beyond: (0, 0),
            shown: 0,
            decoded: 0,
            prompt_offsets: Vec::new(),
            prompt_text: String::new(),
            scores_due: shape.prompt_scores,
            routed: Vec::new(),
            embedding: None,
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
            self.pieces.follow(&prompt.ids);
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
    pub(crate) fn event(&mut self, event: SequenceEvent) -> Result<Next, ApiError> {
        match event {
            _ if self.over => Ok(Next::GoOn),
            SequenceEvent::Done(done) => self.done(done),
            SequenceEvent::Routed(rows) => self.routed(rows),
            SequenceEvent::Token(token) if self.end.is_some() => {
                self.drawn_in_vain(&token);
                Ok(Next::GoOn)
            }
            SequenceEvent::Prompt(scores) => self.scores(scores),
            SequenceEvent::Embedding(vector) => {
                self.embedding = Some(vector);
                Ok(Next::GoOn)
            }
            SequenceEvent::Token(_) if self.scores_due => {
                Err(ApiError::internal("the engine left out the prompt's scores"))
            }
            SequenceEvent::Token(token) => self.token(token),
        }
    }

    fn routed(&mut self, rows: RoutedRows) -> Result<Next, ApiError> {
        if rows.first != self.routed.len() {
            return Err(ApiError::internal("the engine left out the experts of some rows"));
        }
        self.routed.extend(rows.experts);
        Ok(Next::GoOn)
    }

    /// The experts of the prompt's rows, and of those of the text but for the last token's, which
    /// went through no layer.
    pub(crate) fn routed_experts(&self) -> (&[RowExperts], &[RowExperts]) {
        let prompt = self.prompt.ids.len().min(self.routed.len());
        let last = (prompt + self.generated.saturating_sub(1)).min(self.routed.len());
        (&self.routed[..prompt], &self.routed[prompt..last])
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
                return Err(ApiError::internal(
                    "the engine left out a log-probability of the prompt",
                ));
            }
            self.out.entries.push(entry);
        }
        self.show_prompt();
        Ok(Next::GoOn)
    }

    /// Counts a token that came after the end of the text.
    fn drawn_in_vain(&mut self, token: &TokenOut) {
        self.beyond.0 += 1;
        self.beyond.1 += u64::from(token.depth);
    }

    fn token(&mut self, token: TokenOut) -> Result<Next, ApiError> {
        if let Some(id) = self.withheld.take() {
            self.read(id);
            if self.end.is_some() {
                self.drawn_in_vain(&token);
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
        // How far the engine ran past a stop string is chance, and not what was asked for.
        self.usage.recursion_steps = self.usage.recursion_steps.saturating_sub(self.beyond.1);
        self.usage.dense_steps =
            self.usage.dense_steps.saturating_sub(self.beyond.0 * u64::from(self.recursions));
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

fn entry(token: TokenOut, offset: usize, top: Option<usize>) -> Result<TokenEntry, ApiError> {
    let Scored { id, log_probability, top: mut likely } = token.scored;
    let numbers = log_probability.iter().chain(likely.iter().map(|(_, value)| value));
    if numbers.into_iter().any(|value| value.is_nan() || *value == f32::INFINITY) {
        return Err(ApiError::internal(format!("the log-probability of token {id} is no number"))
            .code("nan"));
    }
    match top {
        // The most likely token is always there, so that clients can see whether the chosen one was
        // it.
        Some(k) => likely.truncate(k.max(1)),
        None => likely.clear(),
    }
    let score = log_probability.filter(|_| top.is_some());
    Ok(TokenEntry { id, offset, score, top: likely, depth: token.depth, of_prompt: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Dialect;
    use crate::token_text::ModelText;
    use data::{SpecialTokens, Tokenizer};

    /// A vocabulary in the manner of SentencePiece: the space is part of the word, bytes stand for
    /// what is missing.
    fn token_text() -> TokenText {
        let mut vocab = serde_json::Map::new();
        let words = [
            "<unk>",
            "<s>",
            "</s>",
            "<0xF0>",
            "<0x9F>",
            "<0x98>",
            "<0x80>",
            "\u{2581}",
            "\u{2581}the",
            "\u{2581}cat",
            "s",
            "!",
        ];
        words
            .iter()
            .zip(0u32..)
            .for_each(|(word, id)| drop(vocab.insert((*word).to_owned(), id.into())));
        let special = |id: u32, content: &str| {
            serde_json::json!({ "id": id, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
        };
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
                { "type": "ByteFallback" }, { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ] },
            "model": { "type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>",
                "byte_fallback": true },
        });
        let tokenizer = Tokenizer::from_json(&json.to_string()).unwrap();
        let special =
            SpecialTokens { bos: Some(1), eos: vec![2], add_bos: true, ..SpecialTokens::default() };
        TokenText::new(ModelText { tokenizer, special })
    }

    fn shape(echo: bool, stops: &[&str]) -> OutputOptions {
        OutputOptions {
            dialect: Dialect::Completion,
            echo,
            top: None,
            token_ids: true,
            names_as_ids: false,
            depths: false,
            routed_experts: false,
            stops: stops.iter().map(|&s| s.to_owned()).collect(),
            keep_stop: false,
            show_special: false,
            min_tokens: 0,
            stop_ids: vec![2, 11],
            eos: vec![2],
            prompt_scores: false,
            embedding: None,
        }
    }

    fn choice(shape: OutputOptions) -> ChoiceState {
        let prompt = Prompt { ids: vec![1, 8, 9], added_bos: true, max_tokens: 9 };
        ChoiceState::new(0, Arc::new(prompt), Arc::new(shape), &token_text(), 3)
    }

    fn run(choice: &mut ChoiceState, ids: &[u32], finish: Finish) -> (Vec<String>, Option<End>) {
        let mut texts = Vec::new();
        for &id in ids {
            let scored = Scored { id, log_probability: None, top: Vec::new() };
            choice.event(SequenceEvent::Token(TokenOut { scored, depth: 2 })).unwrap();
            texts.push(choice.take().text);
        }
        let usage = Usage { recursion_steps: 20, dense_steps: 30, ..Usage::default() };
        choice.event(SequenceEvent::Done(Done { finish, usage })).unwrap();
        let last = choice.take();
        texts.push(last.text);
        (texts, last.end)
    }

    #[test]
    fn a_continuation_begins_with_its_space() {
        let (texts, end) =
            run(&mut choice(shape(false, &[])), &[8, 9, 10, 3, 4, 5, 6, 2], Finish::Stop(2));
        assert_eq!(texts.concat(), " the cats\u{1F600}");
        assert_eq!(end, Some(End::Eos));
        let (texts, _) = run(&mut choice(shape(true, &[])), &[8], Finish::Length);
        assert_eq!(texts.concat(), "the cat the");
    }

    #[test]
    fn a_stop_token_has_no_text_unless_it_was_none() {
        let stopped = run(&mut choice(shape(false, &[])), &[10, 11], Finish::Stop(11));
        assert_eq!((stopped.0.concat().as_str(), stopped.1), ("s", Some(End::StopId(11))));
        let went_on = run(&mut choice(shape(false, &[])), &[11, 10, 11], Finish::Length);
        assert_eq!((went_on.0.concat().as_str(), went_on.1), ("!s!", Some(End::Length)));
        let kept = OutputOptions { keep_stop: true, ..shape(false, &[]) };
        assert_eq!(run(&mut choice(kept), &[10, 11], Finish::Stop(11)).0.concat(), "s!");
    }

    #[test]
    fn what_comes_after_a_stop_string_does_not_count() {
        let mut choice = choice(shape(false, &["cats", "never"]));
        let (texts, end) = run(&mut choice, &[8, 9, 10, 9, 9], Finish::Cancelled);
        assert_eq!(texts, [" the", " ", "", "", "", ""]);
        assert_eq!(end, Some(End::StopText("cats".to_owned())));
        assert_eq!(
            (choice.generated, choice.usage.recursion_steps, choice.usage.dense_steps),
            (3, 16, 24)
        );
    }

    #[test]
    fn stop_strings_are_looked_for_behind_the_first_tokens() {
        let least = |min_tokens| OutputOptions { min_tokens, ..shape(false, &["cats"]) };
        // "cats" twice; a part of it among the first tokens is no part of a stop string.
        for (min_tokens, text, tokens) in [(0, " ", 2), (1, " cats ", 4), (2, " cats ", 4)] {
            let mut choice = choice(least(min_tokens));
            let (texts, end) = run(&mut choice, &[9, 10, 9, 10, 8], Finish::Length);
            assert_eq!((texts.concat().as_str(), choice.generated), (text, tokens), "{min_tokens}");
            assert_eq!(end, Some(End::StopText("cats".to_owned())));
        }
        let mut choice = choice(least(3));
        let (texts, end) = run(&mut choice, &[9, 10, 9, 10, 8], Finish::Length);
        assert_eq!((texts.concat().as_str(), end), (" cats cats the", Some(End::Length)));
    }

    #[test]
    fn the_likeliest_token_is_told_whatever_is_asked_for() {
        for (top, told) in [(0, 1), (1, 1), (2, 2), (5, 3)] {
            let mut choice = choice(OutputOptions { top: Some(top), ..shape(false, &[]) });
            let likely = vec![(9, -0.5), (8, -1.0), (10, -2.0)];
            let scored = Scored { id: 8, log_probability: Some(-1.0), top: likely.clone() };
            choice.event(SequenceEvent::Token(TokenOut { scored, depth: 1 })).unwrap();
            assert_eq!(choice.take().entries[0].top, likely[..told], "{top}");
        }
    }

    #[test]
    fn unfinished_characters_come_out_at_the_end() {
        let (texts, _) = run(&mut choice(shape(false, &[])), &[10, 3, 4], Finish::Length);
        assert_eq!(texts[..3], ["s", "", ""]);
        assert!(texts[3].starts_with('\u{FFFD}'), "{texts:?}");
    }

    #[test]
    fn an_engine_that_breaks_its_word_is_an_error() {
        let scored = |p| Scored { id: 8, log_probability: p, top: vec![(8, -1.0)] };
        let token = |p| SequenceEvent::Token(TokenOut { scored: scored(p), depth: 1 });
        let wishing = || OutputOptions { top: Some(1), ..shape(true, &[]) };
        assert_eq!(choice(wishing()).event(token(None)).unwrap_err().status, 500);
        assert!(choice(wishing()).event(token(Some(f32::NAN))).unwrap_err().has_code("nan"));
        assert!(choice(wishing()).event(token(Some(f32::INFINITY))).unwrap_err().has_code("nan"));
        let due = || OutputOptions { prompt_scores: true, ..wishing() };
        assert_eq!(choice(due()).event(token(Some(-1.0))).unwrap_err().status, 500);
        let short = SequenceEvent::Prompt(vec![TokenOut { scored: scored(None), depth: 0 }]);
        assert_eq!(choice(due()).event(short).unwrap_err().status, 500);
        assert!(choice(due()).lost().is_err());
        let mut over = choice(wishing());
        over.event(SequenceEvent::Done(Done { finish: Finish::Length, usage: Usage::default() }))
            .unwrap();
        assert!(over.lost().is_ok());
    }
}
