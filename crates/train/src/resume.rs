//! Where a run starts: afresh, or at its newest undamaged checkpoint.

use std::path::Path;

use checkpoint::Damaged;

use crate::stored::restore;
use crate::{Resume, TrainError, Trainer};

/// What the checkpoints of a run's folder had to offer.
#[derive(Debug, Default)]
pub struct Resumed {
    /// The step that the run continues from, if it does.
    pub step: Option<u64>,
    /// Checkpoints that were passed over, newest first.
    pub damaged: Vec<Damaged>,
}

/// Puts `trainer` where `checkpoints` and `how` say.
pub(crate) fn resume(
    trainer: &mut Trainer,
    checkpoints: &Path,
    how: Resume,
    data: &str,
) -> Result<Resumed, TrainError> {
    if !checkpoints.is_dir() {
        return Ok(Resumed::default());
    }
    let (loaded, damaged) = checkpoint::newest_valid(checkpoints)?;
    let Some(loaded) = loaded else { return Ok(Resumed { step: None, damaged }) };
    if how == Resume::Never {
        let step = checkpoint::list(checkpoints).iter().filter_map(|e| e.step).max().unwrap_or(0);
        return Err(TrainError::Occupied { path: checkpoints.to_path_buf(), step });
    }
    restore(trainer, &loaded, data)?;
    Ok(Resumed { step: Some(trainer.step), damaged })
}
