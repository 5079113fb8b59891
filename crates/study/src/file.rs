//! The study file: TOML with the keys of other sweep files, every one of which means something
//! here or is refused.

use serde_json::{Map, Value};

use crate::error::refuse;
use crate::{Setting, StudyError};

/// The most runs that a study may have.
pub(crate) const MOST_POINTS: usize = 10_000;
/// Keys of a study file.
const KEYS: [&str; 6] = ["name", "method", "recipes", "parameters", "seeds", "metric"];
/// The recipe's field that seeds are values of.
pub(crate) const SEED: &str = "train.seed";
/// The column that counts where the study names none.
const COUNTS: &str = "bits_per_byte_causal";

/// Which way a number is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The less, the better.
    Minimize,
    /// The more, the better.
    Maximize,
}

/// The number by which runs are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objective {
    /// The column of the results.
    pub name: String,
    /// Which way it is better.
    pub goal: Goal,
}

/// A field of the recipe and the values that it takes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameter {
    /// Path of the field in the recipe.
    pub(crate) field: String,
    /// Values, at least one, all different.
    pub(crate) values: Vec<Value>,
}

/// Recipes, the values that fields of them take, and seeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Study {
    /// What the study is called.
    pub name: String,
    /// Recipe files or presets.
    pub recipes: Vec<String>,
    /// Seeds of every setting; empty for the recipe's own.
    pub seeds: Vec<u64>,
    /// The number by which runs are compared.
    pub metric: Objective,
    pub(crate) parameters: Vec<Parameter>,
}

impl Study {
    /// A study of one recipe as it is.
    pub fn of_recipe(name: &str, recipe: &str) -> Self {
        Self {
            name: name.to_owned(),
            recipes: vec![recipe.to_owned()],
            seeds: Vec::new(),
            metric: Objective { name: COUNTS.into(), goal: Goal::Minimize },
            parameters: Vec::new(),
        }
    }

    /// Whether a text is a study and not a recipe: TOML in which a key of studies stands.
    pub fn is_one(text: &str) -> bool {
        let given = toml::from_str::<Map<String, Value>>(text);
        given.is_ok_and(|given| KEYS.iter().any(|key| given.contains_key(*key)))
    }

