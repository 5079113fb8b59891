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

    /// Every sequence once more behind all others, under a number of its own.
    pub fn twice(&self) -> Self {
        let rows = &self.rows;
        let again = rows.sequence.iter().max().map_or(0, |last| last + 1);
        let twice = |list: &[u32], more: u32| -> Arc<[u32]> {
            list.iter().copied().chain(list.iter().map(|x| x + more)).collect()
        };
        let (sequence, position) = (twice(&rows.sequence, again), twice(&rows.position, 0));
        Self {
            ids: twice(&self.ids, 0),
            rows: Rows::new(sequence, position, twice(&rows.document, 0)),
            targets: twice(&self.targets, 0),
            counts: self.counts.repeat(2),
        }
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
