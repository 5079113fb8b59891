//! The recursion: rows that the router keeps go through the shared block, the others stay as they
//! are. The heart of the model; training, evaluation and generation all run exactly this.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Combine, Tensor2};

use crate::block::Block;
use crate::carry::Carry;
use crate::context::LayerContext;
use crate::layout::{DepthRuns, LayerUse};
use crate::pass::Pass;
use crate::recursion_state::{ActiveRows, RecursionState, by_depth};
use crate::routers::member::Router;
use crate::routers::plan::{Joins, RouterCall, WEIGHT};
use crate::rows::Rows;

/// The shared block with its router.
#[derive(Debug)]
pub(crate) struct Recursion {
    pub(crate) router: Box<dyn Router>,
    /// Whether the router chooses at all.
    pub(crate) chooses: bool,
    /// Stored layers of the model, by number.
    pub(crate) blocks: Vec<Arc<Block>>,
    /// The layers of each recursion.
    pub(crate) uses: Vec<Vec<LayerUse>>,
}

/// Rows that might take a further recursion: all at first, then those that took the last one.
struct Ran {
    /// Their numbers among the rows of the state.
    numbers: Arc<[u32]>,
    /// The block's output, where that is its next input.
    y_ad: Option<Tensor2>,
    carry: Carry,
}

impl Recursion {
    /// Rows that have just come to the recursions.
    pub(crate) fn begin(
        &self,
        x_td: Tensor2,
        rows: &Rows,
        carry: Carry,
        pass: &mut Pass<'_>,
    ) -> RecursionState {
        let mut lengths = BTreeMap::new();
        for run in rows.sequences() {
            lengths.insert(rows.sequence[run.start], run.len());
        }
        let chained = matches!(self.router.joins(), Joins::AtEnd { .. });
        let y_ad = chained.then(|| x_td.clone());
        let mut state = RecursionState::new(x_td, rows.clone(), lengths);
        state.chained = y_ad.is_some();
        let numbers = (0..rows.len() as u32).collect();
        self.decide(&mut state, Ran { numbers, y_ad, carry }, pass);
        state
    }

    /// One recursion for every row that goes on, each at its own depth; then the router says who
    /// goes on after it. Results join the stream at once where the router does not say otherwise,
    /// so a row that stops keeps the state it stopped with; without a weight they replace it.
    pub(crate) fn recur(&self, state: &mut RecursionState, pass: &mut Pass<'_>) {
        if !state.is_active() {
            return;
        }
        let ActiveRows { runs, numbers, rows, x_ad, mut carry } =
            std::mem::replace(&mut state.active, ActiveRows::none());
        let mut y_ad = self.block(&runs, x_ad, &rows, &mut carry, pass);
        for &row in numbers.iter() {
            state.depth_t[row as usize] += 1;
        }
        let y_ad = match self.router.joins() {
            Joins::EachRecursion(how) => {
                let weight_a1 = carry.remove(WEIGHT);
                let all = runs.len() == 1 && numbers.len() == state.rows.len();
                let x_td = state.take_stream();
                state.x_td = match weight_a1 {
                    Some(weight) => pass.ops.combine_rows(x_td, &numbers, y_ad, weight, how),
                    None if all => y_ad,
                    None => pass.ops.replace_rows(x_td, &numbers, y_ad),
                };
                None
            }
            Joins::AtEnd { every_pass } => {
                if let Some(weight_a1) = carry.get(WEIGHT).filter(|_| every_pass) {
                    y_ad = pass.ops.scale_rows(y_ad, weight_a1.clone());
                }
                Some(y_ad)
            }
        };
        self.decide(state, Ran { numbers, y_ad, carry }, pass);
    }

    /// The router says who of the rows takes its next recursion. It is asked as soon as a row's
    /// state is known, so that a row that stops can leave at once.
    fn decide(&self, state: &mut RecursionState, ran: Ran, pass: &mut Pass<'_>) {
        let most = self.uses.len() as u32;
        let mut open = Vec::new();
        for &row in ran.numbers.iter() {
            let limit = most.min(state.rows.limits(row as usize).max);
            if state.depth_t[row as usize] < limit {
                open.push(row);
            }
        }
        let mut parts = Vec::new();
        for (recursion, numbers) in by_depth(&open, &state.depth_t) {
            parts.extend(self.selected(recursion, numbers, &ran, state, pass));
        }
        state.active = ActiveRows::stack(parts);
        if let Joins::AtEnd { every_pass } = self.router.joins() {
            self.finish(state, ran, every_pass, pass);
        }
    }