    /// Reads a study; `name` is what it is called if it does not say.
    ///
    /// # Errors
    /// An unknown key, a field that is impossible, no recipe, a field without values, values,
    /// recipes or seeds that stand twice.
    pub fn parse(text: &str, name: &str) -> Result<Self, StudyError> {
        let given: Map<String, Value> =
            toml::from_str(text).map_err(|error| StudyError::Syntax(error.to_string()))?;
        if let Some(unknown) = given.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(StudyError::Field {
                field: unknown.clone(),
                found: "no key of a study".into(),
                expected: format!("one of {}{}", KEYS.join(", "), near(unknown, &KEYS)),
            });
        }
        let mut study = Self::of_recipe(name, "");
        if let Some(name) = given.get("name") {
            study.name = word("name", name)?;
        }
        check_name(&study.name)?;
        match given.get("method").map(|method| word("method", method)).transpose()?.as_deref() {
            None | Some("grid") => {}
            Some(other) => {
                let expected = "\"grid\", every combination of values once";
                return refuse("method", format!("{other:?}"), expected);
            }
        }
        study.recipes = recipes(given.get("recipes"))?;
        if let Some(parameters) = given.get("parameters") {
            let Value::Object(table) = parameters else {
                let expected = "a table of fields of the recipe";
                return refuse("parameters", parameters.to_string(), expected);
            };
            collect(table, "", &mut study.parameters)?;
        }
        study.seeds = seeds("seeds", given.get("seeds"))?;
        let seeded = study.parameters.iter().position(|parameter| parameter.field == SEED);
        if let Some(at) = seeded.filter(|_| study.seeds.is_empty()) {
            let values = Value::Array(study.parameters.remove(at).values);
            study.seeds = seeds(&format!("parameters.{SEED}"), Some(&values))?;
        }
        if let Some(metric) = given.get("metric") {
            study.metric = objective(metric)?;
        }
        study.check()?;
        Ok(study)
    }

    /// Lets a field take other values: `entry` is `FIELD=VALUE,VALUE...` with values as TOML, or as
    /// plain words where they are none. They take the place of those that the study gives it.
    ///
    /// # Errors
    /// No field, no value, or the same value twice.
    pub fn vary(&mut self, entry: &str) -> Result<(), StudyError> {
        let Some((field, text)) = entry.split_once('=') else {
            return refuse("-m", entry, "FIELD=VALUE,VALUE, like train.batch=8,16");
        };
        let values = listed(text);
        if field == SEED {
            self.parameters.retain(|parameter| parameter.field != SEED);
            self.seeds = seeds("seeds", Some(&Value::Array(values)))?;
            return self.check();
        }
        self.parameters.retain(|parameter| parameter.field != field);
        self.parameters.push(Parameter { field: field.to_owned(), values });
        self.check()
    }

    /// Fields that take several values, in the order of the points.
    pub fn varied(&self) -> Vec<&str> {
        let several = self.parameters.iter().filter(|parameter| parameter.values.len() > 1);
        several.map(|parameter| parameter.field.as_str()).collect()
    }

    /// Settings that every point has: fields of one value.
    pub(crate) fn fixed(&self) -> impl Iterator<Item = Setting> {
        let one = self.parameters.iter().filter(|parameter| parameter.values.len() == 1);
        one.map(|parameter| (parameter.field.clone(), parameter.values[0].clone()))
    }

    fn check(&self) -> Result<(), StudyError> {
        for Parameter { field, values } in &self.parameters {
            let path = format!("parameters.{field}");
            if field.is_empty() || field.split('.').any(str::is_empty) {
                return refuse(path, "no field", "a path in the recipe, like train.batch");
            }
            if values.is_empty() {
                return refuse(path, "without values", "at least one in `values`");
            }
            different(&path, values)?;
            let inner = format!("{field}.");
            if let Some(other) = self.parameters.iter().find(|p| p.field.starts_with(&inner)) {
                let found = format!("set whole and in part, as {}", other.field);
                return refuse(path, found, "one of the two: put the parts into its values");
            }
        }
        let fields: Vec<Value> =
            self.parameters.iter().map(|parameter| parameter.field.as_str().into()).collect();
        different("parameters", &fields)?;
        if !self.seeds.is_empty() && self.parameters.iter().any(|p| p.field == SEED) {
            return refuse(format!("parameters.{SEED}"), "given beside seeds", "one of the two");
        }
        let mut points = self.recipes.len().saturating_mul(self.seeds.len().max(1));
        for parameter in &self.parameters {
            points = points.saturating_mul(parameter.values.len());
        }
        if points > MOST_POINTS {
            let found = format!("a grid of {points} points");
            return refuse("parameters", found, format!("at most {MOST_POINTS}"));
        }
        Ok(())
    }
}

/// Refuses a name that cannot name a folder.
pub(crate) fn check_name(name: &str) -> Result<(), StudyError> {
    let mut others = name.chars().filter(|c| !c.is_alphanumeric() && !"._- ".contains(*c));
    if name.trim_matches(['.', ' ']).is_empty() || others.next().is_some() {
        let expected = "letters, digits, dots, dashes and spaces: it names a folder";
        return refuse("name", format!("{name:?}"), expected);
    }
    Ok(())
}

/// Refuses a list in which something stands twice.
pub(crate) fn different(field: &str, list: &[Value]) -> Result<(), StudyError> {
    for (at, value) in list.iter().enumerate() {
        if list[..at].contains(value) {
            return refuse(field, format!("a list with {value} twice"), "each once");
        }
    }
    Ok(())
}

pub(crate) fn word(field: &str, value: &Value) -> Result<String, StudyError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => refuse(field, other.to_string(), "a text in quotes"),
    }
}

fn recipes(given: Option<&Value>) -> Result<Vec<String>, StudyError> {
    let list = match given {
        Some(Value::Array(list)) => list.clone(),
        Some(one) => vec![one.clone()],
        None => Vec::new(),
    };
    if list.is_empty() {
        let expected = "a list of recipe files and presets, like [\"cpu-1m-mor3\"]";
        return refuse("recipes", "empty", expected);
    }
    let names: Result<Vec<String>, StudyError> =
        list.iter().map(|name| word("recipes", name)).collect();
    different("recipes", &list)?;
    names
}

