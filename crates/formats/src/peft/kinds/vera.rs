//! VeRA (Kopiczko et al., 2023, arXiv 2310.11454): `W + diag(b) B diag(d) A` with A and B that all
//! modules share, of which each takes its first rows and columns.

use super::{Kind, Site};
use crate::peft::change::{AdapterChange, Affine, LeafGradients};
use crate::peft::leaves::{Leaves, must_be};
use crate::peft::matrix::{add, product, product_of_rows};
use crate::peft::settings::Settings;
use crate::{FormatError, Result};

const SHARED_A: &str = "vera_A";
const SHARED_B: &str = "vera_B";
const LAMBDA_B: &str = "vera_lambda_b";
const LAMBDA_D: &str = "vera_lambda_d";

pub(super) static VERA: Kind = Kind {
    name: "VERA",
    leaves: &[LAMBDA_B, LAMBDA_D],
    wide: false,
    shared: &[SHARED_A, SHARED_B],
    settings: &[
        "d_initial",
        "init_weights",
        "projection_prng_key",
        "r",
        "save_projection",
        "vera_dropout",
    ],
    check: |_| Ok(()),
    build,
};

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    if !leaves.has(SHARED_A) || !leaves.has(SHARED_B) {
        let expected = "true: without it the file lacks the matrices that all modules share, which \
                        torch's generator drew and nothing else draws again";
        return Err(settings.object().unsupported("save_projection", expected));
    }
    let rank = settings.count("r")?;
    let &Site { module, out, into, .. } = site;
    let [rows, most_in] = leaves.axes::<2>(SHARED_A)?;
    let [most_out, columns] = leaves.axes::<2>(SHARED_B)?;
    must_be(&leaves.path(), "tensor vera_A: rank", rank, rows)?;
    must_be(&leaves.path(), "tensor vera_B: rank", rank, columns)?;
    if most_in < into || most_out < out {
        let expected = format!("vera_A and vera_B of at least {into} inputs and {out} outputs");
        let found = format!("{most_in} and {most_out}");
        return Err(FormatError::damaged(&leaves.path(), module, expected, found));
    }
    let a = leaves.take(SHARED_A, &[rank, most_in])?;
    let b = leaves.take(SHARED_B, &[most_out, rank])?;
    Ok(Box::new(Vectors {
        a: a.chunks_exact(most_in).flat_map(|row| &row[..into]).copied().collect(),
        b: b[..out * rank].to_vec(),
        d: leaves.take(LAMBDA_D, &[rank])?,
        lambda: leaves.take(LAMBDA_B, &[out])?,
    }))
}

#[derive(Debug)]
struct Vectors {
    /// The part of the shared `A` that this module reads, `[r, in]`.
    a: Vec<f64>,
    /// The part of the shared `B`, `[out, r]`.
    b: Vec<f64>,
    d: Vec<f64>,
    lambda: Vec<f64>,
}

impl Vectors {
    /// `diag(b) B diag(d)`, and the same without `diag(b)` or without `diag(d)`.
    fn left(&self, with_b: bool, with_d: bool) -> Vec<f64> {
        let rank = self.d.len();
        let factor = |i: usize| {
            (if with_b { self.lambda[i / rank] } else { 1.0 })
                * (if with_d { self.d[i % rank] } else { 1.0 })
        };
        self.b.iter().enumerate().map(|(i, b)| b * factor(i)).collect()
    }
}

impl AdapterChange for Vectors {
    fn merge(&self, base: &mut Affine) {
        let added = product(&self.left(true, true), &self.a, self.d.len(), base.into);
        add(&mut base.weight, 1.0, &added);
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let rank = self.d.len();
        // [out, r]: the gradient times A^T.
        let g = product_of_rows(&gradient.weight, &self.a, base.into);
        let of_rows = self.left(false, true);
        let of_rows = g.iter().zip(&of_rows).map(|(g, b)| g * b).collect::<Vec<_>>();
        let of_rows = of_rows.chunks_exact(rank).map(|row| row.iter().sum()).collect();
        let left = self.left(true, false);
        let mut of_d = vec![0.0; rank];
        for (i, (g, b)) in g.iter().zip(&left).enumerate() {
            of_d[i % rank] += g * b;
        }
        vec![(LAMBDA_B, of_rows), (LAMBDA_D, of_d)]
    }
}
