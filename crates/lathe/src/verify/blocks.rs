//! A layer of experts alone, beside what a module of Hugging Face's library computed: `y` of rows
//! `x`, who takes which experts, and the gradients of `sum(y r)` by rows and by every tensor.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use checkpoint::{TensorFile, open_safetensors};
use model::expert_routers::{Balance, sparse_mixer, top_k};
use model::mlp::experts::{
    self, EXPERTS_DOWN, EXPERTS_DOWN_BIAS, EXPERTS_GATE_UP, EXPERTS_GATE_UP_BIAS, SHARED_DOWN,
    SHARED_GATE_UP,
};
use model::params::{ParamPlace, ParamSpec};
use model::{
    Address, ExpertRouterConfig, MlpConfig, Model, ModelConfig, Pass, PassCache, RouterConfig,
    RouterState, Rows, Rule, Sharing,
};
use ops::{Ops, backward, gradient, leaf, read_rows};
use serde::Deserialize;
use serde_json::Value;

use super::Check;
use super::comparison::worst;
use super::experts::Routers;
use super::hugging_face::{REFERENCES, SETTINGS, near};
use super::reference::integers;

/// The weights of a block.
const WEIGHTS: &str = "block.safetensors";

/// Whether a folder with references is one of a block.
pub(super) fn is_block(path: &Path) -> bool {
    path.join(WEIGHTS).is_file()
}

/// What `refs.json` says of a block.
#[derive(Deserialize)]
struct Described {
    /// The module's path in the library; the class comes last.
    module: String,
    /// The settings that it was made with, beside the defaults of its class.
    config: Value,
}

/// The checks of the block at `path`, or why it is refused.
pub(super) fn checks(path: &Path, ops: Ops) -> Result<Result<Vec<Check>, String>> {
    let settings = path.join(SETTINGS);
    if !settings.is_file() {
        return Ok(Err(format!("a block without {SETTINGS}, which names its class")));
    }
    let text = crate::open::text_file(&settings)?;
    let of: Described =
        serde_json::from_str(&text).with_context(|| format!("settings {}", settings.display()))?;
    let class = of.module.rsplit('.').next().unwrap_or_default();
    let file = open_safetensors(&path.join(WEIGHTS))?;
    let block = match Block::of(class, &of.config, &file) {
        Ok(block) => block,
        Err(why) => return Ok(Err(format!("the block {class}: {why}"))),
    };
    block.compare(path, &file, ops).map(Ok)
}

/// A block as a layer of ours.
struct Block {
    class: String,
    width: usize,
    experts: experts::Config,
    /// What multiplies the matrix that the shared expert writes with.
    shared_factor: f32,
}

/// The first of some settings that is there.
fn number(config: &Value, names: &[&str]) -> Option<f64> {
    let of = |name: &str| name.split('.').fold(config, |value, part| &value[part]).as_f64();
    names.iter().find_map(|name| of(name))
}

fn flag(config: &Value, name: &str, otherwise: bool) -> bool {
    config[name].as_bool().unwrap_or(otherwise)
}

/// The shape of the first tensor whose name has these parts.
fn shape_of<'f>(file: &'f TensorFile, parts: &[&str]) -> Option<&'f [usize]> {
    let name = file.names().find(|name| parts.iter().all(|part| name.contains(part)))?;
    file.shape(name)
}

