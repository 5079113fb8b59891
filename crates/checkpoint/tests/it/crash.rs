//! A save that fails, is killed or loses power at any of its disk operations loses no checkpoint.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use checkpoint::{
    Disk, Fault, FaultPlan, FaultyDisk, Op, OpKind, OpenFile, RealDisk, SaveError, load,
    newest_valid, recover, save, step_name,
};

use crate::common::{everything, folder, hidden, large, same, small, which};

const CHILD_FOLDER: &str = "CHECKPOINT_TEST_FOLDER";
const CHILD_NAME: &str = "CHECKPOINT_TEST_NAME";
const SIGKILL: i32 = 9;

/// Older checkpoint at step 1, current at step 2; `name` is what is saved next: a new step or, in
/// the harder case, step 2 again.
const TARGETS: [u64; 2] = [3, 2];

fn prepared(parent: &Path) {
    save(parent, &step_name(1), &small(1), &RealDisk).unwrap();
    save(parent, &step_name(2), &small(2), &RealDisk).unwrap();
}

fn operations(target: u64) -> Vec<Op> {
    let (parent, disk) = (folder(), FaultyDisk::default());
    prepared(parent.path());
    save(parent.path(), &step_name(target), &large(9), &disk).unwrap();
    assert_eq!(disk.operations(), disk.log().len() as u64);
    disk.log()
}

/// What must hold on opening the folder after whatever happened: nothing damaged, step 1 as it was,
/// and the newest is the state before the save or the state after it. Reading changes nothing, and
/// what was left behind is put right for the next writer. Returns whether it is after.
fn check_reopened(parent: &Path, target: u64, case: &str) -> bool {
    let before = everything(parent);
    let (read, damaged) = newest_valid(parent).unwrap();
    assert_eq!(damaged, [], "{case}");
    assert_eq!(everything(parent), before, "{case}");
    assert_eq!(recover(parent).unwrap(), [], "{case}");
    let (loaded, damaged) = newest_valid(parent).unwrap();
    assert_eq!(damaged, [], "{case}");
    let loaded = loaded.expect(case);
    assert_eq!(read.expect(case).fingerprint, loaded.fingerprint, "{case}");
    same(&load(&parent.join(step_name(1))).expect(case), &small(1)).expect(case);
    let is_new = which(&loaded, &[&small(2), &large(9)]) == 1;
    let step = if is_new { target } else { 2 };
    assert_eq!(loaded.path, parent.join(step_name(step)), "{case}");
    if target == 3 {
        same(&load(&parent.join(step_name(2))).expect(case), &small(2)).expect(case);
    }
    assert_eq!(hidden(parent), [""; 0], "{case}");
    is_new
}

#[test]
fn an_error_at_any_operation_leaves_the_older_checkpoints() {
    for target in TARGETS {
        let ops = operations(target);
        for fault in [Fault::Enospc, Fault::EnospcHalf, Fault::EnospcFrom] {
            for at in 1..=ops.len() as u64 {
                let case = format!("step {target}, {fault:?} at {at}: {:?}", ops[at as usize - 1]);
                let parent = folder();
                prepared(parent.path());
                let disk = FaultyDisk::new(Some(FaultPlan { fault, kind: None, at }));
                let result = save(parent.path(), &step_name(target), &large(9), &disk);
                let is_last_removal = ops[at as usize - 1].kind == OpKind::RemoveDirAll;
                assert_eq!(result.is_ok(), is_last_removal, "{case}");
                if fault != Fault::EnospcFrom && !is_last_removal {
                    assert_eq!(hidden(parent.path()), [""; 0], "{case}");
                }
                if let Err(error) = &result {
                    check_message(error, &ops[at as usize - 1], &case);
                }
                let is_new = check_reopened(parent.path(), target, &case);
                // With a disk that refuses everything after a failed last sync, the finished
                // checkpoint cannot be taken back; otherwise an error means the state before.
                assert!(is_new == result.is_ok() || fault == Fault::EnospcFrom, "{case}");
                save(parent.path(), &step_name(target), &large(9), &RealDisk).expect(&case);
                assert!(check_reopened(parent.path(), target, &case), "{case}");
            }
        }
    }
}

fn check_message(error: &SaveError, op: &Op, case: &str) {
    let message = error.to_string();
    let name = op.path.file_name().unwrap().to_str().unwrap();
    // The parent's own name differs between the run that listed the operations and this one.
    let is_parent = op.kind == OpKind::SyncDir && !name.contains("step-");
    assert!(is_parent || message.contains(name), "{case}: {message}");
    assert!(
        message.contains("no space left") && message.contains("free disk space and save again"),
        "{case}: {message}"
    );
}

