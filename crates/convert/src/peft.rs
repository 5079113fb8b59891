//! Adapters of other programs over a model: a folder as PEFT writes it, put on the weights that its
//! names mean.
//!
//! A matrix of others is gathered from the parameters of ours in which it stands, changed by the
//! adapter's formula, and put back; so any adapter fits any architecture and any way in which files
//! hold experts. Weights that no adapter changes are shared with the base.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::hf::AllTensors;
use formats::peft::{AdapterFolder, Affine, Placed, PlacedAdapters};
use formats::{ArchConfig, Architecture, TensorRole, architectures};
use model::adapters::Relaxation;
use model::params::{ParamPlace, ParamSpec};
use model::{MlpConfig, Model, ModelConfig, Sharing, table};
use ops::Weight;

use crate::ConvertError;
use crate::error::{beyond_in, refused_in};
use crate::roles::{roles, settings_of};

const OTHER_BASE: &str = "choose the base that the adapter was trained on";

/// A model with the adapters of a folder in its weights.
#[derive(Debug)]
pub struct AdaptedModel {
    /// The adapted model; what no adapter changes it shares with the base.
    pub model: Arc<Model>,
    placed: PlacedAdapters,
    tensors: AllTensors,
    /// The weights before any adapter was added.
    before: Weights,
}

/// Weights of ours by the roles that others give them.
#[derive(Debug)]
struct Weights {
    base: BTreeMap<String, Arc<Weight>>,
    /// Values that are no longer those of the base.
    changed: BTreeMap<String, Vec<f32>>,
    /// By role the parameter, the place of its first number there, and how many it has.
    places: BTreeMap<TensorRole, (String, usize, usize)>,
}

impl Weights {
    fn of(base: &Model, config: &ModelConfig, settings: &ArchConfig) -> Result<Self, ConvertError> {
        let mut weights = BTreeMap::new();
        for (spec, weight) in base.weights() {
            weights.insert(spec.name.clone(), weight.clone());
        }
        let mut places = BTreeMap::new();
        for spec in table::specs(config, &config.check()?) {
            let mut at = 0;
            for role in roles(&spec, settings).unwrap_or_default() {
                let count = role.shape(settings).iter().product();
                places.insert(role, (spec.name.clone(), at, count));
                at += count;
            }
            if spec.place == ParamPlace::Head && !weights.contains_key(&spec.name) {
                // A head that is no longer the embedding begins as its copy.
                let embed = ParamPlace::Embed.to_string();
                weights.extend(weights.get(&embed).cloned().map(|weight| (spec.name, weight)));
            }
        }
        Ok(Self { base: weights, changed: BTreeMap::new(), places })
    }

    /// The numbers of a role; zeros of a bias that the base has not.
    fn role(&self, role: TensorRole) -> Vec<f32> {
        let Some((name, at, count)) = self.places.get(&role) else { return Vec::new() };
        let range = *at..at + count;
        if let Some(values) = self.changed.get(name) {
            return values[range].to_vec();
        }
        self.base.get(name).map_or_else(|| vec![0.0; *count], |w| w.values()[range].to_vec())
    }

    fn put(&mut self, role: TensorRole, values: &[f32], lengths: &BTreeMap<String, usize>) {
        let Some((name, at, count)) = self.places.get(&role) else { return };
        let length = lengths.get(name).copied().unwrap_or(at + count);
        let whole = self.changed.entry(name.clone()).or_insert_with(|| {
            self.base.get(name).map_or_else(|| vec![0.0; length], |weight| weight.read())
        });
        whole[*at..at + count].copy_from_slice(values);
    }
}

