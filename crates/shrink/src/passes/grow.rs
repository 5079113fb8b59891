//! A larger model that computes the same (function-preserving growth: Net2Net, Chen et al., 2015,
//! arXiv 1511.05641; AquilaMoE's EfficientScale, Zhang et al., 2024, arXiv 2408.06567). In width
//! every unit stands several times, and what reads units divides by their number; in depth copies
//! of layers that write nothing stand behind each layer. Training starts where the small model is.

use model::attention::{KEY_VALUE, KEY_VALUE_BIAS, OUTPUT, OUTPUT_BIAS};
use model::mlp::dense::{DOWN, DOWN_BIAS, GATE_UP, GATE_UP_BIAS};
use model::mlp::experts::{
    EXPERTS_DOWN, EXPERTS_DOWN_BIAS, EXPERTS_GATE_UP, EXPERTS_GATE_UP_BIAS, SHARED_DOWN,
    SHARED_GATE_UP, SHARED_GATE_UP_BIAS,
};
use model::params::{Group, ParamPlace, ParamSpec, Part};
use model::table::specs;
use model::{MlpConfig, Model, ModelConfig, RouterState};
use serde::{Deserialize, Serialize};

use super::layers::{chosen, plain};
use super::member::{PassSettings, RunningPass};
use crate::bank;
use crate::error::refused;
use crate::seen::Wanted;
use crate::{ModelChange, ShrinkError};

/// What writes to the stream: zero in a layer that is to change nothing.
const WRITES: [Part; 7] =
    [OUTPUT, OUTPUT_BIAS, DOWN, DOWN_BIAS, EXPERTS_DOWN, EXPERTS_DOWN_BIAS, SHARED_DOWN];

/// `{ kind = "grow", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrowSettings {
    /// How many times as wide: stream, heads, and MLPs.
    pub width: usize,
    /// How many times as deep.
    pub depth: usize,
}

impl Default for GrowSettings {
    fn default() -> Self {
        Self { width: 1, depth: 2 }
    }
}

impl PassSettings for GrowSettings {
    /// Rows, and so the logits of routers, are what they were.
    fn keeps_thresholds(&self) -> bool {
        true
    }

    fn check(&self) -> Result<(), ShrinkError> {
        for (field, found) in [("grow: width", self.width), ("grow: depth", self.depth)] {
            if found == 0 || found > 16 {
                return refused(field, "1 to 16", found, "give such a number");
            }
        }
        if self.width == 1 && self.depth == 1 {
            let expected = "a width or a depth above 1";
            return refused("grow", expected, "both 1", "give one of them");
        }
        Ok(())
    }

    fn begin(&self, config: &ModelConfig, _: u64) -> Result<Box<dyn RunningPass>, ShrinkError> {
        if self.depth > 1 {
            let expected = "\"none\": copies of a shared layer would stand in every recursion";
            let next = "grow in width alone, or unroll the model with lathe convert";
            plain(config, expected, next)?;
            bank::chosen_anywhere(config, "grow in width alone")?;
        }
        if config.relax.kind() != "none" {
            let found = config.relax.kind();
            let next = match found {
                "encoding" => "choose a model without vectors of recursions",
                _ => "merge adapters into the layers first, with lathe convert",
            };
            return refused("the checkpoint: relax", "\"none\"", found, next);
        }
        if let MlpConfig::Experts(experts) = &config.mlp {
            let others = experts.identity_experts + experts.constant_experts;
            if others > 0 {
                let expected = "experts that compute: others write the row itself, in any depth";
                let found = format!("{others} identity or constant experts");
                let next = "choose a model without them";
                return refused("the checkpoint: mlp", expected, found, next);
            }
        }
        Ok(Box::new(Grow { settings: self.clone() }))
    }
}

struct Grow {
    settings: GrowSettings,
}

impl RunningPass for Grow {
    fn wanted(&self) -> Wanted {
        Wanted::default()
    }

    fn layers(&self, _: &Model) -> Vec<usize> {
        Vec::new()
    }

