//! Layers of experts beside modules of transformers: results, experts and gradients of
//! `tests/blocks`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ops::{Ops, Tensor2, Weight, backward, from_rows, gradient, leaf, read_rows};
use safetensors::{Dtype, SafeTensors};

use super::experts::{
    Config, EXPERTS_DOWN, EXPERTS_DOWN_BIAS, EXPERTS_GATE_UP, EXPERTS_GATE_UP_BIAS, SHARED_DOWN,
    SHARED_GATE_UP,
};
use super::member::MlpSettings;
use crate::adapters::Relaxation;
use crate::carry::Carry;
use crate::config::ModelConfig;
use crate::context::LayerContext;
use crate::expert_routers::sparse_mixer::Config as SparseMixer;
use crate::expert_routers::top_k::{Config as TopK, Function, GroupScore};
use crate::expert_routers::{Balance, ExpertRouterConfig};
use crate::kv::PassCache;
use crate::layout::{DepthRuns, Sharing};
use crate::linear::LinearBuilder;
use crate::params::{ParamPlace, ParamSpec, Take};
use crate::pass::{Address, Choice, Pass, Probe, RoutingEvent};
use crate::routers::{RouterConfig, RouterState, Rule};
use crate::rows::Rows;

/// Sequences, their length, and the width of rows.
const SHAPE: (usize, usize, usize) = (2, 13, 20);

type Tensors = BTreeMap<String, Vec<f32>>;

/// The f32 tensors of a file, and the integer ones as f32.
fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut all = Tensors::new();
    for (name, view) in file.tensors() {
        let bytes = view.data();
        let values = match view.dtype() {
            Dtype::I64 => {
                bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect()
            }
            _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        };
        all.insert(name, values);
    }
    all
}

/// The settings of each block, as transformers computes it.
fn blocks() -> Vec<(&'static str, Config)> {
    let free = TopK { balance: Balance::LossFree, ..TopK::default() };
    let plain = TopK { balance: Balance::None, ..TopK::default() };
    let of = |count, shared, router| {
        let router = ExpertRouterConfig::TopK(router);
        Config { count, width: 10, shared, router, ..Config::default() }
    };
    let sigmoid = TopK { top_k: 3, function: Function::Sigmoid, ..free.clone() };
    let top_2 = TopK { function: Function::Sigmoid, ..plain.clone() };
    let grouped = TopK { top_k: 3, groups: 4, top_groups: 2, ..plain.clone() };
    vec![
        (
            "qwen2_moe",
            Config { shared_gate: true, ..of(6, 14, TopK { normalize: false, ..plain.clone() }) },
        ),
        (
            "deepseek_v3_group",
            of(8, 10, TopK { groups: 4, top_groups: 2, scale: 2.5, ..sigmoid.clone() }),
        ),
        (
            "deepseek_v2_greedy",
            of(8, 10, TopK { top_k: 3, normalize: false, scale: 1.7, ..plain.clone() }),
        ),
        (
            "deepseek_v2_group",
            of(
                8,
                10,
                TopK {
                    normalize: false,
                    scale: 1.7,
                    group_score: GroupScore::Best,
                    ..grouped.clone()
                },
            ),
        ),
        ("hunyuan_v1", of(6, 10, plain.clone())),
        ("minimax_m2", of(8, 0, sigmoid.clone())),
        ("lfm2_bias", of(8, 0, TopK { scale: 1.4, ..sigmoid.clone() })),
        ("afmoe", of(8, 20, TopK { scale: 1.6, ..sigmoid.clone() })),
        ("flint", of(6, 14, top_2)),
        ("laguna_softcap", of(8, 14, TopK { scale: 1.3, soft_cap: 2.0, ..sigmoid })),
        (
            "gpt_oss",
            Config {
                biases: true,
                limit: 1.5,
                ..of(6, 0, TopK { logit_bias: true, ..plain.clone() })
            },
        ),
        (
            "phimoe_eval",
            Config {
                count: 6,
                width: 10,
                router: ExpertRouterConfig::SparseMixer(SparseMixer {
                    jitter: 0.2,
                    ..SparseMixer::default()
                }),
                ..Config::default()
            },
        ),
        ("ernie4_5", of(8, 10, TopK { top_k: 3, ..free })),
        ("mistral4", of(8, 10, TopK { scale: 1.2, ..grouped })),
    ]
}

