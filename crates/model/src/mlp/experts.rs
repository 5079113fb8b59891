//! Mixture of experts: SwiGLU MLPs of which each row takes those that its router chooses,
//! `y = sum over the chosen e of w_e down_e(silu(gate_e(h)) * up_e(h))`, beside a shared expert
//! that every row takes (Shazeer et al., 2017, arXiv 1701.06538; shared experts: DeepSeekMoE, 2024,
//! arXiv 2401.06066). No product is padded: rows lie in groups, one an expert.
//!
//! A row's result depends on its own values alone: its experts' products are chains of fixed order,
//! and they join its stream in ascending order of experts.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::{Activation, Combine, GateFunction, Ops, Tensor2, Weight, rows_of, stack};
use serde::{Deserialize, Serialize};

use super::dense::{self, DOWN, Dense, GATE_UP};
use super::member::{Mlp, MlpSettings};
use super::zero_experts::{CONSTANT_MIX, CONSTANTS, ZeroBank, ZeroExperts};
use crate::attention;
use crate::carry::Carry;
use crate::context::LayerContext;
use crate::error::{ConfigError, at_least, refuse, same};
use crate::expert_routers::{ExpertCount, ExpertRouterConfig, ExpertRouterSettings, LayerRouting};
use crate::linear::LinearBuilder;
use crate::params::{BufferSpec, Group, Init, ParamPlace, ParamSpec, Part, RouterSite, Take};
use crate::pass::Pass;
use crate::routers::{
    ComparedScores, Router, RouterCall, RouterPlace, RouterState, RoutingPlan, StepRouting,
};
use crate::rows::Rows;
use crate::sizes::Sizes;

/// `[E 2 f, d]`: gate, then up, of one expert after another.
pub const EXPERTS_GATE_UP: Part = Part::new("experts_gate_up");
/// `[E d, f]`: what each expert writes to the stream.
pub const EXPERTS_DOWN: Part = Part::new("experts_down");
/// `[E, 2 f]`: what is added to gate and up of each expert.
pub const EXPERTS_GATE_UP_BIAS: Part = Part::new("experts_gate_up_bias");
/// `[E, d]`: what is added to the result of each expert, and weighted with it.
pub const EXPERTS_DOWN_BIAS: Part = Part::new("experts_down_bias");
/// `[2 f, d]`: gate, then up, of the shared expert.
pub const SHARED_GATE_UP: Part = Part::new("shared_gate_up");
/// `[d, f]`: what the shared expert writes to the stream.
pub const SHARED_DOWN: Part = Part::new("shared_down");
/// `[1, d]`: whose sigmoid multiplies the shared expert's result.
const SHARED_GATE: &str = "shared_gate";

/// `mlp = { kind = "experts", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Experts of a layer.
    pub count: usize,
    /// Hidden width of each; 0 for `ffn`.
    pub width: usize,
    /// Zero-computation experts beside them that write the row itself, as the MLP is given it.
    pub identity_experts: usize,
    /// Zero-computation experts that write nothing.
    pub zero_experts: usize,
    /// Zero-computation experts that write the row mixed with a learned vector.
    pub constant_experts: usize,
    /// Hidden width of the expert that every row takes; 0 for none.
    pub shared: usize,
    /// Whether the shared expert's result is multiplied by a sigmoid of the row.
    pub shared_gate: bool,
    /// Stored layers from the first that have a dense MLP of width `ffn` instead.
    pub dense_first: usize,
    /// One in how many of the layers behind these has experts: the last of each such stretch.
    pub every: usize,
    /// Further stored layers with a dense MLP.
    pub dense_layers: Vec<usize>,
    /// Whether experts have biases.
    pub biases: bool,
    /// Where above 0, experts compute the gated product of GPT-OSS in place of SwiGLU: `gate
    /// sigmoid(alpha gate) (up + 1)`, the gate at most this, and up at most this far from 0.
    pub limit: f64,
    /// The slope of that sigmoid.
    pub alpha: f64,
    /// Whether each use of a shared layer has a router of its own.
    pub own_routers: bool,
    /// Who chooses the experts of a row.
    pub router: ExpertRouterConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            count: 8,
            width: 0,
            identity_experts: 0,
            zero_experts: 0,
            constant_experts: 0,
            shared: 0,
            shared_gate: false,
            dense_first: 0,
            every: 1,
            dense_layers: Vec::new(),
            biases: false,
            limit: 0.0,
            alpha: 1.702,
            own_routers: false,
            router: ExpertRouterConfig::default(),
        }
    }
}

