//! The model: embedding, first layers, recursions, last layers, norm, head.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Head, Ops, RmsNorm, Tensor2, Weight};

use crate::adapters::member::StreamAdapter;
use crate::attention::{self, Attention};
use crate::attention_settings::QueryKeyNorm;
use crate::block::Block;
use crate::carry::Carry;
use crate::config::ModelConfig;
use crate::context::LayerContext;
use crate::error::ConfigError;
use crate::latent::{self, Latent};
use crate::layout::{DepthRuns, LayerPlan, LayerUse};
use crate::linear::LinearBuilder;
use crate::mlp::ExpertBank;
use crate::mlp::experts::BANKS;
use crate::norm::{Join, Norm, NormWeights};
use crate::params::{ParamPlace, ParamSpec, Part, RouterSite, Take};
use crate::pass::Pass;
use crate::recursion::Recursion;
use crate::recursion_state::RecursionState;
use crate::rows::Rows;
use crate::weight_formats::{WeightFormatError, WeightFormats};
use crate::{mlp, table};

/// A decoder over its weights. Cheap to share between threads; weights change in place between
/// passes.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    plan: LayerPlan,
    weights: Vec<(ParamSpec, Arc<Weight>)>,
    embed: Arc<Weight>,
    head: Arc<Weight>,
    head_bias: Option<Arc<Weight>>,
    norm: NormWeights,
    recursion: Recursion,
}

/// What a pass gives.
#[derive(Debug)]
pub struct ForwardOutput {
    /// Rows after the final norm, ready for the head.
    pub x_td: Tensor2,
    /// How many recursions each row had.
    pub depth_t: Vec<u32>,
}

impl Model {
    /// Builds `config` over the values that `source` gives for each entry of the parameter table.
    ///
    /// # Errors
    /// An impossible config, or what `source` says.
    pub fn build<E: From<ConfigError>>(
        config: &ModelConfig,
        mut source: impl FnMut(&ParamSpec) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        Self::over(config, |spec| Ok(Weight::new(source(spec)?, spec.shape.0, spec.shape.1)))
    }

    /// Builds `config` over the weights that `source` gives, rounded or not. Panics if one has
    /// another shape than its entry of the parameter table.
    ///
    /// # Errors
    /// An impossible config, or what `source` says.
    pub fn over<E: From<ConfigError>>(
        config: &ModelConfig,
        mut source: impl FnMut(&ParamSpec) -> Result<Weight, E>,
    ) -> Result<Self, E> {
        Self::sharing(config, |spec| source(spec).map(Arc::new))
    }

    /// Builds `config` over weights that another model may have, too. Panics if one has another
    /// shape than its entry of the parameter table; a bank may hold fewer experts, those of one
    /// process, if who holds the others is said ([`ExpertBank::leave_to`]) ahead of the first pass.
    ///
    /// # Errors
    /// An impossible config, or what `source` says.
    pub fn sharing<E: From<ConfigError>>(
        config: &ModelConfig,
        mut source: impl FnMut(&ParamSpec) -> Result<Arc<Weight>, E>,
    ) -> Result<Self, E> {
        let plan = config.check()?;
        let sizes = config.sizes();
        let mut weights = Vec::new();
        for spec in table::specs(config, &plan) {
            let weight = source(&spec)?;
            let ((rows, columns), found) = (spec.shape, weight.shape());
            let part = spec.place.part().is_some_and(|part| BANKS.contains(&part));
            let fits = found.0 == rows || part && found.0 < rows;
            assert!(fits && found.1 == columns, "{}: {found:?} for {:?}", spec.name, spec.shape);
            weights.push((spec, weight));
        }
        let mut take = Take::new(&weights);
        let stream = config.relax.settings().build_stream(&sizes, &plan, &mut take);
        let blocks = (0..plan.stored)
            .map(|stored| Arc::new(block(config, &plan, stored, stream.as_ref(), &mut take)))
            .collect();
        let router = config.router.settings();
        let recursion = Recursion {
            router: router.build(&sizes, RouterSite::Depth, &mut take),
            chooses: router.chooses(),
            blocks,
            uses: plan.recursions.clone(),
        };
        let embed = take.take(&ParamPlace::Embed);
        let last_bias = !config.norms.kind.is_rms();
        let norm = NormWeights {
            scale: take.take(&ParamPlace::FinalNorm),
            bias: last_bias.then(|| take.take(&ParamPlace::FinalNormBias)),
        };
        let head_bias = config.head_bias.then(|| take.take(&ParamPlace::HeadBias));
        let head = match config.tie_embeddings {
            true => embed.clone(),
            false => take.take(&ParamPlace::Head),
        };
        take.finish()?;
        let config = config.clone();
        Ok(Self { config, plan, weights, embed, head, head_bias, norm, recursion })
    }