impl Block {
    /// # Errors
    /// Why the class is not computed here.
    fn of(class: &str, config: &Value, file: &TensorFile) -> Result<Self, String> {
        let needed = |names: &[&str]| {
            let found = number(config, names).map(|found| found as usize);
            found.ok_or_else(|| format!("{} is missing in its config", names[0]))
        };
        let width = needed(&["hidden_size", "d_model"])?;
        let router = router(class, config, file)?;
        let shared = shape_of(file, &["shared", "down_proj"]).map_or(0, |shape| shape[1]);
        let average = config["shared_expert_combination_strategy"] == "average";
        let counts = [
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "moe_num_experts",
            "ffn_config.moe_num_experts",
        ];
        let widths = [
            "moe_intermediate_size",
            "expert_ffn_hidden_size",
            "ffn_config.ffn_hidden_size",
            "intermediate_size",
        ];
        let clamps = class == "GptOssMLP";
        let default = experts::Config::default();
        let experts = experts::Config {
            count: needed(&counts)?,
            width: needed(&widths)?,
            identity_experts: number(config, &["zero_expert_num"]).unwrap_or(0.0) as usize,
            shared,
            shared_gate: file.shape("shared_expert_gate.weight").is_some(),
            biases: clamps,
            limit: if clamps { number(config, &["swiglu_limit"]).unwrap_or(7.0) } else { 0.0 },
            alpha: number(config, &["swiglu_alpha"]).unwrap_or(default.alpha),
            router,
            ..default
        };
        let shared_factor = if average && shared > 0 { 0.5 } else { 1.0 };
        Ok(Self { class: class.to_owned(), width, experts, shared_factor })
    }
}

/// The router of a class. What its config leaves out is the default of the class.
fn router(class: &str, config: &Value, file: &TensorFile) -> Result<ExpertRouterConfig, String> {
    let of = |names: &[&str], otherwise| number(config, names).unwrap_or(otherwise);
    let biased = file.names().any(is_choice_bias);
    let plain = top_k::Config {
        top_k: of(&["num_experts_per_tok", "moe_topk", "moe_k", "ffn_config.moe_top_k"], 2.0)
            as usize,
        scale: of(&["routed_scaling_factor", "route_scale", "moe_routed_scaling_factor"], 1.0),
        groups: of(&["n_group"], 1.0) as usize,
        top_groups: of(&["topk_group"], 1.0) as usize,
        balance: if biased { Balance::LossFree } else { Balance::None },
        ..top_k::Config::default()
    };
    let sigmoid = top_k::Config { function: top_k::Function::Sigmoid, ..plain.clone() };
    let divided = flag(config, "norm_topk_prob", false);
    Ok(ExpertRouterConfig::TopK(match class {
        "MixtralSparseMoeBlock" | "HunYuanMoEV1Moe" => plain,
        "Qwen2MoeSparseMoeBlock" | "Qwen3MoeSparseMoeBlock" | "OlmoeSparseMoeBlock" => {
            top_k::Config { normalize: divided, ..plain }
        }
        "GptOssMLP" => top_k::Config { logit_bias: true, ..plain },
        "Mistral4MoE" => top_k::Config { normalize: flag(config, "norm_topk_prob", true), ..plain },
        "DeepseekV2Moe" => {
            top_k::Config { normalize: false, group_score: top_k::GroupScore::Best, ..plain }
        }
        "Ernie4_5_MoeSparseMoeBlock" => {
            top_k::Config { least: of(&["moe_norm_min"], 1e-12), ..plain }
        }
        "LongcatFlashMoE" => {
            // Which budget holds in training does not matter to a block.
            let (zero, most) = (of(&["zero_expert_num"], 0.0), plain.top_k as f64);
            let budget = (most - zero).max(1.0).min(of(&["n_routed_experts"], 1.0));
            top_k::Config { normalize: false, balance: Balance::Budget, budget, ..plain }
        }
        "DbrxFFN" => {
            let power = of(&["ffn_config.moe_normalize_expert_weights"], 0.0);
            if power != 0.0 && power != 1.0 {
                return Err(format!(
                    "moe_normalize_expert_weights = {power}; weights are divided by their sum or \
                     not at all here"
                ));
            }
            top_k::Config { normalize: power == 1.0, ..plain }
        }
        "DeepseekV3MoE" | "Lfm2MoeSparseMoeBlock" => {
            top_k::Config { normalize: flag(config, "norm_topk_prob", true), ..sigmoid }
        }
        "MiniMaxM2SparseMoeBlock" | "AfmoeSparseMoeBlock" => sigmoid,
        "FlintSparseMoeBlock" => top_k::Config { normalize: divided, ..sigmoid },
        "LagunaSparseMoeBlock" => {
            top_k::Config { soft_cap: of(&["moe_router_logit_softcapping"], 0.0), ..sigmoid }
        }
        "Cohere2MoeSparseMoeBlock" => {
            let half = config["shared_expert_combination_strategy"] == "average";
            let by_sigmoid = config["expert_selection_fn"] == "sigmoid";
            let scale = if half { 0.5 * plain.scale } else { plain.scale };
            match by_sigmoid {
                true => top_k::Config { normalize: divided, scale, ..sigmoid },
                false => top_k::Config { scale, ..plain },
            }
        }
        "PhimoeSparseMoeBlock" => {
            let jitter = of(&["router_jitter_noise"], 0.01);
            let mixer = sparse_mixer::Config { jitter, ..sparse_mixer::Config::default() };
            return Ok(ExpertRouterConfig::SparseMixer(mixer));
        }
        "Kolibri1SparseMoeBlock" => {
            return Err("its bias for the choice is added to logits, here to scores".into());
        }
        "Llama4TextMoe" => {
            return Err("its scores multiply what experts are given, here what they write".into());
        }
        "JetMoeMoE" => {
            return Err("its experts share one bias, here each has its own or none has".into());
        }
        "SwitchTransformersSparseMLP" => {
            return Err("its experts have no gate, here they have one".into());
        }
        _ => return Err("a class that is not known here".into()),
    }))
}

