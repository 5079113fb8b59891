//! LoKr (Yeh et al., 2023, arXiv 2309.14859): `W + s kron(w1, w2)`, each factor whole or a product
//! of low rank.

use super::small::{add, product, product_of_columns, product_of_rows};
use super::{AdapterChange, Affine, LeafGradients, LearnedChange};

/// The names of each side: whole, then its two factors.
pub const KRONECKER: [[&str; 3]; 2] =
    [["lokr_w1", "lokr_w1_a", "lokr_w1_b"], ["lokr_w2", "lokr_w2_a", "lokr_w2_b"]];

/// A Kronecker product that is added.
#[derive(Debug)]
pub struct KroneckerProduct {
    /// Its two factors, w1 and w2.
    pub sides: [KroneckerFactor; 2],
    /// `s`, the factor of what is added.
    pub scale: f64,
}

/// One factor, `[rows, columns]`.
#[derive(Debug)]
pub struct KroneckerFactor {
    rows: usize,
    columns: usize,
    whole: Vec<f64>,
    /// Its own factors and their rank, where it has some.
    factors: Option<(Vec<f64>, Vec<f64>, usize)>,
}

impl KroneckerFactor {
    /// A matrix `[rows, columns]`.
    pub fn whole(rows: usize, columns: usize, whole: Vec<f64>) -> Self {
        Self { rows, columns, whole, factors: None }
    }

    /// The product of `a [rows, rank]` and `b [rank, columns]`.
    pub fn of_rank(rank: usize, a: Vec<f64>, b: Vec<f64>) -> Self {
        let (rows, columns) = (a.len() / rank.max(1), b.len() / rank.max(1));
        let whole = product(&a, &b, rank, columns);
        Self { rows, columns, whole, factors: Some((a, b, rank)) }
    }

    /// How many rows, and how many columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Gradients of its tensors from that of the whole.
    fn gradients(&self, names: [&'static str; 3], of_whole: Vec<f64>) -> LeafGradients {
        let [whole, name_a, name_b] = names;
        match &self.factors {
            None => vec![(whole, of_whole)],
            Some((a, b, rank)) => vec![
                (name_a, product_of_rows(&of_whole, b, self.columns)),
                (name_b, product_of_columns(a, &of_whole, *rank, self.columns)),
            ],
        }
    }
}

impl KroneckerProduct {
    /// Calls `each` with a place of the product and those of its two factors.
    fn places(&self, mut each: impl FnMut(usize, usize, usize)) {
        let [first, second] = &self.sides;
        let columns = first.columns * second.columns;
        for i in 0..first.rows * second.rows {
            for j in 0..columns {
                let one = (i / second.rows) * first.columns + j / second.columns;
                let two = (i % second.rows) * second.columns + j % second.columns;
                each(i * columns + j, one, two);
            }
        }
    }
}

impl AdapterChange for KroneckerProduct {
    fn merge(&self, base: &mut Affine) {
        let [first, second] = &self.sides;
        let mut added = vec![0.0; base.weight.len()];
        self.places(|at, one, two| added[at] = first.whole[one] * second.whole[two]);
        add(&mut base.weight, self.scale, &added);
    }

    fn gradients(&self, _: &Affine, gradient: &Affine) -> LeafGradients {
        let [first, second] = &self.sides;
        let (mut of_first, mut of_second) =
            (vec![0.0; first.whole.len()], vec![0.0; second.whole.len()]);
        self.places(|at, one, two| {
            let g = self.scale * gradient.weight[at];
            of_first[one] += g * second.whole[two];
            of_second[two] += g * first.whole[one];
        });
        let mut found = first.gradients(KRONECKER[0], of_first);
        found.extend(second.gradients(KRONECKER[1], of_second));
        found
    }
}

impl LearnedChange for KroneckerProduct {}
