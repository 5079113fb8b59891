//! Several dense models of one shape become one with experts: attention, norms, embedding and head
//! of the first, and the MLPs of each as an expert of every layer (Branch-Train-MiX, Sukhbaatar et
//! al., 2024, arXiv 2403.07816, without its training). Rows of routers are what the first model
//! makes of prompts, so that a row goes to the experts whose prompts it resembles.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{Disk, NamedTensor};
use data::{SpecialTokens, Tokenizer};
use half::{bf16, f16};
use model::adapters::Relaxation;
use model::expert_routers::top_k;
use model::mlp::dense::{DOWN, GATE_UP};
use model::mlp::experts::{self, EXPERTS_DOWN, EXPERTS_GATE_UP, SHARED_DOWN, SHARED_GATE_UP};
use model::params::{ParamPlace, ParamSpec, Part, RouterSite};
use model::table::specs;
use model::{
    Address, ExpertRouterConfig, MlpConfig, Model, ModelConfig, Pass, PassCache, Probe,
    RouterConfig, RouterState, Rows, Rule, Sharing,
};
use ops::{Ops, Tensor2, read_rows};
use serde::Serialize;
use serde_json::json;
use train::{Made, Stored, write_model};

use crate::error::{must_be_free, refused, refused_in};
use crate::mergekit::{Branch, BranchDtype, BranchPlan, GateMode};
use crate::words::mlp_in_words;
use crate::{ConvertError, Costs};

/// What became of several models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BranchReport {
    /// The model that everything but the MLPs comes from.
    pub base: PathBuf,
    /// The models whose MLPs became experts, in order.
    pub experts: Vec<PathBuf>,
    /// The one whose MLP every row takes beside them.
    pub shared: Option<PathBuf>,
    /// What rows of routers are made of.
    pub gates: GateMode,
    /// By layer, the largest cosine of the rows of two experts: near 1, they are chosen together.
    /// Empty where dice made them.
    pub likeness: Vec<f64>,
    /// What numbers were rounded to.
    pub dtype: BranchDtype,
    /// Costs of the first model.
    pub before: Costs,
    /// Costs of the result.
    pub after: Costs,
}

/// Writes the checkpoint folder `out` with the model that `plan` asks for; `open` opens the
/// checkpoint at a path. Each is opened once, one beside the base at a time.
///
/// # Errors
/// What `open` says, models that are not plain and dense or of different shapes, prompts that are
/// too long or without a tokenizer, `out` is taken.
pub fn join_branches<E: From<ConvertError>>(
    plan: &BranchPlan,
    open: impl Fn(&Path) -> Result<Stored, E>,
    seed: u64,
    out: &Path,
    disk: &dyn Disk,
) -> Result<(PathBuf, BranchReport), E> {
    must_be_free(out)?;
    let base = open(&plan.base)?;
    let of_base = base.model.config();
    check_plain(of_base, &plan.base)?;
    let config = config_of(plan, of_base);
    let table = specs(&config, &config.check().map_err(ConvertError::from)?);
    let gates = Gates::of(plan, &base)?;
    let mut banks = Banks::new(plan, of_base);
    let mut sources: Vec<&Path> = Vec::new();
    for branch in plan.experts.iter().chain(&plan.shared) {
        if !sources.contains(&branch.source.as_path()) {
            sources.push(&branch.source);
        }
    }
    for source in sources {
        if source == plan.base {
            banks.fill(plan, source, &base.model)?;
            continue;
        }
        let stored = open(source)?;
        check_like(stored.model.config(), of_base, (source, &plan.base))?;
        banks.fill(plan, source, &stored.model)?;
    }
    let mut weights = Vec::new();
    for spec in table {
        let data = match banks.take(&spec.place).or_else(|| gates.rows(&spec)) {
            Some(data) => data,
            None => of_the_base(&spec, &base.model).unwrap_or_else(|| spec.fresh(seed)),
        };
        let shape = vec![spec.shape.0, spec.shape.1];
        let data = rounded(data, plan, &spec.name)?;
        weights.push(NamedTensor { name: spec.name, shape, data: data.into() });
    }
    let report = BranchReport {
        base: plan.base.clone(),
        experts: plan.experts.iter().map(|branch| branch.source.clone()).collect(),
        shared: plan.shared.as_ref().map(|branch| branch.source.clone()),
        gates: plan.gates,
        likeness: gates.likeness(),
        dtype: plan.dtype,
        before: Costs::of(of_base)?,
        after: Costs::of(&config)?,
    };
    let made = Made {
        config: &config,
        weights,
        rounded: None,
        recipe: None,
        rule: None,
        state: &RouterState::default(),
        tokenizer: base.tokenizer.as_deref(),
        text: base.text.as_ref(),
        origin: json!({ "made_by": "convert", "report": report, "source": base.origin }),
    };
    Ok((write_model(out, made, disk).map_err(ConvertError::from)?, report))
}

