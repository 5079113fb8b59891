//! What routers learn outside of gradients.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The buffers of a model's routers by name, as [`crate::table::buffers`] lists them; part of
/// every checkpoint. One that is absent has not been written yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, Stored>", into = "BTreeMap<String, Vec<f32>>")]
pub struct RouterState(BTreeMap<String, Vec<f32>>);

/// A buffer in a file: a list, or one number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    One(f32),
    Many(Vec<f32>),
}

impl From<BTreeMap<String, Stored>> for RouterState {
    fn from(stored: BTreeMap<String, Stored>) -> Self {
        let mut state = Self::default();
        for (name, value) in stored {
            let value = match value {
                Stored::One(x) => vec![x],
                Stored::Many(list) => list,
            };
            state.set(&name, value);
        }
        state
    }
}

impl From<RouterState> for BTreeMap<String, Vec<f32>> {
    fn from(state: RouterState) -> Self {
        state.0
    }
}

impl RouterState {
    /// The buffer `name`, if it has been written. Who reads it says what an absent one means: no
    /// number stands in for it.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// The first number of the buffer `name`, if it has been written.
    pub fn number(&self, name: &str) -> Option<f32> {
        self.get(name)?.first().copied()
    }

    /// Writes a buffer; an empty value removes it.
    pub fn set(&mut self, name: &str, value: Vec<f32>) {
        if value.is_empty() {
            self.0.remove(name);
        } else {
            self.0.insert(name.to_owned(), value);
        }
    }

    /// This state with a buffer written, for tests and conversions.
    pub fn with(mut self, name: &str, value: &[f32]) -> Self {
        self.set(name, value.to_vec());
        self
    }

    /// Every buffer that has been written, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_written_is_absent() {
        let state: RouterState =
            serde_json::from_str(r#"{"bias": [], "running": [0.0, 0.5], "running_steps": 2}"#)
                .expect("buffers");
        assert_eq!((state.get("bias"), state.number("bias")), (None, None));
        assert_eq!(state.get("running"), Some(&[0.0, 0.5][..]));
        assert_eq!(
            (state.number("running"), state.number("running_steps")),
            (Some(0.0), Some(2.0))
        );
        assert_eq!(state.with("running", &[]).get("running"), None);
    }
}
