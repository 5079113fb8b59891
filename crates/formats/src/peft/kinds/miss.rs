//! MiSS (Kang and Yin, 2024, arXiv 2409.15371): a block that repeats along the inputs is added,
//! `W'[o, i] = W[o, i] + block[i mod r, o]`. In the form "bat" each block `[r, r]` of W is
//! multiplied by one of its rows of blocks, `W + W B + B`; in the form "mini" the block repeats
//! along the outputs, too.

use serde_json::json;

use super::{Kind, Site};
use crate::peft::change::{AdapterChange, Affine, LeafGradients};
use crate::peft::leaves::Leaves;
use crate::peft::matrix::{add, product, product_of_columns};
use crate::peft::settings::Settings;
use crate::{FormatError, Result};

const BLOCK: &str = "miss_block";

pub(super) static MISS: Kind = Kind {
    name: "MISS",
    leaves: &[BLOCK],
    wide: false,
    shared: &[],
    settings: &["init_weights", "mini_r", "miss_dropout", "r"],
    check,
    build,
};

fn check(settings: &Settings) -> Result<()> {
    let known = [json!(true), json!(false), json!("bat"), json!("mini")];
    settings.neutral("init_weights", &known)
}

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    let &Site { module, out, into, .. } = site;
    let rank = settings.rank(module)?;
    let divides = |what: &str, size: usize, by: usize| match size.is_multiple_of(by) {
        true => Ok(()),
        false => {
            let field = format!("tensors of {module}");
            let expected = format!("a divisor of its {size} {what}");
            Err(FormatError::damaged(&leaves.path(), field, expected, by.to_string()))
        }
    };
    match settings.text("init_weights") {
        Some("bat") => {
            divides("outputs", out, rank)?;
            divides("inputs", into, rank)?;
            let blocks = leaves.take(BLOCK, &[out / rank, rank, rank])?;
            Ok(Box::new(Blocks { blocks, rank }))
        }
        form => {
            let repeated = if form == Some("mini") { settings.count("mini_r")? } else { out };
            divides("outputs", out, repeated)?;
            let block = leaves.take(BLOCK, &[rank, repeated])?;
            Ok(Box::new(Repeated { block, rank, out: repeated }))
        }
    }
}

#[derive(Debug)]
struct Repeated {
    /// The block, `[r, out]`, that repeats over the inputs.
    block: Vec<f64>,
    rank: usize,
    /// After how many outputs it repeats.
    out: usize,
}

impl Repeated {
    fn at(&self, place: usize, into: usize) -> usize {
        ((place % into) % self.rank) * self.out + (place / into) % self.out
    }
}

impl AdapterChange for Repeated {
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
        vec![(BLOCK, found)]
    }
}

#[derive(Debug)]
struct Blocks {
    /// `[out / r, r, r]`
    blocks: Vec<f64>,
    rank: usize,
}

impl Blocks {
    /// The block of `matrix` in row `p` and column `q` of blocks.
    fn of(&self, matrix: &[f64], into: usize, p: usize, q: usize) -> Vec<f64> {
        let rank = self.rank;
        let row = |i: usize| &matrix[(p * rank + i) * into + q * rank..][..rank];
        (0..rank).flat_map(row).copied().collect()
    }
}

impl AdapterChange for Blocks {
    fn merge(&self, base: &mut Affine) {
        let (rank, into) = (self.rank, base.into);
        for (p, block) in self.blocks.chunks_exact(rank * rank).enumerate() {
            for q in 0..into / rank {
                let own = self.of(&base.weight, into, p, q);
                let mut added = product(&own, block, rank, rank);
                add(&mut added, 1.0, block);
                for (i, row) in added.chunks_exact(rank).enumerate() {
                    add(&mut base.weight[(p * rank + i) * into + q * rank..][..rank], 1.0, row);
                }
            }
        }
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
        vec![(BLOCK, found)]
    }
}
