//! Listing, choosing and pruning the checkpoints of a folder, alone and beside a running save.

use std::fs;
use std::path::Path;

use checkpoint::{
    RealDisk, list, load, newest_valid, prune, recover, save, save_new, step_name, try_list,
};

use crate::common::{everything, folder, hidden, same, small, which};

fn steps(parent: &Path) -> Vec<u64> {
    list(parent).iter().filter_map(|entry| entry.step).collect()
}

fn spoil(parent: &Path, step: u64) {
    let file = parent.join(step_name(step)).join("optimizer.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file, bytes).unwrap();
}

fn filled(upto: u64) -> tempfile::TempDir {
    let parent = folder();
    for step in 1..=upto {
        save(parent.path(), &step_name(step * 100), &small(step), &RealDisk).unwrap();
    }
    parent
}

#[test]
fn the_list_is_ascending_by_step_and_leaves_out_what_is_no_checkpoint() {
    let parent = folder();
    for step in [7, 100_000_000, 20, 99_999_999, u64::MAX] {
        save(parent.path(), &step_name(step), &small(1), &RealDisk).unwrap();
    }
    save(parent.path(), "best", &small(1), &RealDisk).unwrap();
    for name in ["step-7", "step-0000000x", "step-000000007", "logs", ".tmp-step-00000009"] {
        fs::create_dir(parent.path().join(name)).unwrap();
    }
    fs::write(parent.path().join("step-00000001"), "a file").unwrap();
    let found: Vec<_> =
        list(parent.path()).into_iter().map(|entry| (entry.name, entry.step)).collect();
    let expected =
        [7, 20, 99_999_999, 100_000_000, u64::MAX].map(|step| (step_name(step), Some(step)));
    assert_eq!(found[0], ("best".into(), None));
    assert_eq!(found[1..], expected);
    assert_eq!(step_name(1234), "step-00001234");
}

#[test]
fn a_folder_that_is_not_there_is_empty_and_one_that_cannot_be_read_is_an_error() {
    let parent = folder();
    let absent = parent.path().join("absent");
    assert_eq!(try_list(&absent).unwrap(), []);
    let (loaded, damaged) = newest_valid(&absent).unwrap();
    assert!(loaded.is_none() && damaged.is_empty() && !absent.exists());
    fs::write(&absent, "a file").unwrap();
    assert!(newest_valid(&absent).unwrap_err().to_string().contains("absent"));
    assert_eq!(list(&absent), []);
}

#[test]
fn damaged_checkpoints_are_skipped_newest_first() {
    let parent = filled(4);
    spoil(parent.path(), 400);
    spoil(parent.path(), 300);
    let (loaded, damaged) = newest_valid(parent.path()).unwrap();
    assert_eq!(which(&loaded.unwrap(), &[&small(2)]), 0);
    let skipped: Vec<_> = damaged.iter().map(|entry| entry.path.clone()).collect();
    assert_eq!(skipped, [400, 300].map(|step| parent.path().join(step_name(step))));
    assert!(
        damaged.iter().all(|entry| entry.reason.contains("optimizer.safetensors: sha256")),
        "{damaged:?}"
    );
    spoil(parent.path(), 200);
    spoil(parent.path(), 100);
    let (loaded, damaged) = newest_valid(parent.path()).unwrap();
    assert!(loaded.is_none() && damaged.len() == 4);
    assert_eq!(prune(parent.path(), 0, None).unwrap(), [""; 0].map(std::path::PathBuf::from));
}

#[test]
fn pruning_keeps_the_last_the_multiples_and_the_newest_valid() {
    let kept = |keep_last, keep_every, spoiled: &[u64]| {
        let parent = filled(6);
        spoiled.iter().for_each(|&step| spoil(parent.path(), step));
        save(parent.path(), "best", &small(9), &RealDisk).unwrap();
        let before = steps(parent.path());
        let removed = prune(parent.path(), keep_last, keep_every).unwrap();
        let after = steps(parent.path());
        let gone = before
            .iter()
            .filter(|step| !after.contains(step))
            .map(|&step| parent.path().join(step_name(step)));
        assert_eq!(removed, gone.collect::<Vec<_>>());
        assert_eq!(hidden(parent.path()), [""; 0]);
        same(&load(&parent.path().join("best")).unwrap(), &small(9)).unwrap();
        after
    };
    assert_eq!(kept(2, None, &[]), [500, 600]);
    assert_eq!(kept(1, Some(200), &[]), [200, 400, 600]);
    assert_eq!(kept(1, Some(0), &[]), [600]);
    assert_eq!(kept(0, None, &[]), [600]);
    assert_eq!(kept(0, None, &[600]), [500]);
    assert_eq!(kept(2, None, &[600, 500, 400]), [300, 500, 600]);
    assert_eq!(kept(9, None, &[]), [100, 200, 300, 400, 500, 600]);
}

#[test]
fn a_damaged_replacement_gives_way_to_the_checkpoint_set_aside() {
    let parent = folder();
    let path = save(parent.path(), &step_name(100), &small(2), &RealDisk).unwrap();
    let aside = parent.path().join(".old-step-00000100");
    fs::rename(&path, &aside).unwrap();
    save(parent.path(), "other", &small(1), &RealDisk).unwrap();
    fs::rename(parent.path().join("other"), &path).unwrap();
    spoil(parent.path(), 100);
    let before = everything(parent.path());
    let (loaded, damaged) = newest_valid(parent.path()).unwrap();
    assert_eq!(which(&loaded.unwrap(), &[&small(2)]), 0);
    assert_eq!(damaged.len(), 1);
    assert_eq!(everything(parent.path()), before);
    assert_eq!(recover(parent.path()).unwrap(), []);
    let (loaded, damaged) = newest_valid(parent.path()).unwrap();
    assert_eq!(which(&loaded.unwrap(), &[&small(2)]), 0);
    assert_eq!(damaged, []);
    assert_eq!(hidden(parent.path()), [".bad-step-00000100"]);
}

#[test]
fn a_reader_beside_a_writer_always_finds_a_checkpoint_and_removes_nothing_of_it() {
    let parent = filled(1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for step in 2..150 {
                save(parent.path(), &step_name(step * 100), &small(step), &RealDisk).unwrap();
                prune(parent.path(), 1, None).unwrap();
            }
        });
        let mut last = String::new();
        while !writer.is_finished() {
            let (loaded, damaged) = newest_valid(parent.path()).unwrap();
            let name = loaded
                .expect("a checkpoint")
                .path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            assert!(name >= last && damaged.is_empty(), "{last}, {name}, {damaged:?}");
            last = name;
        }
    });
    assert_eq!(steps(parent.path()), [14_900]);
}

