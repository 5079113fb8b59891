//! Taking some rows out of a matrix and putting results back: what lets a recursion run on active
//! rows only.

use std::sync::Arc;

use burn_tensor::IndexingUpdateOp;
use kernels::rows::{gather_rows, row_dots, scatter_add_rows, scatter_add_scaled_rows};

use crate::embed::index;
use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values, values_mut};
use crate::{Ops, Tensor2};

/// How a block's output joins the rows it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// `x[s] += w * y`: the published Mixture-of-Recursions update (the output contains its own
    /// residual).
    Add,
    /// `x[s] += w * (y - x[s])`: a weight of 1 replaces the row, so the recursive model is the
    /// neutral point.
    Blend,
}

impl Ops {
    /// `x[rows[a], :] -> [a, d]`; a row that is named twice gets the sum of both gradients.
    pub fn gather_rows(self, x_td: Tensor2, rows: &Arc<[u32]>) -> Tensor2 {
        match self {
            Ops::Fast => apply(Gather { rows: rows.clone() }, [x_td]),
            Ops::Plain(_) => {
                let rows = index(rows, &x_td.device());
                x_td.select(0, rows)
            }
        }
    }

    /// `x` with `y[a] * weight[a]` combined into row `rows[a]`; rows not named stay bit for bit
    /// what they were. With [`Combine::Add`] a row may be named several times: its sum is taken in
    /// ascending `a`.
    pub fn combine_rows(
        self,
        x_td: Tensor2,
        rows: &Arc<[u32]>,
        y_ad: Tensor2,
        weight_a1: Tensor2,
        how: Combine,
    ) -> Tensor2 {
        match self {
            Ops::Fast => apply(CombineRows { rows: rows.clone(), how }, [x_td, y_ad, weight_a1]),
            Ops::Plain(_) => {
                let rows = index(rows, &x_td.device());
                let change = match how {
                    Combine::Add => y_ad,
                    Combine::Blend => y_ad - x_td.clone().select(0, rows.clone()),
                };
                x_td.select_assign(0, rows, change * weight_a1, IndexingUpdateOp::Add)
            }
        }
    }

    /// `x` with row `rows[a]` replaced by `y[a]`.
    pub fn replace_rows(self, x_td: Tensor2, rows: &Arc<[u32]>, y_ad: Tensor2) -> Tensor2 {
        match self {
            Ops::Fast => apply(Replace { rows: rows.clone() }, [x_td, y_ad]),
            Ops::Plain(_) => {
                let rows = index(rows, &x_td.device());
                let old = x_td.clone().select(0, rows.clone());
                x_td.select_assign(0, rows, y_ad - old, IndexingUpdateOp::Add)
            }
        }
    }

    /// `x[a, :] * weight[a]`.
    pub fn scale_rows(self, x_ad: Tensor2, weight_a1: Tensor2) -> Tensor2 {
        match self {
            Ops::Fast => apply(ScaleRows, [x_ad, weight_a1]),
            Ops::Plain(_) => x_ad * weight_a1,
        }
    }
}

fn gathered(x: &Raw, rows: &[u32]) -> Raw {
    let d = dims(x).1;
    let mut taken = buffer(rows.len() * d);
    gather_rows(values(x), d, rows, &mut taken);
    make(taken, rows.len(), d)
}

fn zero_rows(x: &mut Raw, rows: &[u32]) {
    let d = dims(x).1;
    let x = values_mut(x);
    for &row in rows {
        x[row as usize * d..][..d].fill(0.0);
    }
}

#[derive(Clone, Debug)]
struct Gather {
    rows: Arc<[u32]>,
}

impl FastOp<1> for Gather {
    type Saved = (usize, usize);

    fn forward(&self, [x_td]: [Raw; 1]) -> (Raw, (usize, usize)) {
        (gathered(&x_td, &self.rows), dims(&x_td))
    }

    fn backward(
        &self,
        (t, d): (usize, usize),
        g_ad: Raw,
        _: [bool; 1],
        _: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        let mut dx = make(vec![0.0; t * d], t, d);
        scatter_add_rows(values_mut(&mut dx), d, &self.rows, values(&g_ad));
        [Some(dx)]
    }
}

