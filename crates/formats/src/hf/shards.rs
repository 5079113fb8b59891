//! The safetensors of a folder: one file, or shards named by an index.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use checkpoint::{Dtype, TensorFile, open_safetensors};

use super::packed::PackedBank;
use crate::error::{io_at, quote};
use crate::json::{JsonFile, describe};
use crate::{ArchConfig, FormatError, Result, TensorRole, layout};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_SHARDS: usize = 4096;
/// Kept by old converters; computed from the settings.
const INVERSE_FREQUENCIES: &str = ".rotary_emb.inv_freq";

/// Every tensor of the folder and the file it is in.
#[derive(Debug)]
pub(super) struct Shards {
    files: Vec<TensorFile>,
    index: BTreeMap<String, usize>,
    /// Banks in codes of four bits, which no tensor of the index holds.
    packed: BTreeMap<String, PackedBank>,
}

impl Shards {
    /// Opens the single file or, where there is none, every shard of the index.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.try_exists().map_err(io_at(&single, "open"))? {
            let file = open_safetensors(&single)?;
            let index = file.names().map(|name| (name.to_owned(), 0)).collect();
            return Ok(Self { files: vec![file], index, packed: BTreeMap::new() });
        }
        if index.try_exists().map_err(io_at(&index, "open"))? {
            return Self::open_index(folder, &index);
        }
        Err(FormatError::damaged(folder, "weights", format!("{SINGLE} or {INDEX}"), "neither"))
    }

    fn open_index(folder: &Path, path: &Path) -> Result<Self> {
        let json = JsonFile::read(path)?;
        let root = json.object();
        let map = root.must("weight_map", root.inner("weight_map")?)?;
        let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in map.items() {
            let shard = match shard.as_str() {
                Some(shard) if is_file_name(shard) => shard,
                _ => {
                    let expected = "the name of a .safetensors file in the same folder";
                    let field = format!("weight_map[{}]", quote(tensor));
                    return Err(FormatError::damaged(path, field, expected, describe(shard)));
                }
            };
            names.entry(shard).or_default().push(tensor);
        }
        if names.len() > MAX_SHARDS {
            let found = names.len().to_string();
            return Err(FormatError::damaged(
                path,
                "weight_map",
                format!("at most {MAX_SHARDS} shards"),
                found,
            ));
        }
        let (files, index, packed) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut shards = Self { files, index, packed };
        for (shard, tensors) in names {
            let file = open_safetensors(&folder.join(shard))?;
            shards.add(path, shard, file, &tensors)?;
        }
        Ok(shards)
    }

    /// From now on codes of four bits with their scales stand for the banks that they are.
    pub(super) fn unpack(&mut self) -> Result<()> {
        let names = self.index.keys().filter_map(|name| name.strip_suffix("_blocks"));
        let names: Vec<String> = names.map(str::to_owned).collect();
        for name in names {
            let parts = [format!("{name}_blocks"), format!("{name}_scales")];
            let [blocks, scales] = [0, 1].map(|part| self.index.get(&parts[part]).copied());
            let (Some(blocks), Some(scales)) = (blocks, scales) else { continue };
            if self.index.contains_key(&name) {
                let (field, path) = (format!("tensor {}", quote(&name)), self.files[blocks].path());
                let found = format!("it beside {}", quote(&parts[0]));
                let expected = "a bank once, in numbers or in codes";
                return Err(FormatError::damaged(path, field, expected, found));
            }
            let bank = PackedBank::of(&name, &self.files, [blocks, scales])?;
            self.index.retain(|known, _| !parts.contains(known));
            self.packed.insert(name, bank);
        }
        Ok(())
    }

    /// The shard must hold exactly the tensors that the index gives it.
    fn add(&mut self, path: &Path, shard: &str, file: TensorFile, tensors: &[&str]) -> Result<()> {
        let listed: BTreeSet<&str> = tensors.iter().copied().collect();
        if let Some(absent) = tensors.iter().find(|name| file.shape(name).is_none()) {
            let field = format!("weight_map[{}]", quote(absent));
            return Err(FormatError::damaged(path, field, "the shard that holds it", quote(shard)));
        }
        if let Some(unlisted) = file.names().find(|name| !listed.contains(name)) {
            let field = format!("tensor {}", quote(unlisted));
            let found =
                format!("it in {}, where the index has it elsewhere or not at all", quote(shard));
            return Err(FormatError::damaged(
                path,
                field,
                "each tensor where the index says, once",
                found,
            ));
        }
        for tensor in tensors {
            self.index.insert((*tensor).to_owned(), self.files.len());
        }
        self.files.push(file);
        Ok(())
    }

    /// Checks that the tensors are those of the model, all in types that are read. A stored copy of
    /// a tied output matrix must equal the embedding.
    pub(super) fn check(
        &self,
        folder: &Path,
        architecture: &str,
        settings: &ArchConfig,
        holding: layout::Holding,
    ) -> Result<()> {
        let mut found: BTreeMap<&str, &[usize]> = BTreeMap::new();
        for (name, &shard) in &self.index {
            if !name.ends_with(INVERSE_FREQUENCIES) {
                found.insert(name, self.files[shard].shape(name).unwrap_or_default());
            }
        }
        let banks = self.packed.iter().map(|(name, bank)| (name.as_str(), &bank.shape[..]));
        found.extend(banks);
        let tensor = holding.tensor;
        let head = tensor(TensorRole::Head).unwrap_or_default();
        let embed = tensor(TensorRole::Embed).unwrap_or_default();
        let has_copy = settings.tied
            && found.contains_key(head.as_str())
            && found.contains_key(embed.as_str());
        if has_copy {
            found.remove(head.as_str());
        }
        layout::check(folder, architecture, settings, holding, &found)?;
        for name in found.keys() {
            self.check_dtype(name)?;
        }
        if has_copy {
            self.check_dtype(&head)?;
            self.check_copy(folder, &head, &embed)?;
        }
        Ok(())
    }

    fn check_dtype(&self, name: &str) -> Result<()> {
        if self.packed.contains_key(name) {
            return Ok(());
        }
        let file = &self.files[self.index[name]];
        match file.dtype(name) {
            Some(Dtype::F32 | Dtype::F16 | Dtype::Bf16) => Ok(()),
            other => {
                let field = format!("tensor {}: dtype", quote(name));
                let found = other.map_or("none".into(), |dtype| dtype.to_string());
                Err(FormatError::unsupported(file.path(), field, "F32, F16 or BF16", found))
            }
        }
    }

    fn check_copy(&self, folder: &Path, head: &str, embed: &str) -> Result<()> {
        let (a, b) = (self.read(head)?, self.read(embed)?);
        if a == b {
            return Ok(());
        }
        let found = match a.iter().zip(&b).position(|(a, b)| a != b) {
            Some(i) => format!("{} for {} at {i}", a[i], b[i]),
            None => format!("{} values for {}", a.len(), b.len()),
        };
        let field = format!("tensor {}", quote(head));
        Err(FormatError::damaged(
            folder,
            field,
            "a copy of the embedding, as tie_word_embeddings says",
            found,
        ))
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.index.contains_key(name) || self.packed.contains_key(name)
    }

    /// The values of a tensor that was found present.
    fn read(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.file_of(name).read_f32(name)?)
    }

    /// Some values of a tensor that was found present.
    pub(super) fn read_range(&self, name: &str, range: Range<usize>) -> Result<Vec<f32>> {
        match self.packed.get(name) {
            Some(bank) => bank.read_range(&self.files, range),
            None => Ok(self.file_of(name).read_f32_range(name, range)?),
        }
    }

    fn file_of(&self, name: &str) -> &TensorFile {
        self.index.get(name).map_or(&self.files[0], |&shard| &self.files[shard])
    }
}

/// A name that cannot lead out of the folder, nor to another index.
fn is_file_name(name: &str) -> bool {
    let stem = name.strip_suffix(".safetensors").unwrap_or("");
    !stem.is_empty()
        && !stem.starts_with('.')
        && name.len() < 256
        && !name.contains(['/', '\\', ':', '\0'])
}
