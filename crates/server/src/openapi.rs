//! `/openapi.json`, written from the tables that also check requests.

use crate::error::TYPES;
use crate::routes::{ROUTES, Route};
use crate::schema::{Field, FieldKind, RequestBounds, Support, expected};
use serde_json::{Map, Value, json};

/// OpenAPI 3.1: every route under each of its paths; `keys` says whether one is needed.
pub(crate) fn document(bounds: &RequestBounds, keys: bool) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let operation = operation(route, bounds, keys);
        for path in route.paths {
            let path = if path.ends_with('/') && path.len() > 1 {
                format!("{path}{{id}}")
            } else {
                (*path).to_owned()
            };
            let entry = paths.entry(path).or_insert_with(|| json!({}));
            entry[route.method.to_ascii_lowercase()] = operation.clone();
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "lathe", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "schemas": { "Error": error_schema() },
        },
    })
}

fn error_schema() -> Value {
    let text = json!({ "type": "string" });
    let maybe = json!({ "type": ["string", "null"] });
    let inner = json!({
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": { "message": text, "type": text, "param": maybe, "code": maybe },
    });
    json!({ "type": "object", "required": ["error"], "properties": { "error": inner } })
}

fn operation(route: &Route, bounds: &RequestBounds, keys: bool) -> Value {
    let mut responses = Map::new();
    let kinds: Map<String, Value> =
        route.answers.split(' ').map(|kind| (kind.to_owned(), json!({ "schema": {} }))).collect();
    responses.insert("200".to_owned(), json!({ "description": route.summary, "content": kinds }));
    let shared: &[u16] = if route.open { &[405, 500] } else { &[401, 405, 500] };
    let mut errors: Vec<u16> = route.errors.iter().chain(shared).copied().collect();
    errors.sort_unstable();
    for status in errors {
        let kind = TYPES.iter().find(|(s, _)| *s == status).map_or("", |(_, kind)| kind);
        let schema = json!({ "$ref": "#/components/schemas/Error" });
        let content = json!({ "application/json": { "schema": schema } });
        responses.insert(status.to_string(), json!({ "description": kind, "content": content }));
    }
    let mut operation =
        json!({ "summary": route.summary, "operationId": route.name, "responses": responses });
    if let Some(fields) = route.fields {
        let content = json!({ "application/json": { "schema": object(fields, bounds) } });
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    if route.paths.iter().any(|path| path.len() > 1 && path.ends_with('/')) {
        let schema = json!({ "type": "string" });
        operation["parameters"] =
            json!([{ "name": "id", "in": "path", "required": true, "schema": schema }]);
    }
    if keys && !route.open {
        operation["security"] = json!([{ "key": [] }]);
    }
    operation
}

fn object(fields: &[Field], bounds: &RequestBounds) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|field| (field.name.to_owned(), property(field, bounds))).collect();
    let required: Vec<&str> =
        fields.iter().filter(|f| matches!(f.support, Support::Required)).map(|f| f.name).collect();
    let mut schema = json!({ "type": "object", "properties": properties, "required": required });
    let rules = relations(fields, bounds);
    if !rules.is_empty() {
        schema["allOf"] = Value::from(rules);
    }
    if is_full(fields, "prompt") && is_full(fields, "messages") {
        schema["anyOf"] = one_of_three();
    }
    if bounds.strict {
        schema["additionalProperties"] = Value::from(false);
    }
    schema
}

/// A text under one of its two names, or messages.
fn one_of_three() -> Value {
    let (text, list, none) =
        (json!({ "type": "string" }), json!({ "type": "array" }), json!({ "type": "null" }));
    let prompt =
        json!({ "required": ["prompt"], "properties": { "prompt": text, "messages": none } });
    let content =
        json!({ "required": ["content"], "properties": { "content": text, "messages": none } });
    let messages = json!({ "required": ["messages"],
        "properties": { "messages": list, "prompt": none, "content": none } });
    json!([prompt, content, messages])
}

/// `if` a field is there and has such a value, `then` this holds.
fn rule(name: &str, value: &Value, then: &Value) -> Value {
    json!({ "if": { "properties": { name: value }, "required": [name] }, "then": then })
}

