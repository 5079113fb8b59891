//! The families that are compared: kinds of models of one shape.

use anyhow::{Context, Result, bail};
use model::ModelConfig;
use model::presets::{preset, widened};
use serde_json::{Value, json};
use study::{Comparison, Setting, Variant};

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

/// The variant of a comparison with this name.
pub(crate) fn variant<'c>(comparison: &'c Comparison, name: &str) -> Option<&'c Variant> {
    comparison.variants.iter().find(|variant| variant.name == name)
}

/// What a variant sets over a recipe whose fields all are `said`. A table that names another kind
/// than the recipe's replaces it, as it does over a preset.
pub(crate) fn own_settings(variant: Option<&Variant>, said: &Value) -> Vec<Setting> {
    let own = variant.map_or(&[][..], |variant| &variant.settings);
    let mut replaced: Vec<Setting> = Vec::new();
    for (field, kind) in own {
        let Some(table) = field.strip_suffix(".kind") else { continue };
        let found = said.pointer(&format!("/{}", field.replace('.', "/")));
        if found.is_some_and(|found| found != kind) {
            replaced.push((table.to_owned(), json!({ "kind": kind })));
        }
    }
    // A table ahead of those within it.
    replaced.sort_by_key(|(table, _)| table.len());
    replaced.extend(own.iter().cloned());
    replaced
}

/// What a family is, in words.
pub(crate) fn about(comparison: &Comparison, name: &str) -> String {
    if let Some(Variant { of, about, .. }) = variant(comparison, name) {
        return if about.is_empty() { format!("a variant of {of}") } else { about.clone() };
    }
    match known(name) {
        Some(family) => family.about.to_owned(),
        None if name.ends_with(".toml") => "a recipe of its own".to_owned(),
        None => format!("the preset {}-{name}", comparison.shape),
    }
}

/// Refuses names that are no family, no variant, no kind of the shape's presets and no recipe file,
/// and variants under the name of something else.
pub(crate) fn check(comparison: &Comparison) -> Result<()> {
    let shape = &comparison.shape;
    let is_kind = |name: &str| known(name).is_some() || preset(&preset_of(name, shape)).is_some();
    for Variant { name, of, .. } in &comparison.variants {
        if is_kind(name) || name.ends_with(".toml") {
            bail!("variants.{name} has the name of a family: choose another one");
        }
        if !is_kind(of) {
            bail!("variants.{name}.of: {}", unknown(of, comparison, ""));
        }
    }
    let published = comparison.published.iter().flat_map(|published| &published.losses);
    let published = published.map(|(name, _)| ("published.losses", name));
    let names = comparison.families.iter().map(|name| ("families", name));
    let is_known = |name: &str| {
        variant(comparison, name).is_some() || is_kind(name) || name.ends_with(".toml")
    };
    match names.chain(published).find(|(_, name)| !is_known(name)) {
        Some((place, name)) => {
            let more = ", a name under `variants`, a recipe file (.toml)";
            bail!("{place}: {}", unknown(name, comparison, more))
        }
        None => Ok(()),
    }
}

/// What is said about a name that is no family, and none of what else may stand there.
fn unknown(name: &str, comparison: &Comparison, more: &str) -> String {
    let all: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    let (all, shape) = (all.join(", "), &comparison.shape);
    format!(
        "\"{name}\" is unknown, expected one of {all}{more}, or what stands behind {shape}- in a \
         name that `lathe presets {shape}` lists, such as mor2"
    )
}

/// The name of the preset of a family.
fn preset_of(family: &str, shape: &str) -> String {
    format!("{shape}-{}", known(family).map_or(family, |known| known.kind))
}