impl Config {
    /// Whether stored layer `stored` has experts.
    pub fn reaches(&self, stored: usize) -> bool {
        stored >= self.dense_first
            && (stored + 1 - self.dense_first).is_multiple_of(self.every)
            && !self.dense_layers.contains(&stored)
    }

    /// Hidden width of an expert.
    pub fn width(&self, sizes: &Sizes) -> usize {
        if self.width == 0 { sizes.ffn } else { self.width }
    }

    /// All that the router chooses among.
    pub fn experts(&self) -> ExpertCount {
        ExpertCount { computing: self.count, zero: self.zero().all() }
    }

    fn zero(&self) -> ZeroExperts {
        let Self { identity_experts, zero_experts, constant_experts, .. } = *self;
        ZeroExperts { identity: identity_experts, zero: zero_experts, constant: constant_experts }
    }

    fn router(&self) -> &dyn ExpertRouterSettings {
        self.router.settings()
    }

    /// Where the routers of stored layer `stored` stand: one for all its uses, or one for each.
    fn places(&self, stored: usize, uses: usize) -> Vec<RouterPlace> {
        let site = RouterSite::Layer(stored);
        let at = |recursion| RouterPlace { site, auxiliary: false, recursion };
        if !self.reaches(stored) {
            return Vec::new();
        }
        if self.own_routers { (0..uses).map(|r| at(Some(r))).collect() } else { vec![at(None)] }
    }

    fn shared_gate(stored: usize) -> ParamPlace {
        ParamPlace::Router {
            site: RouterSite::Layer(stored),
            auxiliary: false,
            recursion: None,
            factor: SHARED_GATE,
        }
    }

    fn has_shared_gate(&self, stored: usize) -> bool {
        self.shared_gate && self.shared > 0 && self.reaches(stored)
    }
}

/// How many stored layers a model of these sizes has, and how often each is used.
fn uses(sizes: &Sizes) -> Vec<usize> {
    let plan = sizes.sharing.plan(sizes.layers, sizes.recursions);
    plan.map_or(Vec::new(), |plan| (0..plan.stored).map(|s| plan.uses_of(s).len()).collect())
}

impl MlpSettings for Config {
    fn check(&self, sizes: &Sizes) -> Result<(), ConfigError> {
        if self.count == 0 || self.count > MOST {
            let expected = format!("between 1 and {MOST}");
            return refuse("mlp.count", self.count, expected);
        }
        let counts = [
            ("mlp.identity_experts", self.identity_experts),
            ("mlp.zero_experts", self.zero_experts),
            ("mlp.constant_experts", self.constant_experts),
        ];
        for (field, found) in counts {
            if found > MOST {
                return refuse(field, found, format!("at most {MOST}"));
            }
            if found > 0 && !self.router().holds_budget() {
                let expected = "0, or router \"top_k\" with balance = \"budget\": without it \
                                nothing holds how many experts of a row compute";
                return refuse(field, found, expected.into());
            }
        }
        for (field, found) in [("mlp.width", self.width), ("mlp.shared", self.shared)] {
            if found > 1 << 19 {
                return refuse(field, found, format!("at most {}", 1 << 19));
            }
        }
        let uses = uses(sizes);
        if self.every == 0 || !(0..uses.len()).any(|stored| self.reaches(stored)) {
            let found = format!("{} with dense_first = {}", self.every, self.dense_first);
            let expected = format!(
                "a number with which one of the {} stored layers has experts; kind \"dense\" is \
                 without any",
                uses.len()
            );
            return refuse("mlp.every", found, expected);
        }
        at_least("mlp.limit", self.limit, 0.0)?;
        at_least("mlp.alpha", self.alpha, 0.0)?;
        let others = Self { dense_layers: Vec::new(), ..self.clone() };
        for (i, layer) in self.dense_layers.iter().enumerate() {
            if *layer >= uses.len()
                || !others.reaches(*layer)
                || self.dense_layers[..i].contains(layer)
            {
                let expected = format!(
                    "stored layers below {} that would have experts, each once",
                    uses.len()
                );
                return refuse("mlp.dense_layers", layer, expected);
            }
        }
        if self.shared_gate && self.shared == 0 {
            return refuse("mlp.shared_gate", "true", "false without a shared expert".into());
        }
        if self.own_routers && uses.iter().all(|uses| *uses < 2) {
            let expected = "false where no layer is used twice".into();
            return refuse("mlp.own_routers", "true", expected);
        }
        self.router().check(self.experts())
    }