#[test]
fn every_kind_of_operation_is_struck() {
    let kinds: BTreeSet<_> =
        TARGETS.iter().flat_map(|&target| operations(target)).map(|op| op.kind).collect();
    assert_eq!(kinds.len(), 7, "{kinds:?}");
    let plan: FaultPlan = "enospc:rename:3".parse().unwrap();
    let (parent, disk) = (folder(), FaultyDisk::new(Some(plan)));
    prepared(parent.path());
    save(parent.path(), &step_name(2), &large(9), &disk).unwrap_err();
    // The first rename is that of the manifest, the fourth puts the old checkpoint back.
    assert_eq!(disk.log().iter().filter(|op| op.kind == OpKind::Rename).count(), 4);
    check_reopened(parent.path(), 2, "third rename");
}

#[test]
fn fault_plans_read_back_and_nonsense_is_refused() {
    for text in [
        "kill:17",
        "enospc:1",
        "kill-half:write-chunk:3",
        "enospc-from:sync-dir:2",
        "enospc-half:4",
    ] {
        assert_eq!(text.parse::<FaultPlan>().unwrap().to_string(), text);
    }
    for text in [
        "",
        "kill",
        "kill:",
        "kill:0",
        "kill:-1",
        "die:3",
        "kill:write:3",
        "kill:rename:3:4",
        "kill:3:rename",
    ] {
        let message = text.parse::<FaultPlan>().unwrap_err().to_string();
        assert!(
            message.contains("LATHE_FAULT") && message.contains(&format!("{text:?}")),
            "{message}"
        );
    }
}

#[test]
#[ignore = "the kill tests run it in a process of its own"]
fn child_saves() {
    let parent = PathBuf::from(std::env::var_os(CHILD_FOLDER).unwrap());
    let disk = FaultyDisk::from_env().unwrap().expect("LATHE_FAULT is set");
    save(&parent, &std::env::var(CHILD_NAME).unwrap(), &large(9), &disk).unwrap();
}

/// Runs [`child_saves`] and returns the signal that ended it, if one did.
fn run_child(parent: &Path, target: u64, plan: FaultPlan) -> Option<i32> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_saves", "--ignored", "--test-threads=1"])
        .env(CHILD_FOLDER, parent)
        .env(CHILD_NAME, step_name(target))
        .env("LATHE_FAULT", plan.to_string())
        .output()
        .unwrap();
    assert!(output.status.success() || output.status.signal().is_some(), "{output:?}");
    output.status.signal()
}

#[test]
fn a_kill_at_any_operation_leaves_the_older_checkpoints() {
    for target in TARGETS {
        let ops = operations(target);
        let mut saved = Vec::new();
        for (i, op) in ops.iter().enumerate() {
            for fault in [Fault::Kill, Fault::KillHalf] {
                if fault == Fault::KillHalf && op.kind != OpKind::WriteChunk {
                    continue;
                }
                let case = format!("step {target}, {fault:?} before operation {}: {op:?}", i + 1);
                let parent = folder();
                prepared(parent.path());
                let plan = FaultPlan { fault, kind: None, at: i as u64 + 1 };
                assert_eq!(run_child(parent.path(), target, plan), Some(SIGKILL), "{case}");
                saved.push(check_reopened(parent.path(), target, &case));
            }
        }
        // Once the checkpoint is there it stays there.
        assert!(saved.is_sorted() && !saved[0], "{saved:?}");
        let parent = folder();
        prepared(parent.path());
        let beyond = FaultPlan { fault: Fault::Kill, kind: None, at: ops.len() as u64 + 1 };
        assert_eq!(run_child(parent.path(), target, beyond), None);
        assert!(check_reopened(parent.path(), target, "no kill"));
    }
}

#[test]
fn a_checkpoint_opened_by_path_is_found_after_a_kill_between_the_renames() {
    let parent = folder();
    prepared(parent.path());
    // The first rename is that of the manifest.
    let plan = "kill:rename:3".parse().unwrap();
    assert_eq!(run_child(parent.path(), 2, plan), Some(SIGKILL));
    let path = parent.path().join(step_name(2));
    assert!(!path.exists());
    let before = everything(parent.path());
    same(&load(&path).unwrap(), &small(2)).unwrap();
    assert_eq!(everything(parent.path()), before);
    assert_eq!(recover(parent.path()).unwrap(), []);
    same(&load(&path).unwrap(), &small(2)).unwrap();
    assert!(path.exists());
}