#[test]
fn a_reader_of_the_only_checkpoint_finds_it_while_it_is_being_replaced() {
    let parent = filled(1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for seed in 2..200 {
                save(parent.path(), &step_name(100), &small(seed), &RealDisk).unwrap();
            }
        });
        while !writer.is_finished() {
            // Caught in the middle of its files, a checkpoint may fail to verify, but it is there.
            let (loaded, damaged) = newest_valid(parent.path()).unwrap();
            assert!(loaded.is_some() || damaged.len() == 1, "{damaged:?}");
        }
    });
    same(&load(&parent.path().join(step_name(100))).unwrap(), &small(199)).unwrap();
}

#[test]
fn an_open_checkpoint_outlives_its_removal() {
    let parent = filled(1);
    let (loaded, _) = newest_valid(parent.path()).unwrap();
    save(parent.path(), &step_name(100), &small(2), &RealDisk).unwrap();
    same(loaded.as_ref().unwrap(), &small(1)).unwrap();
    fs::remove_dir_all(parent.path().join(step_name(100))).unwrap();
    same(&loaded.unwrap(), &small(1)).unwrap();
}

/// Names that this crate uses, in folders that somebody else made.
fn foreign(parent: &Path) {
    for name in [".tmp-mywork", ".old-photos", ".bad-habits", ".tmp-step-00000300"] {
        fs::create_dir(parent.join(name)).unwrap();
    }
    for name in [".tmp-step-00000100", ".old-step-00000100", ".bad-step-00000100", ".tmp-x"] {
        fs::create_dir(parent.join(name)).unwrap();
        fs::write(parent.join(name).join("notes.txt"), name).unwrap();
    }
    fs::write(parent.join(".lock"), "mine").unwrap();
    // Beside a mark that does not name it, and beside a checkpoint that does not.
    let copy = save(parent, "x", &small(1), &RealDisk).unwrap();
    fs::write(copy.join("notes.txt"), "mine").unwrap();
    fs::rename(&copy, parent.join(".old-x")).unwrap();
}

