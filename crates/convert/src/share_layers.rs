//! From one member of the family to another: a dense model into a recursive or
//! Mixture-of-Recursions one, a recursive one into its unrolled copy. A converted
//! Mixture-of-Recursions model computes what the recursive one does, bit for bit: every row takes
//! every recursion, and its gate is 1.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{NamedTensor, RealDisk};
use model::adapters::{Part, Relaxation, lora, merge};
use model::layout::{LayerPlan, LayerUse};
use model::params::{Group, ParamSpec, specs};
use model::routers::expert_choice::{self, Gating};
use model::{CausalThresholds, KvMode, ModelConfig, RouterConfig, RouterState, Rule, Sharing};
use ops::Weight;
use serde_json::json;
use train::{Made, Stored, write_model};

use crate::adapters::{Adapters, fit};
use crate::error::refused;
use crate::{ConvertError, Copied, Costs, Report, Start, kept, sources};

/// What a model is to become.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The layout; `none` unrolls.
    pub sharing: Sharing,
    /// How often shared layers are used.
    pub recursions: usize,
    /// What shared layers start from.
    pub start: Start,
    /// Who will decide how deep a token goes: `fixed` or `expert_choice`, whose gate and capacities
    /// become neutral.
    pub router: RouterConfig,
    /// What later recursions attend to.
    pub kv: KvMode,
    /// Whether norms are shared with the layers. If not, every use keeps the norms of the layer
    /// that it replaces.
    pub share_norms: bool,
    /// Layers of the source to build on, instead of those that [`kept`] gives.
    pub keep: Option<Vec<usize>>,
    /// What uses of shared layers may do differently.
    pub relax: Relaxation,
    /// Whether adapters start at what sharing throws away (its largest singular values) instead of
    /// at nothing.
    pub fit_adapters: bool,
    /// Seed of fresh routers and of drawn layers.
    pub seed: u64,
}

/// Writes the checkpoint folder `out` with what `stored` becomes.
///
/// # Errors
/// A source whose router chooses, layers that do not fit the layout, an impossible target, `out` is
/// taken.
pub fn convert(
    stored: &Stored,
    target: &Target,
    out: &Path,
) -> Result<(PathBuf, Report), ConvertError> {
    let source = Source::of(stored)?;
    let keep = match &target.keep {
        Some(keep) => keep.clone(),
        None if target.sharing == Sharing::None => (0..source.uses.len()).collect(),
        None => kept(source.uses.len(), target.sharing, target.recursions)?,
    };
    if let Some(layer) = keep.iter().find(|&&layer| layer >= source.uses.len()) {
        return refused(
            "--keep",
            "layer",
            layer,
            format!("below {}, the source's layers", source.uses.len()),
        );
    }
    let config = ModelConfig {
        layers: keep.len(),
        sharing: target.sharing,
        recursions: target.recursions,
        share_norms: target.share_norms,
        relax: target.relax.clone(),
        router: neutral(&target.router, target.recursions)?,
        kv: target.kv,
        ..stored.model.config().clone()
    };
    let plan = config.check()?;
    let from: Vec<Vec<usize>> = sources(target.start, target.sharing, &plan, target.seed)
        .into_iter()
        .map(|layers| layers.into_iter().map(|l| keep[l]).collect())
        .collect();
    let matrices = |at: LayerUse, part: Part| -> Option<(Vec<f32>, Vec<f32>)> {
        let own = source.read(keep[at.layer], part.name())?;
        Some((own, source.mean(&from[at.stored], part.name())?))
    };
    let fitted = target.fit_adapters.then(|| fit(&config, &plan, target.seed, &matrices));
    let recast = Recast {
        source: &source,
        plan: &plan,
        keep: &keep,
        from: &from,
        share_norms: config.share_norms,
        fitted: fitted.as_ref(),
    };
    let (mut weights, mut fresh) = (Vec::new(), Vec::new());
    for spec in specs(&config, &plan) {
        let data = recast.value(&spec).unwrap_or_else(|| {
            fresh.push(spec.name.clone());
            spec.fresh(target.seed)
        });
        weights.push(NamedTensor {
            name: spec.name,
            shape: vec![spec.shape.0, spec.shape.1],
            data: data.into(),
        });
    }
    let report = Report {
        start: target.start,
        seed: target.seed,
        dropped: (0..source.uses.len()).filter(|layer| !keep.contains(layer)).collect(),
        layers: (0..plan.stored).map(|stored| recast.copied(stored)).collect(),
        fresh,
        before: Costs::of(stored.model.config())?,
        after: Costs::of(&config)?,
        kept: keep.clone(),
    };
    let rule = rule_of(&config);
    let made = Made {
        config: &config,
        weights,
        rounded: None,
        recipe: None,
        rule: rule.as_ref(),
        state: &RouterState::default(),
        tokenizer: stored.tokenizer.as_deref(),
        text: stored.text.as_ref(),
        origin: json!({ "made_by": "convert", "report": report, "source": stored.origin }),
    };
    Ok((write_model(out, made, &RealDisk)?, report))
}

