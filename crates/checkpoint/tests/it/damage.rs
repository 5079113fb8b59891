//! Damage after the fact: every truncation and flipped bit is noticed, named and skipped over.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::{Dtype, RealDisk, load, newest_valid, open_safetensors, save, step_name};

use crate::common::{Random, folder, large, same, small, which};

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn file_name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn a_file_cut_anywhere_is_noticed_and_the_checkpoint_before_it_is_used() {
    let parent = folder();
    save(parent.path(), &step_name(1), &small(1), &RealDisk).unwrap();
    let path = save(parent.path(), &step_name(2), &large(2), &RealDisk).unwrap();
    for file in files(&path) {
        let bytes = fs::read(&file).unwrap();
        for part in 0..50 {
            let cut = &bytes[..bytes.len() * part / 50];
            fs::write(&file, cut).unwrap();
            let message = load(&path).unwrap_err().to_string();
            assert!(message.contains(file_name(&file)), "cut to {}: {message}", cut.len());
            if file.extension().is_some_and(|ending| ending == "safetensors") {
                let message = open_safetensors(&file).unwrap_err().to_string();
                assert!(message.contains(file_name(&file)), "cut to {}: {message}", cut.len());
            }
            let (loaded, damaged) = newest_valid(parent.path()).unwrap();
            assert_eq!(which(&loaded.unwrap(), &[&small(1)]), 0);
            assert!(
                damaged.len() == 1
                    && damaged[0].path == path
                    && damaged[0].reason.contains(file_name(&file))
            );
        }
        fs::write(&file, &bytes).unwrap();
    }
    same(&load(&path).unwrap(), &large(2)).unwrap();
}

#[test]
fn every_flipped_bit_is_noticed() {
    let parent = folder();
    let path = save(parent.path(), "x", &small(1), &RealDisk).unwrap();
    for file in files(&path) {
        let mut bytes = fs::read(&file).unwrap();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, &bytes).unwrap();
            let error = load(&path).expect_err(&format!("{} bit {bit}", file.display()));
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        fs::write(&file, &bytes).unwrap();
    }
    same(&load(&path).unwrap(), &small(1)).unwrap();
}

#[test]
fn a_removed_file_or_a_folder_in_its_place_is_named() {
    let parent = folder();
    let path = save(parent.path(), "x", &small(1), &RealDisk).unwrap();
    for file in files(&path) {
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let message = load(&path).unwrap_err().to_string();
        assert!(
            message.contains(file_name(&file)) && message.contains("check the path"),
            "{message}"
        );
        fs::create_dir(&file).unwrap();
        let message = load(&path).unwrap_err().to_string();
        assert!(
            message.contains(file_name(&file)) && message.contains("not a regular file"),
            "{message}"
        );
        fs::remove_dir(&file).unwrap();
        fs::write(&file, &bytes).unwrap();
    }
    fs::write(path.join("notes.txt"), "not in the manifest").unwrap();
    same(&load(&path).unwrap(), &small(1)).unwrap();
}

/// Without a checksum to catch it, a damaged header is either refused or still describes the data.
#[test]
fn random_damage_to_a_header_never_misleads_the_reader() {
    let parent = folder();
    let path = save(parent.path(), "x", &small(1), &RealDisk).unwrap().join("weights.safetensors");
    let original = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(original[..8].try_into().unwrap()) as usize;
    let random = &mut Random::new(77);
    let alphabet = b"{}[]\",:0123456789-eE.\\ \0\xffF";
    let (mut refused, mut accepted) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = original.clone();
        for _ in 0..=random.below(3) {
            bytes[random.below(header)] = alphabet[random.below(alphabet.len())];
        }
        if random.below(4) == 0 {
            bytes.truncate(random.below(bytes.len()));
        }
        fs::write(&path, &bytes).unwrap();
        let Ok(file) = open_safetensors(&path) else {
            refused += 1;
            continue;
        };
        accepted += 1;
        let stored: usize =
            file.names().map(|name| file.shape(name).unwrap().iter().product::<usize>() * 4).sum();
        assert_eq!(stored, bytes.len() - header, "{bytes:?}");
        for name in file.names() {
            let values = file.read_f32(name);
            assert!(
                values.is_err()
                    || values.unwrap().len() == file.shape(name).unwrap().iter().product::<usize>()
            );
        }
    }
    assert!(refused > 10_000 && accepted > 100, "{refused} refused, {accepted} accepted");
}

/// What was verified is not what is there any more: no tensor comes of it, and nothing ends.
#[test]
fn tensors_of_a_changed_file_are_not_read() {
    let parent = folder();
    let path = save(parent.path(), &step_name(1), &large(1), &RealDisk).unwrap();
    let file = files(&path).into_iter().find(|file| file_name(file) == "weights.safetensors");
    let file = file.unwrap();
    type Change = fn(&fs::File);
    let changes: [(&str, Change); 2] = [
        ("now has 100", |file| file.set_len(100).unwrap()),
        ("written into", |file| file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap()),
    ];
    let bytes = fs::read(&file).unwrap();
    for (said, change) in changes {
        fs::write(&file, &bytes).unwrap();
        let loaded = load(&path).unwrap();
        let tensors = loaded.tensors("weights").unwrap();
        assert_eq!(tensors.read_f32("wide").unwrap().len(), 700 * 500);
        change(&fs::File::options().write(true).open(&file).unwrap());
        for error in [
            tensors.read_f32("wide").unwrap_err(),
            tensors.read_bytes("wide", Dtype::F32).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains("weights.safetensors: contents: expected"), "{error}");
            assert!(error.contains(said), "{error}");
        }
    }
}
