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
    let mut ranked: Vec<(&Contestant, f64)> =
        contestants.iter().filter_map(|one| Some((one, mean(one)?))).collect();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (Some((best, loss)), true) = (ranked.first(), ranked.len() > 1) else {
        return vec!["There are no two kinds of models to compare: nothing can be said.".into()];
    };
    let seeds = duels.iter().map(|duel| duel.paired.differences.len()).min().unwrap_or(0);
    if duels.iter().all(|duel| !duel.paired.counts) {
        said.push(format!(
            "No difference beyond the spread: of {} pairs of kinds none differs with p below \
             {LARGEST_P} and by at least {SMALLEST_NATS} nats a token.",
            duels.len()
        ));
    } else {
        said.push(first(best, *loss, &ranked, &duels));
        said.extend(beyond(&duels, &best.name));
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

fn mean(one: &Contestant) -> Option<f64> {
    let known: Vec<f64> = one.losses.iter().copied().flatten().collect();
    (!known.is_empty()).then(|| mean_and_deviation(&known).0)
}

/// The kind of the lowest mean, the kinds that it beats and those that it does not.
fn first(best: &Contestant, loss: f64, ranked: &[(&Contestant, f64)], duels: &[Duel]) -> String {
    let (mut beaten, mut level) = (Vec::new(), Vec::new());
    for (one, mean) in &ranked[1..] {
        let duel = duels.iter().find(|duel| duel.is_of(&best.name, &one.name));
        let Some(duel) = duel else { continue };
        match duel.paired.counts {
            true => beaten.push(format!(
                "{} by {:.4} nats a token (p {})",
                one.name,
                mean - loss,
                p_text(duel.paired.p)
            )),
            false => level.push(one.name.clone()),
        }
    }
    let mut text = format!("{} has the lowest mean loss, {loss:.4} nats a token.", best.name);
    if !beaten.is_empty() {
        text += &format!(" It is ahead of {}.", beaten.join(", "));
    }
    if !level.is_empty() {
        let names = level.join(", ");
        text += &format!(" Against {names} there is no difference beyond the spread.");
    }
    text
}

/// Pairs without the best kind, those that differ and those that do not.
fn beyond(duels: &[Duel], best: &str) -> Vec<String> {
    let (mut differ, mut level) = (Vec::new(), Vec::new());
    for duel in duels.iter().filter(|duel| duel.one != best && duel.other != best) {
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
        said.push(format!("Of the others, {}.", differ.join("; ")));
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