fn is_choice_bias(name: &str) -> bool {
    name.ends_with("correction_bias") || name.ends_with("expert_bias")
}

/// The tensor and the number in it that each number of a weight is.
type Sources = Vec<(String, usize)>;

impl Block {
    /// Where the numbers of a weight stand in the block's file.
    ///
    /// # Errors
    /// A tensor that is missing.
    fn sources(&self, spec: &ParamSpec, file: &TensorFile) -> Result<Sources> {
        let find = |ends: &[&str]| {
            let found = ends.iter().find_map(|end| file.names().find(|name| name.ends_with(end)));
            let name = found.with_context(|| format!("tensor {} is missing", ends[0]))?;
            Ok::<String, anyhow::Error>(name.to_owned())
        };
        let (d, f) = (self.width, self.experts.width);
        let whole = |name: String, count: usize| (0..count).map(|i| (name.clone(), i)).collect();
        let part = spec.place.part();
        let turned = self.class == "GptOssMLP";
        if self.class == "DbrxFFN" && (part == Some(EXPERTS_GATE_UP) || part == Some(EXPERTS_DOWN))
        {
            return Ok((0..spec.count())
                .map(|i| dbrx(i, part == Some(EXPERTS_DOWN), d, f))
                .collect());
        }
        if part == Some(EXPERTS_GATE_UP) {
            let name = find(&["experts.gate_up_proj"])?;
            // [E, d, 2 f] with gate and up alternating, or [E, 2 f, d].
            let at = |i: usize| {
                let (e, out, column) = (i / (2 * f * d), i / d % (2 * f), i % d);
                if turned { (e * d + column) * 2 * f + out % f * 2 + out / f } else { i }
            };
            return Ok((0..spec.count()).map(|i| (name.clone(), at(i))).collect());
        }
        if part == Some(EXPERTS_DOWN) {
            let name = find(&["experts.down_proj"])?;
            let at = |i: usize| {
                let (e, out, column) = (i / (d * f), i / f % d, i % f);
                if turned { (e * f + column) * d + out } else { i }
            };
            return Ok((0..spec.count()).map(|i| (name.clone(), at(i))).collect());
        }
        if part == Some(EXPERTS_GATE_UP_BIAS) {
            let name = find(&["experts.gate_up_proj_bias"])?;
            let at = |i: usize| i / (2 * f) * 2 * f + i % f * 2 + i / f % 2;
            return Ok((0..spec.count()).map(|i| (name.clone(), at(i))).collect());
        }
        if part == Some(EXPERTS_DOWN_BIAS) {
            return Ok(whole(find(&["experts.down_proj_bias"])?, spec.count()));
        }
        if part == Some(SHARED_GATE_UP) {
            let names = [find(&[".gate_proj.weight"])?, find(&[".up_proj.weight"])?];
            let half = spec.count() / 2;
            return Ok(names.into_iter().flat_map(|name| whole(name, half)).collect());
        }
        if part == Some(SHARED_DOWN) {
            return Ok(whole(find(&[".down_proj.weight"])?, spec.count()));
        }
        let name = match &spec.place {
            ParamPlace::Router { factor: "shared_gate", .. } => {
                find(&["shared_expert_gate.weight"])
            }
            ParamPlace::Router { factor: "bias", .. } => find(&["router.bias"]),
            _ => find(&[
                "gate.wg.weight",
                "router.gate.weight",
                "router.layer.weight",
                "router.classifier.weight",
                "router.weight",
                "gate.weight",
            ]),
        };
        Ok(whole(name?, spec.count()))
    }

