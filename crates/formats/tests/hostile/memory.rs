//! How much address space the cases of a test took. Exact only where nothing else runs, so one test
//! runs all others again in a process of its own, one at a time.

use std::path::Path;
use std::process::Command;

/// Growth allowed beyond twice the largest file, which here is below 2 MB.
const ALLOWED_KB: u64 = 64 << 10;
const ALONE: &str = "FORMATS_TESTS_ALONE";

/// Measures the peak of the process's address space from here to [`Meter::check`].
pub(crate) struct Meter {
    before_kb: Option<u64>,
}

impl Meter {
    pub(crate) fn start() -> Meter {
        Meter { before_kb: std::env::var_os(ALONE).and_then(|_| peak_kb()) }
    }

    pub(crate) fn check(&self) {
        if let (Some(before), Some(after)) = (self.before_kb, peak_kb()) {
            assert!(after - before <= ALLOWED_KB, "{} kB more than before", after - before);
        }
    }
}

/// The largest address space so far, where the system tells.
fn peak_kb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find(|line| line.starts_with("VmPeak:"))?.split_whitespace().nth(1)?.parse().ok()
}

/// A temporary folder, in memory where the system has such a place: a busy disk would take most of
/// the time.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Writes a file anew; a file cut short in place would be flushed to the disk each time.
pub(crate) fn put(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn no_lie_takes_much_memory() {
    if std::env::var_os(ALONE).is_some() {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let run = Command::new(program).args(["--test-threads=1"]).env(ALONE, "1").output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}
