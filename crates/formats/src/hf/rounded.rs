//! Rounded weights in folders, as compressed-tensors packs them (format `pack-quantized`).
//!
//! In the place of a matrix `NAME.weight` `[n, d]` stand `NAME.weight_packed`, I32
//! `[n, ceil(d b / 32)]`: of each row the codes `q + 2^(b - 1)` of `b` bits one behind another from
//! the lowest bit on; `NAME.weight_scale`, F32 `[n, d / g]` with a scale for each `g` columns or
//! `[n, 1]`; and `NAME.weight_shape`, I64 `[2]`. A weight is `q s`. `quantization_config` of
//! config.json says which matrices are packed and how.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::quote;
use crate::layout::StoredTensor;
use crate::{FormatError, LayerRole, Result, RoundedRows, Rounding, TensorRole, TensorSource};

/// A matrix as it is packed.
pub(super) struct Packed {
    pub(super) rounding: Rounding,
    /// The bytes of `weight_packed`, `weight_scale` and `weight_shape`.
    pub(super) parts: [Vec<u8>; 3],
    /// Their names, types and shapes.
    pub(super) entries: [(String, &'static str, Vec<usize>); 3],
}

/// The matrix of a tensor, packed, where the giver has it in codes; `None` where it has numbers.
///
/// # Errors
/// Codes for a part of the tensor alone or in several formats, rows that are no whole groups, banks
/// of experts, and rows that the file has in another order.
pub(super) fn packed(
    path: &Path,
    tensor: &StoredTensor,
    weights: &dyn TensorSource,
    neighbours_turn: bool,
) -> Result<Option<Packed>> {
    let wrong = |expected: &str, found: String| {
        let field = format!("tensor {}: rounded weights", quote(&tensor.name));
        Err(FormatError::unwritable(path, field, expected, found))
    };
    let mut pieces: Vec<_> = tensor.pieces.iter().collect();
    pieces.sort_by_key(|(_, piece)| piece.first);
    let mut found: Vec<Option<RoundedRows>> = Vec::with_capacity(pieces.len());
    for (role, _) in &pieces {
        found.push(weights.rounded(*role)?);
    }
    let Some(rounding) = found.iter().flatten().next().map(|rows| rows.rounding) else {
        return Ok(None);
    };
    let (&[n, d], Some(module)) = (&tensor.shape[..], tensor.name.strip_suffix(".weight")) else {
        return wrong("a matrix of its own for each linear layer", format!("{:?}", tensor.shape));
    };
    let turns = |(role, _): &&(TensorRole, _)| {
        matches!(role, TensorRole::Layer(_, LayerRole::Query | LayerRole::Key))
    };
    if neighbours_turn && tensor.pieces.iter().any(|piece| turns(&piece)) {
        return wrong("rows in the order of this model", "an architecture with another".into());
    }
    let (mut codes, mut scales) = (Vec::with_capacity(n * d), Vec::new());
    for rows in &found {
        match rows {
            Some(rows) if rows.rounding == rounding => {
                codes.extend_from_slice(&rows.codes);
                scales.extend_from_slice(&rows.scales);
            }
            _ => return wrong("one format for all that stands in it", "several".into()),
        }
    }
    let groups = rounding.group.map_or(1, |group| d / group.max(1));
    if rounding.group.is_some_and(|group| group == 0 || !d.is_multiple_of(group)) {
        let group = rounding.group.unwrap_or(0);
        let expected = format!(
            "rows of whole groups of {group}, or one scale a row, as int8-row has it: \
             compressed-tensors cuts no group short"
        );
        return wrong(&expected, format!("rows of {d}"));
    }
    if codes.len() != n * d || scales.len() != n * groups || !(1..=8).contains(&rounding.bits) {
        let found = format!("{} codes and {} scales", codes.len(), scales.len());
        return wrong(&format!("{} codes and {} scales", n * d, n * groups), found);
    }
    let words = (d * rounding.bits).div_ceil(32);
    let mut bytes = Vec::with_capacity(4 * n * words);
    codes.chunks_exact(d).for_each(|row| pack_row(row, rounding.bits, &mut bytes));
    let entry = |suffix: &str, kind, shape| (format!("{module}.{suffix}"), kind, shape);
    Ok(Some(Packed {
        rounding,
        parts: [
            bytes,
            scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
            [n, d].iter().flat_map(|size| (*size as i64).to_le_bytes()).collect(),
        ],
        entries: [
            entry("weight_packed", "I32", vec![n, words]),
            entry("weight_scale", "F32", vec![n, groups]),
            entry("weight_shape", "I64", vec![2]),
        ],
    }))
}

/// Appends the codes of a row, whole words of 32 bits.
fn pack_row(row: &[i8], bits: usize, out: &mut Vec<u8>) {
    let (mut word, mut filled) = (0u64, 0);
    let mask = (1u64 << bits) - 1;
    for &code in row {
        let code = (i64::from(code) + (1 << (bits - 1))) as u64 & mask;
        word |= code << filled;
        filled += bits;
        if filled >= 32 {
            out.extend((word as u32).to_le_bytes());
            (word, filled) = (word >> 32, filled - 32);
        }
    }
    if filled > 0 {
        out.extend((word as u32).to_le_bytes());
    }
}

/// The tensors of a model that were packed, each with how, in the order of the file.
pub(super) struct Targets {
    packed: Vec<(String, Rounding)>,
    /// Linear layers that stay numbers.
    whole: usize,
}

impl Targets {
    pub(super) fn new() -> Self {
        Self { packed: Vec::new(), whole: 0 }
    }

    /// Notes how a tensor is stored: a matrix of a layer that is not packed keeps its module out of
    /// the patterns.
    pub(super) fn add(&mut self, tensor: &StoredTensor, rounding: Option<Rounding>) {
        let of_layer = |(role, _): &(TensorRole, _)| matches!(role, TensorRole::Layer(..));
        match rounding {
            Some(rounding) => {
                let module = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name).to_owned();
                self.packed.push((module, rounding));
            }
            None if tensor.shape.len() > 1 && tensor.pieces.iter().any(of_layer) => self.whole += 1,
            None => {}
        }
    }

    /// `quantization_config`; `None` where nothing is packed.
    pub(super) fn config(&self) -> Option<Value> {
        let mut kinds: Vec<Rounding> = Vec::new();
        for (_, rounding) in &self.packed {
            if !kinds.contains(rounding) {
                kinds.push(*rounding);
            }
        }
        let all = kinds.len() == 1 && self.whole == 0;
        let mut groups = serde_json::Map::new();
        for (i, kind) in kinds.iter().enumerate() {
            let of_kind = self.packed.iter().filter(|(_, rounding)| rounding == kind);
            let names: Vec<&str> = of_kind.map(|(name, _)| name.as_str()).collect();
            let strategy = if kind.group.is_some() { "group" } else { "channel" };
            let weights = json!({
                "num_bits": kind.bits,
                "type": "int",
                "symmetric": true,
                "strategy": strategy,
                "group_size": kind.group,
                "dynamic": false,
            });
            let group = json!({
                "targets": if all { vec!["Linear"] } else { names },
                "weights": weights,
                "input_activations": null,
                "output_activations": null,
                "format": "pack-quantized",
            });
            groups.insert(format!("group_{i}"), group);
        }
        (!kinds.is_empty()).then(|| {
            json!({
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "quantization_status": "compressed",
                "config_groups": groups,
                "ignore": ["lm_head"],
                "kv_cache_scheme": null,
            })
        })
    }
}
