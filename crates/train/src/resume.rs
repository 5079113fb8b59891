//! Where a run starts: afresh, or at its newest undamaged checkpoint.

use std::path::Path;

use checkpoint::{Damaged, Loaded};

use crate::{Change, Resume, TrainError, opening};

/// What the checkpoints of a run's folder had to offer.
#[derive(Debug, Default)]
pub struct Resumed {
    /// The step that the run continues from, if it does.
    pub step: Option<u64>,
    /// Checkpoints that were passed over, newest first.
    pub damaged: Vec<Damaged>,
    /// What the recipe says differently from the one that the checkpoint was saved with.
    pub changes: Vec<Change>,
}

/// Where a run can be continued.
pub(crate) struct Point {
    /// The newest checkpoint that verifies; none if the run has none at all.
    pub(crate) loaded: Option<Loaded>,
    /// Checkpoints that were passed over, newest first.
    pub(crate) damaged: Vec<Damaged>,
}

/// Finds where the run in `dir` can be continued. A run with checkpoints of which none can be read
/// is refused: to begin again would write over it.
pub(crate) fn find(dir: &Path, how: Resume) -> Result<Point, TrainError> {
    let checkpoints = &dir.join("checkpoints");
    if checkpoints.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Ok(Point { loaded: None, damaged: Vec::new() });
    }
    // A link to a disk that is not there is no empty folder.
    let there = std::fs::metadata(checkpoints);
    if let Err(source) = there {
        let (action, path) = ("opening", checkpoints.clone());
        return Err(TrainError::Folder { action, path, source });
    }
    let (loaded, mut damaged) = checkpoint::newest_valid(checkpoints)?;
    if let Some(loaded) = &loaded {
        opening::check_name(loaded)?;
    }
    match &loaded {
        None if !damaged.is_empty() => {
            return Err(TrainError::Unreadable { path: checkpoints.clone(), damaged });
        }
        Some(_) if how == Resume::Never => {
            let known = checkpoint::list(checkpoints);
            let step = known.iter().filter_map(|entry| entry.step).max().unwrap_or(0);
            return Err(TrainError::Occupied { path: checkpoints.clone(), step });
        }
        _ => {}
    }
    damaged.extend(checkpoint::recover(checkpoints)?);
    Ok(Point { loaded, damaged })
}
