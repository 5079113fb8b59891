//! The recursion: rows that the router keeps go through the shared block, the others stay as they are. The heart of the
//! model; training, evaluation and generation all run exactly this.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Combine, Tensor2};

use crate::block::Block;
use crate::pass::Pass;
use crate::routing::expert_choice::Gating;
use crate::routing::token_choice::{GateOn, TokenChoice};
use crate::routing::{Candidates, Router, Selection, Terms};
use crate::rows::Rows;
use crate::sharing::Use;

/// The shared block with its router.
#[derive(Debug)]
pub(crate) struct Recursion {
    pub(crate) router: Router,
    /// Stored layers of the model, by number.
    pub(crate) blocks: Vec<Arc<Block>>,
    /// The layers of each recursion.
    pub(crate) uses: Vec<Vec<Use>>,
}

/// What the recursions made of the rows.
pub(crate) struct Turned {
    pub(crate) x_td: Tensor2,
    /// How many recursions each row had.
    pub(crate) depth_t: Vec<u32>,
    pub(crate) terms: Terms,
}

impl Recursion {
    pub(crate) fn forward(&self, x_td: Tensor2, rows: &Rows, pass: &mut Pass<'_>) -> Turned {
        match &self.router {
            Router::TokenChoice(router) => self.chosen_by_tokens(router, x_td, rows, pass),
            _ => self.filtered(x_td, rows, pass),
        }
    }

    /// Recursion `r` asks the router who of the still active rows goes on; their results join the stream at once, so a
    /// row that stops keeps the state it stopped with.
    fn filtered(&self, mut x_td: Tensor2, rows: &Rows, pass: &mut Pass<'_>) -> Turned {
        let lengths: BTreeMap<u32, usize> =
            rows.sequences().into_iter().map(|run| (rows.sequence[run.start], run.len())).collect();
        let mut active: Arc<[u32]> = (0..rows.len() as u32).collect();
        let mut active_rows = rows.clone();
        let (mut depth_t, mut terms) = (vec![0; rows.len()], Terms::default());
        for r in 0..self.uses.len().min(pass.max_depth.unwrap_or(usize::MAX)) {
            let all = active.len() == rows.len();
            let x_cd = if all { x_td.clone() } else { pass.ops.gather_rows(x_td.clone(), &active) };
            let candidates = Candidates { x_ad: &x_cd, rows: &active_rows, numbers: &active, lengths: &lengths };
            let (selection, more) = self.select(r, &candidates, &x_td, pass);
            terms.join(more);
            let x_ad = match &selection.kept {
                None => x_cd,
                Some(kept) => {
                    active = kept.iter().map(|&i| active[i as usize]).collect();
                    active_rows = active_rows.only(kept);
                    pass.ops.gather_rows(x_cd, kept)
                }
            };
            if active.is_empty() {
                break;
            }
            let y_ad = self.block(r, x_ad, &active_rows, pass);
            x_td = match selection.weight_a1 {
                Some(weight) => pass.ops.combine_rows(x_td, &active, y_ad, weight, self.combine()),
                None if active.len() == rows.len() => y_ad,
                None => pass.ops.replace_rows(x_td, &active, y_ad),
            };
            active.iter().for_each(|&row| depth_t[row as usize] += 1);
        }
        Turned { x_td, depth_t, terms }
    }

    fn select(&self, r: usize, candidates: &Candidates<'_>, x_td: &Tensor2, pass: &mut Pass<'_>) -> (Selection, Terms) {
        match &self.router {
            Router::Fixed(router) => (router.select(), Terms::default()),
            Router::ExpertChoice(router) => {
                pass.probe.stream(x_td);
                router.select(r, candidates, pass)
            }
            Router::Random(router) => {
                pass.probe.stream(x_td);
                (router.select(r, candidates, pass), Terms::default())
            }
            Router::TokenChoice(_) => unreachable!("token-choice assigns depths before the first recursion"),
        }
    }

    fn combine(&self) -> Combine {
        match &self.router {
            Router::ExpertChoice(router) if router.gating() == Gating::Blend => Combine::Blend,
            _ => Combine::Add,
        }
    }

    /// Every row knows its depth; at recursion `q` the rows of depth `q` are done and join the stream with their gate,
    /// the others take the block's output along: `x = x_0 + g * block^depth(x_0)`.
    fn chosen_by_tokens(&self, router: &TokenChoice, x_td: Tensor2, rows: &Rows, pass: &mut Pass<'_>) -> Turned {
        pass.probe.stream(&x_td);
        let assigned = router.assign(&x_td, rows, pass);
        let mut stream = x_td.clone();
        let mut active: Arc<[u32]> = (0..rows.len() as u32).collect();
        let (mut x_ad, mut active_rows) = (x_td, rows.clone());
        for q in 0..self.uses.len() {
            if active.is_empty() {
                break;
            }
            let mut y_ad = self.block(q, x_ad, &active_rows, pass);
            if router.gate_on() == GateOn::EveryPass {
                let gates = pass.ops.gather_rows(assigned.gate_t1.clone(), &active);
                y_ad = pass.ops.scale_rows(y_ad, gates);
            }
            let places = |done: bool| -> Arc<[u32]> {
                let at_end = |row: &u32| (assigned.depth_t[*row as usize] == q as u32) == done;
                active.iter().enumerate().filter(|(_, row)| at_end(row)).map(|(i, _)| i as u32).collect()
            };
            let (done, going) = (places(true), places(false));
            let numbers = |places: &[u32]| -> Arc<[u32]> { places.iter().map(|&i| active[i as usize]).collect() };
            let (done_rows, going_rows) = (numbers(&done), numbers(&going));
            if !done.is_empty() {
                let weight = match router.gate_on() {
                    GateOn::LastPass => pass.ops.gather_rows(assigned.gate_t1.clone(), &done_rows),
                    GateOn::EveryPass => ops::column(vec![1.0; done.len()]),
                };
                let y = pass.ops.gather_rows(y_ad.clone(), &done);
                stream = pass.ops.combine_rows(stream, &done_rows, y, weight, Combine::Add);
            }
            x_ad = if going.is_empty() { y_ad } else { pass.ops.gather_rows(y_ad, &going) };
            active_rows = active_rows.only(&going);
            active = going_rows;
        }
        let depth_t = assigned.depth_t.iter().map(|d| d + 1).collect();
        Turned { x_td: stream, depth_t, terms: assigned.terms }
    }

    /// One recursion's layers on the active rows.
    fn block(&self, r: usize, mut x_ad: Tensor2, rows: &Rows, pass: &mut Pass<'_>) -> Tensor2 {
        for &at in &self.uses[r] {
            if matches!(self.router, Router::Fixed(_)) {
                pass.probe.stream(&x_ad);
            }
            x_ad = self.blocks[at.stored].forward(x_ad, rows, at, pass);
        }
        x_ad
    }
}
