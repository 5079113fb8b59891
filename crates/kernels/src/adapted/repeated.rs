//! MiSS (Kang and Yin, 2024, arXiv 2409.15371): a block that repeats along the inputs is added,
//! `W'[o, i] = W[o, i] + block[i mod r, o]`. In the form "bat" each block `[r, r]` of W is
//! multiplied by one of its rows of blocks, `W + W B + B`; in the form "mini" the block repeats
//! along the outputs, too.

use super::small::{add, product, product_of_columns, product_of_rows};
use super::{AdapterChange, Affine, LeafGradients, LearnedChange};

/// The name of the block.
pub const MISS_BLOCK: &str = "miss_block";

/// A block that repeats.
#[derive(Debug)]
pub struct RepeatedBlock {
    /// The block, `[r, out]`, that repeats over the inputs.
    pub block: Vec<f64>,
    /// After how many inputs it repeats.
    pub rank: usize,
    /// After how many outputs it repeats.
    pub out: usize,
}

impl RepeatedBlock {
    fn at(&self, place: usize, into: usize) -> usize {
        ((place % into) % self.rank) * self.out + (place / into) % self.out
    }
}

impl AdapterChange for RepeatedBlock {
    fn merge(&self, base: &mut Affine) {
        let into = base.into;
        for (place, x) in base.weight.iter_mut().enumerate() {
            *x += self.block[self.at(place, into)];
        }
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let mut found = vec![0.0; self.block.len()];
        for (place, g) in gradient.weight.iter().enumerate() {
            found[self.at(place, base.into)] += g;
        }
        vec![(MISS_BLOCK, found)]
    }
}

impl LearnedChange for RepeatedBlock {}

/// Blocks that those of the matrix are multiplied by.
#[derive(Debug)]
pub struct MultipliedBlocks {
    /// `[out / r, r, r]`
    pub blocks: Vec<f64>,
    /// The side of a block.
    pub rank: usize,
}

impl MultipliedBlocks {
    /// The block of `matrix` in row `p` and column `q` of blocks.
    fn of(&self, matrix: &[f64], into: usize, p: usize, q: usize) -> Vec<f64> {
        let rank = self.rank;
        let row = |i: usize| &matrix[(p * rank + i) * into + q * rank..][..rank];
        (0..rank).flat_map(row).copied().collect()
    }

    /// Adds to every block of `affine` what `added` makes of it and of its row of blocks.
    fn change(&self, affine: &mut Affine, added: impl Fn(&[f64], &[f64]) -> Vec<f64>) {
        let (rank, into) = (self.rank, affine.into);
        for (p, block) in self.blocks.chunks_exact(rank * rank).enumerate() {
            for q in 0..into / rank {
                let added = added(&self.of(&affine.weight, into, p, q), block);
                for (i, row) in added.chunks_exact(rank).enumerate() {
                    add(&mut affine.weight[(p * rank + i) * into + q * rank..][..rank], 1.0, row);
                }
            }
        }
    }
}

impl AdapterChange for MultipliedBlocks {
    fn merge(&self, base: &mut Affine) {
        self.change(base, |own, block| {
            let mut added = product(own, block, self.rank, self.rank);
            add(&mut added, 1.0, block);
            added
        });
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let (rank, into) = (self.rank, base.into);
        let mut found = vec![0.0; self.blocks.len()];
        for (p, found) in found.chunks_exact_mut(rank * rank).enumerate() {
            for q in 0..into / rank {
                let g = self.of(&gradient.weight, into, p, q);
                let own = self.of(&base.weight, into, p, q);
                add(found, 1.0, &product_of_columns(&own, &g, rank, rank));
                add(found, 1.0, &g);
            }
        }
        vec![(MISS_BLOCK, found)]
    }
}

impl LearnedChange for MultipliedBlocks {
    fn is_sum(&self) -> bool {
        false
    }

    fn base_gradient(&self, gradient: &mut Affine) {
        self.change(gradient, |g, block| product_of_rows(g, block, self.rank));
    }
}