/// `base` with the adapters of the folder at `path`; `architecture` is what the base was imported
/// as, where it was.
///
/// # Errors
/// A folder that is damaged or asks for what is not computed here; a base that the adapters do not
/// fit, or that no other program knows.
pub fn adapted_model(
    base: &Model,
    architecture: Option<&str>,
    path: &Path,
) -> Result<AdaptedModel, ConvertError> {
    let folder = AdapterFolder::open(path)?;
    let mut config = known(base.config(), path)?;
    let architecture = architecture_of(&config, architecture, path)?;
    untie(&mut config, architecture, &folder)?;
    let mut tensors = tensors_of(architecture, &config, path)?;
    let mut placed = folder.over(&tensors)?;
    if placed.adapters.iter().any(lacks_bias) {
        config.attention.bias = true;
        config.attention.output_bias = true;
        if let MlpConfig::Dense(mlp) = &mut config.mlp {
            mlp.bias = true;
        }
        tensors = tensors_of(architecture, &config, path)?;
        placed = folder.over(&tensors)?;
    }
    if let Some(adapter) = placed.adapters.iter().find(|adapter| lacks_bias(adapter)) {
        let expected = "a module that can have a bias, as the adapter adds to its output";
        let field = format!("module {}", adapter.module);
        return beyond_in(path, &field, expected, "one that has none", OTHER_BASE);
    }
    let mut weights = Weights::of(base, &config, &settings_of(&config))?;
    let table = table::specs(&config, &config.check()?);
    let lengths = table.iter().map(|spec| (spec.name.clone(), spec.count())).collect();
    for replaced in &placed.replaced {
        for (role, values) in tensors.scatter(&replaced.tensor, &replaced.values) {
            weights.put(role, &values, &lengths);
        }
    }
    let changed = weights.changed.clone();
    for adapter in &placed.adapters {
        let mut merged = affine(adapter, &tensors, |role| weights.role(role));
        adapter.change.merge(&mut merged);
        let Affine { weight, bias, .. } = merged;
        let weight = oriented(adapter, &weight, false);
        let named = [(Some(&adapter.weight), Some(weight)), (adapter.bias.as_ref(), bias)];
        for (name, values) in named.into_iter().filter_map(|(name, v)| Some((name?, v?))) {
            let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
            if let Some(place) = values.iter().position(|x| !x.is_finite()) {
                let field = format!("module {}: merged tensor {name}[{place}]", adapter.module);
                let next = "use an undamaged copy of the adapter";
                return refused_in(path, &field, "a finite number", values[place], next);
            }
            for (role, values) in tensors.scatter(name, &values) {
                weights.put(role, &values, &lengths);
            }
        }
    }
    let model = Model::sharing(&config, |spec| Ok::<_, ConvertError>(weight_of(&weights, spec)))?;
    let before = Weights { changed, ..weights };
    Ok(AdaptedModel { model: Arc::new(model), placed, tensors, before })
}

/// Whether an adapter adds to an output that has no bias.
fn lacks_bias(adapter: &Placed) -> bool {
    adapter.change.needs_bias() && adapter.bias.is_none()
}

/// The tensors of a model by the names that others give them.
pub(crate) fn tensors_of(
    architecture: &'static Architecture,
    config: &ModelConfig,
    path: &Path,
) -> Result<AllTensors, ConvertError> {
    let tensors = AllTensors::of(architecture, &settings_of(config), path)?;
    tensors.map_or_else(|| no_names(path, architecture.name), Ok)
}

/// A parameter of the adapted model: that of the base itself where nothing changed it.
fn weight_of(weights: &Weights, spec: &ParamSpec) -> Arc<Weight> {
    let values = match (weights.changed.get(&spec.name), weights.base.get(&spec.name)) {
        (Some(values), _) => values.clone(),
        (None, Some(weight)) => return weight.clone(),
        (None, None) => vec![0.0; spec.count()],
    };
    Arc::new(Weight::new(values, spec.shape.0, spec.shape.1))
}

/// The config of a base that other programs know.
fn known(config: &ModelConfig, path: &Path) -> Result<ModelConfig, ConvertError> {
    if config.sharing != Sharing::None || !matches!(config.relax, Relaxation::None(_)) {
        let expected = "a base whose layers are used once and have no adapters of Lathe's own, as \
                        other programs know it";
        let found = "shared layers, or adapters in the base";
        return beyond_in(path, "base", expected, found, OTHER_BASE);
    }
    Ok(config.clone())
}

pub(crate) fn architecture_of(
    config: &ModelConfig,
    name: Option<&str>,
    path: &Path,
) -> Result<&'static Architecture, ConvertError> {
    let settings = settings_of(config);
    let named = architectures::ALL.iter().copied().find(|member| Some(member.name) == name);
    let found = named.or_else(|| Architecture::that_holds(&settings, false, None));
    found.map_or_else(|| no_names(path, "none of other programs"), Ok)
}

fn no_names<T>(path: &Path, found: &str) -> Result<T, ConvertError> {
    let expected = "an architecture whose weights have names in Hugging Face folders";
    beyond_in(path, "base", expected, found, OTHER_BASE)
}

