//! Rotary positions: which layers have them, how much of a head turns, and at which rates. Here is
//! the list of ways to rescale rates for longer texts: a new one is its file and a line here.

mod dynamic;
mod linear;
mod llama3;
mod longrope;
mod member;
mod none;
mod yarn;

use ops::Rotary;
use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, refuse};
use crate::layer_set::LayerSet;
use crate::list::members;

pub use dynamic::Config as Dynamic;
pub use linear::Config as Linear;
pub use llama3::Config as Llama3;
pub use longrope::Config as LongRope;
pub use member::ScalingSettings;
pub use none::Config as Unscaled;
pub use yarn::Config as Yarn;

members! {
    /// The list of ways to rescale the rates of rotary positions.
    pub enum RotaryScaling: ScalingSettings {
        /// Rates as the base gives them: `base^(-2 j / n)` for pair j of n columns that turn.
        Unscaled(none::Config) = "none",
        /// Every rate divided by a factor.
        Linear(linear::Config) = "linear",
        /// Slow rates divided by a factor, fast ones kept, between them a straight line.
        Llama3(llama3::Config) = "llama3",
        /// The same by numbers of turns, with queries and keys multiplied by a factor.
        Yarn(yarn::Config) = "yarn",
        /// The base grown for a context beyond the original one.
        Dynamic(dynamic::Config) = "dynamic",
        /// The rate of each pair divided by a factor of its own, other ones beyond the original
        /// context, with queries and keys multiplied by a factor.
        LongRope(longrope::Config) = "longrope",
    }
}

impl Default for RotaryScaling {
    fn default() -> Self {
        Self::Unscaled(none::Config::default())
    }
}

/// `[model.rotary]`; the base is `rope_theta`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RotarySettings {
    /// Share of a head's columns that turn, from the first; the others carry no position.
    pub share: f64,
    /// Stored layers with rotary positions; the others have none.
    pub layers: LayerSet,
    /// How rates are rescaled.
    pub scaling: RotaryScaling,
    /// Base of layers with a window, whose rates are not rescaled; 0 for that of the others.
    pub window_theta: f64,
}

impl Default for RotarySettings {
    fn default() -> Self {
        let (layers, scaling) = (LayerSet::All, RotaryScaling::default());
        Self { share: 1.0, layers, scaling, window_theta: 0.0 }
    }
}

impl RotarySettings {
    /// Columns of a head that turn.
    pub fn turned(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.share) as usize
    }

    /// The rotation of stored layer `stored`, which has a window or not, of a model with this base
    /// and context, whose heads of this width turn in so many columns; `None` without positions.
    pub(crate) fn of_layer(
        &self,
        (theta, context): (f64, usize),
        (head_dim, turned): (usize, usize),
        stored: usize,
        has_window: bool,
    ) -> Option<Rotary> {
        if !self.layers.has(stored) {
            return None;
        }
        if has_window && self.window_theta > 0.0 {
            return Some(Rotary::of(ops::rates(self.window_theta, turned), 1.0, head_dim));
        }
        let scaling = self.scaling.settings();
        Some(Rotary::of(scaling.rates(theta, turned, context), scaling.factor(), head_dim))
    }

    pub(crate) fn check(
        &self,
        (head_dim, turned): (usize, usize),
        stored: usize,
    ) -> Result<(), ConfigError> {
        if !(self.share > 0.0 && self.share <= 1.0 && turned > 0 && turned.is_multiple_of(2)) {
            let expected = format!(
                "a share, above 0 and at most 1, with which an even number of the {head_dim} \
                 columns of a head turn"
            );
            return refuse("rotary.share", self.share, expected);
        }
        if !(self.window_theta == 0.0 || (self.window_theta > 0.0 && self.window_theta <= 1e12)) {
            let expected = "0, or above 0 and at most 1e12".into();
            return refuse("rotary.window_theta", self.window_theta, expected);
        }
        self.layers.check("rotary.layers", stored)?;
        self.scaling.settings().check(turned)
    }
}
