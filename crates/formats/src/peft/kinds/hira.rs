//! HiRA (Huang et al., 2025, "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation"):
//! `W + W o (B A)`, without a scale.

use kernels::adapted::{
    AdapterChange, Affine, LeafGradients, add, entrywise, product, product_of_columns,
    product_of_rows,
};

use super::{Kind, Site};
use crate::Result;
use crate::peft::leaves::{Leaves, must_be};
use crate::peft::settings::Settings;

const A: &str = "hira_A";
const B: &str = "hira_B";

pub(super) static HIRA: Kind = Kind {
    name: "HIRA",
    leaves: &[A, B],
    wide: false,
    shared: &[],
    settings: &["hira_dropout", "init_weights", "r"],
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
    let found = leaves.axes::<2>(A)?[0];
    must_be(&leaves.path(), &format!("tensor {A} of {module}: rank"), rank, found)?;
    let (a, b) = (leaves.take(A, &[rank, into])?, leaves.take(B, &[out, rank])?);
    Ok(Box::new(Factors { a, b, rank }))
}

#[derive(Debug)]
struct Factors {
    a: Vec<f64>,
    b: Vec<f64>,
    rank: usize,
}

impl AdapterChange for Factors {
    fn merge(&self, base: &mut Affine) {
        let factors = product(&self.b, &self.a, self.rank, base.into);
        let added = entrywise(&base.weight, &factors);
        add(&mut base.weight, 1.0, &added);
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let g = entrywise(&gradient.weight, &base.weight);
        vec![
            (A, product_of_columns(&self.b, &g, self.rank, base.into)),
            (B, product_of_rows(&g, &self.a, base.into)),
        ]
    }
}
