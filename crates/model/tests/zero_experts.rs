//! Zero-computation experts: what a row that takes them skips, and the bias that holds how many of
//! a row's experts compute.

use std::collections::BTreeMap;

use model::expert_routers::Balance;
use model::expert_routers::top_k::{Config as TopK, Function};
use model::mlp::experts::Config as Experts;
use model::params::RouterSite;
use model::routers::StepRouting;
use model::{
    Choice, ExpertRouterConfig, KvMode, MlpConfig, Model, ModelConfig, Probe, RouterConfig,
    RouterState, RoutingEvent, Rows, Rule, Sharing,
};
use ops::read_rows;
use testkit::{How, close, fresh, ids, run, same_bits, tiny, transient};

const LENGTH: usize = 30;

fn experts(top_k: usize, budget: f64) -> Experts {
    let router = TopK { top_k, balance: Balance::Budget, budget, ..TopK::default() };
    let router = ExpertRouterConfig::TopK(router);
    Experts { count: 4, width: 16, router, ..Experts::default() }
}

fn with(mlp: Experts) -> ModelConfig {
    let base = tiny(RouterConfig::FIXED, KvMode::RecursionWise, Sharing::None);
    ModelConfig { mlp: MlpConfig::Experts(mlp), ..base }
}

/// The same bias for every layer.
fn biased(config: &ModelConfig, bias: &[f32]) -> How {
    let mut how = How::by(&Rule::NonCausal);
    for buffer in model::table::buffers(config) {
        assert_eq!(buffer.length, bias.len());
        how.state.set(&buffer.name, bias.to_vec());
    }
    how
}

/// Rows of each expert, and the stream ahead of each layer.
#[derive(Default)]
struct Seen {
    loads: BTreeMap<RouterSite, Vec<usize>>,
    streams: Vec<Vec<f32>>,
}

impl Probe for Seen {
    fn stream(&mut self, x_td: &ops::Tensor2) {
        self.streams.push(read_rows(x_td));
    }

    fn routed(&mut self, event: &RoutingEvent<'_>) {
        if let Choice::Plan(plan) = event.choice {
            let loads = (0..plan.targets()).map(|e| plan.of(e).len()).collect();
            self.loads.insert(event.site, loads);
        }
    }
}

fn logits(model: &Model, how: &How) -> (Vec<f32>, Seen) {
    let (tokens, rows) = (ids(3, LENGTH), Rows::batch(1, LENGTH));
    let mut seen = Seen::default();
    (run(model, &tokens, &rows, &mut transient(model), how, &mut seen).logits, seen)
}

/// Zeroes the weights whose names end so.
fn zeroed(model: &Model, end: &str) {
    let found = model.weights().iter().filter(|(spec, _)| spec.name.ends_with(end));
    for (spec, weight) in found {
        weight.write(vec![0.0; spec.count()]);
    }
}

/// Rows that take zero experts alone leave their layer as they came: as from an MLP that writes
/// zeros, bit for bit.
#[test]
fn a_row_of_zero_experts_skips_its_mlp() {
    let config = with(Experts { zero_experts: 3, ..experts(2, 1.0) });
    let model = fresh(&config, 7);
    let away = [-9.0, -9.0, -9.0, -9.0, 0.0, 0.0, 0.0];
    let (found, seen) = logits(&model, &biased(&config, &away));
    for loads in seen.loads.values() {
        assert!(loads[..4] == [0; 4] && loads.iter().sum::<usize>() == 2 * LENGTH, "{loads:?}");
    }
    zeroed(&model, "experts_down");
    let (expected, seen) = logits(&model, &biased(&config, &[9.0, 9.0, 9.0, 9.0, 0.0, 0.0, 0.0]));
    assert!(seen.loads.values().all(|loads| loads[4..] == [0; 3]));
    same_bits(&found, &expected, "zero experts");
}

