//! Adapters that a run of ours trained, as a folder that PEFT loads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use checkpoint::Disk;
use formats::TensorRole;
use formats::hf::AllTensors;
use formats::peft::{WrittenLeaf, write_adapters};
use model::adapters::{Relaxation, lora};
use model::params::{ParamPlace, ParamSpec, Part};
use model::{Sharing, pattern};
use ops::Weight;
use ops::formulas::{ENTRYWISE, IA3_VECTOR, KRONECKER, MISS_BLOCK, VERA_INNER, VERA_OUTER};
use serde_json::{Map, Value, json};
use train::Stored;

use crate::ConvertError;
use crate::error::refused;
use crate::peft::{architecture_of, tensors_of};
use crate::roles::{roles, settings_of};

/// The tensors of an adapter of ours by their names.
type Factors<'a> = BTreeMap<String, &'a Arc<Weight>>;

/// Writes the adapters of a checkpoint, of a kind that PEFT knows, as the folder `out`, for the
/// base that the run froze.
///
/// # Errors
/// Adapters of another kind or none, layers that are used more than once, a base that the run
/// trained, too, a matrix of ours that is part of one of theirs, or what the disk refuses.
pub fn export_adapters(stored: &Stored, out: &Path, disk: &dyn Disk) -> Result<(), ConvertError> {
    let config = stored.model.config();
    let mut settings = settings_for(&config.relax)?;
    if config.sharing != Sharing::None {
        let expected = "a model whose layers are used once, as other programs know it";
        let next = "unroll it by `lathe convert --sharing none`, which merges its adapters";
        return refused("the checkpoint: model.sharing", expected, "shared layers", next);
    }
    let from = config.relax.settings().first_token();
    if from > 0 {
        let expected = "0: PEFT's adapters change the rows of every token";
        return refused("the checkpoint: model.relax.from_token", expected, from, "keep ours");
    }
    base_must_be_frozen(stored)?;
    let origin = stored.origin.as_ref().and_then(|origin| origin["architecture"].as_str());
    let mut plain = config.clone();
    plain.relax = Relaxation::NONE;
    let architecture = architecture_of(&plain, origin, out)?;
    let tensors = tensors_of(architecture, &plain, out)?;
    let mut found: BTreeMap<(usize, Part), Factors<'_>> = BTreeMap::new();
    for (spec, weight) in stored.model.weights() {
        if let ParamPlace::Adapter { stored: layer, part, factor, .. } = &spec.place {
            found.entry((*layer, *part)).or_default().insert(factor.to_string(), weight);
        }
    }
    let shapes = found.keys().filter_map(|&at| Some(adapted(stored, at)?.0.shape));
    let (tallest, widest) = shapes.fold((0, 0), |most, (n, d)| (most.0.max(n), most.1.max(d)));
    let mut leaves = shared_leaves(&config.relax, tallest, widest);
    for (&(layer, part), factors) in &found {
        let Some((spec, base)) = adapted(stored, (layer, part)) else { continue };
        let of = roles(spec, &settings_of(&plain)).unwrap_or_default();
        for (module, rows) in modules_of(spec, &of, &tensors)? {
            let site = Site { spec, part, base: &base.values(), module, rows, widest };
            leaves.extend(site.leaves(&config.relax, factors, &mut settings)?);
        }
    }
    Ok(write_adapters(out, settings, &leaves, disk)?)
}

/// The settings of a kind of adapters, as PEFT names them.
fn settings_for(relax: &Relaxation) -> Result<Map<String, Value>, ConvertError> {
    let value = match relax {
        Relaxation::Lora(config) => lora_settings(config, false),
        Relaxation::Dora(config) => lora_settings(&config.0, true),
        Relaxation::Loha(config) => json!({
            "peft_type": "LOHA", "r": config.rank, "alpha": config.alpha, "init_weights": true,
            "rank_dropout": 0.0, "module_dropout": 0.0,
        }),
        Relaxation::Lokr(config) => json!({
            "peft_type": "LOKR", "r": config.rank, "alpha": config.alpha, "init_weights": true,
            "decompose_both": false, "rank_dropout": 0.0, "module_dropout": 0.0,
            "decompose_factor": if config.factor == 0 { json!(-1) } else { json!(config.factor) },
        }),
        Relaxation::Ia3(_) => json!({
            "peft_type": "IA3", "init_ia3_weights": true, "feedforward_modules": [],
        }),
        Relaxation::Vera(config) => json!({
            "peft_type": "VERA", "r": config.rank, "d_initial": config.initial,
            "projection_prng_key": config.projection_seed, "save_projection": true,
            "init_weights": true, "vera_dropout": 0.0,
        }),
        Relaxation::Miss(config) => json!({
            "peft_type": "MISS", "r": config.rank, "init_weights": true, "miss_dropout": 0.0,
            "mini_r": 1,
        }),
        other => {
            let expected =
                "adapters of a kind that PEFT knows: lora, dora, loha, lokr, ia3, miss or vera";
            let next = "train some: `[model.relax]` of a recipe";
            return refused("the checkpoint: model.relax", expected, other.kind(), next);
        }
    };
    Ok(value.as_object().cloned().unwrap_or_default())
}