/// The router with every row at full depth and a gate of 1.
fn neutral(router: &RouterConfig, recursions: usize) -> Result<RouterConfig, ConvertError> {
    match router {
        RouterConfig::Fixed => Ok(RouterConfig::Fixed),
        RouterConfig::ExpertChoice(c) => Ok(RouterConfig::ExpertChoice(expert_choice::Config {
            capacities: Some(vec![1.0; recursions]),
            capacity_warmup_steps: 0,
            gating: Gating::Replace,
            gate_release_steps: 0,
            ..c.clone()
        })),
        other => {
            let expected = "\"fixed\" or \"expert_choice\", which have a setting that computes the recursive model";
            refused("--router", "kind", format!("\"{}\"", other.kind()), expected)
        }
    }
}

/// Everyone passes.
fn rule_of(config: &ModelConfig) -> Option<Rule> {
    let RouterConfig::ExpertChoice(_) = config.router else { return None };
    let thresholds = vec![None; config.recursions];
    Some(Rule::Causal(CausalThresholds {
        made_by: "full capacity".into(),
        auxiliary: false,
        thresholds,
    }))
}

/// The source as if nothing in it were shared.
struct Source<'a> {
    weights: BTreeMap<&'a str, &'a Arc<Weight>>,
    uses: Vec<LayerUse>,
    config: &'a ModelConfig,
}

impl<'a> Source<'a> {
    fn of(stored: &'a Stored) -> Result<Self, ConvertError> {
        let config = stored.model.config();
        let plain = match &config.router {
            RouterConfig::Fixed => true,
            RouterConfig::ExpertChoice(c) => {
                let all = c
                    .capacities
                    .as_ref()
                    .is_some_and(|list| list.iter().all(|&share| share >= 1.0));
                all && c.gating == Gating::Replace
            }
            _ => false,
        };
        if !plain {
            let expected = "a model in which every token takes every layer: dense, recursive, or converted and not yet \
                            trained";
            return refused(
                "the source",
                "router",
                format!("\"{}\"", config.router.kind()),
                expected,
            );
        }
        if config.kv != KvMode::RecursionWise {
            return refused(
                "the source",
                "kv",
                format!("{:?}", config.kv),
                "recursion_wise: layers with their own keys",
            );
        }
        if matches!(config.relax, Relaxation::Encoding(_)) {
            let expected = "none, lora or dora: a factor of the stream is no part of any layer";
            return refused("the source", "relax", config.relax.kind(), expected);
        }
        Ok(Self {
            weights: stored
                .model
                .weights()
                .iter()
                .map(|(spec, weight)| (spec.name.as_str(), weight))
                .collect(),
            uses: stored.model.plan().unrolled().collect(),
            config,
        })
    }

