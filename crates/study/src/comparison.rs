//! What `lathe compare` compares: kinds of models, what is equal between them, seeds.

use serde_json::{Map, Value};

use crate::error::refuse;
use crate::file::{MOST_POINTS, check_name, collect, different, near, seeds, word};
use crate::{Published, Setting, StudyError};

/// Keys of the file.
const KEYS: [&str; 10] = [
    "name",
    "families",
    "variants",
    "controls",
    "budget",
    "seeds",
    "equal",
    "shape",
    "parameters",
    "published",
];
/// Keys of a variant.
const VARIANT: [&str; 3] = ["of", "about", "set"];

/// What all runs of a comparison have alike, beside the budget of FLOPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equal {
    /// The FLOPs of training: shapes as they are, as many steps as the budget pays for.
    Flops,
    /// The tokens of training: as many as the first family gets for the budget.
    Tokens,
    /// FLOPs, and the parameters that a token meets: MLPs are widened or narrowed to it.
    Active,
    /// FLOPs, and the parameters that are stored.
    Stored,
    /// FLOPs, and the bytes of weights that a decoded token reads.
    Bytes,
    /// The time that steps take here: as long as the first family takes for the budget.
    Time,
}

impl Equal {
    /// All of them, with the names that files and the command line give them.
    pub const ALL: [(&'static str, Self); 6] = [
        ("flops", Self::Flops),
        ("tokens", Self::Tokens),
        ("active", Self::Active),
        ("stored", Self::Stored),
        ("bytes", Self::Bytes),
        ("time", Self::Time),
    ];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, equal)| *equal)
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, equal)| *equal == self).map_or("", |(name, _)| name)
    }
}

/// A family that is another one with some fields of the recipe set.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// What it is called.
    pub name: String,
    /// The family that it is a variant of.
    pub of: String,
    /// What it is, in words; empty where the file does not say.
    pub about: String,
    /// Fields of the recipe that are its own.
    pub settings: Vec<Setting>,
}

/// Families of models on equal terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What the comparison is called.
    pub name: String,
    /// The families, by name, or recipe files whose models are taken as they are.
    pub families: Vec<String>,
    /// Families that the file describes itself.
    pub variants: Vec<Variant>,
    /// Whether the controls of a family are compared, too.
    pub controls: bool,
    /// FLOPs of training of each run, every product counted; each budget is compared apart.
    pub budgets: Vec<f64>,
    /// Seeds, the same ones for every family.
    pub seeds: Vec<u64>,
    /// What is equal between the families.
    pub equal: Equal,
    /// The shape that families are kinds of, as presets name it.
    pub shape: String,
    /// Fields of the recipe that every run has.
    pub settings: Vec<Setting>,
    /// Losses that others published of such families.
    pub published: Option<Published>,
}

impl Default for Comparison {
    /// Five families at 1e13 FLOPs a run.
    fn default() -> Self {
        let families = ["dense", "recursive", "mor", "moe", "mor-moe"];
        Self {
            name: "compare".into(),
            families: families.map(str::to_owned).to_vec(),
            variants: Vec::new(),
            controls: true,
            budgets: vec![1e13],
            seeds: vec![1, 2, 3],
            equal: Equal::Flops,
            shape: "cpu-1m".into(),
            settings: Vec::new(),
            published: None,
        }
    }
}

impl Comparison {
    /// Reads a comparison; `name` is what it is called if it does not say, and what else it does
    /// not say is as in [`Comparison::default`].
    ///
    /// # Errors
    /// An unknown key, a field that is impossible, something that stands twice.
    pub fn parse(text: &str, name: &str) -> Result<Self, StudyError> {
        let given: Map<String, Value> =
            toml::from_str(text).map_err(|error| StudyError::Syntax(error.to_string()))?;
        let mut it = Self { name: name.to_owned(), ..Self::default() };
        for (key, value) in &given {
            match key.as_str() {
                "name" => it.name = word(key, value)?,
                "families" => it.families = words(key, value)?,
                "variants" => it.variants = variants(value)?,
                "controls" => match value {
                    Value::Bool(controls) => it.controls = *controls,
                    other => return refuse(key, other.to_string(), "true or false"),
                },
                "budget" => it.budgets = numbers(key, value)?,
                "seeds" => it.seeds = seeds(key, Some(value))?,
                "equal" => it.equal = equal(&word(key, value)?)?,
                "shape" => it.shape = word(key, value)?,
                "parameters" => it.settings = settings(value)?,
                "published" => it.published = Some(Published::parse(value)?),
                _ => {
                    let expected = format!("one of {}{}", KEYS.join(", "), near(key, &KEYS));
                    return refuse(key, "no key of a comparison", expected);
                }
            }
        }
        it.check()?;
        Ok(it)
    }

