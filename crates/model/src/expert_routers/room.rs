//! Room of experts in training: an expert takes so many rows of a sequence, and where more choose
//! it the last in order go without it. Rows are compared with others of their sequence, later ones
//! included, so generation drops nothing.

use serde::{Deserialize, Serialize};

use super::choice::{Choices, row_dice};
use crate::error::{ConfigError, at_least, refuse};
use crate::params::RouterSite;
use crate::pass::Pass;
use crate::rng::Purpose;
use crate::routers::RouterCall;

/// In which order rows find room at an expert. First choices of all rows come before all second
/// choices, and so on (GShard, Lepikhin et al., 2020, arXiv 2006.16668).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomPriority {
    /// By position: the end of a sequence is dropped (Switch, Fedus et al., 2021, arXiv
    /// 2101.03961).
    Position,
    /// By the largest score of the row, whatever its position (batch priority; Riquelme et al.,
    /// 2021, arXiv 2106.05974).
    Score,
    /// By dice for each row and expert, thrown anew in each step (random token selection; Kim et
    /// al., 2021, arXiv 2109.10465).
    Random,
}

/// How much room an expert has, and who finds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Rows of a sequence that an expert takes, as a multiple of its share at equal loads; 0 for
    /// all.
    pub(super) capacity: f64,
    pub(super) priority: RoomPriority,
    /// How many of the computing experts a row chooses, in the mean.
    pub(super) taken: f64,
    /// Experts that compute; those behind them have room for every row.
    pub(super) computing: usize,
    pub(super) site: RouterSite,
}

impl Room {
    /// # Errors
    /// A capacity that is no number from 0.
    pub(super) fn check(capacity: f64) -> Result<(), ConfigError> {
        at_least("mlp.router.capacity", capacity, 0.0)
    }

    /// # Errors
    /// A capacity that no load can reach, or an order where nobody is dropped.
    pub(super) fn check_effects(self) -> Result<(), ConfigError> {
        let Self { capacity, priority, .. } = self;
        let never = self.computing as f64 / self.taken;
        if capacity >= never {
            let expected = format!(
                "below {never}, with which an expert has room for every row, or 0, which says so"
            );
            return refuse("mlp.router.capacity", capacity, expected);
        }
        if capacity == 0.0 && priority != RoomPriority::Position {
            let (field, found) = ("mlp.router.priority", format!("{priority:?}"));
            let expected = "position where mlp.router.capacity is 0 and no row is dropped".into();
            return refuse(field, found.to_lowercase(), expected);
        }
        Ok(())
    }

    /// Whether rows are dropped in a pass like this.
    pub(super) fn is_short(&self, pass: &Pass<'_>) -> bool {
        self.capacity > 0.0 && pass.compares_rows()
    }

    /// `max(1, ceil(capacity k T / E))`: what an expert takes of a sequence of `rows` rows.
    fn of(&self, rows: usize) -> usize {
        let share = self.capacity * (self.taken * rows as f64) / self.computing as f64;
        (share.ceil() as usize).max(1)
    }

    /// For each entry of `choices` whether it finds room. `scores` are those of each row, `[rows,
    /// E]`, and with `bias` on top those that it chose by.
    pub(super) fn served(
        &self,
        choices: &Choices,
        (scores, bias): (&[f32], &[f32]),
        call: &RouterCall<'_>,
        pass: &Pass<'_>,
    ) -> Vec<bool> {
        let experts = bias.len();
        let ranks = ranks(choices, (scores, bias), call.rows.len());
        let before = self.order(choices, scores, experts, call, pass);
        let mut served = vec![true; ranks.len()];
        for run in call.rows.sequences() {
            let room = self.of(run.len());
            for expert in 0..self.computing {
                let mut entries: Vec<usize> =
                    choices.range_of(expert).filter(|&i| run.contains(&choices.row(i))).collect();
                entries.sort_by(|&a, &b| {
                    (ranks[a].cmp(&ranks[b]))
                        .then(before[a].total_cmp(&before[b]))
                        .then(choices.row(a).cmp(&choices.row(b)))
                });
                entries.into_iter().skip(room).for_each(|i| served[i] = false);
            }
        }
        served
    }

    /// A number for each entry: entries of lower ones come first.
    fn order(
        &self,
        choices: &Choices,
        scores: &[f32],
        experts: usize,
        call: &RouterCall<'_>,
        pass: &Pass<'_>,
    ) -> Vec<f64> {
        let entries = choices.entries();
        match self.priority {
            // Rows of a sequence are in the order of their positions.
            RoomPriority::Position => entries.map(|_| 0.0).collect(),
            RoomPriority::Score => {
                let mut best = vec![f32::NEG_INFINITY; call.rows.len()];
                for (row, expert) in choices.entries() {
                    let score = scores[row as usize * experts + expert as usize];
                    best[row as usize] = best[row as usize].max(score);
                }
                entries.map(|(row, _)| -f64::from(best[row as usize])).collect()
            }
            RoomPriority::Random => entries.map(|entry| self.die(entry, call, pass)).collect(),
        }
    }

    /// The die of a row at an expert, uniform in [0, 1).
    fn die(&self, (row, expert): (u32, u32), call: &RouterCall<'_>, pass: &Pass<'_>) -> f64 {
        let dice = row_dice(row as usize, (Purpose::Room, self.site), call, pass);
        dice.part(u64::from(expert)).uniform()
    }
}

/// For each entry whether its expert is the row's first choice (0), second (1), ... The lower
/// expert comes first among equals.
fn ranks(choices: &Choices, (scores, bias): (&[f32], &[f32]), rows: usize) -> Vec<usize> {
    let experts = bias.len();
    let mut of_rows = vec![Vec::new(); rows];
    for (row, expert) in choices.entries() {
        let (row, expert) = (row as usize, expert as usize);
        of_rows[row].push((scores[row * experts + expert] + bias[expert], expert));
    }
    for chosen in &mut of_rows {
        chosen.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    }
    let mut ranks = Vec::new();
    for (row, expert) in choices.entries() {
        let before =
            of_rows[row as usize].iter().take_while(|(_, other)| *other != expert as usize);
        ranks.push(before.count());
    }
    ranks
}
