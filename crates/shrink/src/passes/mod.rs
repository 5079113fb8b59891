//! The list of passes: a new one is its file and a line here, and being on the list brings its name
//! on the command line and in files, its tests, and the check that `docs/shrinking.md` has it.

pub mod dense;
pub mod drop;
pub mod gptq;
pub mod grow;
pub mod latent;
pub mod layers;
mod member;
pub mod merge;
pub mod mixed;
pub mod recursions;
pub mod round;
pub mod slim;
pub mod wanda;

use serde::{Deserialize, Serialize};

pub use member::{LayerCall, PassSettings, RunningPass, Survey};

/// Makes the list: a line is a variant, the type of its settings, and its name.
macro_rules! passes {
    (
        $(#[$outer:meta])*
        $vis:vis enum $list:ident: $settings:ident {
            $($(#[$inner:meta])* $variant:ident($config:ty) = $name:literal,)+
        }
    ) => {
        $(#[$outer])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        $vis enum $list {
            $($(#[$inner])* #[serde(rename = $name)] $variant($config),)+
        }

        impl $list {
            /// Every pass with its default settings, for tests and documentation.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$variant(<$config>::default()),)+]
            }

            /// Its name on the command line and in files.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)+ }
            }

            /// What the settings of any pass answer.
            pub fn settings(&self) -> &dyn $settings {
                match self { $(Self::$variant(settings) => settings,)+ }
            }
        }
    };
}

passes! {
    /// The list of passes.
    pub enum PassConfig: PassSettings {
        /// Whole experts go, with their rows of the router.
        Drop(drop::DropSettings) = "drop",
        /// Experts that are alike become one.
        Merge(merge::MergeSettings) = "merge",
        /// Neurons of MLPs go.
        Slim(slim::SlimSettings) = "slim",
        /// Single numbers of matrices become zero.
        Wanda(wanda::WandaSettings) = "wanda",
        /// Whole layers go, and the others move together.
        Layers(layers::LayersSettings) = "layers",
        /// Recursions go, from the last.
        Recursions(recursions::RecursionsSettings) = "recursions",
        /// Experts read one projection of the row.
        Latent(latent::LatentSettings) = "latent",
        /// Experts become one dense MLP.
        Dense(dense::DenseSettings) = "dense",
        /// Weights are rounded, and later columns make up for it.
        Gptq(gptq::GptqSettings) = "gptq",
        /// A format for each matrix, chosen within a budget of bytes.
        Mixed(mixed::MixedSettings) = "mixed",
        /// Weights are rounded to the nearest.
        Round(round::RoundSettings) = "round",
        /// The model grows and computes the same.
        Grow(grow::GrowSettings) = "grow",
    }
}
