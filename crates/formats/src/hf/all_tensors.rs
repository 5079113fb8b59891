//! Every tensor that Hugging Face folders of an architecture may have, in whatever way they hold
//! their weights, as adapters name them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::architectures::HuggingFaceForm;
use crate::layout::{self, StoredTensor};
use crate::{ArchConfig, Architecture, Result, TensorRole, rotary};

/// The tensors of a model by name. Experts may be there twice, as matrices of their own and in the
/// banks that the library holds in memory.
#[derive(Debug)]
pub struct AllTensors {
    form: &'static HuggingFaceForm,
    settings: ArchConfig,
    tensors: BTreeMap<String, StoredTensor>,
}

impl AllTensors {
    /// Those of a model with these settings; `None` for an architecture without such folders.
    ///
    /// # Errors
    /// Weights that the architecture has no tensor for; `path` is for the message.
    pub fn of(
        architecture: &'static Architecture,
        settings: &ArchConfig,
        path: &Path,
    ) -> Result<Option<Self>> {
        let Some(form) = &architecture.hugging_face else { return Ok(None) };
        let mut tensors = BTreeMap::new();
        for holding in std::iter::once(form.holding()).chain(form.others.iter().copied()) {
            for tensor in layout::tensors(path, architecture.name, settings, holding) {
                let tensor = tensor?;
                tensors.entry(tensor.name.clone()).or_insert(tensor);
            }
        }
        Ok(Some(Self { form, settings: settings.clone(), tensors }))
    }

    /// The axes of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What stands in a tensor.
    pub fn roles(&self, name: &str) -> Vec<TensorRole> {
        let pieces = self.tensors.get(name).map_or(&[][..], |tensor| &tensor.pieces);
        pieces.iter().map(|(role, _)| *role).collect()
    }

    /// Rows of a role within a tensor.
    pub fn rows(&self, name: &str, role: TensorRole) -> usize {
        let pieces = self.tensors.get(name).map_or(&[][..], |tensor| &tensor.pieces);
        let piece = pieces.iter().find(|(of, _)| *of == role);
        piece.map_or(0, |(_, piece)| piece.size.0)
    }

    /// Whether rows of queries and keys stand in another order than ours.
    pub fn is_turned(&self) -> bool {
        self.form.neighbours_turn || self.settings.additions.latent.is_some()
    }

    /// Whether the last axis of a tensor of matrices counts outputs.
    pub fn is_transposed(&self, name: &str) -> bool {
        let Some(tensor) = self.tensors.get(name) else { return false };
        tensor
            .pieces
            .iter()
            .any(|(_, piece)| piece.size.1 > 1 && piece.column_step > piece.row_step)
    }

    /// The numbers of a tensor out of those of its roles.
    ///
    /// # Errors
    /// What `values` says.
    pub fn gather<E>(
        &self,
        name: &str,
        mut values: impl FnMut(TensorRole) -> std::result::Result<Vec<f32>, E>,
    ) -> std::result::Result<Vec<f32>, E> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(Vec::new()) };
        let mut whole = vec![0.0; tensor.shape.iter().product()];
        for (role, piece) in &tensor.pieces {
            let of_role = values(*role)?;
            let neighbours = self.form.neighbours_turn;
            let of_role = rotary::written_order(neighbours, *role, &self.settings, of_role);
            piece.put_into(&mut whole, &of_role);
        }
        Ok(whole)
    }

    /// The numbers of the roles out of those of their tensor.
    pub fn scatter(&self, name: &str, whole: &[f32]) -> Vec<(TensorRole, Vec<f32>)> {
        let pieces = self.tensors.get(name).map_or(&[][..], |tensor| &tensor.pieces);
        let mut found = Vec::new();
        for (role, piece) in pieces {
            let values = piece.out_of(whole[piece.span()].to_vec());
            let neighbours = self.form.neighbours_turn;
            let values = rotary::read_order(neighbours, *role, &self.settings, values);
            found.push((*role, values));
        }
        found
    }
}
