//! Either form of file behind one interface.

use std::path::Path;

use data::SpecialTokens;

use crate::error::io_at;
use crate::gguf::{Gguf, GgufModel, has_magic};
use crate::hf::Folder;
use crate::{ArchConfig, Architecture, FormatError, Result, TensorRole, TensorSource};

/// A checkpoint of another program, of a known architecture.
#[derive(Debug)]
pub enum ModelFile {
    /// A Hugging Face folder.
    HuggingFace(Folder),
    /// A GGUF file whose architecture is known.
    Gguf(GgufModel),
}

impl ModelFile {
    /// Opens what is at `path`: a folder with a config.json, or a file that begins with GGUF's
    /// magic.
    ///
    /// # Errors
    /// Neither is there, or what [`Folder::open`], [`Gguf::open`] and [`GgufModel::new`] refuse.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(io_at(path, "open"))?;
        if metadata.is_dir() {
            return Folder::open(path).map(Self::HuggingFace);
        }
        if has_magic(path)? {
            return GgufModel::new(Gguf::open(path)?).map(Self::Gguf);
        }
        let expected = "a Hugging Face folder with a config.json, or a GGUF file";
        Err(FormatError::unsupported(path, "form", expected, "neither"))
    }

    /// The folder or file that was opened.
    pub fn path(&self) -> &Path {
        match self {
            Self::HuggingFace(folder) => folder.path(),
            Self::Gguf(model) => model.gguf().path(),
        }
    }

    /// The architecture that it names.
    pub fn architecture(&self) -> &'static Architecture {
        match self {
            Self::HuggingFace(folder) => folder.architecture(),
            Self::Gguf(model) => model.architecture(),
        }
    }

    /// The numbers that fix the model's arithmetic.
    pub fn settings(&self) -> &ArchConfig {
        match self {
            Self::HuggingFace(folder) => folder.settings(),
            Self::Gguf(model) => model.settings(),
        }
    }

    /// A Hugging Face tokenizer.json.
    ///
    /// # Errors
    /// There is none, or none of a kind that is known.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>> {
        match self {
            Self::HuggingFace(folder) => folder.tokenizer_json(),
            Self::Gguf(model) => model.tokenizer_json(),
        }
    }

    /// Special ids and chat template.
    ///
    /// # Errors
    /// They contradict the vocabulary.
    pub fn special(&self) -> Result<SpecialTokens> {
        match self {
            Self::HuggingFace(folder) => folder.special(),
            Self::Gguf(model) => model.special(),
        }
    }
}

impl TensorSource for ModelFile {
    fn tensor(&self, role: TensorRole) -> Result<Vec<f32>> {
        match self {
            Self::HuggingFace(folder) => folder.tensor(role),
            Self::Gguf(model) => model.tensor(role),
        }
    }
}
