//! Learns byte-pair merges (Sennrich et al. 2016) from word counts; the same counts give the same
//! merges, in any order and on any number of threads.

use crate::stretches::stretches;
use crate::words::{BYTE_CHAR, for_each_word};
use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

type Pair = (u32, u32);

/// Learned vocabulary: `tokens[id]` in the printable alphabet, specials first, then the 256 bytes,
/// then merges.
pub(crate) struct Merges {
    pub(crate) tokens: Vec<String>,
    pub(crate) merges: Vec<(String, String)>,
}

/// A pair that occurs less often than this is not merged.
const MIN_COUNT: i64 = 2;

/// Longest token in bytes: longer ones are whole words of one file, of no use elsewhere.
const MAX_TOKEN_BYTES: usize = 32;

/// How often each word occurs in `texts`, counted in parallel.
pub(crate) fn count_words(texts: &[String]) -> HashMap<Box<str>, u64> {
    texts.par_iter().map(|text| count_words_of(text)).reduce(HashMap::new, |a, b| {
        let (mut large, small) = if a.len() >= b.len() { (a, b) } else { (b, a) };
        add_counts(&mut large, small);
        large
    })
}

fn count_words_of(text: &str) -> HashMap<Box<str>, u64> {
    let mut words: HashMap<&str, u64> = HashMap::new();
    for stretch in stretches(text, true) {
        for_each_word(stretch, true, |word| *words.entry(word).or_default() += 1);
    }
    words.into_iter().map(|(word, n)| (Box::from(word), n)).collect()
}

/// Adds `more` to `counts`.
pub(crate) fn add_counts(counts: &mut HashMap<Box<str>, u64>, more: HashMap<Box<str>, u64>) {
    // Sums commute: the order of the map does not reach the result.
    #[allow(clippy::iter_over_hash_type)]
    for (word, n) in more {
        *counts.entry(word).or_default() += n;
    }
}

/// A symbol of a word: the word's number, and the byte of the word that the symbol begins at.
type Place = (u32, u32);

struct Learner {
    /// The symbols of all words, a cell for each byte and one behind each word: [`END`]. A symbol's
    /// id stands in its first cell; where it has more than one, its length is in the last one,
    /// marked as [`TAIL`], so that the symbol before another one is found.
    cells: Vec<u32>,
    /// First cell of each word.
    starts: Vec<usize>,
    weights: Vec<i64>,
    counts: HashMap<Pair, i64>,
    /// Where each pair was when it was last counted up; may be stale, never incomplete.
    places: HashMap<Pair, Vec<Place>>,
    /// Candidates by count, ties to the smaller pair; an entry whose count is out of date is put
    /// back with the true one.
    queue: BinaryHeap<(i64, Reverse<Pair>)>,
    tokens: Vec<String>,
    bytes: Vec<usize>,
    ids: HashMap<String, u32>,
    specials: usize,
}

/// Behind a word, and inside a symbol of more than two bytes.
const END: u32 = u32::MAX;
/// Added to the length in a symbol's last cell; all ids are below it.
const TAIL: u32 = 1 << 31;

/// Learns merges until `vocab_size` tokens exist or no pair occurs twice.
///
/// Each step merges the pair with the largest count, ties to the pair with the smaller ids. A merge
/// never spells a special token and never exceeds 32 bytes.
pub(crate) fn learn(
    counts: HashMap<Box<str>, u64>,
    specials: &[String],
    vocab_size: usize,
) -> Merges {
    let counts: BTreeMap<Box<str>, u64> = counts.into_iter().collect();
    let mut learner = Learner::new(&counts, specials);
    let mut merges = Vec::new();
    let mut seen = HashSet::new();
    while learner.tokens.len() < vocab_size {
        let Some((count, Reverse(pair))) = learner.queue.pop() else { break };
        let current = learner.counts.get(&pair).copied().unwrap_or(0);
        if current != count {
            if current >= MIN_COUNT {
                learner.queue.push((current, Reverse(pair)));
            }
            continue;
        }
        let Some(id) = learner.token_for(pair) else { continue };
        if seen.insert(pair) {
            merges.push((
                learner.tokens[pair.0 as usize].clone(),
                learner.tokens[pair.1 as usize].clone(),
            ));
        }
        learner.merge(pair, id);
    }
    Merges { tokens: learner.tokens, merges }
}

