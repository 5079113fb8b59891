//! From one member of the family to another: a dense model into a recursive or
//! Mixture-of-Recursions one, a recursive one into its unrolled copy. A converted
//! Mixture-of-Recursions model computes what the recursive one does, bit for bit: every row takes
//! every recursion, and its gate is 1.

use std::path::{Path, PathBuf};

use checkpoint::{Disk, NamedTensor};
use model::adapters::Relaxation;
use model::layout::{LayerPlan, LayerUse};
use model::params::{Group, ParamPlace, ParamSpec};
use model::table::{linears, specs};
use model::{
    CausalThresholds, Causality, ExpertRouterConfig, KvMode, MlpConfig, ModelConfig, RouterConfig,
    RouterState, Rule, Sharing,
};
use serde_json::json;
use train::{Made, Stored, write_model};

use crate::adapters::{Adapters, fit};
use crate::error::refused;
use crate::layers::first_uses;
use crate::source::SourceModel;
use crate::upcycle::Upcycling;
use crate::{ConversionReport, ConvertError, Copied, Costs, Start, kept, sources};

/// What a model is to become.
#[derive(Clone, Debug, PartialEq)]
pub struct ConversionTarget {
    /// The layout; `none` unrolls.
    pub sharing: Sharing,
    /// How often shared layers are used.
    pub recursions: usize,
    /// What shared layers start from.
    pub start: Start,
    /// What will decide how deep a token goes: `fixed` or `expert_choice`, whose gate and
    /// capacities become neutral.
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
    /// What dense MLPs become; they stay without it.
    pub experts: Option<Upcycling>,
    /// Seed of fresh routers and of what is drawn.
    pub seed: u64,
}

