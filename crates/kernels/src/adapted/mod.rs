//! What an adapter makes of the matrices that it stands on: formulas in double precision, with the
//! gradients of their numbers. Adapters that a recipe trains and folders of PEFT use the same ones.

mod bands;
mod entrywise;
mod kronecker;
mod repeated;
mod shards;
mod small;
mod vectors;

pub use bands::{BAND_DOWN, BAND_UP, LowRankBands};
pub use entrywise::{ENTRYWISE, EntrywiseProduct};
pub use kronecker::{KRONECKER, KroneckerFactor, KroneckerProduct};
pub use repeated::{MISS_BLOCK, MultipliedBlocks, RepeatedBlock};
pub use shards::{MOS_OWN, MOS_POOL, ShardedPair, Shards};
pub use small::{
    add, dot, entrywise, inverse, product, product_of_columns, product_of_rows, transposed,
};
pub use vectors::{IA3_VECTOR, SharedProjection, VERA_INNER, VERA_OUTER, VectorFactors};

/// A matrix of the base with the bias beside it, or the matrices of all experts, in double
/// precision.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    /// How many matrices there are: 1, or one for each expert.
    pub matrices: usize,
    /// Outputs of each of them.
    pub out: usize,
    /// Inputs of each of them.
    pub into: usize,
    /// The numbers of all matrices, `[matrices, out, into]`.
    pub weight: Vec<f64>,
    /// `[out]`, where there is one.
    pub bias: Option<Vec<f64>>,
}

