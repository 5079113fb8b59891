//! What `lathe frontier` measures: ways to make models smaller, each at several strengths, on
//! several models, and beside a control.

use serde_json::{Map, Value};

use crate::StudyError;
use crate::error::refuse;
use crate::file::{MOST_POINTS, check_name, different, near, word};

/// Keys of the file.
const KEYS: [&str; 7] =
    ["name", "checkpoints", "text", "calibration_rows", "windows", "sequence_length", "method"];
/// Keys of a method.
const METHOD_KEYS: [&str; 4] = ["name", "passes", "vary", "control"];

/// A way to make a model smaller.
#[derive(Clone, Debug, PartialEq)]
pub struct Method {
    /// What it is called in tables and charts.
    pub name: String,
    /// Passes in their order, each by name or as a table of settings.
    pub passes: Vec<Value>,
    /// The field of the first pass that varies, with its values.
    pub vary: Option<(String, Vec<Value>)>,
    /// The method whose results say what of this one's is its own doing.
    pub control: Option<String>,
}

/// Models, methods, and the text on which all are measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Frontier {
    /// What the study is called.
    pub name: String,
    /// The models. Differences between methods are paired over these.
    pub checkpoints: Vec<String>,
    /// The text that passes look at and that results are measured on: a file or a data folder.
    pub text: String,
    /// Tokens that passes look at, at most.
    pub calibration_rows: u64,
    /// Windows that results are measured on.
    pub windows: u64,
    /// Tokens of a window; `None` for those of the run.
    pub sequence_length: Option<u64>,
    /// What is measured, in the order of the tables.
    pub methods: Vec<Method>,
}

/// One result: a method at one strength on one model.
#[derive(Clone, Debug, PartialEq)]
pub struct FrontierPoint {
    /// Number of the method in the study.
    pub method: usize,
    /// Number of its strength.
    pub strength: usize,
    /// Number of the model.
    pub model: usize,
    /// The strength as text, such as `share = 0.25`; empty where nothing varies.
    pub label: String,
    /// The passes, all values set.
    pub passes: Vec<Value>,
    /// The seed of what passes draw: one a model, the same for every method.
    pub seed: u64,
}

impl Frontier {
    /// Reads a study; `name` is what it is called if it does not say.
    ///
    /// # Errors
    /// An unknown key, a field that is impossible or missing, something that stands twice, a
    /// control that there is not or that has other strengths.
    pub fn parse(text: &str, name: &str) -> Result<Self, StudyError> {
        let given: Map<String, Value> =
            toml::from_str(text).map_err(|error| StudyError::Syntax(error.to_string()))?;
        known(&given, "", &KEYS)?;
        let name = match given.get("name") {
            Some(name) => word("name", name)?,
            None => name.to_owned(),
        };
        check_name(&name)?;
        let text = match given.get("text") {
            Some(text) => word("text", text)?,
            None => return refuse("text", "missing", "a text file or a data folder"),
        };
        let it = Self {
            name,
            checkpoints: checkpoints(given.get("checkpoints"))?,
            text,
            calibration_rows: count(&given, "calibration_rows")?.unwrap_or(16384),
            windows: count(&given, "windows")?.unwrap_or(128),
            sequence_length: count(&given, "sequence_length")?,
            methods: methods(given.get("method"))?,
        };
        let count = it.points().len();
        if count > MOST_POINTS {
            let expected = format!("at most {MOST_POINTS} over all models");
            return refuse("method", format!("so many that there are {count} results"), expected);
        }
        Ok(it)
    }

    /// All results, in the order of the file: methods, strengths, models.
    pub fn points(&self) -> Vec<FrontierPoint> {
        let mut points = Vec::new();
        for (method, it) in self.methods.iter().enumerate() {
            for (strength, (label, passes)) in it.strengths().into_iter().enumerate() {
                for model in 0..self.checkpoints.len() {
                    let (label, passes) = (label.clone(), passes.clone());
                    let seed = model as u64 + 1;
                    points.push(FrontierPoint { method, strength, model, label, passes, seed });
                }
            }
        }
        points
    }
}

impl Method {
    /// Each strength by its label, with the passes that it is.
    fn strengths(&self) -> Vec<(String, Vec<Value>)> {
        let Some((field, values)) = &self.vary else {
            return vec![(String::new(), self.passes.clone())];
        };
        let mut all = Vec::new();
        for value in values {
            let mut passes = self.passes.clone();
            if let Some(Value::Object(first)) = passes.first_mut() {
                first.insert(field.clone(), value.clone());
            }
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            all.push((format!("{field} = {text}"), passes));
        }
        all
    }
}

/// Which points no other one beats: none is at most as large in both coordinates and smaller in
/// one. Of equal points all stay; one that is not finite does not.
pub fn undominated(points: &[(f64, f64)]) -> Vec<bool> {
    let mut stay = Vec::new();
    for point in points {
        let finite = point.0.is_finite() && point.1.is_finite();
        stay.push(finite && !points.iter().any(|other| beats(other, point)));
    }
    stay
}

