//! What keeps experts balanced: a loss on their loads, or a bias on the choice.

use std::sync::Arc;

use ops::{ChosenWeights, Ops, PoolShare, Tensor2, read_rows};
use serde::{Deserialize, Serialize};

use super::choice::Choices;
use crate::params::{BufferSpec, RouterSite};
use crate::pass::Pass;
use crate::routers::top_k::top_k as largest;
use crate::routers::{AuxLoss, RouterCall, RouterState};
use crate::rows::Rows;

/// What keeps the loads of experts balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// `sum_e f_e P_e` over the rows of each sequence, then the mean over sequences: `f_e` = E
    /// times the share of the choices, `P_e` = mean share of an expert in a row's scores. Gradients
    /// reach `P_e` alone. 1 where loads are equal (DeepSeek-V3, 2024, arXiv 2412.19437, equation
    /// 17).
    Sequence,
    /// A bias on the choice, moved after each step against the load (Wang et al., 2024, arXiv
    /// 2408.15664).
    LossFree,
    /// The same bias for computing experts alone, moved after each step by how far the share of the
    /// choices is from `budget / (k N)`: the mean number of the `N` computing experts that a row
    /// takes becomes `budget`, and zero-computation experts take the rest (LongCat-Flash, 2025,
    /// arXiv 2509.01322).
    Budget,
    /// Loads are left to themselves.
    None,
}

/// The bias of the experts of a layer, added to scores for the choice only.
fn bias_name(site: RouterSite) -> String {
    match site {
        RouterSite::Depth => "experts.bias".into(),
        RouterSite::Layer(stored) => format!("experts.{stored}.bias"),
    }
}

impl Balance {
    /// Whether the choice has a bias.
    fn is_biased(self) -> bool {
        matches!(self, Self::LossFree | Self::Budget)
    }

    pub(super) fn buffers(self, site: RouterSite, experts: usize) -> Vec<BufferSpec> {
        if !self.is_biased() {
            return Vec::new();
        }
        let range = (f64::NEG_INFINITY, f64::INFINITY);
        vec![BufferSpec { name: bias_name(site), length: experts, range, every_step: true }]
    }

    /// What is added to the scores of each expert before the largest are chosen.
    pub(super) fn bias(self, site: RouterSite, experts: usize, state: &RouterState) -> Vec<f32> {
        match state.get(&bias_name(site)) {
            Some(bias) if self.is_biased() && bias.len() == experts => bias.to_vec(),
            _ => vec![0.0; experts],
        }
    }

    /// Moves the bias of each expert against its load over the whole step: by `by`, or of computing
    /// experts by `by` times what their share of the choices lacks to `share`.
    pub(super) fn learn(
        self,
        site: RouterSite,
        loads: &[u64],
        (by, computing, share): (f64, usize, f64),
        state: &mut RouterState,
    ) {
        if !self.is_biased() {
            return;
        }
        let mut bias = self.bias(site, loads.len(), state);
        let all = loads.iter().sum::<u64>() as f64;
        if self == Self::Budget {
            for (bias, &load) in bias.iter_mut().zip(&loads[..computing.min(loads.len())]) {
                *bias += (by * (share - load as f64 / all.max(1.0))) as f32;
            }
            state.set(&bias_name(site), bias);
            return;
        }
        let mean = all / loads.len().max(1) as f64;
        for (bias, &load) in bias.iter_mut().zip(loads) {
            let difference = mean - load as f64;
            if difference != 0.0 {
                *bias += (by * difference.signum()) as f32;
            }
        }
        state.set(&bias_name(site), bias);
    }
}