#[test]
fn what_no_manifest_proves_to_be_ours_stays() {
    let parent = folder();
    foreign(parent.path());
    let before = everything(parent.path());
    assert!(newest_valid(parent.path()).unwrap().0.is_none());
    load(&parent.path().join("photos")).unwrap_err();
    assert_eq!(everything(parent.path()), before);
    for step in [100, 200, 100] {
        save(parent.path(), &step_name(step), &small(step), &RealDisk).unwrap();
        prune(parent.path(), 1, None).unwrap();
        assert_eq!(recover(parent.path()).unwrap(), []);
    }
    save(parent.path(), "x", &small(3), &RealDisk).unwrap();
    let after = everything(parent.path());
    for (path, what) in &before {
        // An empty folder under the name of a step is what a kill leaves of a save.
        let is_begun = path.ends_with(".tmp-step-00000300");
        assert!(is_begun || after.get(path) == Some(what), "{}", path.display());
    }
    assert_eq!(steps(parent.path()), [200]);
}

#[test]
fn a_step_that_is_no_checkpoint_of_ours_is_neither_pruned_nor_written_over() {
    let parent = filled(3);
    fs::create_dir(parent.path().join(step_name(50))).unwrap();
    fs::write(parent.path().join(step_name(100)).join("notes.txt"), "mine").unwrap();
    fs::write(parent.path().join(step_name(300)).join("manifest.json"), "{}").unwrap();
    prune(parent.path(), 1, None).unwrap();
    assert_eq!(steps(parent.path()), [50, 100, 200, 300]);
    save(parent.path(), &step_name(300), &small(9), &RealDisk).unwrap();
    save(parent.path(), &step_name(100), &small(9), &RealDisk).unwrap();
    assert_eq!(hidden(parent.path()), [".bad-step-00000100", ".bad-step-00000300"]);
    assert_eq!(fs::read(parent.path().join(".bad-step-00000100/notes.txt")).unwrap(), b"mine");
    prune(parent.path(), 1, None).unwrap();
    assert_eq!(steps(parent.path()), [50, 300]);
}

#[test]
fn a_new_folder_replaces_nothing() {
    let parent = folder();
    let place = parent.path().join("model");
    save_new(&place, &small(1), &RealDisk).unwrap();
    let before = everything(parent.path());
    let error = save_new(&place, &small(2), &RealDisk).unwrap_err().to_string();
    assert!(error.contains("model") && error.contains("choose another"), "{error}");
    assert_eq!(everything(parent.path()), before);
    fs::create_dir(parent.path().join("empty")).unwrap();
    let made = save_new(&parent.path().join("empty"), &small(2), &RealDisk).unwrap();
    same(&load(&made).unwrap(), &small(2)).unwrap();
    assert_eq!(hidden(parent.path()), [""; 0]);
    assert!(!parent.path().join(".lock").exists());
}
