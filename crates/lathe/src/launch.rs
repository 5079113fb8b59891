//! Whether this process was started beside others, and what they reach each other by.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use processes::{Alone, Processes};

/// How long processes wait for each other where nothing else is said, in seconds.
const PATIENCE: u64 = 1800;

/// The variables in which launchers say how many processes they started, and whose they are.
const LAUNCHERS: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_SIZE", "mpirun of Open MPI"),
    ("PMI_SIZE", "mpiexec of MPICH or srun"),
    ("MV2_COMM_WORLD_SIZE", "mpirun of MVAPICH"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
];

/// What a launcher says.
struct Started {
    variable: &'static str,
    launcher: &'static str,
    size: usize,
}

/// The first launcher that says of more than one process, by the values of variables.
fn started(value: impl Fn(&str) -> Option<String>) -> Option<Started> {
    let mut said = LAUNCHERS.iter().filter_map(|&(variable, launcher)| {
        let size = value(variable)?.trim().parse().ok()?;
        (size > 1).then_some(Started { variable, launcher, size })
    });
    said.next()
}

/// This process among those that were started together.
pub(crate) struct Launch {
    /// Those that were started together, this one included.
    pub(crate) processes: Arc<dyn Processes>,
    #[cfg(feature = "mpi")]
    mpi: Option<Arc<processes::Mpi>>,
}

impl Launch {
    /// One process, whoever started it.
    pub(crate) fn alone() -> Self {
        Self {
            processes: Arc::new(Alone),
            #[cfg(feature = "mpi")]
            mpi: None,
        }
    }

    /// Reaches the processes that a launcher has started, if one has; `patience` is what
    /// `--process-timeout` says.
    pub(crate) fn find(patience: Option<u64>) -> Result<Self> {
        ensure!(
            patience != Some(0),
            "--process-timeout is 0, expected at least 1: nobody answers at once"
        );
        match started(|name| std::env::var(name).ok()) {
            Some(started) => {
                Self::join(&started, Duration::from_secs(patience.unwrap_or(PATIENCE)))
            }
            None => {
                ensure!(
                    patience.is_none(),
                    "--process-timeout: expected processes that wait for each other, found this \
                     one alone; leave it out, or start several by mpirun or srun"
                );
                Ok(Self::alone())
            }
        }
    }

    #[cfg(feature = "mpi")]
    fn join(started: &Started, patience: Duration) -> Result<Self> {
        let mpi = processes::Mpi::start(patience)?;
        let Started { variable, launcher, size } = *started;
        if mpi.size() != size {
            // Each would take itself for the first one and write into the same folder.
            bail!(
                "{launcher} says by {variable} that it started {size} processes, found {} by the \
                 MPI that this program was built with: use the launcher of the same MPI, or \
                 build the program with the launcher's (`ldd` on the program names its MPI)",
                mpi.size()
            );
        }
        let mpi = Arc::new(mpi);
        Ok(Self { processes: mpi.clone(), mpi: Some(mpi) })
    }

    #[cfg(not(feature = "mpi"))]
    fn join(started: &Started, _: Duration) -> Result<Self> {
        let Started { variable, launcher, size } = started;
        bail!(
            "{launcher} says by {variable} that it started {size} processes, expected one: this \
             program was built without MPI, and each process would train by itself into the same \
             folder; build it by `cargo build --release -p lathe --features mpi`, or start one"
        )
    }

    /// Whether this is the process that speaks for all.
    pub(crate) fn is_first(&self) -> bool {
        self.processes.rank() == 0
    }

    /// Which one this is, for errors; nothing where there is one.
    pub(crate) fn name(&self) -> Option<String> {
        let (rank, size) = (self.processes.rank(), self.processes.size());
        (size > 1).then(|| format!("process {rank} of {size}"))
    }

    /// Leaves the others in peace. Launchers end all processes when one of them goes without this.
    pub(crate) fn end(&self) -> Result<()> {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            mpi.end()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_told_by_what_they_say() {
        let said = |all: &[(&str, &str)]| {
            let value = |name: &str| {
                all.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            started(value).map(|started| (started.variable, started.size))
        };
        assert_eq!(said(&[]), None);
        assert_eq!(said(&[("PMI_SIZE", "1"), ("OMPI_COMM_WORLD_SIZE", "what")]), None);
        assert_eq!(said(&[("PMI_SIZE", "4")]), Some(("PMI_SIZE", 4)));
        // mpirun of one step of a larger job.
        let both = [("SLURM_STEP_NUM_TASKS", "1"), ("OMPI_COMM_WORLD_SIZE", "3")];
        assert_eq!(said(&both), Some(("OMPI_COMM_WORLD_SIZE", 3)));
        assert_eq!(said(&[("SLURM_STEP_NUM_TASKS", "2")]), Some(("SLURM_STEP_NUM_TASKS", 2)));
    }
}