    fn parts(&self) -> Vec<Part> {
        vec![
            GATE_UP,
            DOWN,
            EXPERTS_GATE_UP,
            EXPERTS_GATE_UP_BIAS,
            EXPERTS_DOWN,
            EXPERTS_DOWN_BIAS,
            SHARED_GATE_UP,
            SHARED_DOWN,
            CONSTANTS,
            CONSTANT_MIX,
        ]
    }

    fn specs(&self, sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
        if !self.reaches(stored) {
            return dense::Config::default().specs(sizes, stored);
        }
        let (d, f, count) = (sizes.width, self.width(sizes), self.count);
        let bank = |part, shape| ParamSpec {
            active: self.router().taken(self.experts()) / count as f64,
            ..ParamSpec::matrix(sizes, stored, part, shape)
        };
        let mut table =
            vec![bank(EXPERTS_GATE_UP, (count * 2 * f, d)), bank(EXPERTS_DOWN, (count * d, f))];
        if self.biases {
            let bias = |part, columns| {
                let place = ParamPlace::Layer { stored, part };
                ParamSpec::new(place, (count, columns), Init::Zeros, Group::Norm)
            };
            table.push(bias(EXPERTS_GATE_UP_BIAS, 2 * f));
            table.push(bias(EXPERTS_DOWN_BIAS, d));
        }
        if self.shared > 0 {
            let matrix = |part, shape| ParamSpec::matrix(sizes, stored, part, shape);
            table.push(matrix(SHARED_GATE_UP, (2 * self.shared, d)));
            table.push(matrix(SHARED_DOWN, (d, self.shared)));
        }
        let (router, experts) = (self.router(), self.experts());
        let others = router.chosen(experts) - router.taken(experts);
        table.extend(self.zero().specs(sizes, stored, others));
        table
    }

    /// Beside what matrices keep: each entry's row as it was gathered and as it joins the stream,
    /// and logits, scores and their shares.
    fn kept_values(&self, sizes: &Sizes, stored: usize) -> f64 {
        if !self.reaches(stored) {
            return dense::Config::default().kept_values(sizes, stored);
        }
        let met = |spec: &ParamSpec| spec.active * spec.count() as f64;
        let products: f64 = self.specs(sizes, stored).iter().map(met).sum();
        let entries = 2.0 * self.router().chosen(self.experts()) * sizes.width as f64;
        products / sizes.width as f64 + entries + 3.0 * self.experts().all() as f64
    }

    fn check_effects(&self, _: &Sizes) -> Result<(), ConfigError> {
        if self.limit == 0.0 {
            same("mlp.alpha", self.alpha, Self::default().alpha, "where mlp.limit is 0")?;
        }
        self.router().check_effects(self.experts())
    }

    fn by_layer(&self) -> Vec<String> {
        let of_layers = [("every", self.every, 1), ("dense_first", self.dense_first, 0)];
        let mut told: Vec<String> = of_layers
            .iter()
            .filter(|(_, value, usual)| value != usual)
            .map(|(name, value, _)| format!("mlp.{name} = {value}"))
            .collect();
        if !self.dense_layers.is_empty() {
            told.push(format!("mlp.dense_layers = {:?}", self.dense_layers));
        }
        if self.own_routers {
            told.push("mlp.own_routers = true".to_owned());
        }
        told
    }

    fn adaptable(&self) -> Vec<Part> {
        let mut parts = attention::PARTS.to_vec();
        if self.dense_first > 0 || self.every > 1 || !self.dense_layers.is_empty() {
            parts.extend([GATE_UP, DOWN]);
        }
        if self.shared > 0 {
            parts.extend([SHARED_GATE_UP, SHARED_DOWN]);
        }
        parts
    }

    fn computing_experts(&self) -> usize {
        self.count
    }

    fn trains_otherwise(&self) -> bool {
        self.router().trains_otherwise()
    }

    fn routers(&self, sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
        let uses = uses(sizes).get(stored).copied().unwrap_or(0);
        let mut table = Vec::new();
        for place in self.places(stored, uses) {
            table.extend(self.router().specs(sizes, place, self.experts()));
        }
        if self.has_shared_gate(stored) {
            let (place, normal) = (Self::shared_gate(stored), Init::Normal(sizes.init_std));
            table.push(ParamSpec::new(place, (1, sizes.width), normal, Group::Router));
        }
        table
    }

