//! Where depth goes: which tokens take many recursions, by what is known of them and of their text.

use std::collections::{BTreeMap, HashMap};

use super::change::matched;
use super::information::of_counts;
use super::words::{InWord, WordKind, WordRole, in_words};
use super::{Controlled, Shuffles, shuffle};
use crate::table::Trace;

/// A token with its depth, and what may say something about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DepthToken {
    /// Its sequence, without the step.
    pub sequence: u64,
    /// Position in its sequence.
    pub position: u32,
    /// The id of its token in the vocabulary.
    pub token: u32,
    /// Recursions that the router sent it through.
    pub depth: u32,
    /// Nats that the token after it cost, as its row predicted it.
    pub loss: Option<f32>,
    /// Nats that it cost itself, as the row before it predicted it.
    pub surprisal: Option<f32>,
    /// Where its text comes from, a number in [`Trace::sources`].
    pub source: Option<u32>,
    /// What it is of its word.
    pub word: Option<InWord>,
    /// How many tokens of the trace have its id.
    pub count: u64,
}

impl DepthToken {
    /// Where it stands and what it is: what the same token of another trace has in common.
    fn key(&self) -> (u64, u32, u32) {
        (self.sequence, self.position, self.token)
    }
}

/// The tokens that a depth router decided about, by step, sequence and position.
pub fn depth_tokens(trace: &Trace) -> Vec<DepthToken> {
    let mut rows: BTreeMap<(Option<u64>, u64, u32), DepthToken> = BTreeMap::new();
    for (i, decision) in trace.iter().enumerate().filter(|(_, one)| one.layer.is_none()) {
        let key = (decision.step, decision.sequence, decision.position);
        let facts = trace.facts(i);
        let row = rows.entry(key).or_insert(DepthToken {
            sequence: decision.sequence,
            position: decision.position,
            token: decision.token,
            depth: 0,
            loss: facts.loss,
            surprisal: None,
            source: facts.source,
            word: None,
            count: 0,
        });
        row.depth += decision.targets.len() as u32;
    }
    let keys: Vec<_> = rows.keys().copied().collect();
    let mut tokens: Vec<DepthToken> = rows.into_values().collect();
    let mut counts: HashMap<u32, u64> = HashMap::new();
    tokens.iter().for_each(|row| *counts.entry(row.token).or_default() += 1);
    let mut start = 0;
    while start < tokens.len() {
        let mut end = start + 1;
        while end < keys.len() && follows(keys[end - 1], keys[end]) {
            end += 1;
        }
        let stretch = &mut tokens[start..end];
        let texts: Option<Vec<&str>> =
            stretch.iter().map(|row| trace.texts.get(&row.token).map(String::as_str)).collect();
        let words = texts.map_or_else(|| vec![None; stretch.len()], |texts| in_words(&texts));
        let mut before = None;
        for (row, word) in stretch.iter_mut().zip(words) {
            row.word = word;
            row.count = counts.get(&row.token).copied().unwrap_or_default();
            row.surprisal = before;
            before = row.loss;
        }
        start = end;
    }
    tokens
}

/// Whether a row is the next one of the same sequence.
fn follows(before: (Option<u64>, u64, u32), at: (Option<u64>, u64, u32)) -> bool {
    before.1 == at.1 && before.0 == at.0 && before.2.checked_add(1) == Some(at.2)
}

/// Parts of equal size into which numbers are sorted.
const PARTS: usize = 8;

/// What tokens are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DepthLabel {
    /// The id of the token in the vocabulary.
    Token,
    /// The kind of its word.
    WordKind,
    /// Content word, function word, or neither.
    WordRole,
    /// Whether a word begins with it.
    WordBegins,
    /// The eighth of the longest sequence that it stands in.
    Position,
    /// How often its id is met, in powers of two.
    Frequency,
    /// What it cost itself, in eighths of all tokens.
    Surprisal,
    /// What the token after it cost, in eighths of all tokens.
    Loss,
    /// Where its text comes from.
    Source,
}