    fn finish(&mut self, model: &Model, state: &RouterState) -> Result<ModelChange, ShrinkError> {
        let GrowSettings { width, depth } = self.settings;
        let mut change = ModelChange::default();
        let mut config = model.config().clone();
        if depth > 1 {
            let of: Vec<usize> = (0..config.layers * depth).map(|layer| layer / depth).collect();
            change = chosen(model, state, &of)?;
            for (place, values) in &mut change.weights {
                let ParamPlace::Layer { stored, part } = place else { continue };
                if !stored.is_multiple_of(depth) && WRITES.contains(part) {
                    values.fill(0.0);
                }
            }
            config = change.config.clone().unwrap_or(config);
        }
        let deep = config.clone();
        if width > 1 {
            let plan = deep.check()?;
            config = wider(&deep, width);
            let wide = specs(&config, &config.check()?);
            for (was, now) in specs(&deep, &plan).iter().zip(&wide) {
                let values = match change.weights.remove(&was.place) {
                    Some(values) => values,
                    None => bank::weight(model, &was.place).unwrap_or_default(),
                };
                let experts = match was.place {
                    ParamPlace::Layer { stored, .. } => {
                        deep.mlp.settings().computing_experts(stored)
                    }
                    _ => 0,
                };
                let expands = deep.attention.latent().is_some();
                let stretches = stretches(&was.place, experts, expands);
                change.weights.insert(was.place.clone(), tiled(&values, was, now, stretches));
            }
        }
        change.went.push(format!(
            "{} layers of width {}, not {} of {}",
            config.layers,
            config.width,
            model.config().layers,
            model.config().width
        ));
        change.config = Some(config);
        Ok(change)
    }
}

fn wider(config: &ModelConfig, factor: usize) -> ModelConfig {
    let mut wide = ModelConfig {
        width: config.width * factor,
        heads: config.heads * factor,
        kv_heads: config.kv_heads * factor,
        ffn: config.ffn * factor,
        ..config.clone()
    };
    if let MlpConfig::Experts(experts) = &mut wide.mlp {
        experts.width *= factor;
        experts.shared *= factor;
    }
    if wide.tie_embeddings {
        // The head is the embedding, which cannot be divided for the head alone.
        wide.multipliers.logits_divisor *= factor as f64;
    }
    wide
}

/// Stretches of rows, and of columns, that stand several times each on their own: gate and up, keys
/// and values (unless a latent `expands` to them, head by head), and the matrices of a bank.
fn stretches(place: &ParamPlace, experts: usize, expands: bool) -> (usize, usize) {
    let ParamPlace::Layer { part, .. } = *place else { return (1, 1) };
    match part {
        KEY_VALUE if expands => (1, 1),
        GATE_UP | KEY_VALUE | SHARED_GATE_UP => (2, 1),
        GATE_UP_BIAS | KEY_VALUE_BIAS | SHARED_GATE_UP_BIAS => (1, 2),
        EXPERTS_GATE_UP => (2 * experts, 1),
        EXPERTS_DOWN => (experts, 1),
        EXPERTS_GATE_UP_BIAS => (experts, 2),
        EXPERTS_DOWN_BIAS => (experts, 1),
        _ => (1, 1),
    }
}

/// Rows and columns of a weight as often as the shape `now` says. Where a product sums over columns
/// that stand several times, they are divided by their number.
fn tiled(
    values: &[f32],
    was: &ParamSpec,
    now: &ParamSpec,
    (row_stretches, column_stretches): (usize, usize),
) -> Vec<f32> {
    let (rows, columns) = was.shape;
    let (down, across) = (now.shape.0 / rows.max(1), now.shape.1 / columns.max(1));
    let sums = match was.group {
        Group::Norm => false,
        Group::Embedding => was.place == ParamPlace::Head,
        _ => true,
    };
    let share = if sums { across as f32 } else { 1.0 };
    let mut all = Vec::with_capacity(now.count());
    let each = (rows / row_stretches).max(1);
    for stretch in values.chunks_exact(each * columns) {
        for _ in 0..down {
            for row in stretch.chunks_exact(columns) {
                for part in row.chunks_exact(columns / column_stretches) {
                    for _ in 0..across {
                        all.extend(part.iter().map(|x| x / share));
                    }
                }
            }
        }
    }
    all
}
