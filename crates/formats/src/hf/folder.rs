//! A Hugging Face folder whose config and tensors agree.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::shards::Shards;
use super::special;
use crate::architectures::{self, Architecture, HuggingFaceForm};
use crate::json::JsonFile;
use crate::{ArchConfig, Result, SpecialIds, TensorRole, TensorSource, layout};

pub(crate) const CONFIG: &str = "config.json";

/// A Hugging Face folder of a known architecture.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    architecture: &'static Architecture,
    form: &'static HuggingFaceForm,
    settings: ArchConfig,
    shards: Shards,
}

impl Folder {
    /// Reads config.json and maps the weights; the tensors must be exactly those of the config, in
    /// F32, F16 or BF16. Inverse frequencies and an equal copy of a tied output matrix are passed
    /// over.
    ///
    /// # Errors
    /// What is missing, contradicts itself or is not covered, with file and field.
    pub fn open(path: &Path) -> Result<Self> {
        let config = JsonFile::read(&path.join(CONFIG))?;
        let config = config.object();
        let (architecture, form) = architectures::of_config(&config)?;
        let settings = (form.read)(&config)?;
        settings.check(config.path())?;
        let shards = Shards::open(path)?;
        shards.check(path, architecture.name, &settings, form.tensor)?;
        Ok(Self { path: path.to_path_buf(), architecture, form, settings, shards })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The architecture that config.json names.
    pub fn architecture(&self) -> &'static Architecture {
        self.architecture
    }

    /// The numbers that fix the model's arithmetic.
    pub fn settings(&self) -> &ArchConfig {
        &self.settings
    }

    /// The tensor in which the weights of a role stand, and which of its values they are; `None` for
    /// a role that the architecture lacks.
    pub fn place(&self, role: TensorRole) -> Option<(String, Range<usize>)> {
        let name = (self.form.tensor)(role)?;
        Some((name, layout::range(&self.settings, self.form.tensor, role)))
    }

    /// Special ids and chat template.
    ///
    /// # Errors
    /// Companion files of another form, ids outside of the vocabulary, names that are no tokens.
    pub fn special(&self) -> Result<SpecialIds> {
        let config = JsonFile::read(&self.path.join(CONFIG))?;
        special::read(&self.path, &config.object(), self.settings.vocab)
    }

    /// The bytes of tokenizer.json.
    ///
    /// # Errors
    /// It cannot be read or is larger than 1 GiB.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>> {
        special::tokenizer_json(&self.path)
    }
}

impl TensorSource for Folder {
    fn tensor(&self, role: TensorRole) -> Result<Vec<f32>> {
        let tensor = self.form.tensor;
        let name = layout::name(&self.path, self.architecture.name, tensor, role)?;
        let range = layout::range(&self.settings, tensor, role);
        let mut values = self.shards.read(&name)?;
        // Mostly the role is the whole tensor.
        if range.len() < values.len() {
            values = values.get(range).unwrap_or_default().to_vec();
        }
        Ok(values)
    }
}