impl DepthLabel {
    /// All of them, with what tables call them.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Token, "token"),
        (Self::WordKind, "part of speech"),
        (Self::WordRole, "content or function word"),
        (Self::WordBegins, "beginning or rest of a word"),
        (Self::Position, "eighth of the sequence"),
        (Self::Frequency, "frequency of the token"),
        (Self::Surprisal, "surprisal of the token"),
        (Self::Loss, "loss of the next token"),
        (Self::Source, "source of the text"),
    ];

    /// The label of each token, `None` where it is not known.
    pub fn of(self, tokens: &[DepthToken]) -> Vec<Option<u32>> {
        let longest = tokens.iter().map(|row| row.position as usize + 1).max().unwrap_or(1);
        match self {
            Self::Surprisal => parts(tokens.iter().map(|row| row.surprisal)),
            Self::Loss => parts(tokens.iter().map(|row| row.loss)),
            _ => tokens.iter().map(|row| self.of_one(row, longest)).collect(),
        }
    }

    /// The label of a token that does not depend on other tokens, but for the longest sequence.
    fn of_one(self, row: &DepthToken, longest: usize) -> Option<u32> {
        match self {
            Self::Token => Some(row.token),
            Self::WordKind => row.word.map(|word| place(word.kind)),
            Self::WordRole => row.word.map(|word| word.kind.role() as u32),
            Self::WordBegins => {
                let word = row.word.filter(|word| word.kind.role() != WordRole::Neither);
                word.map(|word| u32::from(!word.begins))
            }
            Self::Position => Some((row.position as usize * PARTS / longest) as u32),
            Self::Frequency => Some(row.count.max(1).ilog2()),
            Self::Source => row.source,
            Self::Surprisal | Self::Loss => None,
        }
    }

    /// What a label is called.
    pub fn name(self, label: u32, trace: &Trace) -> String {
        let known = match self {
            Self::Token => trace.texts.get(&label).map(String::as_str),
            Self::WordKind => WordKind::ALL.get(label as usize).map(|(_, name)| *name),
            Self::WordRole => {
                let all = [WordRole::Function, WordRole::Content, WordRole::Neither];
                all.get(label as usize).map(|role| role.name())
            }
            Self::WordBegins => ["beginning", "rest"].get(label as usize).copied(),
            Self::Source => trace.sources.get(label as usize).map(String::as_str),
            Self::Frequency => return format!("{} times or more", 1u64 << label.min(63)),
            Self::Position | Self::Surprisal | Self::Loss => {
                return format!("{} of {PARTS}", label + 1);
            }
        };
        known.map_or_else(|| label.to_string(), str::to_owned)
    }
}

/// The place of a kind in the list of all.
fn place(kind: WordKind) -> u32 {
    WordKind::ALL.iter().position(|(one, _)| *one == kind).unwrap_or_default() as u32
}

/// Which part of equal size each number is in, from the smallest ones; equal numbers are together.
fn parts(numbers: impl Iterator<Item = Option<f32>>) -> Vec<Option<u32>> {
    let numbers: Vec<Option<f32>> = numbers.collect();
    let mut sorted: Vec<f32> = numbers.iter().copied().flatten().collect();
    sorted.sort_by(f32::total_cmp);
    let mut found = Vec::with_capacity(numbers.len());
    for number in numbers {
        found.push(number.map(|number| {
            let below = sorted.partition_point(|other| *other < number);
            (below * PARTS / sorted.len().max(1)) as u32
        }));
    }
    found
}

/// How far a label of tokens says their depth. All numbers stand beside those of labels that are
/// dealt out anew among the tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct DepthSaid {
    /// How many tokens have a label.
    pub tokens: usize,
    /// How many different labels there are.
    pub labels: usize,
    /// Share of the variance of depth that lies between labels (the correlation ratio).
    pub explained: Controlled,
    /// Mutual information of depth and label, nats.
    pub information: Controlled,
    /// Share of tokens whose depth is the most frequent one of their label.
    pub guessed: Controlled,
    /// Entropy of depth, nats: the most that the information can be.
    pub entropy: f64,
}

