//! `lathe verify`: runs reference cases of the model family and compares everything they record.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use checkpoint::{TensorFile, open_safetensors};
use engine::{Batch, BatchSequence};
use model::adapters::Relaxation;
use model::params::ParamSpec;
use model::routers::{Network, expert_choice, random, token_choice};
use model::{
    Address, Choice, KvMode, Model, ModelConfig, Pass, PassCache, Probe, RouterConfig, RouterState,
    RoutingEvent, Rule, Sharing,
};
use ops::{Ops, Tensor2, backward, read_rows, scalar};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use train::{OptimizerConfig, Recipe, ScheduleConfig, Trainer};

/// The settings of a case.
#[derive(Debug, Deserialize)]
struct Settings {
    kind: String,
    sharing: String,
    recursions: usize,
    layers: usize,
    hidden_size: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    vocab_size: usize,
    rope_theta: f64,
    rms_norm_eps: f64,
    #[serde(default)]
    router: String,
    #[serde(default)]
    router_func: String,
    #[serde(default)]
    alpha: f64,
    #[serde(default)]
    sampling: Option<String>,
    #[serde(default)]
    coeff: f64,
    #[serde(default)]
    kv: Option<String>,
    #[serde(default)]
    z_loss: bool,
    #[serde(default)]
    z_coeff: f64,
    #[serde(default)]
    balancing: Option<String>,
    #[serde(default)]
    gating: Option<String>,
    #[serde(default)]
    capacity: Option<Vec<f64>>,
    #[serde(default)]
    train: Option<TrainSettings>,
}

#[derive(Debug, Deserialize)]
struct TrainSettings {
    steps: usize,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    clip_norm: f64,
}

/// The largest error of one kind of quantity, relative to its tolerance.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Check {
    /// What was compared.
    pub(crate) what: String,
    /// Largest error as defined for that quantity.
    pub(crate) error: f64,
    /// What is allowed.
    pub(crate) tolerance: f64,
    /// The tensor with that error.
    pub(crate) worst: String,
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Case {
    /// Its name.
    pub(crate) name: String,
    /// Whether everything is within its tolerance.
    pub(crate) passed: bool,
    /// All comparisons.
    pub(crate) checks: Vec<Check>,
}

/// Runs every case in `dir`.
pub(crate) fn verify(dir: &Path, ops: Ops) -> Result<Vec<Case>> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .with_context(|| format!("reading the folder {}", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".safetensors").map(str::to_owned))
        .collect();
    names.sort();
    ensure!(!names.is_empty(), "{} holds no case (NAME.safetensors with NAME.json)", dir.display());
    names.iter().map(|name| case(dir, name, ops).with_context(|| format!("case {name}"))).collect()
}

fn case(dir: &Path, name: &str, ops: Ops) -> Result<Case> {
    let file = open_safetensors(&dir.join(format!("{name}.safetensors")))?;
    let path = dir.join(format!("{name}.json"));
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let settings: Settings =
        serde_json::from_str(&text).with_context(|| format!("settings {}", path.display()))?;
    let ids = integers(&dir.join(format!("{name}.safetensors")))?;
    let reference = Reference { file, ids, settings };
    let checks = match &reference.settings.train {
        Some(train) => reference.train(train, ops)?,
        None => reference.pass(ops)?,
    };
    let passed = checks.iter().all(|c| c.error <= c.tolerance);
    Ok(Case { name: name.to_owned(), passed, checks })
}

/// Integer tensors of a case, which are positions and token ids.
type Integers = std::collections::BTreeMap<String, (Vec<usize>, Vec<i64>)>;

