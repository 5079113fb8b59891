//! The cache that remembers, for generation: every unrolled layer holds the rows that reached it,
//! sequence by sequence.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Ops, Spans, Tensor2, from_rows, read_rows, write_rows};

use super::{KvCache, KvView};
use crate::layout::DepthRuns;
use crate::rows::Rows;

/// Keys and values of several growing sequences, one document each. Positions of a sequence must
/// arrive in order.
#[derive(Debug)]
pub struct SequenceCache {
    sequences: usize,
    layers: BTreeMap<usize, Layer>,
}

/// One layer: a store in which sequence `q` owns the lines `q * capacity ..`, and the positions
/// each has filled.
#[derive(Debug)]
struct Layer {
    store: Option<Tensor2>,
    width: usize,
    capacity: usize,
    positions: Vec<Vec<u32>>,
}

impl SequenceCache {
    /// Room for `sequences` sequences, numbered from 0.
    pub fn new(sequences: usize) -> Self {
        Self { sequences, layers: BTreeMap::new() }
    }

    /// How many rows each unrolled layer holds, over all sequences.
    pub fn rows_by_layer(&self) -> BTreeMap<usize, usize> {
        self.layers
            .iter()
            .map(|(&l, layer)| (l, layer.positions.iter().map(Vec::len).sum()))
            .collect()
    }

    /// Bytes of keys and values held (filled lines only), exactly.
    pub fn bytes(&self) -> usize {
        self.layers
            .values()
            .map(|l| l.positions.iter().map(Vec::len).sum::<usize>() * l.width * 4)
            .sum()
    }

    /// Empties sequence `sequence` for another one.
    pub fn forget(&mut self, sequence: usize) {
        for layer in self.layers.values_mut() {
            layer.positions[sequence].clear();
        }
    }

    fn layer(&mut self, layer: usize, width: usize) -> &mut Layer {
        let sequences = self.sequences;
        self.layers.entry(layer).or_insert_with(|| Layer {
            store: None,
            width,
            capacity: 0,
            positions: vec![Vec::new(); sequences],
        })
    }
}

impl Layer {
    /// Makes room for `more` further lines of the fullest sequence.
    fn reserve(&mut self, more: usize) {
        let fullest = self.positions.iter().map(Vec::len).max().unwrap_or(0);
        if fullest + more <= self.capacity {
            return;
        }
        let capacity = (fullest + more).next_power_of_two().max(16);
        let mut lines = vec![0.0; self.positions.len() * capacity * self.width];
        if let Some(store) = self.store.take() {
            let old = read_rows(&store);
            for (q, filled) in self.positions.iter().enumerate() {
                let n = filled.len() * self.width;
                let (to, from) = (q * capacity * self.width, q * self.capacity * self.width);
                lines[to..to + n].copy_from_slice(&old[from..from + n]);
            }
        }
        self.store = Some(from_rows(lines, self.positions.len() * capacity, self.width));
        self.capacity = capacity;
    }

    /// Appends the lines of `kv` to the sequences of `rows`.
    fn append(&mut self, rows: &Rows, kv: &Tensor2) {
        self.reserve(rows.len());
        let mut store = self.store.take().expect("reserved above");
        for run in rows.sequences() {
            let sequence = rows.sequence[run.start] as usize;
            let first = sequence * self.capacity + self.positions[sequence].len();
            let part = if run.len() == rows.len() {
                kv.clone()
            } else {
                kv.clone().narrow(0, run.start, run.len())
            };
            store = write_rows(store, first, &part);
            self.positions[sequence].extend_from_slice(&rows.position[run]);
        }
        self.store = Some(store);
    }

    fn see(&self, rows: &Rows) -> KvView {
        let (mut start, mut end) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for (&sequence, position) in rows.sequence.iter().zip(rows.position.iter()) {
            let first = sequence as usize * self.capacity;
            let past = self.positions[sequence as usize].partition_point(|p| p <= position);
            start.push(first as u32);
            end.push((first + past) as u32);
        }
        let kv_sn = self.store.clone().unwrap_or_else(|| from_rows(Vec::new(), 0, self.width));
        KvView::Lines { kv_sn, spans: Arc::new(Spans { start, end }) }
    }

    /// The values of some lines of one sequence.
    fn lines(&self, sequence: usize, range: std::ops::Range<usize>) -> Option<Tensor2> {
        let store = self.store.as_ref()?;
        (!range.is_empty())
            .then(|| store.clone().narrow(0, sequence * self.capacity + range.start, range.len()))
    }
}

impl KvCache for SequenceCache {
    fn append(&mut self, at: &DepthRuns, rows: &Rows, kv_tn: Tensor2) -> KvView {
        let layer = self.layer(at.only().layer, kv_tn.dims()[1]);
        layer.append(rows, &kv_tn);
        layer.see(rows)
    }

    fn reuse(&mut self, at: &DepthRuns, rows: &Rows) -> KvView {
        self.layers[&at.only().first].see(rows)
    }

    fn overwrite(&mut self, _: Ops, at: &DepthRuns, rows: &Rows, kv_tn: Tensor2) -> KvView {
        let (layer, first) = (at.only().layer, at.only().first);
        let width = kv_tn.dims()[1];
        self.layer(layer, width);
        for i in 0..rows.len() {
            let (sequence, position) = (rows.sequence[i], rows.position[i]);
            let held = self.layers[&layer].positions[sequence as usize].len();
            let below =
                self.layers[&first].positions[sequence as usize].partition_point(|&p| p < position);
            // Rows that stopped before this recursion are seen with what they had in the first one.
            if let Some(lines) = self.layers[&first].lines(sequence as usize, held..below) {
                let skipped =
                    self.layers[&first].positions[sequence as usize][held..below].to_vec();
                let document = vec![0; skipped.len()].into();
                let gap = Rows::new(vec![sequence; skipped.len()].into(), skipped.into(), document);
                self.layer(layer, width).append(&gap, &lines);
            }
            self.layer(layer, width)
                .append(&rows.only(&[i as u32]), &kv_tn.clone().narrow(0, i, 1));
        }
        self.layers[&layer].see(rows)
    }
}
