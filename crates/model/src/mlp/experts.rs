//! Mixture of experts: SwiGLU MLPs of which each row takes those that its router chooses,
//! `y = sum over the chosen e of w_e down_e(silu(gate_e(h)) * up_e(h))`, beside a shared expert
//! that every row takes (Shazeer et al., 2017, arXiv 1701.06538; shared experts: DeepSeekMoE, 2024,
//! arXiv 2401.06066). No product is padded: rows lie in groups, one an expert.
//!
//! A row's result depends on its own values alone: its experts' products are chains of fixed order,
//! and they join its stream in ascending order of experts.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::GateFunction;
use serde::{Deserialize, Serialize};

use super::bank::{BankWeights, ExpertBank};
use super::dense::{self, DOWN, Dense, GATE_UP};
use super::expert_layer::{Experts, Kind, Shared};
pub use super::expert_parts::{
    BANKS, EXPERTS_DOWN, EXPERTS_DOWN_BIAS, EXPERTS_GATE_UP, EXPERTS_GATE_UP_BIAS, EXPERTS_LATENT,
    SHARED_DOWN, SHARED_DOWN_BIAS, SHARED_GATE_UP, SHARED_GATE_UP_BIAS,
};
use super::member::{Mlp, MlpSettings};
use super::modulated::{self, EXPERTS_SCALE, EXPERTS_SHIFT, Modulated};
use super::shortcut::{self, Leaving};
use super::zero_experts::{CONSTANT_MIX, CONSTANTS, ZeroExperts};
use crate::attention;
use crate::error::{ConfigError, at_least, refuse, same};
use crate::expert_routers::{ExpertCount, ExpertRouterConfig, ExpertRouterSettings, LayerRouting};
use crate::linear::LinearBuilder;
use crate::params::{BufferSpec, Group, Init, ParamPlace, ParamSpec, Part, RouterSite, Take};
use crate::routers::{ComparedScores, RouterPlace, RouterState, StepRouting};
use crate::sizes::Sizes;

/// `[1, d]`: whose sigmoid multiplies the shared expert's result.
const SHARED_GATE: &str = "shared_gate";
/// `[2, d]`: whose softmax weighs the chosen experts' results and the shared one's.
const SHARED_MIX: &str = "shared_mix";

/// `mlp = { kind = "experts", ... }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Experts of a layer.
    pub count: usize,
    /// Where layers have different numbers of experts, those of each stored layer that has some, in
    /// order; `count` says nothing then.
    pub counts: Vec<usize>,
    /// Hidden width of each; 0 for `ffn`.
    pub width: usize,
    /// Width `m` of a projection `B` of the row that all experts of a layer read in its place; 0
    /// for none. Their gates and ups are `[f, m]` then.
    pub latent: usize,
    /// Whether experts are scales and shifts of the row, mixed ahead of one MLP of `width`.
    pub modulated: bool,
    /// Whether layers with experts have a dense MLP of width `ffn` too, and experts and router take
    /// the rows of the MLP of the layer before it.
    pub shortcut: bool,
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
    /// Whether the result of the chosen experts and that of the shared one are weighed by a softmax
    /// of the row.
    pub shared_mix: bool,
    /// Stored layers from the first that have a dense MLP of width `ffn` instead.
    pub dense_first: usize,
    /// One in how many of the layers behind these has experts: the last of each such stretch.
    pub every: usize,
    /// Further stored layers with a dense MLP.
    pub dense_layers: Vec<usize>,
    /// Whether experts have biases.
    pub biases: bool,
    /// Whether dense layers and the shared expert have biases (ERNIE 4.5 with `use_bias`).
    #[serde(skip_serializing_if = "dense::is_default")]
    pub dense_biases: bool,
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
            counts: Vec::new(),
            width: 0,
            latent: 0,
            modulated: false,
            shortcut: false,
            identity_experts: 0,
            zero_experts: 0,
            constant_experts: 0,
            shared: 0,
            shared_gate: false,
            shared_mix: false,
            dense_first: 0,
            every: 1,
            dense_layers: Vec::new(),
            biases: false,
            dense_biases: false,
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

    /// All that the router of stored layer `stored` chooses among.
    pub fn experts(&self, stored: usize) -> ExpertCount {
        let before = (0..stored).filter(|&layer| self.reaches(layer)).count();
        let computing = self.counts.get(before).copied().unwrap_or(self.count);
        ExpertCount { computing, zero: self.zero().all() }
    }

    /// Whether stored layer `stored` of so many leaves its rows to the experts of the next one.
    fn leaves(&self, stored: usize, layers: usize) -> bool {
        self.shortcut && stored + 1 < layers && self.reaches(stored + 1)
    }

    /// The MLP of layers without experts.
    fn dense(&self) -> dense::Config {
        dense::Config { bias: self.dense_biases, ..dense::Config::default() }
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

    /// The place of what weighs the shared expert of a layer, and how many logits it gives; `None`
    /// where nothing does.
    fn shared_weights(&self, stored: usize) -> Option<(ParamPlace, usize)> {
        let (factor, logits) = match (self.shared_gate, self.shared_mix) {
            (true, _) => (SHARED_GATE, 1),
            (false, true) => (SHARED_MIX, 2),
            (false, false) => return None,
        };
        let (site, auxiliary, recursion) = (RouterSite::Layer(stored), false, None);
        let place = ParamPlace::Router { site, auxiliary, recursion, factor };
        (self.shared > 0 && self.reaches(stored)).then_some((place, logits))
    }
}

