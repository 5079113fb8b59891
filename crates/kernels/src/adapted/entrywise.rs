//! LoHa (Hyeon-Woo et al., 2021, arXiv 2108.06098): `W + s (A1 B1) o (A2 B2)`, an entrywise product
//! of two matrices of low rank.

use super::small::{add, entrywise, product, product_of_columns, product_of_rows};
use super::{AdapterChange, Affine, LeafGradients, LearnedChange};

/// The names of A1, B1, A2, B2.
pub const ENTRYWISE: [&str; 4] = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"];

/// An entrywise product of two matrices of low rank.
#[derive(Debug)]
pub struct EntrywiseProduct {
    /// The factors of each, `[out, rank]` and `[rank, in]`.
    pub pairs: [(Vec<f64>, Vec<f64>); 2],
    /// The rank of both.
    pub rank: usize,
    /// `s`, the factor of what is added.
    pub scale: f64,
}

impl EntrywiseProduct {
    fn products(&self, into: usize) -> [Vec<f64>; 2] {
        self.pairs.each_ref().map(|(a, b)| product(a, b, self.rank, into))
    }
}

impl AdapterChange for EntrywiseProduct {
    fn merge(&self, base: &mut Affine) {
        let [first, second] = self.products(base.into);
        add(&mut base.weight, self.scale, &entrywise(&first, &second));
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let [first, second] = self.products(base.into);
        let scaled: Vec<f64> = gradient.weight.iter().map(|g| self.scale * g).collect();
        let mut found = LeafGradients::new();
        let names = ENTRYWISE.chunks_exact(2);
        for (((a, b), other), names) in self.pairs.iter().zip([second, first]).zip(names) {
            let g = entrywise(&scaled, &other);
            found.push((names[0], product_of_rows(&g, b, base.into)));
            found.push((names[1], product_of_columns(a, &g, self.rank, base.into)));
        }
        found
    }
}

impl LearnedChange for EntrywiseProduct {}
