//! Importance of the input columns of matrices: by our weights, and by the names of llama.cpp's
//! files.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::quote;
use formats::TensorRole;
use formats::gguf::{Imatrix, ImatrixEntry};
use model::ModelConfig;
use model::params::{ParamPlace, ParamSpec};
use model::table::specs;
use ops::{Format, QuantError, Quantized, Weight};
use train::Stored;

use crate::ConvertError;
use crate::error::{must_be_free, refused_in};
use crate::export::gguf_form;
use crate::roles::roles;

/// What was seen of the inputs of one matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ColumnSums {
    /// Rows that met it.
    pub rows: u64,
    /// The sum of `x_j^2` over these for each input column; empty without rows.
    pub squares: Vec<f64>,
}

/// What was seen of the inputs of a model's matrices, by the name of the weight in the parameter
/// table: one entry, or one for each matrix of a bank.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    /// By the name of the weight, as checkpoints have it.
    pub weights: BTreeMap<String, Vec<ColumnSums>>,
}

/// How many matrices stand one below the other in a weight: the experts of a bank, or 1.
pub fn bank_size(config: &ModelConfig, spec: &ParamSpec) -> usize {
    match spec.place {
        ParamPlace::Layer { stored, part } if part.name().starts_with("experts_") => {
            config.mlp.settings().computing_experts(stored).max(1)
        }
        _ => 1,
    }
}

/// Where the numbers of a matrix of a file stand here: weights, and the matrix in each. Those of
/// one matrix have the same inputs, as query, key and value have.
type Places = Vec<(String, usize)>;

/// Which matrices of ours stand in which tensor of a file of importance.
#[derive(Clone, Debug)]
pub struct ImportanceNames {
    /// Weights of layers with their matrices and input columns, by name.
    ours: BTreeMap<String, (usize, usize)>,
    /// Tensors of the file with the places of their matrices. A matrix of ours may stand in
    /// several, as gate and up do in one of ours.
    theirs: Vec<(String, Vec<Places>)>,
}

impl ImportanceNames {
    /// The names that llama.cpp gives a model which GGUF files hold, and those of the parameter
    /// table for others.
    ///
    /// # Errors
    /// A config that no model has.
    pub fn of(stored: &Stored) -> Result<Self, ConvertError> {
        let config = stored.model.config();
        let table = specs(config, &config.check()?);
        let of_layers = table
            .iter()
            .filter(|spec| matches!(spec.place, ParamPlace::Layer { .. }) && spec.can_be_rounded());
        let ours: BTreeMap<String, (usize, usize)> = of_layers
            .map(|spec| (spec.name.clone(), (bank_size(config, spec), spec.shape.1)))
            .collect();
        let theirs = match gguf_form(stored) {
            Some((settings, architecture)) => {
                let mut places: BTreeMap<TensorRole, (String, usize)> = BTreeMap::new();
                for spec in table.iter().filter(|spec| ours.contains_key(&spec.name)) {
                    let (count, all) =
                        (bank_size(config, spec), roles(spec, &settings).unwrap_or_default());
                    let each = (all.len() / count).max(1);
                    for (i, role) in all.into_iter().enumerate() {
                        places.insert(role, (spec.name.clone(), i / each));
                    }
                }
                let tensors = architecture.gguf_tensors(Path::new("an imatrix"), &settings)?;
                tensors
                    .into_iter()
                    .filter_map(|(name, roles)| named(name, &roles, &places))
                    .collect()
            }
            None => {
                let own = ours.iter().map(|(name, (count, _))| {
                    (name.clone(), (0..*count).map(|i| vec![(name.clone(), i)]).collect())
                });
                own.collect()
            }
        };
        Ok(Self { ours, theirs })
    }

    /// Writes `importance` as the file `path`; `dataset` names the text, of which `chunks` windows
    /// of `chunk` rows were run. Tensors of which no matrix met a row are left out.
    ///
    /// # Errors
    /// A path that is taken, or what the file system refuses.
    pub fn write(
        &self,
        importance: &Importance,
        path: &Path,
        dataset: &str,
        (chunks, chunk): (u32, u32),
    ) -> Result<usize, ConvertError> {
        must_be_free(path)?;
        let mut made = Imatrix {
            datasets: vec![dataset.to_owned()],
            chunk_count: chunks,
            chunk_size: chunk,
            entries: BTreeMap::new(),
        };
        for (tensor, matrices) in &self.theirs {
            let (mut counts, mut sums) = (Vec::new(), Vec::new());
            for (weight, matrix) in matrices.iter().flat_map(|places| places.first()) {
                let found = importance.weights.get(weight).and_then(|all| all.get(*matrix));
                let found = found.cloned().unwrap_or_default();
                let d = self.ours.get(weight).map_or(0, |(_, d)| *d);
                counts.push(found.rows as f32);
                sums.extend(found.squares.iter().map(|sum| *sum as f32));
                sums.resize(counts.len() * d, 0.0);
            }
            if counts.iter().any(|count| *count > 0.0) {
                made.entries.insert(tensor.clone(), ImatrixEntry { counts, sums });
            }
        }
        made.write(path)?;
        Ok(made.entries.len())
    }

