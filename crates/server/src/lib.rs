//! The HTTP contract over any engine. Knows no tensor.
//!
//! [`serve`] answers on a listening socket until its shutdown signal, with an engine behind the
//! [`scheduler::Backend`] trait. It speaks HTTP/1.1 and the JSON of the OpenAI interface, extended
//! where recursion depth and token ids are concerned.
//!
//! # Routes
//!
//! | route | what it does |
//! |---|---|
//! | `POST /v1/completions` | continues and scores prompts; with `echo` also the prompt |
//! | `POST /v1/chat/completions` | the same for a conversation, through the model's chat template |
//! | `POST /v1/responses` | the same in the form of the Responses API |
//! | `POST /v1/embeddings` | a vector for each text |
//! | `GET /v1/models`, `GET /v1/models/{id}` | what is served |
//! | `POST /v1/load_lora_adapter`, `POST /v1/unload_lora_adapter` | adapters come and go |
//! | `POST /tokenize`, `POST /detokenize`, `GET /tokenizer_info` | the tokenizer |
//! | `GET /model_info`, `GET /server_info`, `GET /get_load` | what gateways of SGLang ask |
//! | `GET /health` | 200 when requests are welcome; 503 when draining or stuck |
//! | `GET /live` | 200 as long as the program runs |
//! | `GET /metrics` | counters and histograms for Prometheus, prefix `lathe_` |
//! | `GET /openapi.json` | all fields of all requests, from the table that checks them |
//! | `GET /` | a page to try the model; it needs nothing from elsewhere |
//!
//! The routes under `/v1` also answer without it, the tokenizer's also with it. With
//! [`ServerSettings::api_keys`] every route but `/health` and `/live` needs `Authorization: Bearer
//! KEY`; a browser may send the key as a password. HEAD is answered as GET, without the body.
//!
//! Who listens at a loopback address without keys is asked by an address, by `localhost` or by a
//! name of [`ServerSettings::allow_hosts`], so that no page of a foreign site can reach it under a
//! name of its own. Pages of other sites may read answers only if these are among
//! [`ServerSettings::cors_origins`].
//!
//! # Settings
//!
//! | field of [`ServerSettings`] | default | what happens beyond it |
//! |---|---|---|
//! | `limits.body_bytes` | 4 MiB | 413 |
//! | `limits.prompts`, `limits.n`, `limits.sequences` | 64, 16, 128 | 400 |
//! | `limits.stops`, `limits.stop_bytes`, `limits.stop_ids` | 16, 256, 128 | 400 |
//! | `limits.logprobs`, `limits.logit_bias` | 20, 1024 | 400 |
//! | `limits.tokenize_bytes` | 1 MiB | 400 |
//! | `limits.template_bytes`, `limits.template_fuel` | 16 MiB, 300000 | 400 |
//! | `limits.template_time` | 5 s | 400, and its process ends |
//! | `api_keys` | none | 401 |
//! | `allow_hosts` | see above | 403 |
//! | `cors_origins` | none | no header, 403 for a preflight |
//! | `adapter_source` | none | 403 for loading and unloading adapters |
//! | `strict` | false | unknown fields: 400 instead of the header `x-lathe-ignored` |
//! | `deadline` | 600 s | 408, or an error event in a stream |
//! | `header_read`, `body_read`, `keep_alive` | 10 s, 30 s, 60 s | it closes; 408 for a body |
//! | `connections` | 1024, or `ulimit -n` | the longest idle one gives way; 503 if all work |
//! | `head_bytes` | 32 KiB | 431 |
//! | `events`, `slow_reader` | 256, 30 s | the sequence pauses, then is cancelled |
//! | `ping` | 10 s | a comment line in a silent stream |
//! | `lame_duck` | 0 s | new requests get 503; until then `/health` alone does |
//! | `drain` | 30 s | requests in flight end with an error |
//! | `stuck` | 30 s | `/health` answers 503 |
//! | `readers`, `tokenizing`, `reading` | 4, 2, 30 s | they wait to be read; 408 |
//!
//! # Chat templates
//!
//! They come with models and run in a process of their own (`template_program`), which may end
//! without harm: [`render_templates`] is all that it does.
//!
//! # Errors
//!
//! Every refusal has the body `{"error":{"message","type","param","code"}}`: 400
//! `invalid_request_error`, 401 `authentication_error`, 403
//! `permission_error`, 404 `not_found_error`, 405
//! `method_not_allowed`, 408 `request_timeout`, 413 `payload_too_large`, 415
//! `unsupported_media_type`, 429 `overloaded_error` and 503 `unavailable_error` (both with
//! `Retry-After`), 500 `internal_error`. What is no HTTP at all gets a bare 400 or 431. A panic
//! ends its own request with 500 and is counted. A client that goes away is counted as 499 and its
//! sequences are cancelled.

mod adapter_fields;
mod adapters;
mod answer;
mod answering;
mod backend;
mod body;
mod calendar;
mod call;
mod chat;
mod choice;
mod completions;
mod connection;
mod controls;
mod conversation;
mod converse;
mod descriptors;
mod dispatch;
mod embeddings;
mod error;
mod form;
mod handlers;
mod json;
mod keys;
mod metrics;
mod named_templates;
mod openapi;
mod origin;
mod pending;
mod random_ids;
mod request;
mod request_fields;
mod response;
mod responses;
mod responses_request;
mod routes;
mod schema;
mod serve;
mod settings;
mod state;
mod stops;
mod stream;
mod template;
mod template_filters;
mod template_frames;
mod template_host;
mod template_methods;
mod template_source;
mod template_tuples;
mod template_values;
mod template_worker;
mod token_text;

pub use backend::{AdapterInfo, AdapterRefusal, AdapterSource, ModelInfo};
pub use conversation::Conversations;
pub use named_templates::{NAMED_TEMPLATES, NamedTemplate};
pub use serve::serve;
pub use settings::{ServeError, ServerLimits, ServerSettings, TemplateProgram};
pub use stops::{StopHit, StopMatcher};
pub use template_source::check_chat_template;
pub use template_worker::render_templates;
pub use token_text::{ModelText, vocabulary};