/// A row of identity experts gets itself, as the norm ahead of the MLP made it; two of half the
/// weight are one.
#[test]
fn identity_experts_write_the_row() {
    // Without attention's results the stream changes by the MLP alone.
    let one = with(Experts { identity_experts: 1, ..experts(1, 0.5) });
    let two = with(Experts { identity_experts: 2, ..experts(2, 1.0) });
    let mut all = Vec::new();
    for (config, bias) in [(one, vec![-9.0, -9.0, -9.0, -9.0, 0.0]), (two, vec![-9.0; 4])] {
        let model = fresh(&config, 7);
        zeroed(&model, ".output");
        let mut bias = bias;
        bias.resize(config.mlp_experts(), 0.0);
        let (_, seen) = logits(&model, &biased(&config, &bias));
        assert!(seen.loads.values().all(|loads| loads[..4] == [0; 4]));
        let eps = config.norm_eps as f32;
        for layer in 0..config.layers {
            let rows = seen.streams[layer].chunks(config.width);
            let expected: Vec<f32> = rows
                .flat_map(|x| {
                    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
                    let factor = 1.0 + 1.0 / (mean + eps).sqrt();
                    x.iter().map(|x| x * factor).collect::<Vec<f32>>()
                })
                .collect();
            if let Some(after) = seen.streams.get(layer + 1).filter(|_| layer + 1 < config.layers) {
                close(after, &expected, 1e-5, &format!("layer {layer}"));
            }
        }
        all.push(seen.streams[config.layers - 1].clone());
    }
    close(&all[0], &all[1], 1e-4, "one and two");
}

/// How many experts a model's rows choose among.
trait MlpExperts {
    fn mlp_experts(&self) -> usize;
}

impl MlpExperts for ModelConfig {
    fn mlp_experts(&self) -> usize {
        model::table::buffers(self).first().expect("a bias").length
    }
}

/// `b += mu (budget / (k N) - share of the choices)` for computing experts, and nothing for the
/// others.
#[test]
fn the_bias_of_computing_experts_follows_the_budget() {
    let router = TopK {
        top_k: 3,
        balance: Balance::Budget,
        budget: 1.5,
        balance_weight: 0.4,
        ..TopK::default()
    };
    let router = ExpertRouterConfig::TopK(router);
    let config = with(Experts {
        count: 2,
        identity_experts: 1,
        constant_experts: 1,
        router,
        ..Experts::default()
    });
    let mut state = RouterState::default();
    let loads = BTreeMap::from([(RouterSite::Layer(1), vec![10, 2, 5, 13])]);
    let routed = StepRouting {
        step: 0,
        needed: &[],
        depths: &[],
        chosen: &[],
        experts: &loads,
        compared: &BTreeMap::new(),
    };
    config.mlp.settings().after_step(&routed, &mut state);
    let bias = state.get("experts.1.bias").expect("learned");
    close(bias, &[0.4 * (0.25 - 1.0 / 3.0), 0.4 * (0.25 - 2.0 / 30.0), 0.0, 0.0], 1e-6, "bias");
    assert_eq!(state.get("experts.0.bias"), None);
}

/// What is stored, and what of it a row meets in the mean.
#[test]
fn costs_follow_the_budget() {
    let config = with(Experts {
        identity_experts: 3,
        constant_experts: 2,
        router: ExpertRouterConfig::TopK(TopK {
            top_k: 4,
            function: Function::Sigmoid,
            balance: Balance::Budget,
            budget: 1.5,
            ..TopK::default()
        }),
        ..experts(4, 1.5)
    });
    let plan = config.check().expect("legal");
    let table = model::table::specs(&config, &plan);
    let of = |name: &str| {
        let spec = table.iter().find(|spec| spec.name == name).expect(name);
        (spec.shape, spec.active)
    };
    assert_eq!(of("layers.0.experts_gate_up"), ((4 * 32, 32), 1.5 / 4.0));
    assert_eq!(of("layers.0.experts_constant"), ((2, 32), 0.0));
    // Two and a half of the five that do not compute.
    assert_eq!(of("layers.0.experts_constant_mix"), ((4, 32), 0.5));
    assert_eq!(of("layers.0.router.score"), ((9, 32), 1.0));
}
