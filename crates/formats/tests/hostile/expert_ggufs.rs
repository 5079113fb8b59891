//! GGUF files with experts, as Mixtral's are, with one lie each.

use super::common::Raw;
use super::ggufs::{Case, add, check_of, lie, number, real, remove, tensor, text};

/// Four experts of which a token takes two, in the one block of the small model.
fn honest() -> Raw {
    let mut raw = Raw::small();
    raw.tensors.retain(|tensor| {
        !tensor.name.starts_with(b"blk.0.ffn_gate.")
            && !tensor.name.starts_with(b"blk.0.ffn_up.")
            && !tensor.name.starts_with(b"blk.0.ffn_down.")
    });
    for (name, sizes) in [
        ("ffn_gate_inp", &[4, 4][..]),
        ("ffn_gate_exps", &[4, 6, 4]),
        ("ffn_up_exps", &[4, 6, 4]),
        ("ffn_down_exps", &[6, 4, 4]),
    ] {
        let begin = raw.data.len();
        add(&mut raw, &format!("blk.0.{name}.weight"), sizes);
        for (i, place) in raw.data[begin..].chunks_exact_mut(4).enumerate() {
            place.copy_from_slice(&(i as f32 / 64.0).to_le_bytes());
        }
    }
    raw.set("llama.expert_count", 4, 4_u32.to_le_bytes().to_vec());
    raw.set("llama.expert_used_count", 4, 2_u32.to_le_bytes().to_vec());
    raw
}

/// Number `at` of a tensor.
fn value(name: &'static str, at: usize, value: f32) -> super::ggufs::Lie {
    lie(move |raw| {
        let begin = raw.tensor(name).offset as usize + 4 * at;
        raw.data[begin..begin + 4].copy_from_slice(&value.to_le_bytes());
    })
}

const ROUTER: &str = "blk.0.ffn_gate_inp.weight";
const GATES: &str = "blk.0.ffn_gate_exps.weight";
const DOWNS: &str = "blk.0.ffn_down_exps.weight";

fn settings() -> Vec<Case> {
    let (count, used) = ("llama.expert_count", "llama.expert_used_count");
    vec![
        number("no experts, beside banks", count, 0, "ffn_"),
        number("an expert fewer", count, 3, "ffn_"),
        number("an expert more", count, 5, "ffn_"),
        number("a million", count, 1 << 20, "1048576"),
        text("a count of words", count, "four", count),
        real("half a count", count, 4.5, count),
        ("no count", remove(count), "ffn_"),
        number("none used", used, 0, "takes"),
        number("more used than there are", used, 5, "found 5"),
        ("no number of used ones", remove(used), used),
        text("two used", used, "two", used),
        number("narrower experts", "llama.expert_feed_forward_length", 5, "exps"),
        number("wider MLPs", "llama.feed_forward_length", 7, "exps"),
        number("a shared one", "llama.expert_shared_count", 1, "expert_shared_count"),
        number("dense blocks", "llama.leading_dense_block_count", 1, "leading_dense_block_count"),
        real("a scale", "llama.expert_weights_scale", 2.5, "expert_weights_scale"),
        number("sigmoid", "llama.expert_gating_func", 2, "expert_gating_func"),
        number("groups", "llama.expert_group_count", 2, "expert_group_count"),
        number("every second", "llama.interleave_moe_layer_step", 2, "interleave_moe_layer_step"),
    ]
}

/// A tensor that no such model has, and the message that names it as one.
macro_rules! surplus {
    ($what:literal, $name:literal, $sizes:expr) => {{
        let named = concat!("not of a plain Llama model: \"", $name, '"');
        ($what, lie(|raw| add(raw, $name, &$sizes)), named)
    }};
}

fn tensors() -> Vec<Case> {
    let missing = |name: &'static str| {
        lie(move |raw| raw.tensors.retain(|tensor| tensor.name != name.as_bytes()))
    };
    vec![
        ("no router", missing(ROUTER), ROUTER),
        ("no downs", missing(DOWNS), DOWNS),
        ("banks that disagree", tensor(DOWNS, |t| t.sizes[2] = 3), DOWNS),
        ("a bank turned", tensor(GATES, |t| t.sizes = vec![6, 4, 4]), GATES),
        ("a bank of two dimensions", tensor(GATES, |t| t.sizes = vec![4, 24]), GATES),
        ("a router of three rows", tensor(ROUTER, |t| t.sizes = vec![4, 3]), ROUTER),
        ("a bank beyond the file", tensor(DOWNS, |t| t.offset = 1 << 20), DOWNS),
        ("a bank over another", tensor(DOWNS, |t| t.offset = 0), DOWNS),
        ("a bank of blocks", tensor(GATES, |t| t.kind = 8), GATES),
        ("a bank of an unknown type", tensor(GATES, |t| t.kind = 999), GATES),
        ("NaN in the router", value(ROUTER, 3, f32::NAN), "ffn_gate_inp.weight\"[3]"),
        ("NaN in the last expert", value(DOWNS, 95, f32::NAN), "ffn_down_exps.weight\"[95]"),
        ("infinity in a bank", value(GATES, 0, f32::INFINITY), GATES),
        surplus!("a scale of each expert", "blk.0.ffn_down_exps.scale", [4]),
        surplus!("a bias for the choice", "blk.0.exp_probs_b.bias", [4]),
        surplus!("a bias of the router", "blk.0.ffn_gate_inp.bias", [4]),
        surplus!("biases of experts", "blk.0.ffn_up_exps.bias", [6, 4]),
        surplus!("a shared expert", "blk.0.ffn_up_shexp.weight", [4, 6]),
        surplus!("a dense MLP, too", "blk.0.ffn_up.weight", [4, 6]),
        surplus!("an expert by itself", "blk.0.ffn_up.4.weight", [4, 6]),
        surplus!("a second block", "blk.1.ffn_gate_inp.weight", [4, 4]),
    ]
}

#[test]
fn files_with_experts_and_one_lie_are_refused() {
    let cases: Vec<Case> = settings().into_iter().chain(tensors()).collect();
    assert!(cases.len() >= 40, "{}", cases.len());
    check_of(honest, cases);
}