/// What fields ask of each other; what only the tokenizer knows is left to the check.
fn relations(fields: &[Field], bounds: &RequestBounds) -> Vec<Value> {
    let on = json!({ "const": true });
    let some = json!({ "type": "integer", "minimum": 1 });
    let several = json!({ "type": "integer", "minimum": 2 });
    let all = [
        (
            "stream_options",
            json!({ "type": "object" }),
            "stream",
            json!({ "type": "boolean" }),
            true,
        ),
        ("top_logprobs", some, "logprobs", on.clone(), true),
        (
            "continue_final_message",
            on.clone(),
            "add_generation_prompt",
            json!({ "not": on }),
            false,
        ),
        ("n", several.clone(), "best_of", json!({ "enum": [null, 0] }), false),
        ("best_of", several.clone(), "n", several, true),
        ("max_tokens", json!({ "const": 0 }), "echo", on, true),
    ];
    let mut rules = Vec::new();
    for (name, value, other, then, needed) in all {
        if is_full(fields, name) && is_full(fields, other) {
            let required = if needed { vec![other] } else { Vec::new() };
            let then = json!({ "properties": { other: then }, "required": required });
            rules.push(rule(name, &value, &then));
        }
    }
    let depths =
        if is_full(fields, "min_depth") { i64::from(bounds.recursions).min(32) } else { 0 };
    for least in 1..=depths {
        let deep = json!({ "type": "integer", "minimum": least });
        let others = json!({ "anyOf": [{ "type": "null" }, { "minimum": least }] });
        let then = json!({ "properties": { "max_depth": others, "mean_depth_budget": others } });
        rules.push(rule("min_depth", &deep, &then));
    }
    rules
}

fn is_full(fields: &[Field], name: &str) -> bool {
    fields.iter().any(|field| field.name == name && matches!(field.support, Support::Full))
}

fn property(field: &Field, bounds: &RequestBounds) -> Value {
    let mut schema = match field.support {
        // That more is taken where it concerns nothing is said by the description alone.
        Support::Only(texts) | Support::Moot { texts, .. } => {
            let values = texts.iter().filter_map(|text| serde_json::from_str(text).ok());
            json!({ "enum": std::iter::once(Value::Null).chain(values).collect::<Vec<_>>() })
        }
        Support::Required => kind(field.kind, bounds),
        Support::Full | Support::NoEffect => match (field.kind, kind(field.kind, bounds)) {
            (FieldKind::Any, schema) => schema,
            (_, schema) => json!({ "anyOf": [schema, { "type": "null" }] }),
        },
    };
    let description = match field.support {
        Support::Only(_) | Support::Moot { .. } => field.help.to_owned(),
        _ => format!("{} Expected: {}.", field.help, expected(field.kind, bounds)),
    };
    schema["description"] = Value::from(description);
    if let Ok(default) = serde_json::from_str::<Value>(field.default)
        && !default.is_null()
    {
        schema["default"] = default;
    }
    schema
}

fn list(items: &Value, most: usize) -> Value {
    json!({ "type": "array", "items": items, "maxItems": most })
}

/// The same with at least one item.
fn some(items: &Value, most: usize) -> Value {
    let mut schema = list(items, most);
    schema["minItems"] = Value::from(1);
    schema
}

/// A message of one of these roles.
fn message(roles: &Value, content: &Value, required: &[&str]) -> Value {
    let nothing = json!({ "enum": [null, []] });
    let fields = json!({ "role": roles, "content": content, "tool_calls": nothing,
        "function_call": nothing, "audio": nothing });
    json!({ "type": "object", "required": required, "properties": fields })
}

