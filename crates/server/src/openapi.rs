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
    json!({ "type": "object", "properties": properties, "required": required })
}

fn property(field: &Field, bounds: &RequestBounds) -> Value {
    let mut schema = match field.support {
        Support::Only(texts) => {
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
        Support::Only(_) => field.help.to_owned(),
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
            let ids = list(&id, bounds.context);
            json!({ "oneOf": [text, ids, list(&text, limits.prompts), list(&ids, limits.prompts)] })
        }
        FieldKind::Ids(most) => list(&id, most.get(bounds) as usize),
        FieldKind::Stop => {
            let stop = json!({ "type": "string", "minLength": 1, "maxLength": limits.stop_bytes });
            json!({ "oneOf": [stop, list(&stop, limits.stops)] })
        }
        FieldKind::Bias => {
            let value = json!({ "type": "number", "minimum": -100, "maximum": 100 });
            let most = limits.logit_bias;
            json!({ "type": "object", "additionalProperties": value, "maxProperties": most })
        }
        FieldKind::Messages => {
            let fields = json!({ "type": { "const": "text" }, "text": text });
            let part = json!({ "type": "object", "properties": fields });
            let content = json!({ "oneOf": [text, { "type": "array", "items": part }] });
            let roles = json!({ "enum": crate::chat::ROLES });
            let fields = json!({ "role": roles, "content": content });
            let message = json!({ "type": "object", "required": ["role"], "properties": fields });
            json!({ "type": "array", "items": message })
        }
        FieldKind::Object(fields) => object(fields, bounds),
        FieldKind::Open => json!({ "type": "object" }),
        FieldKind::Any => json!({}),
    }
}
