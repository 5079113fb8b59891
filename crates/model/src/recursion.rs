//! The recursion: rows that the router keeps go through the shared block, the others stay as they
//! are. The heart of the model; training, evaluation and generation all run exactly this.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Combine, Tensor2};

use crate::block::Block;
use crate::layout::{DepthRuns, LayerUse};
use crate::pass::Pass;
use crate::recursion_state::{ActiveRows, Inner, RecursionState, by_depth};
use crate::routers::expert_choice::Gating;
use crate::routers::token_choice::{GateOn, TokenChoice};
use crate::routers::{AuxLosses, Candidates, Router, Selection};
use crate::rows::Rows;

/// The shared block with its router.
#[derive(Debug)]
pub(crate) struct Recursion {
    pub(crate) router: Router,
    /// Stored layers of the model, by number.
    pub(crate) blocks: Vec<Arc<Block>>,
    /// The layers of each recursion.
    pub(crate) uses: Vec<Vec<LayerUse>>,
}

impl Recursion {
    /// Rows that have just come to the recursions. A token-choice router tells each its depth now.
    pub(crate) fn begin(&self, x_td: Tensor2, rows: &Rows, pass: &mut Pass<'_>) -> RecursionState {
        let lengths: BTreeMap<u32, usize> =
            rows.sequences().into_iter().map(|run| (rows.sequence[run.start], run.len())).collect();
        let mut state = RecursionState::new(x_td.clone(), rows.clone(), lengths);
        state.active = (0..rows.len() as u32).collect();
        if let Router::TokenChoice(router) = &self.router {
            pass.probe.stream(&x_td);
            let (assigned, terms) = router.assign(&x_td, rows, pass);
            state.terms.join(terms);
            state.inner = Some(Inner { x_ad: x_td, assigned });
        } else {
            self.decide(&mut state, pass);
        }
        state
    }

    /// One recursion for every row that goes on, each at its own depth; then the router says who
    /// goes on after it.
    pub(crate) fn recur(&self, state: &mut RecursionState, pass: &mut Pass<'_>) {
        match &self.router {
            Router::TokenChoice(router) => self.recur_assigned(router, state, pass),
            _ => {
                self.apply(state, pass);
                self.decide(state, pass);
            }
        }
    }

    /// The router says who of the active rows takes its next recursion. It is asked as soon as a
    /// row's state is known, so that a row that stops can leave at once.
    fn decide(&self, state: &mut RecursionState, pass: &mut Pass<'_>) {
        let limit = self.uses.len().min(pass.max_depth.unwrap_or(usize::MAX)) as u32;
        let open = |row: &u32| {
            state.depth_t[*row as usize] < limit.min(state.rows.limits(*row as usize).max)
        };
        let active: Vec<u32> = state.active.iter().copied().filter(open).collect();
        let mut parts = Vec::new();
        for (r, numbers) in by_depth(&active, &state.depth_t) {
            parts.extend(self.selected(r, numbers, state, pass));
        }
        state.going = ActiveRows::join(parts);
        state.active =
            state.going.as_ref().map_or_else(|| Arc::from([]), |going| going.numbers.clone());
    }

    /// The block for the rows that go on. Their results join the stream at once, so a row that
    /// stops keeps the state it stopped with.
    fn apply(&self, state: &mut RecursionState, pass: &mut Pass<'_>) {
        let Some(going) = state.going.take() else { return };
        let y_ad = self.block(&going.runs, going.x_ad, &going.rows, pass);
        let all = going.runs.len() == 1 && going.numbers.len() == state.rows.len();
        let x_td = state.take_stream();
        state.x_td = match going.weight_a1 {
            Some(weight) => {
                pass.ops.combine_rows(x_td, &going.numbers, y_ad, weight, self.combine())
            }
            None if all => y_ad,
            None => pass.ops.replace_rows(x_td, &going.numbers, y_ad),
        };
        going.numbers.iter().for_each(|&row| state.depth_t[row as usize] += 1);
    }

    /// Those of the rows `numbers`, all at depth `r`, that go on.
    fn selected(
        &self,
        r: usize,
        numbers: Arc<[u32]>,
        state: &mut RecursionState,
        pass: &mut Pass<'_>,
    ) -> Option<ActiveRows> {
        let all = numbers.len() == state.rows.len();
        let (x_cd, rows) = if all {
            (state.x_td.clone(), state.rows.clone())
        } else {
            (pass.ops.gather_rows(state.x_td.clone(), &numbers), state.rows.only(&numbers))
        };
        let candidates =
            Candidates { x_ad: &x_cd, rows: &rows, numbers: &numbers, lengths: &state.lengths };
        let (selection, terms) = self.select(r, &candidates, &state.x_td, pass);
        state.terms.join(terms);
        let (numbers, rows, x_ad) = match &selection.kept {
            None => (numbers, rows, x_cd),
            Some(kept) => (
                kept.iter().map(|&i| numbers[i as usize]).collect(),
                rows.only(kept),
                pass.ops.gather_rows(x_cd, kept),
            ),
        };
        let runs = vec![(r, numbers.len())];
        (!numbers.is_empty()).then_some(ActiveRows {
            runs,
            numbers,
            rows,
            x_ad,
            weight_a1: selection.weight_a1,
        })
    }

