//! Router losses: what training adds to the cross-entropy.

use ops::{Tensor2, add_scalars, scale};

/// Loss terms of one pass, 1 x 1 each, as means over the sequences of the whole step; weights not
/// applied.
#[derive(Clone, Debug, Default)]
pub struct AuxLosses {
    /// Binary cross-entropy of the main router against the selection, summed over recursions.
    pub auxiliary: Vec<Tensor2>,
    /// The same for an auxiliary router on detached rows.
    pub auxiliary_router: Vec<Tensor2>,
    /// Load balance of token-choice.
    pub balance: Vec<Tensor2>,
    /// Squared log-sum-exp of router logits.
    pub z: Vec<Tensor2>,
}

impl AuxLosses {
    /// Everything from `other` too.
    pub(crate) fn join(&mut self, other: AuxLosses) {
        self.auxiliary.extend(other.auxiliary);
        self.auxiliary_router.extend(other.auxiliary_router);
        self.balance.extend(other.balance);
        self.z.extend(other.z);
    }

    /// `(name, sum)` of each term that exists.
    pub fn named(&self) -> Vec<(&'static str, Tensor2)> {
        let all = [
            ("auxiliary", &self.auxiliary),
            ("auxiliary_router", &self.auxiliary_router),
            ("balance", &self.balance),
            ("z", &self.z),
        ];
        let some = all.into_iter().filter(|(_, terms)| !terms.is_empty());
        some.map(|(name, terms)| (name, add_scalars(terms.clone()))).collect()
    }

    /// The weighted sum, or `None` without terms.
    pub fn total(&self, weights: &dyn Fn(&str) -> f32) -> Option<Tensor2> {
        let terms: Vec<Tensor2> =
            self.named().into_iter().map(|(name, term)| scale(term, weights(name))).collect();
        (!terms.is_empty()).then(|| add_scalars(terms))
    }
}