    /// Refuses what cannot be compared.
    ///
    /// # Errors
    /// The first impossible field.
    pub fn check(&self) -> Result<(), StudyError> {
        check_name(&self.name)?;
        let list: Vec<Value> = self.families.iter().map(|name| name.as_str().into()).collect();
        if list.is_empty() {
            return refuse("families", "empty", "a list, like [\"dense\", \"mor\"]");
        }
        different("families", &list)?;
        for Variant { name, of, .. } in &self.variants {
            if self.variants.iter().any(|other| other.name == *of) {
                let expected = "a family that is no variant itself";
                return refuse(format!("variants.{name}.of"), format!("\"{of}\""), expected);
            }
        }
        for budget in &self.budgets {
            if !(*budget >= 1e6 && *budget <= 1e24) {
                let expected = "FLOPs of one run, from 1e6 to 1e24";
                return refuse("budget", budget.to_string(), expected);
            }
        }
        let budgets: Vec<Value> = self.budgets.iter().map(|budget| (*budget).into()).collect();
        if budgets.is_empty() {
            return refuse("budget", "empty", "FLOPs of one run, like 1e13");
        }
        different("budget", &budgets)?;
        if self.seeds.is_empty() {
            return refuse("seeds", "empty", "at least one");
        }
        let points = self.families.len().saturating_mul(self.budgets.len());
        let points = points.saturating_mul(self.seeds.len());
        if points > MOST_POINTS {
            let found = format!("so many that there are {points} runs");
            return refuse("seeds", found, format!("at most {MOST_POINTS} of all families"));
        }
        Ok(())
    }
}

/// The [`Equal`] of a name.
///
/// # Errors
/// A name that there is not.
pub fn equal(name: &str) -> Result<Equal, StudyError> {
    let known: Vec<&str> = Equal::ALL.iter().map(|(name, _)| *name).collect();
    match Equal::named(name) {
        Some(equal) => Ok(equal),
        None => refuse("equal", format!("\"{name}\""), format!("one of {}", known.join(", "))),
    }
}

fn words(field: &str, value: &Value) -> Result<Vec<String>, StudyError> {
    match value {
        Value::Array(list) => list.iter().map(|one| word(field, one)).collect(),
        one => Ok(vec![word(field, one)?]),
    }
}

fn numbers(field: &str, value: &Value) -> Result<Vec<f64>, StudyError> {
    let list = match value {
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    };
    let mut found = Vec::new();
    for one in &list {
        match one.as_f64() {
            Some(number) => found.push(number),
            None => return refuse(field, one.to_string(), "a number, like 1e13"),
        }
    }
    Ok(found)
}

/// Families by name, each of another one with fields set.
fn variants(value: &Value) -> Result<Vec<Variant>, StudyError> {
    let Value::Object(table) = value else {
        let expected = "a table of families, like [variants.shared] with of = \"mor\"";
        return refuse("variants", value.to_string(), expected);
    };
    let mut found = Vec::new();
    for (name, given) in table {
        let path = format!("variants.{name}");
        check_name(name)?;
        let Value::Object(given) = given else {
            return refuse(path, given.to_string(), "a table with `of` and `set`");
        };
        if let Some(other) = given.keys().find(|key| !VARIANT.contains(&key.as_str())) {
            let expected = format!("one of {}{}", VARIANT.join(", "), near(other, &VARIANT));
            return refuse(format!("{path}.{other}"), "no key of a variant", expected);
        }
        let text = |key: &str| given.get(key).map(|value| word(&format!("{path}.{key}"), value));
        let Some(of) = text("of").transpose()? else {
            return refuse(format!("{path}.of"), "missing", "the family that it is a variant of");
        };
        let mut settings = Vec::new();
        match given.get("set") {
            Some(Value::Object(fields)) if !fields.is_empty() => leaves(fields, "", &mut settings),
            None => {}
            Some(other) => {
                let expected = "fields of the recipe, like { model.kv = \"shared\" }";
                return refuse(format!("{path}.set"), other.to_string(), expected);
            }
        }
        let about = text("about").transpose()?.unwrap_or_default();
        found.push(Variant { name: name.clone(), of, about, settings });
    }
    Ok(found)
}

/// The fields within a table by their paths, whether they are written as tables or with dots.
fn leaves(table: &Map<String, Value>, above: &str, found: &mut Vec<Setting>) {
    for (name, value) in table {
        let field = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match value {
            Value::Object(inner) if !inner.is_empty() => leaves(inner, &field, found),
            value => found.push((field, value.clone())),
        }
    }
}

