//! JSON to Python and back, by Python's own reader.

use pyo3::prelude::*;
use serde_json::Value;

use crate::errors;

/// A value as dicts, lists, strings and numbers.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (value.to_string(),))
}

/// What `json.dumps` makes of `value`; `name` is how errors call it.
pub(crate) fn from_python(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Value> {
    let json = value.py().import("json")?;
    let text: String = json.call_method1("dumps", (value,))?.extract()?;
    serde_json::from_str(&text).map_err(|error| {
        errors::value(format!("{name} is {text}, expected a value that JSON has: {error}"))
    })
}
