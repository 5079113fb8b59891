//! What the numbers of several kinds of models say, in words that they force.

use serde::Serialize;

use crate::paired::{FEWEST_SEEDS, LARGEST_P, Paired, SMALLEST_NATS, mean_and_deviation, paired};

/// The losses of one kind of model, one for each seed, in the order of the seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Contestant {
    /// What the kind is called.
    pub name: String,
    /// Nats a token, by seed; none for a run that is not there.
    pub losses: Vec<Option<f64>>,
}

/// Two kinds and what the differences of their losses say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Duel {
    /// The kind from whose losses those of the other are taken.
    pub one: String,
    /// The second, whose losses are subtracted from the first's.
    pub other: String,
    /// The differences, of the seeds that both have.
    pub paired: Paired,
}

/// Every two kinds that have a seed in common, in the order of the list.
pub fn duels(contestants: &[Contestant]) -> Vec<Duel> {
    let mut found = Vec::new();
    for (at, other) in contestants.iter().enumerate() {
        for one in &contestants[at + 1..] {
            let both = one.losses.iter().zip(&other.losses);
            let (a, b): (Vec<f64>, Vec<f64>) =
                both.filter_map(|(a, b)| Some(((*a)?, (*b)?))).unzip();
            if let Some(paired) = paired(&a, &b) {
                found.push(Duel { one: one.name.clone(), other: other.name.clone(), paired });
            }
        }
    }
    found
}

/// One paragraph for each thing that the numbers say: who is best, what does not count, what is
/// missing.
pub fn answer(contestants: &[Contestant]) -> Vec<String> {
    let mut said = Vec::new();
    let duels = duels(contestants);
    let mut there: Vec<&Contestant> =
        contestants.iter().filter(|one| one.losses.iter().any(Option::is_some)).collect();
    if there.len() < 2 {
        return vec!["There are no two kinds of models to compare: nothing can be said.".into()];
    }
    // A mean over other seeds would say what those seeds do.
    let all = seeds_of_all(&there);
    there.sort_by(|a, b| mean(a, &all).total_cmp(&mean(b, &all)));
    let seeds = duels.iter().map(|duel| duel.paired.differences.len()).min().unwrap_or(0);
    if duels.iter().all(|duel| !duel.paired.counts) {
        said.push(format!(
            "No difference beyond the spread: of {} pairs of kinds none differs with p below \
             {LARGEST_P} and by at least {SMALLEST_NATS} nats a token.",
            duels.len()
        ));
    } else {
        let best = (!all.is_empty()).then(|| there[0]);
        said.push(match best {
            Some(best) => first(best, &all, &there[1..], &duels),
            None => "No seed is there of all kinds, so that none is called the best.".into(),
        });
        said.extend(beyond(&duels, best));
    }
    if seeds < FEWEST_SEEDS {
        said.push(format!(
            "Some pairs have {seeds} seeds in common: from {FEWEST_SEEDS} on a difference can \
             count."
        ));
    }
    for one in contestants {
        let missing = one.losses.iter().filter(|loss| loss.is_none()).count();
        if missing > 0 {
            said.push(format!("{}: {missing} of {} runs are missing.", one.name, one.losses.len()));
        }
    }
    said
}

/// Places of the seeds of which every kind has a run.
fn seeds_of_all(there: &[&Contestant]) -> Vec<usize> {
    let most = there.iter().map(|one| one.losses.len()).max().unwrap_or(0);
    let has = |at: usize| there.iter().all(|one| one.losses.get(at).is_some_and(Option::is_some));
    (0..most).filter(|&at| has(at)).collect()
}

/// The mean loss over the seeds at some places; no number without a seed.
fn mean(one: &Contestant, seeds: &[usize]) -> f64 {
    let known: Vec<f64> = seeds.iter().filter_map(|&at| one.losses[at]).collect();
    mean_and_deviation(&known).0
}

/// The kind of the lowest mean over the seeds of `all`, the kinds that it beats, those that it does
/// not, and those that are ahead of it on the seeds that both have.
fn first(best: &Contestant, all: &[usize], others: &[&Contestant], duels: &[Duel]) -> String {
    let (mut ahead, mut behind, mut level) = (Vec::new(), Vec::new(), Vec::new());
    for one in others {
        let duel = duels.iter().find(|duel| duel.is_of(&best.name, &one.name));
        let Some(Duel { one: minuend, paired, .. }) = duel else { continue };
        let gain = if *minuend == best.name { -paired.mean } else { paired.mean };
        let by = format!("{} by {:.4} nats a token (p {})", one.name, gain.abs(), p_text(paired.p));
        match paired.counts {
            true if gain > 0.0 => ahead.push(by),
            true => behind.push(by),
            false => level.push(one.name.clone()),
        }
    }
    let (loss, seeds) = (mean(best, all), all.len());
    let mut text = format!("{} has the lowest mean loss, {loss:.4} nats a token", best.name);
    if seeds < best.losses.len() {
        text += &format!(", over the {seeds} of {} seeds that all have", best.losses.len());
    }
    text += ".";
    if !ahead.is_empty() {
        text += &format!(" It is ahead of {}.", ahead.join(", "));
    }
    if !behind.is_empty() {
        text += &format!(" On the seeds that both have it is behind {}.", behind.join(", "));
    }
    if !level.is_empty() {
        let names = level.join(", ");
        text += &format!(" Against {names} there is no difference beyond the spread.");
    }
    text
}

