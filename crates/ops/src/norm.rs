//! RMSNorm: `y = x / sqrt(mean(x^2) + eps) * w`, statistics over the row in f32 (Zhang and
//! Sennrich, 2019), of whole rows or of each head of a row.

use std::borrow::Cow;
use std::sync::Arc;

use kernels::rms_norm::{rms_norm_backward, rms_norm_forward};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values, values_mut};
use crate::weight::Sink;
use crate::{Device, Ops, Tensor2, Weight};

/// What a norm does beside its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Whether rows are multiplied by `1 + w` in place of `w`.
    pub plus_one: bool,
    /// Whether the input is also the residual input of an operation further on (as in every block),
    /// so that its gradient can be completed in place.
    pub residual: bool,
}

impl Ops {
    /// Normalised rows `[t, d]`; `w_1d` is `[1, d]`.
    ///
    /// `residual` says that `x_td` is also the residual input of an operation further on (as in
    /// every block), so that its gradient can be completed in place.
    pub fn rms_norm(self, x_td: Tensor2, w_1d: &Weight, eps: f32, residual: bool) -> Tensor2 {
        self.normalize(x_td, w_1d, RmsNorm { eps, plus_one: false, residual })
    }

    /// The same with every option of a norm.
    pub fn normalize(self, x_td: Tensor2, w_1d: &Weight, norm: RmsNorm) -> Tensor2 {
        match self {
            Ops::Fast => apply(Normalize { w: w_1d.raw(), sink: w_1d.sink(), norm }, [x_td]),
            Ops::Plain(device) => plain(x_td, w_1d, norm, device),
        }
    }

    /// Normalises each of the first `heads` stretches of `w_1k`'s width in every row of `x_tn`; the
    /// remaining columns stay as they are.
    pub fn normalize_heads(
        self,
        x_tn: Tensor2,
        w_1k: &Weight,
        heads: usize,
        norm: RmsNorm,
    ) -> Tensor2 {
        match self {
            Ops::Fast => {
                let norm = Normalize { w: w_1k.raw(), sink: w_1k.sink(), norm };
                apply(NormalizeHeads { norm, heads }, [x_tn])
            }
            Ops::Plain(device) => {
                let ([t, n], k) = (x_tn.dims(), w_1k.shape().1);
                let part: Tensor2 = x_tn.clone().narrow(1, 0, heads * k).reshape([t * heads, k]);
                let part: Tensor2 = plain(part, w_1k, norm, device).reshape([t, heads * k]);
                match heads * k == n {
                    true => part,
                    false => Tensor2::cat(vec![part, x_tn.narrow(1, heads * k, n - heads * k)], 1),
                }
            }
        }
    }
}

/// In Burn's operations, and on other devices than the processors by a kernel of its own.
#[cfg_attr(not(any(feature = "gpu", feature = "cuda")), allow(unused_variables))]
fn plain(x_td: Tensor2, w_1d: &Weight, norm: RmsNorm, device: Device) -> Tensor2 {
    let w_1d = w_1d.plain(&x_td);
    let w_1d = if norm.plus_one { w_1d.add_scalar(1.0) } else { w_1d };
    #[cfg(any(feature = "gpu", feature = "cuda"))]
    if device != Device::CPU {
        use crate::device_seam::{Cube, apply};
        let norm = crate::device_norm::Norm { eps: norm.eps };
        return apply::<Cube, _, 2>(norm, [x_td, w_1d]);
    }
    let rms_t1 = (x_td.clone() * x_td.clone()).mean_dim(1).add_scalar(norm.eps).sqrt();
    x_td / rms_t1 * w_1d
}

#[derive(Clone, Debug)]
struct Normalize {
    w: Raw,
    sink: Option<Sink>,
    norm: RmsNorm,
}

impl Normalize {
    /// What rows are multiplied by.
    fn factors(&self) -> Cow<'_, [f32]> {
        let w = values(&self.w);
        if self.norm.plus_one { w.iter().map(|w| 1.0 + w).collect() } else { w.into() }
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        rms_norm_forward(x, &self.factors(), self.norm.eps, y);
    }

    /// The gradient of rows, added to `dx` if `add`; that of the weight goes to its sink.
    fn backward(&self, x: &[f32], g: &[f32], dx: &mut [f32], add: bool) {
        let factors = self.factors();
        let mut dw = vec![0.0; factors.len()];
        rms_norm_backward(x, &factors, g, self.norm.eps, dx, add, &mut dw);
        if let Some(sink) = &self.sink {
            sink.add(&dw);
        }
    }
}

impl FastOp<1> for Normalize {
    type Saved = Raw;

    fn forward(&self, [x_td]: [Raw; 1]) -> (Raw, Raw) {
        let (t, d) = dims(&x_td);
        let mut y = buffer(t * d);
        Normalize::forward(self, values(&x_td), &mut y);
        (make(y, t, d), x_td)
    }

    fn backward(
        &self,
        x_td: Raw,
        g_td: Raw,
        _: [bool; 1],
        earlier: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        let (t, d) = dims(&x_td);
        let add = earlier.is_some();
        let mut dx = earlier.unwrap_or_else(|| make(buffer(t * d), t, d));
        Normalize::backward(self, values(&x_td), values(&g_td), values_mut(&mut dx), add);
        [Some(dx)]
    }

    fn continues(&self) -> Option<usize> {
        self.norm.residual.then_some(0)
    }
}

#[derive(Clone, Debug)]
struct NormalizeHeads {
    norm: Normalize,
    heads: usize,
}

impl NormalizeHeads {
    /// The heads of all rows, one after the other.
    fn taken(&self, x_tn: &Raw) -> Vec<f32> {
        let (t, n) = dims(x_tn);
        let width = self.heads * dims(&self.norm.w).1;
        let mut heads = Vec::with_capacity(t * width);
        for row in values(x_tn).chunks_exact(n.max(1)) {
            heads.extend_from_slice(&row[..width]);
        }
        heads
    }

    /// `x_tn` with other heads.
    fn put(&self, mut x_tn: Raw, heads: &[f32]) -> Raw {
        let n = dims(&x_tn).1.max(1);
        let width = self.heads * dims(&self.norm.w).1;
        let rows = values_mut(&mut x_tn).chunks_exact_mut(n).zip(heads.chunks_exact(width.max(1)));
        rows.for_each(|(row, heads)| row[..width].copy_from_slice(heads));
        x_tn
    }
}

impl FastOp<1> for NormalizeHeads {
    /// The heads before the norm.
    type Saved = Arc<Vec<f32>>;

    fn forward(&self, [x_tn]: [Raw; 1]) -> (Raw, Self::Saved) {
        let x = self.taken(&x_tn);
        let mut y = buffer(x.len());
        self.norm.forward(&x, &mut y);
        (self.put(x_tn, &y), Arc::new(x))
    }

    fn backward(
        &self,
        x: Self::Saved,
        g_tn: Raw,
        _: [bool; 1],
        _: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        let g = self.taken(&g_tn);
        let mut dx = buffer(x.len());
        self.norm.backward(&x, &g, &mut dx, false);
        [Some(self.put(g_tn, &dx))]
    }
}
