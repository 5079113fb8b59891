//! Writes a folder of LoRA adapters that PEFT loads.

use std::path::Path;

use checkpoint::Disk;
use serde_json::{Map, Value, json};

use super::folder::{CONFIG, PREFIX, TENSORS};
use crate::Result;
use crate::error::check_finite;

/// A low-rank adapter of one module, `W + alpha / rank B A`.
#[derive(Debug)]
pub struct WrittenPair {
    /// The path of the module in the base.
    pub module: String,
    /// The factor next to the input, `[rank, in]`.
    pub a: Vec<f32>,
    /// The factor next to the output, `[out, rank]`, without the scale.
    pub b: Vec<f32>,
    /// `[out]`: the lengths of the adapted matrix's rows, for DoRA.
    pub magnitude: Option<Vec<f32>>,
}

/// Writes adapter_config.json and adapter_model.safetensors into a folder that is new or empty.
///
/// # Errors
/// A folder with files in it, numbers that are not finite, or what the file system refuses.
pub fn write_lora(
    folder: &Path,
    rank: usize,
    alpha: f64,
    pairs: &[WrittenPair],
    disk: &dyn Disk,
) -> Result<()> {
    let mut modules: Vec<&str> = pairs.iter().map(|pair| pair.module.as_str()).collect();
    modules.sort_unstable();
    let config = json!({
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": pairs.iter().any(|pair| pair.magnitude.is_some()),
        "use_rslora": false,
    });
    let path = folder.join(TENSORS);
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for WrittenPair { module, a, b, magnitude } in pairs {
        let (columns, rows) = (a.len() / rank.max(1), b.len() / rank.max(1));
        let magnitude = magnitude.as_ref().map(|m| ("lora_magnitude_vector", m, vec![rows]));
        let leaves =
            [("lora_A.weight", a, vec![rank, columns]), ("lora_B.weight", b, vec![rows, rank])];
        for (leaf, values, shape) in leaves.into_iter().chain(magnitude) {
            let name = format!("{PREFIX}{module}.{leaf}");
            check_finite(&path, &name, values)?;
            let begin = data.len();
            data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            let offsets = [begin, data.len()];
            header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
        }
    }
    let mut header = Value::from(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(data);
    let config = format!("{config:#}\n").into_bytes();
    checkpoint::write_folder(folder, &[CONFIG, TENSORS], disk, |out| {
        for (name, bytes) in [(TENSORS, &bytes), (CONFIG, &config)] {
            let mut file = out.file(name)?;
            out.append(&mut file, bytes)?;
            out.close(file)?;
        }
        Ok(())
    })
}