/// The matrix of a layer that an adapter stands on.
fn adapted(stored: &Stored, (layer, part): (usize, Part)) -> Option<&(ParamSpec, Arc<Weight>)> {
    let place = ParamPlace::Layer { stored: layer, part };
    stored.model.weights().iter().find(|(spec, _)| spec.place == place)
}

/// Tensors that all modules share, the largest of which has so many outputs or inputs.
fn shared_leaves(relax: &Relaxation, tallest: usize, widest: usize) -> Vec<WrittenLeaf> {
    let Relaxation::Vera(config) = relax else { return Vec::new() };
    let both = [
        ("vera_A", vec![config.rank, widest], config.a(widest)),
        ("vera_B", vec![tallest, config.rank], config.b(tallest)),
    ];
    let leaves = both.into_iter().map(|(leaf, shape, values)| {
        let values = values.into_iter().map(|x| x as f32).collect();
        WrittenLeaf { module: String::new(), leaf, shape, values }
    });
    leaves.collect()
}

fn lora_settings(config: &lora::Config, dora: bool) -> Value {
    json!({
        "peft_type": "LORA", "bias": "none", "init_lora_weights": true, "lora_dropout": 0.0,
        "r": config.rank, "lora_alpha": config.alpha, "use_dora": dora,
        "use_rslora": config.rank_stabilized, "rank_pattern": {}, "alpha_pattern": {},
    })
}

/// Refuses adapters over a base that is not the one they began with.
fn base_must_be_frozen(stored: &Stored) -> Result<(), ConvertError> {
    let patterns = stored.recipe.as_ref().map_or(&[][..], |recipe| &recipe.train.freeze);
    let moves = |spec: &&ParamSpec| {
        let frozen = patterns.iter().any(|pattern| pattern::fits(pattern, &spec.name));
        !spec.place.is_relaxation() && !frozen
    };
    let mut specs = stored.model.weights().iter().map(|(spec, _)| spec);
    match specs.find(moves) {
        None => Ok(()),
        Some(spec) => {
            let expected =
                "a base that stays as it is, so that the adapters are all that was learned";
            let next = "train with train.freeze = [\"embed\", \"norm\", \"head\", \"layers.*\"]";
            refused(
                "the checkpoint: train.freeze",
                expected,
                format!("{} trained", spec.name),
                next,
            )
        }
    }
}

/// The modules that stand below each other in one matrix of ours, each with its rows there.
fn modules_of(
    spec: &ParamSpec,
    of: &[TensorRole],
    tensors: &AllTensors,
) -> Result<Vec<(String, Range<usize>)>, ConvertError> {
    let mut modules: Vec<(String, Range<usize>)> = Vec::new();
    for role in of {
        let name = tensors.names().find(|name| tensors.roles(name).contains(role));
        let name = name.unwrap_or_default();
        let whole = tensors.roles(name).iter().all(|role| of.contains(role));
        let module = name.strip_suffix(".weight").filter(|_| whole && !tensors.is_turned());
        let Some(module) = module else {
            let expected = "a matrix that is one or several whole modules of theirs";
            let next = "merge the adapters: `lathe convert --sharing none`";
            return refused(&spec.name, expected, format!("a part of {name}"), next);
        };
        let start = modules.last().map_or(0, |(_, rows)| rows.end);
        let end = start + tensors.rows(name, *role);
        match modules.last_mut().filter(|(last, _)| last == module) {
            Some((_, rows)) => rows.end = end,
            None => modules.push((module.to_owned(), start..end)),
        }
    }
    Ok(modules)
}

/// One module in a matrix of ours.
struct Site<'a> {
    spec: &'a ParamSpec,
    part: Part,
    /// The numbers of the whole matrix.
    base: &'a [f32],
    module: String,
    rows: Range<usize>,
    /// Most inputs of an adapted matrix.
    widest: usize,
}

