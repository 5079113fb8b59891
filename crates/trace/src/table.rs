//! Decisions as columns.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a router decided about one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoutingDecision<'a> {
    /// The optimizer step, from 1 as in logs; `None` outside of training.
    pub step: Option<u64>,
    /// The sequence: its number in the step, in the text that was scored, or among the requests.
    pub sequence: u64,
    /// The row's position in its sequence, from 0.
    pub position: u32,
    /// The id of its token.
    pub token: u32,
    /// The stored layer whose router decided; `None` for the depth router.
    pub layer: Option<u32>,
    /// Which use of the layer this is, or which recursion the row is asked for, from 0.
    pub recursion: u32,
    /// Where the row goes, ascending: experts, or the recursions that this decision sends it
    /// through; none where it stops.
    pub targets: &'a [u32],
    /// How much of each target's result joins the row, for a depth router the score of each; empty
    /// where results join whole.
    pub weights: &'a [f32],
    /// Targets that it chose and that had no room for it, ascending.
    pub dropped: &'a [u32],
}

/// What a router decides among.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// Its experts, or the recursions of the model.
    pub targets: u32,
    /// How many of them, from the first, compute something.
    pub computing: u32,
    /// The number of each use of the layer among all layers that rows go through; empty where it
    /// is not known.
    #[serde(default)]
    pub uses: Vec<u32>,
}

/// What is known of a token beside what routers decided about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenFacts {
    /// Nats that the token after it cost, as its row predicted it; `None` where that is not known
    /// or does not count.
    pub loss: Option<f32>,
    /// Where its text comes from, a number in [`Trace::sources`].
    pub source: Option<u32>,
}

/// Lists of different lengths, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Ragged<T> {
    values: Vec<T>,
    ends: Vec<usize>,
}

impl<T> Default for Ragged<T> {
    fn default() -> Self {
        Self { values: Vec::new(), ends: Vec::new() }
    }
}

impl<T: Copy> Ragged<T> {
    fn push(&mut self, list: &[T]) {
        self.values.extend_from_slice(list);
        self.ends.push(self.values.len());
    }

    fn get(&self, i: usize) -> &[T] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.values[start..self.ends[i]]
    }
}

/// Who decided, and about whom: what no two decisions of a trace share. Ordered as a trace is.
type DecisionKey = (Option<u64>, u64, u32, u32, Option<u32>);

/// Decisions of routers, as columns of a table. What processes of one run tell each other; files
/// hold it in another form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// What each router decides among, by layer; `None` is the depth router.
    pub sites: BTreeMap<Option<u32>, Site>,
    /// The text of tokens, as far as it is known.
    pub texts: BTreeMap<u32, String>,
    /// Names of the sources of the text, as far as they are known.
    pub sources: Vec<String>,
    keys: Vec<DecisionKey>,
    tokens: Vec<u32>,
    facts: Vec<TokenFacts>,
    targets: Ragged<u32>,
    weights: Ragged<f32>,
    dropped: Ragged<u32>,
}

impl Trace {
    /// No decision yet, of routers that decide among these.
    pub fn among(sites: BTreeMap<Option<u32>, Site>) -> Self {
        Self { sites, ..Self::default() }
    }

    /// No decision, of the same routers and the same text.
    pub(crate) fn emptied(&self) -> Self {
        let (texts, sources) = (self.texts.clone(), self.sources.clone());
        Self { texts, sources, ..Self::among(self.sites.clone()) }
    }

    /// Adds a decision behind the others.
    pub fn push(&mut self, decision: RoutingDecision<'_>) {
        self.push_known(decision, TokenFacts::default());
    }

    /// Adds a decision with what else is known of its token.
    pub fn push_known(&mut self, decision: RoutingDecision<'_>, facts: TokenFacts) {
        self.facts.push(facts);
        let RoutingDecision { step, sequence, position, token, layer, recursion, .. } = decision;
        self.keys.push((step, sequence, position, recursion, layer));
        self.tokens.push(token);
        self.targets.push(decision.targets);
        self.weights.push(decision.weights);
        self.dropped.push(decision.dropped);
    }

    /// Makes room in what is known of a router: it has at least so many targets.
    pub fn widen(&mut self, layer: Option<u32>, targets: u32) {
        let site = self.sites.entry(layer).or_default();
        if site.targets < targets {
            site.computing = if site.computing == site.targets { targets } else { site.computing };
            site.targets = targets;
        }
    }

