//! Rows: who each line of `[t, d]` is.

use std::sync::Arc;

use ops::Spans;

/// One entry a token in flight. Rows are ordered by sequence, then by position.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Which sequence the row belongs to.
    pub sequence: Arc<[u32]>,
    /// Its position there: the angle of the rotary embedding and the order of causality.
    pub position: Arc<[u32]>,
    /// Which document of the sequence; rows see only their own document.
    pub document: Arc<[u32]>,
    /// How deep each row may and must go; `None` leaves it to router and rule.
    pub dial: Option<Arc<[Dial]>>,
}

/// The limits of one row's depth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dial {
    /// At most this many recursions.
    pub max: u32,
    /// At least this many.
    pub min: u32,
    /// Added to the thresholds of a causal rule, a logit.
    pub threshold: f32,
}

impl Default for Dial {
    /// No limits.
    fn default() -> Self {
        Self { max: u32::MAX, min: 0, threshold: 0.0 }
    }
}

impl Rows {
    /// `count` sequences of `length` rows each, one document.
    pub fn batch(count: usize, length: usize) -> Self {
        let all =
            |f: fn(usize, usize) -> usize| -> Arc<[u32]> { (0..count * length).map(|i| f(i, length) as u32).collect() };
        Self { sequence: all(|i, n| i / n), position: all(|i, n| i % n), document: all(|_, _| 0), dial: None }
    }

    /// Rows `first..first + count` of sequence `sequence`.
    pub fn stretch(sequence: u32, first: u32, count: usize) -> Self {
        Self {
            sequence: vec![sequence; count].into(),
            position: (first..first + count as u32).collect(),
            document: vec![0; count].into(),
            dial: None,
        }
    }

    /// The limits of row `i`.
    pub fn dial(&self, i: usize) -> Dial {
        self.dial.as_ref().map_or_else(Dial::default, |dial| dial[i])
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.position.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.position.is_empty()
    }

    /// The rows with these numbers, in this order.
    pub fn only(&self, numbers: &[u32]) -> Self {
        let pick = |from: &[u32]| -> Arc<[u32]> { numbers.iter().map(|&i| from[i as usize]).collect() };
        let dial = self.dial.as_ref().map(|dial| numbers.iter().map(|&i| dial[i as usize]).collect());
        Self { sequence: pick(&self.sequence), position: pick(&self.position), document: pick(&self.document), dial }
    }

    /// Rows of several passes one after the other.
    pub fn stack<'a>(parts: impl Iterator<Item = &'a Rows> + Clone) -> Self {
        let all = |pick: fn(&Rows) -> &Arc<[u32]>| -> Arc<[u32]> {
            parts.clone().flat_map(|rows| pick(rows).iter().copied()).collect()
        };
        let limited = parts.clone().any(|rows| rows.dial.is_some());
        let dial = limited.then(|| parts.clone().flat_map(|rows| (0..rows.len()).map(|i| rows.dial(i))).collect());
        Self { sequence: all(|r| &r.sequence), position: all(|r| &r.position), document: all(|r| &r.document), dial }
    }

    /// A stretch of consecutive rows.
    pub(crate) fn stretch_of(&self, range: std::ops::Range<usize>) -> Self {
        self.only(&range.map(|i| i as u32).collect::<Vec<_>>())
    }

    /// Consecutive runs of one sequence, as ranges of row numbers.
    pub fn sequences(&self) -> Vec<std::ops::Range<usize>> {
        let mut runs = Vec::new();
        let mut start = 0;
        for i in 1..=self.len() {
            if i == self.len() || self.sequence[i] != self.sequence[start] {
                runs.push(start..i);
                start = i;
            }
        }
        runs
    }

    /// Whether the two are the very same rows (not only equal ones).
    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.position, &other.position) && Arc::ptr_eq(&self.sequence, &other.sequence)
    }

    fn key(&self, i: usize) -> (u32, u32) {
        (self.sequence[i], self.position[i])
    }
}

/// What each query row sees of the key rows: those of its sequence and document that are not later than itself. Both in
/// row order.
pub(crate) fn visible(queries: &Rows, keys: &Rows) -> Spans {
    let (mut start, mut end) = (Vec::with_capacity(queries.len()), Vec::with_capacity(queries.len()));
    let (mut first, mut past) = (0, 0);
    for i in 0..queries.len() {
        while past < keys.len() && keys.key(past) <= queries.key(i) {
            past += 1;
        }
        let same = |k: usize| keys.sequence[k] == queries.sequence[i] && keys.document[k] == queries.document[i];
        while first < past && !same(first) {
            first += 1;
        }
        start.push(first as u32);
        end.push(past as u32);
    }
    Spans { start, end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_see_their_past_and_their_document_only() {
        let rows = Rows {
            sequence: vec![0, 0, 0, 0, 1, 1].into(),
            position: vec![0, 1, 2, 3, 0, 1].into(),
            document: vec![0, 0, 1, 1, 0, 0].into(),
            dial: None,
        };
        let spans = visible(&rows, &rows);
        assert_eq!(spans.start, [0, 0, 2, 2, 4, 4]);
        assert_eq!(spans.end, [1, 2, 3, 4, 5, 6]);
        let some = rows.only(&[1, 3, 5]);
        let spans = visible(&some, &rows);
        assert_eq!((spans.start, spans.end), (vec![0, 2, 4], vec![2, 4, 6]));
        let spans = visible(&rows, &some);
        assert_eq!((spans.start[0], spans.end[0]), (0, 0), "row 0 has no key yet");
        assert_eq!((spans.start[3], spans.end[3]), (1, 2));
        assert_eq!((spans.start[4], spans.end[4]), (2, 2));
    }

    #[test]
    fn runs() {
        assert_eq!(Rows::batch(2, 3).sequences(), [0..3, 3..6]);
        assert!(Rows::batch(0, 3).sequences().is_empty());
    }
}