fn beats(one: &(f64, f64), other: &(f64, f64)) -> bool {
    one.0 <= other.0 && one.1 <= other.1 && one != other
}

fn known(given: &Map<String, Value>, above: &str, keys: &[&str]) -> Result<(), StudyError> {
    match given.keys().find(|key| !keys.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let expected = format!("one of {}{}", keys.join(", "), near(key, keys));
            refuse(format!("{above}{key}"), "no key of this study", expected)
        }
    }
}

fn count(given: &Map<String, Value>, key: &str) -> Result<Option<u64>, StudyError> {
    let Some(value) = given.get(key) else { return Ok(None) };
    match value.as_u64().filter(|count| *count > 0) {
        Some(count) => Ok(Some(count)),
        None => refuse(key, value.to_string(), "a whole number from 1"),
    }
}

fn checkpoints(given: Option<&Value>) -> Result<Vec<String>, StudyError> {
    let expected = "a list of checkpoints, like [\"runs/moe\"]";
    let list = match given {
        Some(Value::Array(list)) if !list.is_empty() => list.clone(),
        Some(Value::String(one)) => vec![one.as_str().into()],
        Some(other) => return refuse("checkpoints", other.to_string(), expected),
        None => return refuse("checkpoints", "missing", expected),
    };
    different("checkpoints", &list)?;
    list.iter().map(|one| word("checkpoints", one)).collect()
}

fn methods(given: Option<&Value>) -> Result<Vec<Method>, StudyError> {
    let expected = "[[method]] tables, each with name and passes";
    let list = match given {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(other) => return refuse("method", other.to_string(), expected),
        None => return refuse("method", "missing", expected),
    };
    let methods: Vec<Method> =
        list.iter().enumerate().map(|(i, one)| method(i + 1, one)).collect::<Result<_, _>>()?;
    let names: Vec<Value> = methods.iter().map(|method| method.name.as_str().into()).collect();
    different("method.name", &names)?;
    for method in &methods {
        let Some(control) = &method.control else { continue };
        let field = format!("control of method \"{}\"", method.name);
        let Some(other) = methods.iter().find(|other| other.name == *control) else {
            let expected = "the name of another method of the study";
            return refuse(field, format!("\"{control}\""), expected);
        };
        if other.name == method.name {
            return refuse(field, "the method itself", "another method");
        }
        if values(other) != values(method) {
            let found = format!("\"{control}\", which has other values");
            return refuse(
                field,
                found,
                "a method that varies the same field over the same values",
            );
        }
    }
    Ok(methods)
}

fn values(method: &Method) -> Option<&(String, Vec<Value>)> {
    method.vary.as_ref()
}

fn method(number: usize, given: &Value) -> Result<Method, StudyError> {
    let above = format!("method {number}: ");
    let Value::Object(table) = given else {
        return refuse(
            format!("method {number}"),
            given.to_string(),
            "a table with name and passes",
        );
    };
    known(table, &above, &METHOD_KEYS)?;
    let name = match table.get("name") {
        Some(name) => word(&format!("{above}name"), name)?,
        None => return refuse(format!("{above}name"), "missing", "a word or two"),
    };
    let expected = "a list of passes, like [{ kind = \"drop\" }]";
    let passes: Vec<Value> = match table.get("passes") {
        Some(Value::Array(list)) if !list.is_empty() => list.iter().map(pass_table).collect(),
        Some(other) => return refuse(format!("{above}passes"), other.to_string(), expected),
        None => return refuse(format!("{above}passes"), "missing", expected),
    };
    let control = match table.get("control") {
        Some(control) => Some(word(&format!("{above}control"), control)?),
        None => None,
    };
    Ok(Method { vary: vary(&above, table.get("vary"), &passes)?, name, passes, control })
}

/// A pass that is named alone has its default settings.
fn pass_table(given: &Value) -> Value {
    match given {
        Value::String(name) => serde_json::json!({ "kind": name }),
        other => other.clone(),
    }
}