    /// A fresh model: every weight is a function of the seed and its name.
    ///
    /// # Errors
    /// An impossible config.
    pub fn fresh(config: &ModelConfig, seed: u64) -> Result<Self, ConfigError> {
        Self::build(config, |spec| Ok(spec.fresh(seed)))
    }

    /// The settings that it was built from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Which stored layer each unrolled one uses.
    pub fn plan(&self) -> &LayerPlan {
        &self.plan
    }

    /// Every weight once, in the order of the parameter table.
    pub fn weights(&self) -> &[(ParamSpec, Arc<Weight>)] {
        &self.weights
    }

    /// The banks of its layers, in the order of stored layers.
    pub fn banks(&self) -> Vec<Arc<ExpertBank>> {
        self.recursion.blocks.iter().filter_map(|block| block.mlp.bank().cloned()).collect()
    }

    /// What turns normed rows into logits.
    pub fn head(&self) -> Head<'_> {
        Head { e_vd: &self.head, b_1v: self.head_bias.as_deref() }
    }

    /// Collects gradients from now on, or stops.
    pub fn collect_gradients(&self, yes: bool) {
        self.weights.iter().for_each(|(_, w)| w.collect_gradient(yes));
    }

    /// Prepares for generation: matrices are kept in panel order too, which changes no bit of any
    /// result.
    pub fn pack(&self) {
        self.weights.iter().filter(|(s, _)| s.shape.0 > 1).for_each(|(_, w)| w.pack());
    }

    /// Rounds each weight as `formats` says, for inference.
    ///
    /// # Errors
    /// A format that does not fit a matrix, or a pattern that fits no weight.
    pub fn quantize(&self, formats: &WeightFormats) -> Result<(), WeightFormatError> {
        formats.check(&table::specs(&self.config, &self.plan))?;
        for (spec, weight) in &self.weights {
            if let Some(format) = formats.of(spec) {
                weight.quantize(format)?;
            }
        }
        Ok(())
    }

    /// The weights that `other` does not have, too.
    pub fn weights_beside<'a>(
        &'a self,
        other: &'a Model,
    ) -> impl Iterator<Item = &'a (ParamSpec, Arc<Weight>)> {
        let shared = |weight: &Arc<Weight>| {
            other.weights.iter().any(|(_, theirs)| Arc::ptr_eq(theirs, weight))
        };
        self.weights.iter().filter(move |(_, weight)| !shared(weight))
    }

    /// Bytes of all weights as they are kept now.
    pub fn bytes(&self) -> usize {
        self.weights.iter().map(|(_, weight)| weight.bytes()).sum()
    }

    /// Runs `ids`, one a row. Panics if counts differ or an id is not below the vocabulary size:
    /// who takes in ids checks them.
    pub fn forward(&self, ids: &Arc<[u32]>, rows: &Rows, pass: &mut Pass<'_>) -> ForwardOutput {
        let mut state = self.prelude(ids, rows, pass);
        while state.is_active() {
            self.recur(&mut state, pass);
        }
        let RecursionState { x_td, depth_t, rows, .. } = state;
        ForwardOutput { x_td: self.coda(x_td, &rows, pass), depth_t }
    }

    /// The first part of a pass: embedding and first layers.
    pub fn prelude(&self, ids: &Arc<[u32]>, rows: &Rows, pass: &mut Pass<'_>) -> RecursionState {
        let rows = &rows.with_tokens(ids);
        let x_td = self.embedded(ids, pass);
        let mut carry = Carry::default();
        if let Some((name, width)) = self.config.mlp.settings().carried() {
            // Here, so that rows carry the same at every depth, whatever layers come first.
            carry.set(name, pass.nothing(rows.len(), width));
        }
        let x_td = self.layers(&self.plan.before, x_td, rows, &mut carry, pass);
        if self.plan.recursions.is_empty() {
            let mut state = RecursionState::new(x_td, rows.clone(), BTreeMap::default());
            state.depth_t.fill(self.config.recursions as u32);
            return state;
        }
        self.recursion.begin(x_td, rows, carry, pass)
    }

    /// The stream of `ids` ahead of the first layer.
    pub fn embedded(&self, ids: &Arc<[u32]>, pass: &Pass<'_>) -> Tensor2 {
        let anchor = pass.ops.anchor(pass.record);
        let x_td = pass.ops.embed(&anchor, &self.embed, ids);
        times(x_td, self.config.multipliers.embedding, pass.ops)
    }

    /// One use of one layer on rows that carry their tokens, for what looks at a model layer by
    /// layer. A model whose layers are all of [`LayerPlan::before`] is [`Model::embedded`], these
    /// in order, and [`Model::coda`].
    ///
    /// Panics where layers read what earlier ones left in what rows carry, which begins empty here.
    pub fn layer(&self, at: LayerUse, x_td: Tensor2, rows: &Rows, pass: &mut Pass<'_>) -> Tensor2 {
        self.assert_layers_stand_alone();
        self.layers(&[at], x_td, rows, &mut Carry::default(), pass)
    }

    /// What the MLP of one use of a layer adds to rows `h` that carry their tokens, for comparisons
    /// of an MLP alone. Panics as [`Model::layer`].
    pub fn mlp(&self, at: LayerUse, h_td: Tensor2, rows: &Rows, pass: &mut Pass<'_>) -> Tensor2 {
        self.assert_layers_stand_alone();
        let (runs, none_td) = (DepthRuns::one(at, rows.len()), ops::zeros_like(&h_td));
        let carry = &mut Carry::default();
        let mut context = LayerContext { pass, rows, at: &runs, carry };
        self.recursion.blocks[at.stored].mlp.forward(h_td, none_td, &mut context)
    }

    fn assert_layers_stand_alone(&self) {
        assert!(
            !self.config.mlp.settings().links_layers(),
            "a layer alone: expected layers that read nothing of earlier ones, found a shortcut or \
             a router with memory; run the whole model"
        );
    }

    /// The middle part, again and again: one recursion for every row that may still go on.
    pub fn recur(&self, state: &mut RecursionState, pass: &mut Pass<'_>) {
        self.recursion.recur(state, pass);
    }

    /// The last part: last layers and norm, for rows that are done with recursions.
    pub fn coda(&self, x_td: Tensor2, rows: &Rows, pass: &mut Pass<'_>) -> Tensor2 {
        let carry = &mut Carry::default();
        let x_td = self.layers(&self.plan.after, x_td, rows, carry, pass);
        let x_td = self.norm.forward(x_td, norm_options(&self.config, false), pass.ops);
        pass.probe.stream(&x_td);
        times(x_td, 1.0 / self.config.multipliers.logits_divisor, pass.ops)
    }

    /// Logits `[t, v]` of what [`Model::coda`] gives.
    pub fn logits(&self, x_td: Tensor2, pass: &Pass<'_>) -> Tensor2 {
        let logits_tv = pass.ops.logits(x_td, self.head());
        match self.config.multipliers.cap() {
            Some(cap) => pass.ops.soft_cap(logits_tv, cap),
            None => logits_tv,
        }
    }

    /// Cross-entropy of what [`Model::coda`] gives, as [`Ops::capped_head_loss`] over the model's
    /// head.
    pub fn head_loss(
        &self,
        ops: Ops,
        x_td: Tensor2,
        targets: &Arc<[u32]>,
        weights: &Arc<[f32]>,
    ) -> (Tensor2, Vec<f32>) {
        let cap = self.config.multipliers.cap();
        ops.capped_head_loss(x_td, self.head(), cap, targets, weights)
    }

    fn layers(
        &self,
        uses: &[LayerUse],
        mut x_td: Tensor2,
        rows: &Rows,
        carry: &mut Carry,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        for &at in uses {
            pass.probe.stream(&x_td);
            let runs = DepthRuns::one(at, rows.len());
            let mut context =
                LayerContext { pass: &mut *pass, rows, at: &runs, carry: &mut *carry };
            x_td = self.recursion.blocks[at.stored].forward(x_td, &mut context);
        }
        x_td
    }
}

