//! Matrices that adapters change, entry by entry.

use crate::matrix::Matrix;
use crate::settings::Settings;

/// The tensors of an adapter by the ends of their names.
type Leaves<'a> = dyn Fn(&str) -> Option<&'a Matrix> + 'a;

/// The matrix that a use computes with, for kinds that are a formula over `w`; `None` for others.
pub(crate) fn adapted(
    relax: &Settings,
    part: &str,
    w: &Matrix,
    leaves: &Leaves<'_>,
) -> Option<Matrix> {
    let leaf = |name: &str| leaves(name).unwrap_or_else(|| panic!("no {name}"));
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
        "wara" => {
            let ranks = relax.counts("ranks");
            let scale = relax.number("alpha") / ranks.iter().sum::<usize>() as f64;
            let (n, d) = (w.rows, w.columns);
            let coefficients = made(n, d, |p, q| {
                let quarter = ranks.len() == 4;
                let (half, side) = (n / 2, d / 2);
                let band = if quarter { 2 * (p / half) + q / side } else { 0 };
                if ranks[band] == 0 {
                    return 0.0;
                }
                let (up, down) = (leaf(&format!("up.{band}")), leaf(&format!("down.{band}")));
                let at = if quarter { (p % half, q % side) } else { (p, q) };
                low(up, down, at.0, at.1)
            });
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

/// An entry of `a b`.
fn low(a: &Matrix, b: &Matrix, o: usize, i: usize) -> f64 {
    a.row(o).iter().enumerate().map(|(k, a)| a * b.row(k)[i]).sum()
}

fn made(rows: usize, columns: usize, entry: impl Fn(usize, usize) -> f64) -> Matrix {
    let values = (0..rows * columns).map(|at| entry(at / columns, at % columns)).collect();
    Matrix { rows, columns, values }
}
