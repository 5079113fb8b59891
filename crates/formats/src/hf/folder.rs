//! A Hugging Face folder whose config and tensors agree.

use std::path::{Path, PathBuf};

use data::SpecialTokens;

use super::shards::Shards;
use super::special;
use crate::architectures::{self, Architecture, HuggingFaceForm};
use crate::json::JsonFile;
use crate::layout::{self, Holding};
use crate::{ArchConfig, Result, TensorRole, TensorSource, rotary};

pub(crate) const CONFIG: &str = "config.json";

/// A Hugging Face folder of a known architecture.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    architecture: &'static Architecture,
    form: &'static HuggingFaceForm,
    settings: ArchConfig,
    shards: Shards,
    holding: Holding,
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
        let mut shards = Shards::open(path)?;
        // Classes without such folders have refused the setting.
        if config.get("quantization_config").is_some() {
            shards.unpack()?;
        }
        let holding = form.holding_of(&settings, |name| shards.has(name));
        shards.check(path, architecture.name, &settings, holding)?;
        Ok(Self { path: path.to_path_buf(), architecture, form, settings, shards, holding })
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

    /// The tensor in which the weights of a role stand, and for each of them, row after row, its
    /// place among the tensor's values; `None` for a role that the architecture lacks.
    pub fn places(&self, role: TensorRole) -> Option<(String, Vec<usize>)> {
        let piece = self.holding.piece(&self.settings, role)?;
        let (rows, columns) = piece.size;
        let place = |i: usize| {
            let (row, column) = (i / columns.max(1), i % columns.max(1));
            piece.first + row * piece.row_step + column * piece.column_step
        };
        let places: Vec<usize> = (0..rows * columns).map(place).collect();
        let neighbours = self.form.neighbours_turn;
        let places = rotary::read_order(neighbours, role, &self.settings, places);
        Some((piece.name, places))
    }

    /// Special ids and chat template.
    ///
    /// # Errors
    /// Companion files of another form, ids outside of the vocabulary, names that are no tokens.
    pub fn special(&self) -> Result<SpecialTokens> {
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
        let Some(piece) = self.holding.piece(&self.settings, role) else {
            let tensor = self.holding.tensor;
            layout::name(&self.path, self.architecture.name, tensor, role)?;
            return Ok(Vec::new());
        };
        let unused = matches!(role, TensorRole::Layer(_, role) if role.is_unused());
        if unused && !self.shards.has(&piece.name) {
            return Ok(vec![0.0; piece.size.0 * piece.size.1]);
        }
        let values = piece.out_of(self.shards.read_range(&piece.name, piece.span())?);
        Ok(rotary::read_order(self.form.neighbours_turn, role, &self.settings, values))
    }
}
