//! A disk that fails or kills its own process at a chosen operation: a test aid.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use crate::disk::{Disk, OpenFile, RealDisk};

/// The environment variable that [`FaultyDisk::from_env`] reads.
pub(crate) const VARIABLE: &str = "LATHE_FAULT";

/// The kinds of [`Disk`] operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpKind {
    /// [`Disk::create_file`], `create-file` in a plan.
    CreateFile,
    /// [`Disk::write_chunk`], `write-chunk` in a plan.
    WriteChunk,
    /// [`Disk::sync_file`], `sync-file` in a plan.
    SyncFile,
    /// [`Disk::sync_dir`], `sync-dir` in a plan.
    SyncDir,
    /// [`Disk::rename`], `rename` in a plan.
    Rename,
    /// [`Disk::remove_file`], `remove-file` in a plan.
    RemoveFile,
    /// [`Disk::remove_dir_all`], `remove-dir-all` in a plan.
    RemoveDirAll,
    /// [`Disk::create_dir`], `create-dir` in a plan.
    CreateDir,
}

const KINDS: [(&str, OpKind); 8] = [
    ("create-file", OpKind::CreateFile),
    ("write-chunk", OpKind::WriteChunk),
    ("sync-file", OpKind::SyncFile),
    ("sync-dir", OpKind::SyncDir),
    ("rename", OpKind::Rename),
    ("remove-file", OpKind::RemoveFile),
    ("remove-dir-all", OpKind::RemoveDirAll),
    ("create-dir", OpKind::CreateDir),
];

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `enospc`: the operation is not carried out and returns "no space left on device", once.
    Enospc,
    /// `enospc-half`: as `enospc`, but a write first writes half of its chunk.
    EnospcHalf,
    /// `enospc-from`: this operation and all later ones fail as with `enospc`.
    EnospcFrom,
    /// `kill`: the process kills itself with SIGKILL before the operation.
    Kill,
    /// `kill-half`: as `kill`, but a write first writes half of its chunk.
    KillHalf,
}

const FAULTS: [(&str, Fault); 5] = [
    ("enospc", Fault::Enospc),
    ("enospc-half", Fault::EnospcHalf),
    ("enospc-from", Fault::EnospcFrom),
    ("kill", Fault::Kill),
    ("kill-half", Fault::KillHalf),
];

/// When a fault strikes. As text: `fault:n` or `fault:kind:n`, for example `kill:17` (the 17th
/// operation of any kind) or `enospc-half:write-chunk:3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultPlan {
    /// What happens to the operation that is struck.
    pub fault: Fault,
    /// Counts only operations of this kind; all of them if `None`.
    pub kind: Option<OpKind>,
    /// The operation struck, the first being 1.
    pub at: u64,
}

/// A plan whose text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "LATHE_FAULT: expected enospc, enospc-half, enospc-from, kill or kill-half, then ':', \
     optionally an operation kind and ':', then a number from 1, found {found:?}; unset the \
     variable outside of tests"
)]
pub struct FaultSpecError {
    found: String,
}

impl FromStr for FaultPlan {
    type Err = FaultSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::read(text).ok_or_else(|| FaultSpecError { found: text.to_owned() })
    }
}

impl FaultPlan {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let fault = find(&FAULTS, parts.next()?)?;
        let (kind, at) = match (parts.next()?, parts.next(), parts.next()) {
            (at, None, None) => (None, at),
            (kind, Some(at), None) => (Some(find(&KINDS, kind)?), at),
            _ => return None,
        };
        let at = at.parse().ok().filter(|&at| at > 0)?;
        Some(Self { fault, kind, at })
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault =
            FAULTS.iter().find(|(_, fault)| *fault == self.fault).map_or("", |(name, _)| name);
        write!(f, "{fault}:")?;
        if let Some((kind, _)) = KINDS.iter().find(|(_, kind)| Some(*kind) == self.kind) {
            write!(f, "{kind}:")?;
        }
        write!(f, "{}", self.at)
    }
}

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// One operation that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// What was asked for.
    pub kind: OpKind,
    /// On which file or folder; the source for a rename.
    pub path: PathBuf,
}