#[derive(Clone, Debug)]
struct CombineRows {
    rows: Arc<[u32]>,
    how: Combine,
}

impl CombineRows {
    /// `y`, or `y - x[rows]`: what the weight multiplies.
    fn change(&self, x_td: &Raw, y_ad: Raw) -> Raw {
        match self.how {
            Combine::Add => y_ad,
            Combine::Blend => {
                let old = gathered(x_td, &self.rows);
                let mut change = y_ad;
                kernels::rows::axpy(values_mut(&mut change), -1.0, values(&old));
                change
            }
        }
    }
}

impl FastOp<3> for CombineRows {
    type Saved = (Raw, Raw);

    fn forward(&self, [mut x_td, y_ad, weight_a1]: [Raw; 3]) -> (Raw, (Raw, Raw)) {
        let d = dims(&x_td).1;
        let change = self.change(&x_td, y_ad);
        scatter_add_scaled_rows(
            values_mut(&mut x_td),
            d,
            &self.rows,
            values(&change),
            values(&weight_a1),
        );
        (x_td, (change, weight_a1))
    }

    fn backward(
        &self,
        (change, weight): (Raw, Raw),
        g: Raw,
        wanted: [bool; 3],
        _: Option<Raw>,
    ) -> [Option<Raw>; 3] {
        let (a, d) = dims(&change);
        let mut dy = gathered(&g, &self.rows);
        let dw = wanted[2].then(|| {
            let mut dots = buffer(a);
            row_dots(values(&dy), values(&change), d, &mut dots);
            make(dots, a, 1)
        });
        for (row, &w) in values_mut(&mut dy).chunks_exact_mut(d.max(1)).zip(values(&weight)) {
            row.iter_mut().for_each(|x| *x *= w);
        }
        let mut dx = g;
        if wanted[0] && self.how == Combine::Blend {
            let negative = vec![-1.0; a];
            scatter_add_scaled_rows(values_mut(&mut dx), d, &self.rows, values(&dy), &negative);
        }
        [wanted[0].then_some(dx), wanted[1].then_some(dy), dw]
    }
}

#[derive(Clone, Debug)]
struct Replace {
    rows: Arc<[u32]>,
}

impl FastOp<2> for Replace {
    type Saved = ();

    fn forward(&self, [mut x_td, y_ad]: [Raw; 2]) -> (Raw, ()) {
        let d = dims(&x_td).1;
        let x = values_mut(&mut x_td);
        for (y, &row) in values(&y_ad).chunks_exact(d.max(1)).zip(self.rows.iter()) {
            x[row as usize * d..][..d].copy_from_slice(y);
        }
        (x_td, ())
    }

    fn backward(&self, (): (), g: Raw, wanted: [bool; 2], _: Option<Raw>) -> [Option<Raw>; 2] {
        let dy = wanted[1].then(|| gathered(&g, &self.rows));
        let dx = wanted[0].then(|| {
            let mut dx = g;
            zero_rows(&mut dx, &self.rows);
            dx
        });
        [dx, dy]
    }
}

#[derive(Clone, Debug)]
struct ScaleRows;

impl FastOp<2> for ScaleRows {
    type Saved = (Raw, Raw);

    fn forward(&self, [x, weight]: [Raw; 2]) -> (Raw, (Raw, Raw)) {
        let mut y = x.clone();
        scale(&mut y, &weight);
        (y, (x, weight))
    }

    fn backward(
        &self,
        (x, weight): (Raw, Raw),
        mut g: Raw,
        wanted: [bool; 2],
        _: Option<Raw>,
    ) -> [Option<Raw>; 2] {
        let (a, d) = dims(&x);
        let dw = wanted[1].then(|| {
            let mut dots = buffer(a);
            row_dots(values(&g), values(&x), d, &mut dots);
            make(dots, a, 1)
        });
        scale(&mut g, &weight);
        [wanted[0].then_some(g), dw]
    }
}

fn scale(x: &mut Raw, weight: &Raw) {
    let d = dims(x).1.max(1);
    for (row, &w) in values_mut(x).chunks_exact_mut(d).zip(values(weight)) {
        row.iter_mut().for_each(|x| *x *= w);
    }
}
