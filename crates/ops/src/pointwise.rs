//! Element by element: a bias, a factor, a scaled addition to the stream, a soft cap.

use burn_tensor::activation;
use kernels::attend::{cap_slopes, cap_values};
use kernels::rows::{add_into, axpy, scale};
use rayon::prelude::*;

use crate::seam::{FastOp, Raw, apply, dims, values, values_mut};
use crate::weight::Sink;
use crate::{Ops, Tensor2, Weight};

/// Values handed to one task.
const TASK_VALUES: usize = 1 << 14;

impl Ops {
    /// `y[t,n] = x[t,n] + b[n]`; `b_1n` is `[1, n]`.
    pub fn add_bias(self, x_tn: Tensor2, b_1n: &Weight) -> Tensor2 {
        match self {
            Ops::Fast => apply(AddBias { b_1n: b_1n.raw(), sink: b_1n.sink() }, [x_tn]),
            Ops::Plain(_) => {
                let b_1n = b_1n.plain(&x_tn);
                x_tn + b_1n
            }
        }
    }

    /// `factor * x`, element by element.
    pub fn times(self, x: Tensor2, factor: f32) -> Tensor2 {
        match self {
            Ops::Fast => apply(Times { factor }, [x]),
            Ops::Plain(_) => x.mul_scalar(factor),
        }
    }

    /// `x + factor * y`, element by element: the write of a layer that does not add by its product.
    pub fn add_times(self, x_td: Tensor2, y_td: Tensor2, factor: f32) -> Tensor2 {
        match self {
            Ops::Fast => apply(AddTimes { factor }, [x_td, y_td]),
            Ops::Plain(_) => x_td + y_td.mul_scalar(factor),
        }
    }

    /// `cap * tanh(x / cap)`, element by element, `cap` above 0 (Gemma 2, 2024, arXiv 2408.00118).
    pub fn soft_cap(self, x: Tensor2, cap: f32) -> Tensor2 {
        match self {
            Ops::Fast => apply(SoftCap { cap }, [x]),
            Ops::Plain(_) => activation::tanh(x.div_scalar(cap)).mul_scalar(cap),
        }
    }
}

#[derive(Clone, Debug)]
struct AddBias {
    b_1n: Raw,
    sink: Option<Sink>,
}

impl FastOp<1> for AddBias {
    type Saved = ();

    fn forward(&self, [mut x_tn]: [Raw; 1]) -> (Raw, ()) {
        let b = values(&self.b_1n);
        for row in values_mut(&mut x_tn).chunks_exact_mut(b.len().max(1)) {
            add_into(row, b);
        }
        (x_tn, ())
    }

    fn backward(&self, (): (), g_tn: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        if let Some(sink) = &self.sink {
            let n = dims(&g_tn).1;
            let mut db = vec![0.0f32; n];
            for row in values(&g_tn).chunks_exact(n.max(1)) {
                add_into(&mut db, row);
            }
            sink.add(&db);
        }
        [Some(g_tn)]
    }
}

#[derive(Clone, Debug)]
struct Times {
    factor: f32,
}

impl FastOp<1> for Times {
    type Saved = ();

    fn forward(&self, [mut x]: [Raw; 1]) -> (Raw, ()) {
        scale(values_mut(&mut x), self.factor);
        (x, ())
    }

    fn backward(&self, (): (), mut g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        scale(values_mut(&mut g), self.factor);
        [Some(g)]
    }
}

#[derive(Clone, Debug)]
struct AddTimes {
    factor: f32,
}

impl FastOp<2> for AddTimes {
    type Saved = ();

    fn forward(&self, [mut x_td, y_td]: [Raw; 2]) -> (Raw, ()) {
        axpy(values_mut(&mut x_td), self.factor, values(&y_td));
        (x_td, ())
    }

    fn backward(&self, (): (), g: Raw, wanted: [bool; 2], _: Option<Raw>) -> [Option<Raw>; 2] {
        let dy = wanted[1].then(|| {
            let mut dy = g.clone();
            if self.factor != 1.0 {
                scale(values_mut(&mut dy), self.factor);
            }
            dy
        });
        [wanted[0].then_some(g), dy]
    }
}

#[derive(Clone, Debug)]
struct SoftCap {
    cap: f32,
}

impl FastOp<1> for SoftCap {
    /// What the forward pass gave.
    type Saved = Raw;

    fn forward(&self, [mut x]: [Raw; 1]) -> (Raw, Raw) {
        let chunks = values_mut(&mut x).par_chunks_mut(TASK_VALUES);
        chunks.for_each(|chunk| cap_values(chunk, self.cap));
        (x.clone(), x)
    }

    fn backward(&self, mut y: Raw, mut g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        cap_slopes(values_mut(&mut y), self.cap);
        values_mut(&mut g).iter_mut().zip(values(&y)).for_each(|(g, slope)| *g *= slope);
        [Some(g)]
    }
}