/// Settings of every run: each field has one value.
fn settings(value: &Value) -> Result<Vec<Setting>, StudyError> {
    let Value::Object(table) = value else {
        return refuse("parameters", value.to_string(), "a table of fields of the recipe");
    };
    let mut parameters = Vec::new();
    collect(table, "", &mut parameters)?;
    let mut found = Vec::new();
    for parameter in parameters {
        let [one] = parameter.values.as_slice() else {
            let path = format!("parameters.{}", parameter.field);
            let values = format!("a list of {} values", parameter.values.len());
            let expected = "one value for all runs; `lathe sweep` compares several";
            return refuse(path, values, expected);
        };
        found.push((parameter.field, one.clone()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Comparisons stand in `studies` and `studies/claims`, other studies in folders of their own.
    #[test]
    fn studies_of_the_repository_are_read() {
        for folder in ["", "claims"] {
            let folder = format!("{}/../../studies/{folder}", env!("CARGO_MANIFEST_DIR"));
            let mut names = Vec::new();
            for entry in std::fs::read_dir(folder).expect("there is a folder of studies") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    continue;
                }
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let text = std::fs::read_to_string(&path).expect("text");
                let found = Comparison::parse(&text, "by its file");
                assert_eq!(found.expect("a comparison").name, name, "{}", path.display());
                names.push(name);
            }
            assert!(!names.is_empty());
        }
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        let text = "families = [\"dense\", \"mine.toml\"]\nbudget = [1e12, 3e12]\nseeds = 5\n\
                    equal = \"stored\"\ncontrols = false\n\
                    [parameters]\ntrain.batch = { value = 8 }\n";
        let found = Comparison::parse(text, "it").expect("legal");
        assert_eq!(
            found,
            Comparison {
                name: "it".into(),
                families: vec!["dense".into(), "mine.toml".into()],
                variants: vec![],
                controls: false,
                budgets: vec![1e12, 3e12],
                seeds: vec![1, 2, 3, 4, 5],
                equal: Equal::Stored,
                shape: "cpu-1m".into(),
                settings: vec![("train.batch".into(), 8.into())],
                published: None,
            }
        );
        assert_eq!(Comparison::parse("", "compare").expect("legal"), Comparison::default());
        for (name, equal) in Equal::ALL {
            assert_eq!((Equal::named(name), equal.name()), (Some(equal), name));
        }
    }

    #[test]
    fn variants_are_families_with_fields_of_their_own() {
        let text = "families = [\"mor\", \"tanh\"]\n\
                    [variants.tanh]\nof = \"mor3\"\nabout = \"another function\"\n\
                    set = { model.router = { function = \"tanh\", alpha = 1.0 }, \
                    train.batch = 4 }\n\
                    [variants.plain]\nof = \"dense\"\n";
        let found = Comparison::parse(text, "it").expect("legal");
        let plain = Variant {
            name: "plain".into(),
            of: "dense".into(),
            about: String::new(),
            settings: vec![],
        };
        let settings = vec![
            ("model.router.function".into(), "tanh".into()),
            ("model.router.alpha".into(), 1.0.into()),
            ("train.batch".into(), 4.into()),
        ];
        let (name, of, about) = ("tanh".into(), "mor3".into(), "another function".into());
        let tanh = Variant { name, of, about, settings };
        let mut variants = found.variants;
        variants.sort_by(|a, b| a.name.cmp(&b.name));
        variants[1].settings.sort_by(|a, b| b.0.cmp(&a.0));
        let mut expected = [plain, tanh];
        expected[1].settings.sort_by(|a, b| b.0.cmp(&a.0));
        assert_eq!(variants, expected);
    }

    #[test]
    fn bad_comparisons_are_refused_by_field() {
        for (text, needle) in [
            ("variants = 3", "variants is 3"),
            ("[variants]\nx = 3", "variants.x is 3"),
            ("[variants.\"a/b\"]\nof = \"mor\"", "name is \"a/b\""),
            ("[variants.x]\nabout = \"y\"", "variants.x.of is missing"),
            ("[variants.x]\nof = 3", "variants.x.of is 3"),
            ("[variants.x]\nof = \"mor\"\nsets = 1", "variants.x.sets is no key of a variant"),
            ("[variants.x]\nof = \"mor\"\nsets = 1", "did you mean `set`?"),
            ("[variants.x]\nof = \"mor\"\nset = 1", "variants.x.set is 1"),
            ("[variants.x]\nof = \"x\"", "variants.x.of is \"x\", expected a family"),
            ("familys = []", "familys is no key of a comparison"),
            ("familys = []", "did you mean `families`?"),
            ("families = []", "families is empty"),
            ("families = [\"dense\", \"dense\"]", "\"dense\" twice"),
            ("families = [3]", "families is 3"),
            ("budget = []", "budget is empty"),
            ("budget = -1", "budget is -1"),
            ("budget = nan", "budget is"),
            ("budget = 1e99", "budget is 1"),
            ("budget = \"much\"", "budget is \"much\""),
            ("budget = [1e12, 1e12]", "twice"),
            ("seeds = 0", "seeds is 0"),
            ("seeds = 2001", "seeds is so many that there are 10005 runs, expected at most 10000"),
            ("equal = \"luck\"", "equal is \"luck\", expected one of flops, tokens"),
            ("controls = 1", "controls is 1"),
            ("name = \"a/b\"", "name is \"a/b\""),
            ("parameters = 3", "parameters is 3"),
            ("[parameters]\ntrain.batch = { values = [1, 2] }", "a list of 2 values"),
        ] {
            let error = Comparison::parse(text, "it").expect_err(text).to_string();
            assert!(error.contains(needle), "{text}: {error}");
        }
    }
}