/// The base with experts of the width of its MLPs; the weights of a row sum to 1.
fn config_of(plan: &BranchPlan, base: &ModelConfig) -> ModelConfig {
    let router = top_k::Config { top_k: plan.top_k, ..top_k::Config::default() };
    let mlp = experts::Config {
        count: plan.experts.len(),
        shared: if plan.shared.is_some() { base.ffn } else { 0 },
        shared_gate: plan.has_shared_gate(),
        router: ExpertRouterConfig::TopK(router),
        ..experts::Config::default()
    };
    ModelConfig { mlp: MlpConfig::Experts(mlp), ..base.clone() }
}

/// Refuses a model that is not a plain stack of dense layers.
fn check_plain(config: &ModelConfig, path: &Path) -> Result<(), ConvertError> {
    if config.mlp != MlpConfig::default() {
        let expected = "dense MLPs with SiLU and without biases";
        let next = match config.mlp {
            MlpConfig::Experts(_) => {
                "name a dense model, or `lathe shrink --pass dense` this first"
            }
            MlpConfig::Dense(_) => "name another model: experts have SiLU and no such biases",
        };
        return refused_in(path, "mlp", expected, mlp_in_words(&config.mlp), next);
    }
    let next = "name a dense model, or `lathe convert --sharing none` this one first";
    let depth = config.router != RouterConfig::FIXED;
    if config.sharing != Sharing::None || depth || config.relax != Relaxation::NONE {
        let expected = "layers that are used once, without adapters";
        let found = format!(
            "sharing \"{}\", router \"{}\", relax \"{}\"",
            config.sharing,
            config.router.kind(),
            config.relax.kind()
        );
        return refused_in(path, "model", expected, found, next);
    }
    Ok(())
}

/// Refuses a model whose MLPs do not fit into the layers of the base.
fn check_like(
    config: &ModelConfig,
    base: &ModelConfig,
    (path, other): (&Path, &Path),
) -> Result<(), ConvertError> {
    check_plain(config, path)?;
    for (field, found, expected) in [
        ("width", config.width, base.width),
        ("layers", config.layers, base.layers),
        ("ffn", config.ffn, base.ffn),
    ] {
        if found != expected {
            let expected = format!("{expected}, as {} has", other.display());
            return refused_in(path, field, expected, found, "name a model of the same shape");
        }
    }
    if config.norms != base.norms {
        let expected = format!("norms as those of {}", other.display());
        let found = format!("{:?}", config.norms);
        return refused_in(path, "norms", expected, found, "name a model of the same family");
    }
    Ok(())
}

/// A weight of the result that the base has, too.
fn of_the_base(spec: &ParamSpec, base: &Model) -> Option<Vec<f32>> {
    let mut all = base.weights().iter();
    all.find(|(known, _)| known.place == spec.place).map(|(_, weight)| weight.read())
}

