//! The matrices of a layer, attention's and then those of its MLP: their shapes, and which names
//! recipes may give.

use serde::{Deserialize, Deserializer, de};

use crate::attention;
use crate::latent;
use crate::mlp::MlpConfig;
use crate::params::{ParamSpec, Part};
use crate::sizes::Sizes;

/// The matrices of stored layer `stored`.
pub(crate) fn of_layer(sizes: &Sizes, mlp: &MlpConfig, stored: usize) -> Vec<ParamSpec> {
    let mut table = attention::specs(sizes, stored);
    table.extend(mlp.settings().specs(sizes, stored));
    table
}

/// The matrices of `stored` layers, of each part the first.
pub(crate) fn of_any_layer(sizes: &Sizes, mlp: &MlpConfig, stored: usize) -> Vec<ParamSpec> {
    let mut table: Vec<ParamSpec> = Vec::new();
    for spec in (0..stored).flat_map(|stored| of_layer(sizes, mlp, stored)) {
        if !table.iter().any(|known| known.place.part() == spec.place.part()) {
            table.push(spec);
        }
    }
    table
}

/// The parts that all attention has, then those of every MLP in the list, each once, and those of
/// latents.
pub(crate) fn all_parts() -> Vec<Part> {
    let mut all = attention::PARTS.to_vec();
    let of_mlps = MlpConfig::all();
    let of_mlps = of_mlps.iter().flat_map(|mlp| mlp.settings().parts());
    for part in of_mlps.chain(latent::PARTS) {
        if !all.contains(&part) {
            all.push(part);
        }
    }
    all
}

/// Reads a list of parts by their names.
///
/// # Errors
/// A name that is no part of attention or of any MLP.
pub(crate) fn read_parts<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Part>, D::Error> {
    let named = Vec::<Named>::deserialize(deserializer)?;
    Ok(named.into_iter().map(|Named(part)| part).collect())
}

/// A part as recipes name it.
struct Named(Part);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let all = all_parts();
        match all.iter().find(|part| part.name() == name) {
            Some(part) => Ok(Self(*part)),
            None => {
                let known: Vec<&str> = all.iter().map(|part| part.name()).collect();
                let known = known.join("`, `");
                Err(de::Error::custom(format!("unknown part `{name}`, expected one of `{known}`")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_by_name() {
        let read = |text: &str| read_parts(&mut serde_json::Deserializer::from_str(text));
        assert_eq!(read("[\"key_value\"]").expect("known"), [attention::KEY_VALUE]);
        let error = read("[\"keys\"]").expect_err("unknown").to_string();
        assert!(error.contains("keys") && error.contains("gate_up"), "{error}");
        let all: Vec<&str> = all_parts().into_iter().map(Part::name).collect();
        assert_eq!(all[..5], ["query", "key_value", "output", "gate_up", "down"]);
        let apart: std::collections::BTreeSet<&&str> = all.iter().collect();
        assert_eq!(apart.len(), all.len(), "{all:?}");
    }
}
