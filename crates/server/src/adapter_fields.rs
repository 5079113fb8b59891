//! The fields of requests that load adapters and let them go, as vLLM has them.

use crate::schema::{Field, FieldKind, Support};

const fn named(name: &'static str, help: &'static str) -> Field {
    Field { name, kind: FieldKind::Text, default: "null", support: Support::Required, help }
}

/// The fields of `/v1/load_lora_adapter`.
pub(crate) static LOAD_ADAPTER: &[Field] = &[
    named("lora_name", "The name under which requests ask for the adapter."),
    named(
        "lora_path",
        "Its folder, as PEFT writes it, below the one that the server was started with.",
    ),
    Field {
        name: "load_inplace",
        kind: FieldKind::Bool,
        default: "false",
        support: Support::Full,
        help: "Take the place of the adapter that has the name.",
    },
];

/// The fields of `/v1/unload_lora_adapter`.
pub(crate) static UNLOAD_ADAPTER: &[Field] = &[
    named("lora_name", "The name under which it was loaded."),
    Field {
        name: "lora_int_id",
        kind: FieldKind::Any,
        default: "null",
        support: Support::NoEffect,
        help: "Names are enough here.",
    },
];
