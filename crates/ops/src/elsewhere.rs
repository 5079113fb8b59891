//! Rows that somebody else works on: handed over, and back as what was made of them.

use std::fmt::Debug;
use std::sync::Arc;

use crate::seam::{FastOp, Raw, apply, dims, make, values};
use crate::{Ops, Tensor2};

/// A function of rows that is computed elsewhere, such as by another process that holds its
/// weights. A value stands for one call of it.
pub trait Elsewhere: Debug + Send + Sync {
    /// What is made of rows `[a, d]`: `[a, n]`, both row after row. `record` says whether
    /// [`Elsewhere::backward`] may follow.
    fn forward(&self, x_ad: &[f32], record: bool) -> Vec<f32>;

    /// The gradient of those rows from that of the result. Weights there collect their own.
    fn backward(&self, g_an: &[f32]) -> Vec<f32>;
}

impl Ops {
    /// `[a, d] -> [a, n]`: what `there` makes of the rows. The tape crosses over to it and comes
    /// back, whichever operations are at work here, in tensors of the processors.
    ///
    /// # Panics
    /// When as many values do not come back.
    pub fn elsewhere(self, x_ad: Tensor2, n: usize, there: Arc<dyn Elsewhere>) -> Tensor2 {
        let record = x_ad.device().is_autodiff();
        match self {
            Ops::Fast | Ops::Plain(_) => apply(Sent { there, n, record }, [x_ad]),
        }
    }
}

#[derive(Clone, Debug)]
struct Sent {
    there: Arc<dyn Elsewhere>,
    n: usize,
    record: bool,
}

impl FastOp<1> for Sent {
    /// How wide the rows were.
    type Saved = usize;

    fn forward(&self, [x_ad]: [Raw; 1]) -> (Raw, usize) {
        let (rows, d) = dims(&x_ad);
        let y = self.there.forward(values(&x_ad), self.record);
        assert_eq!(y.len(), rows * self.n, "{rows} rows came back as others");
        (make(y, rows, self.n), d)
    }

    fn backward(&self, d: usize, g_an: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let rows = dims(&g_an).0;
        let dx = self.there.backward(values(&g_an));
        assert_eq!(dx.len(), rows * d, "gradients of {rows} rows came back as others");
        [Some(make(dx, rows, d))]
    }
}