/// Gives the head a matrix of its own where embedding and head share one and the adapter changes
/// one of them: the library leaves the other as it is.
fn untie(
    config: &mut ModelConfig,
    architecture: &'static Architecture,
    folder: &AdapterFolder,
) -> Result<(), ConvertError> {
    if !config.tie_embeddings {
        return Ok(());
    }
    let roles = [TensorRole::Embed, TensorRole::Head];
    let names = roles.map(|role| architecture.hugging_face_tensor(role).unwrap_or_default());
    if names.iter().any(|name| folder.names(name)) {
        if folder.keeps_tied() {
            let expected = "false: one matrix for both is not adapted here";
            let next = "save the adapter with two matrices";
            return beyond_in(folder.path(), "ensure_weight_tying", expected, "true", next);
        }
        config.tie_embeddings = false;
    }
    Ok(())
}

/// What an adapter stands on, in double precision.
fn affine(
    adapter: &Placed,
    tensors: &AllTensors,
    values: impl Fn(TensorRole) -> Vec<f32>,
) -> Affine {
    let weight = oriented(adapter, &gathered(tensors, &adapter.weight, &values), true);
    let bias = adapter.bias.as_deref().map(|bias| gathered(tensors, bias, &values));
    let (matrices, out, into) = adapter.shape;
    Affine { matrices, out, into, weight, bias }
}

/// A tensor of others out of the numbers of its roles, in double precision.
fn gathered(tensors: &AllTensors, name: &str, values: impl Fn(TensorRole) -> Vec<f32>) -> Vec<f64> {
    let found = tensors.gather(name, |role| Ok::<_, std::convert::Infallible>(values(role)));
    found.unwrap_or_default().into_iter().map(f64::from).collect()
}

/// A tensor `[matrices, in, out]` as `[matrices, out, in]` where it is held so, or back.
fn oriented(adapter: &Placed, values: &[f64], read: bool) -> Vec<f64> {
    let (_, out, into) = adapter.shape;
    if !adapter.transposed {
        return values.to_vec();
    }
    let (rows, columns) = if read { (into, out) } else { (out, into) };
    let mut turned = Vec::with_capacity(values.len());
    for matrix in values.chunks_exact((rows * columns).max(1)) {
        for column in 0..columns {
            turned.extend((0..rows).map(|row| matrix[row * columns + column]));
        }
    }
    turned
}

impl AdaptedModel {
    /// A tensor of the adapted model by the name that others give it; `None` where it has none.
    pub fn tensor(&self, name: &str) -> Option<Vec<f32>> {
        self.tensors.shape(name)?;
        let found = gathered(&self.tensors, name, |role| self.role(role, |w| Some(w.read())));
        Some(found.into_iter().map(|x| x as f32).collect())
    }

    fn role(&self, role: TensorRole, read: impl Fn(&Weight) -> Option<Vec<f32>>) -> Vec<f32> {
        let Some((name, at, count)) = self.before.places.get(&role) else { return Vec::new() };
        let found = self.model.weights().iter().find(|(spec, _)| spec.name == *name);
        let values = found.and_then(|(_, weight)| read(weight));
        values.map_or_else(|| vec![0.0; *count], |values| values[*at..at + count].to_vec())
    }

    fn gradient(&self, role: TensorRole) -> Vec<f32> {
        self.role(role, Weight::read_gradient)
    }

    /// The gradients of the folder's tensors by their names there, from those that the adapted
    /// model has collected.
    pub fn gradients(&self) -> BTreeMap<String, Vec<f64>> {
        let mut found = BTreeMap::new();
        for replaced in &self.placed.replaced {
            let gradient = gathered(&self.tensors, &replaced.tensor, |role| self.gradient(role));
            found.insert(replaced.key.clone(), gradient);
        }
        for adapter in &self.placed.adapters {
            let base = affine(adapter, &self.tensors, |role| self.before.role(role));
            let gradient = affine(adapter, &self.tensors, |role| self.gradient(role));
            for (leaf, values) in adapter.change.gradients(&base, &gradient) {
                if let Some(key) = adapter.keys.get(leaf) {
                    found.insert(key.clone(), values);
                }
            }
        }
        found
    }
}

/// The folder of the base that an adapter names, from the adapter's own folder on.
///
/// # Errors
/// As [`AdapterFolder::open`]; no name.
pub fn base_of_adapter(path: &Path) -> Result<PathBuf, ConvertError> {
    let folder = AdapterFolder::open(path)?;
    let Some(base) = folder.base() else {
        let next = "name the base";
        return refused_in(path, "base_model_name_or_path", "a folder", "nothing", next);
    };
    Ok(path.join(base))
}
