//! The name of a run: what decides its bits, and nothing else.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Hexadecimal digits of a key: 64 bits, of which a million runs share none by chance.
const DIGITS: usize = 16;

/// The first digits of the SHA-256 of `value` as JSON with the keys of every table in order, so
/// that the order in which fields were written changes nothing.
pub fn key(value: &Value) -> String {
    let digest = Sha256::digest(ordered(value).to_string().as_bytes());
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..DIGITS].to_owned()
}

fn ordered(value: &Value) -> Value {
    match value {
        Value::Object(table) => {
            let mut names: Vec<&String> = table.keys().collect();
            names.sort();
            names.into_iter().map(|name| (name.clone(), ordered(&table[name]))).collect()
        }
        Value::Array(list) => list.iter().map(ordered).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_of_fields_changes_no_key_and_their_values_do() {
        let one = json!({ "a": 1, "b": { "x": [1, 2], "y": 0.5 } });
        let same = json!({ "b": { "y": 0.5, "x": [1, 2] }, "a": 1 });
        assert_eq!(key(&one), key(&same));
        for other in [
            json!({ "a": 2, "b": { "x": [1, 2], "y": 0.5 } }),
            json!({ "a": 1, "b": { "x": [2, 1], "y": 0.5 } }),
            json!({ "a": 1, "b": { "x": [1, 2], "y": 0.25 } }),
        ] {
            assert_ne!(key(&one), key(&other), "{other}");
        }
        // SHA-256 of `{"a":1}`.
        assert_eq!(key(&json!({ "a": 1 })), "015abd7f5cc57a2d");
        assert_eq!(key(&one).len(), DIGITS);
    }
}