/// Gradients of the tensors of an adapter, by the ends of their names.
pub type LeafGradients = Vec<(&'static str, Vec<f64>)>;

/// An adapter over one module: a formula with its numbers.
pub trait AdapterChange: std::fmt::Debug + Send + Sync {
    /// Whether it adds to the output, so that the layer needs a bias.
    fn needs_bias(&self) -> bool {
        false
    }

    /// The matrix and bias with the adapter in them.
    fn merge(&self, base: &mut Affine);

    /// Gradients of the adapter's tensors from that of the merged matrix and bias.
    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients;
}

/// A formula that a recipe trains, over a base that may learn, too.
pub trait LearnedChange: AdapterChange {
    /// Whether the merged matrix is the base's plus something that does not depend on it. The
    /// numbers of the base may then be absent in [`AdapterChange::gradients`].
    fn is_sum(&self) -> bool {
        true
    }

    /// Turns the gradient of the merged matrix into that of the base's, which is the same for a
    /// sum.
    fn base_gradient(&self, _gradient: &mut Affine) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: usize = 6;
    const INTO: usize = 8;

    fn numbers(count: usize, seed: u64) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    type Make = Box<dyn Fn(&[Vec<f64>]) -> Box<dyn LearnedChange>>;

    /// A formula by its tensors: their names and lengths, and how it is made of them.
    type Formula = (&'static str, Vec<(&'static str, usize)>, Make);

    fn formulas() -> Vec<Formula> {
        let entrywise: Vec<_> = ENTRYWISE.into_iter().zip([OUT * 2, 2 * INTO].repeat(2)).collect();
        let whole = vec![(KRONECKER[0][0], 2 * 4), (KRONECKER[1][0], 3 * 2)];
        let low = vec![(KRONECKER[0][0], 2 * 4), (KRONECKER[1][1], 3), (KRONECKER[1][2], 2)];
        let mut bands = Vec::new();
        for band in 0..4 {
            bands.extend([
                (BAND_DOWN[band], (1 + band % 2) * 4),
                (BAND_UP[band], (1 + band % 2) * 3),
            ]);
        }
        vec![
            (
                "entrywise",
                entrywise,
                Box::new(|t: &[Vec<f64>]| {
                    let pairs = [(t[0].clone(), t[1].clone()), (t[2].clone(), t[3].clone())];
                    Box::new(EntrywiseProduct { pairs, rank: 2, scale: 1.5 }) as _
                }),
            ),
            (
                "kronecker",
                whole,
                Box::new(|t| {
                    let one = KroneckerFactor::whole(2, 4, t[0].clone());
                    let two = KroneckerFactor::whole(3, 2, t[1].clone());
                    Box::new(KroneckerProduct { sides: [one, two], scale: 0.5 }) as _
                }),
            ),
            (
                "kronecker of low rank",
                low,
                Box::new(|t| {
                    let one = KroneckerFactor::whole(2, 4, t[0].clone());
                    let two = KroneckerFactor::of_rank(1, t[1].clone(), t[2].clone());
                    Box::new(KroneckerProduct { sides: [one, two], scale: 0.5 }) as _
                }),
            ),
            (
                "outputs",
                vec![(IA3_VECTOR, OUT)],
                Box::new(|t| Box::new(VectorFactors { vector: t[0].clone(), inputs: false }) as _),
            ),
            (
                "inputs",
                vec![(IA3_VECTOR, INTO)],
                Box::new(|t| Box::new(VectorFactors { vector: t[0].clone(), inputs: true }) as _),
            ),
            (
                "shared projections",
                vec![(VERA_OUTER, OUT), (VERA_INNER, 3)],
                Box::new(|t| {
                    let (a, b) = (numbers(3 * INTO, 71), numbers(OUT * 3, 72));
                    Box::new(SharedProjection { a, b, outer: t[0].clone(), inner: t[1].clone() })
                        as _
                }),
            ),
            (
                "a repeated block",
                vec![(MISS_BLOCK, 3 * OUT)],
                Box::new(|t| {
                    Box::new(RepeatedBlock { block: t[0].clone(), rank: 3, out: OUT }) as _
                }),
            ),
            (
                "multiplied blocks",
                vec![(MISS_BLOCK, 3 * 4)],
                Box::new(|t| Box::new(MultipliedBlocks { blocks: t[0].clone(), rank: 2 }) as _),
            ),
            (
                "shards",
                vec![(MOS_OWN[0], 4), (MOS_OWN[1], 3), (MOS_POOL[0], 5 * 4), (MOS_POOL[1], 5 * 3)],
                Box::new(|t| {
                    let side = |of: usize, selected: &[usize], width| Shards {
                        own: t[of].clone(),
                        pool: t[2 + of].clone(),
                        selected: selected.to_vec(),
                        width,
                    };
                    let (a, b) = (side(0, &[4, 0, 2], INTO / 2), side(1, &[1, 4, 3], OUT / 2));
                    Box::new(ShardedPair { a, b, rank: 2, scale: 1.5 }) as _
                }),
            ),
            (
                "bands",
                bands,
                Box::new(|t| {
                    let pair = |band: usize| (t[2 * band].clone(), t[2 * band + 1].clone());
                    let bands = [0, 1, 2, 3].map(pair).to_vec();
                    Box::new(LowRankBands { bands, scale: 2.0 }) as _
                }),
            ),
        ]
    }

    fn base(seed: u64) -> Affine {
        let (weight, bias) = (numbers(OUT * INTO, seed), Some(numbers(OUT, seed + 1)));
        Affine { matrices: 1, out: OUT, into: INTO, weight, bias }
    }

    /// A linear functional of the merged matrix and bias.
    fn functional(change: &dyn LearnedChange, base: &Affine, with: &Affine) -> f64 {
        let mut merged = base.clone();
        change.merge(&mut merged);
        let of_bias = |x: &Affine| x.bias.clone().unwrap_or_default();
        dot(&merged.weight, &with.weight) + dot(&of_bias(&merged), &of_bias(with))
    }

    /// Gradients of every formula, of its tensors and of the base, are slopes.
    #[test]
    fn gradients_are_slopes() {
        for (name, leaves, make) in formulas() {
            let count = leaves.iter().enumerate();
            let tensors: Vec<Vec<f64>> =
                count.map(|(i, (_, count))| numbers(*count, 10 + i as u64)).collect();
            let change = make(&tensors);
            let (base, with) = (base(1), base(5));
            let found = change.gradients(&base, &with);
            let mut names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
            let mut wanted: Vec<&str> = leaves.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(names, wanted, "{name}");
            let step = 1e-5;
            for (leaf, (of, _)) in leaves.iter().enumerate() {
                let (_, gradient) = found.iter().find(|(name, _)| name == of).expect("listed");
                assert_eq!(gradient.len(), tensors[leaf].len(), "{name}: {of}");
                for (place, &gradient) in gradient.iter().enumerate() {
                    let at = |by: f64| {
                        let mut moved = tensors.clone();
                        moved[leaf][place] += by;
                        functional(make(&moved).as_ref(), &base, &with)
                    };
                    let slope = (at(step) - at(-step)) / (2.0 * step);
                    assert!((slope - gradient).abs() < 1e-8, "{name}: {of}[{place}]");
                }
            }
            let mut of_base = with.clone();
            change.base_gradient(&mut of_base);
            for place in 0..OUT * INTO {
                let at = |by: f64| {
                    let mut moved = base.clone();
                    moved.weight[place] += by;
                    functional(change.as_ref(), &moved, &with)
                };
                let slope = (at(step) - at(-step)) / (2.0 * step);
                assert!((slope - of_base.weight[place]).abs() < 1e-8, "{name}: base[{place}]");
            }
            let mut without = Affine { weight: Vec::new(), bias: None, ..base.clone() };
            if change.is_sum() {
                without.bias = None;
                assert_eq!(change.gradients(&without, &with), found, "{name}");
            }
        }
    }
}
