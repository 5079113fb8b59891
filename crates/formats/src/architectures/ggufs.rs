//! What the architectures with GGUF files share: their settings, and the names of tensors as
//! llama.cpp has them.

use std::path::Path;

use crate::error::quote;
use crate::gguf::file::Gguf;
use crate::gguf::keys::{SettingKeys, u32_setting};
use crate::gguf::write::{GgufSettings, GgufValue};
use crate::piece::Piece;
use crate::{
    Additions, ArchConfig, Experts, FormatError, LayerRole, Result, RopeScaling, SlidingWindow,
    TensorRole,
};

/// The form of GGUF files with these [`Settings`], a constant; fields that differ from most follow.
macro_rules! form {
    ($settings:ident $(, $field:ident: $value:expr)*) => {
        $crate::architectures::architecture::GgufForm {
            $($field: $value,)*
            ..$crate::architectures::architecture::GgufForm {
                architecture: $settings.prefix,
                read: |gguf| $crate::architectures::ggufs::read(gguf, &$settings),
                write: |path, config| {
                    $crate::architectures::ggufs::write(path, config, &$settings)
                },
                tensor: $crate::architectures::ggufs::tensor,
                banks: None,
                neighbours_turn: false,
                gains_with_one: false,
                held: |config| $settings.held(config),
                holds: |config| $settings.holds(config),
            }
        }
    };
}
pub(super) use form;

/// A factor that stands under a key of the file.
type Factor = (&'static str, fn(&mut Additions) -> &mut Option<f64>);

/// The settings of one architecture.
pub(super) struct Settings {
    /// `general.architecture`, with which the keys begin.
    pub(super) prefix: &'static str,
    /// What every model of these sizes has beside plain Llama, without what stands under keys.
    pub(super) additions: fn(&ArchConfig) -> Additions,
    /// What of it stands under keys of the file.
    pub(super) factors: &'static [Factor],
    /// Whether heads may turn in part, and all blocks have the window that a file names. None is
    /// written.
    pub(super) partial_and_window: bool,
    /// How experts are chosen and weighted, where models have some: files do not say.
    pub(super) experts: Option<fn() -> Experts>,
}

/// Keys that are read here or change nothing. Others may change the arithmetic and are refused.
const KNOWN: [&str; 16] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
    "rope.scaling.finetuned",
];

const COUNT: &str = "expert_count";
const TOP_K: &str = "expert_used_count";
const WIDTH: &str = "expert_feed_forward_length";
const SHARED: &str = "expert_shared_feed_forward_length";
const WINDOW: &str = "attention.sliding_window";

/// Architectures of which llama.cpp takes the width of experts from `feed_forward_length`.
const WIDTH_IS_FFN: [&str; 2] = ["llama", "olmoe"];

/// Keys of architectures with experts.
const OF_EXPERTS: [&str; 4] = [COUNT, TOP_K, WIDTH, SHARED];

/// Keys that ask for nothing where they are 0.
const ZERO: [&str; 3] = [COUNT, TOP_K, WINDOW];

impl Settings {
    /// What a file of the architecture can say of a model of these numbers.
    pub(super) fn held(&self, config: &ArchConfig) -> Additions {
        let mut held = (self.additions)(config);
        let mut own = config.additions.clone();
        for (_, factor) in self.factors {
            *factor(&mut held) = *factor(&mut own);
        }
        if self.partial_and_window {
            // Files of this kind have named windows that their program does not compute.
            held.rotary_share = own.rotary_share;
        }
        held
    }

    /// Whether a file of the architecture can hold the model.
    pub(super) fn holds(&self, config: &ArchConfig) -> bool {
        let experts = match (&config.experts, self.experts) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(found), Some(rules)) => *found == stated(rules(), found),
        };
        experts && config.additions.beyond(&self.held(config)).is_none()
    }
}

/// The rules of an architecture with the numbers of a model.
fn stated(rules: Experts, of: &Experts) -> Experts {
    let &Experts { count, top_k, width, shared, balance_weight, .. } = of;
    let shared = if rules.shared_gate { shared.max(1) } else { 0 };
    Experts { count, top_k, width, shared, balance_weight, ..rules }
}

