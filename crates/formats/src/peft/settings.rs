//! adapter_config.json: which modules an adapter is for, and its numbers.

use std::path::Path;

use regex::Regex;
use serde_json::Value;

use crate::error::quote;
use crate::json::{JsonFile, JsonObject, describe};
use crate::{FormatError, Result};

/// Settings that say nothing about what an adapter computes, or that are read here for every kind.
const OF_ALL: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "rank_pattern",
    "revision",
    "target_modules",
    "target_parameters",
    "task_type",
];

/// What messages call a number that [`is_usable`].
const USABLE: &str = "numbers of at most 1e6 in size";

/// Whether a product with the number is one in f32: adapters are scaled by a few dozens at most.
fn is_usable(number: f64) -> bool {
    number.abs() <= 1e6
}

/// The settings of an adapter.
pub(super) struct Settings {
    file: JsonFile,
    /// `None` where the config leaves it open.
    target: Option<Names>,
    exclude: Names,
    layers: Option<Vec<usize>>,
    layers_pattern: Vec<String>,
    parameters: Vec<String>,
    /// Ends of the paths of modules that are replaced.
    saved: Vec<String>,
}

/// Modules by the ends of their paths, or by one pattern for the whole path.
enum Names {
    Ends(Vec<String>),
    Pattern(Regex),
}

impl Names {
    fn read(config: &JsonObject<'_>, key: &str) -> Result<Option<Self>> {
        match config.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text == "all-linear" => Ok(None),
            Some(Value::String(text)) => {
                let pattern = pattern(config, key, &format!("^(?:{text})$"))?;
                Ok(Some(Self::Pattern(pattern)))
            }
            Some(_) => Ok(Some(Self::Ends(texts(config, key)?))),
        }
    }

    fn has(&self, module: &str) -> bool {
        match self {
            Self::Ends(ends) => ends.iter().any(|end| ends_with(module, end)),
            Self::Pattern(pattern) => pattern.is_match(module),
        }
    }
}

/// Whether a path is `end`, or ends with it behind a dot.
pub(super) fn ends_with(path: &str, end: &str) -> bool {
    path.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn pattern(config: &JsonObject<'_>, key: &str, text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|error| {
        let expected = "a regular expression without references and without a look around";
        let lines = error.to_string();
        let found = lines.lines().last().unwrap_or_default().trim().to_owned();
        config.unsupported_item(key, expected, format!("{}: {found}", quote(text)))
    })
}

/// The texts of a list under `key`.
fn texts(config: &JsonObject<'_>, key: &str) -> Result<Vec<String>> {
    let items = config.array(key)?.map(Vec::as_slice).unwrap_or_default();
    let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
    texts.collect::<Option<_>>().ok_or_else(|| config.wrong(key, "a list of texts"))
}