/// Stored layer `stored` over its weights.
fn block(
    config: &ModelConfig,
    plan: &LayerPlan,
    stored: usize,
    stream: Option<&Arc<dyn StreamAdapter>>,
    take: &mut Take,
) -> Block {
    let sizes = &config.sizes();
    let table = table::linears(config, stored);
    let linears = LinearBuilder { sizes, plan, stored, table, adapters: config.relax.settings() };
    let behind = stream.filter(|stream| stream.is_behind(stored)).cloned();
    let norms = NormBuilder { config, plan, stored };
    let (settings, heads) = (&config.attention, config.heads());
    let window = settings.window_of(stored);
    let [query_bias, key_value_bias] =
        [attention::QUERY_BIAS, attention::KEY_VALUE_BIAS].map(|b| settings.bias.then_some(b));
    let output_bias = settings.output_bias.then_some(attention::OUTPUT_BIAS);
    let turns = |head_dim| {
        let of_heads = (head_dim, config.turned());
        let of_model = (config.rope_theta, config.context);
        config.rotary.of_layer(of_model, of_heads, stored, window.is_some())
    };
    let latent = settings.latent().map(|sizes| {
        let norm = |part, take: &mut Take| norms.of_latent(part, take);
        let scaled = (sizes, settings.latent_scale);
        Latent::build(scaled, turns(sizes.turned), &linears, norm, take)
    });
    let sinks = ParamPlace::Layer { stored, part: attention::SINKS };
    let sinks = settings.sinks.then(|| take.take(&sinks));
    Block {
        attention: Attention {
            norm: norms.before(attention::NORM, take),
            query: linears.build_biased(attention::QUERY, query_bias, take),
            key_value: linears.build_biased(attention::KEY_VALUE, key_value_bias, take),
            output: linears.build_biased(attention::OUTPUT, output_bias, take),
            latent,
            query_norm: norms.of_heads(attention::QUERY_NORM, heads.heads, take),
            key_norm: norms.of_heads(attention::KEY_NORM, heads.kv_heads, take),
            turned_first: settings.query_key_norm == QueryKeyNorm::HeadTurned,
            clip: (settings.clip > 0.0).then_some(settings.clip as f32),
            sinks,
            heads,
            rotary: turns(config.head_dim),
            window,
            mode: config.kv,
            join: norms.join(attention::AFTER_NORM, take),
        },
        mlp_norm: norms.before(mlp::NORM, take),
        mlp: config.mlp.settings().build(&linears, take),
        mlp_join: norms.join(mlp::AFTER_NORM, take),
        behind,
    }
}

