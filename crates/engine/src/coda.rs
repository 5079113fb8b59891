//! The end of a tick: rows that are done go through the last layers, and where somebody wants
//! logits, tokens are drawn and scored.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use model::Rows;
use ops::{Tensor2, read_rows};
use rayon::prelude::*;
use scheduler::{After, CodaChunk, Finish, Request, Scored, SequenceEvent, SlotId, TokenOut};

use crate::draw::{Draw, prompt_scores, scored};
use crate::engine::{CompletedRows, Engine};
use crate::in_flight::occupied;
use crate::pooling::pooled;

/// Rows whose logits are held at a time.
const LOGIT_ROWS: usize = 64;

/// What the rows of each slot drew, or why drawing failed.
type DrawnTokens = BTreeMap<SlotId, Result<Scored, String>>;

/// A row whose logits somebody wants.
struct AskedRow {
    slot: SlotId,
    /// Its number among the rows of the coda.
    row: u32,
    depth: u32,
    /// Whether the next token is drawn here; else the next token of the prompt is scored.
    draws: bool,
    position: usize,
    request: Arc<Request>,
    generated: Vec<u32>,
}

impl Engine {
    pub(crate) fn run_coda(&mut self, clock: &dyn Fn() -> u64) {
        let chunks = self.handle.scheduler().ready_for_coda();
        for (adapter, chunks) in self.by_adapter(chunks.into_iter(), |chunk| chunk.slot) {
            self.run_coda_of(adapter, chunks, clock);
        }
    }

    fn run_coda_of(&mut self, adapter: u32, chunks: Vec<CodaChunk>, clock: &dyn Fn() -> u64) {
        let (mut lines, mut parts) = (Vec::new(), Vec::new());
        for chunk in &chunks {
            for state in &self.in_flight[&chunk.slot].states {
                lines.extend_from_slice(&state.x_d);
            }
            parts.push(self.rows(chunk.slot, chunk.first..chunk.first + chunk.count));
        }
        let rows = Rows::stack(parts.iter());
        let x_td = self.ops.from_rows(lines, rows.len(), self.model.config().width);
        self.runs.coda += 1;
        let (x_td, _) = self.pass(adapter, |model, pass| model.coda(x_td, &rows, pass));
        let (mut start, mut asked) = (0, Vec::new());
        for chunk in &chunks {
            asked.extend(self.asked(chunk, start));
            start += chunk.count;
        }
        self.pool(&x_td, &chunks);
        let mut drawn = BTreeMap::new();
        for part in asked.chunks(LOGIT_ROWS) {
            self.heads(adapter, &x_td, part, &mut drawn);
        }
        let now_us = clock();
        for chunk in chunks {
            let token = drawn.remove(&chunk.slot).transpose();
            match token.and_then(|token| Ok((token, self.embedding(&chunk)?))) {
                Ok(found) => self.completed(&chunk, found, now_us),
                Err(why) => self.fail(chunk.slot, why, now_us),
            }
        }
    }

    /// Takes in the rows of prompts whose vectors somebody wants.
    fn pool(&mut self, x_td: &Tensor2, chunks: &[CodaChunk]) {
        let (mut start, mut requests, mut numbers) = (0, Vec::new(), Vec::new());
        for chunk in chunks {
            let scheduler = self.handle.scheduler();
            let sequence = occupied(&scheduler, chunk.slot).sequence();
            let request = sequence.request();
            let rows = chunk.first.max(sequence.computed())..chunk.first + chunk.count;
            for position in pooled(request, rows) {
                requests.push(request.id);
                numbers.push((start + position - chunk.first) as u32);
            }
            start += chunk.count;
        }
        if requests.is_empty() {
            return;
        }
        let rows = read_rows(&self.ops.gather_rows(x_td.clone(), &numbers.into()));
        for (request, x_d) in requests.iter().zip(rows.chunks_exact(self.model.config().width)) {
            self.pooled.add(*request, x_d);
        }
    }

    /// The vector of the prompt of which these are the last rows, where somebody wants it.
    fn embedding(&mut self, chunk: &CodaChunk) -> Result<Option<Vec<f32>>, String> {
        let id = {
            let scheduler = self.handle.scheduler();
            let sequence = occupied(&scheduler, chunk.slot).sequence();
            let request = sequence.request();
            let last = request.prompt.len() - 1;
            let rows = chunk.first.max(sequence.computed())..chunk.first + chunk.count;
            (request.embedding.is_some() && rows.contains(&last)).then_some(request.id)
        };
        id.map(|id| self.pooled.take(id)).transpose()
    }

