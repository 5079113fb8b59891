//! Orderings that others published, beside those of our runs.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::refuse;
use crate::file::word;
use crate::{Duel, StudyError};

/// Losses that others published of kinds of models that a comparison has, too.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Where they stand, and of which models they are.
    pub source: String,
    /// Each family with its loss, nats a token.
    pub losses: Vec<(String, f64)>,
}

/// What our runs say of an ordering that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A difference that counts, of the same sign.
    Agrees,
    /// A difference that counts, of the other sign.
    Disagrees,
    /// No difference beyond the spread.
    NothingBeyondTheSpread,
    /// No seed that both families have.
    Missing,
}

impl Verdict {
    /// All of them, with what tables call them.
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::Agrees, "agrees"),
        (Self::Disagrees, "disagrees"),
        (Self::NothingBeyondTheSpread, "nothing beyond the spread"),
        (Self::Missing, "missing"),
    ];

    /// What tables call it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(verdict, _)| *verdict == self).map_or("", |(_, name)| name)
    }
}

/// Two families in the published order, and what our runs say of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PublishedPair {
    /// The family of the lower published loss.
    pub ahead: String,
    /// The family of the higher one.
    pub behind: String,
    /// By how much it is higher there, nats a token.
    pub published: f64,
    /// By how much it is higher in our paired runs; none without a pair.
    pub found: Option<f64>,
    /// The p value of that.
    pub p: Option<f64>,
    /// What this comes to.
    pub verdict: Verdict,
}

impl Published {
    /// Reads `{ source = "...", losses = { FAMILY = NATS } }`.
    ///
    /// # Errors
    /// An unknown key, no source, fewer than two losses, a loss that is none.
    pub(crate) fn parse(value: &Value) -> Result<Self, StudyError> {
        let expected = "a table with `source` and `losses`";
        let Value::Object(table) = value else {
            return refuse("published", value.to_string(), expected);
        };
        if let Some(other) = table.keys().find(|key| !["source", "losses"].contains(&key.as_str()))
        {
            return refuse(format!("published.{other}"), "no key of it", expected);
        }
        let Some(source) = table.get("source") else {
            let expected = "where the losses stand, such as a paper and its table";
            return refuse("published.source", "missing", expected);
        };
        let source = word("published.source", source)?;
        let none = Map::new();
        let given = match table.get("losses") {
            Some(Value::Object(losses)) => losses,
            Some(other) => return refuse("published.losses", other.to_string(), "a table"),
            None => &none,
        };
        let mut losses = Vec::new();
        for (family, nats) in given {
            match nats.as_f64().filter(|nats| nats.is_finite() && *nats > 0.0) {
                Some(nats) => losses.push((family.clone(), nats)),
                None => {
                    let path = format!("published.losses.{family}");
                    return refuse(path, nats.to_string(), "nats a token, above 0");
                }
            }
        }
        if losses.len() < 2 {
            let found = format!("{} losses", losses.len());
            return refuse("published.losses", found, "those of two families at least");
        }
        // From the best: the order in which the table is read.
        losses.sort_by(|a, b| a.1.total_cmp(&b.1));
        Ok(Self { source, losses })
    }

    /// Every two families whose published losses differ, from the best one on, beside our duels.
    pub fn beside(&self, duels: &[Duel]) -> Vec<PublishedPair> {
        let mut pairs = Vec::new();
        for (at, (ahead, low)) in self.losses.iter().enumerate() {
            for (behind, high) in self.losses[at + 1..].iter().filter(|(_, high)| high > low) {
                let found = duels.iter().find_map(|duel| match () {
                    () if duel.one == *behind && duel.other == *ahead => Some((1.0, duel)),
                    () if duel.one == *ahead && duel.other == *behind => Some((-1.0, duel)),
                    () => None,
                });
                let gap = found.map(|(sign, duel)| sign * duel.paired.mean);
                let verdict = match (found, gap) {
                    (Some((_, duel)), Some(gap)) if duel.paired.counts => match gap > 0.0 {
                        true => Verdict::Agrees,
                        false => Verdict::Disagrees,
                    },
                    (Some(_), _) => Verdict::NothingBeyondTheSpread,
                    (None, _) => Verdict::Missing,
                };
                pairs.push(PublishedPair {
                    ahead: ahead.clone(),
                    behind: behind.clone(),
                    published: high - low,
                    found: gap,
                    p: found.and_then(|(_, duel)| duel.paired.p),
                    verdict,
                });
            }
        }
        pairs
    }
}

