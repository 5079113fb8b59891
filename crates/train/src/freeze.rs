//! Which weights stay as they are: patterns of names in the parameter table. A frozen weight gets
//! no gradient and no moments.

use model::ModelConfig;
use model::params::specs;

use crate::TrainError;
use crate::config::refuse;

/// The recipe's list of patterns.
const FIELD: &str = "train.freeze";

/// Whether `name` fits `pattern`, in which `*` stands for any characters, none included.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(first) else { return false };
    name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| fits(rest, &name[at..]))
}

/// Whether the recipe's patterns freeze the weight `name`.
pub(crate) fn is_frozen(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| fits(pattern, name))
}

/// # Errors
/// A pattern that fits no weight of the model, or patterns that leave none to train.
pub(crate) fn check(patterns: &[String], config: &ModelConfig) -> Result<(), TrainError> {
    if patterns.is_empty() {
        return Ok(());
    }
    let table = specs(config, &config.check()?);
    for pattern in patterns {
        if pattern.matches('*').count() > 8 {
            let expected = "at most 8 stars in a pattern";
            return refuse(FIELD, format!("\"{pattern}\""), expected.into());
        }
        if !table.iter().any(|spec| fits(pattern, &spec.name)) {
            let some: Vec<&str> = table.iter().take(6).map(|spec| spec.name.as_str()).collect();
            let expected = format!("a pattern that fits a weight, as in {}", some.join(", "));
            return refuse(FIELD, format!("\"{pattern}\""), expected);
        }
    }
    if table.iter().all(|spec| is_frozen(patterns, &spec.name)) {
        let expected = "patterns that leave a weight to train";
        return refuse(FIELD, format!("{patterns:?}"), expected.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, expected) in [
            ("embed", "embed", true),
            ("embed", "embed.x", false),
            ("layers.*", "layers.3.query", true),
            ("*.query", "layers.3.query", true),
            ("*.query", "relax.3.query.1.up", false),
            ("layers.*.query", "layers.3.query", true),
            ("layers.*.query", "layers.3.query.query", true),
            ("layers.*.query", "layers.3.key_value", false),
            ("*", "", true),
            ("l*s.*y", "layers.3.query", true),
            ("l*s.*y", "layers.3.queries", false),
            ("", "norm", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
