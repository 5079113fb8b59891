//! A folder of adapters: which tensors are whose, and what they stand on in the base.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use checkpoint::{TensorFile, open_safetensors};
use kernels::adapted::AdapterChange;

use super::kinds::{self, Kind, Site};
use super::leaves::Leaves;
use super::settings::Settings;
use crate::error::{list_quoted, quote};
use crate::hf::AllTensors;
use crate::{FormatError, LayerRole, Result, TensorRole};

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const TENSORS: &str = "adapter_model.safetensors";
/// Ahead of the path of a module.
pub(super) const PREFIX: &str = "base_model.model.";
/// Ahead of what all modules share.
pub(super) const SHARED_PREFIX: &str = "base_model.";
/// Between a module and what it wraps.
const WRAPPED: &str = ".base_layer";

/// Whether there is a folder of adapters at `path`.
pub fn is_adapter(path: &Path) -> bool {
    path.join(CONFIG).symlink_metadata().is_ok()
}

/// A folder of adapters whose tensors are sorted by module.
pub struct AdapterFolder {
    path: PathBuf,
    kind: &'static Kind,
    settings: Settings,
    file: TensorFile,
    /// By path of the module, the names of its tensors by their ends.
    modules: BTreeMap<String, BTreeMap<&'static str, String>>,
    shared: BTreeMap<&'static str, String>,
    /// Tensors of the base that are replaced, by their names there: the names in the file.
    replaced: BTreeMap<String, String>,
}

/// The adapters of a folder on the tensors of a base.
#[derive(Debug)]
pub struct PlacedAdapters {
    /// Tensors of the base that are replaced, with all their numbers, before any adapter is added.
    pub replaced: Vec<Replacement>,
    /// The adapters, each over one tensor.
    pub adapters: Vec<Placed>,
}

/// A tensor of the base that is replaced.
#[derive(Debug)]
pub struct Replacement {
    /// Its name in the base.
    pub tensor: String,
    /// Its name in the file.
    pub key: String,
    /// Its numbers.
    pub values: Vec<f32>,
}

/// An adapter over a tensor of the base.
#[derive(Debug)]
pub struct Placed {
    /// The path of its module.
    pub module: String,
    /// The name of the matrix, or of the matrices of all experts.
    pub weight: String,
    /// The name of the bias beside it, where the base has one.
    pub bias: Option<String>,
    /// How many matrices there are, outputs and inputs of each.
    pub shape: (usize, usize, usize),
    /// Whether the tensor holds inputs by outputs.
    pub transposed: bool,
    /// Its formula and numbers.
    pub change: Box<dyn AdapterChange>,
    /// The names of its tensors in the file by their ends.
    pub keys: BTreeMap<&'static str, String>,
}

impl AdapterFolder {
    /// Reads the settings, and the names of the tensors.
    ///
    /// # Errors
    /// Files that are missing or damaged, a kind or a setting that is not computed here, tensors
    /// that no kind of this name has.
    pub fn open(path: &Path) -> Result<Self> {
        let settings = Settings::read(&path.join(CONFIG))?;
        let kind = kind_of(&settings)?;
        settings.only(kind.settings)?;
        (kind.check)(&settings)?;
        let file = open_safetensors(&path.join(TENSORS))?;
        let mut folder = Self {
            path: path.to_path_buf(),
            kind,
            settings,
            modules: BTreeMap::new(),
            shared: BTreeMap::new(),
            replaced: BTreeMap::new(),
            file,
        };
        folder.sort()?;
        Ok(folder)
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What PEFT calls the kind.
    pub fn kind(&self) -> &'static str {
        self.kind.name
    }

    /// What the config says that the base is, where it says so.
    pub fn base(&self) -> Option<&str> {
        self.settings.text("base_model_name_or_path")
    }

    /// Whether a matrix that embedding and head share is to stay shared.
    pub fn keeps_tied(&self) -> bool {
        self.settings.flag("ensure_weight_tying").unwrap_or(false)
    }

    /// Whether it changes the tensor `name` of the base.
    pub fn names(&self, name: &str) -> bool {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        self.replaced.contains_key(name) || self.modules.contains_key(module)
    }