    fn buffers(&self, sizes: &Sizes) -> Vec<BufferSpec> {
        let (uses, mut buffers) = (uses(sizes), Vec::new());
        for stored in (0..uses.len()).filter(|&stored| self.reaches(stored)) {
            let (site, places) = (RouterSite::Layer(stored), self.places(stored, uses[stored]));
            buffers.extend(self.router().buffers(site, self.experts(), &places));
        }
        buffers
    }

    fn after_step(&self, routed: &StepRouting<'_>, state: &mut RouterState) {
        for (&site, loads) in routed.experts {
            // One router for all uses has what they compared together.
            let mut compared: BTreeMap<_, ComparedScores> = BTreeMap::new();
            for ((at, recursion), of_use) in routed.compared {
                if *at == site {
                    let router = self.own_routers.then_some(*recursion);
                    compared.entry(router).or_default().append(of_use);
                }
            }
            let did = LayerRouting { loads, compared };
            self.router().after_step(site, self.experts(), &did, state);
        }
    }

    fn build(&self, linears: &LinearBuilder<'_>, take: &mut Take) -> Box<dyn Mlp> {
        let stored = linears.stored;
        if !self.reaches(stored) {
            return dense::Config::default().build(linears, take);
        }
        let shared = (self.shared > 0).then(|| Shared {
            mlp: Dense {
                gate_up: linears.build(SHARED_GATE_UP, take),
                down: linears.build(SHARED_DOWN, take),
                function: GateFunction::Silu,
            },
            gate: self.has_shared_gate(stored).then(|| take.take(&Self::shared_gate(stored))),
        });
        let places = self.places(stored, linears.plan.uses_of(stored).len());
        Box::new(Experts {
            gate_up: linears.bank(EXPERTS_GATE_UP, take),
            down: linears.bank(EXPERTS_DOWN, take),
            biases: self.biases.then(|| Biases {
                gate_up: linears.bank(EXPERTS_GATE_UP_BIAS, take),
                down: linears.bank(EXPERTS_DOWN_BIAS, take),
            }),
            count: self.count,
            zero: self.zero().build(linears, take),
            clamp: (self.limit > 0.0).then_some((self.limit as f32, self.alpha as f32)),
            shared,
            routers: places
                .into_iter()
                .map(|place| self.router().build(place, self.experts(), take))
                .collect(),
        })
    }
}

/// Most experts of a layer.
const MOST: usize = 1 << 12;

/// The expert that every row takes.
#[derive(Debug)]
struct Shared {
    mlp: Dense,
    gate: Option<Arc<Weight>>,
}

/// What is added to the products of each expert.
#[derive(Debug)]
struct Biases {
    gate_up: Arc<Weight>,
    down: Arc<Weight>,
}

/// The experts of one stored layer over their weights.
#[derive(Debug)]
struct Experts {
    gate_up: Arc<Weight>,
    down: Arc<Weight>,
    /// Experts of the banks.
    count: usize,
    /// What stands behind them.
    zero: ZeroBank,
    biases: Option<Biases>,
    /// Limit and slope of the clamped product in place of SwiGLU.
    clamp: Option<(f32, f32)>,
    shared: Option<Shared>,
    /// One for all uses of the layer, or one for each.
    routers: Vec<Box<dyn Router>>,
}

impl Mlp for Experts {
    fn forward(
        &self,
        h_td: Tensor2,
        residual_td: Tensor2,
        context: &mut LayerContext<'_, '_>,
    ) -> Tensor2 {
        let x_td = match &self.shared {
            Some(shared) => shared.forward(h_td.clone(), residual_td, context),
            None => residual_td,
        };
        let recursion = context.at.runs().next().map_or(0, |(at, _)| at.recursion);
        if self.routers.len() < 2 || context.at.count() < 2 {
            let router = &self.routers[recursion.min(self.routers.len() - 1)];
            let routed = Routed { router: &**router, recursion, rows: context.rows };
            return self.routed(&routed, h_td, x_td, context.carry, context.pass);
        }
        let mut parts = Vec::new();
        for (at, range) in context.at.runs() {
            let rows = &context.rows.stretch_of(range.clone());
            let router = &*self.routers[at.recursion];
            let routed = Routed { router, recursion: at.recursion, rows };
            let (h_td, x_td) = (rows_of(&h_td, range.clone()), rows_of(&x_td, range));
            parts.push(self.routed(&routed, h_td, x_td, &Carry::default(), context.pass));
        }
        stack(parts)
    }
}

