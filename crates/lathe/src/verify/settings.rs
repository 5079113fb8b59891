//! What a case says about itself, and the model config that follows from it.

use anyhow::{Context, Result, bail};
use model::adapters::Relaxation;
use model::routers::{Network, expert_choice, random, token_choice};
use model::{KvMode, ModelConfig, RouterConfig, Sharing};
use serde::Deserialize;

use super::reference::Reference;

/// The settings of a case.
#[derive(Debug, Deserialize)]
pub(super) struct Settings {
    pub(super) kind: String,
    pub(super) sharing: String,
    pub(super) recursions: usize,
    pub(super) layers: usize,
    pub(super) hidden_size: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) intermediate_size: usize,
    pub(super) vocab_size: usize,
    pub(super) rope_theta: f64,
    pub(super) rms_norm_eps: f64,
    #[serde(default)]
    pub(super) router: String,
    #[serde(default)]
    pub(super) router_func: String,
    #[serde(default)]
    pub(super) alpha: f64,
    #[serde(default)]
    pub(super) sampling: Option<String>,
    #[serde(default)]
    pub(super) coeff: f64,
    #[serde(default)]
    pub(super) kv: Option<String>,
    #[serde(default)]
    pub(super) z_loss: bool,
    #[serde(default)]
    pub(super) z_coeff: f64,
    #[serde(default)]
    pub(super) balancing: Option<String>,
    #[serde(default)]
    pub(super) gating: Option<String>,
    #[serde(default)]
    pub(super) capacity: Option<Vec<f64>>,
    #[serde(default)]
    pub(super) train: Option<TrainSettings>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TrainSettings {
    pub(super) steps: usize,
    pub(super) lr: f64,
    pub(super) betas: [f64; 2],
    pub(super) eps: f64,
    pub(super) weight_decay: f64,
    pub(super) clip_norm: f64,
}

impl Reference {
    pub(super) fn config(&self) -> Result<ModelConfig> {
        let s = &self.settings;
        let sharing = match s.sharing.as_str() {
            "none" => Sharing::None,
            "cycle" => Sharing::Cycle,
            "sequence" => Sharing::Sequence,
            "middle_cycle" => Sharing::MiddleCycle,
            "middle_sequence" => Sharing::MiddleSequence,
            other => bail!("sharing is {other}, expected one of the four layouts or none"),
        };
        let kv = match s.kv.as_deref() {
            None | Some("recursion_wise") => KvMode::RecursionWise,
            Some("shared") => KvMode::Shared,
            Some("shared_update") => KvMode::SharedUpdate,
            Some(other) => bail!("kv is {other}, expected recursion_wise, shared or shared_update"),
        };
        let config = ModelConfig {
            vocab_size: s.vocab_size,
            width: s.hidden_size,
            layers: s.layers,
            heads: s.heads,
            kv_heads: s.kv_heads,
            head_dim: s.head_dim,
            ffn: s.intermediate_size,
            context: self.context()?,
            rope_theta: s.rope_theta,
            norm_eps: s.rms_norm_eps,
            tie_embeddings: self.file.shape("param.lm_head.weight").is_none(),
            init_std: 0.02,
            sharing,
            recursions: if sharing == Sharing::None { 1 } else { s.recursions },
            share_norms: true,
            relax: Relaxation::NONE,
            router: self.router()?,
            kv: if sharing == Sharing::None { KvMode::RecursionWise } else { kv },
            ..ModelConfig::default()
        };
        config.check()?;
        Ok(config)
    }

    /// Rows of a sequence.
    fn context(&self) -> Result<usize> {
        let found = self.ids.get("input_ids").or_else(|| self.ids.get("train.input_ids"));
        let (shape, _) = found.context("tensor input_ids (or train.input_ids) is missing")?;
        Ok(shape.last().copied().unwrap_or(1).max(1))
    }

    fn router(&self) -> Result<RouterConfig> {
        let s = &self.settings;
        Ok(match s.kind.as_str() {
            "vanilla" | "recursive" => RouterConfig::FIXED,
            "random" => RouterConfig::Random(random::Config {
                alpha: s.alpha,
                capacities: s.capacity.clone(),
            }),
            "expert" => RouterConfig::ExpertChoice(expert_choice::Config {
                network: self.network()?,
                function: match s.router_func.as_str() {
                    "sigmoid" => expert_choice::Function::Sigmoid,
                    "tanh" => expert_choice::Function::Tanh,
                    "none" | "" => expert_choice::Function::None,
                    other => bail!("router_func is {other}, expected sigmoid, tanh or none"),
                },
                alpha: s.alpha,
                gating: match s.gating.as_deref() {
                    None | Some("weighted") => expert_choice::Gating::Weighted,
                    Some("additive") => expert_choice::Gating::Additive,
                    Some(other) => bail!("gating is {other}, expected weighted or additive"),
                },
                capacities: s.capacity.clone(),
                sampling: match s.sampling.as_deref() {
                    Some("aux_loss") => expert_choice::SamplingLoss::AuxLoss,
                    Some("aux_router") => expert_choice::SamplingLoss::AuxRouter,
                    None => expert_choice::SamplingLoss::None,
                    Some(other) => bail!("sampling is {other}, expected aux_loss or aux_router"),
                },
                sampling_weight: s.coeff,
                z_weight: if s.z_loss { s.z_coeff } else { 0.0 },
                ..Default::default()
            }),
            "token" => RouterConfig::TokenChoice(token_choice::Config {
                network: self.network()?,
                function: match s.router_func.as_str() {
                    "softmax" => token_choice::Function::Softmax,
                    "sigmoid" => token_choice::Function::Sigmoid,
                    other => bail!("router_func is {other}, expected softmax or sigmoid"),
                },
                alpha: s.alpha,
                balance: match s.balancing.as_deref() {
                    Some("loss") => token_choice::Balance::Loss,
                    Some("loss_free") => token_choice::Balance::LossFree,
                    None => token_choice::Balance::None,
                    Some(other) => bail!("balancing is {other}, expected loss, loss_free or null"),
                },
                balance_weight: s.coeff,
                z_weight: if s.z_loss { s.z_coeff } else { 0.0 },
                ..Default::default()
            }),
            other => bail!("kind is {other}, expected vanilla, recursive, expert or token"),
        })
    }

    /// By name, and for the two MLPs by the shape that the file really has.
    fn network(&self) -> Result<Network> {
        if self.settings.router == "linear" {
            return Ok(Network::Linear);
        }
        let up = self
            .file
            .names()
            .find(|n| n.starts_with("param.") && n.ends_with("mor_router.router.0.weight"));
        let hidden = up.and_then(|name| self.file.shape(name)).map(|shape| shape[0]);
        match (self.settings.router.as_str(), hidden) {
            ("mlp" | "wide_mlp", Some(h)) if h == 2 * self.settings.hidden_size => Ok(Network::Mlp),
            ("mlp" | "wide_mlp", Some(h)) if h == 4 * self.settings.hidden_size => {
                Ok(Network::WideMlp)
            }
            (other, hidden) => bail!(
                "router is {other} with hidden size {hidden:?}, \
                 expected linear, mlp or wide_mlp of 2 or 4 times the width"
            ),
        }
    }
}