/// What GPT-OSS stores, in the order of other modules: its banks are `[E, in, out]`, and gate and
/// up alternate among the columns.
fn in_order(name: &str, mut all: Tensors) -> Tensors {
    if name != "gpt_oss" {
        return all;
    }
    let (experts, f, d) = (6, 10, SHAPE.2);
    for (name, values) in &mut all {
        let (width, halves, bias) = match name.rsplit('.').next().unwrap_or("") {
            "gate_up_proj" => (2 * f, true, false),
            "gate_up_proj_bias" => (2 * f, true, true),
            "down_proj" => (d, false, false),
            _ => continue,
        };
        let old = values.clone();
        let rows = old.len() / experts / width;
        for (i, value) in values.iter_mut().enumerate() {
            let (expert, out, row) = match bias {
                true => (i / width, i % width, 0),
                false => (i / width / rows, i / rows % width, i % rows),
            };
            let column = if halves { out % f * 2 + out / f } else { out };
            *value = old[(expert * rows + row) * width + column];
        }
    }
    all
}

/// A tensor of transformers by its name, or several below each other, for a place of the model.
fn theirs(place: &ParamPlace, tensors: &Tensors) -> Vec<(String, Vec<f32>)> {
    let find = |end: &str| {
        let found = tensors.iter().find(|(name, _)| name.ends_with(end));
        let (name, values) = found.unwrap_or_else(|| panic!("no {end}"));
        (name.clone(), values.clone())
    };
    match place {
        ParamPlace::Layer { part, .. } if *part == EXPERTS_GATE_UP => {
            vec![find("experts.gate_up_proj")]
        }
        ParamPlace::Layer { part, .. } if *part == EXPERTS_DOWN => vec![find("experts.down_proj")],
        ParamPlace::Layer { part, .. } if *part == EXPERTS_GATE_UP_BIAS => {
            vec![find("experts.gate_up_proj_bias")]
        }
        ParamPlace::Layer { part, .. } if *part == EXPERTS_DOWN_BIAS => {
            vec![find("experts.down_proj_bias")]
        }
        ParamPlace::Layer { part, .. } if *part == SHARED_GATE_UP => {
            vec![find(".gate_proj.weight"), find(".up_proj.weight")]
        }
        ParamPlace::Layer { part, .. } if *part == SHARED_DOWN => vec![find(".down_proj.weight")],
        ParamPlace::Router { factor: "score", .. } => {
            let names = ["gate.wg.weight", "gate.weight", "router.gate.weight", "router.weight"];
            let name = names.into_iter().find(|name| tensors.contains_key(*name));
            let name = name.expect("a router");
            vec![(name.to_owned(), tensors[name].clone())]
        }
        ParamPlace::Router { factor: "bias", .. } => vec![find("router.bias")],
        ParamPlace::Router { factor: "shared_gate", .. } => vec![find("shared_expert_gate.weight")],
        other => panic!("a block has no {other}"),
    }
}

/// Who takes whom, as rows of ascending experts.
#[derive(Default)]
struct Taken(Vec<Vec<f32>>);

impl Probe for Taken {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        let Choice::Plan(plan) = event.choice else { return };
        self.0 = vec![Vec::new(); event.candidates.len()];
        for expert in 0..plan.targets() {
            plan.of(expert).iter().for_each(|row| self.0[*row as usize].push(expert as f32));
        }
    }
}

fn close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let most = expected.iter().fold(1e-3, |most: f32, x| most.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance * most, "{what}: entry {i} is {f}, expected {e}");
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/blocks")
}

#[test]
fn blocks_of_transformers() {
    for (name, mlp) in blocks() {
        for ops in [Ops::Fast, Ops::PLAIN] {
            block(name, &mlp, ops);
        }
    }
}

