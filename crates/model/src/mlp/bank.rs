//! The matrices of a layer's experts in banks, and what a group of rows becomes by its expert's:
//! here, or with whoever holds them.

use std::fmt::Debug;
use std::sync::{Arc, OnceLock, Weak};

use ops::{Combine, Elsewhere, Ops, Tensor2, Weight, rows_of};

use super::expert_parts::{EXPERTS_DOWN, EXPERTS_DOWN_BIAS, EXPERTS_GATE_UP, EXPERTS_GATE_UP_BIAS};
use crate::linear::{Linear, LinearBuilder};
use crate::params::Take;
use crate::pass::Pass;
use crate::routers::RoutingPlan;

/// What is added to the products of each expert.
#[derive(Clone, Debug)]
struct Biases {
    gate_up: Arc<Weight>,
    down: Arc<Weight>,
}

/// The weights of some experts of a layer: the matrices of one expert behind those of another.
#[derive(Clone, Debug)]
pub struct BankWeights {
    gate_up: Arc<Weight>,
    down: Arc<Weight>,
    biases: Option<Biases>,
}

impl BankWeights {
    /// Those of a layer.
    pub(super) fn take(biases: bool, linears: &LinearBuilder<'_>, take: &mut Take) -> Self {
        Self {
            gate_up: linears.bank(EXPERTS_GATE_UP, take),
            down: linears.bank(EXPERTS_DOWN, take),
            biases: biases.then(|| Biases {
                gate_up: linears.bank(EXPERTS_GATE_UP_BIAS, take),
                down: linears.bank(EXPERTS_DOWN_BIAS, take),
            }),
        }
    }

    /// Each of them, in the order of the parameter table.
    pub fn all(&self) -> Vec<&Arc<Weight>> {
        let biases = self.biases.iter().flat_map(|biases| [&biases.gate_up, &biases.down]);
        [&self.gate_up, &self.down].into_iter().chain(biases).collect()
    }

    /// Others in their place.
    pub fn map(&self, mut with: impl FnMut(&Arc<Weight>) -> Arc<Weight>) -> Self {
        let (gate_up, down) = (with(&self.gate_up), with(&self.down));
        let biases = self.biases.as_ref();
        let biases = biases.map(|b| Biases { gate_up: with(&b.gate_up), down: with(&b.down) });
        Self { gate_up, down, biases }
    }
}

/// Who holds the experts of a model's layers, where no process holds all of them.
pub trait ExpertOwners: Debug + Send + Sync {
    /// Hands rows to those who hold their experts, and returns what these made of them
    /// `[a, written]`, row after row.
    fn forward(&self, rows: &GroupedRows<'_>) -> Vec<f32>;

    /// The same for the gradients of what came back; `rows.record` says nothing.
    fn backward(&self, rows: &GroupedRows<'_>) -> Vec<f32>;
}

/// Rows in groups, one behind the other and one for each expert of a layer.
#[derive(Clone, Copy, Debug)]
pub struct GroupedRows<'a> {
    /// The number of their stored layer.
    pub layer: usize,
    /// What [`ExpertOwners::forward`] calls these rows by; [`ExpertOwners::backward`] reads it.
    pub call: &'a OnceLock<u64>,
    /// Rows of each expert.
    pub sizes: &'a [usize],
    /// Their values, row after row.
    pub values: &'a [f32],
    /// Whether gradients may be asked for.
    pub record: bool,
}

/// The MLPs of a layer, in banks.
#[derive(Debug)]
pub struct ExpertBank {
    /// The number of its stored layer.
    layer: usize,
    /// How many experts there are.
    count: usize,
    /// The width of what they write.
    written: usize,
    /// What they read in place of the row, if anything.
    pub(super) latent: Option<Linear>,
    weights: BankWeights,
    /// Limit and slope of the clamped product in place of SwiGLU.
    clamp: Option<(f32, f32)>,
    /// Who holds the experts, where the weights here are those of some of them.
    owners: OnceLock<Weak<dyn ExpertOwners>>,
}

impl ExpertBank {
    /// The experts of stored layer `layer`, `count` of them, that write rows `written` wide.
    pub(super) fn new(
        (layer, count, written): (usize, usize, usize),
        latent: Option<Linear>,
        weights: BankWeights,
        clamp: Option<(f32, f32)>,
    ) -> Self {
        Self { layer, count, written, latent, weights, clamp, owners: OnceLock::new() }
    }

    /// The number of its stored layer.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// How many experts the layer has, whoever holds them.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The widths of the rows that experts read and write.
    pub fn widths(&self) -> (usize, usize) {
        (self.weights.gate_up.shape().1, self.written)
    }

    /// The weights of those experts that this process holds.
    pub fn weights(&self) -> &BankWeights {
        &self.weights
    }