pub(crate) fn seeds(field: &str, given: Option<&Value>) -> Result<Vec<u64>, StudyError> {
    let expected = "a number of seeds, or a list of them, like [1, 2, 3]";
    let list = match given {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.clone(),
        Some(Value::Number(count)) => match count.as_u64() {
            Some(count) if (1..=MOST_POINTS as u64).contains(&count) => {
                (1..=count).map(Value::from).collect()
            }
            _ => return refuse(field, count.to_string(), expected),
        },
        Some(other) => return refuse(field, other.to_string(), expected),
    };
    if list.is_empty() {
        return refuse(field, "an empty list", expected);
    }
    different(field, &list)?;
    let mut seeds = Vec::new();
    for seed in &list {
        match seed.as_u64() {
            Some(number) => seeds.push(number),
            None => return refuse(field, seed.to_string(), "whole numbers from 0"),
        }
    }
    Ok(seeds)
}

fn objective(given: &Value) -> Result<Objective, StudyError> {
    let Value::Object(table) = given else {
        return Ok(Objective { name: word("metric", given)?, goal: Goal::Minimize });
    };
    if let Some(other) = table.keys().find(|key| !["name", "goal"].contains(&key.as_str())) {
        return refuse(format!("metric.{other}"), "no key of a metric", "name or goal");
    }
    let name = match table.get("name") {
        Some(name) => word("metric.name", name)?,
        None => COUNTS.to_owned(),
    };
    let goal = match table.get("goal").map(|goal| word("metric.goal", goal)).transpose()?.as_deref()
    {
        None | Some("minimize") => Goal::Minimize,
        Some("maximize") => Goal::Maximize,
        Some(other) => {
            return refuse("metric.goal", format!("{other:?}"), "\"minimize\" or \"maximize\"");
        }
    };
    Ok(Objective { name, goal })
}

/// The fields below a table of parameters: a table with `value` or `values` is one, others hold
/// some.
pub(crate) fn collect(
    table: &Map<String, Value>,
    above: &str,
    found: &mut Vec<Parameter>,
) -> Result<(), StudyError> {
    for (name, inner) in table {
        let field = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        let path = format!("parameters.{field}");
        let Value::Object(entries) = inner else {
            let expected = format!("a table, like {{ values = [{inner}] }}");
            return refuse(path, inner.to_string(), expected);
        };
        let values = match (entries.get("value"), entries.get("values")) {
            (None, None) if entries.is_empty() => {
                return refuse(path, "an empty table", "`value` or `values` in it");
            }
            (None, None) => {
                collect(entries, &field, found)?;
                continue;
            }
            (Some(_), Some(_)) => return refuse(path, "value and values", "one of the two"),
            (Some(one), None) => vec![one.clone()],
            (None, Some(Value::Array(list))) => list.clone(),
            (None, Some(other)) => return refuse(path, other.to_string(), "a list of values"),
        };
        if let Some(other) = entries.keys().find(|key| !["value", "values"].contains(&key.as_str()))
        {
            return refuse(format!("{path}.{other}"), "beside values", "nothing beside them");
        }
        found.push(Parameter { field, values });
    }
    Ok(())
}

/// Values of a text: a TOML list without its brackets, or words between commas.
fn listed(text: &str) -> Vec<Value> {
    if let Some(Value::Array(values)) = toml_value(&format!("[{text}]")) {
        return values;
    }
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| toml_value(word).unwrap_or_else(|| word.into())).collect()
}

fn toml_value(text: &str) -> Option<Value> {
    let table = toml::from_str::<Map<String, Value>>(&format!("x = {text}")).ok()?;
    (table.len() == 1).then(|| table.get("x").cloned())?
}

/// The key that was meant, if one is near.
pub(crate) fn near(word: &str, keys: &[&str]) -> String {
    let known = keys.iter().map(|key| (strsim::damerau_levenshtein(word, key), key));
    match known.min_by_key(|(distance, _)| *distance) {
        Some((distance, key)) if distance <= 1 + word.len() / 3 => {
            format!("; did you mean `{key}`?")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