/// The MLPs of all branches by their place in the result.
struct Banks {
    /// `[E, 2 f, d]` or `[E, d, f]` of each layer, expert after expert.
    values: BTreeMap<ParamPlace, Vec<f32>>,
    layers: usize,
    /// Numbers of one expert in a bank of gates and ups, and in one of downs.
    each: [usize; 2],
}

impl Banks {
    fn new(plan: &BranchPlan, base: &ModelConfig) -> Self {
        let (layers, count) = (base.layers, plan.experts.len());
        let each = [2 * base.ffn * base.width, base.ffn * base.width];
        let mut values = BTreeMap::new();
        for stored in 0..layers {
            let mut parts =
                vec![(EXPERTS_GATE_UP, count * each[0]), (EXPERTS_DOWN, count * each[1])];
            if plan.shared.is_some() {
                parts.extend([(SHARED_GATE_UP, each[0]), (SHARED_DOWN, each[1])]);
            }
            for (part, count) in parts {
                values.insert(ParamPlace::Layer { stored, part }, vec![0.0; count]);
            }
        }
        Self { values, layers, each }
    }

    /// Puts the MLPs of the model at `source` where `plan` has them.
    fn fill(&mut self, plan: &BranchPlan, source: &Path, of: &Model) -> Result<(), ConvertError> {
        for stored in 0..self.layers {
            let [gate_up, down] = [GATE_UP, DOWN].map(|part| {
                let place = ParamPlace::Layer { stored, part };
                let mut all = of.weights().iter();
                all.find(|(spec, _)| spec.place == place).map(|(_, weight)| weight.read())
            });
            let (Some(gate_up), Some(down)) = (gate_up, down) else {
                let expected = format!("an MLP in layer {stored}");
                return refused_in(source, "layers", expected, "none", "name a dense model");
            };
            let own = plan.experts.iter().enumerate().filter(|(_, branch)| branch.source == source);
            for (expert, branch) in own {
                self.put((stored, EXPERTS_GATE_UP), expert * self.each[0], &gate_up, 1.0);
                self.put((stored, EXPERTS_DOWN), expert * self.each[1], &down, branch.scale);
            }
            if let Some(branch) = plan.shared.as_ref().filter(|branch| branch.source == source) {
                self.put((stored, SHARED_GATE_UP), 0, &gate_up, 1.0);
                self.put((stored, SHARED_DOWN), 0, &down, branch.scale);
            }
        }
        Ok(())
    }

    fn put(&mut self, (stored, part): (usize, Part), at: usize, values: &[f32], scale: f64) {
        let bank = self.values.get_mut(&ParamPlace::Layer { stored, part });
        let place = bank.and_then(|bank| bank.get_mut(at..at + values.len()));
        let Some(place) = place else { return };
        for (to, from) in place.iter_mut().zip(values) {
            *to = if scale == 1.0 { *from } else { (f64::from(*from) * scale) as f32 };
        }
    }

    fn take(&mut self, place: &ParamPlace) -> Option<Vec<f32>> {
        self.values.remove(place)
    }
}

/// Rows of routers, each of length 1, by layer; empty where dice make them.
struct Gates {
    /// One below the other, `[E, d]`.
    experts: Vec<Vec<Vec<f64>>>,
    /// The row that weighs the shared expert.
    shared: Vec<Vec<f64>>,
}

impl Gates {
    fn of(plan: &BranchPlan, base: &Stored) -> Result<Self, ConvertError> {
        if plan.gates == GateMode::Random {
            return Ok(Self { experts: Vec::new(), shared: Vec::new() });
        }
        let reader = PromptReader::new(plan, base)?;
        let layers = base.model.config().layers;
        let mut experts = vec![Vec::new(); layers];
        for (i, branch) in plan.experts.iter().enumerate() {
            let rows = reader.rows(branch, &format!("experts[{i}]"))?;
            experts.iter_mut().zip(rows).for_each(|(all, row)| all.push(row));
        }
        let shared = match plan.shared.as_ref().filter(|_| plan.has_shared_gate()) {
            Some(branch) => reader.rows(branch, "shared_experts[0]")?,
            None => Vec::new(),
        };
        Ok(Self { experts, shared })
    }