    /// From now on `owners` compute, each the experts that it holds. Said once; whoever says it
    /// keeps them as long as the model runs.
    ///
    /// # Panics
    /// When it is said twice.
    pub fn leave_to(&self, owners: &Arc<dyn ExpertOwners>) {
        let first = self.owners.set(Arc::downgrade(owners));
        assert!(first.is_ok(), "the experts of layer {} have owners already", self.layer);
    }

    /// What the experts of `weights` make of their rows, `sizes[e]` of them for each.
    pub fn compute(&self, weights: &BankWeights, x_ad: Tensor2, sizes: &Arc<[usize]>) -> Tensor2 {
        let y_af = self.hidden(Ops::Fast, weights, x_ad, sizes);
        written(Ops::Fast, weights, y_af, sizes)
    }

    /// The gated products of each row.
    fn hidden(
        &self,
        ops: Ops,
        weights: &BankWeights,
        x_ad: Tensor2,
        sizes: &Arc<[usize]>,
    ) -> Tensor2 {
        let y_an = ops.grouped_linear(x_ad, &weights.gate_up, sizes);
        let y_an = with_bias(ops, y_an, weights.biases.as_ref().map(|b| &b.gate_up), sizes);
        match self.clamp {
            Some((limit, alpha)) => ops.clamped_swiglu(y_an, limit, alpha),
            None => ops.swiglu(y_an),
        }
    }

    /// The stream with what the experts of `plan` write to it, who read `seen`.
    pub(super) fn add(
        &self,
        plan: &RoutingPlan,
        (rows, weights): (&Arc<[u32]>, Option<Tensor2>),
        seen: Tensor2,
        x_td: Tensor2,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let (ops, own) = (pass.ops, &self.weights);
        let sizes: Arc<[usize]> = (0..self.count).map(|e| plan.of(e).len()).collect();
        let single = weights.is_none() && plan.targets() == 1 && own.biases.is_none();
        let x_ad = if single { seen } else { ops.gather_rows(seen, rows) };
        let y_ad = if let Some(owners) = self.owners.get() {
            let owners = owners.upgrade().expect("owners outlive the passes of their model");
            let call = Call { owners, layer: self.layer, sizes, call: OnceLock::new() };
            ops.elsewhere(x_ad, self.written, Arc::new(call))
        } else {
            pass.probe.product(&own.gate_up, &sizes, &x_ad);
            let y_af = self.hidden(ops, own, x_ad, &sizes);
            pass.probe.product(&own.down, &sizes, &y_af);
            if single {
                // Written to the stream as a dense MLP does it.
                return ops.linear_add(y_af, &own.down, x_td);
            }
            written(ops, own, y_af, &sizes)
        };
        let w_a1 = weights.unwrap_or_else(|| ops.column(vec![1.0; rows.len()]));
        ops.combine_rows(x_td, rows, y_ad, w_a1, Combine::Add)
    }

    /// The same for the first `computing` entries of the plan, where the others do not compute.
    pub(super) fn add_first(
        &self,
        (plan, computing): (&RoutingPlan, usize),
        weights: Option<&Tensor2>,
        seen: Tensor2,
        x_td: Tensor2,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let rows: Arc<[u32]> = plan.rows[..computing].into();
        let weights = weights.map(|all| rows_of(all, 0..computing));
        self.add(plan, (&rows, weights), seen, x_td, pass)
    }
}

/// What each row's expert writes.
fn written(ops: Ops, weights: &BankWeights, y_af: Tensor2, sizes: &Arc<[usize]>) -> Tensor2 {
    let y_ad = ops.grouped_linear(y_af, &weights.down, sizes);
    with_bias(ops, y_ad, weights.biases.as_ref().map(|b| &b.down), sizes)
}

/// Rows in groups of these sizes, to each of which its group's row of `bias` is added.
fn with_bias(ops: Ops, y_an: Tensor2, bias: Option<&Arc<Weight>>, sizes: &[usize]) -> Tensor2 {
    let Some(bias) = bias else { return y_an };
    let groups = sizes.iter().enumerate();
    let of_rows: Arc<[u32]> = groups.flat_map(|(group, &n)| vec![group as u32; n]).collect();
    let bias_an = ops.embed(&y_an, bias, &of_rows);
    ops::add(y_an, bias_an)
}

/// Rows on their way to the owners of their experts.
#[derive(Debug)]
struct Call {
    owners: Arc<dyn ExpertOwners>,
    layer: usize,
    sizes: Arc<[usize]>,
    call: OnceLock<u64>,
}

impl Call {
    fn rows<'a>(&'a self, values: &'a [f32], record: bool) -> GroupedRows<'a> {
        let Self { layer, sizes, call, .. } = self;
        GroupedRows { layer: *layer, call, sizes, values, record }
    }
}

impl Elsewhere for Call {
    fn forward(&self, x_ad: &[f32], record: bool) -> Vec<f32> {
        self.owners.forward(&self.rows(x_ad, record))
    }

    fn backward(&self, g_an: &[f32]) -> Vec<f32> {
        self.owners.backward(&self.rows(g_an, true))
    }
}