/// One sentence: how many orderings there are of each verdict.
pub fn verdicts(pairs: &[PublishedPair]) -> String {
    let count = |verdict| pairs.iter().filter(|pair| pair.verdict == verdict).count();
    let each: Vec<String> =
        Verdict::ALL.iter().map(|(verdict, name)| format!("{} {name}", count(*verdict))).collect();
    format!("Of {} published orderings: {}.", pairs.len(), each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Contestant, duels};

    fn published(text: &str) -> Result<Published, StudyError> {
        Published::parse(&toml::from_str(text).expect("TOML"))
    }

    #[test]
    fn orderings_are_judged_by_what_counts() {
        let text = "source = \"a table\"\n\
                    losses = { d = 3.4, b = 3.1, a = 3.0, c = 3.2, e = 3.4 }\n";
        let found = published(text).expect("legal");
        assert_eq!(found.losses[0], ("a".to_owned(), 3.0));
        let kind = |name: &str, losses: [f64; 3]| Contestant {
            name: name.into(),
            losses: losses.map(Some).to_vec(),
        };
        let ours = [
            kind("b", [2.1001, 2.2, 2.3]),
            kind("a", [2.0, 2.1, 2.2002]),
            kind("c", [1.9, 2.0001, 2.1]),
            kind("d", [2.0, 2.3, 2.1]),
        ];
        let pairs = found.beside(&duels(&ours));
        // Ten pairs but that of d and e, which are level.
        assert_eq!(pairs.len(), 9);
        let verdict = |ahead: &str, behind: &str| {
            let pair = pairs.iter().find(|pair| pair.ahead == ahead && pair.behind == behind);
            let pair = pair.expect("a pair");
            (pair.verdict, pair.found)
        };
        let (what, gap) = verdict("a", "b");
        assert_eq!(what, Verdict::Agrees);
        assert!(gap.is_some_and(|gap| (gap - 0.1).abs() < 1e-3), "{gap:?}");
        assert!((pairs[0].published - 0.1).abs() < 1e-9);
        let (what, gap) = verdict("b", "c");
        assert_eq!(what, Verdict::Disagrees);
        assert!(gap.is_some_and(|gap| (gap + 0.2).abs() < 1e-3), "{gap:?}");
        assert_eq!(verdict("a", "c").0, Verdict::Disagrees);
        assert_eq!(verdict("a", "d").0, Verdict::NothingBeyondTheSpread);
        assert_eq!(verdict("a", "e"), (Verdict::Missing, None));
        assert_eq!(
            verdicts(&pairs),
            "Of 9 published orderings: 1 agrees, 2 disagrees, 3 nothing beyond the spread, 3 \
             missing."
        );
        assert_eq!(found.beside(&[]).iter().filter(|p| p.verdict == Verdict::Missing).count(), 9);
    }

    #[test]
    fn bad_tables_are_refused() {
        for (text, needle) in [
            ("losses = { a = 1, b = 2 }", "published.source is missing"),
            ("source = \"t\"", "0 losses"),
            ("source = \"t\"\nlosses = { a = 1 }", "1 losses"),
            ("source = \"t\"\nlosses = 3", "published.losses is 3"),
            ("source = \"t\"\nlosses = { a = 1, b = -2 }", "published.losses.b is -2"),
            ("source = \"t\"\nlosses = { a = 1, b = nan }", "published.losses.b is"),
            ("source = \"t\"\nloss = { a = 1, b = 2 }", "published.loss is no key"),
        ] {
            let error = published(text).expect_err(text).to_string();
            assert!(error.contains(needle), "{text}: {error}");
        }
        assert!(Published::parse(&Value::from(3)).is_err());
    }
}