/// Reads the I64 tensors of a safetensors file (the model's own reader is for floats).
fn integers(path: &Path) -> Result<Integers> {
    let bytes = std::fs::read(path)?;
    let length = bytes
        .first_chunk::<8>()
        .map(|b| u64::from_le_bytes(*b) as usize)
        .context("no header length")?;
    let header =
        bytes.get(8..8usize.saturating_add(length)).context("header beyond the end of the file")?;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header)?;
    let data = &bytes[8 + length..];
    let mut found = Integers::new();
    for (name, entry) in header.iter().filter(|(_, entry)| entry["dtype"] == "I64") {
        let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone())?;
        let [from, to]: [usize; 2] = serde_json::from_value(entry["data_offsets"].clone())?;
        let values = data
            .get(from..to)
            .with_context(|| format!("{name} lies beyond the end of the file"))?;
        let values = values
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")))
            .collect();
        found.insert(name.clone(), (shape, values));
    }
    Ok(found)
}

struct Reference {
    file: TensorFile,
    ids: Integers,
    settings: Settings,
}

impl Reference {
    fn config(&self) -> Result<ModelConfig> {
        let s = &self.settings;
        let sharing = match s.sharing.as_str() {
            "none" => Sharing::None,
            "cycle" => Sharing::Cycle,
            "sequence" => Sharing::Sequence,
            "middle_cycle" => Sharing::MiddleCycle,
            "middle_sequence" => Sharing::MiddleSequence,
            other => bail!("sharing is {other}, expected one of the four layouts or none"),
        };
        let kv = match s.kv.as_deref() {
            None | Some("recursion_wise") => KvMode::RecursionWise,
            Some("shared") => KvMode::Shared,
            Some("shared_update") => KvMode::SharedUpdate,
            Some(other) => bail!("kv is {other}, expected recursion_wise, shared or shared_update"),
        };
        let config = ModelConfig {
            vocab_size: s.vocab_size,
            width: s.hidden_size,
            layers: s.layers,
            heads: s.heads,
            kv_heads: s.kv_heads,
            head_dim: s.head_dim,
            ffn: s.intermediate_size,
            context: self.context()?,
            rope_theta: s.rope_theta,
            norm_eps: s.rms_norm_eps,
            tie_embeddings: self.file.shape("param.lm_head.weight").is_none(),
            init_std: 0.02,
            mlp: Default::default(),
            sharing,
            recursions: if sharing == Sharing::None { 1 } else { s.recursions },
            share_norms: true,
            relax: Relaxation::None,
            router: self.router()?,
            kv: if sharing == Sharing::None { KvMode::RecursionWise } else { kv },
        };
        config.check()?;
        Ok(config)
    }

    /// Rows of a sequence.
    fn context(&self) -> Result<usize> {
        let found = self.ids.get("input_ids").or_else(|| self.ids.get("train.input_ids"));
        let (shape, _) = found.context("tensor input_ids (or train.input_ids) is missing")?;
        Ok(shape.last().copied().unwrap_or(1).max(1))
    }

