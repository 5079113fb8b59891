//! Rotary position embedding in the half-rotation form (Su et al., 2021): with `n` rates, pairs
//! `(j, j + n)` of each head turn by `position * rate[j]`, and are multiplied by a factor. Columns
//! of a head past `2 n` stay as they are.

use std::sync::{Arc, RwLock};

use burn_tensor::{Tensor, TensorData};
pub use kernels::rotary::rates;
use kernels::rotary::{RotaryTable, rotate};

use crate::seam::{FastOp, Raw, apply, dims, values_mut};
use crate::{Ops, Tensor2};

/// Rates, factor and head width of the rotation, with its table of cosines and sines.
#[derive(Clone)]
pub struct Rotary {
    rates: Arc<[f64]>,
    factor: f64,
    head_dim: usize,
    table: Arc<RwLock<Arc<RotaryTable>>>,
}

impl std::fmt::Debug for Rotary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rotary({} rates, head width {})", self.rates.len(), self.head_dim)
    }
}

impl Rotary {
    /// Heads that turn whole, by `theta^(-2 j / head_dim)`; `head_dim` must be even.
    pub fn new(theta: f64, head_dim: usize) -> Self {
        Self::of(rates(theta, head_dim), 1.0, head_dim)
    }

    /// Heads of which the first `2 rates.len()` columns turn. Panics if a head has fewer.
    pub fn of(rates: Vec<f64>, factor: f64, head_dim: usize) -> Self {
        let table = Arc::new(RotaryTable::of(rates.clone(), factor, head_dim));
        Self { rates: rates.into(), factor, head_dim, table: Arc::new(RwLock::new(table)) }
    }

    /// The table, reaching at least `last`.
    fn reaching(&self, last: u32) -> Arc<RotaryTable> {
        let needed = last as usize + 1;
        let table = self.table.read().expect("rotary lock").clone();
        if table.positions() >= needed {
            return table;
        }
        let mut longer = RotaryTable::of(self.rates.to_vec(), self.factor, self.head_dim);
        longer.grow(needed.next_power_of_two().max(256));
        let longer = Arc::new(longer);
        *self.table.write().expect("rotary lock") = longer.clone();
        longer
    }
}

impl Ops {
    /// Rotates the first `heads` heads of every row by the row's position; the remaining columns
    /// stay as they are.
    pub fn rotate(
        self,
        x_tn: Tensor2,
        rotary: &Rotary,
        heads: usize,
        positions: &Arc<[u32]>,
    ) -> Tensor2 {
        match self {
            Ops::Fast => apply(
                Rotate { rotary: rotary.clone(), heads, positions: positions.clone() },
                [x_tn],
            ),
            Ops::Plain(_) => plain(x_tn, rotary, heads, positions),
        }
    }
}

fn plain(x_tn: Tensor2, rotary: &Rotary, heads: usize, positions: &[u32]) -> Tensor2 {
    let [t, n] = x_tn.dims();
    let (k, half) = (rotary.head_dim, rotary.rates.len());
    let mut angles = Vec::with_capacity(t * half);
    for &position in positions {
        angles.extend(rotary.rates.iter().map(|rate| f64::from(position) * rate));
    }
    let [cos, sin] = [f64::cos, f64::sin].map(|f| {
        let values = angles.iter().map(|&angle| (f(angle) * rotary.factor) as f32);
        let values: Vec<f32> = values.collect();
        Tensor::<3>::from_data(TensorData::new(values, [t, 1, half]), &x_tn.device())
    });
    let of_heads: Tensor<3> = x_tn.clone().narrow(1, 0, heads * k).reshape([t, heads, k]);
    let low = of_heads.clone().narrow(2, 0, half);
    let high = of_heads.clone().narrow(2, half, half);
    let mut parts =
        vec![low.clone() * cos.clone() - high.clone() * sin.clone(), low * sin + high * cos];
    if 2 * half < k {
        parts.push(of_heads.narrow(2, 2 * half, k - 2 * half));
    }
    let turned = Tensor::cat(parts, 2);
    let turned: Tensor2 = turned.reshape([t, heads * k]);
    if heads * k == n {
        turned
    } else {
        Tensor::cat(vec![turned, x_tn.narrow(1, heads * k, n - heads * k)], 1)
    }
}

#[derive(Clone, Debug)]
struct Rotate {
    rotary: Rotary,
    heads: usize,
    positions: Arc<[u32]>,
}

impl Rotate {
    fn turn(&self, mut x_tn: Raw, inverse: bool) -> Raw {
        let stride = dims(&x_tn).1;
        let table = self.rotary.reaching(self.positions.iter().copied().max().unwrap_or(0));
        let k = self.rotary.head_dim;
        rotate(values_mut(&mut x_tn), stride, self.heads, k, &self.positions, &table, inverse);
        x_tn
    }
}

impl FastOp<1> for Rotate {
    type Saved = ();

    fn forward(&self, [x_tn]: [Raw; 1]) -> (Raw, ()) {
        (self.turn(x_tn, false), ())
    }

    /// A rotation's transpose is the rotation backwards.
    fn backward(&self, (): (), g_tn: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        [Some(self.turn(g_tn, true))]
    }
}