impl Settings {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let file = JsonFile::read(path)?;
        let config = file.object();
        let target = Names::read(&config, "target_modules")?;
        let exclude = Names::read(&config, "exclude_modules")?.unwrap_or(Names::Ends(Vec::new()));
        let layers = match config.get("layers_to_transform") {
            None => None,
            Some(value) => {
                let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                let numbers = items.iter().map(|n| n.as_u64().map(|n| n as usize));
                let all: Option<Vec<usize>> = numbers.collect();
                let wrong = || config.wrong("layers_to_transform", "layer numbers");
                Some(all.ok_or_else(wrong)?)
            }
        };
        let layers_pattern = match config.get("layers_pattern") {
            Some(Value::String(text)) => vec![text.clone()],
            _ => texts(&config, "layers_pattern")?,
        };
        let parameters = texts(&config, "target_parameters")?;
        let layers = layers.filter(|layers| !layers.is_empty());
        let saved = texts(&config, "modules_to_save")?;
        Ok(Self { target, exclude, layers, layers_pattern, parameters, saved, file })
    }

    pub(super) fn object(&self) -> JsonObject<'_> {
        self.file.object()
    }

    /// Refuses every setting that is neither among `known` nor off: absent, null, false or empty.
    pub(super) fn only(&self, known: &[&str]) -> Result<()> {
        let config = self.object();
        for (key, value) in config.items() {
            let off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            if !off && !known.contains(&key.as_str()) && !OF_ALL.contains(&key.as_str()) {
                let expected = "none, or off: what it changes is not computed here";
                return Err(config.unsupported_item(key, expected, describe(value)));
            }
        }
        Ok(())
    }

    /// Refuses a setting that is not at `neutral`.
    pub(super) fn neutral(&self, key: &str, neutral: &[Value]) -> Result<()> {
        let config = self.object();
        match config.get(key) {
            Some(value) if !neutral.contains(value) => {
                let all: Vec<String> = neutral.iter().map(Value::to_string).collect();
                Err(config.unsupported(key, all.join(" or ")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        Ok(self.object().bool(key)?.unwrap_or(false))
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.object().get(key).and_then(Value::as_str)
    }

    /// Whether the config gives `module` an adapter; `None` where it leaves that open.
    pub(super) fn targets(&self, module: &str) -> Option<bool> {
        let target = self.target.as_ref()?;
        let whole = matches!(target, Names::Ends(ends) if ends.iter().any(|end| end == module));
        if self.exclude.has(module) || !target.has(module) {
            return Some(false);
        }
        let layers = self.layers.as_ref().filter(|_| !whole);
        let is_one =
            |layers: &Vec<usize>| self.layer_of(module).is_some_and(|n| layers.contains(&n));
        Some(layers.is_none_or(is_one))
    }

    /// Whether the config says that `module`, or one that it is a part of, is replaced.
    pub(super) fn saves(&self, module: &str) -> bool {
        let is_part = |end: &String| {
            let ends = module.match_indices('.').map(|(at, _)| at).chain([module.len()]);
            ends.into_iter().any(|at| ends_with(&module[..at], end))
        };
        self.saved.iter().any(is_part)
    }

    /// How many numbers a module has: as the first of `n_frequency_pattern` that fits says, or
    /// `n_frequency`.
    pub(super) fn frequencies(&self, module: &str) -> Result<usize> {
        self.count_of("n_frequency_pattern", module, "n_frequency")
    }

    /// Whether WaveFT transforms: yes, unless the config says no.
    pub(super) fn transforms(&self) -> Result<bool> {
        Ok(self.object().bool("use_idwt")?.unwrap_or(true))
    }

    /// Whether the names under `key` have `module`.
    pub(super) fn is_named(&self, key: &str, module: &str) -> Result<bool> {
        Ok(Names::read(&self.object(), key)?.is_some_and(|names| names.has(module)))
    }

    /// The number behind the name of a list of layers, the last one of the path as PEFT reads it.
    fn layer_of(&self, module: &str) -> Option<usize> {
        let parts: Vec<&str> = module.split('.').collect();
        let named = |name: &str| {
            self.layers_pattern.is_empty() || self.layers_pattern.iter().any(|known| known == name)
        };
        let at = (2..parts.len().saturating_sub(1)).rev();
        at.filter(|&at| named(parts[at - 1])).find_map(|at| parts[at].parse().ok())
    }

    /// The parameters of module `path` that the config names, in its order.
    pub(super) fn parameters_of<'a>(&'a self, path: &str) -> Vec<&'a str> {
        let of_module = |named: &&'a String| {
            let (module, _) = named.rsplit_once('.').unwrap_or(("", named));
            ends_with(path, module)
        };
        let named = self.parameters.iter().filter(of_module);
        named.map(|named| named.rsplit_once('.').map_or(named.as_str(), |(_, name)| name)).collect()
    }

    /// A whole number from 1 that must be there.
    pub(super) fn count(&self, key: &str) -> Result<usize> {
        let config = self.object();
        let found = config.must(key, config.size(key)?)?;
        if found == 0 {
            return Err(config.wrong(key, "at least 1"));
        }
        Ok(found)
    }

    /// A number of a size that adapters have, which must be there.
    pub(super) fn number(&self, key: &str) -> Result<f64> {
        let config = self.object();
        let found = config.must(key, config.number(key)?)?;
        if is_usable(found) { Ok(found) } else { Err(config.wrong(key, USABLE)) }
    }

    /// The rank of a module: that of the first of `rank_pattern` that fits its path, or `r`.
    pub(super) fn rank(&self, module: &str) -> Result<usize> {
        self.count_of("rank_pattern", module, "r")
    }

    fn count_of(&self, patterns: &str, module: &str, key: &str) -> Result<usize> {
        let Some(value) = self.of_pattern(patterns, module)? else { return self.count(key) };
        let count = value.as_u64().filter(|&count| count > 0 && count < 1 << 32);
        let wrong = || self.object().wrong(patterns, "whole numbers from 1");
        Ok(count.ok_or_else(wrong)? as usize)
    }

    /// The alpha of a module, likewise, or what stands under `key`.
    pub(super) fn alpha(&self, module: &str, key: &str) -> Result<f64> {
        match self.of_pattern("alpha_pattern", module)? {
            None => self.number(key),
            Some(value) => {
                let alpha = value.as_f64().filter(|alpha| is_usable(*alpha));
                alpha.ok_or_else(|| self.object().wrong("alpha_pattern", USABLE))
            }
        }
    }

    fn of_pattern(&self, key: &str, module: &str) -> Result<Option<&Value>> {
        let config = self.object();
        if config.get(key).is_none() {
            return Ok(None);
        }
        let values = config.must(key, config.get(key).and_then(Value::as_object))?;
        for (name, value) in values {
            if pattern(&config, key, &format!("^(?:.*\\.)?(?:{name})$"))?.is_match(module) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The error of a setting that contradicts the tensors.
    pub(super) fn wrong(&self, key: &str, expected: impl Into<String>) -> FormatError {
        self.object().wrong(key, expected)
    }
}
