//! LoHa (Hyeon-Woo et al., 2021, arXiv 2108.06098): `W + alpha / r (w1_a w1_b) o (w2_a w2_b)`, an
//! entrywise product of two matrices of low rank.

use super::{Kind, Site};
use crate::Result;
use crate::peft::change::{AdapterChange, Affine, LeafGradients};
use crate::peft::leaves::{Leaves, must_be};
use crate::peft::matrix::{add, entrywise, product, product_of_columns, product_of_rows};
use crate::peft::settings::Settings;

const FIRST_A: &str = "hada_w1_a";
const FIRST_B: &str = "hada_w1_b";
const SECOND_A: &str = "hada_w2_a";
const SECOND_B: &str = "hada_w2_b";

pub(super) static LOHA: Kind = Kind {
    name: "LOHA",
    leaves: &[FIRST_A, FIRST_B, SECOND_A, SECOND_B],
    wide: false,
    shared: &[],
    settings: &["alpha", "init_weights", "module_dropout", "r", "rank_dropout"],
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
    let found = leaves.axes::<2>(FIRST_B)?[0];
    must_be(&leaves.path(), &format!("tensor {FIRST_B} of {module}: rank"), rank, found)?;
    let pair =
        |a, b| -> Result<_> { Ok((leaves.take(a, &[out, rank])?, leaves.take(b, &[rank, into])?)) };
    let pairs = [pair(FIRST_A, FIRST_B)?, pair(SECOND_A, SECOND_B)?];
    let scale = settings.alpha(module, "alpha")? / rank as f64;
    Ok(Box::new(Entrywise { pairs, rank, scale }))
}

#[derive(Debug)]
struct Entrywise {
    pairs: [(Vec<f64>, Vec<f64>); 2],
    rank: usize,
    scale: f64,
}

impl Entrywise {
    fn products(&self, into: usize) -> [Vec<f64>; 2] {
        self.pairs.each_ref().map(|(a, b)| product(a, b, self.rank, into))
    }
}

impl AdapterChange for Entrywise {
    fn merge(&self, base: &mut Affine) {
        let [first, second] = self.products(base.into);
        add(&mut base.weight, self.scale, &entrywise(&first, &second));
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let [first, second] = self.products(base.into);
        let scaled: Vec<f64> = gradient.weight.iter().map(|g| self.scale * g).collect();
        let names = [(FIRST_A, FIRST_B), (SECOND_A, SECOND_B)];
        let mut found = LeafGradients::new();
        for (((a, b), other), (name_a, name_b)) in self.pairs.iter().zip([second, first]).zip(names)
        {
            let g = entrywise(&scaled, &other);
            found.push((name_a, product_of_rows(&g, b, base.into)));
            found.push((name_b, product_of_columns(a, &g, self.rank, base.into)));
        }
        found
    }
}
