//! LoKr (Yeh et al., 2023, arXiv 2309.14859): `W + alpha / r kron(w1, w2)`, each factor whole or a
//! product of low rank. The scale stands even where neither is such a product.

use super::{Kind, Site};
use crate::peft::change::{AdapterChange, Affine, LeafGradients};
use crate::peft::leaves::{Leaves, must_be};
use crate::peft::matrix::{add, product, product_of_columns, product_of_rows};
use crate::peft::settings::Settings;
use crate::{FormatError, Result};

/// Whole, then the two factors, of each side.
const NAMES: [[&str; 3]; 2] =
    [["lokr_w1", "lokr_w1_a", "lokr_w1_b"], ["lokr_w2", "lokr_w2_a", "lokr_w2_b"]];

pub(super) static LOKR: Kind = Kind {
    name: "LOKR",
    leaves: &["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"],
    wide: false,
    shared: &[],
    settings: &[
        "alpha",
        "decompose_both",
        "decompose_factor",
        "init_weights",
        "module_dropout",
        "r",
        "rank_dropout",
        "rank_dropout_scale",
    ],
    check: |_| Ok(()),
    build,
};

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    let &Site { module, out, into, .. } = site;
    let rank = settings.rank(module)?;
    let [first, second] = [0, 1].map(|side| Side::read(leaves, side, rank, site));
    let (first, second) = (first?, second?);
    let found = (first.rows * second.rows, first.columns * second.columns);
    if found != (out, into) {
        let field = format!("tensors of {module}");
        let expected = format!("factors whose Kronecker product is [{out}, {into}]");
        let found = format!("one of [{}, {}]", found.0, found.1);
        return Err(FormatError::damaged(&leaves.path(), field, expected, found));
    }
    let scale = settings.alpha(module, "alpha")? / rank as f64;
    Ok(Box::new(Kronecker { sides: [first, second], scale }))
}

#[derive(Debug)]
struct Kronecker {
    sides: [Side; 2],
    scale: f64,
}

/// One factor, `[rows, columns]`.
#[derive(Debug)]
struct Side {
    rows: usize,
    columns: usize,
    whole: Vec<f64>,
    /// Its own factors and their rank, where it has some.
    factors: Option<(Vec<f64>, Vec<f64>, usize)>,
}

impl Side {
    fn read(leaves: &Leaves<'_>, side: usize, rank: usize, site: &Site<'_>) -> Result<Self> {
        let &Site { module, out, into, .. } = site;
        let [whole, a, b] = NAMES[side];
        if leaves.has(whole) {
            if leaves.has(a) || leaves.has(b) {
                let field = format!("tensors of {module}");
                let expected = format!("{whole} or its factors {a} and {b}");
                return Err(FormatError::damaged(&leaves.path(), field, expected, "both"));
            }
            let [rows, columns] = leaves.axes::<2>(whole)?;
            let whole = leaves.take(whole, &[rows, columns])?;
            return Ok(Self { rows, columns, whole, factors: None });
        }
        let [rows, found] = leaves.axes::<2>(a)?;
        must_be(&leaves.path(), &format!("tensor {a} of {module}: rank"), rank, found)?;
        let [_, columns] = leaves.axes::<2>(b)?;
        // Before anything of its size is made: low rank is a short file.
        if rows > out || columns > into {
            let field = format!("tensors {a} and {b} of {module}: product");
            let expected = format!("at most [{out}, {into}], the module's shape");
            let found = format!("[{rows}, {columns}]");
            return Err(FormatError::damaged(&leaves.path(), field, expected, found));
        }
        let (a, b) = (leaves.take(a, &[rows, rank])?, leaves.take(b, &[rank, columns])?);
        let whole = product(&a, &b, rank, columns);
        Ok(Self { rows, columns, whole, factors: Some((a, b, rank)) })
    }

    /// Gradients of its tensors from that of the whole.
    fn gradients(&self, side: usize, of_whole: Vec<f64>) -> LeafGradients {
        let [whole, name_a, name_b] = NAMES[side];
        match &self.factors {
            None => vec![(whole, of_whole)],
            Some((a, b, rank)) => vec![
                (name_a, product_of_rows(&of_whole, b, self.columns)),
                (name_b, product_of_columns(a, &of_whole, *rank, self.columns)),
            ],
        }
    }
}

impl Kronecker {
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

impl AdapterChange for Kronecker {
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
        let mut found = first.gradients(0, of_first);
        found.extend(second.gradients(1, of_second));
        found
    }
}