    /// Reads the file `path`, of this model or of llama.cpp's for it. Of a matrix that stands in
    /// several tensors, as the inputs of gate and up do, the first counts.
    ///
    /// # Errors
    /// A file that is none, a tensor that this model does not have, or one of other sizes.
    pub fn read(&self, path: &Path) -> Result<Importance, ConvertError> {
        const NEXT: &str = "measure this model with `lathe imatrix`, or llama-imatrix";
        let file = Imatrix::read(path)?;
        let mut made = Importance::default();
        if let Some(name) = file.entries.keys().find(|name| !self.knows(name)) {
            let expected = format!("tensors of this model, such as {}", self.some_name());
            return refused_in(path, "tensors", expected, quote(name), NEXT);
        }
        for (tensor, matrices) in &self.theirs {
            let Some(entry) = file.entries.get(tensor) else { continue };
            if entry.counts.len() != matrices.len() {
                let expected = format!("{} matrices", matrices.len());
                return refused_in(path, tensor, expected, entry.counts.len(), NEXT);
            }
            let found_d = entry.sums.len() / entry.counts.len();
            let places = matrices.iter().enumerate();
            for (i, (weight, matrix)) in places.flat_map(|(i, all)| all.iter().map(move |p| (i, p)))
            {
                let (count, d) = self.ours.get(weight).copied().unwrap_or_default();
                if found_d != d {
                    let expected = format!("{d} columns");
                    return refused_in(path, tensor, expected, found_d, NEXT);
                }
                let all = made.weights.entry(weight.clone()).or_default();
                all.resize(count, ColumnSums::default());
                if all[*matrix].squares.is_empty() && entry.counts[i] > 0.0 {
                    let squares = entry.sums[i * d..(i + 1) * d].iter().map(|sum| f64::from(*sum));
                    let rows = entry.counts[i] as u64;
                    all[*matrix] = ColumnSums { rows, squares: squares.collect() };
                }
            }
        }
        Ok(made)
    }

    /// Whether a tensor of this model has the name. llama-imatrix can be asked for the head too,
    /// which is not rounded by importance here.
    fn knows(&self, name: &str) -> bool {
        name == "output.weight" || self.theirs.iter().any(|(tensor, _)| tensor == name)
    }

    fn some_name(&self) -> &str {
        self.theirs.first().map_or("none", |(name, _)| name)
    }
}

/// The places of the matrices of a tensor with these roles; `None` for one of which a part is not
/// rounded here.
fn named(
    tensor: String,
    roles: &[TensorRole],
    places: &BTreeMap<TensorRole, (String, usize)>,
) -> Option<(String, Vec<Places>)> {
    let mut matrices: Vec<Places> = Vec::new();
    for role in roles {
        let place = places.get(role)?;
        match matrices.last_mut() {
            Some(last) if last.contains(place) => {}
            Some(last) if last[0].1 == place.1 => last.push(place.clone()),
            _ => matrices.push(vec![place.clone()]),
        }
    }
    (!matrices.is_empty()).then_some((tensor, matrices))
}

impl Importance {
    /// Rounds a weight of a model of `config` to `format` in the place of its values, errors
    /// counting as much as their columns do. Returns the matrices of it that no row met, which are
    /// rounded as everywhere, or `None` where nothing is known of the weight.
    ///
    /// # Errors
    /// A format that does not fit, or sums that are none.
    pub fn quantize(
        &self,
        config: &ModelConfig,
        spec: &ParamSpec,
        weight: &Weight,
        format: Format,
    ) -> Result<Option<Vec<usize>>, QuantError> {
        let Some(all) = self.weights.get(&spec.name) else {
            weight.quantize(format)?;
            return Ok(None);
        };
        let count = bank_size(config, spec);
        let means: Vec<Option<Vec<f32>>> = (0..count)
            .map(|i| all.get(i).filter(|sums| sums.rows > 0 && !sums.squares.is_empty()))
            .map(|sums| {
                sums.map(|sums| {
                    let mean = |sum: &f64| (sum / sums.rows as f64) as f32;
                    sums.squares.iter().map(mean).collect()
                })
            })
            .collect();
        let slices: Vec<Option<&[f32]>> = means.iter().map(|mean| mean.as_deref()).collect();
        weight.put_codes(Quantized::by_importance(format, &weight.read(), spec.shape, &slices)?)?;
        let unmet = means.iter().enumerate().filter(|(_, mean)| mean.is_none());
        Ok(Some(unmet.map(|(i, _)| i).collect()))
    }
}