fn kind(kind: FieldKind, bounds: &RequestBounds) -> Value {
    let limits = &bounds.limits;
    let id = json!({ "type": "integer", "minimum": 0, "maximum": bounds.vocab.saturating_sub(1) });
    let text = json!({ "type": "string" });
    match kind {
        FieldKind::Bool => json!({ "type": "boolean" }),
        FieldKind::Int(low, high) => {
            json!({ "type": "integer", "minimum": low.get(bounds), "maximum": high.get(bounds) })
        }
        FieldKind::Number(low, high, true) => {
            json!({ "type": "number", "exclusiveMinimum": low, "maximum": high })
        }
        FieldKind::Number(low, high, false) => {
            json!({ "type": "number", "minimum": low, "maximum": high })
        }
        FieldKind::Text => text,
        FieldKind::Prompt => {
            // A model without a begin token cannot begin with nothing.
            let least = usize::from(!bounds.begins);
            let text = json!({ "type": "string", "minLength": least });
            let ids = some(&id, bounds.context);
            let several = [some(&text, limits.prompts), some(&ids, limits.prompts)];
            json!({ "anyOf": [text, ids, several[0], several[1]] })
        }
        FieldKind::Ids(most) => list(&id, most.get(bounds) as usize),
        FieldKind::Stop => {
            // The limit is one of bytes, of which a character has up to four.
            let any = json!({ "minLength": 1, "maxLength": limits.stop_bytes / 4 });
            let ascii = json!({ "minLength": 1, "maxLength": limits.stop_bytes,
                "pattern": "^[\\u0001-\\u007f]*$" });
            let stop = json!({ "type": "string", "anyOf": [any, ascii] });
            json!({ "anyOf": [stop, list(&stop, limits.stops)] })
        }
        FieldKind::Bias => {
            let value = json!({ "type": "number", "minimum": -100, "maximum": 100 });
            let most = limits.logit_bias;
            let below = numbers_below(bounds.vocab);
            json!({ "type": "object", "maxProperties": most,
                "patternProperties": { below: value },
                "additionalProperties": { "const": 0 } })
        }
        FieldKind::Messages => {
            let fields = json!({ "type": { "const": "text" }, "text": text });
            let part =
                json!({ "type": "object", "properties": fields, "required": ["type", "text"] });
            let parts = json!({ "type": "array", "items": part, "minItems": 1 });
            let said = json!({ "anyOf": [text, parts] });
            let none = json!({ "anyOf": [text, { "type": "array", "items": part },
                { "type": "null" }] });
            let others: Vec<&str> =
                crate::chat::ROLES.into_iter().filter(|role| *role != "assistant").collect();
            let items = json!({ "anyOf": [
                message(&json!({ "enum": others }), &said, &["role", "content"]),
                message(&json!({ "const": "assistant" }), &none, &["role"]),
            ] });
            json!({ "type": "array", "items": items, "minItems": 1 })
        }
        FieldKind::Object(fields) => object(fields, bounds),
        FieldKind::Open => json!({ "type": "object" }),
        FieldKind::Any => json!({}),
    }
}

/// A pattern of the decimal numbers below `end`, written without leading zeros.
fn numbers_below(end: usize) -> String {
    let last = end.saturating_sub(1).to_string();
    let digits: Vec<u32> = last.chars().filter_map(|c| c.to_digit(10)).collect();
    let mut kinds: Vec<String> = (1..digits.len())
        .map(
            |length| {
                if length == 1 { "[0-9]".into() } else { format!("[1-9][0-9]{{{}}}", length - 1) }
            },
        )
        .collect();
    // As many digits as the last one has: the same beginning, then a smaller digit.
    for (at, &digit) in digits.iter().enumerate() {
        let least = u32::from(at == 0 && digits.len() > 1);
        if digit > least {
            let rest = digits.len() - at - 1;
            kinds.push(format!("{}[{least}-{}][0-9]{{{rest}}}", &last[..at], digit - 1));
        }
    }
    kinds.push(last);
    format!("^({})$", kinds.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_a_pattern() {
        assert_eq!(numbers_below(1), "^(0)$");
        assert_eq!(numbers_below(10), "^([0-8][0-9]{0}|9)$");
        assert_eq!(
            numbers_below(2050),
            "^([0-9]|[1-9][0-9]{1}|[1-9][0-9]{2}|[1-1][0-9]{3}|20[0-3][0-9]{1}|\
             204[0-8][0-9]{0}|2049)$"
        );
    }
}
