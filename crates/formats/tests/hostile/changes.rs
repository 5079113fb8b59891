//! Small honest files with bytes changed: read or refused, but never a panic.

use super::common::{Raw, small, small_tokenizer};
use super::folders;
use super::memory::{Meter, put, scratch};
use formats::gguf::{Gguf, GgufModel};
use formats::{TensorRole, TensorSource};
use std::path::Path;

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Reads all there is; an error must name the file.
fn read_gguf(path: &Path) -> bool {
    let all = || -> formats::Result<()> {
        let gguf = Gguf::open(path)?;
        let names: Vec<String> = gguf.tensors().iter().map(|tensor| tensor.name.clone()).collect();
        let values = names.iter().try_for_each(|name| gguf.read_f32(name).map(drop));
        let llama = GgufModel::new(gguf)?;
        values?;
        TensorRole::all(llama.settings()).try_for_each(|role| llama.tensor(role).map(drop))?;
        llama.special()?;
        llama.tokenizer_json().map(drop)
    };
    match all() {
        Ok(()) => true,
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("changed"), "{message}");
            false
        }
    }
}

#[test]
fn every_bit_of_a_gguf_header_flipped() {
    let meter = Meter::start();
    let folder = scratch();
    let path = folder.path().join("changed.gguf");
    let (header_len, honest) = (Raw::small().header().len(), Raw::small().bytes());
    let mut accepted = 0;
    for bit in 0..header_len * 8 {
        let mut bytes = honest.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        put(&path, &bytes);
        accepted += usize::from(read_gguf(&path));
    }
    // Letters of tokens and templates, context and the like may change without harm.
    assert!(
        accepted > 0 && accepted < header_len * 4,
        "{accepted} of {} were read",
        header_len * 8
    );
    meter.check();
}

#[test]
fn ggufs_with_random_changes() {
    let meter = Meter::start();
    let folder = scratch();
    let path = folder.path().join("changed.gguf");
    let honest = Raw::small().bytes();
    let mut dice = Dice(1);
    for _ in 0..4000 {
        let mut bytes = honest.clone();
        for _ in 0..=dice.below(4) {
            mutate(&mut bytes, &mut dice);
        }
        put(&path, &bytes);
        read_gguf(&path);
    }
    meter.check();
}

/// Overwrites, inserts, removes or repeats a run of bytes, or writes an extreme number.
fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.below(bytes.len().max(1)).min(bytes.len());
    let end = (at + 1 + dice.below(16)).min(bytes.len());
    match dice.below(5) {
        0 => bytes[at..end].iter_mut().for_each(|byte| *byte = dice.below(256) as u8),
        1 => drop(bytes.splice(at..at, (0..dice.below(16)).map(|i| i as u8).collect::<Vec<_>>())),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let run = bytes[at..end].to_vec();
            drop(bytes.splice(at..at, run));
        }
        _ => {
            let extreme =
                [0, 1, u64::MAX, 1 << 63, 1 << 31, u64::from(u32::MAX), 1 << 40][dice.below(7)];
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&extreme.to_le_bytes()[..end - at]);
        }
    }
}

const FILES: [&str; 5] = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
];

#[test]
fn folders_with_random_changes() {
    let meter = Meter::start();
    let folder = scratch();
    let path = folder.path().join("changed");
    folders::honest(&path, &small(), &small_tokenizer());
    folders::read_all(&path).expect("the honest folder is read");
    let mut dice = Dice(2);
    for name in FILES {
        let honest = std::fs::read(path.join(name)).unwrap();
        let mut refused = 0;
        for _ in 0..800 {
            let mut bytes = honest.clone();
            for _ in 0..=dice.below(2) {
                mutate(&mut bytes, &mut dice);
            }
            put(&path.join(name), &bytes);
            if let Err(error) = folders::read_all(&path) {
                refused += 1;
                let message = error.to_string();
                assert!(message.contains("changed"), "{name}: {message}");
            }
        }
        assert!(refused > 0, "{name}");
        put(&path.join(name), &honest);
    }
    meter.check();
}

#[test]
fn every_byte_of_the_settings_flipped() {
    let meter = Meter::start();
    let folder = scratch();
    let path = folder.path().join("changed");
    folders::honest(&path, &small(), &small_tokenizer());
    for name in ["config.json", "generation_config.json", "tokenizer_config.json"] {
        let honest = std::fs::read(path.join(name)).unwrap();
        for at in 0..honest.len() {
            for flip in [0x01, 0x10, 0x80] {
                let mut bytes = honest.clone();
                bytes[at] ^= flip;
                put(&path.join(name), &bytes);
                if let Err(error) = folders::read_all(&path) {
                    let message = error.to_string();
                    assert!(message.contains("changed"), "{name}: {message}");
                }
            }
        }
        put(&path.join(name), &honest);
    }
    meter.check();
}