/// How far `labels` say the depths of `tokens`; `None` where fewer than two different labels are
/// known.
pub fn depth_said(
    tokens: &[DepthToken],
    labels: &[Option<u32>],
    how: Shuffles,
) -> Option<DepthSaid> {
    let (mut depths, mut given, mut known) = (Vec::new(), Vec::new(), HashMap::new());
    for (row, label) in tokens.iter().zip(labels) {
        let Some(label) = label else { continue };
        let next = known.len();
        given.push(*known.entry(*label).or_insert(next));
        depths.push(row.depth as usize);
    }
    if known.len() < 2 {
        return None;
    }
    let columns = depths.iter().max().map_or(1, |most| most + 1);
    let found = counted(&given, &depths, known.len(), columns);
    // The same dice for all three numbers: labels are dealt out once.
    let mut dealt = Vec::new();
    let explained = how.beside(share(&found, columns), |dice| {
        shuffle(&mut given, dice);
        let counts = counted(&given, &depths, known.len(), columns);
        dealt.push((of_counts(&counts, columns), guessed(&counts, columns)));
        share(&counts, columns)
    });
    let mut informations = dealt.iter().map(|pair| pair.0);
    let information =
        how.beside(of_counts(&found, columns), |_| informations.next().unwrap_or_default());
    let mut guesses = dealt.iter().map(|pair| pair.1);
    let guessed = how.beside(guessed(&found, columns), |_| guesses.next().unwrap_or_default());
    let mut of_depth = vec![0u64; columns];
    depths.iter().for_each(|depth| of_depth[*depth] += 1);
    let entropy = super::entropy(&of_depth);
    let (tokens, labels) = (depths.len(), known.len());
    Some(DepthSaid { tokens, labels, explained, information, guessed, entropy })
}

/// How many rows of each label have each depth, `[labels, depths]`.
fn counted(given: &[usize], depths: &[usize], labels: usize, columns: usize) -> Vec<u64> {
    let mut counts = vec![0u64; labels * columns];
    for (&label, &depth) in given.iter().zip(depths) {
        counts[label * columns + depth] += 1;
    }
    counts
}

/// The sum of a power of the depths of a label.
fn moment(row: &[u64], power: i32) -> f64 {
    row.iter().enumerate().map(|(depth, &count)| count as f64 * (depth as f64).powi(power)).sum()
}

/// Share of the variance of depth between the rows of `[labels, depths]`; 0 of equal depths.
fn share(counts: &[u64], columns: usize) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let (mut sum, mut squares, mut between) = (0.0, 0.0, 0.0);
    for row in counts.chunks_exact(columns) {
        let count = row.iter().sum::<u64>() as f64;
        let of_row = moment(row, 1);
        sum += of_row;
        squares += moment(row, 2);
        between += if count > 0.0 { of_row * of_row / count } else { 0.0 };
    }
    let (all, between) = (squares - sum * sum / total, between - sum * sum / total);
    if all <= 1e-9 * total { 0.0 } else { (between / all).clamp(0.0, 1.0) }
}

/// Share of rows in the largest cell of their label.
fn guessed(counts: &[u64], columns: usize) -> f64 {
    let right: u64 = counts.chunks_exact(columns).filter_map(|row| row.iter().max()).sum();
    right as f64 / counts.iter().sum::<u64>().max(1) as f64
}

/// Rank correlation (Spearman) of depth and a number of the tokens that have it, beside the mean of
/// its size with numbers dealt out anew, and the share of these that are as far from 0. `None`
/// where fewer than three tokens have one.
pub fn rank_correlation(
    tokens: &[DepthToken],
    number: impl Fn(&DepthToken) -> Option<f64>,
    how: Shuffles,
) -> Option<Controlled> {
    let pairs = tokens.iter().filter_map(|row| Some((f64::from(row.depth), number(row)?)));
    let (depths, numbers): (Vec<f64>, Vec<f64>) = pairs.unzip();
    correlated(&depths, &numbers, how)
}