    fn select(
        &self,
        r: usize,
        candidates: &Candidates<'_>,
        x_td: &Tensor2,
        pass: &mut Pass<'_>,
    ) -> (Selection, AuxLosses) {
        match &self.router {
            Router::Fixed(router) => (router.select(), AuxLosses::default()),
            Router::ExpertChoice(router) => {
                pass.probe.stream(x_td);
                router.select(r, candidates, pass)
            }
            Router::Random(router) => {
                pass.probe.stream(x_td);
                (router.select(r, candidates, pass), AuxLosses::default())
            }
            Router::TokenChoice(_) => {
                unreachable!("token-choice assigns depths before the first recursion")
            }
        }
    }

    fn combine(&self) -> Combine {
        match &self.router {
            Router::ExpertChoice(router) if router.gating() == Gating::Blend => Combine::Blend,
            _ => Combine::Add,
        }
    }

    /// Every row knows its depth; after recursion `q` the rows of depth `q` are done and join the
    /// stream with their gate, the others take the block's output along: `x = x_0 + g *
    /// block^depth(x_0)`.
    fn recur_assigned(
        &self,
        router: &TokenChoice,
        state: &mut RecursionState,
        pass: &mut Pass<'_>,
    ) {
        let Some(Inner { mut x_ad, assigned }) = state.inner.take() else { return };
        let groups = by_depth(&state.active, &state.depth_t);
        let runs: Vec<(usize, usize)> =
            groups.iter().map(|(q, numbers)| (*q, numbers.len())).collect();
        let active: Arc<[u32]> =
            groups.iter().flat_map(|(_, numbers)| numbers.iter().copied()).collect();
        if runs.len() > 1 {
            let place = |row: &u32| state.active.iter().position(|a| a == row).unwrap_or(0) as u32;
            x_ad = pass.ops.gather_rows(x_ad, &active.iter().map(place).collect());
        }
        let all = runs.len() == 1 && active.len() == state.rows.len();
        let rows = if all { state.rows.clone() } else { state.rows.only(&active) };
        let mut y_ad = self.block(&runs, x_ad, &rows, pass);
        if router.gate_on() == GateOn::EveryPass {
            y_ad =
                pass.ops.scale_rows(y_ad, pass.ops.gather_rows(assigned.gate_t1.clone(), &active));
        }
        let places = |done: bool| -> Arc<[u32]> {
            let at_end =
                |row: u32| (assigned.depth_t[row as usize] == state.depth_t[row as usize]) == done;
            active
                .iter()
                .enumerate()
                .filter(|(_, row)| at_end(**row))
                .map(|(i, _)| i as u32)
                .collect()
        };
        let (done, going) = (places(true), places(false));
        let numbers =
            |places: &[u32]| -> Arc<[u32]> { places.iter().map(|&i| active[i as usize]).collect() };
        let (done_rows, going_rows) = (numbers(&done), numbers(&going));
        if !done.is_empty() {
            let weight = match router.gate_on() {
                GateOn::LastPass => pass.ops.gather_rows(assigned.gate_t1.clone(), &done_rows),
                GateOn::EveryPass => ops::column(vec![1.0; done.len()]),
            };
            let y = pass.ops.gather_rows(y_ad.clone(), &done);
            let x_td = state.take_stream();
            state.x_td = pass.ops.combine_rows(x_td, &done_rows, y, weight, Combine::Add);
        }
        active.iter().for_each(|&row| state.depth_t[row as usize] += 1);
        if !going.is_empty() {
            state.inner = Some(Inner { x_ad: pass.ops.gather_rows(y_ad, &going), assigned });
        }
        state.active = going_rows;
    }

    /// The layers of one recursion on active rows, `runs` saying how deep they are.
    fn block(
        &self,
        runs: &[(usize, usize)],
        mut x_ad: Tensor2,
        rows: &Rows,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        for j in 0..self.uses[0].len() {
            if matches!(self.router, Router::Fixed(_)) {
                pass.probe.stream(&x_ad);
            }
            let at =
                DepthRuns::mixed(runs.iter().map(|&(r, count)| (self.uses[r][j], count)).collect());
            x_ad = self.blocks[self.uses[0][j].stored].forward(x_ad, rows, &at, pass);
        }
        x_ad
    }
}
