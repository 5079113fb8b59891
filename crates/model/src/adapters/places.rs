//! Which uses of which matrices get adapters.

use serde::{Deserialize, Serialize};

use super::member::{Matrices, UsedMatrix};
use crate::attention;
use crate::error::{ConfigError, refuse};
use crate::kv::KvMode;
use crate::layout::{LayerPlan, LayerUse};
use crate::matrices::read_parts;
use crate::params::{ParamSpec, Part};
use crate::sizes::Sizes;

/// Which layers get adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdaptedLayers {
    /// Those that are used more than once, so that each use may differ.
    #[default]
    Shared,
    /// Every layer of any model.
    All,
}

/// Where adapters stand, for kinds that say nothing else of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Places {
    /// Which matrices of a layer.
    #[serde(deserialize_with = "read_parts")]
    pub parts: Vec<Part>,
    /// Which layers get adapters.
    pub layers: AdaptedLayers,
    /// Whether the first use is the shared layer as it is.
    pub skip_first: bool,
    /// The first token whose rows are changed: rows of tokens before it compute as without
    /// adapters. 0 for all.
    pub from_token: u32,
}

impl Default for Places {
    fn default() -> Self {
        let parts = vec![attention::QUERY, attention::KEY_VALUE];
        Self { parts, layers: AdaptedLayers::Shared, skip_first: false, from_token: 0 }
    }
}

impl Places {
    pub(super) fn sites(&self) -> Sites<'_> {
        let Self { layers, skip_first, from_token, .. } = *self;
        Sites { parts: &self.parts, layers, skip_first, from_token }
    }
}

/// Where adapters of any kind stand.
#[derive(Clone, Copy)]
pub(super) struct Sites<'a> {
    pub(super) parts: &'a [Part],
    pub(super) layers: AdaptedLayers,
    pub(super) skip_first: bool,
    pub(super) from_token: u32,
}

impl Sites<'_> {
    /// Whether stored layer `stored` may have adapters.
    pub(super) fn reach(self, plan: &LayerPlan, stored: usize) -> bool {
        self.layers == AdaptedLayers::All || plan.uses_of(stored).len() > 1
    }

    /// Whether a use has an adapter.
    pub(super) fn adapt(self, site: UsedMatrix<'_>) -> bool {
        let Some(part) = site.base.place.part() else { return false };
        self.use_adapts(site.sizes.kv, site.plan, site.at, part)
    }

    /// Whether use `at` has an adapter for `part` in a model of this `plan` and `kv`.
    fn use_adapts(self, kv: KvMode, plan: &LayerPlan, at: LayerUse, part: Part) -> bool {
        self.reach(plan, at.stored)
            && self.parts.contains(&part)
            && attention::runs(kv, at, part)
            && !(self.skip_first && at.recursion == 0)
    }

    /// All uses that have an adapter for `part`, stored layer by stored layer.
    pub(super) fn uses(self, kv: KvMode, plan: &LayerPlan, part: Part) -> Vec<LayerUse> {
        let all = (0..plan.stored).flat_map(|stored| plan.uses_of(stored));
        all.copied().filter(|&at| self.use_adapts(kv, plan, at, part)).collect()
    }

    /// Refuses places that no adapter can have, and asks `fits` about each matrix.
    pub(super) fn check(
        self,
        sizes: &Sizes,
        plan: &LayerPlan,
        matrices: &Matrices,
        fits: &dyn Fn(&ParamSpec) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        if self.layers == AdaptedLayers::Shared && plan.stored == sizes.layers {
            let expected = "\"all\" where every layer has weights of its own: \"shared\" adapts \
                            layers that are used more than once";
            return refuse("relax.layers", "\"shared\"", expected.into());
        }
        if self.from_token as usize >= sizes.vocab {
            let expected = format!("below {}, the number of tokens", sizes.vocab);
            return refuse("relax.from_token", self.from_token, expected);
        }
        if self.parts.is_empty() {
            return refuse("relax.parts", "[]", "at least one of a layer's matrices".into());
        }
        let Matrices { table, adaptable, .. } = matrices;
        for (i, part) in self.parts.iter().enumerate() {
            let name = part.name();
            if self.parts[..i].contains(part) {
                return refuse("relax.parts", name, "each matrix once".into());
            }
            let Some(base) = table.iter().find(|base| base.place.part() == Some(*part)) else {
                let known = adaptable.iter().map(|part| part.name()).collect::<Vec<_>>().join(", ");
                return refuse("relax.parts", name, format!("matrices of this model: {known}"));
            };
            if !adaptable.contains(part) {
                let expected = "a matrix that every row meets whole: banks take no adapters";
                return refuse("relax.parts", name, expected.into());
            }
            fits(base)?;
        }
        Ok(())
    }
}

/// Refuses a `field` that is not between 1 and the smaller side of a matrix.
pub(super) fn check_rank(field: &str, rank: usize, base: &ParamSpec) -> Result<(), ConfigError> {
    let most = base.shape.0.min(base.shape.1);
    if (1..=most).contains(&rank) {
        return Ok(());
    }
    let name = base.place.part().map_or("a matrix", Part::name);
    refuse(field, rank, format!("between 1 and {most}, the smaller side of {name}"))
}

/// Refuses an alpha of `field` that no scale has.
pub(super) fn check_alpha(field: &'static str, alpha: f64) -> Result<(), ConfigError> {
    if (1e-6..=1e6).contains(&alpha) {
        return Ok(());
    }
    refuse(field, alpha, "between 1e-6 and 1e6".into())
}