    /// What multiplies numbers of the file to be those of the model.
    fn factor(&self, spec: &ParamSpec) -> f32 {
        if spec.place.part() == Some(SHARED_DOWN) { self.shared_factor } else { 1.0 }
    }

    /// Whether a weight of the model belongs to the block.
    fn has(spec: &ParamSpec) -> bool {
        let of_experts = [
            EXPERTS_GATE_UP,
            EXPERTS_DOWN,
            EXPERTS_GATE_UP_BIAS,
            EXPERTS_DOWN_BIAS,
            SHARED_GATE_UP,
            SHARED_DOWN,
        ];
        let part = spec.place.part();
        spec.place.is_router() || part.is_some_and(|part| of_experts.contains(&part))
    }

    /// The block's numbers in a model of one layer; what is around it is zero, and does not run.
    fn model(&self, file: &TensorFile) -> Result<Model> {
        let config = ModelConfig {
            width: self.width,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            vocab_size: 2,
            sharing: Sharing::None,
            recursions: 1,
            router: RouterConfig::FIXED,
            mlp: MlpConfig::Experts(self.experts.clone()),
            ..ModelConfig::default()
        };
        let mut read: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for name in file.names() {
            read.insert(name.to_owned(), file.read_f32(name)?);
        }
        Model::build(&config, |spec| {
            if !Self::has(spec) {
                return Ok(vec![0.0; spec.count()]);
            }
            let factor = self.factor(spec);
            let numbers = self.sources(spec, file)?.into_iter().map(|(name, at)| {
                let number = read.get(&name).and_then(|all| all.get(at));
                let number = number.with_context(|| format!("tensor {name} is missing or short"));
                Ok(factor * number?)
            });
            numbers.collect::<Result<Vec<f32>>>()
        })
    }

    fn compare(&self, path: &Path, file: &TensorFile, ops: Ops) -> Result<Vec<Check>> {
        let references = path.join(REFERENCES);
        let recorded = open_safetensors(&references)?;
        let shape = recorded.shape("x").context("tensor x is missing")?.to_vec();
        ensure!(
            shape.len() == 3 && shape[2] == self.width,
            "x has the shape {shape:?}, expected [sequences, rows, {}]",
            self.width
        );
        let (sequences, length) = (shape[0], shape[1]);
        let model = self.model(file)?;
        model.collect_gradients(true);
        let mut state = RouterState::default();
        if let Some(name) = file.names().find(|name| is_choice_bias(name)) {
            state.set("experts.0.bias", file.read_f32(name)?);
        }
        let x = recorded.read_f32("x")?;
        let x_td = leaf(&ops.from_rows(x, sequences * length, self.width));
        let (rows, mut routers) = (Rows::batch(sequences, length), Routers::default());
        let ids = vec![0; rows.len()].into();
        let mut pass = Pass {
            ops,
            kv: &mut PassCache::new(false),
            rule: &Rule::NonCausal,
            state: &state,
            probe: &mut routers,
            record: true,
            recompute: false,
            address: Address::default(),
            sequences,
            loads: &[],
            pool: Default::default(),
        };
        let at = model.plan().before[0];
        let y_td = model.mlp(at, x_td.clone(), &rows.with_tokens(&ids), &mut pass);
        let found = read_rows(&y_td);
        let gradients = backward(&ops.weighted_sum(y_td, recorded.read_f32("r")?));
        if ops != Ops::Fast {
            model.weights().iter().for_each(|(_, weight)| weight.take_plain_gradient(&gradients));
        }
        let mut checks = vec![Check { what: "y".into(), tolerance: 1e-4, ..Check::default() }];
        near(&mut checks[0], "y", &found, &wide(&recorded.read_f32("y")?))?;
        checks.extend(selections(&references, &routers)?);
        let mut check = Check { what: "gradients".into(), tolerance: 1e-4, ..Check::default() };
        let dx = gradient(&x_td, &gradients).context("the rows have no gradient")?;
        against_largest(&mut check, "grad_x", &read_rows(&dx), &recorded.read_f32("grad_x")?);
        self.gradients(&mut check, &model, file, &recorded)?;
        checks.push(check);
        Ok(checks)
    }