    fn router(&self) -> Result<RouterConfig> {
        let s = &self.settings;
        Ok(match s.kind.as_str() {
            "vanilla" | "recursive" => RouterConfig::FIXED,
            "random" => RouterConfig::Random(random::Config {
                alpha: s.alpha,
                capacities: s.capacity.clone(),
            }),
            "expert" => RouterConfig::ExpertChoice(expert_choice::Config {
                network: self.network()?,
                function: match s.router_func.as_str() {
                    "sigmoid" => expert_choice::Function::Sigmoid,
                    "tanh" => expert_choice::Function::Tanh,
                    "none" | "" => expert_choice::Function::None,
                    other => bail!("router_func is {other}, expected sigmoid, tanh or none"),
                },
                alpha: s.alpha,
                gating: match s.gating.as_deref() {
                    None | Some("weighted") => expert_choice::Gating::Weighted,
                    Some("additive") => expert_choice::Gating::Additive,
                    Some(other) => bail!("gating is {other}, expected weighted or additive"),
                },
                capacities: s.capacity.clone(),
                sampling: match s.sampling.as_deref() {
                    Some("aux_loss") => expert_choice::SamplingLoss::AuxLoss,
                    Some("aux_router") => expert_choice::SamplingLoss::AuxRouter,
                    None => expert_choice::SamplingLoss::None,
                    Some(other) => bail!("sampling is {other}, expected aux_loss or aux_router"),
                },
                sampling_weight: s.coeff,
                z_weight: if s.z_loss { s.z_coeff } else { 0.0 },
                ..Default::default()
            }),
            "token" => RouterConfig::TokenChoice(token_choice::Config {
                network: self.network()?,
                function: match s.router_func.as_str() {
                    "softmax" => token_choice::Function::Softmax,
                    "sigmoid" => token_choice::Function::Sigmoid,
                    other => bail!("router_func is {other}, expected softmax or sigmoid"),
                },
                alpha: s.alpha,
                balance: match s.balancing.as_deref() {
                    Some("loss") => token_choice::Balance::Loss,
                    Some("loss_free") => token_choice::Balance::LossFree,
                    None => token_choice::Balance::None,
                    Some(other) => bail!("balancing is {other}, expected loss, loss_free or null"),
                },
                balance_weight: s.coeff,
                z_weight: if s.z_loss { s.z_coeff } else { 0.0 },
                ..Default::default()
            }),
            other => bail!("kind is {other}, expected vanilla, recursive, expert or token"),
        })
    }

    /// By name, and for the two MLPs by the shape that the file really has.
    fn network(&self) -> Result<Network> {
        if self.settings.router == "linear" {
            return Ok(Network::Linear);
        }
        let up = self
            .file
            .names()
            .find(|n| n.starts_with("param.") && n.ends_with("mor_router.router.0.weight"));
        let hidden = up.and_then(|name| self.file.shape(name)).map(|shape| shape[0]);
        match (self.settings.router.as_str(), hidden) {
            ("mlp" | "wide_mlp", Some(h)) if h == 2 * self.settings.hidden_size => Ok(Network::Mlp),
            ("mlp" | "wide_mlp", Some(h)) if h == 4 * self.settings.hidden_size => {
                Ok(Network::WideMlp)
            }
            (other, hidden) => bail!(
                "router is {other} with hidden size {hidden:?}, expected linear, mlp or wide_mlp of 2 or 4 times the width"
            ),
        }
    }

    /// A `[B, T]` integer tensor as rows.
    fn sequences(&self, name: &str) -> Result<Vec<Vec<u32>>> {
        let (shape, values) =
            self.ids.get(name).with_context(|| format!("tensor {name} is missing"))?;
        let t = *shape.last().with_context(|| format!("{name} has no axis"))?;
        let checked: Result<Vec<u32>, _> = values.iter().map(|&v| u32::try_from(v)).collect();
        let checked = checked.with_context(|| format!("{name} holds a negative number"))?;
        ensure!(
            checked.iter().all(|&id| (id as usize) < self.settings.vocab_size),
            "{name} holds an id beyond vocab_size"
        );
        ensure!(
            t >= 2 && !checked.is_empty(),
            "{name} is {shape:?}, expected sequences of at least 2 tokens"
        );
        Ok(checked.chunks(t).map(<[u32]>::to_vec).collect())
    }

