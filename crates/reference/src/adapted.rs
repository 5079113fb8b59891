//! Matrices that adapters change, entry by entry.

use crate::matrix::Matrix;
use crate::settings::Settings;

/// The tensors of an adapter by the ends of their names.
type Leaves<'a> = dyn Fn(&str) -> Option<&'a Matrix> + 'a;

/// The matrix that a use computes with, for kinds that are a formula over `w`; `None` for others.
pub(crate) fn adapted(
    relax: &Settings,
    (part, number): (&str, usize),
    w: &Matrix,
    leaves: &Leaves<'_>,
) -> Option<Matrix> {
    let leaf = |name: &str| found(leaves, name);
    let entry: Box<dyn Fn(usize, usize, f64) -> f64> = match relax.text("kind") {
        "loha" => {
            let scale = relax.number("alpha") / relax.number("rank");
            let [a1, b1, a2, b2] = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"].map(leaf);
            Box::new(move |o, i, w| w + scale * low(a1, b1, o, i) * low(a2, b2, o, i))
        }
        "lokr" => {
            let scale = relax.number("alpha") / relax.number("rank");
            let first = leaf("lokr_w1");
            let second = match leaves("lokr_w2") {
                Some(whole) => whole.clone(),
                None => {
                    let (a, b) = (leaf("lokr_w2_a"), leaf("lokr_w2_b"));
                    made(a.rows, b.columns, |o, i| low(a, b, o, i))
                }
            };
            Box::new(move |o, i, w| {
                let one = first.row(o / second.rows)[i / second.columns];
                w + scale * one * second.row(o % second.rows)[i % second.columns]
            })
        }
        "ia3" => {
            let vector = leaf("ia3_l").row(0);
            let inputs = relax.texts("inputs").iter().any(|input| input == part);
            Box::new(move |o, i, w| w * vector[if inputs { i } else { o }])
        }
        "miss" => {
            let block = leaf("miss_block");
            Box::new(move |o, i, w| w + block.row(i % block.rows)[o])
        }
        "vera" => {
            let (outer, inner) = (leaf("vera_lambda_b").row(0), leaf("vera_lambda_d").row(0));
            let (rank, seed) = (relax.count("rank"), relax.count("projection_seed") as u64);
            let a = dice(seed, "vera_A", (rank, w.columns), w.columns);
            let b = dice(seed, "vera_B", (w.rows, rank), rank);
            let initial = relax.number("initial");
            Box::new(move |o, i, w| {
                let terms = (0..rank).map(|k| b.row(o)[k] * inner[k] * a.row(k)[i]);
                w + outer[o] * initial * terms.sum::<f64>()
            })
        }
        "mos" => {
            let scale = relax.number("alpha") / relax.number("rank");
            let (a, b) = (
                shards(relax, (part, number), "a", leaves),
                shards(relax, (part, number), "b", leaves),
            );
            Box::new(move |o, i, w| {
                w + scale * (0..a.rows).map(|k| b.row(k)[o] * a.row(k)[i]).sum::<f64>()
            })
        }
        "wara" => {
            let (n, d) = (w.rows, w.columns);
            let scale = relax.number("alpha") / relax.counts("ranks").iter().sum::<usize>() as f64;
            let coefficients = bands(relax, (n, d), leaves);
            Box::new(move |o, i, w| {
                let mut sum = 0.0;
                for (p, by_output) in [(o / 2, false), (n / 2 + o / 2, o % 2 == 1)] {
                    for (q, by_input) in [(i / 2, false), (d / 2 + i / 2, i % 2 == 1)] {
                        let sign = if by_output == by_input { 0.5 } else { -0.5 };
                        sum += sign * coefficients.row(p)[q];
                    }
                }
                w + scale * sum
            })
        }
        _ => return None,
    };
    Some(made(w.rows, w.columns, |o, i| entry(o, i, w.row(o)[i])))
}