impl Learner {
    fn new(counts: &BTreeMap<Box<str>, u64>, specials: &[String]) -> Self {
        let mut alphabet = *BYTE_CHAR;
        alphabet.sort_unstable();
        let tokens: Vec<String> =
            specials.iter().cloned().chain(alphabet.iter().map(char::to_string)).collect();
        let bytes = tokens
            .iter()
            .enumerate()
            .map(|(i, t)| if i < specials.len() { t.len() } else { 1 })
            .collect();
        let ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
        let byte_id: Vec<u32> = BYTE_CHAR.iter().map(|c| ids[&c.to_string()]).collect();
        let (mut cells, mut starts, mut weights) = (Vec::new(), vec![0], Vec::new());
        for (word, &n) in counts {
            // A place inside a word has 32 bits.
            for piece in word.as_bytes().chunks(u32::MAX as usize) {
                cells.extend(piece.iter().map(|&byte| byte_id[usize::from(byte)]));
                cells.push(END);
                starts.push(cells.len());
                weights.push(i64::try_from(n).unwrap_or(i64::MAX));
            }
        }
        let mut learner = Learner {
            cells,
            starts,
            weights,
            counts: HashMap::new(),
            places: HashMap::new(),
            queue: BinaryHeap::new(),
            tokens,
            bytes,
            ids,
            specials: specials.len(),
        };
        learner.count_all();
        learner
    }

    fn count_all(&mut self) {
        for (word, ends) in self.starts.windows(2).enumerate() {
            // Without the cell behind the word.
            for (at, pair) in self.cells[ends[0]..ends[1] - 1].windows(2).enumerate() {
                let pair = (pair[0], pair[1]);
                *self.counts.entry(pair).or_default() += self.weights[word];
                self.places.entry(pair).or_default().push((word as u32, at as u32));
            }
        }
        self.queue = self
            .counts
            .iter()
            .filter(|(_, n)| **n >= MIN_COUNT)
            .map(|(p, n)| (*n, Reverse(*p)))
            .collect();
    }

    /// The id of the joined pair, new or existing; `None` where the pair must not be joined.
    fn token_for(&mut self, (left, right): Pair) -> Option<u32> {
        let bytes = self.bytes[left as usize] + self.bytes[right as usize];
        if bytes > MAX_TOKEN_BYTES {
            return None;
        }
        let joined = format!("{}{}", self.tokens[left as usize], self.tokens[right as usize]);
        if let Some(&id) = self.ids.get(&joined) {
            return (id as usize >= self.specials).then_some(id);
        }
        let id = self.tokens.len() as u32;
        self.tokens.push(joined.clone());
        self.bytes.push(bytes);
        self.ids.insert(joined, id);
        Some(id)
    }

    /// Replaces `pair` by `id` in every word, from left to right, and brings the counts up to date.
    fn merge(&mut self, pair: Pair, id: u32) {
        let mut raised = HashSet::new();
        let mut places = self.places.remove(&pair).unwrap_or_default();
        places.sort_unstable();
        for (word, at) in places {
            let cell = self.starts[word as usize] + at as usize;
            if self.cells[cell] != pair.0 {
                continue;
            }
            let middle = self.next(cell, pair.0);
            if self.cells[middle] != pair.1 {
                continue;
            }
            let weight = self.weights[word as usize];
            let end = self.next(middle, pair.1);
            let (before, after) = (self.before(cell), self.cells[end]);
            self.count(pair, -weight);
            if let Some(start) = before {
                let left = self.cells[start];
                self.count((left, pair.0), -weight);
                let place = at - (cell - start) as u32;
                raised.insert(self.place((left, id), weight, (word, place)));
            }
            if after != END {
                self.count((pair.1, after), -weight);
                raised.insert(self.place((id, after), weight, (word, at)));
            }
            self.cells[cell..end].fill(END);
            self.cells[cell] = id;
            self.cells[end - 1] = TAIL | (end - cell) as u32;
        }
        // The queue orders its entries itself: the order of the set does not reach the result.
        #[allow(clippy::iter_over_hash_type)]
        for new in raised {
            let count = self.counts[&new];
            if count >= MIN_COUNT {
                self.queue.push((count, Reverse(new)));
            }
        }
    }

    /// The cell behind the symbol `id` that begins at `cell`.
    fn next(&self, cell: usize, id: u32) -> usize {
        cell + self.bytes[id as usize]
    }

    /// The first cell of the symbol that ends before `cell`, in the same word.
    fn before(&self, cell: usize) -> Option<usize> {
        let last = cell.checked_sub(1)?;
        match self.cells[last] {
            END => None,
            tail if tail & TAIL != 0 => Some(cell - (tail & !TAIL) as usize),
            _ => Some(last),
        }
    }

    fn count(&mut self, pair: Pair, weight: i64) {
        *self.counts.entry(pair).or_default() += weight;
    }

