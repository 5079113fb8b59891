//! Some of the stored layers of a model.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{ConfigError, refuse};
use crate::layout::LayerPlan;

/// Which of the stored layers: `"all"`, or a list of their numbers from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LayerSet {
    /// Every layer that is stored.
    #[default]
    All,
    /// Those with these numbers, in ascending order.
    These(Vec<usize>),
}

impl LayerSet {
    /// The layers for which `is_in` holds, of `layers`.
    pub fn of(layers: usize, is_in: impl Fn(usize) -> bool) -> Self {
        let these: Vec<usize> = (0..layers).filter(|&layer| is_in(layer)).collect();
        if these.len() == layers { Self::All } else { Self::These(these) }
    }

    /// Whether stored layer `stored` is one of them.
    pub fn has(&self, stored: usize) -> bool {
        match self {
            Self::All => true,
            Self::These(these) => these.contains(&stored),
        }
    }

    /// The same layers by their numbers where nothing is shared.
    pub fn unrolled(&self, plan: &LayerPlan) -> Self {
        match self {
            Self::All => Self::All,
            Self::These(_) => {
                let uses: Vec<usize> = plan.unrolled().map(|at| at.stored).collect();
                Self::of(uses.len(), |layer| self.has(uses[layer]))
            }
        }
    }

    /// Refuses numbers that are not ascending, or are no layer of `stored`.
    pub(crate) fn check(&self, field: &str, stored: usize) -> Result<(), ConfigError> {
        let Self::These(these) = self else { return Ok(()) };
        let ascends = these.windows(2).all(|pair| pair[0] < pair[1]);
        if ascends && these.last().is_none_or(|&last| last < stored) {
            return Ok(());
        }
        let expected = format!("\"all\", or ascending numbers below the {stored} stored layers");
        refuse(field, format!("{these:?}"), expected)
    }
}

impl fmt::Display for LayerSet {
    /// As recipes write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("\"all\""),
            Self::These(these) => write!(f, "{these:?}"),
        }
    }
}

impl Serialize for LayerSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::These(these) => these.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for LayerSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = LayerSet;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"all\" or a list of layer numbers")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<LayerSet, E> {
        match text {
            "all" => Ok(LayerSet::All),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<LayerSet, A::Error> {
        let mut these = Vec::new();
        while let Some(layer) = list.next_element()? {
            these.push(layer);
        }
        Ok(LayerSet::These(these))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sharing;

    #[test]
    fn sets_are_words_or_lists() {
        let read = |text: &str| serde_json::from_str::<LayerSet>(text);
        assert_eq!(read("\"all\"").expect("all"), LayerSet::All);
        let some = read("[1, 3]").expect("a list");
        assert_eq!(serde_json::to_string(&some).expect("writes"), "[1,3]");
        assert!(some.has(3) && !some.has(2) && LayerSet::All.has(7));
        for wrong in ["\"some\"", "3", "[-1]", "[\"0\"]"] {
            let error = read(wrong).expect_err(wrong).to_string();
            assert!(error.contains("expected"), "{error}");
        }
        assert!(some.check("window_layers", 4).is_ok());
        for wrong in [vec![1, 4], vec![2, 2], vec![3, 1]] {
            assert!(LayerSet::These(wrong).check("window_layers", 4).is_err());
        }
    }

    #[test]
    fn numbers_follow_the_uses_of_a_layer() {
        let plan = Sharing::MiddleCycle.plan(6, 2).expect("legal");
        assert_eq!(LayerSet::These(vec![0, 2]).unrolled(&plan), LayerSet::These(vec![0, 2, 4]));
        assert_eq!(LayerSet::of(2, |_| true), LayerSet::All);
    }
}