    fn sort(&mut self) -> Result<()> {
        let keys: Vec<String> = self.file.names().map(str::to_owned).collect();
        for key in keys {
            let unknown = || {
                let expected = format!("tensors of {} adapters behind {PREFIX}", self.kind.name);
                let field = format!("tensor {}", quote(&key));
                FormatError::damaged(self.file.path(), field, expected, "another name")
            };
            let shared = key.strip_prefix(SHARED_PREFIX);
            let shared = self.kind.shared.iter().find(|leaf| shared == Some(**leaf));
            if let Some(leaf) = shared {
                self.shared.insert(leaf, key);
                continue;
            }
            let path = key.strip_prefix(PREFIX).ok_or_else(unknown)?;
            let is_of = |leaf: &&&str| {
                path.strip_suffix(**leaf).is_some_and(|module| module.ends_with('.'))
            };
            if let Some(leaf) = self.kind.leaves.iter().find(is_of) {
                let module = path[..path.len() - leaf.len() - 1].to_owned();
                self.modules.entry(module).or_default().insert(leaf, key);
                continue;
            }
            let plain = path.replace(WRAPPED, "");
            if let Some(other) = self.replaced.insert(plain, key.clone()) {
                let field = format!("tensor {}", quote(&key));
                let found = format!("{} beside it", quote(&other));
                return Err(FormatError::damaged(self.file.path(), field, "it once", found));
            }
        }
        Ok(())
    }

    /// The adapters on a base with these tensors.
    ///
    /// # Errors
    /// Tensors for modules that the base lacks, or that the config does not name; modules of the
    /// config without tensors; shapes that do not fit the base or the config.
    pub fn over(&self, base: &AllTensors) -> Result<PlacedAdapters> {
        let mut placed = PlacedAdapters { replaced: Vec::new(), adapters: Vec::new() };
        for (tensor, key) in &self.replaced {
            let shape = self.file.shape(key).unwrap_or_default();
            let Some(expected) = base.shape(tensor) else {
                let known = "the name of a tensor of the base, or of an adapter of this kind";
                let field = format!("tensor {}", quote(key));
                return Err(FormatError::damaged(self.file.path(), field, known, "neither"));
            };
            if shape != expected {
                let field = format!("tensor {}: shape", quote(key));
                let expected = format!("{expected:?}, as in the base");
                let found = format!("{shape:?}");
                return Err(FormatError::damaged(self.file.path(), field, expected, found));
            }
            let (tensor, key) = (tensor.clone(), key.clone());
            let values = self.file.read_f32(&key)?;
            placed.replaced.push(Replacement { tensor, key, values });
        }
        for (module, names) in &self.modules {
            placed.adapters.push(self.place(module, names, base)?);
        }
        self.must_have_all(base)?;
        if placed.adapters.is_empty() && placed.replaced.is_empty() {
            let expected = "tensors of adapters";
            return Err(FormatError::damaged(self.file.path(), "tensors", expected, "none"));
        }
        Ok(placed)
    }

    fn place(
        &self,
        module: &str,
        names: &BTreeMap<&'static str, String>,
        base: &AllTensors,
    ) -> Result<Placed> {
        let (weight, key) = self.tensor_of(module, names, base)?;
        let shape = base.shape(&weight).unwrap_or_default();
        let transposed = base.is_transposed(&weight);
        let embedding = base.roles(&weight) == [TensorRole::Embed];
        let (matrices, out, into) = match *shape {
            [out, into] => (1, out, into),
            [matrices, into, out] if transposed => (matrices, out, into),
            [matrices, out, into] => (matrices, out, into),
            _ => (0, 0, 0),
        };
        if matrices == 0 || (!self.kind.wide && (matrices > 1 || embedding)) {
            let field = format!("module {module}");
            let expected = "a module that is one matrix";
            let found = format!("{} {shape:?}", quote(&weight));
            return Err(FormatError::unsupported(self.file.path(), field, expected, found));
        }
        let site = Site { module, key: &key, matrices, out, into, embedding };
        let mut all = names.clone();
        all.extend(self.shared.clone());
        let leaves = Leaves { file: &self.file, module, names: all };
        let change = (self.kind.build)(&self.settings, &leaves, &site)?;
        let bias = weight.strip_suffix(".weight").map(|module| format!("{module}.bias"));
        let bias = bias.filter(|bias| base.shape(bias).is_some());
        Ok(Placed {
            module: module.to_owned(),
            weight,
            bias,
            shape: (matrices, out, into),
            transposed,
            change,
            keys: names.clone(),
        })
    }

