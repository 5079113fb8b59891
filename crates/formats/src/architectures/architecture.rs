//! What an architecture says of itself, so that the readers and writers of files need not know it.

use std::path::Path;

use serde_json::{Map, Value};

use crate::gguf::file::Gguf;
use crate::gguf::write::GgufSettings;
use crate::json::JsonObject;
use crate::layout::{Banks, Holding, Naming, StoredTensor};
use crate::{Additions, ArchConfig, LayerRole, Result, TensorRole};

/// A checkpoint architecture: how the files of its models state their numbers and name their
/// tensors. A form of file that nobody uses for it is `None`.
#[derive(Debug)]
pub struct Architecture {
    /// What messages call it, such as `Llama`.
    pub name: &'static str,
    /// Whether a model of these numbers is written as a folder of this architecture, if no
    /// architecture before it in the list is.
    pub(crate) holds: fn(&ArchConfig) -> bool,
    pub(crate) hugging_face: Option<HuggingFaceForm>,
    pub(crate) gguf: Option<GgufForm>,
}

/// An architecture in a Hugging Face folder.
#[derive(Debug)]
pub(crate) struct HuggingFaceForm {
    /// `model_type` in config.json, by which the architecture is found.
    pub(crate) model_type: &'static str,
    /// The one entry of `architectures` in config.json.
    pub(crate) class: &'static str,
    /// The numbers of a config.json of this type. Whatever the arithmetic of [`ArchConfig`] does
    /// not cover is refused by the name of its field.
    pub(crate) read: fn(&JsonObject<'_>) -> Result<ArchConfig>,
    /// The fields of config.json in their order. The writer fills in `model_type`,
    /// `architectures`, the token ids and `torch_dtype`: in place where they stand here as null,
    /// otherwise at the end.
    pub(crate) write: fn(&Path, &ArchConfig) -> Result<Map<String, Value>>,
    /// What safetensors calls the tensor of a role; `None` for roles that this architecture lacks.
    pub(crate) tensor: Naming,
    /// Where experts stand within banks, if files hold them so.
    pub(crate) banks: Option<Banks>,
    /// Other ways in which folders hold the weights, which are read and not written.
    pub(crate) others: &'static [Holding],
    /// Whether rows `2 i` and `2 i + 1` of a query or key head turn together in the file, instead
    /// of rows i and `i + head_dim / 2`.
    pub(crate) neighbours_turn: bool,
}

impl HuggingFaceForm {
    /// How folders are written.
    pub(crate) fn holding(&self) -> Holding {
        Holding { tensor: self.tensor, banks: self.banks }
    }

    /// How the folder with tensors of these names holds its weights: told by the first expert.
    pub(crate) fn holding_of(
        &self,
        settings: &ArchConfig,
        is_there: impl Fn(&str) -> bool,
    ) -> Holding {
        let experts = settings.experts.as_ref();
        let layer = experts.and_then(|experts| (0..settings.layers).find(|i| experts.reach(*i)));
        let first = layer.map(|layer| TensorRole::Layer(layer, LayerRole::ExpertGate(0)));
        let has_first = |holding: &Holding| {
            let piece = first.and_then(|first| holding.piece(settings, first));
            piece.is_some_and(|piece| is_there(&piece.name))
        };
        let all = std::iter::once(self.holding()).chain(self.others.iter().copied());
        all.into_iter().find(has_first).unwrap_or(self.holding())
    }
}

/// An architecture in a GGUF file.
#[derive(Debug)]
pub(crate) struct GgufForm {
    /// `general.architecture`, which also begins the keys of its settings.
    pub(crate) architecture: &'static str,
    /// The numbers of a file of this architecture. Whatever the arithmetic of [`ArchConfig`] does
    /// not cover is refused by the name of its setting.
    pub(crate) read: fn(&Gguf) -> Result<ArchConfig>,
    /// The settings that hold these numbers.
    pub(crate) write: fn(&Path, &ArchConfig) -> Result<GgufSettings>,
    /// What the file calls the tensor of a role; `None` for roles that this architecture lacks.
    pub(crate) tensor: Naming,
    /// Where experts stand within banks, if files hold them so.
    pub(crate) banks: Option<Banks>,
    /// Whether rows `2 i` and `2 i + 1` of a query or key head turn together in the file, instead
    /// of rows i and `i + head_dim / 2`.
    pub(crate) neighbours_turn: bool,
    /// Whether gains of norms stand in the file as `1 + w`.
    pub(crate) gains_with_one: bool,
    /// What a file can say of a model beside plain Llama.
    pub(crate) held: fn(&ArchConfig) -> Additions,
    /// Whether a model of these numbers is written as such a file, if no architecture before it in
    /// the list is.
    pub(crate) holds: fn(&ArchConfig) -> bool,
}

impl GgufForm {
    /// How files are read and written.
    pub(crate) fn holding(&self) -> Holding {
        Holding { tensor: self.tensor, banks: self.banks }
    }
}

impl Architecture {
    /// What a Hugging Face folder calls the tensor of a role; `None` where there is no such tensor
    /// or no such form.
    pub fn hugging_face_tensor(&self, role: TensorRole) -> Option<String> {
        self.hugging_face.as_ref().and_then(|form| (form.tensor)(role))
    }

    /// What a model has beside what GGUF files of this architecture can say, by name; `None` where
    /// they say all of it, or nobody writes such files.
    pub fn beyond_gguf(&self, config: &ArchConfig) -> Option<&'static str> {
        let form = self.gguf.as_ref()?;
        let addition = config.additions.beyond(&(form.held)(config));
        addition.or_else(|| (!(form.holds)(config)).then_some("experts of a kind that none says"))
    }

    /// The tensors of a GGUF file of this architecture, each with the roles that stand in it, in
    /// their order; empty where nobody writes such files.
    ///
    /// # Errors
    /// A role that the architecture lacks.
    pub fn gguf_tensors(
        &self,
        path: &Path,
        settings: &ArchConfig,
    ) -> Result<Vec<(String, Vec<TensorRole>)>> {
        let Some(form) = &self.gguf else { return Ok(Vec::new()) };
        let all = crate::layout::tensors(path, self.name, settings, form.holding());
        all.map(|tensor| {
            let StoredTensor { name, pieces, .. } = tensor?;
            Ok((name, pieces.into_iter().map(|(role, _)| role).collect()))
        })
        .collect()
    }

    /// What a GGUF file calls the tensor of a role; `None` where there is no such tensor or no such
    /// form.
    pub fn gguf_tensor(&self, role: TensorRole) -> Option<String> {
        self.gguf.as_ref().and_then(|form| (form.tensor)(role))
    }
}
