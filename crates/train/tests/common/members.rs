//! Threads that stand for processes, and what their runs leave.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use processes::{Member, members};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What each of `size` members makes of `act`, each in a thread of its own.
pub(crate) fn all<T: Send>(size: usize, act: impl Fn(Member) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let act = &act;
        let begun: Vec<_> = members(size, PATIENCE)
            .into_iter()
            .map(|member| scope.spawn(move || act(member)))
            .collect();
        begun.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// The files of a run that must not depend on how it came about.
pub(crate) fn files(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![run.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("lists") {
            let path = entry.expect("lists").path();
            let name = path.strip_prefix(run).expect("below").display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if !name.starts_with("events") && !name.starts_with("timing") {
                found.insert(name, std::fs::read(&path).expect("reads"));
            }
        }
    }
    found.retain(|name, _| !name.ends_with(".lock"));
    found
}

pub(crate) fn same_files(found: &Path, expected: &Path) {
    let (a, b) = (files(found), files(expected));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b), "{}", found.display());
    for (name, bytes) in &a {
        assert!(b[name] == *bytes, "{}: {name} differs", found.display());
    }
}
