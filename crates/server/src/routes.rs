//! The table of routes: paths, methods, fields of bodies, and what answers.

use crate::adapter_fields;
use crate::error::ApiError;
use crate::request_fields;
use crate::schema::Field;

/// The function of `handlers.rs` or `completions.rs` that answers, by name: a route that named the
/// function itself would import the files that import it.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    Completions,
    Chat,
    Responses,
    Embeddings,
    LoadAdapter,
    UnloadAdapter,
    Models,
    Model,
    Tokenize,
    Detokenize,
    TokenizerInfo,
    ModelInfo,
    ServerInfo,
    Load,
    Health,
    Live,
    Metrics,
    OpenApi,
    Page,
}

/// What one method does on a path and its other names, and what `/openapi.json` says of it.
pub(crate) struct Route {
    /// Its name in metrics.
    pub(crate) name: &'static str,
    pub(crate) method: &'static str,
    /// One ending with a slash (and not only that) takes the rest as an argument.
    pub(crate) paths: &'static [&'static str],
    /// Whether it answers without a key, although [`api_keys`] are set.
    ///
    /// [`api_keys`]: crate::ServerSettings::api_keys
    pub(crate) open: bool,
    /// Fields of its body.
    pub(crate) fields: Option<&'static [Field]>,
    /// Media types of its answer.
    pub(crate) answers: &'static str,
    /// Statuses it can refuse with, beside those that all can.
    pub(crate) errors: &'static [u16],
    pub(crate) summary: &'static str,
    pub(crate) handler: Handler,
}

impl Route {
    /// What is left of a path that is one of this route's; nothing for another path.
    fn takes(&self, path: &str) -> Option<String> {
        self.paths.iter().find_map(|known| match known.len() > 1 && known.ends_with('/') {
            true => path.strip_prefix(known).filter(|rest| !rest.is_empty()).map(unescape),
            false => (*known == path).then(String::new),
        })
    }
}

const BODY: &[u16] = &[400, 404, 408, 413, 415];
const CHANGE: &[u16] = &[400, 403, 404, 408, 413, 415];
const GENERATE: &[u16] = &[400, 404, 408, 413, 415, 429, 503];

const fn get(
    name: &'static str,
    paths: &'static [&'static str],
    handler: Handler,
    summary: &'static str,
) -> Route {
    let answers = "application/json";
    Route {
        name,
        method: "GET",
        paths,
        open: false,
        fields: None,
        answers,
        errors: &[],
        summary,
        handler,
    }
}

const fn post(
    name: &'static str,
    paths: &'static [&'static str],
    fields: &'static [Field],
    handler: Handler,
    summary: &'static str,
) -> Route {
    Route {
        method: "POST",
        fields: Some(fields),
        errors: BODY,
        ..get(name, paths, handler, summary)
    }
}

const STREAMED: &str = "application/json text/event-stream";