/// A disk refusing everything from operation n on leaves what a kill at n leaves, without a process
/// per case: two crashes in a row, each at any operation.
#[test]
fn a_second_crash_while_recovering_from_the_first_loses_nothing() {
    let (first, second, third) = (small(1), small(2), small(3));
    let crash_at = |parent: &Path, snapshot, at| {
        let disk = FaultyDisk::new(Some(FaultPlan { fault: Fault::EnospcFrom, kind: None, at }));
        let done = save(parent, &step_name(5), snapshot, &disk).is_ok();
        (done, disk.operations())
    };
    let mut cases = 0;
    for n in 1.. {
        let mut is_past_the_end = false;
        for m in 1.. {
            let parent = folder();
            save(parent.path(), &step_name(5), &first, &RealDisk).unwrap();
            is_past_the_end = crash_at(parent.path(), &second, n).1 < n;
            let (is_saved, count) = crash_at(parent.path(), &third, m);
            assert_eq!(recover(parent.path()).unwrap(), []);
            let (loaded, damaged) = newest_valid(parent.path()).unwrap();
            let found = which(&loaded.unwrap(), &[&first, &second, &third]);
            assert!(damaged.is_empty() && (!is_saved || found == 2), "{n}, {m}: {found}");
            assert_eq!(hidden(parent.path()), [""; 0], "{n}, {m}");
            cases += 1;
            if count < m {
                break;
            }
        }
        if is_past_the_end {
            break;
        }
    }
    assert!(cases > 400, "{cases}");
}

/// Stops at operation `at` as a power cut would. Keeps what may be lost with the caches: contents
/// of files not synced, files whose folder was not synced since, and renames likewise.
struct PowerCut {
    at: usize,
    state: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    count: usize,
    contents: BTreeSet<PathBuf>,
    entries: BTreeSet<PathBuf>,
    renames: Vec<(PathBuf, PathBuf)>,
}

impl Cache {
    fn moved(&mut self, from: &Path, to: &Path) {
        for paths in [&mut self.contents, &mut self.entries] {
            let follow =
                |path: PathBuf| path.strip_prefix(from).map(|rest| to.join(rest)).unwrap_or(path);
            *paths = std::mem::take(paths).into_iter().map(follow).collect();
        }
    }

    fn lose(mut self, renames: usize, case: &str) {
        for (from, to) in std::mem::take(&mut self.renames).iter().rev().take(renames) {
            fs::rename(to, from).expect(case);
            self.moved(to, from);
        }
        for file in self.contents.iter().filter(|file| file.exists()) {
            fs::File::options().write(true).open(file).unwrap().set_len(0).unwrap();
        }
        for file in self.entries.iter().filter(|file| file.exists()) {
            fs::remove_file(file).unwrap();
        }
    }
}

impl PowerCut {
    fn run<T>(
        &self,
        note: impl FnOnce(&mut Cache),
        op: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut cache = self.state.lock().unwrap();
        cache.count += 1;
        if cache.count >= self.at {
            return Err(io::Error::other("no power"));
        }
        let done = op()?;
        note(&mut cache);
        Ok(done)
    }
}

impl Disk for PowerCut {
    fn create_file(&self, path: &Path) -> io::Result<OpenFile> {
        let note = |cache: &mut Cache| {
            cache.contents.insert(path.into());
            cache.entries.insert(path.into());
        };
        self.run(note, || RealDisk.create_file(path))
    }

    fn write_chunk(&self, file: &mut OpenFile, chunk: &[u8]) -> io::Result<()> {
        self.run(|_| (), || RealDisk.write_chunk(file, chunk))
    }

    fn sync_file(&self, file: &OpenFile) -> io::Result<()> {
        self.run(
            |cache| cache.contents.retain(|path| path != file.path()),
            || RealDisk.sync_file(file),
        )
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let note = |cache: &mut Cache| {
            cache.entries.retain(|entry| entry.parent() != Some(path));
            cache.renames.retain(|(from, _)| from.parent() != Some(path));
        };
        self.run(note, || Ok(()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let note = |cache: &mut Cache| {
            cache.renames.push((from.into(), to.into()));
            cache.moved(from, to);
        };
        self.run(note, || RealDisk.rename(from, to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.run(|_| (), || RealDisk.remove_file(path))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.run(|_| (), || RealDisk.remove_dir_all(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.run(|_| (), || RealDisk.create_dir(path))
    }
}

#[test]
fn a_power_cut_at_any_operation_leaves_the_older_checkpoints() {
    for target in TARGETS {
        for at in 1..=operations(target).len() + 1 {
            // 0: renames reached the disk though nothing asked for it. n: the last n of them did
            // not.
            for lost_renames in 0..=2_usize {
                let case =
                    format!("step {target}, power lost at {at}, {lost_renames} renames lost");
                let parent = folder();
                prepared(parent.path());
                let disk = PowerCut { at, state: Mutex::default() };
                let result = save(parent.path(), &step_name(target), &large(9), &disk);
                disk.state.into_inner().unwrap().lose(lost_renames, &case);
                let is_new = check_reopened(parent.path(), target, &case);
                assert!(is_new || result.is_err(), "{case}");
            }
        }
    }
}