/// Rows that one router decides about.
struct Routed<'a> {
    router: &'a dyn Router,
    recursion: usize,
    rows: &'a Rows,
}

impl Experts {
    /// The stream with what the experts of each row write to it.
    fn routed(
        &self,
        of: &Routed<'_>,
        h_td: Tensor2,
        mut x_td: Tensor2,
        carry: &Carry,
        pass: &mut Pass<'_>,
    ) -> Tensor2 {
        let numbers: Vec<u32> = (0..of.rows.len() as u32).collect();
        let call = RouterCall {
            recursion: of.recursion,
            x_cd: &h_td,
            rows: of.rows,
            numbers: &numbers,
            lengths: &BTreeMap::new(),
            carry,
        };
        let plan = of.router.route(&call, pass);
        let computing = plan.offsets[self.count] as usize;
        if computing > 0 && computing == plan.rows.len() {
            x_td = self.bank(&plan, (&plan.rows, plan.weights.clone()), h_td, x_td, pass.ops);
        } else if !plan.rows.is_empty() {
            if computing > 0 {
                let rows: Arc<[u32]> = plan.rows[..computing].into();
                let weights = plan.weights.as_ref().map(|all| rows_of(all, 0..computing));
                x_td = self.bank(&plan, (&rows, weights), h_td.clone(), x_td, pass.ops);
            }
            x_td = self.zero.add(&plan, self.count, &h_td, x_td, pass.ops);
        }
        for loss in plan.losses {
            x_td = pass.attach(x_td, loss);
        }
        x_td
    }

    /// The stream with what computing experts write to it.
    fn bank(
        &self,
        plan: &RoutingPlan,
        (rows, weights): (&Arc<[u32]>, Option<Tensor2>),
        h_td: Tensor2,
        x_td: Tensor2,
        ops: Ops,
    ) -> Tensor2 {
        let sizes: Arc<[usize]> = (0..self.count).map(|e| plan.of(e).len()).collect();
        let single = weights.is_none() && plan.targets() == 1 && self.biases.is_none();
        let x_ad = if single { h_td } else { ops.gather_rows(h_td, rows) };
        let bias = |of: fn(&Biases) -> &Arc<Weight>| self.biases.as_ref().map(of);
        let y_an = ops.grouped_linear(x_ad, &self.gate_up, &sizes);
        let y_an = with_bias(ops, y_an, bias(|biases| &biases.gate_up), &sizes);
        let y_af = match self.clamp {
            Some((limit, alpha)) => ops.clamped_swiglu(y_an, limit, alpha),
            None => ops.swiglu(y_an),
        };
        if single {
            // Written to the stream as a dense MLP does it.
            return ops.linear_add(y_af, &self.down, x_td);
        }
        let w_a1 = weights.unwrap_or_else(|| ops::column(vec![1.0; rows.len()]));
        let y_ad = ops.grouped_linear(y_af, &self.down, &sizes);
        let y_ad = with_bias(ops, y_ad, bias(|biases| &biases.down), &sizes);
        ops.combine_rows(x_td, rows, y_ad, w_a1, Combine::Add)
    }
}

/// Rows in groups of these sizes, to each of which its group's row of `bias` is added.
fn with_bias(ops: Ops, y_an: Tensor2, bias: Option<&Arc<Weight>>, sizes: &[usize]) -> Tensor2 {
    let Some(bias) = bias else { return y_an };
    let groups = sizes.iter().enumerate();
    let of_rows: Arc<[u32]> = groups.flat_map(|(group, &n)| vec![group as u32; n]).collect();
    let bias_an = ops.embed(&y_an, bias, &of_rows);
    ops::add(y_an, bias_an)
}

impl Shared {
    fn forward(&self, h_td: Tensor2, x_td: Tensor2, context: &mut LayerContext<'_, '_>) -> Tensor2 {
        let Some(gate) = &self.gate else { return self.mlp.forward(h_td, x_td, context) };
        let (at, ops) = (context.at, context.pass.ops);
        let gate_t1 = ops.gate(ops.linear(h_td.clone(), gate), Activation::Sigmoid, 1.0);
        let y_tf = ops.swiglu(self.mlp.gate_up.apply(h_td, at, context.pass));
        let y_td = self.mlp.down.apply(y_tf, at, context.pass);
        ops::add(x_td, ops.scale_rows(y_td, gate_t1))
    }
}
