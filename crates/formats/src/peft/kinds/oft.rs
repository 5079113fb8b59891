//! OFT (Qiu et al., 2023, arXiv 2306.07280): inputs turned block by block, `W R^T` with `R = (I -
//! Q) (I + Q)^-1` and Q skew, whose numbers above the diagonal the file holds row by row. By
//! default PEFT sums `R = I + 2 Q + 2 Q^2 + .. + Q^(n - 1)` in its place, the beginning of a series
//! for the turn the other way.

use kernels::adapted::{AdapterChange, Affine, LeafGradients, add, inverse, product, transposed};

use super::{Kind, Site};
use crate::peft::leaves::Leaves;
use crate::peft::settings::Settings;
use crate::{FormatError, Result};

const ANGLES: &str = "oft_R.weight";

pub(super) static OFT: Kind = Kind {
    name: "OFT",
    leaves: &[ANGLES],
    wide: false,
    shared: &[],
    settings: &[
        "eps",
        "init_weights",
        "module_dropout",
        "num_cayley_neumann_terms",
        "oft_block_size",
        "r",
        "use_cayley_neumann",
    ],
    check: |_| Ok(()),
    build,
};

const TERMS: &str = "num_cayley_neumann_terms";
/// Terms of a series: behind them nothing is left of a turn that a series can stand for.
const MOST_TERMS: usize = 64;

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    let &Site { module, into, .. } = site;
    let [blocks, angles] = leaves.axes::<2>(ANGLES)?;
    let size = (1..=into).find(|n| n * (n - 1) / 2 >= angles).unwrap_or(0);
    if blocks == 0 || size < 2 || size * (size - 1) / 2 != angles || blocks * size != into {
        let field = format!("tensor {ANGLES} of {module}: shape");
        let expected = format!("n (n - 1) / 2 angles of {into} / n blocks");
        let found = format!("[{blocks}, {angles}]");
        return Err(FormatError::damaged(&leaves.path(), field, expected, found));
    }
    let angles = leaves.take(ANGLES, &[blocks, angles])?;
    let terms = match settings.object().bool("use_cayley_neumann")?.unwrap_or(true) {
        true => Some(settings.object().size(TERMS)?.unwrap_or(5)),
        false => None,
    };
    if terms.is_some_and(|terms| terms > MOST_TERMS) {
        return Err(settings.wrong(TERMS, format!("at most {MOST_TERMS}")));
    }
    let mut turns = Vec::new();
    for angles in angles.chunks_exact(size * (size - 1) / 2) {
        let Some(turn) = Turn::of(angles, size, terms) else {
            let field = format!("tensor {ANGLES} of {module}");
            let found = "one that has none";
            return Err(FormatError::damaged(
                &leaves.path(),
                field,
                "I + Q with an inverse",
                found,
            ));
        };
        turns.push(turn);
    }
    Ok(Box::new(Turns { turns, size }))
}

/// The turns of all blocks.
#[derive(Debug)]
struct Turns {
    turns: Vec<Turn>,
    size: usize,
}

/// Of one block.
#[derive(Debug)]
struct Turn {
    /// `R`
    turn: Vec<f64>,
    from: From,
}

/// What a turn is made of.
#[derive(Debug)]
enum From {
    /// `(I + Q)^-1`
    Inverse(Vec<f64>),
    /// The powers of Q from the first on, each with its factor.
    Series(Vec<(f64, Vec<f64>)>),
}

/// The factors of the powers of Q from the first on, in a series of so many terms.
fn factors(terms: usize) -> Vec<f64> {
    match terms {
        0 | 1 => Vec::new(),
        2 => vec![2.0],
        _ => [vec![2.0; (terms - 2).max(2)], vec![1.0]].concat(),
    }
}

impl Turn {
    fn of(angles: &[f64], n: usize, terms: Option<usize>) -> Option<Self> {
        let identity = |i: usize| f64::from(i / n == i % n);
        let mut q = vec![0.0; n * n];
        for ((i, j), x) in above(n).zip(angles) {
            q[i * n + j] = *x;
            q[j * n + i] = -*x;
        }
        if let Some(terms) = terms {
            let (mut turn, mut power) = ((0..n * n).map(identity).collect::<Vec<_>>(), q.clone());
            let mut powers = Vec::new();
            for factor in factors(terms) {
                add(&mut turn, factor, &power);
                let next = product(&power, &q, n, n);
                powers.push((factor, std::mem::replace(&mut power, next)));
            }
            return Some(Self { turn, from: From::Series(powers) });
        }
        let plus: Vec<f64> = q.iter().enumerate().map(|(i, q)| identity(i) + q).collect();
        let minus: Vec<f64> = q.iter().enumerate().map(|(i, q)| identity(i) - q).collect();
        let inverse = inverse(&plus, n)?;
        Some(Self { turn: product(&minus, &inverse, n, n), from: From::Inverse(inverse) })
    }

    /// The gradient of Q from that of R: by `dR = -(I + R) dQ (I + Q)^-1`, or power by power.
    fn of_q(&self, of_turn: &[f64], n: usize) -> Vec<f64> {
        let powers = match &self.from {
            From::Inverse(inverse) => {
                let mut plus: Vec<f64> = self.turn.iter().map(|x| -x).collect();
                (0..n).for_each(|i| plus[i * n + i] -= 1.0);
                let left = product(&transposed(&plus, n), of_turn, n, n);
                return product(&left, &transposed(inverse, n), n, n);
            }
            From::Series(powers) => powers,
        };
        // Power 0 on both sides is the identity.
        let times = |matrix: Vec<f64>, power: usize, left: bool| match power.checked_sub(1) {
            None => matrix,
            Some(at) if left => product(&transposed(&powers[at].1, n), &matrix, n, n),
            Some(at) => product(&matrix, &transposed(&powers[at].1, n), n, n),
        };
        let mut found = vec![0.0; n * n];
        for (power, (factor, _)) in powers.iter().enumerate() {
            for before in 0..=power {
                let part = times(times(of_turn.to_vec(), before, true), power - before, false);
                add(&mut found, *factor, &part);
            }
        }
        found
    }
}

/// The places above the diagonal, row by row.
fn above(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).flat_map(move |i| (i + 1..n).map(move |j| (i, j)))
}

impl Turns {
    /// Columns of one block.
    fn columns(&self, matrix: &[f64], into: usize, block: usize) -> Vec<f64> {
        let rows = matrix.chunks_exact(into);
        rows.flat_map(|row| &row[block * self.size..(block + 1) * self.size]).copied().collect()
    }
}

impl AdapterChange for Turns {
    fn merge(&self, base: &mut Affine) {
        let (into, n) = (base.into, self.size);
        for (block, turn) in self.turns.iter().enumerate() {
            let own = self.columns(&base.weight, into, block);
            let turned = product(&own, &transposed(&turn.turn, n), n, n);
            let rows = base.weight.chunks_exact_mut(into).zip(turned.chunks_exact(n));
            rows.for_each(|(row, new)| row[block * n..(block + 1) * n].copy_from_slice(new));
        }
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let (into, n) = (base.into, self.size);
        let mut found = Vec::new();
        for (block, turn) in self.turns.iter().enumerate() {
            let own = self.columns(&base.weight, into, block);
            let g = self.columns(&gradient.weight, into, block);
            let of_q = turn.of_q(&product(&transposed(&g, n), &own, base.out, n), n);
            found.extend(above(n).map(|(i, j)| of_q[i * n + j] - of_q[j * n + i]));
        }
        vec![(ANGLES, found)]
    }
}