fn correlated(one: &[f64], other: &[f64], how: Shuffles) -> Option<Controlled> {
    if one.len() < 3 {
        return None;
    }
    let (one, mut other) = (centred_ranks(one), centred_ranks(other));
    let norm = (product(&one, &one) * product(&other, &other)).sqrt();
    let norm = if norm > 0.0 { norm } else { 1.0 };
    let value = product(&one, &other) / norm;
    let found = how.beside(value.abs(), |dice| {
        shuffle(&mut other, dice);
        (product(&one, &other) / norm).abs()
    });
    Some(Controlled { value, ..found })
}

fn product(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

/// The rank of each number less the mean rank; equal numbers share the mean of their ranks.
fn centred_ranks(numbers: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|&a, &b| numbers[a].total_cmp(&numbers[b]));
    let (mut ranks, middle) = (vec![0.0; numbers.len()], (numbers.len() as f64 - 1.0) / 2.0);
    let mut start = 0;
    while start < order.len() {
        let first = numbers[order[start]];
        let equal = order[start..].iter().take_while(|at| numbers[**at] == first);
        let count = equal.count().max(1);
        let rank = start as f64 + (count as f64 - 1.0) / 2.0 - middle;
        order[start..start + count].iter().for_each(|&at| ranks[at] = rank);
        start += count;
    }
    ranks
}

/// Tokens of one label.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DepthGroup {
    /// How many there are.
    pub tokens: u64,
    /// The mean of their depths.
    pub mean: f64,
    /// Share of them that take as many recursions as any token does.
    pub deepest: f64,
    /// Mean nats of the token after each, of those where it is known.
    pub loss: Option<f64>,
}

/// The tokens of each label.
pub fn depth_groups(tokens: &[DepthToken], labels: &[Option<u32>]) -> BTreeMap<u32, DepthGroup> {
    let most = tokens.iter().map(|row| row.depth).max().unwrap_or(0);
    let mut groups: BTreeMap<u32, (DepthGroup, u64, f64)> = BTreeMap::new();
    for (row, label) in tokens.iter().zip(labels) {
        let Some(label) = label else { continue };
        let (group, known, nats) = groups.entry(*label).or_default();
        group.tokens += 1;
        group.mean += f64::from(row.depth);
        group.deepest += f64::from(u8::from(row.depth == most));
        if let Some(loss) = row.loss {
            *known += 1;
            *nats += f64::from(loss);
        }
    }
    let mut found = BTreeMap::new();
    for (label, (mut group, known, nats)) in groups {
        let count = group.tokens.max(1) as f64;
        group.mean /= count;
        group.deepest /= count;
        group.loss = (known > 0).then(|| nats / known as f64);
        found.insert(label, group);
    }
    found
}

/// Depths of the same tokens in two traces.
#[derive(Clone, Debug, PartialEq)]
pub struct DepthChange {
    /// Tokens that both traces have, at the same place and with the same id.
    pub tokens: usize,
    /// Tokens that only one has.
    pub unmatched: usize,
    /// Share of the tokens with the same depth; beside the same with those of the second trace
    /// dealt out anew.
    pub same: Controlled,
    /// Rank correlation of both depths; `None` of fewer than three tokens.
    pub correlation: Option<Controlled>,
}

/// What changed of depth from one trace to another of the same text.
pub fn depth_change(before: &[DepthToken], after: &[DepthToken], how: Shuffles) -> DepthChange {
    let [one, other] = [before, after].map(|rows| rows.iter().map(|row| (row.key(), row.depth)));
    let (one, mut other) = matched(one, other);
    let correlation = correlated(&reals(&one), &reals(&other), how);
    let same = how.beside(equal(&one, &other), |dice| {
        shuffle(&mut other, dice);
        equal(&one, &other)
    });
    let tokens = one.len();
    DepthChange { tokens, unmatched: before.len() + after.len() - 2 * tokens, same, correlation }
}

fn reals(list: &[u32]) -> Vec<f64> {
    list.iter().copied().map(f64::from).collect()
}

/// Share of equal numbers at the same places.
fn equal(one: &[u32], other: &[u32]) -> f64 {
    let same = one.iter().zip(other).filter(|(a, b)| a == b).count();
    same as f64 / one.len().max(1) as f64
}

#[cfg(test)]
mod tests;