    /// Where the case keeps a weight: its tensor names, whose rows follow each other in ours.
    fn names(&self, spec: &ParamSpec, config: &ModelConfig) -> Result<Vec<String>> {
        let ends = config.sharing.keeps_ends();
        let first = usize::from(ends);
        let parts: Vec<&str> = spec.name.split('.').collect();
        let inner = |prefix: &str, part: &str| -> Vec<String> {
            let names: &[&str] = match part {
                "attention_norm" => &["input_layernorm"],
                "ffn_norm" => &["post_attention_layernorm"],
                "query" => &["self_attn.q_proj"],
                "key_value" => &["self_attn.k_proj", "self_attn.v_proj"],
                "output" => &["self_attn.o_proj"],
                "gate_up" => &["mlp.gate_proj", "mlp.up_proj"],
                "down" => &["mlp.down_proj"],
                _ => &[],
            };
            names.iter().map(|n| format!("{prefix}.{n}.weight")).collect()
        };
        let scorer = |part: &str| match part {
            "score" => "router.weight",
            "up" => "router.0.weight",
            _ => "router.2.weight",
        };
        Ok(match parts.as_slice() {
            ["embed"] => vec!["model.embed_tokens.weight".into()],
            ["head"] => vec!["lm_head.weight".into()],
            ["norm"] => vec!["model.norm.weight".into()],
            ["layers", stored, part, ..] => {
                inner(&self.layer_prefix(stored.parse()?, config)?, part)
            }
            ["router", part] => {
                vec![format!("{}.mor_router.{}", self.token_prefix(first), scorer(part))]
            }
            ["router", r, part] => {
                vec![format!(
                    "model.layers.{}.mor_router.{}",
                    r.parse::<usize>()? + first,
                    scorer(part)
                )]
            }
            ["auxiliary_router", r, part] => {
                vec![format!(
                    "model.layers.{}.mlp_router.{}",
                    r.parse::<usize>()? + first,
                    scorer(part)
                )]
            }
            _ => bail!("no name known for {}", spec.name),
        })
    }

    /// Token-choice keeps its block below layer 1, or directly below `layers` if no first layer is
    /// kept apart.
    fn token_prefix(&self, first: usize) -> String {
        let numbered = format!("model.layers.{first}");
        let has = |prefix: &str| {
            let start = format!("param.{prefix}.");
            self.file.names().any(|n| {
                n.starts_with(&format!("{start}mor_router"))
                    || n.starts_with(&format!("{start}block_list"))
            })
        };
        if has(&numbered) { numbered } else { "model.layers".into() }
    }

    fn layer_prefix(&self, stored: usize, config: &ModelConfig) -> Result<String> {
        let plan = config.check()?;
        let ends = config.sharing.keeps_ends();
        let (first, last) = (usize::from(ends), ends && stored + 1 == plan.stored);
        let routed = matches!(self.settings.kind.as_str(), "expert" | "token" | "random");
        if !routed {
            let used = plan
                .unrolled()
                .find(|u| u.stored == stored)
                .context("every stored layer is used")?;
            return Ok(format!("model.layers.{}", used.layer));
        }
        if ends && stored == 0 {
            return Ok("model.layers.0".into());
        }
        let recursions = if self.settings.kind == "token" { 1 } else { config.recursions };
        if last {
            return Ok(format!("model.layers.{}", first + recursions));
        }
        let j = stored - first;
        Ok(match self.settings.kind.as_str() {
            "token" => format!("{}.block_list.0.{j}", self.token_prefix(first)),
            _ => format!("model.layers.{first}.block.{j}"),
        })
    }

