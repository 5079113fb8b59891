//! Every weight of a model as one table: name, shape, start, optimizer group. Building, counting,
//! saving, loading and the optimizer all read it; shapes are written nowhere else.

use ops::Format;

use crate::config::ModelConfig;
use crate::layout::LayerPlan;
use crate::rng::{Purpose, Stream, name_place};

/// How a weight starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Independent normal numbers with this standard deviation.
    Normal(f64),
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
}

/// What kind of weight it is, for counting and for the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Token embedding and an untied head.
    Embedding,
    /// Attention and feed-forward matrices.
    Block,
    /// What a use of a shared layer adds to its matrices.
    Adapter,
    /// Norm scales and other factors that start at one: never decayed.
    Norm,
    /// The router that decides.
    Router,
    /// The auxiliary router, trained on its own: ten times the learning rate, clipped apart.
    AuxiliaryRouter,
}

/// One weight.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Its name in checkpoints.
    pub name: String,
    /// (rows, columns); a vector is one row.
    pub shape: (usize, usize),
    /// How it starts.
    pub init: Init,
    /// Its kind.
    pub group: Group,
}

impl ParamSpec {
    pub(crate) fn new(
        name: impl Into<String>,
        shape: (usize, usize),
        init: Init,
        group: Group,
    ) -> Self {
        Self { name: name.into(), shape, init, group }
    }

    /// How many numbers.
    pub fn count(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// The format in which this weight is kept when a model is rounded to `format`; `None` if it
    /// stays as it is. Matrices of embedding, layers and head are rounded, norms, routers and
    /// adapters are not; with 4-bit codes embedding and head get 8 bits, as errors there reach
    /// every token.
    pub fn rounded(&self, format: Format) -> Option<Format> {
        match self.group {
            Group::Embedding => Some(format.of_embedding()),
            Group::Block => Some(format),
            _ => None,
        }
    }

    /// Fresh values: a function of the seed and the name alone.
    pub fn fresh(&self, seed: u64) -> Vec<f32> {
        match self.init {
            Init::Ones => vec![1.0; self.count()],
            Init::Zeros => vec![0.0; self.count()],
            Init::Normal(std) => {
                let mut stream = Stream::at(seed, Purpose::Init, 0, name_place(&self.name));
                (0..self.count()).map(|_| (stream.normal() * std) as f32).collect()
            }
        }
    }
}

/// The table of `config`, which must have passed its check with this `plan`.
pub fn specs(config: &ModelConfig, plan: &LayerPlan) -> Vec<ParamSpec> {
    let (d, normal) = (config.width, Init::Normal(config.init_std));
    let mut table = vec![ParamSpec::new("embed", (config.vocab_size, d), normal, Group::Embedding)];
    for stored in 0..plan.stored {
        let uses = plan.unrolled().filter(|u| u.stored == stored).count();
        table.extend(layer(config, stored, if config.share_norms { 1 } else { uses }));
    }
    table.extend(config.relax.specs(config, plan));
    table.extend(config.router.specs(config));
    table.push(ParamSpec::new("norm", (1, d), Init::Ones, Group::Norm));
    if !config.tie_embeddings {
        table.push(ParamSpec::new("head", (config.vocab_size, d), normal, Group::Embedding));
    }
    table
}

/// `norms` is how many pairs of norm scales the layer has: one, or one a use.
fn layer(config: &ModelConfig, stored: usize, norms: usize) -> Vec<ParamSpec> {
    let (d, f, n) = (config.width, config.ffn, config.heads * config.head_dim);
    let matrix = |name: &str, shape| {
        ParamSpec::new(
            format!("layers.{stored}.{name}"),
            shape,
            Init::Normal(config.init_std),
            Group::Block,
        )
    };
    let mut table = Vec::new();
    for part in ["attention_norm", "ffn_norm"] {
        for use_ in 0..norms {
            let name = format!("layers.{stored}.{part}.{use_}");
            table.push(ParamSpec::new(name, (1, d), Init::Ones, Group::Norm));
        }
    }
    table.push(matrix("query", (n, d)));
    table.push(matrix("key_value", (config.kv_width(), d)));
    table.push(matrix("output", (d, n)));
    table.push(matrix("gate_up", (2 * f, d)));
    table.push(matrix("down", (d, f)));
    table
}