    /// A part of an unrolled layer, with what its use adds.
    fn read(&self, layer: usize, part: &str) -> Option<Vec<f32>> {
        let at = self.uses[layer];
        let name = match part {
            "attention_norm" | "ffn_norm" => {
                format!(
                    "layers.{}.{part}.{}",
                    at.stored,
                    if self.config.share_norms { 0 } else { at.recursion }
                )
            }
            _ => format!("layers.{}.{part}", at.stored),
        };
        let shared = self.weights.get(name.as_str())?.read();
        let Some(part) = Part::ALL.into_iter().find(|known| known.name() == part) else {
            return Some(shared);
        };
        let adapter = |what| {
            self.weights.get(lora::name(at, part, what).as_str()).map(|weight| weight.read())
        };
        let (Some(down), Some(up)) = (adapter("down"), adapter("up")) else { return Some(shared) };
        let scale = self.config.relax.adapters().map_or(0.0, |(settings, _)| settings.scale());
        let length = adapter("length");
        Some(merge(&shared, part.shape(self.config).1, &down, &up, scale, length.as_deref()))
    }

    /// The mean of a part over some layers; a copy if it is one.
    fn mean(&self, layers: &[usize], part: &str) -> Option<Vec<f32>> {
        if let [layer] = layers {
            return self.read(*layer, part);
        }
        let mut sum: Vec<f64> = Vec::new();
        for &layer in layers {
            let values = self.read(layer, part)?;
            sum.resize(values.len(), 0.0);
            sum.iter_mut().zip(&values).for_each(|(s, &x)| *s += f64::from(x));
        }
        Some(sum.into_iter().map(|s| (s / layers.len() as f64) as f32).collect())
    }
}

/// A conversion under way.
struct Recast<'a> {
    source: &'a Source<'a>,
    plan: &'a LayerPlan,
    keep: &'a [usize],
    /// Layers of the source by stored layer of the result.
    from: &'a [Vec<usize>],
    share_norms: bool,
    fitted: Option<&'a Adapters>,
}

impl Recast<'_> {
    /// A parameter of the result, if the source has what it is made of.
    fn value(&self, spec: &ParamSpec) -> Option<Vec<f32>> {
        let Some((stored, part)) =
            spec.name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'))
        else {
            if let Some(fitted) = self.fitted.and_then(|adapters| adapters.weights.get(&spec.name))
            {
                return Some(fitted.clone());
            }
            let same = self.source.weights.get(spec.name.as_str());
            let is_base = !spec.name.starts_with("relax.") && !spec.name.starts_with("encoding.");
            let is_router = matches!(spec.group, Group::Router | Group::AuxiliaryRouter);
            return same.filter(|_| is_base && !is_router).map(|weight| weight.read());
        };
        let stored: usize = stored.parse().ok()?;
        match part.split_once('.') {
            None => self.source.mean(&self.from[stored], part),
            Some((norm, _)) if self.share_norms => self.source.mean(&self.from[stored], norm),
            Some((norm, recursion)) => {
                let recursion: usize = recursion.parse().ok()?;
                let at = self
                    .plan
                    .unrolled()
                    .find(|u| (u.stored, u.recursion) == (stored, recursion))?;
                self.source.read(self.keep[at.layer], norm)
            }
        }
    }

    fn copied(&self, stored: usize) -> Copied {
        let uses: Vec<LayerUse> = self.plan.unrolled().filter(|u| u.stored == stored).collect();
        let mut sums = vec![[0.0; 3]; uses.len()];
        for part in Part::ALL {
            let Some(shared) = self.source.mean(&self.from[stored], part.name()) else { continue };
            for (sum, at) in sums.iter_mut().zip(&uses) {
                let own = self.source.read(self.keep[at.layer], part.name()).unwrap_or_default();
                let merged =
                    self.fitted.and_then(|adapters| adapters.merged.get(&(at.layer, part.name())));
                let used = merged.unwrap_or(&shared);
                for ((&own, &shared), &used) in own.iter().zip(&shared).zip(used) {
                    let own = f64::from(own);
                    sum[0] += own * own;
                    sum[1] += (own - f64::from(shared)).powi(2);
                    sum[2] += (own - f64::from(used)).powi(2);
                }
            }
        }
        let share = |i: usize| {
            sums.iter().map(|sum| (sum[i] / sum[0].max(f64::MIN_POSITIVE)).sqrt()).collect()
        };
        Copied {
            stored,
            from: self.from[stored].clone(),
            instead_of: uses.iter().map(|at| self.keep[at.layer]).collect(),
            difference: share(1),
            remaining: share(2),
        }
    }
}