impl Config {
    /// Refuses forms of experts that do not go together, or not with this model.
    fn check_forms(&self, sizes: &Sizes) -> Result<(), ConfigError> {
        if self.latent > 1 << 19 {
            return refuse("mlp.latent", self.latent, format!("at most {}", 1 << 19));
        }
        let zero = self.zero().all() > 0;
        let of_a_bank = self.latent > 0 || self.biases || self.limit > 0.0;
        if self.modulated && (of_a_bank || zero || self.shortcut) {
            let expected = "false beside mlp.latent, mlp.biases, mlp.limit, mlp.shortcut and \
                            zero-computation experts: there is one MLP, and no bank";
            return refuse("mlp.modulated", "true", expected.into());
        }
        match sizes.sharing.plan(sizes.layers, sizes.recursions) {
            Ok(plan) if self.shortcut => {
                shortcut::check(&plan, |stored| stored < plan.stored && self.reaches(stored))
            }
            _ => Ok(()),
        }
    }

    /// The matrices of the layer's experts: a bank, or what modulated ones share.
    fn matrices(&self, sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
        let (d, f) = (sizes.width, self.width(sizes));
        let matrix = |part, shape| ParamSpec::matrix(sizes, stored, part, shape);
        if self.modulated {
            return vec![matrix(GATE_UP, (2 * f, d)), matrix(DOWN, (d, f))];
        }
        let experts = self.experts(stored);
        let count = experts.computing;
        let bank = |part, shape| ParamSpec {
            active: self.router().taken(experts) / count as f64,
            ..matrix(part, shape)
        };
        let seen = if self.latent > 0 { self.latent } else { d };
        let mut table = Vec::new();
        if self.shortcut {
            table.extend(dense::Config::default().specs(sizes, stored));
        }
        if self.latent > 0 {
            table.push(matrix(EXPERTS_LATENT, (self.latent, d)));
        }
        table.push(bank(EXPERTS_GATE_UP, (count * 2 * f, seen)));
        table.push(bank(EXPERTS_DOWN, (count * d, f)));
        table
    }

    /// Refuses numbers of experts of which a layer can have none or its router none enough.
    fn check_counts(&self, stored: usize) -> Result<(), ConfigError> {
        let layers: Vec<usize> = (0..stored).filter(|&layer| self.reaches(layer)).collect();
        if !self.counts.is_empty() && self.counts.len() != layers.len() {
            let found = format!("a list of {}", self.counts.len());
            let expected = format!("one for each of {} layers with experts", layers.len());
            return refuse("mlp.counts", found, expected);
        }
        if let Some(count) = self.counts.iter().find(|count| **count == 0 || **count > MOST) {
            return refuse("mlp.counts", count, format!("numbers between 1 and {MOST}"));
        }
        let differ = self.counts.windows(2).any(|pair| pair[0] != pair[1]);
        if differ && self.router().pools_layers() {
            let expected = "equal numbers beside mlp.router.pooled_weight, whose loss is over the \
                            experts of all layers together";
            return refuse("mlp.counts", format!("{:?}", self.counts), expected.into());
        }
        for layer in layers {
            self.router().check(self.experts(layer))?;
        }
        Ok(())
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
        for (field, weighs) in
            [("mlp.shared_gate", self.shared_gate), ("mlp.shared_mix", self.shared_mix)]
        {
            if weighs && self.shared == 0 {
                return refuse(field, "true", "false without a shared expert".into());
            }
        }
        if self.shared_gate && self.shared_mix {
            let expected = "false beside mlp.shared_gate: one of them weighs the shared expert";
            return refuse("mlp.shared_mix", "true", expected.into());
        }
        let dense = (0..uses.len()).any(|stored| !self.reaches(stored));
        if self.dense_biases && self.shared == 0 && !dense {
            let expected = "false where every layer has experts and none is shared".into();
            return refuse("mlp.dense_biases", "true", expected);
        }
        if self.own_routers && uses.iter().all(|uses| *uses < 2) {
            let expected = "false where no layer is used twice".into();
            return refuse("mlp.own_routers", "true", expected);
        }
        self.check_forms(sizes)?;
        self.check_counts(uses.len())
    }

