//! What the dense classes of Hugging Face folders share: their numbers with the defaults of each
//! class, the window of some blocks, and the names of tensors.

use serde_json::{Map, Value};

use crate::hf::rope;
use crate::json::{JsonObject, describe};
use crate::{
    Additions, ArchConfig, HiddenActivation, LayerRole, Result, RopeScaling, SlidingWindow,
    TensorRole,
};

/// What the library takes for keys that a config.json leaves out.
pub(super) struct Defaults {
    /// `None`: as many as there are query heads.
    pub(super) kv_heads: Option<usize>,
    /// `None`: the width divided among the heads.
    pub(super) head_dim: Option<usize>,
    pub(super) norm_eps: f64,
    pub(super) context: usize,
    pub(super) tied: bool,
    pub(super) theta: f64,
}

impl Defaults {
    /// Those of the first Llama.
    pub(super) const LLAMA: Self = Self {
        kv_heads: None,
        head_dim: None,
        norm_eps: 1e-6,
        context: 2048,
        tied: false,
        theta: 10_000.0,
    };
}

/// The numbers that every class has, without additions but for the activation, which stands under
/// `activation`. Heads turn whole.
pub(super) fn read(
    config: &JsonObject<'_>,
    defaults: &Defaults,
    activation: &str,
) -> Result<ArchConfig> {
    let layers = must_size(config, "num_hidden_layers")?;
    read_sized(config, defaults, activation, (layers, must_size(config, "intermediate_size")?))
}

/// The same where blocks and the inner width of their networks are stated in another way.
pub(super) fn read_sized(
    config: &JsonObject<'_>,
    defaults: &Defaults,
    activation: &str,
    (layers, ffn): (usize, usize),
) -> Result<ArchConfig> {
    if config.get("quantization_config").is_some() {
        return Err(config.unsupported("quantization_config", "no such setting"));
    }
    let width = must_size(config, "hidden_size")?;
    let heads = must_size(config, "num_attention_heads")?;
    let head_dim = match config.size("head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None => width_of_a_head(config, width, heads)?,
    };
    let context = config.size("max_position_embeddings")?.unwrap_or(defaults.context);
    let rope_scaling = rope::scaling(config, context)?;
    let constant = rope_scaling.as_ref().map(|scaling| scaling.constant_up_to(context));
    Ok(ArchConfig {
        vocab: must_size(config, "vocab_size")?,
        width,
        layers,
        heads,
        kv_heads: kv_heads(config, defaults, heads)?,
        head_dim,
        ffn,
        rope_theta: rope::theta(config, defaults.theta)?,
        norm_eps: config.number("rms_norm_eps")?.unwrap_or(defaults.norm_eps),
        context: constant.unwrap_or(context),
        tied: config.bool("tie_word_embeddings")?.unwrap_or(defaults.tied),
        rope_scaling,
        additions: Additions {
            activation: read_activation(config, activation)?,
            ..Additions::default()
        },
        experts: None,
    })
}

pub(super) fn must_size(config: &JsonObject<'_>, key: &str) -> Result<usize> {
    config.must(key, config.size(key)?)
}

/// A key that is null says that there are as many as heads, one that is absent takes the class's
/// default.
fn kv_heads(config: &JsonObject<'_>, defaults: &Defaults, heads: usize) -> Result<usize> {
    let key = "num_key_value_heads";
    let default = defaults.kv_heads.filter(|_| !config.has(key));
    Ok(config.size(key)?.or(default).unwrap_or(heads))
}

/// The width divided among the heads.
fn width_of_a_head(config: &JsonObject<'_>, width: usize, heads: usize) -> Result<usize> {
    match width.checked_div(heads).filter(|head_dim| head_dim * heads == width) {
        Some(head_dim) => Ok(head_dim),
        None => {
            let expected = format!("a divisor of the hidden_size {width}, as no head_dim is given");
            Err(config.wrong("num_attention_heads", expected))
        }
    }
}

/// What each activation is called.
const ACTIVATIONS: [(&str, HiddenActivation); 6] = [
    ("silu", HiddenActivation::Silu),
    ("swish", HiddenActivation::Silu),
    ("gelu_pytorch_tanh", HiddenActivation::GeluTanh),
    ("gelu_new", HiddenActivation::GeluTanh),
    ("gelu", HiddenActivation::Gelu),
    ("gelu_python", HiddenActivation::Gelu),
];