/// A [`RealDisk`] that records every operation and, with a plan, fails or kills the process at one
/// of them. A test aid: without a plan it behaves as [`RealDisk`].
#[derive(Debug, Default)]
pub struct FaultyDisk {
    plan: Option<FaultPlan>,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    ops: Vec<Op>,
    /// How many of them are of the plan's kind.
    matching: u64,
}

enum Strike {
    Nothing,
    Fail,
    FailHalf,
    KillHalf,
}

impl FaultyDisk {
    /// A disk that follows `plan`, or only records.
    pub fn new(plan: Option<FaultPlan>) -> Self {
        Self { plan, log: Mutex::default() }
    }

    /// The disk that the environment variable `LATHE_FAULT` asks for, `None` if it is unset.
    ///
    /// # Errors
    /// The variable is set to something that is not a plan.
    pub fn from_env() -> Result<Option<Self>, FaultSpecError> {
        let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let plan = text.to_string_lossy().parse()?;
        Ok(Some(Self::new(Some(plan))))
    }

    /// How many operations were asked for so far, the failed ones included.
    pub fn operations(&self) -> u64 {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).ops.len() as u64
    }

    /// The operations asked for so far.
    pub fn log(&self) -> Vec<Op> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).ops.clone()
    }

    fn strike(&self, kind: OpKind, path: &Path) -> Strike {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.ops.push(Op { kind, path: path.to_path_buf() });
        let Some(plan) = self.plan else { return Strike::Nothing };
        if plan.kind.is_some_and(|wanted| wanted != kind) {
            return Strike::Nothing;
        }
        log.matching += 1;
        let count = log.matching;
        match plan.fault {
            Fault::EnospcFrom if count >= plan.at => Strike::Fail,
            _ if count != plan.at => Strike::Nothing,
            Fault::Enospc | Fault::EnospcFrom => Strike::Fail,
            Fault::EnospcHalf => Strike::FailHalf,
            Fault::KillHalf if kind == OpKind::WriteChunk => Strike::KillHalf,
            Fault::Kill | Fault::KillHalf => kill_self(),
        }
    }

    fn guard(&self, kind: OpKind, path: &Path) -> io::Result<()> {
        match self.strike(kind, path) {
            Strike::Nothing => Ok(()),
            Strike::Fail | Strike::FailHalf | Strike::KillHalf => Err(no_space()),
        }
    }
}

fn no_space() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left on device (injected)")
}

fn kill_self() -> ! {
    // SIGKILL runs no handler, no destructor and flushes nothing, as the kernel's out-of-memory
    // killer would; raising it does not return, so the abort is for systems without it.
    let _ = signal_hook::low_level::raise(signal_hook::consts::SIGKILL);
    std::process::abort()
}

impl Disk for FaultyDisk {
    fn create_file(&self, path: &Path) -> io::Result<OpenFile> {
        self.guard(OpKind::CreateFile, path)?;
        RealDisk.create_file(path)
    }

    fn write_chunk(&self, file: &mut OpenFile, chunk: &[u8]) -> io::Result<()> {
        let half = &chunk[..chunk.len() / 2];
        match self.strike(OpKind::WriteChunk, file.path()) {
            Strike::Nothing => RealDisk.write_chunk(file, chunk),
            Strike::Fail => Err(no_space()),
            Strike::FailHalf => RealDisk.write_chunk(file, half).and(Err(no_space())),
            Strike::KillHalf => {
                let _ = RealDisk.write_chunk(file, half);
                kill_self()
            }
        }
    }

    fn sync_file(&self, file: &OpenFile) -> io::Result<()> {
        self.guard(OpKind::SyncFile, file.path())?;
        RealDisk.sync_file(file)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.guard(OpKind::SyncDir, path)?;
        RealDisk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.guard(OpKind::Rename, from)?;
        RealDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.guard(OpKind::RemoveFile, path)?;
        RealDisk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.guard(OpKind::RemoveDirAll, path)?;
        RealDisk.remove_dir_all(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.guard(OpKind::CreateDir, path)?;
        RealDisk.create_dir(path)
    }
}