    fn parts(&self) -> Vec<Part> {
        vec![
            GATE_UP,
            DOWN,
            EXPERTS_LATENT,
            EXPERTS_GATE_UP,
            EXPERTS_GATE_UP_BIAS,
            EXPERTS_DOWN,
            EXPERTS_DOWN_BIAS,
            EXPERTS_SCALE,
            EXPERTS_SHIFT,
            SHARED_GATE_UP,
            SHARED_DOWN,
            CONSTANTS,
            CONSTANT_MIX,
        ]
    }

    fn specs(&self, sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
        if !self.reaches(stored) {
            return self.dense().specs(sizes, stored);
        }
        let experts = self.experts(stored);
        let (d, f, count) = (sizes.width, self.width(sizes), experts.computing);
        let mut table = self.matrices(sizes, stored);
        if self.modulated {
            table.extend(modulated::specs(d, stored, count));
        }
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
        let router = self.router();
        let others = router.chosen(experts) - router.taken(experts);
        table.extend(self.zero().specs(sizes, stored, others));
        table
    }

    fn vectors(&self, sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
        if !self.reaches(stored) {
            return self.dense().vectors(sizes, stored);
        }
        if !self.dense_biases || self.shared == 0 {
            return Vec::new();
        }
        let gate_up = ParamSpec::bias(stored, SHARED_GATE_UP_BIAS, 2 * self.shared);
        vec![gate_up, ParamSpec::bias(stored, SHARED_DOWN_BIAS, sizes.width)]
    }

    /// Beside what matrices keep: each entry's row as it was gathered and as it joins the stream,
    /// and logits, scores and their shares.
    fn kept_values(&self, sizes: &Sizes, stored: usize) -> f64 {
        if !self.reaches(stored) {
            return self.dense().kept_values(sizes, stored);
        }
        // The side of a matrix that is not the stream; of the gates behind a projection, that which
        // is not the projection.
        let beside = |spec: &ParamSpec| {
            let behind = self.latent > 0 && spec.place.part() == Some(EXPERTS_GATE_UP);
            let other = if behind { self.latent } else { sizes.width };
            spec.active * spec.count() as f64 / other as f64
        };
        let products: f64 = self.specs(sizes, stored).iter().map(beside).sum();
        let experts = self.experts(stored);
        // Modulated rows, beside those that were gathered: scale, shift, product and sum.
        let copies = if self.modulated { 6.0 } else { 2.0 };
        let entries = copies * self.router().chosen(experts) * sizes.width as f64;
        // The product with the cell's input and with its state, and both of these.
        let remembered = 8 * self.router().carried().map_or(0, |(_, width)| width);
        products + entries + (3 * experts.all() + remembered) as f64
    }

    fn check_effects(&self, sizes: &Sizes) -> Result<(), ConfigError> {
        let default = Self::default().count;
        if !self.counts.is_empty() && self.count != default {
            let expected = format!("{default} beside mlp.counts, which says it of every layer");
            return refuse("mlp.count", self.count, expected);
        }
        if self.limit == 0.0 {
            same("mlp.alpha", self.alpha, Self::default().alpha, "where mlp.limit is 0")?;
        }
        if self.latent >= sizes.width {
            let expected = format!(
                "below {}, the width, as a wider projection saves nothing; or 0 for none",
                sizes.width
            );
            return refuse("mlp.latent", self.latent, expected);
        }
        let layers = (0..uses(sizes).len()).filter(|&stored| self.reaches(stored));
        for stored in layers {
            self.router().check_effects(self.experts(stored))?;
        }
        Ok(())
    }

    fn by_layer(&self) -> Vec<String> {
        let of_layers = [("every", self.every, 1), ("dense_first", self.dense_first, 0)];
        let mut told: Vec<String> = of_layers
            .iter()
            .filter(|(_, value, usual)| value != usual)
            .map(|(name, value, _)| format!("mlp.{name} = {value}"))
            .collect();
        if !self.counts.is_empty() {
            told.push(format!("mlp.counts = {:?}", self.counts));
        }
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
        let dense = self.dense_first > 0 || self.every > 1 || !self.dense_layers.is_empty();
        if dense || self.modulated {
            parts.extend([GATE_UP, DOWN]);
        }
        if self.latent > 0 {
            parts.push(EXPERTS_LATENT);
        }
        if self.shared > 0 {
            parts.extend([SHARED_GATE_UP, SHARED_DOWN]);
        }
        parts
    }

    fn computing_experts(&self, stored: usize) -> usize {
        if self.reaches(stored) { self.experts(stored).computing } else { 0 }
    }

    fn trains_otherwise(&self) -> bool {
        self.router().trains_otherwise()
    }