fn read_activation(config: &JsonObject<'_>, key: &str) -> Result<HiddenActivation> {
    let Some(found) = config.string(key)? else { return Ok(HiddenActivation::Silu) };
    let known = ACTIVATIONS.iter().find(|(name, _)| *name == found);
    known
        .map(|(_, activation)| *activation)
        .ok_or_else(|| config.unsupported(key, "\"silu\", \"gelu\" or \"gelu_pytorch_tanh\""))
}

/// The name of an activation.
pub(super) fn activation_name(activation: HiddenActivation) -> &'static str {
    let known = ACTIVATIONS.iter().find(|(_, known)| *known == activation);
    known.map_or("silu", |(name, _)| name)
}

/// Refuses heads that turn in part, of a class that does not have them.
pub(super) fn must_turn_whole(config: &JsonObject<'_>) -> Result<()> {
    if rope::share(config)? == 1.0 {
        return Ok(());
    }
    let key = "partial_rotary_factor";
    if config.get(key).is_some() {
        return Err(config.unsupported(key, "1"));
    }
    let inner = config.inner("rope_parameters")?.or(config.inner("rope_scaling")?);
    Err(inner.map_or_else(|| config.unsupported(key, "1"), |inner| inner.unsupported(key, "1")))
}

/// Refuses a setting that is there and not null.
pub(super) fn must_be_null(config: &JsonObject<'_>, key: &str) -> Result<()> {
    if config.get(key).is_some() { Err(config.unsupported(key, "null")) } else { Ok(()) }
}

/// A number above 0.
pub(super) fn positive(config: &JsonObject<'_>, key: &str) -> Result<Option<f64>> {
    match config.number(key)? {
        Some(x) if x <= 0.0 => Err(config.wrong(key, "a positive number")),
        found => Ok(found),
    }
}