/// Writes the checkpoint folder `out` with what `stored` becomes.
///
/// # Errors
/// A source whose router chooses, a parameter that conversion does not know or that the source
/// lacks, layers that do not fit the layout, an impossible target, `out` is taken.
pub fn convert(
    stored: &Stored,
    target: &ConversionTarget,
    out: &Path,
    disk: &dyn Disk,
) -> Result<(PathBuf, ConversionReport), ConvertError> {
    let source = SourceModel::of(&stored.model)?;
    let keep = kept_layers(&source, target)?;
    let mlp = match &target.experts {
        Some(upcycling) => {
            upcycling.check(stored.model.config())?;
            MlpConfig::Experts(upcycling.experts.clone())
        }
        None => stored.model.config().mlp.clone(),
    };
    remembers_nothing(&mlp, target)?;
    let config = ModelConfig {
        layers: keep.len(),
        sharing: target.sharing,
        recursions: target.recursions,
        share_norms: target.share_norms,
        relax: target.relax.clone(),
        router: neutral(&target.router, target.recursions)?,
        kv: target.kv,
        mlp,
        ..stored.model.config().clone()
    };
    let plan = match config.check() {
        Err(error) if error.field.starts_with("mlp.") && target.experts.is_none() => {
            return Err(of_layers(&config, error.to_string()).unwrap_or_else(|| error.into()));
        }
        checked => checked?,
    };
    let mut conversion = Conversion::new(&source, &config, &plan, &keep, target);
    if target.experts.is_none() {
        conversion.draws_as_before()?;
    }
    // Experts that are made of one MLP may be made of a mean.
    if target.experts.is_none() {
        no_mean_of_choices(&specs(&config, &plan), &conversion.from)?;
    }
    if target.fit_adapters {
        conversion.fitted =
            fit(&config, &plan, target.seed, &|at, place| conversion.own_and_shared(at, place));
    }
    let (mut weights, mut fresh) = (Vec::new(), Vec::new());
    for spec in specs(&config, &plan) {
        let data = conversion.value(&spec)?.unwrap_or_else(|| {
            fresh.push(spec.name.clone());
            spec.fresh(target.seed)
        });
        let shape = vec![spec.shape.0, spec.shape.1];
        weights.push(NamedTensor { name: spec.name, shape, data: data.into() });
    }
    let report = ConversionReport {
        start: target.start,
        seed: target.seed,
        dropped: (0..source.layers()).filter(|layer| !keep.contains(layer)).collect(),
        layers: (0..plan.stored).map(|stored| conversion.copied(stored)).collect(),
        fresh,
        before: Costs::of(stored.model.config())?,
        after: Costs::of(&config)?,
        kept: keep.clone(),
        experts: target.experts.as_ref().map(|upcycling| upcycling.start),
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
    Ok((write_model(out, made, disk)?, report))
}

/// The error for a layout in which settings of layers mean something else than in the source; none
/// where there are no such settings.
fn of_layers(config: &ModelConfig, found: String) -> Option<ConvertError> {
    let told = config.mlp.settings().by_layer();
    if told.is_empty() {
        return None;
    }
    let what = format!("the source: {}", told.join(", "));
    let expected = "a layout of the result in which each stored layer is what it is made of";
    let next = "choose another --sharing, --recursions, --init or --keep, or train the source in \
                the layout that it has";
    Some(checkpoint::Misfit::new(what, expected, found, next).into())
}

/// Refuses means over several layers where rows choose among a layer's weights: the choices of two
/// layers come in no common order, so that their mean is none of them.
fn no_mean_of_choices(table: &[ParamSpec], from: &[Vec<usize>]) -> Result<(), ConvertError> {
    let chosen = table.iter().find(|spec| {
        let choice = spec.place.is_router() || (spec.group == Group::Block && spec.active < 1.0);
        choice && spec.place.layer().is_some_and(|stored| from[stored].len() > 1)
    });
    let Some(spec) = chosen else { return Ok(()) };
    let expected = "a start that copies one layer for each: stepwise, lower, upper or random";
    let found = format!("average, with \"{}\", of which a row meets a part", spec.name);
    refused("--init", expected, found, "choose one of these")
}

/// The layers of the source to build on.
fn kept_layers(
    source: &SourceModel<'_>,
    target: &ConversionTarget,
) -> Result<Vec<usize>, ConvertError> {
    let layers = source.layers();
    let keep = match &target.keep {
        Some(keep) => keep.clone(),
        None if target.sharing == Sharing::None => (0..layers).collect(),
        None => kept(layers, target.sharing, target.recursions)?,
    };
    if let Some(layer) = keep.iter().find(|&&layer| layer >= layers) {
        let expected = format!("below {layers}, the source's layers");
        return refused("--keep: layer", expected, layer, "leave it out of the list");
    }
    Ok(keep)
}

/// Refuses routers over experts that remember a row's way: where that begins anew depends on the
/// layout.
fn remembers_nothing(mlp: &MlpConfig, target: &ConversionTarget) -> Result<(), ConvertError> {
    if target.experts.is_some() || mlp.settings().carried().is_none() {
        return Ok(());
    }
    let expected = "0: what rows remember begins anew behind the recursions, and recursions are \
                    elsewhere in the result";
    let found = "a router that remembers";
    refused("the source: mlp.router.memory", expected, found, "convert a model without")
}

/// The router with every row at full depth and a gate of 1.
fn neutral(router: &RouterConfig, recursions: usize) -> Result<RouterConfig, ConvertError> {
    if let Some(neutral) = router.neutral(recursions) {
        return Ok(neutral);
    }
    let has_one = |router: &RouterConfig| router.neutral(recursions).is_some();
    let all = RouterConfig::all();
    let known: Vec<&str> =
        all.iter().filter(|router| has_one(router)).map(RouterConfig::kind).collect();
    let expected =
        format!("one with a setting that computes the recursive model: {}", known.join(" or "));
    refused("--router: kind", expected, format!("\"{}\"", router.kind()), "choose one of these")
}

/// The causal rule with which every row takes every recursion.
fn rule_of(config: &ModelConfig) -> Option<Rule> {
    let needed = config.router.settings().causality() != Causality::Always;
    needed.then(|| Rule::Causal(CausalThresholds::open("full capacity", config.recursions)))
}

/// A conversion under way.
struct Conversion<'a> {
    source: &'a SourceModel<'a>,
    config: &'a ModelConfig,
    plan: &'a LayerPlan,
    keep: &'a [usize],
    /// Layers of the source by stored layer of the result.
    from: Vec<Vec<usize>>,
    share_norms: bool,
    /// What dense MLPs become, and the seed of what is drawn for it.
    experts: Option<(&'a Upcycling, u64)>,
    /// Empty where adapters start at nothing.
    fitted: Adapters,
}

impl<'a> Conversion<'a> {
    fn new(
        source: &'a SourceModel<'a>,
        config: &'a ModelConfig,
        plan: &'a LayerPlan,
        keep: &'a [usize],
        target: &'a ConversionTarget,
    ) -> Self {
        let from = if target.start == Start::Stepwise && source.is_laid_out_as(plan, keep) {
            first_uses(plan)
        } else {
            sources(target.start, target.sharing, plan, target.seed)
        };
        let from = from
            .into_iter()
            .map(|layers| layers.into_iter().map(|layer| keep[layer]).collect())
            .collect();
        let share_norms = config.share_norms;
        let experts = target.experts.as_ref().map(|upcycling| (upcycling, target.seed));
        let fitted = Adapters::default();
        Self { source, config, plan, keep, from, share_norms, experts, fitted }
    }

    /// Refuses a layout in which a hash or dice over experts choose otherwise than in the layers
    /// that the weights come from: the number of the stored layer decides, and with routers of
    /// single uses that of the use.
    fn draws_as_before(&self) -> Result<(), ConvertError> {
        let MlpConfig::Experts(experts) = &self.config.mlp else { return Ok(()) };
        let router = &experts.router;
        if !matches!(router, ExpertRouterConfig::Hash(_) | ExpertRouterConfig::Random(_)) {
            return Ok(());
        }
        let mut all = (0..self.plan.stored).filter(|&stored| experts.reaches(stored));
        let Some(moved) = all.find(|&stored| !self.draws_alike(stored, experts.own_routers)) else {
            return Ok(());
        };
        let expected = "a router that scores experts: the number of a layer decides what a hash \
                        or dice choose";
        let found =
            format!("\"{}\", in another place in layer {moved} of the result", router.kind());
        let next = "choose another --sharing, --recursions, --init or --keep, or train the source \
                    in the layout that it has";
        refused("the source: mlp.router", expected, found, next)
    }

    /// Whether stored layer `stored` is made of the source's of that number, and where uses have
    /// routers of `own`, each use of the use of that number.
    fn draws_alike(&self, stored: usize, own: bool) -> bool {
        let mut from = self.from[stored].iter();
        let mut uses = self.plan.uses_of(stored).iter();
        from.all(|&layer| self.source.use_of(layer).stored == stored)
            && uses.all(|at| {
                let was = self.source.use_of(self.keep[at.layer]);
                !own || (was.stored, was.recursion) == (at.stored, at.recursion)
            })
    }

    /// A parameter of the result; `None` for what starts fresh: the router of depths, routers of
    /// new experts, and adapters that are not fitted.
    ///
    /// # Errors
    /// Any other parameter that the source lacks, or has in another size.
    fn value(&self, spec: &ParamSpec) -> Result<Option<Vec<f32>>, ConvertError> {
        let place = &spec.place;
        let found = match place.layer() {
            Some(_)
                if let Some((upcycling, _)) = self.experts
                    && place.is_router() =>
            {
                return Ok(upcycling.router(spec.shape.0, spec.count()));
            }
            Some(stored) => self.of_layer(stored, place),
            None if place.is_relaxation() => return Ok(self.fitted.weights.get(place).cloned()),
            None if place.is_router() => return Ok(None),
            None => self.source.kept(place),
        };
        if found.as_ref().is_some_and(|data| data.len() == spec.count()) {
            return Ok(found);
        }
        if place.layer().is_some()
            && let Some(error) =
                of_layers(self.config, format!("none of \"{}\" in the source", spec.name))
        {
            return Err(error);
        }
        refused(
            format!("the result: parameter \"{}\"", spec.name),
            format!("{} numbers from the source", spec.count()),
            found.map_or("none".into(), |data| format!("{} numbers", data.len())),
            "convert a model that has it",
        )
    }

    /// A weight of stored layer `stored` of the result.
    fn of_layer(&self, stored: usize, place: &ParamPlace) -> Option<Vec<f32>> {
        if let Some((upcycling, seed)) = self.experts
            && let Some((dense, kind)) = upcycling.source_of(place)
        {
            let dense = self.source.mean(&self.from[stored], &dense)?;
            return Some(upcycling.bank(&dense, kind, stored, seed, self.config.ffn));
        }
        match *place {
            ParamPlace::LayerNorm { recursion, .. } if !self.share_norms => {
                let uses = self.plan.uses_of(stored);
                let at = uses.iter().find(|at| at.recursion == recursion)?;
                self.source.of_layer(self.keep[at.layer], place)
            }
            _ => self.source.mean(&self.from[stored], place),
        }
    }

    /// A matrix as the layer that a use replaces has it, and the shared one.
    fn own_and_shared(&self, at: LayerUse, place: &ParamPlace) -> Option<(Vec<f32>, Vec<f32>)> {
        let own = self.source.of_layer(self.keep[at.layer], place)?;
        Some((own, self.source.mean(&self.from[at.stored], place)?))
    }

    fn copied(&self, stored: usize) -> Copied {
        let uses = self.plan.uses_of(stored);
        let mut sums = vec![Difference::default(); uses.len()];
        for base in linears(self.config, stored) {
            let ParamPlace::Layer { part, .. } = base.place else { continue };
            let Some(shared) = self.source.mean(&self.from[stored], &base.place) else { continue };
            for (sum, at) in sums.iter_mut().zip(uses) {
                let own = self.source.of_layer(self.keep[at.layer], &base.place);
                let merged = self.fitted.merged.get(&(at.layer, part));
                sum.add(&own.unwrap_or_default(), &shared, merged.unwrap_or(&shared));
            }
        }
        Copied {
            stored,
            from: self.from[stored].clone(),
            instead_of: uses.iter().map(|at| self.keep[at.layer]).collect(),
            difference: sums.iter().map(|sum| sum.relative(sum.to_shared)).collect(),
            remaining: sums.iter().map(|sum| sum.relative(sum.to_used)).collect(),
        }
    }
}

/// Sums of squares over a layer's matrices: of the layer's own numbers, and of how far the shared
/// and the used ones are from them.
#[derive(Clone, Copy, Default)]
struct Difference {
    own: f64,
    to_shared: f64,
    to_used: f64,
}

impl Difference {
    fn add(&mut self, own: &[f32], shared: &[f32], used: &[f32]) {
        for ((&own, &shared), &used) in own.iter().zip(shared).zip(used) {
            let own = f64::from(own);
            self.own += own * own;
            self.to_shared += (own - f64::from(shared)).powi(2);
            self.to_used += (own - f64::from(used)).powi(2);
        }
    }

    /// As a ratio of Frobenius norms.
    fn relative(&self, sum: f64) -> f64 {
        (sum / self.own.max(f64::MIN_POSITIVE)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use model::Model;
    use model::params::Part;

    use super::*;

    fn dense() -> ModelConfig {
        ModelConfig {
            vocab_size: 20,
            width: 8,
            layers: 4,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            ffn: 12,
            context: 16,
            sharing: Sharing::None,
            recursions: 1,
            router: RouterConfig::FIXED,
            kv: KvMode::RecursionWise,
            ..ModelConfig::default()
        }
    }

    fn target() -> ConversionTarget {
        ConversionTarget {
            sharing: Sharing::Cycle,
            recursions: 2,
            start: Start::Stepwise,
            router: RouterConfig::FIXED,
            kv: KvMode::RecursionWise,
            share_norms: true,
            keep: None,
            relax: Relaxation::NONE,
            fit_adapters: true,
            experts: None,
            seed: 3,
        }
    }

    /// Weights among which rows choose have no mean over layers.
    #[test]
    fn no_choices_are_averaged() {
        let config = ModelConfig { sharing: Sharing::Cycle, recursions: 2, ..dense() };
        let mut table = specs(&config, &config.check().expect("legal"));
        let (means, copies) = ([vec![0, 2], vec![1]], [vec![0], vec![1]]);
        no_mean_of_choices(&table, &means).expect("a row meets every weight");
        let chosen = table
            .iter_mut()
            .find(|spec| spec.place.layer() == Some(0) && spec.can_be_rounded())
            .expect("a matrix of the layer");
        (chosen.active, chosen.name) = (0.25, "layers.0.experts".into());
        let error = no_mean_of_choices(&table, &means).expect_err("a mean").to_string();
        assert!(error.contains("--init") && error.contains("layers.0.experts"), "{error}");
        no_mean_of_choices(&table, &copies).expect("copies are what they were");
    }

    /// What routers remember begins anew at other places in the result.
    #[test]
    fn routers_that_remember_are_refused() {
        use model::expert_routers::top_k;
        use model::mlp::experts;
        let place = tempfile::tempdir().expect("a folder");
        let to = |memory: usize| {
            let router = top_k::Config { memory, ..top_k::Config::default() };
            let router = model::ExpertRouterConfig::TopK(router);
            let mlp = experts::Config { count: 2, router, ..experts::Config::default() };
            let config = ModelConfig { mlp: MlpConfig::Experts(mlp), ..dense() };
            let stored = Stored::of(Model::fresh(&config, 1).expect("legal").into());
            let target = ConversionTarget { sharing: Sharing::None, recursions: 1, ..target() };
            let out = place.path().join(memory.to_string());
            convert(&stored, &target, &out, &checkpoint::RealDisk)
        };
        let error = to(3).expect_err("it remembers").to_string();
        assert!(error.contains("mlp.router.memory"), "{error}");
        to(0).expect("experts that look at rows alone");
    }

    /// The numbers of stored layers, and of uses that have routers of their own, decide what a hash
    /// and dice choose.
    #[test]
    fn layers_get_other_numbers_only_where_routers_score() {
        use model::expert_routers::{hash, random};
        use model::mlp::experts;
        let place = tempfile::tempdir().expect("a folder");
        let to = |router: &ExpertRouterConfig, own, from, target: ConversionTarget| {
            let router = router.clone();
            let mlp = experts::Config {
                count: 4,
                own_routers: own,
                router,
                ..experts::Config::default()
            };
            let (sharing, recursions) = from;
            let mlp = MlpConfig::Experts(mlp);
            let config = ModelConfig { mlp, sharing, recursions, ..dense() };
            let stored = Stored::of(Model::fresh(&config, 1).expect("legal").into());
            let out = place.path().join("out");
            let made = convert(&stored, &target, &out, &checkpoint::RealDisk);
            std::fs::remove_dir_all(&out).ok();
            made.map(|_| ()).map_err(|error| error.to_string())
        };
        let (plain, cycle, deep) = ((Sharing::None, 1), (Sharing::Cycle, 2), (Sharing::Cycle, 4));
        let into = |(sharing, recursions), start, keep: Option<&[usize]>| ConversionTarget {
            sharing,
            recursions,
            start,
            keep: keep.map(<[usize]>::to_vec),
            fit_adapters: false,
            ..target()
        };
        let hash = ExpertRouterConfig::Hash(hash::Config::default());
        let random = ExpertRouterConfig::Random(random::Config::default());
        for router in [&hash, &random] {
            let name = format!("\"{}\"", router.kind());
            for (own, from, target) in [
                (false, cycle, into(plain, Start::Stepwise, None)),
                (false, plain, into(cycle, Start::Stepwise, None)),
                (false, plain, into(cycle, Start::Upper, None)),
                (false, plain, into(plain, Start::Stepwise, Some(&[0, 2, 3]))),
                (true, cycle, into(deep, Start::Lower, None)),
            ] {
                let error = to(router, own, from, target).expect_err("other numbers");
                for needle in ["the source: mlp.router", &name, "of the result", "--keep"] {
                    assert!(error.contains(needle), "{error}");
                }
            }
            for (own, from, target) in [
                (false, plain, into(plain, Start::Stepwise, None)),
                (false, plain, into(plain, Start::Stepwise, Some(&[0, 1, 2]))),
                (false, cycle, into(cycle, Start::Stepwise, None)),
                (true, cycle, into(cycle, Start::Stepwise, None)),
                (false, plain, into(cycle, Start::Lower, None)),
            ] {
                to(router, own, from, target).expect("the numbers that they had");
            }
        }
        let scores = ExpertRouterConfig::default();
        to(&scores, false, cycle, into(plain, Start::Stepwise, None)).expect("scores");
    }

    /// A matrix of a layer that the source does not have is not drawn afresh.
    #[test]
    fn unknown_matrices_are_refused_by_name() {
        let (model, target) = (Model::fresh(&dense(), 1).expect("legal"), target());
        let source = SourceModel::of(&model).expect("dense");
        let config = ModelConfig { sharing: target.sharing, recursions: 2, ..dense() };
        let plan = config.check().expect("legal");
        let keep = [0, 1, 2, 3];
        let conversion = Conversion::new(&source, &config, &plan, &keep, &target);
        let table = specs(&config, &plan);
        for spec in &table {
            let data = conversion.value(spec).expect("known").expect("of the source");
            assert_eq!(data.len(), spec.count(), "{}", spec.name);
        }
        for name in ["experts", "memory"] {
            let place = ParamPlace::Layer { stored: 0, part: Part::new(name) };
            let unknown = ParamSpec { name: place.to_string(), place, ..table[1].clone() };
            let error = conversion.value(&unknown).expect_err(name).to_string();
            let expected = format!("the result: parameter \"layers.0.{name}\"");
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn what_the_source_lacks_is_refused_by_name() {
        let (model, target) = (Model::fresh(&dense(), 1).expect("legal"), target());
        let source = SourceModel::of(&model).expect("dense");
        let untied = ModelConfig { tie_embeddings: !dense().tie_embeddings, ..dense() };
        let config = ModelConfig { sharing: target.sharing, recursions: 2, ..untied };
        let plan = config.check().expect("legal");
        let conversion = Conversion::new(&source, &config, &plan, &[0, 1, 2, 3], &target);
        let head = ParamSpec {
            name: "head".into(),
            place: ParamPlace::Head,
            ..specs(&config, &plan)[0].clone()
        };
        let found = conversion.value(&head);
        assert_eq!(found.is_err(), dense().tie_embeddings, "a head only where it is not tied");
        let wide = ParamSpec { shape: (20, 9), ..specs(&config, &plan)[0].clone() };
        let error = conversion.value(&wide).expect_err("another shape").to_string();
        assert!(error.contains("embed") && error.contains("180 numbers"), "{error}");
    }
}