    /// Counts a pair up at a new place of it.
    fn place(&mut self, pair: Pair, weight: i64, place: Place) -> Pair {
        self.count(pair, weight);
        self.places.entry(pair).or_default().push(place);
        pair
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(words: &[(&str, u64)]) -> HashMap<Box<str>, u64> {
        words.iter().map(|&(w, n)| (Box::from(w), n)).collect()
    }

    /// The definition, recounted from nothing at every step.
    fn learn_slowly(counts: &HashMap<Box<str>, u64>, merges: usize) -> Vec<(String, String)> {
        let order: HashMap<String, usize> = {
            let mut a = *BYTE_CHAR;
            a.sort_unstable();
            a.iter().map(char::to_string).zip(0..).collect()
        };
        let mut ids = order;
        let mut words: Vec<(Vec<String>, u64)> = counts
            .iter()
            .map(|(w, n)| (w.bytes().map(|b| BYTE_CHAR[usize::from(b)].to_string()).collect(), *n))
            .collect();
        let mut done = Vec::new();
        while done.len() < merges {
            let mut pairs: HashMap<(String, String), u64> = HashMap::new();
            for (word, n) in &words {
                for p in word.windows(2) {
                    *pairs.entry((p[0].clone(), p[1].clone())).or_default() += n;
                }
            }
            let best = pairs
                .into_iter()
                .filter(|(_, n)| *n >= 2)
                .max_by_key(|((a, b), n)| (*n, Reverse((ids[a], ids[b]))));
            let Some(((a, b), _)) = best else { break };
            let joined = format!("{a}{b}");
            let next = ids.len();
            ids.entry(joined.clone()).or_insert(next);
            for (word, _) in &mut words {
                let mut i = 0;
                while i + 1 < word.len() {
                    if word[i] == a && word[i + 1] == b {
                        word[i] = joined.clone();
                        word.remove(i + 1);
                    }
                    i += 1;
                }
            }
            if !done.contains(&(a.clone(), b.clone())) {
                done.push((a, b));
            }
        }
        done
    }

    #[test]
    fn agrees_with_the_recounting_definition() {
        let cases = [
            counts(&[("low", 5), ("lower", 2), ("newest", 6), ("widest", 3)]),
            counts(&[("aaaa", 3), ("aaaaaaa", 2), ("aab", 4), ("baaab", 7), ("aaaaa", 1)]),
            counts(&[("abab", 2), ("baba", 2), ("abba", 2), ("aabb", 2), ("bbbb", 2)]),
        ];
        for case in cases {
            let fast = learn(case.clone(), &[], 256 + 12);
            assert_eq!(fast.merges, learn_slowly(&case, fast.merges.len()));
            assert!(fast.merges.len() >= 6);
        }
    }

    /// Words of few letters, in which the same pairs stand again and again and overlap.
    #[test]
    fn words_of_any_kind_agree_with_the_recounting_definition() {
        let mut state = 9u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        for letters in [1, 2, 3, 5] {
            for _ in 0..12 {
                let words = 1 + below(6);
                let case: HashMap<Box<str>, u64> = (0..words)
                    .map(|_| {
                        let word =
                            (0..1 + below(60)).map(|_| (b'a' + below(letters) as u8) as char);
                        (word.collect::<String>().into(), 1 + below(4))
                    })
                    .collect();
                // Within the longest token, which the definition does not know.
                let fast = learn(case.clone(), &[], 256 + 4);
                assert_eq!(fast.merges, learn_slowly(&case, fast.merges.len()), "{case:?}");
            }
        }
    }

    /// Each merge costs what it joins, not the word that it is in.
    #[test]
    fn a_word_of_megabytes_takes_seconds() {
        let mut state = 1u64;
        let word: String = (0..2_000_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (b'A' + (state >> 33) as u8 % 58) as char
            })
            .collect();
        let begun = std::time::Instant::now();
        let merges = learn(counts(&[(&word, 1)]), &[], 256 + 3000);
        assert_eq!(merges.merges.len(), 3000);
        let took = begun.elapsed();
        assert!(took < std::time::Duration::from_secs(30), "{took:?}");
    }

    #[test]
    fn a_merge_never_spells_a_special_token() {
        let merges = learn(counts(&[("stop", 50), ("stopping", 9)]), &["stop".to_owned()], 400);
        assert_eq!(merges.tokens.iter().filter(|t| *t == "stop").count(), 1);
        assert!(merges.merges.iter().all(|(a, b)| format!("{a}{b}") != "stop"));
    }
}