    fn stacked(&self, group: &str, spec: &ParamSpec, config: &ModelConfig) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for name in self.names(spec, config)? {
            values.extend(self.file.read_f32(&format!("{group}.{name}"))?);
        }
        let (rows, columns) = spec.shape;
        ensure!(
            values.len() == rows * columns,
            "{group} of {} has {} numbers, expected {rows} x {columns}",
            spec.name,
            values.len()
        );
        Ok(values)
    }

    fn model(&self, config: &ModelConfig) -> Result<Model> {
        let mut used = 0;
        let model = Model::build(config, |spec| {
            used += self.names(spec, config)?.len();
            self.stacked("param", spec, config)
        })?;
        let stored = self.file.names().filter(|n| n.starts_with("param.")).count();
        ensure!(
            used == stored,
            "the case stores {stored} weights, {used} of them belong to this model"
        );
        Ok(model)
    }

    /// Inputs with the next token as target; the last row of a sequence predicts nothing.
    fn batch(&self, sequences: &[Vec<u32>]) -> Batch {
        let targets: Vec<Vec<u32>> = sequences
            .iter()
            .map(|s| s.iter().skip(1).chain(std::iter::once(&0)).copied().collect())
            .collect();
        let counts: Vec<Vec<bool>> =
            sequences.iter().map(|s| (1..=s.len()).map(|i| i < s.len()).collect()).collect();
        let documents: Vec<Vec<u32>> = sequences.iter().map(|s| vec![0; s.len()]).collect();
        let parts: Vec<BatchSequence<'_>> = (0..sequences.len())
            .map(|i| BatchSequence {
                ids: &sequences[i],
                targets: &targets[i],
                document: &documents[i],
                same_document: &counts[i],
            })
            .collect();
        Batch::pack(&parts, true)
    }

    fn pass(&self, ops: Ops) -> Result<Vec<Check>> {
        let config = self.config()?;
        let model = self.model(&config)?;
        model.collect_gradients(true);
        let sequences = self.sequences("input_ids")?;
        let batch = self.batch(&sequences);
        let mut seen = Seen::default();
        let (rule, state) = (Rule::NonCausal, RouterState::default());
        let mut kv = PassCache::new(config.kv != KvMode::RecursionWise);
        let mut pass = Pass {
            ops,
            kv: &mut kv,
            rule: &rule,
            state: &state,
            probe: &mut seen,
            record: true,
            recompute: false,
            address: Address::default(),
            sequences: sequences.len(),
        };
        let passed = model.forward(&batch.ids, &batch.rows, &mut pass);
        let logits = read_rows(&model.logits(passed.x_td.clone(), &pass));
        let weights = batch.weights(1.0 / batch.counted() as f32);
        let (ce, _) = pass.ops.head_loss(passed.x_td, model.head(), &batch.targets, &weights);
        let mut losses = vec![("loss.ce", scalar(&ce))];
        losses.extend(seen.losses.iter().map(|loss| (loss.name, loss.value)));
        let weighted = seen.losses.iter().map(|loss| loss.weight * loss.value);
        losses.push(("loss.total", scalar(&ce) + weighted.sum::<f32>()));
        let gradients = backward(&ce);
        if ops == Ops::Plain {
            model.weights().iter().for_each(|(_, w)| w.take_plain_gradient(&gradients));
        }
        Ok(vec![
            self.selections(&seen, sequences.len())?,
            self.hidden(&seen)?,
            self.near("logits", &[("logits".into(), logits)])?,
            self.near(
                "loss",
                &losses.into_iter().map(|(n, v)| (n.to_owned(), vec![v])).collect::<Vec<_>>(),
            )?,
            self.gradients(&model, &config)?,
        ])
    }

    fn selections(&self, seen: &Seen, batch: usize) -> Result<Check> {
        let mut check = Check { what: "selections".into(), ..Check::default() };
        let mut differ = |name: String, found: &[u32], expected: &[i64]| {
            let same = found.len() == expected.len()
                && found.iter().zip(expected).all(|(&f, &e)| i64::from(f) == e);
            if !same {
                check.error += 1.0;
                check.worst = name;
            }
        };
        let first = usize::from(self.settings.sharing.starts_with("middle"));
        let mut compared = 0;
        for (name, (shape, expected)) in self.ids.iter().filter(|(n, _)| n.starts_with("select.")) {
            compared += 1;
            if name == "select.depth" {
                differ(name.clone(), &seen.depth, expected);
                continue;
            }
            let element: usize =
                name["select.".len()..].parse().with_context(|| format!("tensor name {name}"))?;
            let kept = element.checked_sub(first).and_then(|r| seen.kept.get(r));
            let length = seen.rows / batch.max(1);
            let kept: Vec<u32> =
                kept.map(|k| k.iter().map(|row| row % length as u32).collect()).unwrap_or_default();
            ensure!(shape.len() == 2, "{name} has {} axes, expected 2", shape.len());
            differ(name.clone(), &kept, expected);
        }
        if let Some(expected) = self.file.names().find(|n| *n == "select.router_logits") {
            let check = self.near("scores", &[(expected.to_owned(), seen.logits.clone())])?;
            ensure!(check.error <= 1e-3, "router scores differ by {}", check.error);
        }
        if compared == 0 {
            check.worst = "none recorded".into();
        }
        Ok(check)
    }

    fn hidden(&self, seen: &Seen) -> Result<Check> {
        let recorded = self.file.names().filter(|n| n.starts_with("hidden.")).count();
        ensure!(
            recorded == seen.stream.len(),
            "{recorded} hidden states recorded, the model has {}",
            seen.stream.len()
        );
        let named: Vec<_> = seen
            .stream
            .iter()
            .enumerate()
            .map(|(i, x)| (format!("hidden.{i}"), x.clone()))
            .collect();
        self.near("hidden", &named)
    }

    /// Largest error, absolute or relative, whichever is smaller.
    fn near(&self, what: &str, found: &[(String, Vec<f32>)]) -> Result<Check> {
        let mut check = Check { what: what.into(), tolerance: 1e-4, ..Check::default() };
        for (name, found) in found {
            if self.file.shape(name).is_none() {
                ensure!(name.starts_with("loss."), "tensor {name} is missing");
                continue;
            }
            let expected = self.file.read_f32(name)?;
            ensure!(
                expected.len() == found.len(),
                "{name} has {} numbers, found {}",
                expected.len(),
                found.len()
            );
            for (&f, &e) in found.iter().zip(&expected) {
                let absolute = f64::from((f - e).abs());
                worst(&mut check, absolute.min(absolute / f64::from(e.abs()).max(1e-30)), name);
            }
        }
        Ok(check)
    }

    fn gradients(&self, model: &Model, config: &ModelConfig) -> Result<Check> {
        let mut check = Check { what: "gradients".into(), tolerance: 1e-3, ..Check::default() };
        for (spec, weight) in model.weights() {
            let found = weight.read_gradient().unwrap_or_else(|| vec![0.0; spec.count()]);
            let mut at = 0;
            for name in self.names(spec, config)? {
                let name = format!("grad.{name}");
                let expected = self.file.read_f32(&name)?;
                let part = found.get(at..at + expected.len());
                let part = part.with_context(|| {
                    format!("{name} has {} numbers, more than its weight", expected.len())
                })?;
                at += expected.len();
                let largest = expected.iter().fold(0.0f32, |m, e| m.max(e.abs()));
                for (&f, &e) in part.iter().zip(&expected) {
                    let error = f64::from((f - e).abs());
                    worst(
                        &mut check,
                        if error == 0.0 { 0.0 } else { error / f64::from(largest).max(1e-12) },
                        &name,
                    );
                }
            }
            ensure!(
                at == found.len(),
                "grad of {} has {at} numbers, expected {}",
                spec.name,
                found.len()
            );
        }
        Ok(check)
    }

    fn train(&self, settings: &TrainSettings, ops: Ops) -> Result<Vec<Check>> {
        let config = self.config()?;
        let (shape, _) =
            self.ids.get("train.input_ids").context("tensor train.input_ids is missing")?;
        ensure!(
            shape.len() == 3 && shape[0] == settings.steps,
            "train.input_ids is {shape:?}, expected [steps, B, T]"
        );
        let recipe = Recipe {
            model: config.clone(),
            optimizer: OptimizerConfig {
                learning_rate: settings.lr,
                beta1: settings.betas[0],
                beta2: settings.betas[1],
                eps: settings.eps,
                weight_decay: settings.weight_decay,
                clip_norm: settings.clip_norm,
                ..OptimizerConfig::default()
            },
            schedule: ScheduleConfig::Constant { warmup_steps: 0 },
            ..Recipe::default()
        };
        let mut trainer = Trainer::over(&recipe, self.model(&config)?);
        trainer.ops = ops;
        let sequences = self.sequences("train.input_ids")?;
        let (losses, norms) =
            (self.file.read_f32("train.loss")?, self.file.read_f32("train.grad_norm")?);
        for (name, found) in [("train.loss", losses.len()), ("train.grad_norm", norms.len())] {
            ensure!(
                found == settings.steps,
                "{name} has {found} numbers, expected one for each of {} steps",
                settings.steps
            );
        }
        let mut loss = Check { what: "train loss".into(), tolerance: 1e-3, ..Check::default() };
        let mut norm = Check { what: "train norm".into(), tolerance: 1e-2, ..Check::default() };
        for (step, batch) in sequences.chunks(shape[1]).enumerate() {
            let report = trainer.step_on(&[self.batch(batch)])?;
            let relative = |found: f64, expected: f32| {
                (found - f64::from(expected)).abs() / f64::from(expected.abs())
            };
            worst(&mut loss, relative(report.total, losses[step]), &format!("step {step}"));
            worst(&mut norm, relative(report.gradient_norm, norms[step]), &format!("step {step}"));
        }
        Ok(vec![loss, norm])
    }
}

