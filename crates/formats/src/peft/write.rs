//! Writes a folder of adapters that PEFT loads.

use std::path::Path;

use checkpoint::Disk;
use serde_json::{Map, Value, json};

use super::folder::{CONFIG, PREFIX, SHARED_PREFIX, TENSORS};
use crate::Result;
use crate::error::check_finite;

/// A tensor of an adapter over one module.
#[derive(Debug)]
pub struct WrittenLeaf {
    /// The path of the module in the base; empty for a tensor that all modules share.
    pub module: String,
    /// The end of its name, which says what it is in its kind.
    pub leaf: &'static str,
    /// The lengths of its axes.
    pub shape: Vec<usize>,
    /// Its numbers, row after row.
    pub values: Vec<f32>,
}

/// Writes adapter_config.json and adapter_model.safetensors into a folder that is new or empty;
/// `settings` says the kind and its numbers, as PEFT names them.
///
/// # Errors
/// A folder with files in it, numbers that are not finite, or what the file system refuses.
pub fn write_adapters(
    folder: &Path,
    settings: Map<String, Value>,
    leaves: &[WrittenLeaf],
    disk: &dyn Disk,
) -> Result<()> {
    let mut modules: Vec<&str> = leaves.iter().map(|leaf| leaf.module.as_str()).collect();
    modules.sort_unstable();
    modules.dedup();
    modules.retain(|module| !module.is_empty());
    let mut config = json!({
        "base_model_name_or_path": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
    });
    if let Some(config) = config.as_object_mut() {
        config.extend(settings);
    }
    let path = folder.join(TENSORS);
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for WrittenLeaf { module, leaf, shape, values } in leaves {
        let name = match module.as_str() {
            "" => format!("{SHARED_PREFIX}{leaf}"),
            module => format!("{PREFIX}{module}.{leaf}"),
        };
        check_finite(&path, &name, 0, values)?;
        let begin = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        let offsets = [begin, data.len()];
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
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