/// The model of a family of a shape; with `ffn`, with MLPs of this width.
pub(crate) fn model(family: &str, shape: &str, ffn: Option<usize>) -> Result<ModelConfig> {
    let name = preset_of(family, shape);
    let found = match ffn {
        None => preset(&name),
        Some(ffn) => widened(&name, ffn),
    };
    found.with_context(|| {
        format!(
            "shape \"{shape}\" has no family \"{family}\" (there is no preset {name}): expected \
             the beginning of a name that `lathe presets` lists, such as cpu-1m"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every family of the studies that are kept here makes a recipe.
    #[test]
    fn studies_of_the_repository_name_models_that_there_are() {
        for folder in ["", "claims"] {
            let folder = format!("{}/../../studies/{folder}", env!("CARGO_MANIFEST_DIR"));
            for entry in std::fs::read_dir(folder).expect("there is a folder of studies") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    continue;
                }
                let text = std::fs::read_to_string(&path).expect("text");
                let comparison = Comparison::parse(&text, "it").expect("a comparison");
                assert!(check(&comparison).is_ok(), "{}", path.display());
                for name in comparison.families.iter().filter(|name| !name.ends_with(".toml")) {
                    let variant = variant(&comparison, name);
                    let of = variant.map_or(name.as_str(), |variant| variant.of.as_str());
                    let model = model(of, &comparison.shape, None).expect("a model");
                    let model = ModelConfig { vocab_size: 300, ..model };
                    let recipe = train::Recipe { model, ..Default::default() };
                    let said = serde_json::to_value(&recipe).expect("fields");
                    let own = own_settings(variant, &said);
                    let text = crate::recipe::show(&recipe).expect("a text");
                    let made = crate::recipe::with(&text, &own, "the study");
                    assert!(made.is_ok(), "{}: {name}: {:?}", path.display(), made.err());
                }
            }
        }
    }

    #[test]
    fn every_family_builds_and_has_controls_that_there_are() {
        for family in &FAMILIES {
            let config = model(family.name, "cpu-1m", None).expect(family.name);
            let config = ModelConfig { vocab_size: 300, ..config };
            assert!(config.check().is_ok(), "{}", family.name);
            assert!(family.controls.iter().all(|name| known(name).is_some()), "{}", family.name);
        }
        let names = ["mor", "dense", "random"].map(str::to_owned);
        assert_eq!(with_controls(&names), ["mor", "dense", "random", "recursive"]);
        let of = |text: &str| Comparison::parse(text, "it").expect("a comparison");
        let refused = |text: &str| check(&of(text)).expect_err(text).to_string();
        let all = "families = [\"mor\", \"rec2\", \"x.toml\", \"mine\"]\n\
                   [variants.mine]\nof = \"mor2-shared\"";
        assert!(check(&of(all)).is_ok());
        let error = refused("families = [\"dence\"]");
        assert!(error.contains("\"dence\"") && error.contains("dense, recursive"), "{error}");
        let error = refused("[variants.mine]\nof = \"mor5x\"");
        assert!(error.contains("variants.mine.of: \"mor5x\" is unknown"), "{error}");
        let published = "[published]\nsource = \"t\"\nlosses = { mor9x = 1, mor = 2 }";
        assert!(refused(published).contains("published.losses: \"mor9x\" is unknown"));
        for name in ["dense", "rec2", "\"x.toml\""] {
            let error = refused(&format!("[variants.{name}]\nof = \"mor\""));
            assert!(error.contains("has the name of a family"), "{error}");
        }
        let comparison = of("[variants.mine]\nof = \"mor\"\n[variants.his]\nof = \"mor\"\n\
                             about = \"his\"");
        for (name, words) in [
            ("mine", "a variant of mor"),
            ("his", "his"),
            ("x.toml", "a recipe of its own"),
            ("rec2", "the preset cpu-1m-rec2"),
            ("dense", "every layer stored, every token takes all of them"),
        ] {
            assert_eq!(about(&comparison, name), words);
        }
        let error = model("dense", "gpt-5", None).expect_err("no shape").to_string();
        assert!(error.contains("gpt-5"), "{error}");
    }
}
