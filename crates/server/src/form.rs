//! What form a text has, by whatever name a client asks for it.

use crate::error::ApiError;
use crate::json::{Json, cut};
use crate::schema::Checked;
use crate::state::AppState;
use grammar::{Compiled, Grammar};

/// Names under which a body may ask for a form. A grammar takes longer to read than its bytes tell.
const NAMES: [&str; 5] =
    ["response_format", "structured_outputs", "guided_", "json_schema", "json_object"];

/// Whether a body may ask for a form.
pub(crate) fn is_mentioned(body: &[u8]) -> bool {
    let holds = |name: &str| body.windows(name.len()).any(|window| window == name.as_bytes());
    NAMES.iter().any(|name| holds(name))
}

/// The form that the text of an answer has, ready to be followed.
///
/// # Errors
/// 400 for more than one form, for one that makes no sense or that no text fits, and where nothing
/// would end a text.
pub(crate) fn read(
    state: &AppState,
    request: &Checked<'_>,
    stop_ids: &[u32],
) -> Result<Option<Compiled>, ApiError> {
    let mut asked = Vec::new();
    asked.extend(response_format(request)?);
    if let Some(options) = request.object("structured_outputs") {
        asked.extend(structured(&options)?);
    }
    for name in ["guided_json", "json_schema"] {
        if let Some(value) = request.get(name) {
            asked.push((name, schema(name, value)?));
        }
    }
    let pattern = request.text("guided_regex");
    asked.extend(pattern.map(|text| ("guided_regex", Grammar::Regex(text.to_owned()))));
    if let Some(value) = request.get("guided_choice") {
        asked.push(("guided_choice", choices("guided_choice", value)?));
    }
    if let [(one, _), (other, _), ..] = asked[..] {
        let message = format!("`{one}` and `{other}` both say what form the text has; set one");
        return Err(ApiError::field(other, message));
    }
    let Some((name, grammar)) = asked.pop() else { return Ok(None) };
    if stop_ids.is_empty() {
        let message = format!(
            "`{name}` needs a token that ends the text, and there is none: leave out `ignore_eos`, \
             or give `stop_token_ids`"
        );
        return Err(ApiError::field(name, message));
    }
    let least = request.count("min_tokens").unwrap_or(0);
    if least > 0 {
        let message = format!(
            "`min_tokens` is {least} beside `{name}`, which says where the text ends; set one"
        );
        return Err(ApiError::field("min_tokens", message));
    }
    let vocabulary = state.token_text.vocabulary().map_err(|e| refused(name, &e.to_string()))?;
    vocabulary.compile(&grammar).map(Some).map_err(|e| refused(name, &e.to_string()))
}

fn refused(name: &str, why: &str) -> ApiError {
    ApiError::field(name, format!("`{name}`: {why}"))
}

type Asked = (&'static str, Grammar);

fn response_format(request: &Checked<'_>) -> Result<Option<Asked>, ApiError> {
    const NAME: &str = "response_format";
    let Some(format) = request.object(NAME) else { return Ok(None) };
    let kind = format.text("type").unwrap_or_default();
    let (named, beside) = (format.object("json_schema"), format.get("schema"));
    let unused = match kind {
        "json_schema" => beside.map(|_| "schema"),
        "json_object" => named.as_ref().map(|_| "json_schema"),
        _ => named.as_ref().map(|_| "json_schema").or(beside.map(|_| "schema")),
    };
    if let Some(unused) = unused {
        let message =
            format!("`{NAME}.{unused}` is set, which says nothing beside the type `{}`", cut(kind));
        return Err(ApiError::field(NAME, message));
    }
    let grammar = match (kind, named, beside) {
        ("text", ..) => return Ok(None),
        ("json_object", _, None) => Grammar::JsonObject,
        ("json_object", _, Some(value)) => schema(NAME, value)?,
        ("json_schema", Some(named), _) => {
            schema(NAME, named.get("schema").unwrap_or(&Json::Null))?
        }
        ("json_schema", None, _) => {
            let message = format!("`{NAME}.json_schema` is missing beside the type `json_schema`");
            return Err(ApiError::field(NAME, message));
        }
        _ => {
            let message = format!(
                "`{NAME}.type` is \"{}\", expected \"text\", \"json_object\" or \"json_schema\"",
                cut(kind)
            );
            return Err(ApiError::field(NAME, message));
        }
    };
    Ok(Some((NAME, grammar)))
}

fn structured(options: &Checked<'_>) -> Result<Vec<Asked>, ApiError> {
    let mut asked = Vec::new();
    if let Some(value) = options.get("json") {
        asked.push(("structured_outputs.json", schema("structured_outputs.json", value)?));
    }
    if options.flag("json_object", false) {
        asked.push(("structured_outputs.json_object", Grammar::JsonObject));
    }
    if let Some(pattern) = options.text("regex") {
        asked.push(("structured_outputs.regex", Grammar::Regex(pattern.to_owned())));
    }
    if let Some(value) = options.get("choice") {
        asked.push(("structured_outputs.choice", choices("structured_outputs.choice", value)?));
    }
    Ok(asked)
}

/// A schema as an object, as `true` or `false`, or as the JSON text of one.
fn schema(name: &str, value: &Json) -> Result<Grammar, ApiError> {
    let read = match value {
        Json::Text(text) => serde_json::from_str(text).map_err(|e| e.to_string()),
        other => serde_json::to_value(other).map_err(|e| e.to_string()),
    };
    let schema: serde_json::Value =
        read.map_err(|e| refused(name, &format!("expected a JSON Schema: {e}")))?;
    if !schema.is_object() && !schema.is_boolean() {
        let message = format!("`{name}` is {}, expected a JSON Schema, an object", value.short());
        return Err(ApiError::field(name, message));
    }
    Ok(Grammar::JsonSchema(schema))
}

fn choices(name: &str, value: &Json) -> Result<Grammar, ApiError> {
    let texts: Option<Vec<String>> = match value {
        Json::List(items) => items.iter().map(|i| i.as_text().map(str::to_owned)).collect(),
        // An empty list is read as one of ids.
        Json::Ids(ids) if ids.is_empty() => Some(Vec::new()),
        _ => None,
    };
    texts.map(Grammar::Choices).ok_or_else(|| {
        let message = format!("`{name}` is {}, expected a list of strings", value.short());
        ApiError::field(name, message)
    })
}