    /// The rows of a router's weight.
    fn rows(&self, spec: &ParamSpec) -> Option<Vec<f32>> {
        let ParamPlace::Router { site: RouterSite::Layer(layer), factor, .. } = spec.place else {
            return None;
        };
        let rows: Vec<f64> = match factor {
            "score" => self.experts.get(layer)?.concat(),
            "shared_gate" => self.shared.get(layer)?.clone(),
            _ => return None,
        };
        Some(rows.into_iter().map(|x| x as f32).collect())
    }

    fn likeness(&self) -> Vec<f64> {
        let layers = self.experts.iter().filter(|rows| rows.len() > 1);
        layers.map(|rows| largest_cosine(rows)).collect()
    }
}

/// The largest cosine of two rows of length 1.
fn largest_cosine(rows: &[Vec<f64>]) -> f64 {
    let mut largest = f64::NEG_INFINITY;
    for (i, one) in rows.iter().enumerate() {
        for two in &rows[..i] {
            let cosine: f64 = one.iter().zip(two).map(|(a, b)| a * b).sum();
            largest = largest.max(cosine);
        }
    }
    largest
}

/// What the base makes of prompts.
struct PromptReader<'a> {
    plan: &'a BranchPlan,
    base: &'a Stored,
    tokenizer: Tokenizer,
    special: SpecialTokens,
}

impl<'a> PromptReader<'a> {
    fn new(plan: &'a BranchPlan, base: &'a Stored) -> Result<Self, ConvertError> {
        let json = base.tokenizer.as_deref().and_then(|json| std::str::from_utf8(json).ok());
        let Some(json) = json else {
            let expected = "one with a tokenizer.json, which reads the prompts";
            return refused_in(&plan.base, "tokenizer", expected, "none", "name such a model");
        };
        let tokenizer = match Tokenizer::from_json(json) {
            Ok(tokenizer) => tokenizer,
            Err(source) => {
                let (path, source) = (plan.base.clone(), Box::new(source));
                return Err(ConvertError::Tokenizer { path, source });
            }
        };
        let special = SpecialTokens::of(base.text.as_ref(), &tokenizer);
        Ok(Self { plan, base, tokenizer, special })
    }

    /// A row of length 1 for each layer: the mean over the positive prompts, less the mean over
    /// the negative ones.
    fn rows(&self, branch: &Branch, field: &str) -> Result<Vec<Vec<f64>>, ConvertError> {
        let mut rows = self.mean(&branch.positive, &format!("{field}.positive_prompts"))?;
        if !branch.negative.is_empty() {
            let others = self.mean(&branch.negative, &format!("{field}.negative_prompts"))?;
            for (row, other) in rows.iter_mut().zip(others) {
                row.iter_mut().zip(other).for_each(|(x, y)| *x -= y);
            }
        }
        for row in &mut rows {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            if length < 1e-8 {
                let what = format!("{}: {field}", self.plan.path.display());
                let expected = "prompts that differ from the negative ones";
                return refused(what, expected, "the same", "write other prompts");
            }
            row.iter_mut().for_each(|x| *x /= length);
        }
        Ok(rows)
    }