fn vary(
    above: &str,
    given: Option<&Value>,
    passes: &[Value],
) -> Result<Option<(String, Vec<Value>)>, StudyError> {
    let path = format!("{above}vary");
    let expected = "one field of the first pass with its values, like { share = [0.25, 0.5] }";
    let table = match given {
        None => return Ok(None),
        Some(Value::Object(table)) if table.len() == 1 => table,
        Some(other) => return refuse(path, other.to_string(), expected),
    };
    let Some((field, Value::Array(values))) = table.iter().next() else {
        return refuse(path, given.map(Value::to_string).unwrap_or_default(), expected);
    };
    if values.is_empty() {
        return refuse(path, "a list without values", expected);
    }
    different(&path, values)?;
    let set =
        passes.first().and_then(Value::as_object).is_some_and(|first| first.contains_key(field));
    if set {
        let expected = "one of the two";
        return refuse(path, format!("{field}, which stands in the first pass, too"), expected);
    }
    Ok(Some((field.clone(), values.clone())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WHOLE: &str = "checkpoints = [\"a\", \"b\"]\ntext = \"data\"\nwindows = 8\n\
        [[method]]\nname = \"best\"\npasses = [\"drop\", { kind = \"wanda\" }]\n\
        vary = { share = [0.25, 0.5] }\ncontrol = \"dice\"\n\
        [[method]]\nname = \"dice\"\npasses = [{ kind = \"drop\", by = \"random\" }]\n\
        vary = { share = [0.25, 0.5] }\n\
        [[method]]\nname = \"round\"\npasses = [\"round\"]\n";

    #[test]
    fn every_method_is_every_strength_on_every_model() {
        let found = Frontier::parse(WHOLE, "it").expect("legal");
        assert_eq!((found.windows, found.calibration_rows), (8, 16384));
        let points = found.points();
        assert_eq!(points.len(), 2 * 2 + 2 * 2 + 2);
        assert_eq!(
            points[0].passes,
            [json!({ "kind": "drop", "share": 0.25 }), json!({ "kind": "wanda" })]
        );
        assert_eq!((points[0].label.as_str(), points[0].seed), ("share = 0.25", 1));
        assert_eq!((points[1].model, points[1].seed), (1, 2));
        assert_eq!(points[2].passes[0]["share"], 0.5);
        assert_eq!(points[4].passes, [json!({ "kind": "drop", "by": "random", "share": 0.25 })]);
        assert_eq!((points[8].label.as_str(), points[8].method), ("", 2));
    }

    #[test]
    fn frontiers_of_the_repository_are_read() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../studies/frontiers");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).expect("there is a folder of them") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("text");
            let found = Frontier::parse(&text, "by its file").expect("a frontier");
            assert_eq!(Some(found.name.as_str()), path.file_stem().and_then(|name| name.to_str()));
            names.push(found.name);
        }
        assert!(!names.is_empty());
    }

    #[test]
    fn a_point_is_beaten_by_one_that_is_better_in_both() {
        let points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (2.0, 3.0), (9.0, f64::NAN)];
        assert_eq!(undominated(&points), [true, true, false, false, true, false]);
        assert_eq!(undominated(&[(f64::INFINITY, f64::INFINITY)]), [false]);
    }

    #[test]
    fn bad_studies_are_refused_by_field() {
        let head = "checkpoints = \"a\"\ntext = \"t\"\n";
        let one = "[[method]]\nname = \"m\"\npasses = [\"drop\"]\n";
        for (text, needle) in [
            (format!("{head}txet = 1\n{one}"), "did you mean `text`?"),
            (one.to_owned(), "text is missing"),
            (format!("text = \"t\"\n{one}"), "checkpoints is missing"),
            (format!("text = \"t\"\ncheckpoints = []\n{one}"), "checkpoints is []"),
            (format!("text = \"t\"\ncheckpoints = [\"a\", \"a\"]\n{one}"), "\"a\" twice"),
            (head.to_owned(), "method is missing"),
            (format!("{head}method = 3"), "method is 3"),
            (format!("{head}windows = 0\n{one}"), "windows is 0"),
            (format!("{head}sequence_length = -1\n{one}"), "sequence_length is -1"),
            (format!("{head}{one}{one}"), "\"m\" twice"),
            (format!("{head}{one}pass = 1"), "method 1: pass"),
            (format!("{head}[[method]]\npasses = [\"drop\"]"), "method 1: name is missing"),
            (format!("{head}[[method]]\nname = \"m\""), "method 1: passes is missing"),
            (format!("{head}[[method]]\nname = \"m\"\npasses = []"), "method 1: passes is []"),
            (format!("{head}{one}control = \"n\""), "control of method \"m\" is \"n\""),
            (format!("{head}{one}control = \"m\""), "is the method itself"),
            (format!("{head}{one}vary = 3"), "method 1: vary is 3"),
            (format!("{head}{one}vary = {{ share = [] }}"), "without values"),
            (format!("{head}{one}vary = {{ share = [1, 1] }}"), "twice"),
            (format!("{head}{one}vary = {{ kind = [\"drop\"] }}"), "first pass, too"),
            (
                format!(
                    "{head}{one}control = \"n\"\n[[method]]\nname = \"n\"\npasses = [\"drop\"]\n\
                     vary = {{ share = [0.5] }}"
                ),
                "which has other values",
            ),
        ] {
            let error = Frontier::parse(&text, "it").expect_err(&text).to_string();
            assert!(error.contains(needle), "{text}: {error}");
        }
    }
}