    /// Those of the rows `numbers`, all at depth `recursion`, that go on.
    fn selected(
        &self,
        recursion: usize,
        mut numbers: Arc<[u32]>,
        ran: &Ran,
        state: &mut RecursionState,
        pass: &mut Pass<'_>,
    ) -> Option<ActiveRows> {
        let places = (numbers != ran.numbers).then(|| places(&numbers, &ran.numbers));
        let all = numbers.len() == state.rows.len();
        let x_cd = match (&ran.y_ad, &places) {
            (Some(y_ad), None) => y_ad.clone(),
            (Some(y_ad), Some(places)) => pass.ops.gather_rows(y_ad.clone(), places),
            (None, _) if all => state.x_td.clone(),
            (None, _) => pass.ops.gather_rows(state.x_td.clone(), &numbers),
        };
        let mut rows = if all { state.rows.clone() } else { state.rows.only(&numbers) };
        let carry = ran.carry.gather(pass.ops, places.as_ref());
        // With a router that decides once, the recursions are one element of the model.
        if self.chooses && (recursion == 0 || ran.y_ad.is_none()) {
            pass.probe.stream(&state.x_td);
        }
        let call = RouterCall {
            recursion,
            x_cd: &x_cd,
            rows: &rows,
            numbers: &numbers,
            runs: &[(recursion, numbers.len())],
            lengths: &state.lengths,
            carry: &carry,
        };
        let plan = self.router.route(&call, pass);
        let kept = (plan.rows.len() < numbers.len()).then(|| plan.rows.clone());
        let mut x_ad = x_cd;
        if let Some(kept) = &kept {
            numbers = kept.iter().map(|&i| numbers[i as usize]).collect();
            rows = rows.only(kept);
            x_ad = pass.ops.gather_rows(x_ad, kept);
        }
        for loss in plan.losses {
            // What goes into the block reaches the output for certain; the stream may be replaced.
            if numbers.is_empty() {
                state.x_td = pass.attach(state.x_td.clone(), loss);
            } else {
                x_ad = pass.attach(x_ad, loss);
            }
        }
        if numbers.is_empty() {
            return None;
        }
        let mut kept_carry = carry.gather(pass.ops, kept.as_ref());
        for (name, value_aw) in plan.carry.gather(pass.ops, kept.as_ref()).iter() {
            kept_carry.set(name, value_aw.clone());
        }
        match plan.weights {
            Some(weight_a1) => kept_carry.set(WEIGHT, weight_a1),
            None => drop(kept_carry.remove(WEIGHT)),
        }
        let runs = vec![(recursion, numbers.len())];
        Some(ActiveRows { runs, numbers, rows, x_ad, carry: kept_carry })
    }

    /// Where results join at the end: those of the rows that ran and do not go on join the stream,
    /// `x = x_0 + g * block^depth(x_0)`.
    fn finish(&self, state: &mut RecursionState, ran: Ran, every_pass: bool, pass: &mut Pass<'_>) {
        let Some(y_ad) = ran.y_ad else { return };
        let going: std::collections::BTreeSet<u32> = state.active.numbers.iter().copied().collect();
        let mut done = Vec::new();
        let mut numbers = Vec::new();
        for (place, &row) in ran.numbers.iter().enumerate() {
            if state.depth_t[row as usize] > 0 && !going.contains(&row) {
                done.push(place as u32);
                numbers.push(row);
            }
        }
        if done.is_empty() {
            return;
        }
        let done: Arc<[u32]> = done.into();
        let numbers: Arc<[u32]> = numbers.into();
        let weight_a1 = match ran.carry.get(WEIGHT).filter(|_| !every_pass) {
            Some(weight_a1) => pass.ops.gather_rows(weight_a1.clone(), &done),
            None => pass.ops.column(vec![1.0; done.len()]),
        };
        let y_ad = pass.ops.gather_rows(y_ad, &done);
        let x_td = state.take_stream();
        state.x_td = pass.ops.combine_rows(x_td, &numbers, y_ad, weight_a1, Combine::Add);
    }

    /// The layers of one recursion on active rows, `runs` saying how deep they are.
    fn block(
        &self,
        runs: &[(usize, usize)],
        mut x_ad: Tensor2,
        rows: &Rows,
        carry: &mut Carry,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        for (j, first) in self.uses[0].iter().enumerate() {
            if !self.chooses {
                pass.probe.stream(&x_ad);
            }
            let uses = runs.iter().map(|&(r, count)| (self.uses[r][j], count));
            let at = DepthRuns::mixed(uses.collect());
            let mut context = LayerContext { pass: &mut *pass, rows, at: &at, carry: &mut *carry };
            x_ad = self.blocks[first.stored].forward(x_ad, &mut context);
        }
        x_ad
    }
}

/// Where in `among` each of `numbers` stands.
fn places(numbers: &[u32], among: &[u32]) -> Arc<[u32]> {
    let mut place = BTreeMap::new();
    for (i, &number) in among.iter().enumerate() {
        place.insert(number, i as u32);
    }
    numbers.iter().map(|number| place[number]).collect()
}