fn block(name: &str, mlp: &Config, ops: Ops) {
    let (sequences, length, d) = SHAPE;
    let tensors = in_order(name, read(&folder().join(format!("{name}.safetensors"))));
    let refs = in_order(name, read(&folder().join(format!("{name}.refs.safetensors"))));
    let config = ModelConfig {
        width: d,
        layers: 1,
        sharing: Sharing::None,
        recursions: 1,
        router: RouterConfig::FIXED,
        vocab_size: 8,
        ..ModelConfig::default()
    };
    let (sizes, plan) = (config.sizes(), config.check().expect("legal"));
    mlp.check(&sizes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut specs: Vec<ParamSpec> = mlp.specs(&sizes, 0);
    specs.extend(mlp.routers(&sizes, 0));
    let weights: Vec<(ParamSpec, Arc<Weight>)> = specs
        .into_iter()
        .map(|spec| {
            let values: Vec<f32> =
                theirs(&spec.place, &tensors).into_iter().flat_map(|(_, values)| values).collect();
            assert_eq!(values.len(), spec.count(), "{name}: {}", spec.name);
            let weight = Weight::new(values, spec.shape.0, spec.shape.1);
            weight.collect_gradient(true);
            (spec, Arc::new(weight))
        })
        .collect();
    let mut take = Take::new(&weights);
    let table = mlp.specs(&sizes, 0);
    let relax = Relaxation::NONE;
    let linears =
        LinearBuilder { sizes: &sizes, plan: &plan, stored: 0, table, adapters: relax.settings() };
    let built = mlp.build(&linears, &mut take);
    take.finish().expect("every weight has a user");

    let mut state = RouterState::default();
    let bias = |(name, _): &(&String, &Vec<f32>)| {
        name.ends_with("correction_bias") || name.ends_with("expert_bias")
    };
    if let Some((_, bias)) = tensors.iter().find(bias) {
        state.set("experts.0.bias", bias.clone());
    }
    let (rows, mut taken) = (Rows::batch(sequences, length), Taken::default());
    let mut pass = Pass {
        ops,
        kv: &mut PassCache::new(false),
        rule: &Rule::NonCausal,
        state: &state,
        probe: &mut taken,
        record: true,
        recompute: false,
        address: Address::default(),
        sequences,
        loads: &[],
        pool: Default::default(),
    };
    let x_td: Tensor2 = leaf(&from_rows(refs["x"].clone(), sequences * length, d));
    let none_td = leaf(&from_rows(vec![0.0; sequences * length * d], sequences * length, d));
    let at = DepthRuns::one(plan.before[0], rows.len());
    let mut context =
        LayerContext { pass: &mut pass, rows: &rows, at: &at, carry: &mut Carry::default() };
    let y_td = built.forward(x_td.clone(), none_td, &mut context);
    let what = format!("{name} {ops:?}");
    close(&read_rows(&y_td), &refs["y"], 1e-4, &format!("{what}: y"));
    let experts = refs.get("router.gate.2").or_else(|| refs.get("router.router.2"));
    let experts = experts.expect("which experts rows take");
    let experts = experts.chunks(experts.len() / rows.len());
    for (found, expected) in taken.0.iter().zip(experts) {
        let mut expected = expected.to_vec();
        expected.sort_by(f32::total_cmp);
        assert_eq!(*found, expected, "{what}: experts");
    }
    let gradients = backward(&ops.weighted_sum(y_td, refs["r"].clone()));
    let dx = gradient(&x_td, &gradients).expect("rows learn");
    close(&read_rows(&dx), &refs["grad_x"], 1e-4, &format!("{what}: x"));
    for (spec, weight) in &weights {
        if ops != Ops::Fast {
            weight.take_plain_gradient(&gradients);
        }
        let found = weight.read_gradient().expect("every weight learns");
        let expected: Vec<f32> = theirs(&spec.place, &tensors)
            .into_iter()
            .flat_map(|(name, _)| refs[&format!("grad.{name}")].clone())
            .collect();
        close(&found, &expected, 1e-4, &format!("{what}: {}", spec.name));
    }
}
