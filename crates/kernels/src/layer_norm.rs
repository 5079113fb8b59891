//! What LayerNorm does beside RMSNorm: rows without their means.

use crate::check::check_len;
use crate::multiversion::multiversion;
use crate::reduce::{LANES, tree_sum};
use rayon::prelude::*;

/// Rows of a task.
const TASK_ROWS: usize = 64;

multiversion! {
    fn centre(x: &[f32], add: bool, out: &mut [f32]) {
        let mut lanes = [0.0f32; LANES];
        for block in x.chunks(LANES) {
            for (lane, x) in lanes.iter_mut().zip(block) {
                *lane += x;
            }
        }
        let mean = tree_sum(lanes) / x.len() as f32;
        for (out, x) in out.iter_mut().zip(x) {
            *out = if add { *out + (x - mean) } else { x - mean };
        }
    }
}

/// `x - mean(x)` of each row of `x_td` `[T, d]`, in `out_td` or, with `add`, added to it. A row's
/// bits depend on its own values alone.
///
/// # Panics
/// When the lengths do not fit.
pub fn centre_rows(x_td: &[f32], d: usize, add: bool, out_td: &mut [f32]) {
    check_len("centre_rows", "out_td", out_td.len(), x_td.len());
    check_len("centre_rows", "x_td (whole rows)", x_td.len(), x_td.len() / d.max(1) * d);
    let task = TASK_ROWS * d.max(1);
    x_td.par_chunks(task).zip(out_td.par_chunks_mut(task)).for_each(|(x, out)| {
        let rows = x.chunks_exact(d.max(1)).zip(out.chunks_exact_mut(d.max(1)));
        rows.for_each(|(x, out)| centre(x, add, out));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, in_pools, values, wide};

    #[test]
    fn rows_lose_their_means_on_any_threads() {
        for (t, d) in [(0, 3), (3, 1), (5, 33), (150, 48)] {
            let (x, before) = (values(1, t * d), values(2, t * d));
            let centred = wide(&x);
            let centred: Vec<f64> = centred
                .chunks(d)
                .flat_map(|row| row.iter().map(|x| x - row.iter().sum::<f64>() / d as f64))
                .collect();
            let added: Vec<f64> = centred.iter().zip(wide(&before)).map(|(x, y)| x + y).collect();
            let runs = in_pools(1..=3, || {
                let (mut plain, mut sum) = (vec![9.0; t * d], before.clone());
                centre_rows(&x, d, false, &mut plain);
                centre_rows(&x, d, true, &mut sum);
                assert_close(&plain, &centred, 1e-6);
                assert_close(&sum, &added, 1e-6);
                (bits(&plain), bits(&sum))
            });
            assert!(runs[0] == runs[1] && runs[1] == runs[2]);
        }
    }

    #[test]
    #[should_panic(expected = "centre_rows: `x_td (whole rows)` holds 5 values")]
    fn a_part_of_a_row_is_named() {
        centre_rows(&[0.0; 5], 2, false, &mut [0.0; 5]);
    }
}
