//! Projection of rows in groups, each group with a matrix of its own out of a bank: what experts
//! compute. `y[a,i] = sum_d x[a,d] w[g n + i,d]` for the rows `a` of group `g`.

use std::sync::Arc;

use kernels::grouped::{Bank, grouped_forward, grouped_input_gradient, grouped_weight_gradient};
use kernels::matmul::{Mat, MatMut, Packed, Start, Threads};
use kernels::quant::{Quantized, matmul_exact, matmul_exact_back, matmul_quantized_rows};

use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values};
use crate::tensor::constant;
use crate::weight::{Codes, PackedHandle, Sink};
use crate::{Ops, Tensor2, Weight, rows_of, stack};

impl Ops {
    /// `[a, d] -> [a, n]`: rows lie group after group, `sizes[g]` of them in group `g`, and `bank`
    /// `[groups n, d]` holds a matrix `[n, d]` for each. A group without rows costs nothing.
    ///
    /// # Panics
    /// When the sizes do not add up to the rows, or the bank does not divide by their number.
    pub fn grouped_linear(self, x_ad: Tensor2, bank: &Weight, sizes: &Arc<[usize]>) -> Tensor2 {
        let rows = bank.shape().0;
        assert!(
            rows.is_multiple_of(sizes.len().max(1)),
            "a bank of {rows} rows has no {} matrices of one shape",
            sizes.len()
        );
        let (found, wanted) = (x_ad.dims()[0], sizes.iter().sum::<usize>());
        assert!(found == wanted, "groups of {wanted} rows together got {found} rows");
        match self {
            Ops::Fast => apply(Grouped::new(bank, sizes), [x_ad]),
            Ops::Plain(_) => {
                let (n, w) = (rows / sizes.len().max(1), bank.plain(&x_ad));
                let (mut parts, mut first) = (Vec::new(), 0);
                for (group, &size) in sizes.iter().enumerate().filter(|(_, size)| **size > 0) {
                    let x_ad = rows_of(&x_ad, first..first + size);
                    let w_nd = rows_of(&w, group * n..(group + 1) * n);
                    parts.push(x_ad.matmul(w_nd.transpose()));
                    first += size;
                }
                if parts.is_empty() {
                    return constant(Vec::new(), 0, n, &x_ad.device());
                }
                stack(parts)
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Grouped {
    bank: Raw,
    packed: Option<PackedHandle>,
    codes: Option<Codes>,
    sink: Option<Sink>,
    sizes: Arc<[usize]>,
    /// Rows and columns of each matrix.
    shape: (usize, usize),
}

impl Grouped {
    fn new(bank: &Weight, sizes: &Arc<[usize]>) -> Self {
        let (rows, d) = bank.shape();
        let n = rows / sizes.len().max(1);
        Self {
            bank: bank.raw(),
            // Panels that hold rows of two matrices are no use.
            packed: n.is_multiple_of(Packed::PANEL).then(|| bank.packed()).flatten(),
            codes: bank.codes(),
            sink: bank.sink(),
            sizes: sizes.clone(),
            shape: (n, d),
        }
    }

    fn bank(&self) -> Bank<'_> {
        let packed = self.packed.as_ref().map(PackedHandle::get);
        Bank { values: values(&self.bank), n: self.shape.0, k: self.shape.1, packed }
    }

    /// The product with rounded matrices, group by group.
    fn rounded(&self, x_ad: &[f32], codes: &Codes, y_an: &mut [f32]) {
        let Codes { matrix, exact } = codes;
        let (n, d) = self.shape;
        let mut first = 0;
        for (group, &size) in self.sizes.iter().enumerate().filter(|(_, size)| **size > 0) {
            let x = Mat::rows_major(&x_ad[first * d..], size, d);
            let y = MatMut::rows_major(&mut y_an[first * n..(first + size) * n], size, n);
            let rows = group * n..(group + 1) * n;
            match exact {
                true => matmul_exact(y, x, matrix, rows, Start::Zero, Threads::All),
                false => matmul_quantized_rows(y, x, matrix, rows, Start::Zero, Threads::All),
            }
            first += size;
        }
    }
}

impl Grouped {
    /// The gradient of the rows through rounded matrices, group by group.
    fn rounded_back(&self, g_an: &[f32], matrix: &Quantized, dx_ad: &mut [f32]) {
        let (n, d) = self.shape;
        let mut first = 0;
        for (group, &size) in self.sizes.iter().enumerate().filter(|(_, size)| **size > 0) {
            let g = Mat::rows_major(&g_an[first * n..], size, n);
            let dx = MatMut::rows_major(&mut dx_ad[first * d..(first + size) * d], size, d);
            matmul_exact_back(dx, g, matrix, group * n..(group + 1) * n, Threads::All);
            first += size;
        }
    }
}

impl FastOp<1> for Grouped {
    type Saved = Raw;

    fn forward(&self, [x_ad]: [Raw; 1]) -> (Raw, Raw) {
        let ((rows, _), n) = (dims(&x_ad), self.shape.0);
        let mut y = buffer(rows * n);
        match &self.codes {
            Some(codes) => self.rounded(values(&x_ad), codes, &mut y),
            None => grouped_forward(values(&x_ad), &self.sizes, self.bank(), &mut y),
        }
        (make(y, rows, n), x_ad)
    }

    fn backward(
        &self,
        x_ad: Raw,
        g_an: Raw,
        [wants_x]: [bool; 1],
        _: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        let ((rows, d), n) = (dims(&x_ad), self.shape.0);
        if let Some(Codes { matrix, exact }) = &self.codes {
            assert!(exact, "rounded weights are for inference, unless they are frozen in training");
            return [wants_x.then(|| {
                let mut dx = buffer(rows * d);
                self.rounded_back(values(&g_an), matrix, &mut dx);
                make(dx, rows, d)
            })];
        }
        if let Some(sink) = &self.sink {
            sink.with(|dw, touched| {
                let start = if touched { Start::FromC } else { Start::Zero };
                let (g, x) = ((values(&g_an), n), (values(&x_ad), d));
                grouped_weight_gradient(g, x, &self.sizes, dw, start);
            });
        }
        [wants_x.then(|| {
            let mut dx = buffer(rows * d);
            grouped_input_gradient(values(&g_an), &self.sizes, self.bank(), &mut dx);
            make(dx, rows, d)
        })]
    }
}
