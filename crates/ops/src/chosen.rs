//! The weights of the targets that rows chose: some scores of each row, made to sum to one or not.

use std::sync::Arc;

use crate::seam::{FastOp, Raw, apply, dims, make, values};
use crate::tensor::constant;
use crate::{Ops, Tensor2};

/// How the scores of the targets that a row chose become their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChosenWeights {
    /// Added to the sum by which the scores of a row are divided; they stay as they are without.
    pub normalize: Option<f32>,
    /// The least that this sum counts.
    pub least: f32,
    /// What multiplies every weight.
    pub scale: f32,
}

impl Ops {
    /// `w[i] = c s[i] / max(sum of s[j] + epsilon, least)` over the entries `j` of the same row, or
    /// `w[i] = c s[i]` without `normalize`: `[t, e] -> [entries, 1]`, where entry `i` is column
    /// `columns[i]` of row `rows[i]` of the scores; no two entries are the same.
    ///
    /// # Panics
    /// When an entry is past the rows or columns.
    pub fn chosen_weights(
        self,
        scores_te: Tensor2,
        rows: &Arc<[u32]>,
        columns: &Arc<[u32]>,
        how: ChosenWeights,
    ) -> Tensor2 {
        match self {
            Ops::Fast => {
                apply(Chosen { rows: rows.clone(), columns: columns.clone(), how }, [scores_te])
            }
            Ops::Plain(_) => {
                let ([t, e], device) = (scores_te.dims(), scores_te.device());
                let at: Vec<u32> =
                    rows.iter().zip(columns.iter()).map(|(r, c)| r * e as u32 + c).collect();
                let mut open = vec![0.0; t * e];
                at.iter().for_each(|&at| open[at as usize] = 1.0);
                let mut w_te = scores_te * constant(open, t, e, &device);
                if let Some(epsilon) = how.normalize {
                    let sums = w_te.clone().sum_dim(1).add_scalar(epsilon);
                    w_te = w_te / sums.clamp_min(how.least);
                }
                let flat = w_te.mul_scalar(how.scale).reshape([t * e, 1]);
                flat.select(0, crate::embed::index(&at, &device))
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Chosen {
    rows: Arc<[u32]>,
    columns: Arc<[u32]>,
    how: ChosenWeights,
}

impl Chosen {
    /// For each entry its place among the scores, and for each row what divides its scores.
    fn entries(&self, (t, e): (usize, usize), scores: &[f32]) -> (Vec<usize>, Vec<f32>) {
        let at: Vec<usize> = self
            .rows
            .iter()
            .zip(self.columns.iter())
            .map(|(&row, &column)| row as usize * e + column as usize)
            .collect();
        let mut sums = vec![self.how.normalize.unwrap_or(0.0); t];
        if self.how.normalize.is_none() {
            sums.fill(1.0);
            return (at, sums);
        }
        self.rows.iter().zip(&at).for_each(|(&row, &at)| sums[row as usize] += scores[at]);
        (at, sums)
    }

    /// What divides the scores of a row with this sum.
    fn divisor(&self, sum: f32) -> f32 {
        if self.how.normalize.is_some() { sum.max(self.how.least) } else { 1.0 }
    }
}

impl FastOp<1> for Chosen {
    type Saved = Raw;

    fn forward(&self, [scores_te]: [Raw; 1]) -> (Raw, Raw) {
        let (at, sums) = self.entries(dims(&scores_te), values(&scores_te));
        let s = values(&scores_te);
        let weights: Vec<f32> = self
            .rows
            .iter()
            .zip(&at)
            .map(|(&row, &at)| self.how.scale * s[at] / self.divisor(sums[row as usize]))
            .collect();
        let entries = weights.len();
        (make(weights, entries, 1), scores_te)
    }

    /// With `S` the sum of a row and `g` the gradients of its weights: `c (g[i] / S - sum of g[j]
    /// s[j] / S^2)`; the second term is missing where nothing is divided, or by a constant.
    fn backward(
        &self,
        scores_te: Raw,
        g_a1: Raw,
        _: [bool; 1],
        _: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        let (t, e) = dims(&scores_te);
        let s = values(&scores_te);
        let (at, sums) = self.entries((t, e), s);
        let mut means = vec![0.0; t];
        for ((&row, &at), g) in self.rows.iter().zip(&at).zip(values(&g_a1)) {
            means[row as usize] += g * s[at];
        }
        let mut ds = vec![0.0; t * e];
        for ((&row, &at), g) in self.rows.iter().zip(&at).zip(values(&g_a1)) {
            let (sum, divisor) = (sums[row as usize], self.divisor(sums[row as usize]));
            let moves = self.how.normalize.is_some() && sum > self.how.least;
            let through_sum = if moves { means[row as usize] / divisor / divisor } else { 0.0 };
            ds[at] = self.how.scale * (g / divisor - through_sum);
        }
        [Some(make(ds, t, e))]
    }
}
