//! A checkpoint folder that is damaged in one way after another.

use std::fs;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Place;

/// A checkpoint that can be put back as it was.
pub(crate) struct Fixture {
    pub(crate) place: Place,
    folder: String,
    whole: Vec<(String, Vec<u8>)>,
}

impl Fixture {
    /// The checkpoint `folder` as it is now.
    pub(crate) fn new(place: Place, folder: &str) -> Self {
        let entries = fs::read_dir(place.path(folder)).expect("lists");
        let names =
            entries.map(|entry| entry.expect("lists").file_name().into_string().expect("UTF-8"));
        let whole =
            names.map(|name| (name.clone(), place.read(&format!("{folder}/{name}")))).collect();
        Self { place, folder: folder.to_owned(), whole }
    }

    pub(crate) fn file(&self, name: &str) -> Vec<u8> {
        self.whole.iter().find(|(found, _)| found == name).expect("in the checkpoint").1.clone()
    }

    pub(crate) fn folder(&self) -> &str {
        &self.folder
    }

    pub(crate) fn heal(&self) {
        for (name, bytes) in &self.whole {
            self.place.write(&format!("{}/{name}", self.folder), bytes);
        }
    }

    /// Replaces (or, without bytes, removes) a file of the checkpoint and makes the manifest agree,
    /// so that what is inside is reached.
    pub(crate) fn put(&self, file: &str, bytes: Option<&[u8]>) {
        let manifest = format!("{}/manifest.json", self.folder);
        let mut listed: Value =
            serde_json::from_slice(&self.place.read(&manifest)).expect("a manifest");
        let files = listed["files"].as_array_mut().expect("a list");
        match bytes {
            None => files.retain(|entry| entry["name"] != file),
            Some(bytes) => {
                let entry = files.iter_mut().find(|entry| entry["name"] == file).expect("listed");
                entry["bytes"] = bytes.len().into();
                entry["sha256"] = Sha256::digest(bytes)
                    .iter()
                    .map(|b| format!("{b:02x}"))
                    .collect::<String>()
                    .into();
                self.place.write(&format!("{}/{file}", self.folder), bytes);
            }
        }
        self.place.write(&manifest, listed.to_string());
    }

    /// Puts `bytes` into `file` and wants `inspect` and `generate` to refuse with `needles`; then
    /// heals.
    pub(crate) fn refuses(&self, file: &str, bytes: Option<&[u8]>, needles: &[&str]) {
        self.put(file, bytes);
        self.place
            .refuses(&["generate", &self.folder, "--prompt", "the", "--max-tokens", "5"], needles);
        self.place.refuses(&["inspect", &self.folder, "--json"], needles);
        self.heal();
    }

    /// The same for a field of a JSON file, given as a pointer; null removes it.
    pub(crate) fn refuses_field(&self, file: &str, field: &str, value: Value, needles: &[&str]) {
        self.put(file, Some(&self.with_field(file, field, value)));
        self.place
            .refuses(&["generate", &self.folder, "--prompt", "the", "--max-tokens", "5"], needles);
        self.heal();
    }

    pub(crate) fn with_field(&self, file: &str, field: &str, value: Value) -> Vec<u8> {
        let mut json: Value = serde_json::from_slice(&self.file(file)).expect("JSON");
        let (above, key) = field.rsplit_once('/').expect("a pointer");
        let map = json.pointer_mut(above).and_then(Value::as_object_mut).expect("an object");
        match value {
            Value::Null => map.remove(key),
            value => map.insert(key.to_owned(), value),
        };
        json.to_string().into_bytes()
    }
}
