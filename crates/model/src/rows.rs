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
    /// The token id of each row; `None` until [`Rows::with_tokens`].
    pub token: Option<Arc<[u32]>>,
    /// How deep each row may and must go; `None` leaves it to router and rule.
    pub limits: Option<Arc<[DepthLimits]>>,
    /// The seed of each row's random numbers; `None` for that of the pass. Rows of requests that
    /// run together carry the seeds of their requests.
    pub seed: Option<Arc<[u64]>>,
}

/// The limits of one row's depth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DepthLimits {
    /// At most this many recursions.
    pub max: u32,
    /// At least this many.
    pub min: u32,
    /// Added to the thresholds of a causal rule, a logit.
    pub threshold: f32,
}

impl Default for DepthLimits {
    /// Any depth, thresholds as they are.
    fn default() -> Self {
        Self { max: u32::MAX, min: 0, threshold: 0.0 }
    }
}

impl Rows {
    /// Rows of these sequences, positions and documents, without tokens, limits or seeds.
    pub fn new(sequence: Arc<[u32]>, position: Arc<[u32]>, document: Arc<[u32]>) -> Self {
        Self { sequence, position, document, token: None, limits: None, seed: None }
    }

    /// `count` sequences of `length` rows each, one document.
    pub fn batch(count: usize, length: usize) -> Self {
        let numbers = 0..(count * length) as u32;
        Self::new(
            numbers.clone().map(|i| i / length as u32).collect(),
            numbers.map(|i| i % length as u32).collect(),
            vec![0; count * length].into(),
        )
    }

    /// Rows `first..first + count` of sequence `sequence`, one document.
    pub fn stretch(sequence: u32, first: u32, count: usize) -> Self {
        let positions = first..first + count as u32;
        Self::new(vec![sequence; count].into(), positions.collect(), vec![0; count].into())
    }

    /// The same rows with their token ids. Panics if there is not one for each row.
    pub fn with_tokens(&self, ids: &Arc<[u32]>) -> Self {
        assert_eq!(ids.len(), self.len(), "one token a row");
        Self { token: Some(ids.clone()), ..self.clone() }
    }

    /// The token of each row. Panics before [`Rows::with_tokens`].
    pub fn tokens(&self) -> &[u32] {
        self.token.as_deref().expect("rows inside a pass carry their tokens")
    }

    /// The limits of row `i`.
    pub fn limits(&self, i: usize) -> DepthLimits {
        self.limits.as_ref().map_or_else(DepthLimits::default, |limits| limits[i])
    }

    /// The seed of row `i`'s random numbers; `otherwise` if it carries none of its own.
    pub fn seed(&self, i: usize, otherwise: u64) -> u64 {
        self.seed.as_ref().map_or(otherwise, |seed| seed[i])
    }

    /// How many rows these are.
    pub fn len(&self) -> usize {
        self.position.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.position.is_empty()
    }

    /// The rows with these numbers, in this order.
    pub fn only(&self, numbers: &[u32]) -> Self {
        Self {
            sequence: pick(&self.sequence, numbers),
            position: pick(&self.position, numbers),
            document: pick(&self.document, numbers),
            token: self.token.as_ref().map(|all| pick(all, numbers)),
            limits: self.limits.as_ref().map(|all| pick(all, numbers)),
            seed: self.seed.as_ref().map(|all| pick(all, numbers)),
        }
    }

    /// Rows of several passes one after the other. What only some of them carry is lost, but for
    /// limits: rows without get none. Panics if only some carry seeds.
    pub fn stack<'a>(parts: impl Iterator<Item = &'a Rows> + Clone) -> Self {
        let seeded = parts.clone().filter(|rows| rows.seed.is_some()).count();
        assert!(seeded == 0 || seeded == parts.clone().count(), "all rows carry seeds, or none");
        let limited = parts.clone().any(|rows| rows.limits.is_some());
        Self {
            sequence: joined(parts.clone().map(|rows| &*rows.sequence)),
            position: joined(parts.clone().map(|rows| &*rows.position)),
            document: joined(parts.clone().map(|rows| &*rows.document)),
            token: parts
                .clone()
                .all(|rows| rows.token.is_some())
                .then(|| joined(parts.clone().map(Rows::tokens))),
            limits: limited.then(|| {
                parts.clone().flat_map(|rows| (0..rows.len()).map(|i| rows.limits(i))).collect()
            }),
            seed: (seeded > 0).then(|| {
                parts.clone().flat_map(|rows| (0..rows.len()).map(|i| rows.seed(i, 0))).collect()
            }),
        }
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

    /// What row `i` belongs to: its sequence, and its document there.
    fn whole(&self, i: usize) -> (u32, u32) {
        (self.sequence[i], self.document[i])
    }

    /// What rows are ordered by.
    fn key(&self, i: usize) -> (u32, u32) {
        (self.sequence[i], self.position[i])
    }
}

fn joined<'a>(lists: impl Iterator<Item = &'a [u32]>) -> Arc<[u32]> {
    lists.flatten().copied().collect()
}

fn pick<T: Copy>(from: &[T], numbers: &[u32]) -> Arc<[T]> {
    numbers.iter().map(|&i| from[i as usize]).collect()
}

/// What each query row sees of the key rows: those of its sequence and document that are not later
/// than itself. Both in row order.
pub(crate) fn visible(queries: &Rows, keys: &Rows) -> Spans {
    let (mut start, mut end) =
        (Vec::with_capacity(queries.len()), Vec::with_capacity(queries.len()));
    let (mut first, mut past) = (0, 0);
    for i in 0..queries.len() {
        while past < keys.len() && keys.key(past) <= queries.key(i) {
            past += 1;
        }
        while first < past && keys.whole(first) != queries.whole(i) {
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
        let rows = Rows::new(
            vec![0, 0, 0, 0, 1, 1].into(),
            vec![0, 1, 2, 3, 0, 1].into(),
            vec![0, 0, 1, 1, 0, 0].into(),
        );
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
    fn stacked_rows_keep_what_all_of_them_carry() {
        let part = |sequence, seed: Option<u64>, most: Option<u32>| Rows {
            seed: seed.map(|seed| vec![seed; 2].into()),
            limits: most.map(|max| vec![DepthLimits { max, ..DepthLimits::default() }; 2].into()),
            ..Rows::stretch(sequence, 3, 2)
        };
        let [first, second] = [part(4, Some(7), Some(1)), part(5, Some(9), None)];
        let both = Rows::stack([&first.with_tokens(&[1, 2].into()), &second].into_iter());
        assert_eq!((&*both.sequence, &*both.position), (&[4, 4, 5, 5][..], &[3, 4, 3, 4][..]));
        assert_eq!(both.seed.as_deref(), Some(&[7, 7, 9, 9][..]));
        assert_eq!([0, 3].map(|i| both.limits(i)), [first.limits(0), DepthLimits::default()]);
        assert!(both.token.is_none(), "only some had tokens");
        let alone = Rows::stack(std::iter::once(&first));
        assert_eq!((alone.seed, alone.limits), (first.seed, first.limits));
        let plain = [part(4, None, None), part(5, None, None)];
        let both = Rows::stack(plain.iter());
        assert!(both.seed.is_none() && both.limits.is_none());
    }

    #[test]
    fn runs() {
        assert_eq!(Rows::batch(2, 3).sequences(), [0..3, 3..6]);
        assert!(Rows::batch(0, 3).sequences().is_empty());
    }
}