    /// The gradients of all tensors, each against its largest entry.
    fn gradients(
        &self,
        check: &mut Check,
        model: &Model,
        file: &TensorFile,
        recorded: &TensorFile,
    ) -> Result<()> {
        let mut found: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let expected: Vec<&str> =
            recorded.names().filter_map(|name| name.strip_prefix("grad.")).collect();
        for name in &expected {
            let count = recorded.shape(&format!("grad.{name}")).unwrap_or_default();
            found.insert((*name).to_owned(), vec![0.0; count.iter().product()]);
        }
        for (spec, weight) in model.weights().iter().filter(|(spec, _)| Self::has(spec)) {
            let ours = weight.read_gradient().unwrap_or_else(|| vec![0.0; spec.count()]);
            let factor = self.factor(spec);
            for ((name, at), from) in self.sources(spec, file)?.into_iter().zip(ours) {
                let to = found.get_mut(&name).and_then(|all| all.get_mut(at));
                *to.with_context(|| format!("tensor grad.{name} is missing or short"))? =
                    factor * from;
            }
        }
        for name in expected {
            let theirs = recorded.read_f32(&format!("grad.{name}"))?;
            against_largest(check, name, &found[name], &theirs);
        }
        Ok(())
    }
}

/// Where number `i` of a bank of DBRX stands: `w1`, `v1` and `w2` are `[E f, d]`.
fn dbrx(i: usize, down: bool, d: usize, f: usize) -> (String, usize) {
    if down {
        let (e, out, column) = (i / (d * f), i / f % d, i % f);
        return ("experts.mlp.w2".into(), (e * f + column) * d + out);
    }
    let (e, out, column) = (i / (2 * f * d), i / d % (2 * f), i % d);
    let name = if out < f { "experts.mlp.w1" } else { "experts.mlp.v1" };
    (name.into(), (e * f + out % f) * d + column)
}

/// Whether rows take the experts that the module's router returned, where these were kept.
fn selections(references: &Path, routers: &Routers) -> Result<Option<Check>> {
    let kept = integers(references)?;
    let kept = kept
        .iter()
        .find(|(name, _)| name.as_str() == "router.gate.2" || name.as_str() == "router.router.2");
    let Some((name, (_, experts))) = kept else { return Ok(None) };
    let mut check = Check { what: "selections".into(), ..Check::default() };
    let chosen = routers.0.first().context("no router decided")?.chosen();
    let each = experts.len() / chosen.len().max(1);
    for (found, expected) in chosen.iter().zip(experts.chunks(each.max(1))) {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        let differs = found.iter().map(|e| i64::from(*e)).ne(expected);
        worst(&mut check, f64::from(u8::from(differs)), name);
    }
    Ok(Some(check))
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|x| f64::from(*x)).collect()
}

/// The largest difference as a share of the largest expected number.
fn against_largest(check: &mut Check, name: &str, found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(1e-6f32, |most, e| most.max(e.abs()));
    for (f, e) in found.iter().zip(expected) {
        worst(check, f64::from((f - e).abs() / largest), name);
    }
    if found.len() != expected.len() {
        worst(check, f64::INFINITY, name);
    }
}
