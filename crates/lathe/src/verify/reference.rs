//! A case on disk: its tensors, and where it keeps the weights of the model.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use checkpoint::TensorFile;
use engine::{Batch, BatchSequence};
use model::params::ParamSpec;
use model::{Model, ModelConfig};
use serde_json::Value;

use super::settings::Settings;

/// Integer tensors of a case, which are positions and token ids.
pub(super) type Integers = std::collections::BTreeMap<String, (Vec<usize>, Vec<i64>)>;

/// The most bytes of a case's tensors.
const LARGEST: u64 = 4 << 30;

/// Reads the I64 tensors of a safetensors file (the model's own reader is for floats).
pub(super) fn integers(path: &Path) -> Result<Integers> {
    let bytes = files::read(path, LARGEST)?;
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

/// A `[B, T]` integer tensor as rows.
pub(super) fn sequences(ids: &Integers, name: &str) -> Result<Vec<Vec<u32>>> {
    let (shape, values) = ids.get(name).with_context(|| format!("tensor {name} is missing"))?;
    let t = *shape.last().with_context(|| format!("{name} has no axis"))?;
    let checked: Result<Vec<u32>, _> = values.iter().map(|&v| u32::try_from(v)).collect();
    let checked = checked.with_context(|| format!("{name} holds a negative number"))?;
    ensure!(
        t >= 2 && !checked.is_empty(),
        "{name} is {shape:?}, expected sequences of at least 2 tokens"
    );
    Ok(checked.chunks(t).map(<[u32]>::to_vec).collect())
}

/// Inputs with the next token as target; the last row of a sequence predicts nothing.
pub(super) fn next_tokens(sequences: &[Vec<u32>]) -> Batch {
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

pub(super) struct Reference {
    pub(super) file: TensorFile,
    pub(super) ids: Integers,
    pub(super) settings: Settings,
}

impl Reference {
    /// A `[B, T]` integer tensor as rows of ids.
    pub(super) fn sequences(&self, name: &str) -> Result<Vec<Vec<u32>>> {
        let found = sequences(&self.ids, name)?;
        ensure!(
            found.iter().flatten().all(|&id| (id as usize) < self.settings.vocab_size),
            "{name} holds an id beyond vocab_size"
        );
        Ok(found)
    }

    /// Where the case keeps a weight: its tensor names, whose rows follow each other in ours.
    pub(super) fn names(&self, spec: &ParamSpec, config: &ModelConfig) -> Result<Vec<String>> {
        let ends = config.sharing.keeps_ends();
        let first = usize::from(ends);
        let parts: Vec<&str> = spec.name.split('.').collect();
        Ok(match parts.as_slice() {
            ["embed"] => vec!["model.embed_tokens.weight".into()],
            ["head"] => vec!["lm_head.weight".into()],
            ["norm"] => vec!["model.norm.weight".into()],
            ["layers", stored, part, ..] => {
                let prefix = self.layer_prefix(stored.parse()?, config)?;
                names_in_layer(part).iter().map(|n| format!("{prefix}.{n}.weight")).collect()
            }
            ["router", part] => {
                let prefix = self.token_prefix(first);
                vec![format!("{prefix}.mor_router.{}", name_in_router(part))]
            }
            ["router", r, part] => {
                let layer = r.parse::<usize>()? + first;
                vec![format!("model.layers.{layer}.mor_router.{}", name_in_router(part))]
            }
            ["auxiliary_router", r, part] => {
                let layer = r.parse::<usize>()? + first;
                vec![format!("model.layers.{layer}.mlp_router.{}", name_in_router(part))]
            }
            _ => bail!("no name known for {}", spec.name),
        })
    }

    /// Token-choice keeps its block below layer 1, or directly below `layers` if no first layer is
    /// kept apart.
    fn token_prefix(&self, first: usize) -> String {
        let numbered = format!("model.layers.{first}");
        let start = format!("param.{numbered}.");
        let mut below = self.file.names().filter_map(|name| name.strip_prefix(&start));
        let is_numbered =
            below.any(|rest| rest.starts_with("mor_router") || rest.starts_with("block_list"));
        if is_numbered { numbered } else { "model.layers".into() }
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

    pub(super) fn model(&self, config: &ModelConfig) -> Result<Model> {
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
}

/// The matrices of a case, one below the other, that make up a part of a layer.
fn names_in_layer(part: &str) -> &'static [&'static str] {
    match part {
        "attention_norm" => &["input_layernorm"],
        "ffn_norm" => &["post_attention_layernorm"],
        "query" => &["self_attn.q_proj"],
        "key_value" => &["self_attn.k_proj", "self_attn.v_proj"],
        "output" => &["self_attn.o_proj"],
        "gate_up" => &["mlp.gate_proj", "mlp.up_proj"],
        "down" => &["mlp.down_proj"],
        _ => &[],
    }
}

fn name_in_router(part: &str) -> &'static str {
    match part {
        "score" => "router.weight",
        "up" => "router.0.weight",
        _ => "router.2.weight",
    }
}
