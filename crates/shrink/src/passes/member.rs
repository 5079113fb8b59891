//! What a pass over a checkpoint is: what its settings answer, and what runs.

use model::{Model, ModelConfig, RouterState, WeightFormats};

use crate::seen::{Seen, Wanted};
use crate::{ModelChange, ShrinkError};

/// What the settings of a pass answer.
pub trait PassSettings {
    /// Refuses settings that mean nothing for any model, before a model is opened.
    ///
    /// # Errors
    /// An impossible setting, or one that is unused beside the others.
    fn check(&self) -> Result<(), ShrinkError> {
        Ok(())
    }

    /// Whether the pass leaves weights in formats of fewer bits, so that no other can follow.
    fn rounds(&self) -> bool {
        false
    }

    /// Whether the pass keeps what routers are given, so that thresholds stay.
    fn keeps_thresholds(&self) -> bool {
        false
    }

    /// Begins the pass on a model of this config, with settings that [`check`](Self::check) let
    /// through; `seed` is that of all it draws.
    ///
    /// # Errors
    /// A setting that is impossible here, a model with which the pass can do nothing, or a target
    /// that this model cannot meet.
    fn begin(&self, config: &ModelConfig, seed: u64) -> Result<Box<dyn RunningPass>, ShrinkError>;
}

/// A layer as a pass meets it: the layers before it are changed already.
pub struct LayerCall<'a> {
    /// The model as it is now.
    pub model: &'a Model,
    /// What its routers learned outside of gradients.
    pub state: &'a RouterState,
    /// The number of its stored layer.
    pub stored: usize,
    /// What came by it, and how it was met.
    pub seen: &'a Seen,
}

/// All layers of the unchanged model, for targets that are shared out among layers.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// What was seen, by stored layer.
    pub layers: Vec<Seen>,
}

/// A pass under way over one model.
pub trait RunningPass {
    /// What it must see of a layer before it acts; [`Wanted::default`] for nothing, and no text.
    fn wanted(&self) -> Wanted;

    /// What it must see of all layers before the walk; `None` if it shares nothing out by that.
    fn surveys(&self) -> Option<Wanted> {
        None
    }

    /// Shares the target out among layers, after a survey.
    ///
    /// # Errors
    /// A target that cannot be met.
    fn allocate(&mut self, _model: &Model, _survey: &Survey) -> Result<(), ShrinkError> {
        Ok(())
    }

    /// The formats that it leaves weights in; `None` if it leaves them in f32.
    fn rounds(&self) -> Option<WeightFormats> {
        None
    }

    /// Formats in which rounding to the nearest is measured beside the pass, as its control; asked
    /// after [`allocate`](Self::allocate).
    fn control(&self) -> Option<WeightFormats> {
        None
    }

    /// Whether layers that [`act`](Self::act) leaves as they are go or are replaced at the end, so
    /// that their errors are not measured.
    fn acts_at_the_end(&self) -> bool {
        false
    }

    /// The stored layers that it acts on.
    fn layers(&self, model: &Model) -> Vec<usize> {
        (0..model.plan().stored).collect()
    }

    /// Scores a layer and says what becomes of it. The shapes of other layers stay.
    ///
    /// # Errors
    /// A layer that cannot become what was asked for.
    fn act(&mut self, _layer: &LayerCall<'_>) -> Result<ModelChange, ShrinkError> {
        Ok(ModelChange::default())
    }

    /// What becomes of the model as a whole, behind the last layer.
    ///
    /// # Errors
    /// A model that cannot become what was asked for.
    fn finish(&mut self, _model: &Model, _state: &RouterState) -> Result<ModelChange, ShrinkError> {
        Ok(ModelChange::default())
    }
}