    fn throws_dice(&self) -> bool {
        let zero = self.zero().all();
        let usual = [self.count];
        let counts = if self.counts.is_empty() { &usual[..] } else { &self.counts };
        let mut layers = counts.iter().map(|&computing| ExpertCount { computing, zero });
        layers.any(|experts| self.router().throws_dice(experts))
    }

    fn fields_of_training(&self) -> Vec<String> {
        let fields = self.router().fields_of_training();
        fields.iter().map(|field| format!("mlp.router.{field}")).collect()
    }

    fn links_layers(&self) -> bool {
        self.shortcut || self.carried().is_some()
    }

    fn carried(&self) -> Option<(&'static str, usize)> {
        self.router().carried()
    }

    fn shared_routers(&self, sizes: &Sizes) -> Vec<ParamSpec> {
        self.router().shared_specs(sizes)
    }

    fn routers(&self, sizes: &Sizes, stored: usize) -> Vec<ParamSpec> {
        let uses = uses(sizes).get(stored).copied().unwrap_or(0);
        let mut table = Vec::new();
        for place in self.places(stored, uses) {
            table.extend(self.router().specs(sizes, place, self.experts(stored)));
        }
        if let Some((place, logits)) = self.shared_weights(stored) {
            let normal = Init::Normal(sizes.init_std);
            table.push(ParamSpec::new(place, (logits, sizes.width), normal, Group::Router));
        }
        table
    }

    fn buffers(&self, sizes: &Sizes) -> Vec<BufferSpec> {
        let (uses, mut buffers) = (uses(sizes), Vec::new());
        for stored in (0..uses.len()).filter(|&stored| self.reaches(stored)) {
            let (site, places) = (RouterSite::Layer(stored), self.places(stored, uses[stored]));
            buffers.extend(self.router().buffers(site, self.experts(stored), &places));
        }
        buffers
    }

    fn after_step(&self, routed: &StepRouting<'_>, state: &mut RouterState) {
        for (&site, loads) in routed.experts {
            let RouterSite::Layer(stored) = site else { continue };
            // One router for all uses has what they compared together.
            let mut compared: BTreeMap<_, ComparedScores> = BTreeMap::new();
            for ((at, recursion), of_use) in routed.compared {
                if *at == site {
                    let router = self.own_routers.then_some(*recursion);
                    compared.entry(router).or_default().append(of_use);
                }
            }
            let did = LayerRouting { loads, compared };
            self.router().after_step(site, self.experts(stored), &did, state);
        }
    }

    fn build(&self, linears: &LinearBuilder<'_>, take: &mut Take) -> Box<dyn Mlp> {
        let stored = linears.stored;
        if !self.reaches(stored) {
            let mlp = self.dense().build(linears, take);
            let leaves = self.leaves(stored, linears.plan.stored);
            return if leaves { Box::new(Leaving(mlp)) } else { mlp };
        }
        let mut mlp = |[gate_up, down]: [(Part, Option<Part>); 2]| Dense {
            gate_up: linears.build_biased(gate_up.0, gate_up.1, take),
            down: linears.build_biased(down.0, down.1, take),
            function: GateFunction::Silu,
        };
        let own = (self.modulated || self.shortcut).then(|| mlp([(GATE_UP, None), (DOWN, None)]));
        let of_shared = [(SHARED_GATE_UP, SHARED_GATE_UP_BIAS), (SHARED_DOWN, SHARED_DOWN_BIAS)]
            .map(|(part, bias)| (part, self.dense_biases.then_some(bias)));
        let shared = (self.shared > 0).then(|| mlp(of_shared));
        let (modulated, beside) = if self.modulated { (own, None) } else { (None, own) };
        let shared = shared.map(|mlp| Shared {
            mlp,
            weights: self.shared_weights(stored).map(|(place, _)| take.take(&place)),
            mixes: self.shared_mix,
        });
        let places = self.places(stored, linears.plan.uses_of(stored).len());
        let kind = match modulated {
            Some(mlp) => Kind::Modulated(Modulated::build(mlp, linears, take)),
            None => {
                let latent = (self.latent > 0).then(|| linears.build(EXPERTS_LATENT, take));
                let clamp = (self.limit > 0.0).then_some((self.limit as f32, self.alpha as f32));
                let weights = BankWeights::take(self.biases, linears, take);
                let (count, written) = (self.experts(stored).computing, linears.sizes.width);
                let bank = ExpertBank::new((stored, count, written), latent, weights, clamp);
                Kind::Bank(Arc::new(bank))
            }
        };
        Box::new(Experts {
            kind,
            beside,
            count: self.experts(stored).computing,
            zero: self.zero().build(linears, take),
            shared,
            links_layers: self.links_layers(),
            routers: places
                .into_iter()
                .map(|place| self.router().build(place, self.experts(stored), take))
                .collect(),
        })
    }
}

/// Most experts of a layer.
const MOST: usize = 1 << 12;