    fn mean(&self, prompts: &[String], field: &str) -> Result<Vec<Vec<f64>>, ConvertError> {
        let mut sum: Vec<Vec<f64>> = Vec::new();
        for prompt in prompts {
            let ids = self.ids(prompt, field)?;
            let rows = match self.plan.gates {
                GateMode::CheapEmbed => self.embedded(&ids),
                _ => self.hidden(&ids),
            };
            sum.resize(rows.len(), Vec::new());
            for (sum, row) in sum.iter_mut().zip(rows) {
                sum.resize(row.len(), 0.0);
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
        let mut rows = sum;
        rows.iter_mut().flatten().for_each(|x| *x /= prompts.len().max(1) as f64);
        if self.plan.gates == GateMode::CheapEmbed {
            // There, each side has length 1 before one is taken from the other.
            for row in &mut rows {
                let length = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-8);
                row.iter_mut().for_each(|x| *x /= length);
            }
        }
        Ok(rows)
    }

    /// The tokens of a prompt behind the beginning of a text, where the tokenizer has one.
    fn ids(&self, prompt: &str, field: &str) -> Result<Vec<u32>, ConvertError> {
        let what = format!("{}: {field}", self.plan.path.display());
        let mut ids: Vec<u32> = self.special.bos.into_iter().collect();
        match self.tokenizer.encode(prompt) {
            Ok(more) => ids.extend(more),
            Err(error) => return refused(what, "a text", error, "write another prompt"),
        }
        let config = self.base.model.config();
        if let Some(id) = ids.iter().find(|id| **id as usize >= config.vocab_size) {
            let expected = format!("tokens below {}, the base's vocabulary", config.vocab_size);
            return refused(what, expected, id, "name a base with its own tokenizer");
        }
        if ids.is_empty() || ids.len() > config.context {
            let expected = format!("1 to {} tokens, the base's context", config.context);
            return refused(what, expected, ids.len(), "write another prompt");
        }
        Ok(ids)
    }

    /// The sum of embeddings, for every layer.
    fn embedded(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        let model = &self.base.model;
        let embed = model.weights().iter().find(|(spec, _)| spec.place == ParamPlace::Embed);
        let width = model.config().width;
        let mut sum = vec![0.0; width];
        if let Some((_, weight)) = embed {
            let values = weight.values();
            for &id in ids {
                let row = values.chunks_exact(width).nth(id as usize).unwrap_or_default();
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        vec![sum; model.config().layers]
    }

    /// The stream ahead of each layer, behind the last token.
    fn hidden(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        let (model, mut streams) = (&self.base.model, Streams::default());
        let mut pass = Pass {
            ops: Ops::Fast,
            kv: &mut PassCache::new(false),
            rule: &Rule::NonCausal,
            state: &self.base.state,
            probe: &mut streams,
            record: false,
            recompute: false,
            address: Address::default(),
            sequences: 1,
            loads: &[],
            pool: Default::default(),
        };
        let ids: Arc<[u32]> = ids.into();
        model.forward(&ids, &Rows::batch(1, ids.len()), &mut pass);
        streams.0.truncate(model.config().layers);
        streams.0
    }
}

/// The last row of the stream at each place of a model.
#[derive(Default)]
struct Streams(Vec<Vec<f64>>);

impl Probe for Streams {
    fn stream(&mut self, x_td: &Tensor2) {
        let (rows, width) = (read_rows(x_td), x_td.dims()[1]);
        let last = rows.chunks_exact(width.max(1)).next_back().unwrap_or_default();
        self.0.push(last.iter().map(|x| f64::from(*x)).collect());
    }
}

/// Numbers as the file's `dtype` holds them.
fn rounded(mut values: Vec<f32>, plan: &BranchPlan, name: &str) -> Result<Vec<f32>, ConvertError> {
    let round: fn(f32) -> f32 = match plan.dtype {
        BranchDtype::Float32 => return Ok(values),
        BranchDtype::Float16 => |x| f16::from_f32(x).to_f32(),
        BranchDtype::Bfloat16 => |x| bf16::from_f32(x).to_f32(),
    };
    for x in &mut values {
        let was = *x;
        *x = round(was);
        if !x.is_finite() {
            let expected = format!("a type that holds {was}, a number of \"{name}\"");
            let found = format!("{:?}", plan.dtype);
            return refused_in(&plan.path, "dtype", expected, found, "choose bfloat16 or float32");
        }
    }
    Ok(values)
}
