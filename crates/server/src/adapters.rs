//! Loading adapters and letting them go, by requests of the form that vLLM has.

use crate::adapter_fields;
use crate::body::{self, Purpose};
use crate::call::Call;
use crate::error::ApiError;
use crate::json::cut;
use crate::request::parse;
use crate::response::{Body, whole, with_ignored};
use crate::schema::check;
use crate::state::AppState;
use hyper::Response;
use hyper::header::{self, HeaderValue};
use std::sync::Arc;

/// The longest name of an adapter, in bytes.
const LONGEST_NAME: usize = 256;

/// Refuses names that no adapter may have.
fn check_name(state: &AppState, name: &str) -> Result<(), ApiError> {
    let expected = if name.is_empty() || name.len() > LONGEST_NAME {
        format!("1 to {LONGEST_NAME} bytes")
    } else if name.chars().any(char::is_control) {
        "a text without control characters".into()
    } else if name == state.info.id || state.info.aliases.iter().any(|alias| alias == name) {
        "a name of its own: this is one of the model itself".into()
    } else {
        return Ok(());
    };
    let message = format!("`lora_name` is `{}`, expected {expected}", cut(name));
    Err(ApiError::field("lora_name", message))
}

/// `POST /v1/load_lora_adapter`, as vLLM has it.
pub(crate) async fn load(mut call: Call) -> Result<Response<Body>, ApiError> {
    call.state.adapters.source()?;
    let body = body::read(&mut call).await?;
    let (name, path, in_place, ignored) =
        body::understand(&call.state, body, Purpose::Prompt, |state, body| {
            let json = parse(body)?;
            let request = check(&json, adapter_fields::LOAD_ADAPTER, &state.bounds)?;
            let name = request.text("lora_name").unwrap_or_default().to_owned();
            let path = request.text("lora_path").unwrap_or_default().to_owned();
            check_name(state, &name)?;
            if path.is_empty() || path.contains('\0') {
                let message = "`lora_path` is empty or no path, expected the folder of an adapter";
                return Err(ApiError::field("lora_path", message));
            }
            Ok((name, path, request.flag("load_inplace", false), request.ignored))
        })
        .await?;
    let (state, wanted) = (Arc::clone(&call.state), name.clone());
    blocking(move || state.adapters.load(&wanted, &path, in_place)).await?;
    Ok(with_ignored(said(format!("Success: LoRA adapter '{name}' added successfully.")), &ignored))
}

/// `POST /v1/unload_lora_adapter`, as vLLM has it.
pub(crate) async fn unload(mut call: Call) -> Result<Response<Body>, ApiError> {
    call.state.adapters.source()?;
    let body = body::read(&mut call).await?;
    let (name, ignored) = body::understand(&call.state, body, Purpose::Prompt, |state, body| {
        let json = parse(body)?;
        let request = check(&json, adapter_fields::UNLOAD_ADAPTER, &state.bounds)?;
        let name = request.text("lora_name").unwrap_or_default().to_owned();
        check_name(state, &name)?;
        Ok((name, request.ignored))
    })
    .await?;
    let (state, wanted) = (Arc::clone(&call.state), name.clone());
    blocking(move || state.adapters.unload(&wanted)).await?;
    let text = format!("Success: LoRA adapter '{name}' removed successfully.");
    Ok(with_ignored(said(text), &ignored))
}

/// Runs what takes long on a thread that holds up nobody.
async fn blocking(
    work: impl FnOnce() -> Result<(), ApiError> + Send + 'static,
) -> Result<(), ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::panicked())?
}

fn said(text: String) -> Response<Body> {
    let mut response = Response::new(whole(text));
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
