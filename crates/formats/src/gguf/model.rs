//! A GGUF file of a known architecture: settings, weights by role, special tokens.

use std::collections::BTreeMap;

use data::SpecialTokens;

use super::Gguf;
use super::tokenizer;
use crate::architectures::{self, Architecture, GgufForm};
use crate::{ArchConfig, Result, TensorRole, TensorSource, layout, rotary};

/// A GGUF file of a known architecture whose settings and tensors agree.
#[derive(Debug)]
pub struct GgufModel {
    gguf: Gguf,
    architecture: &'static Architecture,
    form: &'static GgufForm,
    settings: ArchConfig,
}

impl GgufModel {
    /// Checks that the file is of a known architecture, asks for nothing beyond [`ArchConfig`], and
    /// has exactly the tensors of such a model.
    ///
    /// # Errors
    /// [`FormatError::Invalid`](crate::FormatError::Invalid) with the setting or the tensors.
    pub fn new(gguf: Gguf) -> Result<Self> {
        let (architecture, form) = architectures::of_gguf(&gguf.metadata())?;
        let settings = (form.read)(&gguf)?;
        settings.check(gguf.path())?;
        let found: BTreeMap<&str, &[usize]> = gguf
            .tensors()
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()))
            .collect();
        layout::check(gguf.path(), architecture.name, &settings, form.holding(), &found)?;
        Ok(Self { gguf, architecture, form, settings })
    }

    /// The file that holds the model.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The architecture that the file names.
    pub fn architecture(&self) -> &'static Architecture {
        self.architecture
    }

    /// The numbers that fix the model's arithmetic.
    pub fn settings(&self) -> &ArchConfig {
        &self.settings
    }

    /// The ids with a meaning of their own, and the chat template.
    ///
    /// # Errors
    /// Settings of another type, ids outside of the vocabulary.
    pub fn special(&self) -> Result<SpecialTokens> {
        let special = tokenizer::special(&self.gguf.metadata())?;
        crate::special::check(&special, self.gguf.path(), self.settings.vocab)?;
        Ok(special)
    }

    /// The tokenizer as a Hugging Face tokenizer.json.
    ///
    /// # Errors
    /// An unknown kind of tokenizer or pre-tokenizer, or a vocabulary that contradicts itself.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>> {
        tokenizer::to_json(&self.gguf.metadata(), self.settings.vocab, &self.special()?)
    }
}

impl TensorSource for GgufModel {
    fn tensor(&self, role: TensorRole) -> Result<Vec<f32>> {
        let Some(piece) = self.form.holding().piece(&self.settings, role) else {
            let (path, tensor) = (self.gguf.path(), self.form.tensor);
            layout::name(path, self.architecture.name, tensor, role)?;
            return Ok(Vec::new());
        };
        let mut values = piece.out_of(self.gguf.read_f32_range(&piece.name, piece.span())?);
        if self.form.gains_with_one && role.is_gain() {
            values.iter_mut().for_each(|gain| *gain -= 1.0);
        }
        if self.form.neighbours_turn {
            return Ok(rotary::halves_of(role, &self.settings, values));
        }
        Ok(values)
    }
}