/// Every route; no two of them take the same path by the same method.
pub(crate) static ROUTES: &[Route] = &[
    Route {
        answers: STREAMED,
        errors: GENERATE,
        ..post(
            "completions",
            &["/v1/completions", "/completions"],
            request_fields::COMPLETION,
            Handler::Completions,
            "Continue and score prompts.",
        )
    },
    Route {
        answers: STREAMED,
        errors: GENERATE,
        ..post(
            "chat_completions",
            &["/v1/chat/completions", "/chat/completions"],
            request_fields::CHAT,
            Handler::Chat,
            "Answer a conversation.",
        )
    },
    Route {
        answers: STREAMED,
        errors: GENERATE,
        ..post(
            "responses",
            &["/v1/responses", "/responses"],
            request_fields::RESPONSES,
            Handler::Responses,
            "Answer a conversation, in the form of the Responses API.",
        )
    },
    Route {
        errors: GENERATE,
        ..post(
            "embeddings",
            &["/v1/embeddings", "/embeddings"],
            request_fields::EMBEDDINGS,
            Handler::Embeddings,
            "Texts as vectors of length 1.",
        )
    },
    get("models", &["/v1/models", "/models"], Handler::Models, "What is served."),
    Route {
        errors: &[404],
        ..get("model", &["/v1/models/", "/models/"], Handler::Model, "One model.")
    },
    Route {
        answers: "text/plain",
        errors: CHANGE,
        ..post(
            "load_lora_adapter",
            &["/v1/load_lora_adapter"],
            adapter_fields::LOAD_ADAPTER,
            Handler::LoadAdapter,
            "Serve the model with another adapter, too.",
        )
    },
    Route {
        answers: "text/plain",
        errors: CHANGE,
        ..post(
            "unload_lora_adapter",
            &["/v1/unload_lora_adapter"],
            adapter_fields::UNLOAD_ADAPTER,
            Handler::UnloadAdapter,
            "Let an adapter go; requests that began with it finish with it.",
        )
    },
    post(
        "tokenize",
        &["/tokenize", "/v1/tokenize"],
        request_fields::TOKENIZE,
        Handler::Tokenize,
        "Text to token ids.",
    ),
    post(
        "detokenize",
        &["/detokenize", "/v1/detokenize"],
        request_fields::DETOKENIZE,
        Handler::Detokenize,
        "Ids to text.",
    ),
    get(
        "tokenizer_info",
        &["/tokenizer_info", "/v1/tokenizer_info"],
        Handler::TokenizerInfo,
        "The tokenizer.",
    ),
    get(
        "model_info",
        &["/model_info", "/get_model_info"],
        Handler::ModelInfo,
        "The model, as gateways of SGLang ask for it.",
    ),
    get(
        "server_info",
        &["/server_info", "/get_server_info"],
        Handler::ServerInfo,
        "The server, as gateways of SGLang ask for it.",
    ),
    get("load", &["/get_load"], Handler::Load, "Requests and tokens held, for gateways."),
    Route {
        open: true,
        errors: &[503],
        ..get("health", &["/health"], Handler::Health, "Whether it takes work.")
    },
    Route { open: true, ..get("live", &["/live"], Handler::Live, "Whether it runs.") },
    Route {
        answers: "text/plain",
        ..get("metrics", &["/metrics"], Handler::Metrics, "Counters for Prometheus.")
    },
    get("openapi", &["/openapi.json"], Handler::OpenApi, "This description."),
    Route {
        answers: "text/html",
        ..get("page", &["/"], Handler::Page, "A page to try the model.")
    },
];

/// The route of a path, with the rest that it takes as an argument. HEAD is answered as GET.
pub(crate) fn find(method: &str, path: &str) -> Result<(&'static Route, String), ApiError> {
    let method = if method == "HEAD" { "GET" } else { method };
    let mut other = None;
    for route in ROUTES {
        if let Some(rest) = route.takes(path) {
            if route.method == method {
                return Ok((route, rest));
            }
            other = Some(route.method);
        }
    }
    match other {
        Some(allowed) => Err(ApiError::method(allowed)),
        None => {
            let path = crate::json::cut(path);
            Err(ApiError::new(404, format!("no route `{path}`; /openapi.json lists them"))
                .code("unknown_route"))
        }
    }
}

/// Percent escapes resolved; broken ones stay as they are.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match hex
            .filter(|_| bytes[at] == b'%')
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
        {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_their_routes() {
        let name = |method, path| {
            find(method, path).map(|(route, rest)| (route.name, rest)).map_err(|e| e.status)
        };
        assert_eq!(name("POST", "/v1/completions"), Ok(("completions", String::new())));
        assert_eq!(name("POST", "/completions"), Ok(("completions", String::new())));
        assert_eq!(name("GET", "/v1/models/a%2Fb/c"), Ok(("model", "a/b/c".to_owned())));
        assert_eq!(name("GET", "/v1/models/%zz%"), Ok(("model", "%zz%".to_owned())));
        assert_eq!(name("GET", "/"), Ok(("page", String::new())));
        assert_eq!(name("GET", "/v1/completions"), Err(405));
        assert_eq!(name("HEAD", "/health"), Ok(("health", String::new())));
        assert_eq!(name("HEAD", "/v1/completions"), Err(405));
        assert_eq!(name("GET", "/v1/models/"), Err(404));
        assert_eq!(name("GET", "/nothing"), Err(404));
    }
}
