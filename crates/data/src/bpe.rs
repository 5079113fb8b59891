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

struct Learner {
    words: Vec<Vec<u32>>,
    weights: Vec<i64>,
    counts: HashMap<Pair, i64>,
    /// Words that held the pair when it was last counted up; may be stale, never incomplete.
    places: HashMap<Pair, Vec<u32>>,
    /// Candidates by count, ties to the smaller pair; an entry whose count is out of date is put
    /// back with the true one.
    queue: BinaryHeap<(i64, Reverse<Pair>)>,
    tokens: Vec<String>,
    bytes: Vec<usize>,
    ids: HashMap<String, u32>,
    specials: usize,
}

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
        let words =
            counts.keys().map(|w| w.bytes().map(|b| byte_id[usize::from(b)]).collect()).collect();
        let weights = counts.values().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect();
        let mut learner = Learner {
            words,
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
        for (at, word) in self.words.iter().enumerate() {
            for pair in word.windows(2).map(|p| (p[0], p[1])) {
                *self.counts.entry(pair).or_default() += self.weights[at];
                let places = self.places.entry(pair).or_default();
                if places.last() != Some(&(at as u32)) {
                    places.push(at as u32);
                }
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

    /// Replaces `pair` by `id` in every word and brings the counts up to date.
    fn merge(&mut self, pair: Pair, id: u32) {
        let mut raised = HashSet::new();
        for at in self.places.remove(&pair).unwrap_or_default() {
            let word = &self.words[at as usize];
            if !word.windows(2).any(|p| (p[0], p[1]) == pair) {
                continue;
            }
            let joined = join(word, pair, id);
            let weight = self.weights[at as usize];
            for p in word.windows(2) {
                *self.counts.entry((p[0], p[1])).or_default() -= weight;
            }
            for p in joined.windows(2) {
                let new = (p[0], p[1]);
                *self.counts.entry(new).or_default() += weight;
                if p[0] == id || p[1] == id {
                    let places = self.places.entry(new).or_default();
                    if places.last() != Some(&at) {
                        places.push(at);
                    }
                    raised.insert(new);
                }
            }
            self.words[at as usize] = joined;
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
}

fn join(word: &[u32], pair: Pair, id: u32) -> Vec<u32> {
    let mut joined = Vec::with_capacity(word.len() - 1);
    let mut i = 0;
    while i < word.len() {
        if i + 1 < word.len() && (word[i], word[i + 1]) == pair {
            joined.push(id);
            i += 2;
        } else {
            joined.push(word[i]);
            i += 1;
        }
    }
    joined
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

    #[test]
    fn a_merge_never_spells_a_special_token() {
        let merges = learn(counts(&[("stop", 50), ("stopping", 9)]), &["stop".to_owned()], 400);
        assert_eq!(merges.tokens.iter().filter(|t| *t == "stop").count(), 1);
        assert!(merges.merges.iter().all(|(a, b)| format!("{a}{b}") != "stop"));
    }
}