/// Pairs without the best kind, those that differ and those that do not.
fn beyond(duels: &[Duel], best: Option<&Contestant>) -> Vec<String> {
    let (mut differ, mut level) = (Vec::new(), Vec::new());
    for duel in duels {
        if best.is_some_and(|best| best.name == duel.one || best.name == duel.other) {
            continue;
        }
        let Duel { one, other, paired } = duel;
        let (low, high) = if paired.mean < 0.0 { (one, other) } else { (other, one) };
        match paired.counts {
            true => differ.push(format!(
                "{low} is ahead of {high} by {:.4} (p {})",
                paired.mean.abs(),
                p_text(paired.p)
            )),
            false => level.push(format!("{one} and {other}")),
        }
    }
    let mut said = Vec::new();
    if !differ.is_empty() {
        let others = if best.is_some() { "Of the others, " } else { "" };
        said.push(format!("{others}{}.", differ.join("; ")));
    }
    if !level.is_empty() {
        said.push(format!("No difference beyond the spread between {}.", level.join("; ")));
    }
    said
}

impl Duel {
    fn is_of(&self, one: &str, other: &str) -> bool {
        (self.one == one && self.other == other) || (self.one == other && self.other == one)
    }
}

/// A p value as people write it.
pub fn p_text(p: Option<f64>) -> String {
    match p {
        None => "unknown".to_owned(),
        Some(p) if p < 1e-4 => "< 0.0001".to_owned(),
        Some(p) => format!("{p:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, losses: &[f64]) -> Contestant {
        Contestant { name: name.into(), losses: losses.iter().copied().map(Some).collect() }
    }

    #[test]
    fn the_spread_decides() {
        let dense = of("dense", &[2.000, 2.031, 1.980]);
        let mor = of("mor", &[1.950, 1.980, 1.931]);
        let random = of("random", &[2.010, 2.000, 2.003]);
        let said = answer(&[dense.clone(), mor.clone(), random.clone()]);
        assert!(said[0].starts_with("mor has the lowest mean loss, 1.9537 nats"), "{said:?}");
        assert!(said[0].contains("ahead of dense by 0.0500 nats a token (p 0.00"), "{said:?}");
        assert!(said[1].ends_with("between random and dense."), "{said:?}");
        // The same without the kind that differs.
        let said = answer(&[dense.clone(), random]);
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("No difference beyond the spread: of 1 pairs"), "{said:?}");
        // Two seeds are too few whatever they say.
        let few = [of("a", &[2.0, 2.1]), of("b", &[1.0, 1.1])];
        let said = answer(&few);
        assert!(said[0].starts_with("No difference") && said[1].contains("2 seeds"), "{said:?}");
        assert!(answer(&[dense])[0].contains("nothing can be said"));
    }

    /// What a hard seed does to the kinds that ran it says nothing of the kinds.
    #[test]
    fn a_hole_makes_no_kind_the_best() {
        let mut a = of("a", &[0.0, 2.10, 2.11, 2.121]);
        a.losses[0] = None;
        let b = of("b", &[5.0, 2.00, 2.01, 2.02]);
        for pair in [[a.clone(), b.clone()], [b.clone(), a.clone()]] {
            let said = answer(&pair);
            let best = "b has the lowest mean loss, 2.0100 nats a token, over the 3 of 4 seeds \
                        that all have. It is ahead of a by 0.1003 nats a token (p < 0.0001).";
            assert_eq!(said[0], best, "{said:?}");
        }
        // A third kind has no seed in common with one: the pairs still say what they say.
        let mut c = of("c", &[2.0, 0.0, 0.0, 0.0]);
        c.losses[1..].fill(None);
        let said = answer(&[a, b, c]);
        assert!(said[0].starts_with("No seed is there of all kinds"), "{said:?}");
        assert!(said[1].starts_with("b is ahead of a by 0.1003 (p"), "{said:?}");
    }

    #[test]
    fn the_lowest_mean_of_few_seeds_may_be_behind() {
        let a = of("a", &[1.9, 2.1, 2.1, 2.1, 2.1, 2.1, 2.1, 2.1, 2.1]);
        let b = of("b", &[1.901, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
        let mut c = of("c", &[3.0; 9]);
        c.losses[1..].fill(None);
        let said = answer(&[a, b, c]);
        assert!(said[0].starts_with("a has the lowest mean loss, 1.9000 nats"), "{said:?}");
        assert!(said[0].contains("both have it is behind b by 0.0888 nats"), "{said:?}");
        assert!(!said[0].contains("ahead of"), "{said:?}");
    }

    #[test]
    fn missing_runs_are_said_and_pairs_are_by_seed() {
        let mut dense = of("dense", &[2.0, 2.1, 2.2, 2.3]);
        let mor = of("mor", &[1.90, 2.01, 2.10, 2.20]);
        dense.losses[1] = None;
        let all = duels(&[dense.clone(), mor.clone()]);
        assert_eq!(all.len(), 1);
        let expected = [-0.1, -0.1, -0.1];
        for (found, expected) in all[0].paired.differences.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9);
        }
        assert!(answer(&[dense, mor]).iter().any(|said| said == "dense: 1 of 4 runs are missing."));
        assert_eq!((p_text(None), p_text(Some(1e-9))), ("unknown".into(), "< 0.0001".into()));
    }
}