/// The numbers of a file; whatever the arithmetic of [`ArchConfig`] does not cover is refused by
/// the name of its setting.
pub(super) fn read(gguf: &Gguf, of: &Settings) -> Result<ArchConfig> {
    let keys = SettingKeys::new(gguf.metadata(), of.prefix);
    let width = keys.must_size("embedding_length")?;
    let heads = keys.must_size("attention.head_count")?;
    let head_dim = match keys.size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => width_of_a_head(&keys, width, heads)?,
    };
    keys.agree("attention.value_length", head_dim)?;
    if !of.partial_and_window {
        keys.agree("rope.dimension_count", head_dim)?;
    }
    let vocab = gguf.tensor("token_embd.weight")?.shape[0];
    keys.agree("vocab_size", vocab)?;
    let mut config = ArchConfig {
        vocab,
        width,
        layers: keys.must_size("block_count")?,
        heads,
        kv_heads: keys.size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: keys.must_size("feed_forward_length")?,
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        norm_eps: keys.must_float("attention.layer_norm_rms_epsilon")?,
        context: keys.must_size("context_length")?,
        tied: gguf.tensor("output.weight").is_err(),
        rope_scaling: rope_scaling(&keys)?,
        additions: Additions::default(),
        experts: None,
    };
    config.additions = (of.additions)(&config);
    for (key, factor) in of.factors {
        *factor(&mut config.additions) = keys.float(key)?;
    }
    let mut known: Vec<&str> = KNOWN.to_vec();
    known.extend(of.factors.iter().map(|(key, _)| *key));
    if of.partial_and_window {
        read_partial(&keys, &mut config)?;
        known.extend([WINDOW, "rope.scaling.original_context_length"]);
    }
    if let Some(rules) = of.experts {
        config.experts = read_experts(&keys, rules(), config.ffn)?;
        known.extend(OF_EXPERTS);
    }
    keys.refuse_others(&known, &ZERO)?;
    Ok(config)
}

fn width_of_a_head(keys: &SettingKeys<'_>, width: usize, heads: usize) -> Result<usize> {
    match width.checked_div(heads) {
        Some(head_dim) if head_dim * heads == width => Ok(head_dim),
        _ => {
            let expected = format!("a divisor of the width {width}, as no key_length is given");
            Err(keys.damaged("attention.head_count", expected, heads.to_string()))
        }
    }
}

/// The share of a head that turns, and the window of all blocks.
fn read_partial(keys: &SettingKeys<'_>, config: &mut ArchConfig) -> Result<()> {
    let turned = keys.size("rope.dimension_count")?.unwrap_or(config.head_dim);
    if turned != config.head_dim {
        // A share of which the head's width, cut, is this number again.
        let (t, h) = (turned as f64, config.head_dim as f64);
        let least = t / h;
        let share = if (h * least) as usize == turned { least } else { (t + 1e-6) / h };
        config.additions.rotary_share = Some(share);
    }
    if let Some(size) = keys.size(WINDOW)?.filter(|size| *size > 0) {
        let blocks = (0..config.layers.min(1 << 16)).collect();
        config.additions.window = Some(SlidingWindow { size, blocks });
    }
    Ok(())
}

fn read_experts(keys: &SettingKeys<'_>, rules: Experts, ffn: usize) -> Result<Option<Experts>> {
    let count = keys.size(COUNT)?.unwrap_or(0);
    if count == 0 {
        return Ok(None);
    }
    let shared = if rules.shared_gate { keys.must_size(SHARED)? } else { 0 };
    let (top_k, width) = (keys.must_size(TOP_K)?, keys.size(WIDTH)?.unwrap_or(ffn));
    Ok(Some(Experts { count, top_k, width, shared, ..rules }))
}

fn rope_scaling(keys: &SettingKeys<'_>) -> Result<Option<RopeScaling>> {
    let factor = keys.float("rope.scaling.factor")?;
    match (keys.string("rope.scaling.type")?, factor) {
        (None | Some("none"), None) => Ok(None),
        (Some("linear"), Some(factor)) => Ok(Some(RopeScaling::Linear { factor })),
        (Some("linear") | None, _) => {
            let found = match factor {
                Some(_) => "a factor without a type",
                None => "linear scaling without a factor",
            };
            Err(keys.damaged("rope.scaling.factor", "type and factor together", found))
        }
        (Some(other), _) => {
            Err(keys.unsupported("rope.scaling.type", "\"none\" or \"linear\"", quote(other)))
        }
    }
}

/// The settings that hold the numbers of a model.
///
/// # Errors
/// What the architecture's files cannot say, by its name.
pub(super) fn write(path: &Path, config: &ArchConfig, of: &Settings) -> Result<GgufSettings> {
    if let Some(addition) = config.additions.beyond(&of.held(config)) {
        let expected =
            format!("what GGUF files of \"{}\" hold; a Hugging Face folder holds more", of.prefix);
        return Err(FormatError::unwritable(path, "architecture", expected, addition));
    }
    let share = config.additions.rotary_share.unwrap_or(1.0);
    let turned = (config.head_dim as f64 * share) as usize;
    let ffn = match &config.experts {
        Some(experts) if WIDTH_IS_FFN.contains(&of.prefix) => experts.width,
        _ => config.ffn,
    };
    let mut sizes = vec![
        ("vocab_size", config.vocab),
        ("context_length", config.context),
        ("embedding_length", config.width),
        ("block_count", config.layers),
        ("feed_forward_length", ffn),
        ("rope.dimension_count", turned),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
    ];
    if let Some(experts) = &config.experts {
        if of.experts.is_none_or(|rules| *experts != stated(rules(), experts)) {
            let expected = format!("experts as GGUF files of \"{}\" have them", of.prefix);
            return Err(FormatError::unwritable(path, "experts", expected, "others"));
        }
        sizes.extend([(COUNT, experts.count), (TOP_K, experts.top_k), (WIDTH, experts.width)]);
        sizes.extend((experts.shared > 0).then_some((SHARED, experts.shared)));
    }
    let mut settings = Vec::new();
    for (key, size) in sizes {
        settings.push(u32_setting(path, of.prefix, key, size)?);
    }
    let mut others = vec![
        ("attention.layer_norm_rms_epsilon", GgufValue::F32(config.norm_eps as f32)),
        ("rope.freq_base", GgufValue::F32(config.rope_theta as f32)),
    ];
    let mut additions = config.additions.clone();
    for (key, factor) in of.factors {
        others.extend(factor(&mut additions).map(|factor| (*key, GgufValue::F32(factor as f32))));
    }
    match &config.rope_scaling {
        None => {}
        Some(RopeScaling::Linear { factor }) => {
            others.push(("rope.scaling.type", GgufValue::String("linear".into())));
            others.push(("rope.scaling.factor", GgufValue::F32(*factor as f32)));
        }
        Some(other) => {
            let found = match other {
                RopeScaling::Linear { .. } => "linear",
                RopeScaling::Llama3 { .. } => "llama3",
                RopeScaling::Yarn { .. } => "yarn",
                RopeScaling::Dynamic { .. } => "dynamic",
                RopeScaling::LongRope { .. } => "longrope",
            };
            return Err(FormatError::unwritable(path, "rope_scaling", "none or linear", found));
        }
    }
    let prefix = of.prefix;
    settings.extend(others.into_iter().map(|(key, value)| (format!("{prefix}.{key}"), value)));
    Ok(settings)
}