/// The rows of A or of B of a mixture of shards: own shards, then those that dice took of the pool.
fn shards(
    relax: &Settings,
    (part, number): (&str, usize),
    side: &str,
    leaves: &Leaves<'_>,
) -> Matrix {
    let none = Matrix { rows: 0, columns: 0, values: Vec::new() };
    let own = leaves(&format!("own_{side}")).unwrap_or(&none);
    let pool = found(leaves, &format!("pool_{side}"));
    let (rank, pieces) = (relax.count("rank"), relax.count("shards"));
    let (seed, name) = (relax.count("selection_seed") as u64, format!("mos.{part}.{side}"));
    let all = chosen(seed, &name, number, pool.rows, rank * pieces - own.rows);
    made(rank, pieces * pool.columns, |k, at| {
        let (place, column) = (k * pieces + at / pool.columns, at % pool.columns);
        match place.checked_sub(own.rows) {
            None => own.row(place)[column],
            Some(place) => pool.row(all[place])[column],
        }
    })
}

fn found<'a>(leaves: &Leaves<'a>, name: &str) -> &'a Matrix {
    leaves(name).unwrap_or_else(|| panic!("no {name}"))
}

/// What pairs of low rank say of a matrix in the basis of a Haar step.
fn bands(relax: &Settings, (n, d): (usize, usize), leaves: &Leaves<'_>) -> Matrix {
    let ranks = relax.counts("ranks");
    made(n, d, |p, q| {
        let quarter = ranks.len() == 4;
        let (half, side) = (n / 2, d / 2);
        let band = if quarter { 2 * (p / half) + q / side } else { 0 };
        if ranks[band] == 0 {
            return 0.0;
        }
        let (up, down) =
            (found(leaves, &format!("up.{band}")), found(leaves, &format!("down.{band}")));
        let at = if quarter { (p % half, q % side) } else { (p, q) };
        low(up, down, at.0, at.1)
    })
}

/// An entry of `a b`.
fn low(a: &Matrix, b: &Matrix, o: usize, i: usize) -> f64 {
    a.row(o).iter().enumerate().map(|(k, a)| a * b.row(k)[i]).sum()
}

fn made(rows: usize, columns: usize, entry: impl Fn(usize, usize) -> f64) -> Matrix {
    let values = (0..rows * columns).map(|at| entry(at / columns, at % columns)).collect();
    Matrix { rows, columns, values }
}

/// Numbers of an address, row by row, uniform within `sqrt(6 / width)`.
fn dice(seed: u64, name: &str, (rows, columns): (usize, usize), width: usize) -> Matrix {
    let bound = (6.0 / width as f64).sqrt();
    made(rows, columns, |row, column| bound * (2.0 * die(seed, name, row, column) - 1.0))
}

/// Number `at` of part `part` of an address, in [0, 1).
fn die(seed: u64, name: &str, part: usize, at: usize) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    name.bytes().for_each(|b| hash = (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    // Purpose 1, the beginnings of weights; step 0.
    let all = [1, 0, hash].into_iter().fold(mix(seed.wrapping_add(STEP)), word);
    let place = word(all, part as u64).wrapping_add(STEP.wrapping_mul(at as u64 + 1));
    (mix(place) >> 11) as f64 / (1u64 << 53) as f64
}

/// The first `count` of `pool` numbers shuffled by the dice of an address (Fisher and Yates).
fn chosen(seed: u64, name: &str, part: usize, pool: usize, count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..pool).collect();
    for at in 0..count {
        all.swap(at, at + (die(seed, name, part, at) * (pool - at) as f64) as usize);
    }
    all.truncate(count);
    all
}

/// What SplitMix64 adds before each number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// An address with a further word.
fn word(state: u64, word: u64) -> u64 {
    mix(state.wrapping_mul(STEP) ^ mix(word.wrapping_add(0x2545_f491_4f6c_dd1d)))
}
