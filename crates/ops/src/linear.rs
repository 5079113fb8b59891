//! Projection: `y[t,n] = sum_d x[t,d] w[n,d]`, optionally added to a residual `[t,n]`.

use kernels::matmul::{Mat, MatMut, Start, Threads, matmul, matmul_packed};
use kernels::quant::{matmul_exact, matmul_exact_back, matmul_quantized};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values, values_mut};
use crate::weight::{Codes, PackedHandle, Sink};
use crate::{Ops, Tensor2, Weight};

impl Ops {
    /// `x_td w_nd^T -> [t, n]`.
    pub fn linear(self, x_td: Tensor2, w_nd: &Weight) -> Tensor2 {
        match self {
            Ops::Fast => apply(Linear::new(w_nd), [x_td]),
            Ops::Plain(_) => {
                let w_nd = w_nd.plain(&x_td);
                x_td.matmul(w_nd.transpose())
            }
        }
    }

    /// `residual_tn + x_td w_nd^T -> [t, n]`: the write into the residual stream.
    pub fn linear_add(self, x_td: Tensor2, w_nd: &Weight, residual_tn: Tensor2) -> Tensor2 {
        match self {
            Ops::Fast => apply(LinearAdd(Linear::new(w_nd)), [x_td, residual_tn]),
            Ops::Plain(_) => {
                let w_nd = w_nd.plain(&x_td);
                residual_tn + x_td.matmul(w_nd.transpose())
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Linear {
    w_nd: Raw,
    packed: Option<PackedHandle>,
    codes: Option<Codes>,
    sink: Option<Sink>,
}

impl Linear {
    pub(crate) fn new(w_nd: &Weight) -> Self {
        Self { w_nd: w_nd.raw(), packed: w_nd.packed(), codes: w_nd.codes(), sink: w_nd.sink() }
    }

    fn shape(&self) -> (usize, usize) {
        self.codes.as_ref().map_or_else(|| dims(&self.w_nd), |codes| codes.matrix.shape())
    }

    pub(crate) fn product(&self, x_td: &Raw, y_tn: &mut [f32], start: Start) {
        let ((t, d), (n, columns)) = (dims(x_td), self.shape());
        assert_eq!(d, columns, "a projection of width {columns} got rows of width {d}");
        let (y, x) = (MatMut::rows_major(y_tn, t, n), Mat::rows_major(values(x_td), t, d));
        match &self.codes {
            Some(Codes { matrix, exact: true }) => {
                return matmul_exact(y, x, matrix, 0..n, start, Threads::All);
            }
            Some(Codes { matrix, exact: false }) => {
                return matmul_quantized(y, x, matrix, start, Threads::All);
            }
            None => {}
        }
        match &self.packed {
            Some(packed) => matmul_packed(y, x, packed.get(), start, Threads::All),
            None => {
                matmul(y, x, Mat::rows_major(values(&self.w_nd), n, d).t(), start, Threads::All)
            }
        }
    }

    pub(crate) fn gradients(&self, x_td: &Raw, g_tn: &Raw, wants_x: bool) -> Option<Raw> {
        let ((t, d), (n, _)) = (dims(x_td), self.shape());
        let g = Mat::rows_major(values(g_tn), t, n);
        if let Some(Codes { matrix, exact }) = &self.codes {
            assert!(exact, "rounded weights are for inference, unless they are frozen in training");
            return wants_x.then(|| {
                let mut dx = buffer(t * d);
                let to = MatMut::rows_major(&mut dx, t, d);
                matmul_exact_back(to, g, matrix, 0..n, Threads::All);
                make(dx, t, d)
            });
        }
        if let Some(sink) = &self.sink {
            sink.with(|dw, touched| {
                let start = if touched { Start::FromC } else { Start::Zero };
                matmul(
                    MatMut::rows_major(dw, n, d),
                    g.t(),
                    Mat::rows_major(values(x_td), t, d),
                    start,
                    Threads::All,
                );
            });
        }
        wants_x.then(|| {
            let mut dx = buffer(t * d);
            let w = Mat::rows_major(values(&self.w_nd), n, d);
            matmul(MatMut::rows_major(&mut dx, t, d), g, w, Start::Zero, Threads::All);
            make(dx, t, d)
        })
    }
}

impl FastOp<1> for Linear {
    type Saved = Raw;

    fn forward(&self, [x_td]: [Raw; 1]) -> (Raw, Raw) {
        let (t, n) = (dims(&x_td).0, self.shape().0);
        let mut y = buffer(t * n);
        self.product(&x_td, &mut y, Start::Zero);
        (make(y, t, n), x_td)
    }

    fn backward(
        &self,
        x_td: Raw,
        g_tn: Raw,
        [wants_x]: [bool; 1],
        _: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        [self.gradients(&x_td, &g_tn, wants_x)]
    }
}

#[derive(Clone, Debug)]
struct LinearAdd(Linear);

impl FastOp<2> for LinearAdd {
    type Saved = Raw;

    fn forward(&self, [x_td, mut residual_tn]: [Raw; 2]) -> (Raw, Raw) {
        self.0.product(&x_td, values_mut(&mut residual_tn), Start::FromC);
        (residual_tn, x_td)
    }

    fn backward(
        &self,
        x_td: Raw,
        g_tn: Raw,
        [wants_x, wants_residual]: [bool; 2],
        _: Option<Raw>,
    ) -> [Option<Raw>; 2] {
        let dx = self.0.gradients(&x_td, &g_tn, wants_x);
        [dx, wants_residual.then_some(g_tn)]
    }
}
