//! Norms of gradients that no process has whole: squares are summed over the same stretches of each
//! weight as in one process. One that lies with several is handed to all.

use std::collections::BTreeMap;
use std::ops::Range;

use ops::{SQUARES_CHUNK, chunks_of_squares};
use processes::{ProcessError, Processes};

use super::exchange::Sums;
use super::{ExpertTraffic, Experts, Shared};
use crate::tell::tell;

impl Experts {
    /// Ends a step: owned experts get the gradients of the whole step. Returns the sum of squares
    /// of each weight that is shared out and trained, by its number; all processes get the same.
    pub(crate) fn reduce(&mut self) -> Result<BTreeMap<usize, f64>, ProcessError> {
        let (sums, mine) = self.exchange.end_step()?;
        self.exchange.put(&sums);
        let me = self.exchange.processes().rank();
        let (mut squares, mut pieces) = (Vec::new(), Vec::new());
        for chunk in self.chunks() {
            let own = chunk.pieces.iter().filter(|piece| piece.owner == me);
            let values = own.flat_map(|piece| piece.values(&sums)).copied();
            match chunk.owner() {
                Some(owner) if owner == me => {
                    squares.extend(chunks_of_squares(&values.collect::<Vec<_>>()));
                }
                Some(_) => {}
                None => pieces.extend(values),
            }
        }
        let told = tell(&**self.exchange.processes(), &(squares, pieces, mine))?;
        let traffic: Vec<ExpertTraffic> =
            told.iter().map(|(.., traffic)| traffic.clone()).collect();
        self.traffic = ExpertTraffic::sum(&traffic);
        let mut told: Vec<(&[f64], &[f32])> =
            told.iter().map(|(squares, pieces, _)| (&squares[..], &pieces[..])).collect();
        let mut all = BTreeMap::new();
        for chunk in self.chunks() {
            let sum: f64 = match chunk.owner() {
                Some(owner) => told[owner].0.split_off_first().copied().unwrap_or_default(),
                None => {
                    let mut values = Vec::with_capacity(SQUARES_CHUNK);
                    for piece in &chunk.pieces {
                        let from = &mut told[piece.owner].1;
                        let here = from.split_off(..piece.at.len().min(from.len()));
                        values.extend_from_slice(here.unwrap_or_default());
                    }
                    chunks_of_squares(&values).into_iter().sum()
                }
            };
            all.entry(chunk.number).or_insert_with(Vec::new).push(sum);
        }
        Ok(all.into_iter().map(|(number, chunks)| (number, chunks.into_iter().sum())).collect())
    }

    /// The stretches of each trained weight whose squares are summed apart, as in one process.
    fn chunks(&self) -> impl Iterator<Item = Chunk> + '_ {
        self.shared.iter().flat_map(|of| {
            let end = match of.trained_from {
                Some(_) => of.owners.len() * of.length,
                None => 0,
            };
            (0..end)
                .step_by(SQUARES_CHUNK)
                .map(move |start| Chunk::of(of, start..(start + SQUARES_CHUNK).min(end)))
        })
    }
}

/// A stretch of a weight of all experts.
struct Chunk {
    number: usize,
    /// One for each expert in it.
    pieces: Vec<Piece>,
}

/// What of it belongs to one expert.
struct Piece {
    owner: usize,
    layer: usize,
    expert: usize,
    /// Among the trained values of the expert.
    at: Range<usize>,
}

impl Piece {
    /// Its values, out of gradients that this process owns.
    fn values<'a>(&self, sums: &'a Sums) -> &'a [f32] {
        sums[self.layer].get(&self.expert).map_or(&[], |values| &values[self.at.clone()])
    }
}

impl Chunk {
    fn of(of: &Shared, range: Range<usize>) -> Self {
        let from = of.trained_from.unwrap_or_default();
        let mut pieces = Vec::new();
        for expert in range.start / of.length..=(range.end - 1) / of.length {
            let (start, end) = (expert * of.length, (expert + 1) * of.length);
            let at = range.start.max(start) - start + from..range.end.min(end) - start + from;
            pieces.push(Piece { owner: of.owners[expert], layer: of.layer, expert, at });
        }
        Self { number: of.number, pieces }
    }

    /// The process that owns all of it, if one does.
    fn owner(&self) -> Option<usize> {
        let first = self.pieces.first()?.owner;
        self.pieces.iter().all(|piece| piece.owner == first).then_some(first)
    }
}
