//! Snapshots made from a seed, and the comparison of a loaded checkpoint with one of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use checkpoint::{Dtype, Loaded, NamedTensor, Snapshot, TensorData};
use serde_json::json;
use tempfile::TempDir;

/// A folder in memory where there is one: the tests sync thousands of times.
pub(crate) fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap()
}

/// A multiplicative generator (Lehmer, modulus 2^61 - 1), enough to vary test data.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = ((u128::from(self.0) * 437_799_614_237_992_725) % ((1 << 61) - 1)) as u64;
        self.0
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 61) as usize
    }

    /// Any finite f32, subnormals and zeros of both signs included.
    pub(crate) fn finite(&mut self) -> f32 {
        loop {
            let value = f32::from_bits((self.next() >> 17) as u32);
            if value.is_finite() {
                return value;
            }
        }
    }
}

pub(crate) fn tensor(name: &str, shape: &[usize], random: &mut Random) -> NamedTensor<'static> {
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| random.finite()).collect();
    NamedTensor { name: name.to_owned(), shape: shape.to_vec(), data: data.into() }
}

pub(crate) fn small(seed: u64) -> Snapshot<'static> {
    let random = &mut Random::new(seed);
    let mut snapshot = Snapshot::default();
    let weights = vec![tensor("embed", &[5, 3], random), tensor("head", &[7], random)];
    snapshot.tensors.insert("weights".into(), weights);
    snapshot.tensors.insert("optimizer".into(), vec![tensor("m.embed", &[5, 3], random)]);
    snapshot.json.insert("state".into(), json!({"step": seed, "loss": f64::from(random.finite())}));
    snapshot.files.insert("tokenizer.json".into(), format!("{{\"seed\": {seed}}}").into_bytes());
    snapshot
}

/// As [`small`], with a tensor that takes several chunks.
pub(crate) fn large(seed: u64) -> Snapshot<'static> {
    let mut snapshot = small(seed);
    let wide = tensor("wide", &[700, 500], &mut Random::new(seed + 1));
    snapshot.tensors.get_mut("weights").unwrap().insert(1, wide);
    snapshot
}

/// Type and bytes of a tensor's elements.
pub(crate) fn stored(tensor: &NamedTensor<'_>) -> (Dtype, Vec<u8>) {
    match &tensor.data {
        TensorData::F32(values) => {
            (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        TensorData::Stored { dtype, bytes } => (*dtype, bytes.to_vec()),
        TensorData::Pieces(_) => panic!("pieces are read once"),
    }
}

pub(crate) fn same(loaded: &Loaded, snapshot: &Snapshot<'_>) -> Result<(), String> {
    if loaded.json != snapshot.json || loaded.files != snapshot.files {
        return Err("JSON or files differ".into());
    }
    if !loaded.stems().eq(snapshot.tensors.keys()) {
        return Err("stems differ".into());
    }
    for (stem, tensors) in &snapshot.tensors {
        let file = loaded.tensors(stem).map_err(|e| e.to_string())?;
        if !file.names().eq(tensors.iter().map(|tensor| &tensor.name)) {
            return Err(format!("names in {stem} differ"));
        }
        for tensor in tensors {
            let (dtype, bytes) = stored(tensor);
            let found = file.read_bytes(&tensor.name, dtype).map_err(|e| e.to_string())?;
            if file.shape(&tensor.name) != Some(&tensor.shape) || found != bytes {
                return Err(format!("{} differs", tensor.name));
            }
        }
    }
    Ok(())
}

/// Which of the snapshots the checkpoint equals bit for bit.
pub(crate) fn which(loaded: &Loaded, snapshots: &[&Snapshot<'_>]) -> usize {
    snapshots
        .iter()
        .position(|snapshot| same(loaded, snapshot).is_ok())
        .expect("the checkpoint equals no snapshot")
}

pub(crate) fn hidden(parent: &Path) -> Vec<String> {
    let names =
        std::fs::read_dir(parent).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with('.')).collect();
    names.sort();
    names
}

/// What is below a folder: paths, times of change, and the bytes of files.
pub(crate) fn everything(folder: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let about = path.symlink_metadata().unwrap();
            let mut bytes = Vec::new();
            if about.is_dir() {
                folders.push(path.clone());
            } else {
                bytes = std::fs::read(&path).unwrap();
            }
            found.insert(path, (about.modified().unwrap(), bytes));
        }
    }
    found
}
