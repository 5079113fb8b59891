//! Some sequences packed into rows, with what each row should predict.

use std::sync::Arc;

use model::Rows;

/// Packed rows with targets.
#[derive(Clone, Debug)]
pub struct Batch {
    /// One token a row.
    pub ids: Arc<[u32]>,
    /// Who the rows are.
    pub rows: Rows,
    /// The token after each.
    pub targets: Arc<[u32]>,
    /// Whether the row's prediction counts.
    pub counts: Vec<bool>,
}

/// One sequence of a batch.
#[derive(Clone, Debug)]
pub struct BatchSequence<'a> {
    /// The token of each row.
    pub ids: &'a [u32],
    /// The next token of each.
    pub targets: &'a [u32],
    /// Running number of the document each input belongs to.
    pub document: &'a [u32],
    /// Whether the target belongs to the same document.
    pub same_document: &'a [bool],
}

impl Batch {
    /// Packs sequences. With `document_mask`, rows see only their own document and predictions
    /// across a boundary do not count; without, documents are one long text (the published
    /// behaviour).
    pub fn pack(sequences: &[BatchSequence<'_>], document_mask: bool) -> Self {
        let total: usize = sequences.iter().map(|s| s.ids.len()).sum();
        let mut ids = Vec::with_capacity(total);
        let (mut targets, mut counts) = (Vec::with_capacity(total), Vec::with_capacity(total));
        let (mut sequence, mut position) = (Vec::new(), Vec::new());
        let mut document = Vec::new();
        for (number, s) in sequences.iter().enumerate() {
            ids.extend_from_slice(s.ids);
            targets.extend_from_slice(s.targets);
            sequence.extend(std::iter::repeat_n(number as u32, s.ids.len()));
            position.extend(0..s.ids.len() as u32);
            if document_mask {
                document.extend_from_slice(s.document);
                counts.extend_from_slice(s.same_document);
            } else {
                document.extend(std::iter::repeat_n(0, s.ids.len()));
                counts.extend(std::iter::repeat_n(true, s.ids.len()));
            }
        }
        let rows = Rows::new(sequence.into(), position.into(), document.into());
        Self { ids: ids.into(), rows, targets: targets.into(), counts }
    }

    /// Every sequence twice, the second run behind the first. Sequence `s` becomes `2 s` and its
    /// second run `2 s + 1`, so that the numbers of a step, and with them its dice, are the same
    /// however the step is cut into batches.
    pub fn twice(&self) -> Self {
        let (runs, of) = (self.rows.sequences(), &self.rows);
        let places: Vec<usize> =
            runs.iter().flat_map(|run| [run.clone(), run.clone()]).flatten().collect();
        let second = runs.iter().flat_map(|run| [0, 1].map(|second| vec![second; run.len()]));
        let twice = |list: &[u32]| -> Arc<[u32]> { places.iter().map(|&i| list[i]).collect() };
        let numbers = places.iter().zip(second.flatten());
        let sequence = numbers.map(|(&i, second)| 2 * of.sequence[i] + second).collect();
        Self {
            ids: twice(&self.ids),
            rows: Rows::new(sequence, twice(&of.position), twice(&of.document)),
            targets: twice(&self.targets),
            counts: places.iter().map(|&i| self.counts[i]).collect(),
        }
    }

    /// The rows of the first runs of [`Batch::twice`], and those of the second runs, alike.
    pub fn runs(&self) -> [Vec<u32>; 2] {
        let rows = 0..self.rows.len() as u32;
        let (second, first) = rows.partition(|&row| self.rows.sequence[row as usize] % 2 == 1);
        [first, second]
    }

    /// How many predictions count.
    pub fn counted(&self) -> usize {
        self.counts.iter().filter(|c| **c).count()
    }

    /// The same weight for each prediction that counts, 0 for the others.
    pub fn weights(&self, weight: f32) -> Arc<[f32]> {
        self.counts.iter().map(|&c| if c { weight } else { 0.0 }).collect()
    }
}
