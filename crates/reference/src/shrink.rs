//! Scores of passes over a checkpoint, from their formulas: what an expert writes, what its rows
//! make of it, what a neuron writes, and what a number of a matrix does to its rows.

/// `silu(x) = x / (1 + exp(-x))`.
fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// What drives the neurons of an expert, `silu(gate x) * (up x)`, with gate and up one below the
/// other in `gate_up`, `[2 f, d]`.
pub fn driven(x: &[f64], gate_up: &[f32]) -> Vec<f64> {
    let d = x.len();
    let f = gate_up.len() / d / 2;
    let row = |n: usize| -> f64 {
        gate_up[n * d..(n + 1) * d].iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
    };
    (0..f).map(|n| silu(row(n)) * row(f + n)).collect()
}

/// `down phi`, with `down` `[d, f]`.
pub fn written(phi: &[f64], down: &[f32]) -> Vec<f64> {
    let rows = down.chunks_exact(phi.len());
    rows.map(|row| row.iter().zip(phi).map(|(w, p)| f64::from(*w) * p).sum()).collect()
}

/// The mean over the rows of an expert of its weight times the norm of what it writes (REAP).
pub fn saliency(rows: &[(f64, Vec<f64>)], gate_up: &[f32], down: &[f32]) -> f64 {
    let mut sum = 0.0;
    for (g, x) in rows {
        let y = written(&driven(x, gate_up), down);
        sum += g * y.iter().map(|y| y * y).sum::<f64>().sqrt();
    }
    sum / rows.len().max(1) as f64
}

/// `|w|^2 ((1 - a) sum phi^2 + a max phi^2)` of each neuron, with the weight of the row in phi
/// (CAMERA).
pub fn energy(rows: &[(f64, Vec<f64>)], gate_up: &[f32], down: &[f32], a: f64) -> Vec<f64> {
    let d = rows.first().map_or(1, |(_, x)| x.len());
    let f = down.len() / d;
    let mut scores = Vec::new();
    for n in 0..f {
        let column: f64 = (0..d).map(|i| f64::from(down[i * f + n]).powi(2)).sum();
        let squares: Vec<f64> =
            rows.iter().map(|(g, x)| (g * driven(x, gate_up)[n]).powi(2)).collect();
        let most = squares.iter().copied().fold(0.0, f64::max);
        scores.push(column * ((1.0 - a) * squares.iter().sum::<f64>() + a * most));
    }
    scores
}

/// `|w_ij| |x_j|` over the rows (Wanda).
pub fn wanda(matrix: &[f32], rows: &[Vec<f64>]) -> Vec<f64> {
    let d = rows.first().map_or(1, Vec::len);
    let norm = |j: usize| rows.iter().map(|x| x[j] * x[j]).sum::<f64>().sqrt();
    let norms: Vec<f64> = (0..d).map(norm).collect();
    matrix.iter().enumerate().map(|(at, w)| f64::from(w.abs()) * norms[at % d]).collect()
}
