//! The vector of a prompt: what its rows are behind the last norm, pooled as they come.

use std::collections::BTreeMap;
use std::ops::Range;

use scheduler::{Pooling, Request};

/// Sums of the rows so far, by request.
#[derive(Debug, Default)]
pub(crate) struct PooledRows(BTreeMap<u64, Vec<f64>>);

/// Positions, of those in `rows`, that the vector of a request takes in.
pub(crate) fn pooled(request: &Request, rows: Range<usize>) -> Range<usize> {
    let prompt = request.prompt.len();
    let from = match request.embedding {
        None => prompt,
        Some(Pooling::Mean) => 0,
        Some(Pooling::Last) => prompt - 1,
    };
    rows.start.max(from)..rows.end.min(prompt)
}

impl PooledRows {
    /// Adds the next row of a prompt. The order of the sum is that of the positions, whatever the
    /// chunks in which they come.
    pub(crate) fn add(&mut self, request: u64, x_d: &[f32]) {
        let sum = self.0.entry(request).or_insert_with(|| vec![0.0; x_d.len()]);
        sum.iter_mut().zip(x_d).for_each(|(sum, x)| *sum += f64::from(*x));
    }

    /// The vector of a prompt whose rows are all there, at length 1: a mean has the direction of
    /// the sum.
    ///
    /// # Errors
    /// One without direction.
    pub(crate) fn take(&mut self, request: u64) -> Result<Vec<f32>, String> {
        let sum = self.0.remove(&request).unwrap_or_default();
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !(length.is_finite() && length > 0.0) {
            return Err(format!(
                "the vector of the prompt has length {length}, expected a finite number above 0"
            ));
        }
        Ok(sum.iter().map(|x| (x / length) as f32).collect())
    }

    pub(crate) fn forget(&mut self, request: u64) {
        self.0.remove(&request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_add_up_to_a_vector_of_length_one() {
        let mut rows = PooledRows::default();
        rows.add(1, &[1.0, 0.0]);
        rows.add(2, &[f32::NAN, 0.0]);
        rows.add(1, &[2.0, 4.0]);
        rows.add(3, &[0.0, 0.0]);
        rows.add(4, &[1.0, 1.0]);
        assert_eq!(rows.take(1), Ok(vec![0.6, 0.8]));
        assert!(rows.take(2).is_err() && rows.take(3).is_err());
        rows.forget(4);
        assert!(rows.take(4).is_err());
    }
}