/// The tensors of a block: role, name below `blk.I`.
const BLOCK: [(LayerRole, &str); 27] = [
    (LayerRole::AttentionNorm, "attn_norm.weight"),
    (LayerRole::Query, "attn_q.weight"),
    (LayerRole::Key, "attn_k.weight"),
    (LayerRole::Value, "attn_v.weight"),
    (LayerRole::QueryBias, "attn_q.bias"),
    (LayerRole::KeyBias, "attn_k.bias"),
    (LayerRole::ValueBias, "attn_v.bias"),
    (LayerRole::QueryNorm, "attn_q_norm.weight"),
    (LayerRole::KeyNorm, "attn_k_norm.weight"),
    (LayerRole::Output, "attn_output.weight"),
    (LayerRole::OutputBias, "attn_output.bias"),
    (LayerRole::AttentionAfterNorm, "post_attention_norm.weight"),
    (LayerRole::FfnNorm, "ffn_norm.weight"),
    (LayerRole::Gate, "ffn_gate.weight"),
    (LayerRole::Up, "ffn_up.weight"),
    (LayerRole::Down, "ffn_down.weight"),
    (LayerRole::GateBias, "ffn_gate.bias"),
    (LayerRole::UpBias, "ffn_up.bias"),
    (LayerRole::DownBias, "ffn_down.bias"),
    (LayerRole::FfnAfterNorm, "post_ffw_norm.weight"),
    (LayerRole::Router, "ffn_gate_inp.weight"),
    (LayerRole::RouterBias, "ffn_gate_inp.bias"),
    (LayerRole::ChoiceBias, "exp_probs_b.bias"),
    (LayerRole::SharedGate, "ffn_gate_shexp.weight"),
    (LayerRole::SharedUp, "ffn_up_shexp.weight"),
    (LayerRole::SharedDown, "ffn_down_shexp.weight"),
    (LayerRole::SharedScore, "ffn_gate_inp_shexp.weight"),
];

/// What files call the tensor of a role.
pub(super) fn tensor(role: TensorRole) -> Option<String> {
    Some(match role {
        TensorRole::Embed => "token_embd.weight".into(),
        TensorRole::Norm => "output_norm.weight".into(),
        TensorRole::Head => "output.weight".into(),
        // No architecture that is known in such files has them.
        TensorRole::NormBias | TensorRole::HeadBias => return None,
        TensorRole::Layer(layer, role) => {
            let (_, name) = BLOCK.iter().find(|(known, _)| *known == role)?;
            format!("blk.{layer}.{name}")
        }
    })
}

/// Where experts stand: banks `[E, I, H]` of gates and of what these multiply, `[E, H, I]` of what
/// goes back; what weighs the shared expert is a vector.
pub(super) fn banks(role: TensorRole, config: &ArchConfig) -> Option<Piece> {
    let TensorRole::Layer(layer, of_layer) = role else { return None };
    let experts = config.experts.as_ref()?;
    let (count, inner, d) = (experts.count, experts.width, config.width);
    if of_layer == LayerRole::SharedScore {
        let (name, size) = (tensor(role)?, (1, d));
        return Some(Piece { name, shape: vec![d], first: 0, row_step: d, column_step: 1, size });
    }
    let (name, expert, rows, columns) = match of_layer {
        LayerRole::ExpertGate(expert) => ("ffn_gate_exps", expert, inner, d),
        LayerRole::ExpertUp(expert) => ("ffn_up_exps", expert, inner, d),
        LayerRole::ExpertDown(expert) => ("ffn_down_exps", expert, d, inner),
        _ => return None,
    };
    let shape = vec![count, rows, columns];
    Some(Piece::rows(format!("blk.{layer}.{name}.weight"), shape, expert, 0..rows))
}