/// Refuses a flag that is set.
pub(super) fn must_be_unset(config: &JsonObject<'_>, key: &str) -> Result<()> {
    if config.bool(key)? == Some(true) { Err(config.unsupported(key, "false")) } else { Ok(()) }
}

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// The window of `size` in the blocks that `layer_types` lists as such, or for which `otherwise`
/// holds where there is no such list.
pub(super) fn window(
    config: &JsonObject<'_>,
    size: Option<usize>,
    layers: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Option<SlidingWindow>> {
    let mut blocks = Vec::new();
    match config.array("layer_types")? {
        None => blocks.extend((0..layers.min(1 << 16)).filter(|&block| otherwise(block))),
        Some(types) => {
            if types.len() != layers {
                return Err(config.wrong("layer_types", format!("one for each of {layers} layers")));
            }
            for (block, kind) in types.iter().enumerate() {
                match kind.as_str() {
                    Some(FULL) => {}
                    Some(SLIDING) => blocks.push(block),
                    _ => {
                        let expected = format!("\"{FULL}\" or \"{SLIDING}\"");
                        let field = format!("layer_types[{block}]");
                        return Err(config.unsupported_item(&field, expected, describe(kind)));
                    }
                }
            }
        }
    }
    match (size, blocks.is_empty()) {
        (_, true) => Ok(None),
        (Some(size), false) => Ok(Some(SlidingWindow { size, blocks })),
        (None, false) => Err(config.wrong(
            "sliding_window",
            format!("the window of {} layers that are \"{SLIDING}\"", blocks.len()),
        )),
    }
}

/// The value of `layer_types`.
pub(super) fn layer_types(config: &ArchConfig) -> Value {
    let has = |block| config.additions.window.as_ref().is_some_and(|w| w.blocks.contains(&block));
    (0..config.layers).map(|block| if has(block) { SLIDING } else { FULL }).collect()
}

/// The longest texts that the model is meant for: those of its context, or longer ones for which
/// it has other frequencies.
fn longest(config: &ArchConfig) -> usize {
    match &config.rope_scaling {
        Some(RopeScaling::LongRope { long_context, .. }) => *long_context,
        Some(RopeScaling::Dynamic { original_context, .. }) => *original_context,
        _ => config.context,
    }
}

/// The value of `sliding_window`.
pub(super) fn window_size(config: &ArchConfig) -> Value {
    config.additions.window.as_ref().map(|window| window.size).into()
}

/// The fields that every class has, in their order, then those of `own`.
pub(super) fn fields(config: &ArchConfig, own: Vec<(&str, Value)>) -> Map<String, Value> {
    let shared = [
        ("architectures", Value::Null),
        ("model_type", Value::Null),
        ("attention_dropout", 0.0.into()),
        ("bos_token_id", Value::Null),
        ("eos_token_id", Value::Null),
        ("pad_token_id", Value::Null),
        ("head_dim", config.head_dim.into()),
        ("hidden_act", activation_name(config.additions.activation).into()),
        ("hidden_size", config.width.into()),
        ("initializer_range", 0.02.into()),
        ("intermediate_size", config.ffn.into()),
        ("max_position_embeddings", longest(config).into()),
        ("num_attention_heads", config.heads.into()),
        ("num_hidden_layers", config.layers.into()),
        ("num_key_value_heads", config.kv_heads.into()),
        ("rms_norm_eps", config.norm_eps.into()),
        ("rope_scaling", rope::scaling_json(config.rope_scaling.as_ref())),
        ("rope_theta", config.rope_theta.into()),
        ("tie_word_embeddings", config.tied.into()),
        ("torch_dtype", Value::Null),
        ("use_cache", true.into()),
        ("vocab_size", config.vocab.into()),
    ];
    shared.into_iter().chain(own).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The tensors of a block of Llama's: role, name below `model.layers.I`.
const BLOCK: [(LayerRole, &str); 26] = [
    (LayerRole::AttentionNorm, "input_layernorm.weight"),
    (LayerRole::AttentionNormBias, "input_layernorm.bias"),
    (LayerRole::Query, "self_attn.q_proj.weight"),
    (LayerRole::QueryLatent, "self_attn.q_a_proj.weight"),
    (LayerRole::QueryLatentNorm, "self_attn.q_a_layernorm.weight"),
    (LayerRole::QueryUp, "self_attn.q_b_proj.weight"),
    (LayerRole::KeyValueLatent, "self_attn.kv_a_proj_with_mqa.weight"),
    (LayerRole::KeyValueLatentNorm, "self_attn.kv_a_layernorm.weight"),
    (LayerRole::KeyValueUp, "self_attn.kv_b_proj.weight"),
    (LayerRole::Key, "self_attn.k_proj.weight"),
    (LayerRole::Value, "self_attn.v_proj.weight"),
    (LayerRole::QueryBias, "self_attn.q_proj.bias"),
    (LayerRole::KeyBias, "self_attn.k_proj.bias"),
    (LayerRole::ValueBias, "self_attn.v_proj.bias"),
    (LayerRole::QueryNorm, "self_attn.q_norm.weight"),
    (LayerRole::KeyNorm, "self_attn.k_norm.weight"),
    (LayerRole::Output, "self_attn.o_proj.weight"),
    (LayerRole::OutputBias, "self_attn.o_proj.bias"),
    (LayerRole::FfnNorm, "post_attention_layernorm.weight"),
    (LayerRole::FfnNormBias, "post_attention_layernorm.bias"),
    (LayerRole::Gate, "mlp.gate_proj.weight"),
    (LayerRole::Up, "mlp.up_proj.weight"),
    (LayerRole::Down, "mlp.down_proj.weight"),
    (LayerRole::GateBias, "mlp.gate_proj.bias"),
    (LayerRole::UpBias, "mlp.up_proj.bias"),
    (LayerRole::DownBias, "mlp.down_proj.bias"),
];

/// What the classes whose norms stand as Llama's call a tensor.
pub(super) fn tensor(role: TensorRole) -> Option<String> {
    Some(match role {
        TensorRole::Embed => "model.embed_tokens.weight".into(),
        TensorRole::Norm => "model.norm.weight".into(),
        TensorRole::NormBias => "model.norm.bias".into(),
        TensorRole::Head => "lm_head.weight".into(),
        TensorRole::HeadBias => "lm_head.bias".into(),
        TensorRole::Layer(layer, role) => {
            let (_, name) = BLOCK.iter().find(|(known, _)| *known == role)?;
            format!("model.layers.{layer}.{name}")
        }
    })
}

/// What the classes with norms on what joins the residual stream call a tensor.
pub(super) fn tensor_with_after_norms(role: TensorRole) -> Option<String> {
    let TensorRole::Layer(layer, of_layer) = role else { return tensor(role) };
    let name = match of_layer {
        LayerRole::AttentionAfterNorm => "post_attention_layernorm.weight",
        LayerRole::AttentionAfterNormBias => "post_attention_layernorm.bias",
        LayerRole::FfnNorm => "pre_feedforward_layernorm.weight",
        LayerRole::FfnNormBias => "pre_feedforward_layernorm.bias",
        LayerRole::FfnAfterNorm => "post_feedforward_layernorm.weight",
        LayerRole::FfnAfterNormBias => "post_feedforward_layernorm.bias",
        _ => return tensor(role),
    };
    Some(format!("model.layers.{layer}.{name}"))
}

/// Whether a config is dense and has no addition beyond `held`.
pub(super) fn holds(config: &ArchConfig, held: Additions) -> bool {
    config.experts.is_none() && config.additions.beyond(&held).is_none()
}