/// `sum_g f_g P_g` over the rows of each sequence, then the mean over the sequences of the step:
/// `f_g` the mean of `f_e` over a group of `group` neighbouring experts, `P_g` the sum of their
/// `P_e`; with groups of one expert the loss of [`Balance::Sequence`]. This pass's part of it, the
/// same sum however the step is cut into passes. `shares` gives each expert's share of a row's
/// scores, `[t E, 1]` row by row or `[t, E]`.
pub(super) fn load_loss(
    (name, weight): (&'static str, f64),
    shares: &Tensor2,
    (experts, group, choices): (usize, usize, &Choices),
    rows: &Rows,
    pass: &Pass<'_>,
) -> Option<AuxLoss> {
    if weight == 0.0 {
        return None;
    }
    let mut factors = Vec::with_capacity(rows.len() * experts);
    for run in rows.sequences() {
        let loads = choices.loads_of(&run);
        let entries = loads.iter().sum::<u64>().max(1) as f64;
        let share = experts as f64 / (entries * run.len() as f64 * pass.sequences as f64);
        let mut of_row = Vec::with_capacity(experts);
        for loads in loads.chunks(group) {
            let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
            of_row.resize(of_row.len() + loads.len(), (share * mean) as f32);
        }
        run.for_each(|_| factors.extend_from_slice(&of_row));
    }
    let value_11 = pass.ops.weighted_sum(shares.clone(), factors);
    Some(AuxLoss { name, value_11, weight: weight as f32 })
}

/// The loss of `weight` by which transformers balances experts: `E sum_e f_e P_e` over the rows of
/// all layers together, `f_e` the share of rows whose `top_k` largest logits have expert `e`, `P_e`
/// its mean softmax. It is `top_k` where loads are equal, and looks at logits alone, whatever the
/// router does with them. Over the rows of a pass: a step of several passes has the mean of theirs.
pub(super) fn pooled(
    z_te: &Tensor2,
    (site, top_k, weight): (RouterSite, usize, f32),
    call: &RouterCall<'_>,
    pass: &Pass<'_>,
) -> Option<AuxLoss> {
    if weight == 0.0 {
        return None;
    }
    let (ops, experts) = (pass.ops, z_te.dims()[1]);
    let p_te = ops.softmax_rows(z_te.clone(), 1.0);
    let p = read_rows(&p_te);
    let taken = ops::for_rows(&p, experts, |row| largest(row, top_k));
    let loads = Choices::of(&taken, experts).loads();
    let layer = match site {
        RouterSite::Depth => 0,
        RouterSite::Layer(stored) => stored,
    };
    let share = PoolShare { layer, recursion: call.recursion, loads };
    let value_11 = ops.pooled_balance(p_te, share, &pass.pool);
    let of_step = call.rows.sequences().len() as f32 / pass.sequences as f32;
    let value_11 = if of_step == 1.0 { value_11 } else { ops::scale(value_11, of_step) };
    Some(AuxLoss { name: "expert_pooled", value_11, weight })
}

/// For each row its part in a mean over the rows of its sequence, then over the sequences of the
/// step.
pub(super) fn mean_weights(rows: &Rows, pass: &Pass<'_>) -> Vec<f32> {
    let mut each = vec![0.0; rows.len()];
    for run in rows.sequences() {
        let weight = 1.0 / (run.len() as f64 * pass.sequences as f64);
        each[run].fill(weight as f32);
    }
    each
}

/// The mean of `logsumexp(z)^2` with its weight, if it has one.
pub(super) fn z_loss(z_te: Tensor2, rows: &Rows, weight: f32, pass: &Pass<'_>) -> Option<AuxLoss> {
    (weight > 0.0).then(|| {
        let value_11 = pass.ops.z_loss(z_te, mean_weights(rows, pass));
        AuxLoss { name: "expert_z", value_11, weight }
    })
}

/// Each score as a share of its row's sum, `[t e, 1]`, row by row.
pub(super) fn shares(ops: Ops, scores_te: Tensor2) -> Tensor2 {
    let [rows, experts] = scores_te.dims();
    let of_rows: Arc<[u32]> = (0..(rows * experts) as u32).map(|i| i / experts as u32).collect();
    let columns: Arc<[u32]> = (0..(rows * experts) as u32).map(|i| i % experts as u32).collect();
    let how = ChosenWeights { normalize: Some(0.0), least: f32::MIN_POSITIVE, scale: 1.0 };
    ops.chosen_weights(scores_te, &of_rows, &columns, how)
}