/// Builds the norms of one stored layer.
struct NormBuilder<'a> {
    config: &'a ModelConfig,
    plan: &'a LayerPlan,
    stored: usize,
}

impl NormBuilder<'_> {
    /// The norm ahead of attention or MLP, if the model has norms there.
    fn before(&self, part: Part, take: &mut Take) -> Option<Norm> {
        self.config.norms.before().then(|| self.norm(part, true, take))
    }

    /// How the result of attention or MLP joins the stream.
    fn join(&self, part: Part, take: &mut Take) -> Join {
        let after = self.config.norms.after().then(|| self.norm(part, false, take));
        Join { after, factor: self.config.multipliers.residual as f32 }
    }

    /// The norm of queries or keys, if there is one, and of how many stretches of a row.
    fn of_heads(&self, part: Part, heads: usize, take: &mut Take) -> Option<(Norm, usize)> {
        let (stretches, _) = self.config.attention.normed(heads, self.config.head_dim)?;
        Some((self.norm(part, false, take), stretches))
    }

    /// The norm of a latent.
    fn of_latent(&self, part: Part, take: &mut Take) -> Norm {
        let norm = self.norm(part, false, take);
        let options = RmsNorm { eps: latent::EPSILON, ..norm.options };
        Norm { options, ..norm }
    }

    /// A norm with weights for all uses or for each; `residual` says whether what it norms goes
    /// on in the stream too.
    fn norm(&self, part: Part, residual: bool, take: &mut Take) -> Norm {
        let stored = self.stored;
        let count = table::norm_count(self.config, self.plan, stored, part);
        let bias = table::norm_bias(self.config, part);
        let mut weights = Vec::with_capacity(count);
        for recursion in 0..count {
            let mut of = |part| take.take(&ParamPlace::LayerNorm { stored, part, recursion });
            weights.push(NormWeights { scale: of(part), bias: bias.map(of) });
        }
        Norm { weights, options: norm_options(self.config, residual) }
    }
}

/// `factor * x`, and `x` itself for 1.
fn times(x_td: Tensor2, factor: f64, ops: Ops) -> Tensor2 {
    if factor == 1.0 { x_td } else { ops.times(x_td, factor as f32) }
}

fn norm_options(config: &ModelConfig, residual: bool) -> RmsNorm {
    RmsNorm { eps: config.norm_eps as f32, plus_one: config.norms.plus_one, residual }
}