    /// How many decisions these are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing was decided.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// RoutingDecision `i`. Panics from [`Trace::len`] on.
    pub fn get(&self, i: usize) -> RoutingDecision<'_> {
        let (step, sequence, position, recursion, layer) = self.keys[i];
        RoutingDecision {
            step,
            sequence,
            position,
            token: self.tokens[i],
            layer,
            recursion,
            targets: self.targets.get(i),
            weights: self.weights.get(i),
            dropped: self.dropped.get(i),
        }
    }

    /// What else is known of the token of decision `i`. Panics from [`Trace::len`] on.
    pub fn facts(&self, i: usize) -> TokenFacts {
        self.facts[i]
    }

    /// Notes what is known of tokens: `of` says it by the decision.
    pub fn tell(&mut self, of: impl Fn(&RoutingDecision<'_>) -> TokenFacts) {
        self.facts = self.iter().map(|decision| of(&decision)).collect();
    }

    /// All decisions in their order.
    pub fn iter(&self) -> impl Iterator<Item = RoutingDecision<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Adds the decisions of another trace, with its sequences renamed by `sequence`.
    pub fn append(&mut self, other: &Self, sequence: impl Fn(u64) -> u64) {
        for (&layer, site) in &other.sites {
            let targets = site.targets.max(self.sites.get(&layer).map_or(0, |own| own.targets));
            self.sites.insert(layer, Site { targets, ..site.clone() });
        }
        self.texts.extend(other.texts.iter().map(|(token, text)| (*token, text.clone())));
        // Sources of the other trace behind those that are known, each once.
        let mut named = Vec::new();
        for name in &other.sources {
            let known = self.sources.iter().position(|own| own == name);
            named.push(known.unwrap_or(self.sources.len()) as u32);
            if known.is_none() {
                self.sources.push(name.clone());
            }
        }
        for (i, decision) in other.iter().enumerate() {
            let facts = other.facts[i];
            let source = facts.source.and_then(|source| named.get(source as usize).copied());
            self.push_known(
                RoutingDecision { sequence: sequence(decision.sequence), ..decision },
                TokenFacts { source, ..facts },
            );
        }
    }

    /// The decisions by step, sequence, position, recursion and layer, the depth router first. Of
    /// several about the same row by the same router the last stays: a server computes rows again
    /// whose pages it took away.
    pub fn sorted(&self) -> Self {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|&i| self.keys[i]);
        let mut sorted = self.emptied();
        for (at, &i) in order.iter().enumerate() {
            let next = order.get(at + 1);
            if next.is_none_or(|&next| self.keys[next] != self.keys[i]) {
                sorted.push_known(self.get(i), self.facts[i]);
            }
        }
        sorted
    }

    /// A decision that another one by the same router about the same row contradicts. A server
    /// may tell the same twice.
    pub(crate) fn contradiction(&self) -> Option<RoutingDecision<'_>> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by_key(|&i| self.keys[i]);
        let differ = |pair: &&[usize]| {
            let (a, b) = (self.get(pair[0]), self.get(pair[1]));
            let same = a.targets == b.targets && a.dropped == b.dropped && a.token == b.token;
            self.keys[pair[0]] == self.keys[pair[1]] && !same
        };
        order.windows(2).find(differ).map(|pair| self.get(pair[0]))
    }

    /// The place of a use of a layer among all that rows go through, as far as it is known.
    pub(crate) fn place(&self, layer: u32, recursion: u32) -> (u32, u32) {
        let uses = self.sites.get(&Some(layer)).map_or(&[][..], |site| &site.uses);
        match uses.get(recursion as usize) {
            Some(&place) => (0, place),
            None => (recursion, layer),
        }
    }

    /// Only the decisions that `keep` names.
    pub fn only(&self, keep: impl Fn(&RoutingDecision<'_>) -> bool) -> Self {
        let mut kept = self.emptied();
        for (i, decision) in self.iter().enumerate().filter(|(_, decision)| keep(decision)) {
            kept.push_known(decision, self.facts[i]);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(
        sequence: u64,
        position: u32,
        layer: Option<u32>,
        targets: &[u32],
    ) -> RoutingDecision<'_> {
        RoutingDecision {
            step: None,
            sequence,
            position,
            token: 7,
            layer,
            recursion: 0,
            targets,
            weights: &[],
            dropped: &[],
        }
    }

    #[test]
    fn of_decisions_about_the_same_the_last_stays_in_order() {
        let mut trace = Trace::default();
        for decision in [
            at(1, 0, Some(0), &[3]),
            at(0, 1, Some(2), &[1, 2]),
            at(0, 1, None, &[]),
            at(1, 0, Some(0), &[5]),
        ] {
            trace.push(decision);
        }
        let sorted: Vec<_> = trace.sorted().iter().map(|d| (d.layer, d.targets.to_vec())).collect();
        let expected = [(None, vec![]), (Some(2), vec![1, 2]), (Some(0), vec![5])];
        assert_eq!(sorted, expected);
    }

    #[test]
    fn what_is_known_of_tokens_follows_its_decisions() {
        let known = |loss, source| TokenFacts { loss: Some(loss), source: Some(source) };
        let mut one = Trace { sources: vec!["a".into(), "b".into()], ..Trace::default() };
        one.push_known(at(1, 0, None, &[0]), known(2.0, 1));
        one.push_known(at(0, 0, None, &[0]), known(1.0, 0));
        assert_eq!(one.sorted().facts(0), known(1.0, 0));
        let kept = one.only(|decision| decision.sequence == 1);
        assert_eq!((kept.facts(0), &kept.sources), (known(2.0, 1), &one.sources));
        // Sources of another trace have numbers of their own.
        let mut all = Trace { sources: vec!["b".into()], ..Trace::default() };
        all.append(&one, |sequence| sequence + 5);
        assert_eq!(all.sources, ["b", "a"]);
        assert_eq!((all.facts(0), all.facts(1)), (known(2.0, 0), known(1.0, 1)));
        all.tell(|decision| known(decision.sequence as f32, 0));
        assert_eq!((all.facts(0), all.facts(1)), (known(6.0, 0), known(5.0, 0)));
    }

    #[test]
    fn what_is_appended_keeps_its_experts_and_gets_other_numbers() {
        let mut all = Trace::default();
        let mut one = Trace::default();
        one.sites.insert(Some(0), Site { targets: 6, computing: 4, uses: vec![0] });
        one.push(at(0, 3, Some(0), &[5]));
        all.append(&one, |sequence| sequence + 10);
        assert_eq!(all.sites, one.sites);
        assert_eq!((all.len(), all.get(0).sequence, all.get(0).targets), (1, 10, &[5][..]));
    }
}
