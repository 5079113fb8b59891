//! Files of what routers decided.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use trace::Trace;

use crate::output;

/// Writes a trace, and says so.
pub(crate) fn keep(trace: &Trace, path: &Path) -> Result<()> {
    must_be_free(path)?;
    trace::write(trace, path)?;
    let decisions = trace.len();
    output::note(format!("wrote {decisions} decisions of routers to {}", path.display()));
    Ok(())
}

/// Refuses a path where something else than a trace is.
pub(crate) fn must_be_free(path: &Path) -> Result<()> {
    let holds = path.metadata().is_ok_and(|found| found.is_file() && found.len() > 0);
    ensure!(
        !holds || trace::shapes::open(path).is_ok(),
        "{} is there and is no trace: choose another name, or remove it",
        path.display()
    );
    let folder = files::folder_of(path);
    folder.metadata().with_context(|| format!("the folder of {}", path.display()))?;
    Ok(())
}
