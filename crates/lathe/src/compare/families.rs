//! The families that are compared: kinds of models of one shape.

use anyhow::{Context, Result, bail};
use model::ModelConfig;
use model::presets::{preset, widened};

/// A family by name.
pub(crate) struct Family {
    /// What it is called on the command line and in results.
    pub(crate) name: &'static str,
    /// Its kind, as presets name it behind their shape.
    kind: &'static str,
    /// What its models are.
    pub(crate) about: &'static str,
    /// Families that show what of its result is its own doing.
    pub(crate) controls: &'static [&'static str],
}

/// All families, in the order of help and tables.
pub(crate) const FAMILIES: [Family; 7] = [
    Family {
        name: "dense",
        kind: "dense",
        about: "every layer stored, every token takes all of them",
        controls: &[],
    },
    Family {
        name: "recursive",
        kind: "rec3",
        about: "shared layers, which every token takes three times: depth is fixed",
        controls: &[],
    },
    Family {
        name: "mor",
        kind: "mor3",
        about: "Mixture-of-Recursions: a learned router gives tokens one to three recursions",
        controls: &["recursive", "random"],
    },
    Family {
        name: "token",
        kind: "token3",
        about: "Mixture-of-Recursions in which each token chooses its depth once",
        controls: &["recursive", "random"],
    },
    Family {
        name: "moe",
        kind: "moe",
        about: "Mixture-of-Experts: each token takes two of eight MLPs of a layer",
        controls: &[],
    },
    Family {
        name: "mor-moe",
        kind: "mor3-moe",
        about: "Mixture-of-Recursions with experts in the shared layers",
        controls: &[],
    },
    Family {
        name: "random",
        kind: "random3",
        about: "recursions for tokens drawn by chance: the control of a learned router",
        controls: &[],
    },
];

/// The family of a name.
pub(crate) fn known(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

/// Names with the controls of each behind them, each once.
pub(crate) fn with_controls(names: &[String]) -> Vec<String> {
    let mut all = names.to_vec();
    for family in names.iter().filter_map(|name| known(name)) {
        for control in family.controls {
            if !all.iter().any(|name| name == control) {
                all.push((*control).to_owned());
            }
        }
    }
    all
}

/// Refuses names that are neither a family nor a recipe file.
pub(crate) fn check(names: &[String]) -> Result<()> {
    let mut unknown = names.iter().filter(|name| known(name).is_none());
    if let Some(name) = unknown.find(|name| !name.ends_with(".toml")) {
        let all: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        bail!(
            "families: \"{name}\" is unknown, expected one of {}, or a recipe file (.toml)",
            all.join(", ")
        );
    }
    Ok(())
}

/// The model of a family of a shape; with `ffn`, with MLPs of this width.
pub(crate) fn model(family: &Family, shape: &str, ffn: Option<usize>) -> Result<ModelConfig> {
    let name = format!("{shape}-{}", family.kind);
    let found = match ffn {
        None => preset(&name),
        Some(ffn) => widened(&name, ffn),
    };
    found.with_context(|| {
        format!(
            "shape \"{shape}\" has no family \"{}\" (there is no preset {name}): expected the \
             beginning of a name that `lathe presets` lists, such as cpu-1m",
            family.name
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_builds_and_has_controls_that_there_are() {
        for family in &FAMILIES {
            let config = model(family, "cpu-1m", None).expect(family.name);
            let config = ModelConfig { vocab_size: 300, ..config };
            assert!(config.check().is_ok(), "{}", family.name);
            assert!(family.controls.iter().all(|name| known(name).is_some()), "{}", family.name);
        }
        let names = ["mor", "dense", "random"].map(str::to_owned);
        assert_eq!(with_controls(&names), ["mor", "dense", "random", "recursive"]);
        assert!(check(&names).is_ok() && check(&["x.toml".into()]).is_ok());
        let error = check(&["dence".into()]).expect_err("unknown").to_string();
        assert!(error.contains("\"dence\"") && error.contains("dense, recursive"), "{error}");
        let error = model(&FAMILIES[0], "gpt-5", None).expect_err("no shape").to_string();
        assert!(error.contains("gpt-5"), "{error}");
    }
}
