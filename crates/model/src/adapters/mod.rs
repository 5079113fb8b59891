//! What a use of a layer may add to the layer's weights. On shared layers this relaxes the tying
//! (Relaxed Recursive Transformers, arXiv 2410.20672; Mixture-of-Recursions, arXiv 2507.10524,
//! appendix); on any model it is how a few numbers are trained while the rest stays as it is.
//! The list of adapters: a new one is its file and a line here.

pub mod dora;
pub mod dynmole;
pub mod encoding;
mod formula;
pub mod ia3;
pub mod loha;
pub mod lokr;
pub mod lora;
pub(crate) mod member;
pub mod miss;
mod mixture;
pub mod mola;
pub mod mos;
pub mod none;
mod places;
pub mod vera;
pub mod wara;

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use crate::latent;
use crate::layout::LayerPlan;
use crate::list::members;
use crate::matrices;
use crate::mlp::MlpConfig;
use crate::params::{ParamSpec, Part};
use crate::sizes::Sizes;

pub use places::Places;

pub use member::{
    Adapter, AdapterSettings, Factors, Matrices, Replaced, StreamAdapter, Truncated, UsedMatrix,
};

members! {
    /// The list of adapters.
    pub enum Relaxation: AdapterSettings {
        /// Every use is the same.
        None(none::Config) = "none",
        /// `y = h W^T + s (h A^T) B^T` with a pair A, B for each use.
        Lora(lora::Config) = "lora",
        /// As `lora`, with the magnitude of each output's weights learned apart (arXiv 2402.09353).
        Dora(dora::Config) = "dora",
        /// As `lora` with several pairs, of which a router picks some for each row.
        Mola(mola::Config) = "mola",
        /// As `mola`, where a row takes as many as its router is unsure (arXiv 2504.00661).
        Dynmole(dynmole::Config) = "dynmole",
        /// `W + s (A1 B1) o (A2 B2)`, an entrywise product of two matrices of low rank.
        Loha(loha::Config) = "loha",
        /// `W + s kron(w1, w2)`, a Kronecker product of two small matrices.
        Lokr(lokr::Config) = "lokr",
        /// Outputs or inputs of a matrix times a learned vector.
        Ia3(ia3::Config) = "ia3",
        /// A small block is added that repeats along the inputs.
        Miss(miss::Config) = "miss",
        /// `W + s B A` with A and B of shards out of pools that all uses share (arXiv 2410.00938).
        Mos(mos::Config) = "mos",
        /// `W + diag(b) B diag(d) A` with learned vectors, and matrices of dice that nobody stores.
        Vera(vera::Config) = "vera",
        /// Pairs of low rank in the basis of a Haar step, each band with a rank of its own.
        Wara(wara::Config) = "wara",
        /// The stream is multiplied by a learned vector of the recursion.
        Encoding(encoding::Config) = "encoding",
    }
}

impl Default for Relaxation {
    fn default() -> Self {
        Self::NONE
    }
}

impl Relaxation {
    /// Every use is the same.
    pub const NONE: Self = Self::None(none::Config {});

    pub(crate) fn check(
        &self,
        sizes: &Sizes,
        plan: &LayerPlan,
        mlp: &MlpConfig,
    ) -> Result<(), ConfigError> {
        let table = matrices::of_any_layer(sizes, mlp, plan.stored);
        let mut adaptable = mlp.settings().adaptable();
        if sizes.latent.is_some() {
            let there: Vec<Part> = table.iter().filter_map(|spec| spec.place.part()).collect();
            adaptable.extend(latent::PARTS.into_iter().filter(|part| there.contains(part)));
        }
        let every: Vec<_> =
            (0..plan.stored).map(|layer| matrices::of_layer(sizes, mlp, layer)).collect();
        let is_everywhere = |wanted: &ParamSpec| {
            let same = |spec: &ParamSpec| {
                spec.place.part() == wanted.place.part() && spec.shape == wanted.shape
            };
            every.iter().all(|of_layer| of_layer.iter().any(same))
        };
        let everywhere = table.iter().filter(|spec| is_everywhere(spec));
        let everywhere = everywhere.filter_map(|spec| spec.place.part()).collect();
        self.settings().check(sizes, plan, &Matrices { table, adaptable, everywhere })
    }

    /// Every weight, in the order of the parameter table.
    pub(crate) fn specs(&self, sizes: &Sizes, plan: &LayerPlan, mlp: &MlpConfig) -> Vec<ParamSpec> {
        let settings = self.settings();
        let mut table = Vec::new();
        for stored in 0..plan.stored {
            let bases = matrices::of_layer(sizes, mlp, stored);
            for &at in plan.uses_of(stored) {
                for base in &bases {
                    table.extend(settings.specs(UsedMatrix { sizes, plan, at, base }));
                }
            }
        }
        table.extend(settings.stream_specs(sizes));
        table
    }
}