    /// The tensor that a module's adapter stands on, and what patterns are held against.
    fn tensor_of(
        &self,
        module: &str,
        names: &BTreeMap<&'static str, String>,
        base: &AllTensors,
    ) -> Result<(String, String)> {
        let path = module.replace(WRAPPED, "");
        let parameters = self.parameters_of(&path, base);
        if parameters.is_empty() {
            let weight = format!("{path}.weight");
            if base.shape(&weight).is_none() {
                let field = format!("module {}", quote(module));
                let expected = "one of the base";
                let found = "none of this path there";
                return Err(FormatError::damaged(self.file.path(), field, expected, found));
            }
            if self.settings.targets(&path) == Some(false) {
                let field = format!("module {}", quote(module));
                let expected = format!("one that target_modules of {CONFIG} names");
                let found = "tensors of another";
                return Err(FormatError::damaged(self.file.path(), field, expected, found));
            }
            return Ok((weight, path));
        }
        // Wrappers lie around each other in the order of the base's parameters, with the first
        // innermost.
        let depth = module.matches(WRAPPED).count();
        let mut order: Vec<&String> = parameters.iter().rev().collect();
        if let Some(a) = names.get("lora_A.weight").and_then(|name| self.file.shape(name)) {
            let fits = |name: &String| {
                let (shape, transposed) = (base.shape(name), base.is_transposed(name));
                let into = shape.and_then(|s| s.iter().rev().nth(usize::from(transposed)));
                a.get(1) == into
            };
            let is = order.get(depth).is_some_and(|name| fits(name));
            let other = order.iter().rev().nth(depth).is_some_and(|name| fits(name));
            if !is && other {
                order.reverse();
            }
        }
        let Some(tensor) = order.get(depth) else {
            let field = format!("module {}", quote(module));
            let expected = format!("wrappers of {} parameters", parameters.len());
            let found = format!("{}", depth + 1);
            return Err(FormatError::damaged(self.file.path(), field, expected, found));
        };
        Ok(((*tensor).clone(), (*tensor).clone()))
    }

    /// The tensors of the base that the config names as parameters of this module, in the order in
    /// which the library registers them.
    fn parameters_of(&self, path: &str, base: &AllTensors) -> Vec<String> {
        let named = self.settings.parameters_of(path);
        let mut tensors: Vec<String> = named.iter().map(|name| format!("{path}.{name}")).collect();
        tensors.retain(|tensor| base.shape(tensor).is_some());
        tensors.sort_by_key(|tensor| base.roles(tensor).into_iter().min());
        tensors.dedup();
        tensors
    }

    /// Refuses modules that the config gives adapters to or replaces, and that have no tensors
    /// here.
    fn must_have_all(&self, base: &AllTensors) -> Result<()> {
        for name in base.names() {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            if self.settings.saves(module) && !self.replaced.contains_key(name) {
                let field = format!("tensor {}", quote(name));
                let expected = format!("it, as modules_to_save of {CONFIG} names its module");
                return Err(FormatError::damaged(self.file.path(), field, expected, "none"));
            }
            let roles = base.roles(name);
            // Single experts are no modules of the library's, and routers not in every version.
            let is_single = |role: &TensorRole| {
                matches!(role, TensorRole::Layer(_, role) if role.is_of_one_expert())
                    || matches!(role, TensorRole::Layer(_, LayerRole::Router))
            };
            let shape = base.shape(name).unwrap_or_default();
            if shape.len() != 2 || roles.iter().any(is_single) {
                continue;
            }
            if self.settings.targets(module) == Some(true) && !self.modules.contains_key(module) {
                let field = format!("tensors of {}", quote(module));
                let expected = format!("some, as target_modules of {CONFIG} names it");
                return Err(FormatError::damaged(self.file.path(), field, expected, "none"));
            }
        }
        Ok(())
    }
}

/// The kind that the settings name.
fn kind_of(settings: &Settings) -> Result<&'static Kind> {
    let found = settings.text("peft_type").unwrap_or_default();
    if let Some(kind) = kinds::ALL.iter().find(|kind| kind.name == found) {
        return Ok(kind);
    }
    let known = list_quoted(kinds::ALL.iter().map(|kind| kind.name));
    let why = kinds::REFUSED.iter().find(|(name, _)| *name == found);
    let expected = match why {
        Some((_, why)) => format!("{known}; {why}"),
        None => known,
    };
    Err(settings.object().unsupported("peft_type", expected))
}
