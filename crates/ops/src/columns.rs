//! Columns times learned factors: recursion encodings and the lengths of DoRA.

use std::sync::Arc;

use rayon::prelude::*;

use crate::seam::{FastOp, Raw, apply, buffer, dims, values, values_mut};
use crate::tensor::constant;
use crate::weight::Sink;
use crate::{Ops, Tensor2, Weight};

impl Ops {
    /// `y[t,n] = x[t,n] w[n] c[n]`, with constants `c` if given.
    pub fn scale_columns(
        self,
        x_tn: Tensor2,
        w_1n: &Weight,
        factors: Option<Arc<[f32]>>,
    ) -> Tensor2 {
        match self {
            Ops::Fast => {
                apply(ScaleColumns { w_1n: w_1n.raw(), sink: w_1n.sink(), factors }, [x_tn])
            }
            Ops::Plain(_) => {
                let w_1n = w_1n.plain(&x_tn);
                let y_tn = match factors {
                    Some(c) => {
                        let (n, device) = (c.len(), x_tn.device());
                        x_tn * constant(c.to_vec(), 1, n, &device)
                    }
                    None => x_tn,
                };
                y_tn * w_1n
            }
        }
    }
}

/// `|W[n]| / |W[n] + s up[n] down|` for each row `n`, where `up` is `[n, r]` and `down` is `[r,
/// d]`.
pub fn length_ratios(w_nd: &Weight, up_nr: &Weight, down_rd: &Weight, s: f32) -> Vec<f32> {
    let ((_, d), rank) = (w_nd.shape(), up_nr.shape().1);
    let (w, up) = (w_nd.read(), up_nr.read());
    let down = down_rd.read();
    w.par_chunks_exact(d)
        .zip(up.par_chunks_exact(rank))
        .map(|(row, up)| {
            let mut sum = row.to_vec();
            for (&b, a) in up.iter().zip(down.chunks_exact(d)) {
                let b = s * b;
                sum.iter_mut().zip(a).for_each(|(x, &a)| *x += b * a);
            }
            (length(row) / length(&sum).max(f64::MIN_POSITIVE)) as f32
        })
        .collect()
}

/// Euclidean length, summed in f64.
fn length(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

#[derive(Clone, Debug)]
struct ScaleColumns {
    w_1n: Raw,
    sink: Option<Sink>,
    factors: Option<Arc<[f32]>>,
}

impl ScaleColumns {
    /// What each column is multiplied by.
    fn product(&self) -> Vec<f32> {
        let w = values(&self.w_1n);
        match &self.factors {
            Some(c) => w.iter().zip(c.iter()).map(|(w, c)| w * c).collect(),
            None => w.to_vec(),
        }
    }
}

fn times(x: &mut [f32], product: &[f32]) {
    for row in x.chunks_exact_mut(product.len().max(1)) {
        row.iter_mut().zip(product).for_each(|(x, &p)| *x *= p);
    }
}

impl FastOp<1> for ScaleColumns {
    type Saved = Raw;

    fn forward(&self, [x_tn]: [Raw; 1]) -> (Raw, Raw) {
        let mut y = x_tn.clone();
        times(values_mut(&mut y), &self.product());
        (y, x_tn)
    }

    fn backward(
        &self,
        x_tn: Raw,
        mut g: Raw,
        [wants_x]: [bool; 1],
        _: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        if let Some(sink) = &self.sink {
            let n = dims(&x_tn).1;
            let mut dw = buffer(n);
            dw.fill(0.0);
            for (x, g) in values(&x_tn).chunks_exact(n).zip(values(&g).chunks_exact(n)) {
                dw.iter_mut().zip(x.iter().zip(g)).for_each(|(dw, (&x, &g))| *dw += x * g);
            }
            if let Some(c) = &self.factors {
                dw.iter_mut().zip(c.iter()).for_each(|(dw, &c)| *dw *= c);
            }
            sink.add(&dw);
        }
        [wants_x.then(|| {
            times(values_mut(&mut g), &self.product());
            g
        })]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_row_lengths() {
        let w = Weight::new(vec![3.0, 4.0, 0.0, 2.0], 2, 2);
        let (up, down) = (Weight::new(vec![1.0, 0.0], 2, 1), Weight::new(vec![3.0, 4.0], 1, 2));
        assert_eq!(length_ratios(&w, &up, &down, 2.0), [1.0 / 3.0, 1.0]);
    }
}
