//! Settings in errors, as recipes write them.

use model::{ExpertRouterConfig, MlpConfig};
use serde::Serialize;
use serde_json::Value;

/// The kind of an MLP with the settings of which it has other values than usual.
pub fn mlp_in_words(mlp: &MlpConfig) -> String {
    let usual = MlpConfig::all().into_iter().find(|usual| usual.kind() == mlp.kind());
    member_in_words(mlp.kind(), json(mlp), usual.map(json).unwrap_or_default())
}

/// The same of a router over experts.
pub(crate) fn router_in_words(router: &ExpertRouterConfig) -> String {
    let usual = ExpertRouterConfig::all().into_iter().find(|usual| usual.kind() == router.kind());
    member_in_words(router.kind(), json(router), usual.map(json).unwrap_or_default())
}

fn json(member: impl Serialize) -> Value {
    serde_json::to_value(member).unwrap_or_default()
}

/// As recipes write it: `"experts" with count = 4, router.kind = "hash"`.
fn member_in_words(kind: &str, value: Value, usual: Value) -> String {
    let mut told = Vec::new();
    differences("", &value, &usual, &mut told);
    told.retain(|field| !field.starts_with("kind = "));
    match told.is_empty() {
        true => format!("\"{kind}\""),
        false => format!("\"{kind}\" with {}", told.join(", ")),
    }
}

/// Fields of `value` that `usual` has not so.
fn differences(path: &str, value: &Value, usual: &Value, told: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differences(&path, value, &usual[key.as_str()], told);
            }
        }
        other if other != usual => told.push(format!("{path} = {other}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::mlp::experts;

    #[test]
    fn settings_are_told_where_they_are_unusual() {
        assert_eq!(mlp_in_words(&MlpConfig::default()), "\"dense\"");
        let mut of = experts::Config { count: 5, ..experts::Config::default() };
        let told = mlp_in_words(&MlpConfig::Experts(of.clone()));
        assert_eq!(told, "\"experts\" with count = 5");
        for router in ExpertRouterConfig::all() {
            assert_eq!(router_in_words(&router), format!("\"{}\"", router.kind()));
            of.router = router;
            let told = mlp_in_words(&MlpConfig::Experts(of.clone()));
            let kind = of.router.kind();
            assert_eq!(
                told.contains(&format!("router.kind = \"{kind}\"")),
                kind != "top_k",
                "{told}"
            );
            assert!(!told.contains(['{', '(']), "{told}");
        }
    }
}