    /// The rows of a chunk whose logits somebody wants; its first row is number `start`.
    fn asked(&self, chunk: &CodaChunk, start: usize) -> Vec<AskedRow> {
        let scheduler = self.handle.scheduler();
        let sequence = occupied(&scheduler, chunk.slot).sequence();
        let request = sequence.request();
        let states = &self.in_flight[&chunk.slot].states;
        let scored: Range<usize> = match request.prompt_scores {
            Some(from) => {
                let first = chunk.first.max(sequence.computed()).max(from.max(1) - 1);
                first..(chunk.first + chunk.count).min(request.prompt.len() - 1)
            }
            None => 0..0,
        };
        let last = chunk.first + chunk.count - 1;
        let positions = scored.map(|position| (position, false));
        let mut rows = Vec::new();
        for (position, draws) in positions.chain(chunk.draws.then_some((last, true))) {
            rows.push(AskedRow {
                slot: chunk.slot,
                row: (start + position - chunk.first) as u32,
                depth: states[position - chunk.first].depth,
                draws,
                position,
                request: request.clone(),
                generated: if draws { sequence.generated().to_vec() } else { Vec::new() },
            });
        }
        rows
    }

    /// Logits of some rows, and what follows from them.
    fn heads(&mut self, adapter: u32, x_td: &Tensor2, asked: &[AskedRow], drawn: &mut DrawnTokens) {
        let numbers: Arc<[u32]> = asked.iter().map(|a| a.row).collect();
        let x_ad = self.ops.gather_rows(x_td.clone(), &numbers);
        self.runs.head += 1;
        let (logits, _) = self.pass(adapter, |model, pass| read_rows(&model.logits(x_ad, pass)));
        let (vocab, draw) = (self.model.config().vocab_size, self.draw.as_ref());
        let results: Vec<Result<Scored, String>> = asked
            .par_iter()
            .zip(logits.par_chunks_exact(vocab))
            .map(|(asked, logits)| {
                catch_unwind(AssertUnwindSafe(|| asked.answer(logits, draw)))
                    .unwrap_or_else(|panic| Err(panic_text(&*panic)))
            })
            .collect();
        for (asked, result) in asked.iter().zip(results) {
            match result {
                Ok(scored) if !asked.draws => {
                    let out = TokenOut { scored, depth: asked.depth };
                    self.scores.entry(asked.request.id).or_default().push(out);
                }
                result => drop(drawn.insert(asked.slot, result)),
            }
        }
    }

    /// The rows of a chunk are complete; the token was drawn from the last of them, and the vector
    /// is that of the prompt.
    fn completed(
        &mut self,
        chunk: &CodaChunk,
        (token, embedding): (Option<Scored>, Option<Vec<f32>>),
        now_us: u64,
    ) {
        let Some(rows) = self.in_flight.remove(&chunk.slot) else { return };
        let depths: Vec<u32> = rows.states.iter().map(|row| row.depth).collect();
        let (request, known) = {
            let scheduler = self.handle.scheduler();
            let sequence = occupied(&scheduler, chunk.slot).sequence();
            (sequence.request().clone(), sequence.computed())
        };
        let drawn = token.as_ref().map(|scored| scored.id);
        let after = self.handle.scheduler().completed(chunk.slot, &depths, drawn, now_us);
        let after = after.unwrap_or_else(|misuse| panic!("{misuse}"));
        let (end, prompt) = (chunk.first + chunk.count, request.prompt.len());
        if request.prompt_scores.is_some() && known < prompt && end >= prompt {
            let scores = self.scores.remove(&request.id).unwrap_or_default();
            self.handle.emit(request.id, SequenceEvent::Prompt(prompt_scores(&request, scores)));
        }
        if let Some(vector) = embedding {
            self.handle.emit(request.id, SequenceEvent::Embedding(vector));
        }
        if request.routed_experts && end > known.max(chunk.first) {
            let rows = self.routed.take(request.id, known.max(chunk.first), end);
            self.handle.emit(request.id, SequenceEvent::Routed(rows));
        }
        let cancelled =
            matches!(&after, After::Ended(ended) if ended.done.finish == Finish::Cancelled);
        if let Some(scored) = token.filter(|_| !cancelled) {
            let depth = depths.last().copied().unwrap_or(0);
            self.handle.emit(request.id, SequenceEvent::Token(TokenOut { scored, depth }));
        }
        let (request, first) = (request.id, chunk.first);
        self.completed_rows.push(CompletedRows { request, first, depths });
        if let After::Ended(ended) = after {
            self.end(ended);
        }
    }
}

impl AskedRow {
    fn answer(&self, logits: &[f32], draw: &dyn Draw) -> Result<Scored, String> {
        if let Some(at) = logits.iter().position(|z| z.is_nan()) {
            return Err(format!(
                "the logit of token {at} at position {} is not a number",
                self.position
            ));
        }
        let id = match self.draws {
            true => self.drawn(logits, draw)?,
            false => self.request.prompt[self.position + 1],
        };
        Ok(scored(logits, id, self.request.top))
    }

    fn drawn(&self, logits: &[f32], draw: &dyn Draw) -> Result<u32, String> {
        let Some(constraint) = &self.request.sampling.constraint else {
            return Ok(draw.draw(logits, &self.request, &self.generated));
        };
        let mut logits = logits.to_vec();
        constraint.0.restrict(&self.generated, &self.request.stop_ids, &mut logits)?;
        Ok(draw.draw(&logits, &self.request, &self.generated))
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("drawing a token panicked: {}", text.unwrap_or_else(|| "no message".into()))
}