impl Site<'_> {
    /// A tensor of the adapter of the whole matrix.
    fn factor(&self, factors: &Factors<'_>, name: &str) -> Result<Vec<f32>, ConvertError> {
        match factors.get(name) {
            Some(weight) => Ok(weight.read()),
            None => refused(&self.spec.name, format!("its {name}"), "none", "train it again"),
        }
    }

    fn leaf(&self, leaf: &'static str, shape: Vec<usize>, values: Vec<f32>) -> WrittenLeaf {
        WrittenLeaf { module: self.module.clone(), leaf, shape, values }
    }

    /// The module's rows of a tensor `[outputs, columns]`.
    fn rows_of(&self, values: &[f32], columns: usize) -> Vec<f32> {
        values[self.rows.start * columns..self.rows.end * columns].to_vec()
    }

    /// The lengths of the module's rows: those of the base times what was learned.
    fn lengths(&self, learned: &[f32]) -> Vec<f32> {
        let d = self.spec.shape.1;
        let mut lengths = Vec::new();
        for row in self.rows.clone() {
            let own = &self.base[row * d..(row + 1) * d];
            let square: f64 = own.iter().map(|x| f64::from(*x).powi(2)).sum();
            lengths.push((f64::from(learned[row]) * square.sqrt()) as f32);
        }
        lengths
    }

    /// What the module's adapter is in PEFT: it shares what stands next to the inputs with the
    /// other modules of the matrix, and has its rows of what stands next to the outputs.
    fn leaves(
        &self,
        relax: &Relaxation,
        factors: &Factors<'_>,
        settings: &mut Map<String, Value>,
    ) -> Result<Vec<WrittenLeaf>, ConvertError> {
        let ((n, d), count) = (self.spec.shape, self.rows.len());
        Ok(match relax {
            Relaxation::Lora(config) => self.pair(config, factors, settings)?,
            Relaxation::Dora(config) => {
                let mut leaves = self.pair(&config.0, factors, settings)?;
                let lengths = self.factor(factors, "length")?;
                let lengths = self.lengths(&lengths);
                leaves.push(self.leaf("lora_magnitude_vector", vec![count], lengths));
                leaves
            }
            Relaxation::Loha(config) => {
                let rank = config.rank;
                let mut leaves = Vec::new();
                for [a, b] in ENTRYWISE.as_chunks().0 {
                    let of_rows = self.rows_of(&self.factor(factors, a)?, rank);
                    leaves.push(self.leaf(a, vec![count, rank], of_rows));
                    leaves.push(self.leaf(b, vec![rank, d], self.factor(factors, b)?));
                }
                leaves
            }
            Relaxation::Lokr(_) => {
                self.must_be_one_module("a Kronecker product does not fall into modules")?;
                let mut leaves = Vec::new();
                for name in KRONECKER.into_iter().flatten() {
                    if let Some(weight) = factors.get(name) {
                        let (rows, columns) = weight.shape();
                        leaves.push(self.leaf(name, vec![rows, columns], weight.read()));
                    }
                }
                leaves
            }
            Relaxation::Ia3(config) => {
                let vector = self.factor(factors, IA3_VECTOR)?;
                if !config.inputs.contains(&self.part) {
                    return Ok(vec![self.leaf(
                        IA3_VECTOR,
                        vec![count, 1],
                        self.rows_of(&vector, 1),
                    )]);
                }
                if let Some(Value::Array(modules)) = settings.get_mut("feedforward_modules") {
                    modules.push(self.module.clone().into());
                }
                vec![self.leaf(IA3_VECTOR, vec![1, d], vector)]
            }
            Relaxation::Vera(config) => {
                self.must_be_one_module("each of theirs takes the first rows of B")?;
                let outer = self.factor(factors, VERA_OUTER)?;
                // In the scale of the A that all share, and not in multiples of what it began with.
                let scale = config.initial * (self.widest as f64 / d as f64).sqrt();
                let inner = self.factor(factors, VERA_INNER)?.into_iter();
                let inner = inner.map(|x| (f64::from(x) * scale) as f32).collect();
                vec![
                    self.leaf(VERA_OUTER, vec![count], outer),
                    self.leaf(VERA_INNER, vec![config.rank], inner),
                ]
            }
            Relaxation::Miss(config) => {
                let block = self.factor(factors, MISS_BLOCK)?;
                let rows = block.chunks_exact(n);
                let own = rows.flat_map(|row| &row[self.rows.clone()]).copied().collect();
                vec![self.leaf(MISS_BLOCK, vec![config.rank, count], own)]
            }
            _ => Vec::new(),
        })
    }

    /// Refuses a matrix of ours that is several modules of theirs, for this reason.
    fn must_be_one_module(&self, why: &str) -> Result<(), ConvertError> {
        if self.rows.len() == self.spec.shape.0 {
            return Ok(());
        }
        let expected = format!("matrices that are one module of theirs, as {why}");
        let next = "train query, output and down alone, or merge the adapters: \
                    `lathe convert --sharing none`";
        refused("the checkpoint: relax.parts", expected, self.part.name(), next)
    }

    /// A and B, with the module's own rank and alpha in the settings where they differ.
    fn pair(
        &self,
        config: &lora::Config,
        factors: &Factors<'_>,
        settings: &mut Map<String, Value>,
    ) -> Result<Vec<WrittenLeaf>, ConvertError> {
        let (name, d) = (&self.spec.name, self.spec.shape.1);
        let (rank, alpha) = (config.rank_of(name), config.alpha_of(name));
        let own = [
            ("rank_pattern", (rank != config.rank).then(|| json!(rank))),
            ("alpha_pattern", (alpha != config.alpha).then(|| json!(alpha))),
        ];
        for (key, value) in own {
            if let (Some(Value::Object(table)), Some(value)) = (settings.get_mut(key), value) {
                table.insert(self.module.clone(), value);
            }
        }
        let b = self.rows_of(&self.factor(factors, "up")?, rank);
        Ok(vec![
            self.leaf("lora_A.weight", vec![rank, d], self.factor(factors, "down")?),
            self.leaf("lora_B.weight", vec![self.rows.len(), rank], b),
        ])
    }
}
