//! The output head as losses over it see it: one matrix. A bias is a last column of it, beside rows
//! that end in a one, so that no loss needs a second form.

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::weight::Sink;
use crate::{Ops, Tensor2, Weight};

/// What turns rows into logits: `x E^T + b`.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The matrix `E`, `[v, d]`.
    pub e_vd: &'a Weight,
    /// `b`, `[1, v]`, where there is one.
    pub b_1v: Option<&'a Weight>,
}

impl<'a> From<&'a Weight> for Head<'a> {
    /// A head without a bias.
    fn from(e_vd: &'a Weight) -> Self {
        Self { e_vd, b_1v: None }
    }
}

impl Ops {
    /// `x_td E^T + b -> [t, v]`.
    pub fn logits(self, x_td: Tensor2, head: Head<'_>) -> Tensor2 {
        let logits_tv = self.linear(x_td, head.e_vd);
        match head.b_1v {
            Some(b_1v) => self.add_bias(logits_tv, b_1v),
            None => logits_tv,
        }
    }
}

/// The head as one matrix `[v, n]`: `n` is `d`, or one more with a bias.
#[derive(Clone, Debug)]
pub(crate) struct HeadMatrix {
    pub(crate) e_vn: Raw,
    pub(crate) sinks: HeadSinks,
}

/// Where the gradient of that matrix goes.
#[derive(Clone, Debug)]
pub(crate) struct HeadSinks {
    matrix: Option<Sink>,
    bias: Option<Sink>,
    /// Rows of the matrix, where its last column is a bias.
    biased_rows: Option<usize>,
}

impl Head<'_> {
    pub(crate) fn matrix(self) -> HeadMatrix {
        let Some(b_1v) = self.b_1v else {
            let sinks = HeadSinks { matrix: self.e_vd.sink(), bias: None, biased_rows: None };
            return HeadMatrix { e_vn: self.e_vd.raw(), sinks };
        };
        let (e_vd, b_1v_raw) = (self.e_vd.raw(), b_1v.raw());
        let v = dims(&e_vd).0;
        let e_vn = with_column(&e_vd, |row| values(&b_1v_raw)[row]);
        let sinks = HeadSinks { matrix: self.e_vd.sink(), bias: b_1v.sink(), biased_rows: Some(v) };
        HeadMatrix { e_vn, sinks }
    }

    /// Rows as wide as the matrix.
    pub(crate) fn widened(self, x_td: Tensor2) -> Tensor2 {
        if self.b_1v.is_some() { apply(Widen, [x_td]) } else { x_td }
    }
}

impl HeadSinks {
    /// Whether a gradient is wanted of anything.
    pub(crate) fn learn(&self) -> bool {
        self.matrix.is_some() || self.bias.is_some()
    }

    /// Adds `factor` times a gradient of the matrix.
    pub(crate) fn add(&self, factor: f32, de_vn: &[f32]) {
        let Some(v) = self.biased_rows else {
            let add = |sum: &mut [f32]| kernels::rows::axpy(sum, factor, de_vn);
            return add_to(self.matrix.as_ref(), add);
        };
        let n = (de_vn.len() / v.max(1)).max(1);
        add_to(self.matrix.as_ref(), |sum| {
            for (sum, de) in sum.chunks_exact_mut(n - 1).zip(de_vn.chunks_exact(n)) {
                kernels::rows::axpy(sum, factor, &de[..n - 1]);
            }
        });
        add_to(self.bias.as_ref(), |sum| {
            for (sum, de) in sum.iter_mut().zip(de_vn.chunks_exact(n)) {
                *sum = factor.mul_add(de[n - 1], *sum);
            }
        });
    }
}

/// Lets `add` add to the buffer of a weight that learns, which is zero where nothing reached it.
fn add_to(sink: Option<&Sink>, add: impl FnOnce(&mut [f32])) {
    let Some(sink) = sink else { return };
    sink.with(|sum, touched| {
        if !touched {
            sum.fill(0.0);
        }
        add(sum);
    });
}

/// `x` with one more column, the value of each row.
fn with_column(x_td: &Raw, value: impl Fn(usize) -> f32) -> Raw {
    let (t, d) = dims(x_td);
    let mut wide = buffer(t * (d + 1));
    let rows = wide.chunks_exact_mut(d + 1).zip(values(x_td).chunks_exact(d.max(1)));
    for (row, (wide, x)) in rows.enumerate() {
        wide[..d].copy_from_slice(x);
        wide[d] = value(row);
    }
    make(wide, t, d + 1)
}

/// Rows that end in a one.
#[derive(Clone, Debug)]
struct Widen;

impl FastOp<1> for Widen {
    type Saved = ();

    fn forward(&self, [x_td]: [Raw; 1]) -> (Raw, ()) {
        (with_column(&x_td, |_| 1.0), ())
    }

    fn backward(&self, (): (), g_tn: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let (t, n) = dims(&g_tn);
        let mut dx = buffer(t * (n - 1));
        let rows = dx.chunks_exact_mut((n - 1).max(1)).zip(values(&g_tn).chunks_exact(n));
        rows.for_each(|(dx, g)| dx.copy_from_slice(&g[..n - 1]));
        [Some(make(dx, t, n - 1))]
    }
}