fn worst(check: &mut Check, error: f64, name: &str) {
    // A NaN is never within a tolerance.
    let error = if error.is_nan() { f64::INFINITY } else { error };
    if error > check.error || check.worst.is_empty() {
        check.error = error.max(check.error);
        check.worst = name.to_owned();
    }
}

/// A probe that remembers everything a case records.
#[derive(Default)]
struct Seen {
    stream: Vec<Vec<f32>>,
    kept: Vec<Vec<u32>>,
    depth: Vec<u32>,
    logits: Vec<f32>,
    losses: Vec<SeenLoss>,
    rows: usize,
}

impl Probe for Seen {
    fn stream(&mut self, x_td: &Tensor2) {
        self.rows = x_td.dims()[0];
        self.stream.push(read_rows(x_td));
    }

    fn routed(&mut self, event: &RoutingEvent<'_>) {
        match event.choice {
            Choice::GoOn { kept, .. } => {
                let on = event.candidates.iter().zip(kept).filter(|(_, kept)| **kept);
                self.kept.push(on.map(|(&row, _)| row).collect());
            }
            Choice::Target(depth) => {
                self.depth = depth.to_vec();
                self.logits = event.logits.to_vec();
            }
            Choice::Plan(_) => {}
        }
    }

    fn loss(&mut self, name: &'static str, value: f32, weight: f32) {
        let name = match name {
            "balance" => "loss.balance",
            "z" => "loss.z",
            _ => "loss.aux",
        };
        match self.losses.iter_mut().find(|loss| loss.name == name) {
            Some(loss) => loss.value += value,
            None => self.losses.push(SeenLoss { name, value, weight }),
        }
    }
}

/// A loss beside the cross-entropy, under the name that cases give it.
struct SeenLoss {
    name: &'static str,
    value: f32,
    weight: f32,
}

/// The cases as a table: the largest error of each kind.
pub(crate) fn table(cases: &[Case]) -> report::Table {
    let kinds = ["selections", "hidden", "logits", "loss", "gradients", "train loss", "train norm"];
    let cell = |case: &Case, kind: &str| {
        case.checks.iter().find(|c| c.what == kind).map_or_else(String::new, |c| {
            if kind == "selections" {
                format!("{} differ", c.error)
            } else {
                format!("{:.1e}", c.error)
            }
        })
    };
    let mut columns = vec!["case".to_owned(), "result".to_owned()];
    columns.extend(kinds.iter().map(|k| (*k).to_owned()));
    let rows = cases
        .iter()
        .map(|case| {
            let mut row =
                vec![case.name.clone(), if case.passed { "pass" } else { "FAIL" }.to_owned()];
            row.extend(kinds.iter().map(|k| cell(case, k)));
            row
        })
        .collect();
    report::Table { columns, rows, caption: String::new(), best: None }
}
